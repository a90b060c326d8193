"""Where a projection stands: its block, its stack, its heads; and what the architecture around it is like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from attntut._checks import check_int
from attntut.anatomy.blocks import Block, block_of, find_blocks, prefixes, without_branches
from attntut.anatomy.listen import Anatomy, Part
from attntut.anatomy.parameters import ancestors
from attntut.anatomy.weight import BRANCH, FEED_FORWARD, PARTS, Weight

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


class Places:
    """Tells where each parameter of a model stands.

    Args:
        module: the model.
        parts: its projections.
        heard: what listening told.
        n_heads: number of heads, where neither listening nor an attention module tells.

    Attributes:
        unsure: what could not be found out, in words.
    """

    def __init__(self, module: nn.Module, parts: Sequence[Part], heard: Anatomy, n_heads: int | None) -> None:
        self.module, self.heard = module, heard
        self.unsure = [
            f"One query meets one key in {name or type(module).__name__}, so that it cannot be heard which of two "
            "matrices makes which: give inputs of two tokens or more."
            for name in sorted(heard.single)
        ]
        queries = {
            part.attention: part for part in reversed(parts) if part.role == "query" and part.attention is not None
        }
        names = [*dict.fromkeys([*heard.attention, *reversed(queries)])]
        latent = {part.attention: part for part in parts if part.role == "latent"}
        self.heads: dict[str, int] = {}
        self.width: dict[str, int] = {}
        self.d_head: dict[str, int] = {}
        for name in names:
            mine = [each for each in parts if each.attention == name]  # one that is given its logits has no query
            part = queries.get(name) or max(mine, key=lambda each: each.n_heads, default=None)
            if part is None or part.matrix is None:
                continue
            self.heads[name] = self._heads(name, part, n_heads)
            narrow = latent.get(name)
            from_latent = narrow is not None and narrow.matrix.shape[0] == part.matrix.shape[1]  # type: ignore[union-attr]
            self.width[name] = (narrow if from_latent else part).matrix.shape[1]  # type: ignore[union-attr]
            self.d_head[name] = part.matrix.shape[0] // self.heads[name]
        feeding = [each.parameter for each in parts if each.role in FEED_FORWARD]
        self.blocks = without_branches(find_blocks(module, names, heard.apart), names, feeding)
        fed = {block_of(self.blocks, each).name for each in feeding}
        both = fed & {block_of(self.blocks, each).name for each in names}
        stacks = {self.blocks[each].stack for each in both if each}  # some of whose blocks hold both branches
        self._whole = stacks if fed else {each.stack for each in self.blocks.values()}
        self.passes = {name: self._passes(name, parts) for name in names}
        self._times: dict[str, int] = {}  # of each block
        for part in parts:
            block = block_of(self.blocks, part.parameter).name
            self._times[block] = max(self._times.get(block, 1), heard.passes.get(part.parameter, 1))
        self.stack = {name: self._stack(name) for name in names}
        self.depth = {"encoder": 0, "decoder": 0}
        for name, stack in self.stack.items():
            self.depth[stack] = max(self.depth[stack], self._depth(name, parts))
        self.has_both = all(self.depth.values())

    def _passes(self, name: str, parts: Sequence[Part]) -> int:
        """How often the stream comes through an attention: blocks that share their weights count each time."""
        return max((self.heard.passes.get(part.parameter, 1) for part in parts if part.attention == name), default=1)

    def _depth(self, name: str, parts: Sequence[Part]) -> int:
        """How many blocks deep the stack of an attention is."""
        block = block_of(self.blocks, name)
        chain = [
            self.heard.layers[part.parameter][1]
            for part in parts
            if part.attention == name and part.parameter in self.heard.layers
        ]
        return chain[0] if chain and block.stack not in self._whole else self._length(block, self.passes[name])

    def _length(self, block: Block, passes: int) -> int:
        """How often the stream comes through the blocks of a stack, all together."""
        kind = type(self.module.get_submodule(block.name))
        alike = [
            name
            for name, other in self.blocks.items()
            if other.stack == block.stack and type(self.module.get_submodule(name)) is kind
        ]
        return sum(self._times.get(each, 1) for each in alike) if block.name else passes

    def weight(self, part: Part) -> Weight:
        """The description of one projection; what a branch has beside its six matrices is drawn like its first."""
        assert part.matrix is not None
        parameter, attention, (fan_out, fan_in) = part.parameter, part.attention, part.matrix.shape
        role = "feed_forward_in" if part.role in PARTS else part.role
        if attention is None or attention not in self.heads:  # the attention module next to it
            attention = max(self.heads, key=lambda name: shared(name, parameter))
        inside = role in BRANCH
        block = block_of(self.blocks, parameter)
        around = self.heard.around.get(parameter)
        layer, n_layers = block.layer, self._length(block, self.passes[attention])
        if inside and parameter in self.heard.layers:
            # Where lists of modules say otherwise than the way of the stream (branches or heads in a list, blocks of
            # several classes, no list at all), that way is right.
            ran = [
                times
                for name, times in self.heard.attention.items()
                if block.name in prefixes(name) and self._is_cross(name) == self._is_cross(attention)
            ]
            chain = self.heard.layers[parameter][1]
            if chain > n_layers * max(sum(ran), 1) or block.stack not in self._whole:
                layer, n_layers = self.heard.layers[parameter]
        stack = self.stack[attention]
        return Weight(
            role,
            fan_in=fan_in,
            fan_out=fan_out,
            d_model=self.width[attention],
            n_heads=around[1] if around else self.heads[attention],
            d_head=around[2] if around else self.d_head[attention],
            layer=layer if inside else 1,
            n_layers=n_layers if inside else self.depth[stack],
            stack=stack,
            n_encoder=self.depth["encoder"] if self.has_both else 0,
            n_decoder=self.depth["decoder"] if self.has_both else 0,
            is_cross=role in BRANCH[:4]
            and (self._is_cross(attention) if around is None or around[0] is None else around[0]),
            is_table=part.is_table,
        )

    def traits(self) -> dict[str, Any]:
        """What is known of the architecture, by the names of :class:`~attntut.TransformerConfig`."""
        found = [self.heard.traits.get(name, {}) | self._declared(name) for name in self.heads]
        return {
            field: found[0].get(field) if all(each.get(field) == found[0].get(field) for each in found) else None
            for field in {field: None for each in found for field in each}
        }

    def _declared(self, name: str) -> dict[str, Any]:
        """What the modules around an attention say of themselves."""
        attention = self.module.get_submodule(name)
        own = self.d_head[name] ** -0.5 if _is_a(attention, "MultiheadAttention") else None
        scale = next(
            (s for each in ("scale", "scaling") if isinstance(s := getattr(attention, each, None), float)), own
        )
        for _, module in ancestors(self.module, f"{name}."):
            traits = getattr(getattr(module, "config", None), "traits", None)
            if _is_a(module, "TransformerBlock") and isinstance(traits, Mapping):
                return {**traits, "scale": scale}
            norm = next((norm for block, norm in NORM_OF_BLOCK.items() if _is_a(module, block)), None)
            if isinstance(getattr(module, "norm_first", None), bool):
                norm = "pre" if module.norm_first else "post"
            if norm:
                return {"norm": norm, "residual": True, "residual_scale": 1.0, "skip_scale": 1.0, "scale": scale}
        return {"scale": self.heard.scale.get(name) if scale is None else scale}

    def _heads(self, name: str, query: Part, given: int | None) -> int:
        """How many heads: as heard, as given, or as the module or its configuration says."""
        if query.n_heads:
            return query.n_heads
        around = [
            source for _, each in ancestors(self.module, f"{name}.") for source in (each, getattr(each, "config", None))
        ]
        found = (_entry(source, key) for source in around for key in HEADS)
        heads = given if given is not None else next((value for value in found if isinstance(value, int)), None)
        width = query.matrix.shape[0]  # type: ignore[union-attr]
        if heads is None:
            self.unsure.append(
                f"The number of heads of {name or type(self.module).__name__} is not known: it has none of the "
                f"attributes {', '.join(HEADS)}. Give it as n_heads=…; all queries together are {width} wide."
            )
            return 1
        if width % check_int("n_heads", heads):
            self.unsure.append(
                f"n_heads must divide the width of the queries: got n_heads={heads}, "
                f"and {query.parameter} writes {width}."
            )
            return 1
        return heads

    def _stack(self, name: str) -> str:
        attention = self.module.get_submodule(name)
        if self._is_cross(name) or any(getattr(attention, each, False) is True for each in ("is_causal", "is_decoder")):
            return "decoder"
        for each in (*prefixes(name), ""):
            label = f"{type(self.module.get_submodule(each)).__name__} {each.rpartition('.')[2]}".lower()
            if ("decoder" in label) != ("encoder" in label):
                return "decoder" if "decoder" in label else "encoder"
        return "encoder"

    def _is_cross(self, name: str) -> bool:
        if name in self.heard.cross:
            return self.heard.cross[name]
        attention = self.module.get_submodule(name)
        parent_name, _, own = name.rpartition(".")
        in_torch = own == "multihead_attn" and _is_a(self.module.get_submodule(parent_name), "TransformerDecoderLayer")
        labels = f"{type(attention).__name__} {own} {parent_name.rpartition('.')[2]}".lower()
        flag = getattr(attention, "is_cross_attention", False) is True
        return flag or in_torch or any(word in labels for word in CROSS)


def _entry(source: Any, key: str) -> Any:
    try:
        return getattr(source, key, None)
    except Exception:  # a configuration whose entry varies from layer to layer
        return None


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
