"""A model seen by role: every projection as one ``(fan_out, fan_in)`` matrix, however the model stores it."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from attntut._restore import held_plainly, no_fast_path, untouched
from attntut.anatomy.layout import Matrix
from attntut.anatomy.listen import Anatomy, Ears, Part
from attntut.anatomy.names import CallerPatterns, RolePatterns
from attntut.anatomy.parameters import Drawers, foreign, is_wave, listing
from attntut.anatomy.places import Places, shared
from attntut.anatomy.weight import ATTENTION, Weight


@dataclass(frozen=True, eq=False)
class Entry:
    """One projection of a model.

    Attributes:
        weight: its role and place, as a scheme sees it.
        matrix: ``(fan_out, fan_in)`` in the memory of the parameter.
        parameter: the parameter's dotted name.
        bias: the part of a bias that belongs to it, sharing memory; None if there is none.
        attention: dotted name of the attention module that it belongs to; None for other roles.
        padding: the row of an embedding that stands for padding and stays 0.
        role: what it does: its role, or one of :data:`~attntut.anatomy.weight.PARTS`; ``weight.role`` is then the role
            by whose law it is drawn.
        rows: which rows of the parameter it is, in words.
    """

    weight: Weight
    matrix: Matrix = field(repr=False)
    parameter: str
    bias: Tensor | None = field(default=None, repr=False)
    attention: str | None = None
    padding: int | None = None
    role: str = ""
    rows: str = "all"

    @property
    def view(self) -> Tensor:
        """The matrix: it shares the parameter's memory where strides allow that (``matrix.is_matrix``), else a copy."""
        return self.matrix.read()


@dataclass(frozen=True)
class Attention:
    """The four projections of one attention module; None for one that it does not have, or that is not known."""

    name: str
    module: nn.Module = field(repr=False)
    query: Entry | None = None
    key: Entry | None = None
    value: Entry | None = None
    output: Entry | None = None


@dataclass(frozen=True)
class ModelView:
    """Everything in a model that an initialization touches, or leaves on purpose.

    Attributes:
        module: the model.
        entries: its projections, in the order of its parameters.
        attention: the projections of each attention module together, in the order of the forward pass.
        norms: scale and shift of each norm (either may be None), by the norm's name.
        biases: biases that belong to no projection, by name.
        gains: learnable factors (ReZero's, LayerScale's …), by name: left as they are, unless a scheme sets them.
        kept: parameters that the caller wants left alone, by name.
        traits: what is known of the architecture, by the names of :class:`~attntut.TransformerConfig`.
        foreign: parameters that are no plain tensors (sharded, quantized), with their classes.
        left: parameters that no scheme speaks of and that stay as they are, each with a description and why.
        zero_centred: weights of norms that are 0 where they do nothing, because 1 is added to them.
        unknown: parameters of two or more dimensions without a role or a known place, each with a description.
        unsure: what else could not be found out, in words.
    """

    module: nn.Module = field(repr=False)
    entries: tuple[Entry, ...]
    attention: tuple[Attention, ...]
    norms: Mapping[str, tuple[Tensor | None, Tensor | None]] = field(repr=False)
    biases: Mapping[str, Tensor] = field(repr=False)
    gains: Mapping[str, nn.Parameter] = field(repr=False)
    kept: tuple[str, ...]
    traits: Mapping[str, Any]
    foreign: Mapping[str, str] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)
    unsure: tuple[str, ...] = ()
    zero_centred: frozenset[str] = frozenset()

    def is_computed(self, entry: Entry) -> bool:
        """Whether an entry is a table that was computed, not drawn: it is frozen, or holds sines and cosines."""
        is_frozen = not self.module.get_parameter(entry.parameter).requires_grad
        return entry.weight.is_table and (is_frozen or is_wave(entry.view.mT))

    def gains_named(self, *patterns: str) -> Iterator[nn.Parameter]:
        """The learnable factors whose own name is like one of these, as in :mod:`fnmatch`."""
        for name, parameter in self.gains.items():
            if any(fnmatch.fnmatchcase(name.rpartition(".")[2], pattern) for pattern in patterns):
                yield parameter

    def by_role(self, *roles: str) -> tuple[Entry, ...]:
        """The projections with one of these roles."""
        return tuple(entry for entry in self.entries if entry.role in roles)

    def by_parameter(self, *roles: str) -> dict[str, list[Entry]]:
        """The projections with one of these roles, or all, by the parameter that they lie in."""
        found: dict[str, list[Entry]] = {}
        for entry in self.by_role(*roles) if roles else self.entries:
            found.setdefault(entry.parameter, []).append(entry)
        return found


def view(
    module: nn.Module, *, inputs: Any = None, roles: RolePatterns | None = None, n_heads: int | None = None
) -> ModelView:
    """Find out what each parameter of a model is for, and refuse a model in which that is not clear.

    Args:
        module: any model that contains attention.
        inputs: what it is called with (a tuple: its arguments; a mapping: its keyword arguments), or a function that
            calls it, and so reaches more than one call does: ``lambda model: (model(ids), model.tower(pixels))``. It is
            then run once, and roles are found by listening. A Hugging Face model brings inputs of its own. Without
            inputs, roles are found by name, in ``attntut``'s and torch's modules and the families of BERT, GPT-2, T5,
            Llama and ViT.
        roles: for what is not found: role to pattern or patterns of parameter names, as in :mod:`fnmatch`. A tuple of
            roles means that they are packed into one matrix in that order; a :class:`~attntut.anatomy.Layout` says how.
            ``"keep"`` leaves parameters alone.
        n_heads: number of heads, where neither listening nor the attention module tells.

    Returns:
        The view; nothing is changed.

    Raises:
        TypeError: ``module`` is no module.
        ValueError: there is no attention in it; a parameter of two or more dimensions has no known role, or no known
            place in memory; a pattern matches nothing; or the number of heads is not known.

    Example:
        >>> seen = view(nn.MultiheadAttention(8, num_heads=2))
        >>> [(entry.weight.role, entry.weight.shape, entry.parameter) for entry in seen.entries]
        [('query', (8, 8), 'in_proj_weight'), ('key', (8, 8), 'in_proj_weight'), ('value', (8, 8), 'in_proj_weight'),
         ('output', (8, 8), 'out_proj.weight')]
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module: got {type(module).__name__}.")
    if others := foreign(module, CallerPatterns(roles)):  # before it runs: FSDP2 would gather copies
        shown = listing([f"{name} ({kind})" for name, kind in others.items()])
        raise ValueError(
            f"Parameters must be plain tensors, whose parts share their memory: got {shown}, sharded or quantized. Do "
            'this before the model is sharded or quantized, or leave them alone: roles={"keep": …}.'
        )
    if inputs is not None and (meta := [name for name, each in module.named_parameters() if each.is_meta]):
        raise ValueError(f"{meta[0]} is on the meta device, and the model cannot run: call module.to_empty(device=…).")
    heard = listen(module, inputs)
    seen = look(module, heard=heard, roles=roles, n_heads=n_heads)
    if inputs is not None and not (heard and heard.attention) and (seen.unknown or not seen.attention):
        raise ValueError(
            "inputs tell the roles by the graph that autograd records, and there is none here, or none with attention "
            "(torch.inference_mode, no_grad inside the model, a reentrant checkpoint, an attention without softmax). "
            f'Give them: roles={{"query": …}}. Not known: {listing([*seen.unknown.values(), *seen.left.values()])}.'
        )
    if not any(entry.role in ATTENTION for entry in seen.entries):
        matrices = [name for name, parameter in module.named_parameters() if parameter.ndim > 1]
        raise ValueError(
            f"module must contain attention, and none is known in {type(module).__name__}. Give what it is called "
            f'with, inputs=…, or the names, roles={{"query": "*.q_lin.weight", …}}. Its matrices: {listing(matrices)}.'
        )
    if placeless := {name: why for name, why in seen.unknown.items() if ": " in why}:
        raise ValueError(
            f"Every part of a matrix must lie evenly in its parameter: {listing(placeless.values())}. Leave it alone: "
            f'roles={{"keep": "{next(iter(placeless))}"}}.'
        )
    if seen.unknown:
        raise ValueError(
            f"Every matrix must have a role, and none is known for {listing(seen.unknown.values())}. Give what the "
            "model is called with, inputs=… (a function reaches several parts: lambda model: (model(ids), "
            f'model.tower(pixels))), or a pattern, roles={{"readout": "{next(iter(seen.unknown))}"}}, or '
            'leave it alone, roles={"keep": …}.'
        )
    if seen.unsure:
        raise ValueError(" ".join(seen.unsure))
    return seen


def look(
    module: nn.Module,
    *,
    heard: Anatomy | None = None,
    roles: RolePatterns | None = None,
    n_heads: int | None = None,
) -> ModelView:
    """What is known of a model, and what is not: as :func:`view`, but nothing unknown is refused.

    Args:
        module: the model.
        heard: what listening told (:class:`~attntut.anatomy.listen.Ears`).
        roles, n_heads: as in :func:`view`.

    Example:
        >>> model = nn.Sequential(nn.MultiheadAttention(8, num_heads=2), nn.Bilinear(8, 8, 8))
        >>> seen = look(model)
        >>> [entry.role for entry in seen.entries], list(seen.unknown)
        (['query', 'key', 'value', 'output'], ['1.weight'])
    """
    heard = heard or Anatomy()
    drawers = Drawers(module, CallerPatterns(roles), heard)
    parts = _at_home([part for part in drawers.parts if part.matrix is not None])
    places = Places(module, parts, heard, n_heads)
    entries = tuple(
        Entry(
            places.weight(part),
            part.matrix,  # type: ignore[arg-type]
            part.parameter,
            None if part.bias is None else part.bias.view[..., 0],
            part.attention,
            part.padding,
            part.role,
            part.matrix.place_in(module.get_parameter(part.parameter)),  # type: ignore[union-attr]
        )
        for part in (parts if places.heads else ())
    )
    return ModelView(
        module,
        entries,
        tuple(_gather(module, entries, list(places.heads))),
        drawers.norms,
        drawers.biases,
        drawers.gains,
        tuple(drawers.kept),
        places.traits() if places.heads else {},
        drawers.foreign,
        drawers.unknown,
        drawers.left,
        tuple(places.unsure),
        frozenset(heard.zero_centred).union(
            f"{name}.weight"
            for name in drawers.norms
            if getattr(module.get_submodule(name), "zero_centred", False) is True
        ),
    )


def listen(module: nn.Module, inputs: Any = None) -> Anatomy | None:
    """Run a model once, in evaluation mode, and listen; None without inputs, or where it does not run with its own.

    Args:
        module: the model.
        inputs: as in :func:`view`.
    """
    own = inputs is None
    if own:
        inputs = getattr(module, "dummy_inputs", None)
        if not isinstance(inputs, Mapping):
            return None
    try:
        with untouched(module, inputs), _audible(module), no_fast_path(), Ears(module) as ears, torch.enable_grad():
            for each in module.modules():
                each.training = False  # train() may be overridden, and merge an adapter for good
            with _resharded(module), torch.compiler.set_stance("force_eager"):
                return ears.hear(call(module, inputs))
    except Exception:
        if own:
            return None
        raise


@contextmanager
def _resharded(module: nn.Module) -> Iterator[None]:
    """Afterwards no part of a sharded model (FSDP2) stays gathered: what is written there would be lost."""
    try:
        yield
    finally:
        for each in module.modules():
            if callable(reshard := getattr(each, "reshard", None)):
                reshard()


@contextmanager
def _audible(module: nn.Module) -> Iterator[None]:
    """Meanwhile, small random numbers stand for weights that are all 0, not finite or huge: there, gradients vanish."""
    dead = [
        each.data
        for each in module.parameters()
        if type(each.data) is Tensor
        and each.is_floating_point()
        and not each.is_meta
        and not each.is_inference()
        and each.numel()
        and not 0 < each.detach().abs().max().item() < 1e3
    ]
    before, generator = [each.clone() for each in dead], torch.Generator().manual_seed(0)
    try:
        for each in dead:
            each.copy_(0.1 * torch.randn(each.shape, generator=generator))
        yield
    finally:
        for each, value in zip(dead, before, strict=True):
            each.copy_(value)


@contextmanager
def plain(model: nn.Module) -> Iterator[bool]:
    """Meanwhile, what is computed from one parameter is that parameter: roles are found by its name and its place.

    What it gives is whether there is such a parameter (:mod:`torch.nn.utils.parametrize`).
    """
    originals: dict[nn.Module, dict[str, nn.Parameter]] = {}
    for each in model.modules():
        lists: Any = each._modules.get("parametrizations")
        if parametrize.is_parametrized(each) and all([*x._parameters] == ["original"] for x in lists.values()):
            originals[each] = {name: one.original for name, one in lists.items()}
    with held_plainly(originals):
        yield bool(originals)


def owner_of(module: nn.Module, entry: Entry) -> nn.Module:
    """The part of a model that a projection's parameter is in."""
    return module.get_submodule(entry.parameter.rpartition(".")[0])


def call(module: Callable[..., Any], inputs: Any) -> Any:
    """Call a model with a tensor, a tuple of arguments or a mapping of keyword arguments, or let a function call it."""
    if callable(inputs) and not isinstance(inputs, Tensor):
        return inputs(module)
    if isinstance(inputs, Mapping):
        return module(**inputs)
    return module(*inputs) if isinstance(inputs, tuple | list) else module(inputs)


def _at_home(parts: list[Part]) -> list[Part]:
    """Each part with its attention; what is kept beside the module (BERT's output) goes to the nearest without one."""
    asking = [part.attention for part in parts if part.role == "query"]
    have = {(part.attention, part.role) for part in parts}
    placed = []
    for part in parts:
        free = [name for name in dict.fromkeys(asking) if name is not None and (name, part.role) not in have]
        if part.role in ATTENTION and part.attention not in asking and free:
            part = part._replace(attention=max(free, key=lambda name, own=part.parameter: shared(name, own)))  # type: ignore[misc]
            have.add((part.attention, part.role))
        placed.append(part)
    return placed


def _gather(module: nn.Module, entries: tuple[Entry, ...], names: list[str]) -> Iterator[Attention]:
    found: dict[str, dict[str, Entry]] = {name: {} for name in names}
    for entry in entries:
        if entry.role in ATTENTION and entry.attention in found:
            have = found[entry.attention].get(entry.role)  # a rotary key stands beside the key
            if have is None or have.matrix.view.numel() < entry.matrix.view.numel():
                found[entry.attention][entry.role] = entry
    for name, each in found.items():
        yield Attention(name, module.get_submodule(name), **each)
