"""Parameter groups by role and depth, for any optimizer of torch."""

from __future__ import annotations

from typing import Any

from torch import nn

from attntut._checks import check_number
from attntut.adjust.handle import known_view
from attntut.adjust.registry import adjustment
from attntut.anatomy.blocks import block_of, find_blocks
from attntut.anatomy.names import RolePatterns


@adjustment(
    formula=r"\eta_l = \eta\, \xi^{L + 1 - l}, \qquad l = 0 \text{ (embedding)}, 1, \ldots, L, L + 1 \text{ (readout)}",
    cite="clark2020electra",
    source="Clark et al. (2020), ELECTRA, appendix; counted as in BEiT's optim_factory.py and MAE's lr_decay.py",
    why="In fine-tuning, what lies near the input is more general and should move less.",
)
def layer_lr_decay(
    model: nn.Module,
    *,
    lr: float,
    decay: float = 0.8,
    inputs: Any = None,
    roles: RolePatterns | None = None,
    n_heads: int | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups whose learning rate falls from the readout through the blocks to the embedding.

    Each stack of a model counts its own blocks; the embedding is one step before those of the deepest.

    Args:
        model: any model with blocks that contain attention.
        lr: η, of what comes after the blocks.
        decay: ξ.
        inputs, roles, n_heads: as in :func:`attntut.init.view`.

    Returns:
        Groups with ``params``, ``lr`` and ``name``, from the input on; every parameter is in one of them.

    Raises:
        ValueError: there are no blocks.

    Example:
        >>> import torch
        >>> from attntut import Transformer, TransformerConfig
        >>> model = Transformer(TransformerConfig(n_classes=2, d_input=4, n_layers=2))
        >>> groups = layer_lr_decay(model, lr=0.1, decay=0.5)
        >>> [(group["name"], group["lr"]) for group in groups]
        [('before the blocks', 0.0125), ('blocks 1', 0.025), ('blocks 2', 0.05), ('after the blocks', 0.1)]
        >>> optimizer = torch.optim.AdamW(groups)
    """
    check_number("lr", lr, low=0)
    check_number("decay", decay, low=0, high=1, open_low=True)
    view = known_view(model, inputs, roles, n_heads)
    blocks = find_blocks(model, [each.name for each in view.attention])
    if not blocks:
        raise ValueError(f"model must have blocks in a list, and {type(model).__name__} has none.")
    depth = max(each.n_layers for each in blocks.values())
    at_input = {entry.parameter for entry in view.by_role("embedding", "position")}
    modules = {name.rpartition(".")[0] for name in at_input}
    groups: dict[str, dict[str, Any]] = {"before the blocks": {"lr": lr * decay ** (depth + 1), "params": []}}
    after: dict[str, Any] = {"lr": lr, "params": []}
    for name, parameter in model.named_parameters():
        block = block_of(blocks, name)
        if block.name:
            group = groups.setdefault(
                f"{block.stack} {block.layer}", {"lr": lr * decay ** (block.n_layers + 1 - block.layer), "params": []}
            )
        else:
            is_before = name in at_input or name.rpartition(".")[0] in modules - {""}
            group = groups["before the blocks"] if is_before else after
        group["params"].append(parameter)
    groups["after the blocks"] = after
    return [each | {"name": name} for name, each in groups.items() if each["params"]]
