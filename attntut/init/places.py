"""Where a projection stands: its block, its stack, its heads; and what the architecture around it is like."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from attntut._checks import check_int
from attntut.init.weight import BRANCH, Weight

HEADS = ("n_heads", "num_heads", "num_attention_heads", "n_head")
CROSS = ("cross", "encdec", "encoder_attn")
# Where the norm stands in blocks that do not say so themselves.
NORM_OF_BLOCK = {
    "BertLayer": "post",
    "GPT2Block": "pre",
    "T5Block": "pre",
    "LlamaDecoderLayer": "pre",
    "ViTLayer": "pre",
}


class _Query(Protocol):
    parameter: str
    view: Tensor


def ancestors(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules around a parameter or module from the inside out, each with the name as seen from there.

    >>> model = nn.Sequential(nn.Linear(2, 2))
    >>> [(name, type(each).__name__) for name, each in ancestors(model, "0.weight")]
    [('weight', 'Linear'), ('0.weight', 'Sequential')]
    """
    path = name.split(".")
    for depth in range(len(path) - 1, -1, -1):
        yield ".".join(path[depth:]), module.get_submodule(".".join(path[:depth]))


@dataclasses.dataclass(frozen=True)
class _Block:
    name: str
    layer: int
    n_layers: int


class Places:
    """Tells where each parameter of a model stands.

    Args:
        module: the model.
        queries: the query projection of each attention module, by the module's name.
        n_heads: number of heads, where an attention module does not tell.
    """

    def __init__(self, module: nn.Module, queries: Mapping[str, _Query], n_heads: int | None) -> None:
        self.module = module
        self.heads = {name: self._heads(name, query, n_heads) for name, query in queries.items()}
        self.width = {name: query.view.shape[1] for name, query in queries.items()}
        self.d_head = {name: query.view.shape[0] // self.heads[name] for name, query in queries.items()}
        self.blocks = _blocks(module, list(queries))
        self.stack = {name: self._stack(name) for name in queries}
        depth: dict[str, int] = {"encoder": 0, "decoder": 0}
        for name, stack in self.stack.items():
            depth[stack] = max(depth[stack], self._block(name).n_layers)
        self.depth = depth
        self.has_both = all(depth.values())

    def weight(self, parameter: str, role: str, matrix: Tensor, attention: str, is_table: bool) -> Weight:
        """The description of one projection."""
        near = max(self.heads, key=lambda name: shared(name, parameter))  # the attention module next to it
        attention = attention if attention in self.heads else near
        inside = role in BRANCH
        block = self._block(parameter)
        stack = self.stack[attention] if inside or not self.has_both else self._outer_stack(parameter)
        return Weight(
            role,
            fan_in=matrix.shape[1],
            fan_out=matrix.shape[0],
            d_model=self.width[attention],
            n_heads=self.heads[attention],
            d_head=self.d_head[attention],
            layer=block.layer if inside else 1,
            n_layers=block.n_layers if inside else self.depth[stack],
            stack=stack,
            n_encoder=self.depth["encoder"] if self.has_both else 0,
            n_decoder=self.depth["decoder"] if self.has_both else 0,
            is_cross=role in BRANCH[:4] and self._is_cross(attention),
            is_table=is_table,
        )

    def traits(self) -> dict[str, Any]:
        """What is known of the architecture, by the names of :class:`~attntut.TransformerConfig`."""
        found = [self._traits(name) for name in self.heads]
        return {
            field: found[0].get(field) if all(each.get(field) == found[0].get(field) for each in found) else None
            for field in {field: None for each in found for field in each}
        }

    def _traits(self, name: str) -> dict[str, Any]:
        attention = self.module.get_submodule(name)
        own = self.d_head[name] ** -0.5 if _is_a(attention, "MultiheadAttention") else None
        scale = next(
            (s for each in ("scale", "scaling") if isinstance(s := getattr(attention, each, None), float)), own
        )
        for _, module in ancestors(self.module, f"{name}."):
            config = getattr(module, "config", None)
            if _is_a(module, "TransformerBlock") and dataclasses.is_dataclass(config):
                return dataclasses.asdict(config) | {"scale": scale}  # type: ignore[arg-type]
            norm = next((norm for block, norm in NORM_OF_BLOCK.items() if _is_a(module, block)), None)
            if isinstance(getattr(module, "norm_first", None), bool):
                norm = "pre" if module.norm_first else "post"
            if norm:
                return {"norm": norm, "residual": True, "residual_scale": 1.0, "skip_scale": 1.0, "scale": scale}
        return {"scale": scale}

    def _heads(self, name: str, query: _Query, given: int | None) -> int:
        around = [
            source for _, each in ancestors(self.module, f"{name}.") for source in (each, getattr(each, "config", None))
        ]
        found = (getattr(source, key, None) for source in around for key in HEADS)
        heads = given if given is not None else next((value for value in found if isinstance(value, int)), None)
        width = query.view.shape[0]
        if heads is None:
            raise ValueError(
                f"The number of heads of {name or type(self.module).__name__} is not known: it has none of the "
                f"attributes {', '.join(HEADS)}. Give it as n_heads=…; all queries together are {width} wide."
            )
        if width % check_int("n_heads", heads):
            raise ValueError(
                f"n_heads must divide the width of the queries: got n_heads={heads}, "
                f"and {query.parameter} writes {width}."
            )
        return heads

    def _block(self, name: str) -> _Block:
        path = name.split(".")
        prefixes = (".".join(path[:depth]) for depth in range(len(path), 0, -1))
        return next((self.blocks[prefix] for prefix in prefixes if prefix in self.blocks), _Block("", 1, 1))

    def _stack(self, name: str) -> str:
        attention = self.module.get_submodule(name)
        if self._is_cross(name) or any(getattr(attention, each, False) is True for each in ("is_causal", "is_decoder")):
            return "decoder"
        path = name.split(".")
        for depth in range(len(path), -1, -1):
            module = self.module.get_submodule(".".join(path[:depth]))
            label = f"{type(module).__name__} {path[depth - 1] if depth else ''}".lower()
            if ("decoder" in label) != ("encoder" in label):
                return "decoder" if "decoder" in label else "encoder"
        return "encoder"

    def _outer_stack(self, parameter: str) -> str:
        return "decoder" if "decoder" in parameter.split(".") else "encoder"

    def _is_cross(self, name: str) -> bool:
        attention = self.module.get_submodule(name)
        parent_name, _, own = name.rpartition(".")
        in_torch = own == "multihead_attn" and _is_a(self.module.get_submodule(parent_name), "TransformerDecoderLayer")
        labels = f"{type(attention).__name__} {own} {parent_name.rpartition('.')[2]}".lower()
        flag = getattr(attention, "is_cross_attention", False) is True
        return flag or in_torch or any(word in labels for word in CROSS)


def _blocks(module: nn.Module, attention: list[str]) -> dict[str, _Block]:
    """The blocks of every stack: the elements of one class, at least two in a list, that contain attention."""
    blocks: dict[str, _Block] = {}
    for name, container in module.named_modules():
        if isinstance(container, nn.ModuleList | nn.Sequential | nn.ModuleDict):
            of_class: dict[type, list[str]] = defaultdict(list)
            for key, child in container.named_children():
                path = f"{name}.{key}" if name else key
                if any(f"{each}.".startswith(f"{path}.") for each in attention):
                    of_class[type(child)].append(path)
            for members in of_class.values():
                if len(members) > 1:
                    blocks |= {path: _Block(path, i, len(members)) for i, path in enumerate(members, start=1)}
    return blocks


def _is_a(module: nn.Module, kind: str) -> bool:
    return any(each.__name__ == kind for each in type(module).__mro__)


def shared(a: str, b: str) -> int:
    """How many components two dotted names begin with together."""
    count = 0
    for left, right in zip(a.split("."), b.split("."), strict=False):
        if left != right:
            break
        count += 1
    return count
