"""One call that applies a scheme to a model: look, plan, check, and only then write."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Collection, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from attntut._restore import held_plainly
from attntut.anatomy.names import CallerPatterns, RolePatterns
from attntut.anatomy.parameters import listing, undefined
from attntut.anatomy.view import Entry, ModelView, view
from attntut.init.laws import Constant, IndependentLaw, Law, Normal
from attntut.init.registry import find_scheme
from attntut.init.requirements import check_requirements
from attntut.init.scheme import Scheme

Module = TypeVar("Module", bound=nn.Module)
ADAPTERS = ("adapter_in", "adapter_out")
_INSTEAD = 'Initialize the model before it is quantized, or leave it alone: roles={"keep": …}.'


def initialize_(
    module: Module,
    scheme: str | Scheme,
    *,
    inputs: Any = None,
    generator: torch.Generator | None = None,
    roles: RolePatterns | None = None,
    n_heads: int | None = None,
    force: bool | str | Collection[str] = False,
    **options: Any,
) -> Module:
    """Initialize a model by a scheme of the catalogue, in place.

    Every projection is drawn by its role and by its own fans, also where the model packs several into one tensor,
    keeps them transposed, shares keys and values between heads, or ties its readout to its embedding (which is drawn
    once, as an embedding). Unless the scheme says otherwise, biases become 0 and norms the identity; learnable gains
    stay. The row of an embedding that stands for padding becomes 0. Frozen matrices are initialized too; frozen tables
    and sinusoidal ones stay as they are. Gates and the narrow matrices of latent attention are drawn like the matrix
    that a branch begins with; of an adapter, the first matrix is N(0, 1/fan_in) and the second 0 (Hu et al. 2021). What
    no scheme speaks of (filters of single channels, modulation, mixing without a softmax, weights computed from
    others) and what ``inputs`` do not reach stays as it is, and a warning says so.

    Args:
        module: as in :func:`view`.
        scheme: a name in :func:`schemes`.
        inputs: what the model is called with, to find the roles of any model by listening: as in :func:`view`.
        generator: where the random numbers come from; torch's global generator by default, which is left alone if one
            is given.
        roles: patterns for what is not found, as in :func:`view`.
        n_heads: number of heads, where the model does not tell.
        force: apply the scheme although the model lacks what it requires; or the requirement (or requirements) to
            overlook.
        options: the scheme's own.

    Raises:
        TypeError: ``module`` is no module, or ``generator`` no generator.
        ValueError: an unknown scheme or option; a requirement that is not met; a model as in :func:`view`; a parameter
            that is not floating-point, has no memory of its own (meta device, sharded, quantized, parametrized), or
            lies on another device than ``generator``. The model is then as it was.

    Example:
        >>> layer = nn.TransformerEncoderLayer(d_model=64, nhead=4)
        >>> layer = initialize_(layer, "xavier_normal", generator=torch.Generator().manual_seed(0))
        >>> round(layer.self_attn.in_proj_weight.std().item(), 3)  # √(2 / (64 + 64)), whatever the packing
        0.125
    """
    found = find_scheme(scheme)
    found.check_options(options)
    _check_generator(generator)
    with _computed_set_through(module, CallerPatterns(roles)):
        seen = view(module, inputs=inputs, roles=roles, n_heads=n_heads)
        _check_parameters(seen, generator)
        first = next(entry.weight for entry in seen.entries if entry.attention is not None)
        wanted = found.architecture(first.n_layers, first.d_head)
        check_requirements(found.name, found.requires, seen.traits, wanted, options, force=force)
        if seen.left:
            warnings.warn(
                f"Left as they are, with their biases: {listing(dict.fromkeys(seen.left.values()))}.", stacklevel=2
            )
        if wild := undefined(module):
            warnings.warn(
                f"Buffers hold numbers that are none or huge, and no scheme sets them: {listing(wild)}. Where "
                "to_empty() made them, give them their values.",
                stacklevel=2,
            )
        plan = list(_plan(found, seen, options))
        with torch.no_grad(), _restored_on_error(seen.module) if found.finish else contextlib.nullcontext():
            for target, law in plan:
                _draw(target, law, generator)
            for entry in seen.entries:
                if entry.padding is not None:
                    entry.view[:, entry.padding] = 0
            if found.finish:
                devices = {parameter.device for parameter in module.parameters() if parameter.is_cuda}
                with torch.random.fork_rng(devices, enabled=generator is not None):
                    found.finish_(seen, generator, **options)
    return module


def _plan(scheme: Scheme, seen: ModelView, options: dict[str, Any]) -> Iterator[tuple[Entry | Tensor, Law]]:
    for entry in seen.entries:
        if seen.is_computed(entry):
            continue
        if entry.role in ADAPTERS:
            yield entry, Normal(entry.weight.fan_in**-0.5) if entry.role == "adapter_in" else Constant(0.0)
        else:
            yield entry, _law(scheme, entry, scheme.law(entry.weight, **options))
        if entry.bias is not None:
            yield entry.bias, _law(scheme, entry, scheme.bias(entry.weight, **options))
    for name, (weight, bias) in seen.norms.items():
        if weight is not None:
            yield weight, Constant(0.0 if f"{name}.weight" in seen.zero_centred else 1.0)
        if bias is not None:
            yield bias, Constant(0.0)
    for bias in seen.biases.values():
        yield bias, Constant(0.0)


def _draw(target: Entry | Tensor, law: Law, generator: torch.Generator | None) -> None:
    if isinstance(target, Tensor):
        law.fill_(target, generator)
    elif target.matrix.is_matrix:
        law.fill_(target.view, generator)
    elif isinstance(law, IndependentLaw | Constant):
        law.fill_(target.matrix.view, generator)
    else:
        target.matrix.write_(law.fill_(torch.empty_like(target.view, memory_format=torch.contiguous_format), generator))


def _law(scheme: Scheme, entry: Entry, law: object) -> Law:
    if not isinstance(law, Law):
        raise TypeError(f"The scheme {scheme.name!r} must give a Law for the role {entry.weight.role!r}: got {law!r}.")
    return law


def _check_generator(generator: object) -> None:
    if generator is not None and not isinstance(generator, torch.Generator):
        hint = " Write torch.Generator().manual_seed(…)." if isinstance(generator, int) else ""
        raise TypeError(f"generator must be a torch.Generator: got {generator!r} ({type(generator).__name__}).{hint}")


def _check_parameters(seen: ModelView, generator: torch.Generator | None) -> None:
    """Refuse what cannot be written to, before anything is."""
    written: dict[str, list[Tensor]] = {}
    for entry in seen.entries:
        written.setdefault(entry.parameter, []).append(entry.matrix.view)
    for name, parameter in seen.module.named_parameters():
        if name in seen.kept or name in seen.gains or name in seen.left:
            continue
        owner, is_computed, part = f".{name}".rpartition(".parametrizations.")
        if is_computed:
            raise ValueError(
                f"{owner[1:] or type(seen.module).__name__} must hold plain parameters, and {part.partition('.')[0]} "
                "is computed from others (torch.nn.utils.parametrize). Initialize first and parametrize then, or leave "
                f'it alone: roles={{"keep": "{owner[1:] + "." if owner else ""}*"}}.'
            )
        if parameter.is_meta:
            raise ValueError(
                f"{name} must have memory to be filled: it is on the meta device. Call module.to_empty(device=…) first."
            )
        if not parameter.is_floating_point():
            raise TypeError(f"{name} must be a floating-point parameter: got {parameter.dtype}. {_INSTEAD}")
        if generator is not None and generator.device.type != parameter.device.type:
            raise ValueError(
                f"generator must be on the device of the parameters: it is on {generator.device}, and {name} is on "
                f"{parameter.device}. Write torch.Generator(device={parameter.device.type!r})."
            )
        if any(step == 0 and size > 1 for step, size in zip(parameter.stride(), parameter.shape, strict=True)):
            raise ValueError(f"{name} must have a place in memory for each number: it is expanded. Call .contiguous().")
        own = parameter.untyped_storage().data_ptr()
        if any(view.untyped_storage().data_ptr() != own for view in written.get(name, ())):
            raise ValueError(
                f"{name} must hold its projections in its own memory, and a part of it is a copy. {_INSTEAD}"
            )
    unfilled = [name for name, buffer in seen.module.named_buffers() if buffer.is_meta]
    if unfilled:
        raise ValueError(
            f"Buffers must have values, and no scheme can give them: {listing(unfilled)} on the meta device."
        )


@contextlib.contextmanager
def _computed_set_through(module: nn.Module, patterns: CallerPatterns) -> Iterator[None]:
    """Meanwhile, weights that are computed (weight norm) are plain; then what they are computed from is set."""
    drawn: dict[nn.Module, dict[str, nn.Parameter]] = {}
    for path, owner in module.named_modules() if isinstance(module, nn.Module) else ():
        if not parametrize.is_parametrized(owner):
            continue
        lists: Any = owner.parametrizations
        names = [f"{path}.parametrizations.{name}".lstrip(".") for name, _ in lists.named_parameters()]
        if patterns.match(names) or not all(map(_can_be_set, lists.values())):
            continue
        drawn[owner] = {}
        for name, each in lists.items():
            is_free = all(original.requires_grad for original in each.parameters())
            drawn[owner][name] = nn.Parameter(each().detach().clone(), requires_grad=is_free)
    before = {each: each.detach().clone() for own in drawn.values() for each in own.values()}
    with held_plainly(drawn):
        yield
    for owner, own in drawn.items():
        for name, value in own.items():
            if not torch.equal(value, before[value]):
                setattr(owner, name, value.detach())


def _can_be_set(computed: Any) -> bool:
    """Whether a computed tensor can be given any value."""
    probe = copy.deepcopy(computed).eval()
    try:
        with torch.no_grad():
            value = probe()
            wanted = torch.linspace(-1, 2, value.numel(), dtype=value.dtype, device=value.device).view_as(value)
            probe.right_inverse(wanted)
            return torch.allclose(probe(), wanted, rtol=1e-2, atol=1e-2)
    except Exception:  # it has no inverse
        return False


@contextlib.contextmanager
def _restored_on_error(module: nn.Module) -> Iterator[None]:
    """Put parameters and buffers back if the body fails."""
    tensors = [*module.parameters(), *module.buffers()]
    before = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    except BaseException:
        for tensor, value in zip(tensors, before, strict=True):
            tensor.copy_(value)
        raise
