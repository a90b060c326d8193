"""Every parameter of a model into one of five drawers: projections, norms, biases, gains, and what is to be kept."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from attntut.init.patterns import KEEP, PACKED, CallerPatterns, known_roles
from attntut.init.places import ancestors
from attntut.init.weight import ATTENTION

TABLES = ("embedding", "position")


@dataclass
class Part:
    """A projection whose place in the model is not yet known; attributes as in :class:`~attntut.init.roles.Entry`."""

    role: str
    parameter: str
    view: Tensor
    bias: Tensor | None
    attention: str
    is_table: bool
    padding: int | None


class Drawers:
    """Sorts the parameters of a model.

    Args:
        module: the model.
        patterns: the caller's.

    Attributes:
        parts: the projections.
        norms, biases, gains, kept: as in :class:`~attntut.init.roles.ModelView`.
        matrices: names of all parameters with two or more dimensions.
        unknown: those among them without a role, each with a description.
    """

    def __init__(self, module: nn.Module, patterns: CallerPatterns) -> None:
        self.module, self.patterns = module, patterns
        self.parts: list[Part] = []
        self.norms: dict[str, tuple[Tensor | None, Tensor | None]] = {}
        self.biases: dict[str, Tensor] = {}
        self.gains: dict[str, nn.Parameter] = {}
        self.kept: list[str] = []
        self.matrices: list[str] = []
        self.unknown: dict[str, str] = {}
        self._done: set[int] = set()
        names: dict[int, list[str]] = {}  # a tied parameter has several
        for name, parameter in module.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        given = {each[0]: patterns.match(each) for each in names.values()}
        parameters = dict(module.named_parameters())
        for name, parameter in parameters.items():
            if KEEP in given[name]:
                self._take(parameter)
                self.kept.append(name)
            if parameter.ndim > 1:
                self.matrices.append(name)
        patterns.check_used(self.matrices)
        for name, parameter in parameters.items():  # a matrix takes its bias along
            if id(parameter) not in self._done and (is_norm(self._owner(name)) or parameter.ndim > 1):
                self._sort(names[id(parameter)], given[name], parameter)
        for name, parameter in parameters.items():
            if id(parameter) not in self._done:
                if name.endswith("bias"):
                    self.biases[name] = parameter.detach()
                else:
                    self.gains[name] = parameter

    def _sort(self, names: list[str], roles: tuple[str, ...], parameter: nn.Parameter) -> None:
        name = names[0]
        owner, own_name = self._owner(name), name.rpartition(".")[2]
        if is_norm(owner):
            if own_name in ("weight", "bias"):
                scale, shift = (self._take(getattr(owner, each, None)) for each in ("weight", "bias"))
                self.norms[name.rpartition(".")[0]] = scale, shift
            return
        self._take(parameter)
        if own_name in ("bias_k", "bias_v"):  # one more key and value for all to see: torch calls them biases
            self.biases[name] = parameter.detach()
            return
        if not roles:
            known = {each: known_roles(ancestors(self.module, each)) for each in names}
            name = next((each for each in names if known[each] == ("embedding",)), name)
            roles = known[name] or next(filter(None, known.values()), ())
        if roles:
            self.parts += self._split(name, parameter, roles)
        else:
            self.unknown[name] = f"{name} {tuple(parameter.shape)}"

    def _split(self, name: str, parameter: nn.Parameter, roles: tuple[str, ...]) -> Iterator[Part]:
        path, _, own_name = name.rpartition(".")
        owner, attention = self._owner(name), path.rpartition(".")[0] if own_name == "weight" else path
        if roles == PACKED and getattr(self.module.get_submodule(attention), "is_cross_attention", False):
            roles = ("key", "value")  # GPT-2 asks with another matrix
        matrix, is_table = _as_matrix(name, parameter, owner, roles)
        if len(matrix) % len(roles):
            raise ValueError(
                f"{name} must hold {len(roles)} projections of one size ({', '.join(roles)}): "
                f"got shape {tuple(parameter.shape)}."
            )
        separate = own_name in ("q_proj_weight", "k_proj_weight", "v_proj_weight")  # torch's, with kdim or vdim
        of_torch = separate or own_name == "in_proj_weight"
        has_bias = of_torch or own_name == "weight"
        bias = (
            self._take(getattr(owner, "in_proj_bias" if of_torch else "bias", None), again=separate)
            if has_bias
            else None
        )
        slots = PACKED if separate else roles
        for role, rows in zip(roles, matrix.chunk(len(roles)), strict=True):
            yield Part(
                role,
                name,
                rows,
                None if bias is None else bias.chunk(len(slots))[slots.index(role)],
                attention if role in ATTENTION else "",
                is_table,
                getattr(owner, "padding_idx", None),
            )

    def _owner(self, name: str) -> nn.Module:
        return self.module.get_submodule(name.rpartition(".")[0])

    def _take(self, parameter: object, *, again: bool = False) -> Tensor | None:
        """The parameter's data, if it is one and no drawer has it."""
        if not isinstance(parameter, nn.Parameter) or (id(parameter) in self._done and not again):
            return None
        self._done.add(id(parameter))
        return parameter.detach()


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalizes: one of torch's, or one whose class says so and that has no matrix.

    >>> is_norm(nn.RMSNorm(8)), is_norm(nn.Linear(8, 8))
    (True, False)
    """
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return True
    return "norm" in type(module).__name__.lower() and all(each.ndim < 2 for each in module.parameters())


def listing(items: Collection[str], limit: int = 8) -> str:
    """The first of the items, and how many more there are.

    >>> listing(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return (", ".join([*items][:limit]) or "none") + more


def _as_matrix(name: str, parameter: nn.Parameter, owner: nn.Module, roles: tuple[str, ...]) -> tuple[Tensor, bool]:
    """The parameter as ``(fan_out, fan_in)``, and whether its rows are looked up."""
    data = parameter.detach()
    kinds = {kind.__name__ for kind in type(owner).__mro__}
    is_raw = name.rpartition(".")[2] != "weight"
    if "Embedding" in kinds or (is_raw and roles[0] in TABLES):
        return data.reshape(-1, data.shape[-1]).mT, True
    if "Conv1D" in kinds:  # Hugging Face's: a linear layer that keeps its matrix transposed
        return data.mT, False
    if "_ConvNd" in kinds:
        return data.flatten(1), False
    if data.ndim != 2:
        raise ValueError(
            f"{name} must be a matrix to have the role {' + '.join(roles)}: got shape {tuple(data.shape)}. "
            f'Leave it alone with roles={{"keep": "{name}"}}.'
        )
    return data, False
