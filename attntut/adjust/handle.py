"""One call that applies a method to a model, and takes it away again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from attntut._checks import nearest
from attntut._restore import no_fast_path, untouched
from attntut.adjust import attention
from attntut.adjust.registry import ON_MODEL, Adjustment, adjustments, brought
from attntut.anatomy.blocks import Block, find_blocks
from attntut.anatomy.depth import is_depth_scaled
from attntut.anatomy.layout import at
from attntut.anatomy.names import RolePatterns
from attntut.anatomy.parameters import names_of
from attntut.anatomy.view import Attention, Entry, ModelView, call, listen, look, plain
from attntut.init.requirements import REQUIREMENTS, Traits
from attntut.parts import AttentionPart, Difference

NAMES = "adjusted_by"
"""The attribute of a model, and of its attentions, with the names of the methods that act on it; copies have it too."""


class Handle:
    """What :func:`adjust` gives: takes the method away, by :meth:`undo` or at the end of a ``with`` block.

    Attributes:
        name: of the method.
        model: what it acts on.
        options: as they were given.
    """

    def __init__(self, name: str, model: nn.Module, options: Mapping[str, Any], patch: Patch) -> None:
        self.name, self.model, self.options, self._patch = name, model, dict(options), patch

    def undo(self) -> None:
        """Make the model what it would be without the method; a second time does nothing.

        Modules, hooks, names and their order are then what they were before, and parameters that the method overwrote
        have their values again. What was trained meanwhile stays trained.

        Raises:
            RuntimeError: something was built upon it since; nothing is changed then.
        """
        self._patch.undo()

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *error: object) -> None:
        self.undo()

    def __repr__(self) -> str:
        given = "".join(f", {key}={value!r}" for key, value in self.options.items())
        return f"<adjust({type(self.model).__name__}, {self.name!r}{given})>"


class Patch:
    """The hands of a method: each function changes the model by torch's own means, and knows the way back.

    ``view`` is what is known of the model, by role.
    """

    def __init__(self, name: str, model: nn.Module, view: ModelView) -> None:
        self.name, self.model, self.view = name, model, view
        self.n_changes = 0
        self._names = names_of(model)
        self._checks: list[Callable[[], str]] = []
        self._stack = ExitStack()

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """The model's attention modules, each with its four projections; every one has a query."""
        return self.view.attention

    def attend(self, place: Attention, change: AttentionPart) -> None:
        """Act inside an attention: as an :class:`~attntut.adjust.attention.AttentionChange` says."""
        query = self.query(place)
        change.to(query.view.device, query.view.dtype).train(place.module.training)
        layer, inside = query.parameter.rpartition(".")[0], f"{place.name}." if place.name else ""
        reads = layer.startswith(inside) and query.matrix.shape[1] == query.weight.d_model
        asks = layer.removeprefix(inside) if reads else ""
        attention.insert(place.module, query.weight.n_heads, self.name, change, asks=asks)
        self._later(attention.remove, place.module, self.name)
        what = f"the forward of {place.name or 'the model'} was replaced since"
        runs = attention.AdjustedForward
        self._checks.append(lambda: "" if isinstance(vars(place.module).get("forward"), runs) else what)

    def query(self, place: Attention) -> Entry:
        """The queries' matrix of an attention; refuses if it is not known."""
        if place.query is None:
            self.refuse(f"the queries of {place.name or 'the model'} are not known")
        return place.query

    def hook(self, register: Callable[..., Any], hook: Callable[..., Any], **options: Any) -> None:
        """Register a hook of torch's: ``patch.hook(module.register_forward_hook, function)``."""
        self._later(register(hook, **options).remove)

    def parametrize(self, parameter: str, *steps: nn.Module) -> None:
        """Compute a parameter from the one that is stored, step by step (:mod:`torch.nn.utils.parametrize`)."""
        names = self._names[self.parameter(parameter)]
        path, _, name = parameter.rpartition(".")
        owner = self.model.get_submodule(path)
        if "parametrizations" in path:
            self.refuse(f"{parameter} is computed from others already")
        if len(names) > 1:
            self.refuse(f"{' and '.join(names)} are one parameter, and both modules would have to compute it")
        _remember(owner, "_parameters_before", list(owner._parameters))
        self._later(_forget, owner, "_parameters_before", _in_order)
        for step in steps:
            parametrize.register_parametrization(owner, name, step, unsafe=True)  # unasked, it would run all of it
        ours: Any = [*steps]
        self._later(_unparametrize, owner, name)
        self._checks.append(
            lambda: "" if [*owner.parametrizations[name]] == ours else f"{parameter} was parametrized once more"  # type: ignore[index]
        )

    def parameter(self, name: str) -> nn.Parameter:
        """A parameter by its name; refuses one that is computed from others already."""
        path, _, own = name.rpartition(".")
        found = self.model.get_submodule(path)._parameters.get(own)
        if found is None:
            self.refuse(f"{name} is computed from others already (torch.nn.utils.parametrize)")
        return found

    def replace(self, name: str, module: nn.Module) -> None:
        """Put another module in the place of one."""
        path, _, own = name.rpartition(".")
        parent, before = self.model.get_submodule(path), self.model.get_submodule(name)
        parent._modules[own] = module
        self._later(parent._modules.__setitem__, own, before)
        self._checks.append(lambda: "" if parent._modules.get(own) is module else f"{name} was replaced once more")

    def add(self, owner: nn.Module, name: str, module: nn.Module) -> None:
        """Give a module one more, under a name that is free."""
        if hasattr(owner, name):
            self.refuse(f"a {type(owner).__name__} has an attribute {name!r} of its own")
        owner.add_module(name, module)
        self._later(owner._modules.pop, name)
        self._checks.append(lambda: "" if owner._modules.get(name) is module else f"{name} was replaced since")

    def keep(self, *tensors: Tensor) -> None:
        """Give these their present values back at the end; the method may then write to them."""
        for each in tensors:
            self._later(_copy, self.part(each), each.detach().clone())

    def part(self, tensor: Tensor) -> Callable[[], Tensor]:
        """The part of a parameter that a tensor shares memory with, to be asked for: ``model.to(…)`` moves the memory.

        A tensor that is a parameter, or that shares memory with none, is given as it is.
        """
        memory, start = tensor.untyped_storage()._cdata, tensor.storage_offset()
        for each in () if isinstance(tensor, nn.Parameter) else self._in_memory.get(memory, ()):
            if 0 <= (offset := start - each.storage_offset()) < each.numel():
                place = tensor.shape, tensor.stride(), int(offset)
                return lambda: at(each.detach(), place)
        return lambda: tensor

    def current(self, entry: Entry) -> Callable[[], Entry]:
        """An entry with its matrix and its bias where they are when it is asked for."""
        view, bias = self.part(entry.matrix.view), None if entry.bias is None else self.part(entry.bias)
        return lambda: replace(entry, matrix=replace(entry.matrix, view=view()), bias=None if bias is None else bias())

    @cached_property
    def _in_memory(self) -> dict[int, list[Tensor]]:
        """The plain parameters and the buffers, by the storage that they are in."""
        found: dict[int, list[Tensor]] = {}
        for name, each in [*self.model.named_parameters(), *self.model.named_buffers()]:
            if name not in self.view.foreign:
                found.setdefault(each.untyped_storage()._cdata, []).append(each)
        return found

    def refuse(self, why: str) -> NoReturn:
        """Raise a ``ValueError``: the method cannot be applied."""
        raise ValueError(f"{self.name!r} cannot be applied to {type(self.model).__name__}: {why}.")

    def undo(self) -> None:
        """Go all the way back.

        Raises:
            RuntimeError: something was built upon a change since.
        """
        why = [text for text in (check() for check in self._checks) if text]
        if why:
            raise RuntimeError(f"{self.name!r} cannot be undone yet: {'; '.join(why)}. Undo that first.")
        self._checks.clear()
        self._stack.close()

    def _later(self, undo: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._stack.callback(undo, *args, **kwargs)
        self.n_changes += 1


def adjust(
    model: nn.Module,
    name: str,
    *,
    inputs: Any = None,
    roles: RolePatterns | None = None,
    n_heads: int | None = None,
    force: bool = False,
    **options: Any,
) -> Handle:
    """Apply a method of adjustment to a model, in place, until it is undone.

    The model keeps its class, its parameters (the same objects) and its place; parameters that the method brings are
    among ``model.parameters()`` from now on: make the optimizer afterwards. A copy of the model stays adjusted when the
    original is undone. ``torch.compile`` runs an adjusted attention uncompiled (the graph breaks there); what acts
    elsewhere compiles with the rest.

    Args:
        model: any model that contains attention.
        name: one of :func:`adjustments` that acts on a model.
        inputs: what the model is called with, to find the roles of its matrices by listening, as in
            :func:`attntut.init.view`; the adjusted model is then run once too. Without them, a Hugging Face model is
            run on its own, where only that tells whether something clashes or is missing.
        roles, n_heads: as in :func:`attntut.init.view`.
        force: apply it although something clashes, or the model lacks what the method requires.
        options: the method's own.

    Returns:
        The handle: ``handle.undo()``, or ``with adjust(…):``.

    Raises:
        TypeError: ``model`` is no module, or an option is missing.
        ValueError: an unknown method or option; a clash; a requirement that is not met; a model in which the method
            finds nothing to act on. The model is then as it was.
        Exception: whatever the model raises when it is run with ``inputs``; the model is then as it was.

    Example:
        >>> model, x = nn.TransformerEncoderLayer(16, nhead=2, batch_first=True).eval(), torch.randn(4, 8, 16)
        >>> before = model(x)
        >>> with adjust(model, "qk_norm", gain=2.0):
        ...     torch.allclose(model(x), before)
        False
        >>> torch.allclose(model(x), before)
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module: got {type(model).__name__}.")
    found = find_adjustment(name)
    found.check_options(options)
    view = fitting_view(found.name, model, inputs, roles, n_heads, force=force, options=options)
    patch = applied(found.name, view, lambda patch: found.function(patch, **options), inputs)
    return Handle(found.name, model, options, patch)


def applied(name: str, view: ModelView, act: Callable[[Patch], object], inputs: Any = None) -> Patch:
    """Note a method at its model and let it act; if that fails, or does nothing, the model is as it was."""
    patch = Patch(name, view.module, view)
    try:
        _mark(patch)
        marks = patch.n_changes
        act(patch)
        if patch.n_changes == marks:
            patch.refuse("it has nothing that this method acts on")
        if inputs is not None:
            with untouched(view.module, inputs), no_fast_path(), torch.no_grad():
                call(view.module, inputs)
    except BaseException:
        patch._stack.close()
        raise
    return patch


def find_adjustment(name: object) -> Adjustment:
    """The method of this name that acts on a model.

    Raises:
        ValueError: there is none; the nearest match is named, or how to call what acts elsewhere.

    Example:
        >>> find_adjustment("softcap").name
        Traceback (most recent call last):
        ...
        ValueError: name must be a method of attntut.adjust.adjustments(): got 'softcap'. Did you mean 'soft_cap'?
    """
    known = adjustments()
    if not isinstance(name, str) or name not in known:
        hint = nearest(str(name), known)
        raise ValueError(f"name must be a method of attntut.adjust.adjustments(): got {name!r}.{hint}")
    if not known[name].is_undoable:
        raise ValueError(
            f"name must be a method that acts on a model ({', '.join(ON_MODEL)}): {name!r} is one of the "
            f"{known[name].family}, a function to be called as it is, attntut.adjust.{name}(…)."
        )
    return known[name]


def blocks_of(view: ModelView) -> dict[str, Block]:
    """The blocks around a model's attentions, by name."""
    return find_blocks(view.module, [each.name for each in view.attention])


def is_in_layer(owner: nn.Module, entry: Entry) -> bool:
    """Whether a projection is the weight of a layer of its own, whose result can be changed."""
    return entry.parameter.endswith("weight") and not {*owner._parameters} - {"weight", "bias"}


def acting_on(model: nn.Module) -> tuple[str, ...]:
    """The names of the methods that act on a model, or on a part of it, the oldest first.

    >>> model = nn.MultiheadAttention(8, num_heads=2)
    >>> with adjust(model, "soft_cap"), adjust(model, "temperature", tau=2.0):
    ...     acting_on(model)
    ('soft_cap', 'temperature')
    """
    return tuple(dict.fromkeys(name for each in model.modules() for name in vars(each).get(NAMES, ())))


def fitting(view: ModelView) -> list[str]:
    """The names of the methods that are not refused for what a model has or lacks, with the options' defaults.

    Numbers are not looked at: a matrix that is 0, which σReparam refuses, is met when it is applied.

    >>> from attntut.anatomy import look
    >>> model = nn.MultiheadAttention(8, num_heads=2)
    >>> with adjust(model, "qk_norm"):
    ...     {"qk_norm", "soft_cap", "sink"} & {*fitting(look(model))}
    {'sink'}
    """
    there, traits = acting_on(view.module), _as_adjusted(view)
    return [name for name, each in adjustments().items() if not _refusal(each, view, there, traits, {})]


def given_traits(model: nn.Module) -> dict[str, Any]:
    """What a model has by the methods that act on it, by the names of :class:`~attntut.TransformerConfig`."""
    return brought(acting_on(model))


def _refusal(
    method: Adjustment,
    view: ModelView,
    there: Collection[str],
    traits: Traits,
    options: Mapping[str, Any],
    *,
    force: bool = False,
) -> str:
    """Why a method is not applied to a model on which those ``there`` act, a sentence; empty if it is."""
    if method.name in there:
        return f"{method.name!r} acts on this model already: undo it first."
    if not force:
        if "depth-scaled weights" in method.clashes:  # for these alone, because it reads all weights
            traits = {**traits, "depth_scaled": is_depth_scaled(view)}
        if why := method.objection(there, traits):
            return f"{why} To apply it anyway: force=True."
    why = method.unfit(view, options)
    return f"{method.name!r} cannot be applied to {type(view.module).__name__}: {why}." if why else ""


def _as_adjusted(view: ModelView) -> dict[str, Any]:
    """The traits, with a head's width, and the logits' scale as a temperature leaves it."""
    traits = {**view.traits, "d_head": view.entries[0].weight.d_head if view.entries else None}
    taus = {attention.tau(place.module) for place in view.attention}
    if traits.get("scale") is not None:
        traits["scale"] = traits["scale"] / taus.pop() if len(taus) == 1 else None
    return traits


def fitting_view(
    name: str,
    model: nn.Module,
    inputs: Any,
    roles: RolePatterns | None,
    n_heads: int | None,
    *,
    force: bool = False,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> ModelView:
    """What is known of a model that a method may be applied to; a trait that no name tells is listened for.

    Raises:
        TypeError: ``force`` is neither True nor False.
        ValueError: the method is refused.
    """
    if not isinstance(force, bool):
        raise TypeError(f"force must be True or False: got {force!r}.")
    method, view = adjustments()[name], known_view(model, inputs, roles, n_heads)
    asked = {trait for each in (*method.requires, *method.conflicts) if each in REQUIREMENTS
             for trait in REQUIREMENTS[each].wants if trait != "depth_scaled"}  # fmt: skip
    is_told = inputs is not None or all(view.traits.get(each) is not None for each in asked)
    if not (is_told or force or view.foreign):  # a sharded model would have to run on all devices
        with plain(model):
            heard = listen(model)
            told = look(model, heard=heard, roles=roles, n_heads=n_heads).traits if heard else {}
        known = {trait: value for trait, value in view.traits.items() if value is not None}
        view = replace(view, traits={**told, **known})
    if why := _refusal(method, view, acting_on(model), _as_adjusted(view), options, force=force):
        raise ValueError(why)
    return view


def known_view(model: nn.Module, inputs: Any, roles: RolePatterns | None, n_heads: int | None) -> ModelView:
    """What is known by names; else, or if there are inputs, by listening."""
    with plain(model):
        view = look(model, roles=roles, n_heads=n_heads)
        if inputs is not None or not view.attention or view.unknown or view.unsure:
            view = look(model, heard=listen(model, inputs), roles=roles, n_heads=n_heads)
        adding = {f"{name}.weight" for name in view.norms if _adds_one(model.get_submodule(name))}
        is_differential = any(isinstance(each, Difference) for each in model.modules())
        traits = {**view.traits, "differential": True} if is_differential else view.traits
        view = replace(view, zero_centred=view.zero_centred | adding, traits=traits)
    if not view.attention:
        raise ValueError(
            f"model must contain attention, and none is known in {type(model).__name__}. Give what it is called with, "
            'inputs=…, or the names, roles={"query": "*.q_lin.weight", …}.'
        )
    return view


def _mark(patch: Patch) -> None:
    """Note the name at model and attentions; no torch encoder makes nested tensors, which only fused layers take."""
    for each in dict.fromkeys([patch.model, *(place.module for place in patch.attentions)]):
        vars(each).setdefault(NAMES, []).append(patch.name)
        patch._later(_unname, each, patch.name)
    for each in patch.model.modules():
        if isinstance(each, nn.TransformerEncoder) and hasattr(each, "use_nested_tensor"):
            _remember(each, "_nested_before", each.use_nested_tensor)
            each.use_nested_tensor = False
            patch._later(_forget, each, "_nested_before", _nested)


def _adds_one(norm: nn.Module) -> bool:
    """Whether a norm multiplies by 1 + w: with parameters of 0 it gives something. False where it does not run."""
    own = dict(norm._parameters)
    weight, is_torch = own.get("weight"), type(norm).__module__.startswith("torch.nn.")
    if weight is None or weight.is_meta or is_torch or [*norm.buffers()]:  # a call may change what it keeps
        return False
    zeros: Any = {name: torch.zeros_like(each) for name, each in own.items() if each is not None}
    try:
        norm._parameters.update(zeros)
        x = torch.linspace(-1, 2, weight.numel()).to(weight).view(1, 1, *weight.shape)
        with torch.no_grad():
            return bool(type(norm).forward(norm, x).any())
    except Exception:
        return False
    finally:
        norm._parameters.update(own)


# ---- what several adjustments change together: the first remembers, the last to be undone restores


def _remember(owner: nn.Module, key: str, value: Any) -> None:
    vars(owner).setdefault(key, value)
    users = vars(owner).setdefault("_adjusted_users", Counter())
    users[key] += 1


def _forget(owner: nn.Module, key: str, restore: Callable[[nn.Module, Any], None]) -> None:
    users = vars(owner)["_adjusted_users"]
    users[key] -= 1
    if not users[key]:
        restore(owner, vars(owner).pop(key))
        del users[key]
        if not users:
            del vars(owner)["_adjusted_users"]


def _unname(model: nn.Module, name: str) -> None:
    names = vars(model)[NAMES]
    names.remove(name)
    if not names:
        del vars(model)[NAMES]


def _in_order(owner: nn.Module, names: list[str]) -> None:
    """The parameters in their old order; others behind them."""
    for name in [*names, *(each for each in owner._parameters if each not in names)]:
        owner._parameters[name] = owner._parameters.pop(name)


def _unparametrize(owner: nn.Module, name: str) -> None:
    """Make a parameter plain; torch takes the property from the class, which a copy of the module may share."""
    kind = type(owner)
    own = {key: value for key, value in vars(kind).items() if key not in ("__dict__", "__weakref__")}
    owner.__class__ = type(kind.__name__, kind.__bases__, own)
    parametrize.remove_parametrizations(owner, name, leave_parametrized=False)


def _nested(encoder: nn.Module, before: Any) -> None:
    encoder.use_nested_tensor = before


def _copy(tensor: Callable[[], Tensor], value: Tensor) -> None:
    with torch.no_grad():
        tensor().copy_(value)
