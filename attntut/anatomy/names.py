"""Which parameter plays which role: a table of names, and the patterns that a caller adds to it."""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import nn

from attntut._checks import check_choice, check_int
from attntut.anatomy.weight import PARTS, ROLES

KEEP = "keep"
PACKED = ("query", "key", "value")


@dataclass(frozen=True)
class Layout:
    """How several roles, or several matrices, share a parameter: for ``roles=``.

    Args:
        pattern: of parameter names, as in :mod:`fnmatch`.
        sizes: outputs of each role, in order; equal ones by default.
        groups: how many times the roles take turns: ``n_heads`` for a matrix that is packed head by head, the number
            of key heads for grouped queries; 1 where each role is in one piece.
        transposed: whether the parameter is ``(fan_in, fan_out)``; of a stack, its last two dimensions.
        stacked: ``"heads"`` if the first dimension numbers the heads of one projection, ``"experts"`` if it numbers
            projections of their own.

    Example:
        >>> attention = nn.Linear(8, 3 * 8)  # GPT-NeoX: query, key and value of head 0, then those of head 1
        >>> Layout("*query_key_value.weight", groups=2)
        Layout(pattern='*query_key_value.weight', sizes=None, groups=2, transposed=False, stacked=None)
    """

    pattern: str
    sizes: tuple[int, ...] | None = None
    groups: int = 1
    transposed: bool = False
    stacked: Literal["heads", "experts"] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str):
            raise TypeError(f"pattern must be a pattern of parameter names: got {self.pattern!r}.")
        check_int("groups", self.groups)
        for size in self.sizes or ():
            check_int("sizes", size)
        if self.stacked is not None:
            check_choice("stacked", self.stacked, ("heads", "experts"))


RolePatterns: TypeAlias = Mapping[str | tuple[str, ...], str | Layout | Iterable[str | Layout]]

# ``Class.path.to.parameter``: the class (or a base class) of any module around the parameter, then the parameter's name
# as seen from there. The first line that matches decides. Roles joined by a space are packed into one tensor.
TABLE: tuple[tuple[str, str], ...] = (
    # attntut
    ("query key value", "MultiHeadAttention.in_proj.weight"),
    *((role, f"MultiHeadAttention.{role}.weight") for role in ("query", "key", "value", "output")),
    ("gate", "Gate.gate.weight"),
    *(("feed_forward_in", f"GatedFeedForward.{name}.weight") for name in ("gate", "up")),
    ("feed_forward_out", "GatedFeedForward.down.weight"),
    ("feed_forward_in", "TransformerBlock.feed_forward.0.weight"),
    ("feed_forward_out", "TransformerBlock.feed_forward.2.weight"),
    ("embedding", "Transformer.embedding.weight"),
    ("position", "Transformer.positions"),
    ("readout", "Transformer.readout.weight"),
    # torch.nn
    ("query key value", "MultiheadAttention.in_proj_weight"),
    *((role, f"MultiheadAttention.{role[0]}_proj_weight") for role in PACKED),
    ("feed_forward_in", "Transformer??coderLayer.linear1.weight"),
    ("feed_forward_out", "Transformer??coderLayer.linear2.weight"),
    # GPT-2
    ("query key value", "GPT2Attention.c_attn.weight"),
    ("query", "GPT2Attention.q_attn.weight"),
    ("output", "GPT2Attention.c_proj.weight"),
    ("feed_forward_in", "GPT2MLP.c_fc.weight"),
    ("feed_forward_out", "GPT2MLP.c_proj.weight"),
    ("embedding", "GPT2Model.wte.weight"),
    ("position", "GPT2Model.wpe.weight"),
    # T5
    *((role, f"T5Attention.{role[0]}.weight") for role in ("query", "key", "value", "output")),
    ("position", "*.relative_attention_bias.weight"),
    ("feed_forward_in", "T5Dense*.wi*.weight"),
    ("feed_forward_out", "T5Dense*.wo.weight"),
    ("embedding", "T5*.shared.weight"),
    # Llama, BART, ViT and those built like them
    *((role, f"*Attention.{role[0]}_proj.weight") for role in ("query", "key", "value", "output")),
    ("output", "*Attention.out_proj.weight"),
    *(("feed_forward_in", f"*MLP.{name}.weight") for name in ("gate_proj", "up_proj", "fc1")),
    *(("feed_forward_out", f"*MLP.{name}.weight") for name in ("down_proj", "fc2")),
    ("embedding", "*.embed_tokens.weight"),
    # BERT and those built like it
    *((role, f"*{kind}Attention.{role}.weight") for role in PACKED for kind in ("Self", "Cross")),
    *((role, f"*Attention.{role}_global.weight") for role in PACKED),  # Longformer's, for some tokens
    *((role, f"*Attention.???_{role}.weight") for role in PACKED),  # LUKE's, between words and entities
    *((role, f"*Attention.layout_{role}.weight") for role in PACKED),
    ("position", "*Attention*.attention_biases"),
    ("position", "*.rel_pos*bias.weight"),  # LayoutLM's, read where no graph is recorded
    ("output", "*SelfOutput.dense.weight"),
    ("feed_forward_in", "*Intermediate.dense.weight"),
    ("feed_forward_out", "*Output.dense.weight"),
    ("embedding", "*Embeddings.word_embeddings.weight"),
    ("embedding", "*Embeddings.token_type_embeddings.weight"),
    ("embedding", "*PatchEmbeddings.projection.weight"),
    ("embedding", "*Embeddings.cls_token"),
    ("embedding", "*Embeddings.mask_token"),
    ("position", "*Embeddings.position_embeddings*"),
    # after the blocks
    ("readout", "*Pooler.dense.weight"),
    ("readout", "*PredictionHeadTransform.dense.weight"),
    ("readout", "*LMPredictionHead.decoder.weight"),
    *(("readout", f"*.{name}.weight") for name in ("lm_head", "classifier", "score", "qa_outputs", "seq_relationship")),
)


def known_roles(modules: Iterable[tuple[str, nn.Module]]) -> tuple[str, ...]:
    """The roles of a parameter by :data:`TABLE`; empty if it is not in it.

    Args:
        modules: from the inside out, the modules around it, each with the parameter's name as seen from there.

    Example:
        >>> known_roles([("in_proj_weight", nn.MultiheadAttention(8, 2))])
        ('query', 'key', 'value')
    """
    keys = (f"{kind.__name__}.{name}" for name, module in modules for kind in _lineage(type(module)))
    lines = [line for key in keys if (line := _line(key)) is not None]
    return tuple(TABLE[min(lines)][0].split()) if lines else ()


class CallerPatterns:
    """The caller's ``roles=``, checked, and which of its patterns have matched.

    Raises:
        TypeError, ValueError: an unknown role, or a pattern that is no text.
    """

    def __init__(self, roles: RolePatterns | None) -> None:
        self.layouts: list[tuple[tuple[str, ...], Layout]] = []
        if roles is not None and not isinstance(roles, Mapping):
            raise TypeError(f"roles must map roles to patterns of parameter names: got {type(roles).__name__}.")
        for key, patterns in (roles or {}).items():
            each = key if isinstance(key, tuple) else (key,)
            for role in each:
                check_choice("a role in roles", role, (*ROLES, *PARTS, KEEP))
            several = (
                (patterns,) if isinstance(patterns, str | Layout) or not isinstance(patterns, Iterable) else patterns
            )
            for pattern in several:
                if not isinstance(pattern, str | Layout):
                    raise TypeError(f"roles[{key!r}] must hold patterns of parameter names: got {pattern!r}.")
                layout = pattern if isinstance(pattern, Layout) else Layout(pattern)
                if layout.sizes is not None and len(layout.sizes) != len(each):
                    raise ValueError(f"sizes must hold one number per role of {each}: got {layout.sizes}.")
                self.layouts.append((each, layout))
        self._unused = {layout.pattern for _, layout in self.layouts}

    def match(self, names: Iterable[str]) -> tuple[tuple[str, ...], Layout] | None:
        """The roles of the parameter that has these names, and how they share it; None if no pattern matches.

        Raises:
            ValueError: patterns of two roles match it.
        """
        hits = [
            (roles, layout, name)
            for name in names
            for roles, layout in self.layouts
            if fnmatch.fnmatchcase(name, layout.pattern)
        ]
        self._unused -= {layout.pattern for _, layout, _ in hits}
        if len({roles for roles, _, _ in hits}) > 1:
            claims = " and ".join(f"{' + '.join(roles)} ({layout.pattern!r})" for roles, layout, _ in hits)
            raise ValueError(f"The parameter {hits[0][2]} must have one role: roles gives it {claims}. Narrow one.")
        return hits[0][:2] if hits else None

    def check_used(self, names: Iterable[str]) -> None:
        """Refuse a pattern that matched nothing."""
        if self._unused:
            several = [*names]
            shown = ", ".join(several[:8]) + (f" and {len(several) - 8} more" if len(several) > 8 else "")
            raise ValueError(
                "Every pattern in roles must match a parameter, and these match none: "
                f"{', '.join(map(repr, sorted(self._unused)))}. The matrices of this module: {shown}."
            )


@functools.cache
def _table() -> re.Pattern[str]:
    return re.compile("|".join(f"(?P<r{i}>{fnmatch.translate(pattern)})" for i, (_, pattern) in enumerate(TABLE)))


@functools.lru_cache(maxsize=2**14)  # models of one shape ask for the same names
def _line(key: str) -> int | None:
    match = _table().fullmatch(key)
    return int(match.lastgroup[1:]) if match and match.lastgroup else None


def _lineage(kind: type) -> tuple[type, ...]:
    return kind.__mro__[: kind.__mro__.index(nn.Module)]
