"""Parameter groups by role and depth, for any optimizer of torch."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from attntut._checks import check_number
from attntut.adjust.handle import blocks_of, fitting_view
from attntut.adjust.registry import adjustment
from attntut.anatomy.blocks import block_of
from attntut.anatomy.names import RolePatterns
from attntut.anatomy.view import ModelView, plain
from attntut.init.width import learning_rates


def stored(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters by their names, those that others are computed from (σReparam) by the name of what they give."""
    return {
        re.sub(r"parametrizations\.([^.]+)\.original$", r"\1", name): each for name, each in model.named_parameters()
    }


@adjustment(
    formula=r"\eta_l = \eta\, \xi^{L + 1 - l}, \qquad l = 0 \text{ (embedding)}, 1, \ldots, L, L + 1 \text{ (readout)}",
    cite="clark2020electra",
    source="Clark et al. (2020), ELECTRA, appendix; counted as in BEiT's optim_factory.py and MAE's lr_decay.py",
    why="In fine-tuning, what lies near the input is more general and should move less.",
    unfit=lambda view, options: "" if blocks_of(view) else "it has no blocks in a list",
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
    view = fitting_view("layer_lr_decay", model, inputs, roles, n_heads)
    blocks = blocks_of(view)
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


@adjustment(
    formula=r"\eta_W = \eta \cdot \frac{d_\text{base}}{d} \text{ where a sum over the width follows, else } \eta; "
    r"\qquad \lambda_W = \lambda\, \frac{\eta}{\eta_W}",
    cite="yang2022tensor",
    source="Yang et al. (2022), table 3; microsoft/mup, mup/optim.py, MuAdam",
    why="Adam moves every entry alike, and aligned moves add up over the width: wide models need smaller rates.",
    requires=("1/d_head logits",),
)
def mup_groups(
    model: nn.Module,
    *,
    lr: float,
    base_width: int,
    weight_decay: float | None = None,
    inputs: Any = None,
    roles: RolePatterns | None = None,
    n_heads: int | None = None,
    force: bool = False,
) -> list[dict[str, Any]]:
    """Parameter groups for Adam whose rates fall with the width, so that a rate found on a narrow model holds.

    The other half of the parametrization is the scheme ``"mup"``; :func:`attntut.init.width.learning_rates` has the
    rule, and what it asks of the model.

    Args:
        model: any model with attention.
        lr: η, found at ``base_width``.
        base_width: d_base.
        weight_decay: λ, found there too. AdamW multiplies it by the rate: it grows as the rate falls, so that the
            product stays. By default the groups have none of their own, and the optimizer's is for all.
        inputs, roles, n_heads: as in :func:`attntut.init.view`.
        force: as in :func:`attntut.adjust.adjust`.

    Returns:
        Two groups with ``params``, ``lr`` and ``name``; every parameter is in one of them.

    Example:
        >>> from attntut import Transformer, TransformerConfig
        >>> model = Transformer(TransformerConfig(n_classes=2, d_input=4, d_model=128, scale=1 / 32))
        >>> groups = mup_groups(model, lr=0.01, base_width=32, weight_decay=0.1)
        >>> [(group["name"], group["lr"], group["weight_decay"]) for group in groups]
        [('summed over the width', 0.0025, 0.4), ('others', 0.01, 0.1)]
    """
    fitting_view("mup_groups", model, inputs, roles, n_heads, force=force)
    with plain(model):
        summed, others = learning_rates(model, lr, base_width=base_width, inputs=inputs, roles=roles, n_heads=n_heads)
    _complete(model, summed["params"], others["params"])
    if weight_decay is not None:
        check_number("weight_decay", weight_decay, low=0)
        for group in (summed, others):
            group["weight_decay"] = weight_decay * lr / group["lr"]
    return [summed | {"name": "summed over the width"}, others | {"name": "others"}]


def _queries_and_keys(view: ModelView) -> set[str]:
    return {entry.parameter for entry in view.by_role("query", "key")}


def _shared(view: ModelView, options: Any) -> str:
    names = _queries_and_keys(view)
    for entry in view.entries:
        if entry.parameter in names and entry.role not in ("query", "key"):
            return f"its queries and keys have no parameters of their own, {entry.parameter} holds the {entry.role} too"
    computed = names - {*stored(view.module)}
    return f"{min(computed)} is computed from several parameters" if computed else ""


@adjustment(
    formula=r"W_q, W_k \leftarrow (1 - \eta \lambda)\, W_q, W_k \text{ at each step}",
    cite="loshchilov2019decoupled",
    source="Loshchilov & Hutter (2019), algorithm 2, for queries and keys alone",
    why="Logits grow with the product of the two matrices: decay holds it back, and leaves all others alone.",
    treats=("logits too large (trained)", "entropy collapsed"),
    clashes={"QK-norm": "the norm divides the size of the weights out: decay only makes them turn faster"},
    unfit=_shared,
)
def qk_weight_decay(
    model: nn.Module,
    *,
    weight_decay: float = 0.1,
    others: float = 0.0,
    inputs: Any = None,
    roles: RolePatterns | None = None,
    n_heads: int | None = None,
    force: bool = False,
) -> list[dict[str, Any]]:
    """Parameter groups that let the matrices of queries and keys decay, and nothing else, or by another number.

    A group holds whole parameters: a model that packs queries and keys with values into one is refused.

    Args:
        model: any model with attention.
        weight_decay: λ, of the matrices of queries and keys, without their biases. It is for optimizers that do not add
            it to the gradient: AdamW, not Adam.
        others: of all other parameters.
        inputs, roles, n_heads: as in :func:`attntut.init.view`.
        force: as in :func:`attntut.adjust.adjust`.

    Returns:
        Two groups with ``params``, ``weight_decay`` and ``name``; every parameter is in one of them.

    Raises:
        ValueError: queries or keys share a parameter with something else, or none is known.

    Example:
        >>> import torch
        >>> from attntut import Transformer, TransformerConfig
        >>> model = Transformer(TransformerConfig(n_classes=2, d_input=4, n_layers=3))
        >>> groups = qk_weight_decay(model)
        >>> [(group["name"], len(group["params"]), group["weight_decay"]) for group in groups][0]
        ('queries and keys', 6, 0.1)
        >>> optimizer = torch.optim.AdamW(groups, lr=1e-3)
    """
    check_number("weight_decay", weight_decay, low=0), check_number("others", others, low=0)
    names = _queries_and_keys(fitting_view("qk_weight_decay", model, inputs, roles, n_heads, force=force))
    decayed: list[nn.Parameter] = [each for name, each in stored(model).items() if name in names]
    rest: list[nn.Parameter] = []
    _complete(model, decayed, rest)
    return [
        {"params": decayed, "weight_decay": weight_decay, "name": "queries and keys"},
        {"params": rest, "weight_decay": others, "name": "others"},
    ]


def _complete(model: nn.Module, some: list[nn.Parameter], rest: list[nn.Parameter]) -> None:
    """Put what is in neither list into the second."""
    have = {id(each) for each in (*some, *rest)}
    rest.extend(each for each in model.parameters() if id(each) not in have)
