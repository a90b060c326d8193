"""Whether a model was drawn by Xavier's law: names and the configuration, not attntut, tell which matrix is what.

Of attention, and of experts that are stacked into one tensor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads")
KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "n_kv_heads", "multi_query_group_num")
KINDS = {
    "query": r"q|query|[qQ]_lin|q_proj|query_proj|wq|Wq|to_q|linear_q|q_net|q_head|fc_q",
    "own": r"k|v|o|key|value|out|[kv]_lin|out_lin|[kvo]_proj|out_proj|(key|value)_proj|[wW][kvo]|to_[kv]"
    r"|linear_([kv]|out)|fc_[kv]|[kv]_head|o_net|c_proj|post_proj|dense|proj",
    "key and value": r"kv|kv_proj|key_value|to_kv",
    "packed": r"qkv|query_key_value|c_attn|[wW]qkv|qkv_proj|in_proj_weight|to_qkv|in_proj|qkv_net|W_pack",
}
EXPERTS = r"(gate_up|gate|up|down)_proj(_bias)?"


def verdicts(model: nn.Module, layers: Iterable[str], before: dict[str, Tensor]) -> dict[str, bool]:
    """Whether each matrix that its name identifies was drawn, with √(2 / (fan_in + fan_out)) of its own fans.

    Attention matrices, and stacks of experts, whose biases are to be 0.

    Args:
        model: after the draw.
        layers: the modules in which attention was heard.
        before: the parameters before the draw.

    >>> layer = nn.MultiheadAttention(64, 4)
    >>> _ = nn.init.xavier_normal_(layer.in_proj_weight), nn.init.xavier_normal_(layer.out_proj.weight)
    >>> verdicts(layer, [""], {"in_proj_weight": torch.empty(0), "out_proj.weight": torch.empty(0)})
    {'in_proj_weight': False, 'out_proj.weight': True}
    """
    found = {}
    places = tuple(f"{layer.removesuffix('.self')}." if layer else "" for layer in layers)
    for name, parameter in model.named_parameters():
        own = name.removesuffix(".weight").rpartition(".")[2]
        down = getattr(model.get_submodule(name.rpartition(".")[0]), "down_proj", None)
        if re.fullmatch(EXPERTS, own) and isinstance(down, Tensor) and down.ndim == 3:
            found[name] = _right_experts(parameter.detach(), before[name], sum(down.shape[1:]))
            continue
        kind = next((kind for kind, names in KINDS.items() if re.fullmatch(names, own)), None)
        is_inside = name.startswith(places) or re.search(r"(?i)att(entio)?n", name)
        is_vector = parameter.numel() == max(parameter.shape, default=1)
        if kind is None or is_vector or parameter[0, 0].numel() > 1 or not is_inside:
            continue
        owner = model.get_submodule(name.rpartition(".")[0])
        weight = parameter.detach().flatten(1)
        weight = weight.mT if type(owner).__name__ == "Conv1D" else weight
        beside = name.rpartition(f"{own}")[0]
        reads = {p.shape[1] for n, p in model.named_parameters() if n.startswith(beside) and p.ndim == 2 and n != name}
        is_gated = kind == "query" and weight.shape[0] // 2 in reads and weight.shape[0] not in reads  # of the outputs
        right = _right(weight, kind, *_sizes(model, name), is_gated=is_gated)
        if right is not None:
            found[name] = right and not torch.equal(parameter, before[name])
    return found


def _right_experts(stack: Tensor, before: Tensor, fans: int) -> bool:
    """Whether each expert has the fans of its last matrix, also where its first two are packed; or biases are 0."""
    if stack.ndim == 2:
        return not stack.any().item()
    return all(_has_std(each, fans) for each in stack) and not torch.equal(stack, before)


def _right(weight: Tensor, kind: str, heads: int, key_heads: int, d_head: int, *, is_gated: bool) -> bool | None:
    rows, columns = weight.shape
    if is_gated and rows == 2 * heads * d_head:  # a query, and a gate as wide
        return _has_std(weight, columns + rows // 2)
    if kind in ("query", "own"):
        return _has_std(weight, columns + rows)
    if kind == "key and value":
        return _has_std(weight, columns + rows // 2)
    if not heads or rows % (heads + 2 * key_heads) or rows == heads * d_head:
        return None  # something else, or unlike the configuration
    d_head = rows // (heads + 2 * key_heads)
    blocks = sorted(weight.unflatten(0, (-1, d_head)), key=lambda block: block.std().item())  # in whatever order packed
    fans = [columns + heads * d_head] * heads + [columns + key_heads * d_head] * 2 * key_heads  # wide ones first
    return all(map(_has_std, blocks, fans))


def _has_std(weight: Tensor, fans: int) -> bool:
    """√(2/fans) within five standard errors."""
    return abs(weight.std().item() / math.sqrt(2 / fans) - 1) < 5 / math.sqrt(2 * weight.numel())


def _sizes(model: nn.Module, name: str) -> tuple[int, int, int]:
    """Heads of the queries and of the keys, and their width, by the configuration nearest to a parameter; or zeros."""
    path = name.split(".")
    for end in range(len(path) - 1, -1, -1):
        module: Any = model.get_submodule(".".join(path[:end]))
        source = module if isinstance(module, nn.MultiheadAttention) else getattr(module, "config", None)
        heads = _first(source, HEADS)
        if heads:
            key_heads = 1 if getattr(source, "multi_query", False) else _first(source, KEY_HEADS) or heads
            width = _first(source, ("hidden_size", "d_model", "n_embd", "embed_dim"))
            return heads, key_heads, _first(source, ("head_dim",)) or width // heads
    return 0, 0, 0


def _first(source: Any, names: Iterable[str]) -> int:
    return next((value for name in names if isinstance(value := _entry(source, name), int)), 0)


def _entry(source: Any, name: str) -> Any:
    try:
        return getattr(source, name, None)
    except Exception:  # one that varies from layer to layer
        return None
