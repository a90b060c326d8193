"""A model seen by role: every projection as one ``(fan_out, fan_in)`` matrix, however the model stores it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from attntut.init.parameters import Drawers, listing
from attntut.init.patterns import CallerPatterns, RolePatterns
from attntut.init.places import Places, shared
from attntut.init.weight import ATTENTION, Weight


@dataclass(frozen=True, eq=False)
class Entry:
    """One projection of a model.

    Attributes:
        weight: its role and place.
        view: ``(fan_out, fan_in)``, sharing memory with the parameter: fill it, and the model is filled.
        parameter: the parameter's dotted name.
        bias: the part of a bias that belongs to it, ``(fan_out,)``, sharing memory; None if there is none.
        attention: dotted name of the attention module that it belongs to; empty for other roles.
        padding: the row of an embedding that stands for padding and stays 0.
    """

    weight: Weight
    view: Tensor = field(repr=False)
    parameter: str
    bias: Tensor | None = field(default=None, repr=False)
    attention: str = ""
    padding: int | None = None


@dataclass(frozen=True)
class Attention:
    """The four projections of one attention module; None for one that it does not have."""

    name: str
    module: nn.Module = field(repr=False)
    query: Entry
    key: Entry | None = None
    value: Entry | None = None
    output: Entry | None = None


@dataclass(frozen=True)
class ModelView:
    """Everything in a model that an initialization touches, or leaves on purpose.

    Attributes:
        module: the model.
        entries: its projections, in the order of its parameters.
        attention: the projections of each attention module together, in the same order.
        norms: scale and shift of each norm (either may be None), by the norm's name.
        biases: biases that belong to no projection, by name.
        gains: learnable factors (ReZero's, LayerScale's …), by name: left as they are, unless a scheme sets them.
        kept: parameters that the caller wants left alone, by name.
        traits: what is known of the architecture, by the names of :class:`~attntut.TransformerConfig`.
    """

    module: nn.Module = field(repr=False)
    entries: tuple[Entry, ...]
    attention: tuple[Attention, ...]
    norms: Mapping[str, tuple[Tensor | None, Tensor | None]] = field(repr=False)
    biases: Mapping[str, Tensor] = field(repr=False)
    gains: Mapping[str, nn.Parameter] = field(repr=False)
    kept: tuple[str, ...]
    traits: Mapping[str, Any]

    def by_role(self, *roles: str) -> tuple[Entry, ...]:
        """The projections with one of these roles."""
        return tuple(entry for entry in self.entries if entry.weight.role in roles)


def view(module: nn.Module, *, roles: RolePatterns | None = None, n_heads: int | None = None) -> ModelView:
    """Find out what each parameter of a model is for.

    Args:
        module: one of ``attntut``'s, of :mod:`torch.nn`'s attention and transformer modules, a Hugging Face model of
            the kinds of BERT, GPT-2, T5, Llama and ViT, or anything that contains such modules.
        roles: for names that are not known: role to pattern or patterns of parameter names, as in :mod:`fnmatch`. A
            tuple of roles means that they are packed into one matrix in that order. ``"keep"`` leaves parameters alone.
        n_heads: number of heads, where the attention module does not tell.

    Returns:
        The view; nothing is changed.

    Raises:
        TypeError: ``module`` is no module.
        ValueError: there is no attention in it; a parameter of two or more dimensions has no known role; a pattern
            matches nothing; or the number of heads is not known.

    Example:
        >>> seen = view(nn.MultiheadAttention(8, num_heads=2))
        >>> [(entry.weight.role, entry.weight.shape, entry.parameter) for entry in seen.entries]
        [('query', (8, 8), 'in_proj_weight'), ('key', (8, 8), 'in_proj_weight'), ('value', (8, 8), 'in_proj_weight'),
         ('output', (8, 8), 'out_proj.weight')]
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module: got {type(module).__name__}.")
    drawers = Drawers(module, CallerPatterns(roles))
    queries = {part.attention: part for part in drawers.parts if part.role == "query"}
    if not queries:
        raise ValueError(
            f"module must contain attention, and none is known in {type(module).__name__}. If it has some, give the "
            f'names, roles={{"query": "*.q_lin.weight", …}}. Its matrices: {listing(drawers.matrices)}.'
        )
    if drawers.unknown:
        raise ValueError(
            f"Every matrix must have a role, and none is known for {listing(drawers.unknown.values())}. Give it by a "
            f'pattern, roles={{"readout": "{next(iter(drawers.unknown))}"}}, or leave it alone, roles={{"keep": …}}.'
        )
    places = Places(module, queries, n_heads)
    entries = tuple(
        Entry(
            places.weight(part.parameter, part.role, part.view, part.attention, part.is_table),
            part.view,
            part.parameter,
            part.bias,
            part.attention,
            part.padding,
        )
        for part in drawers.parts
    )
    return ModelView(
        module,
        entries,
        tuple(_gather(module, entries)),
        drawers.norms,
        drawers.biases,
        drawers.gains,
        tuple(drawers.kept),
        places.traits(),
    )


def _gather(module: nn.Module, entries: tuple[Entry, ...]) -> Iterator[Attention]:
    found = {entry.attention: {"query": entry} for entry in entries if entry.weight.role == "query"}
    for entry in entries:
        role = entry.weight.role
        if role in ATTENTION and role != "query":
            free = [name for name, each in found.items() if role not in each]
            if entry.attention in free:
                found[entry.attention][role] = entry
            elif free:  # BERT keeps the output beside the module: take the nearest that has none
                found[max(free, key=lambda name: shared(name, entry.parameter))][role] = entry
    for name, each in found.items():
        yield Attention(name, module.get_submodule(name), **each)
