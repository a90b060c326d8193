"""Every parameter of a model into one of five drawers: projections, norms, biases, gains, and what is to be kept."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from attntut.anatomy.blocks import block_of, find_blocks, is_norm, prefixes
from attntut.anatomy.layout import Matrix, at
from attntut.anatomy.listen import Anatomy, Part, siblings
from attntut.anatomy.names import KEEP, PACKED, CallerPatterns, Layout, known_roles
from attntut.anatomy.weight import ATTENTION, BRANCH

ATTENTION_LIKE = re.compile(r"(?i)att(entio)?n")
TABLES = ("embedding", "position")


class Drawers:
    """Sorts the parameters of a model: by what the caller says, else by what was heard, else by name.

    Args:
        module: the model.
        patterns: the caller's.
        heard: what listening told, if anybody listened.

    Attributes:
        parts: the projections.
        norms, biases, gains, kept, foreign, left, unknown: as in :class:`~attntut.anatomy.view.ModelView`.
    """

    def __init__(self, module: nn.Module, patterns: CallerPatterns, heard: Anatomy | None = None) -> None:
        self.module, self.heard = module, heard or Anatomy()
        self.parts: list[Part] = []
        self.norms: dict[str, tuple[Tensor | None, Tensor | None]] = {}
        self.biases: dict[str, Tensor] = {}
        self.gains: dict[str, nn.Parameter] = {}
        self.kept: list[str] = []
        self.matrices: list[str] = []
        self.unknown: dict[str, str] = {}
        self.foreign = foreign(module, patterns)
        self.left: dict[str, str] = {}
        self._vectors = [(each.data_ptr(), each.data_ptr() + each.nbytes, each) for each in _small(module)]
        self.blocks = find_blocks(module, self.heard.attention, self.heard.apart)
        self._modules = dict(module.named_modules(remove_duplicate=False))
        self._ran = {each for name in self.heard.called for each in prefixes(name)}
        self._done: set[int] = set()
        names = names_of(module)
        given = {each[0]: patterns.match(each) for each in names.values()}
        parameters = dict(module.named_parameters())
        for name, parameter in parameters.items():
            if _is_kept(parameter, given[name]):
                self._take(parameter)
                self.kept.append(name)
            elif name in self.foreign:
                self._take(parameter)
            if parameter.ndim > 1 or name in self.heard.parts:
                self.matrices.append(name)
        patterns.check_used(self.matrices)
        for name, parameter in parameters.items():  # a matrix takes its bias along
            if id(parameter) not in self._done and (is_norm(self._owner(name)) or name in self.matrices):
                self._sort(names[parameter], given[name], parameter)
        self._learn_from_siblings(parameters)
        for name in [*self.unknown] if self.heard.attention else ():
            if self.unknown.get(name) == f"{name} {tuple(parameters[name].shape)}":
                self._excuse_unheard(name)
        for name, parameter in parameters.items():
            if id(parameter) not in self._done:
                if name.endswith("bias") or name in self.heard.biases:
                    self.biases[name] = parameter.detach()
                else:
                    self.gains[name] = parameter

    def _sort(self, names: list[str], given: tuple[tuple[str, ...], Layout] | None, parameter: nn.Parameter) -> None:
        name = names[0]
        owner, own_name = self._owner(name), name.rpartition(".")[2]
        if is_norm(owner):
            if own_name in ("weight", "bias"):
                scale, shift = (self._take(getattr(owner, each, None)) for each in ("weight", "bias"))
                self.norms[name.rpartition(".")[0]] = scale, shift
            return
        if given is None and isinstance(owner, nn.RNNBase | nn.RNNCellBase):
            self._take(parameter)
            self._leave(name, "it is recurrent")
            return
        if any(each in self.heard.biases or each in self.heard.gains for each in names):
            return
        self._take(parameter)
        if given is None and (why := next((self.heard.left[each] for each in names if each in self.heard.left), "")):
            self._leave(name, why)
            return
        is_row = own_name.endswith("bias") and parameter.numel() == max(parameter.shape)
        if own_name in ("bias_k", "bias_v") or is_row:  # torch calls one more key and value for all to see biases too
            self.biases[name] = parameter.detach()
            return
        heard = next((self.heard.parts[each] for each in names if each in self.heard.parts), [])
        if given is not None and not (heard and _is_plain(given[1]) and {part.role for part in heard} == set(given[0])):
            self.parts += self._split(name, parameter, *given)
            return
        if heard and all(part.matrix is not None for part in heard):
            for part in heard:
                self._take_bias(part)
                self.parts.append(part._replace(padding=getattr(owner, "padding_idx", None)))
            return
        known = {each: known_roles(ancestors(self.module, each)) for each in names}
        name = next((each for each in names if known[each] == ("embedding",)), name)
        roles = known[name] or next(filter(None, known.values()), ())
        if heard and not any(part.role in BRANCH for part in heard):
            self._leave(name, heard[0].why)
        elif heard:
            self.unknown[name] = f"{name} {tuple(parameter.shape)}: {heard[0].role}, but {heard[0].why}"
        elif roles:
            self.parts += self._split(name, parameter, roles, Layout(name))
        elif isinstance(owner, nn.Embedding) and (is_wave(parameter) or not parameter.requires_grad):
            self.kept.append(name)  # positions that were computed, and looked up where no graph is recorded
        else:
            self.unknown[name] = f"{name} {tuple(parameter.shape)}"

    def _leave(self, name: str, why: str) -> None:
        """Leave a parameter as it is, and the bias that goes with it."""
        self._take(getattr(self._owner(name), "bias", None))
        self.left[name] = f"{name} {tuple(self.module.get_parameter(name).shape)}: {why}"

    def _only_chooses(self, name: str) -> bool:
        """Whether a layer ran in a block whose other matrices were heard, and no gradient leads through it.

        Routers and indexers that pick by top-k are like that.
        """
        block = block_of(self.blocks, name).name
        ran = name.rpartition(".")[0] in self.heard.called
        return ran and bool(block) and any(each.startswith(f"{block}.") for each in self.heard.parts)

    def _learn_from_siblings(self, parameters: dict[str, nn.Parameter]) -> None:
        """What was not used, an expert that no token chose, plays the part of its like in another block."""
        silent = [name for name, each in parameters.items() if self.unknown.get(name) == f"{name} {tuple(each.shape)}"]
        kinds = siblings(self.module, parameters) if silent else {}
        known: dict[tuple[str, torch.Size], list[Part]] = {}
        for part in self.parts if silent else ():
            if part.parameter in self.heard.parts:
                key = kinds[part.parameter], parameters[part.parameter].shape
                if all(each.parameter == part.parameter for each in known.get(key, [])):
                    known.setdefault(key, []).append(part)
        why = {(kinds[name], parameters[name].shape): each for name, each in self.heard.left.items() if silent}
        for name in silent:
            parameter, owner = parameters[name], self._owner(name)
            like = known.get((kinds[name], parameter.shape), [])
            here = {each.attention: each.attention and _beneath(name, each.attention) for each in like}
            if like and self.heard.attention.keys() >= {each for each in here.values() if each}:
                for part in like:
                    own = at(parameter.detach(), part.matrix.within(parameters[part.parameter]))  # type: ignore[union-attr]
                    matrix = Matrix(own, part.matrix.row_dims)  # type: ignore[union-attr]
                    self.parts.append(
                        part._replace(parameter=name, matrix=matrix, bias=None, attention=here[part.attention])
                    )
            elif (kinds[name], parameter.shape) in why:
                self._leave(name, why[kinds[name], parameter.shape])
            elif isinstance(owner, nn.Linear) and self._only_chooses(name):
                self.parts += self._split(name, parameter, ("gate",), Layout(name))
            else:
                continue
            del self.unknown[name]

    def _excuse_unheard(self, name: str) -> None:
        """Leave what did not run, and what no gradient came from, unless it looks like attention: that is unknown."""
        path = prefixes(name)[1:]
        idle = next((each for each in reversed(path) if each not in self._ran), "")
        is_tower = any(self.module.get_submodule(idle).children()) if idle else False
        is_skipped = idle in self.blocks and self.blocks[idle].stack in self._ran  # the blocks beside it did run
        if is_tower and not is_skipped:
            self._leave_tower(idle)
        elif not is_skipped and self._is_no_attention(name, path):
            del self.unknown[name]
            met = "what is done with it is not read" if name in self.heard.met else "no gradient leads to it"
            self._leave(name, "the inputs do not reach it" if idle else met)

    def _leave_tower(self, tower: str) -> None:
        """Leave a whole module, what is known of it by name too."""
        mine = {name: each for name, each in self.module.named_parameters() if name.startswith(f"{tower}.")}
        mine = {name: each for name, each in mine.items() if name not in self.heard.parts and name not in self.kept}
        for drawer in (self.unknown, self.left, self.norms):
            for name in [each for each in drawer if each.startswith(f"{tower}.")]:
                del drawer[name]
        self.parts = [part for part in self.parts if part.parameter not in mine]
        for each in mine.values():
            self._take(each)
        self.left |= dict.fromkeys(mine, f"{tower} ({len(mine)} parameters): the inputs do not reach it")

    def _is_no_attention(self, name: str, path: Sequence[str]) -> bool:
        """Whether neither a matrix nor what was not heard around it looks like attention."""
        known = {*self.heard.parts, *self.heard.left, *(part.parameter for part in self.parts)}
        known = {each for parameter in known for each in prefixes(parameter)}
        region = [*itertools.takewhile(lambda each: each not in known, path)]
        if not region and isinstance(self._owner(name), nn.Linear):
            return self.heard.attention.keys().isdisjoint(path)
        kinds = {type(self.module.get_submodule(each)) for each in self.heard.attention}
        own = region[-1].rpartition(".")[2] if region else ""
        inside = self.module.get_submodule(region[-1]).named_modules(prefix=own) if region else ()
        return not any(
            type(each) in kinds or ATTENTION_LIKE.search(f"{at} {type(each).__name__}") for at, each in inside
        )

    def _take_bias(self, part: Part) -> None:
        if part.bias is not None:
            place = part.bias.view.data_ptr()
            for start, end, parameter in self._vectors:
                if start <= place < end:
                    self._take(parameter, again=True)

    def _split(self, name: str, parameter: nn.Parameter, roles: tuple[str, ...], layout: Layout) -> Iterator[Part]:
        path, _, own_name = name.rpartition(".")
        owner, attention = self._owner(name), path.rpartition(".")[0] if own_name == "weight" else path
        if roles == PACKED and getattr(self.module.get_submodule(attention), "is_cross_attention", False):
            roles = ("key", "value")  # GPT-2 asks with another matrix
        separate = own_name in ("q_proj_weight", "k_proj_weight", "v_proj_weight")  # torch's, with kdim or vdim
        of_torch = separate or own_name == "in_proj_weight"
        bias = None
        if of_torch or own_name == "weight":
            bias = self._take(getattr(owner, "in_proj_bias" if of_torch else "bias", None), again=separate)
        for number, (matrix, is_table) in enumerate(_as_matrices(name, parameter, owner, roles, layout)):
            width = matrix.shape[0]
            sizes = layout.sizes or (width // len(roles) // layout.groups,) * len(roles)
            if sum(sizes) * layout.groups != width:
                raise ValueError(
                    f"{name} must hold {len(roles)} projections of one size ({', '.join(roles)}): got shape "
                    f"{tuple(parameter.shape)}. Say how they share it: Layout({name!r}, sizes=…, groups=…)."
                )
            slots = PACKED if separate else roles
            for role, rows in zip(roles, _turns(sizes, layout.groups), strict=True):
                part = matrix if len(roles) == 1 else matrix.rows(rows)
                shift = None
                if bias is not None and number == 0 and layout.stacked is None:
                    column = Matrix(bias.view(-1, 1))
                    start = slots.index(role) * width
                    shift = column.rows(range(start, start + width) if separate else rows)
                where, padding = attention if role in ATTENTION else None, getattr(owner, "padding_idx", None)
                yield Part(role, name, part, shift, where, is_table=is_table, padding=padding)

    def _owner(self, name: str) -> nn.Module:
        return self._modules[name.rpartition(".")[0]]

    def _take(self, parameter: object, *, again: bool = False) -> Tensor | None:
        """The parameter's data, if it is one and no drawer has it."""
        if not isinstance(parameter, nn.Parameter) or (id(parameter) in self._done and not again):
            return None
        self._done.add(id(parameter))
        return parameter.detach()


def _is_kept(parameter: nn.Parameter, given: tuple[tuple[str, ...], Layout] | None) -> bool:
    return (given is not None and KEEP in given[0]) or not parameter.numel()


def _foreign(parameter: nn.Parameter) -> str:
    """The class of what a parameter holds where that is no plain tensor: its parts need not share its memory."""
    kind = type(parameter.data)
    return "" if kind is Tensor else kind.__name__


def names_of(module: nn.Module) -> dict[nn.Parameter, list[str]]:
    """The names of each parameter; a tied one has several.

    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    >>> model[1].weight = model[0].weight
    >>> [*names_of(model).values()]
    [['0.weight', '1.weight']]
    """
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return names


def foreign(module: nn.Module, patterns: CallerPatterns) -> dict[str, str]:
    """Weights that are no plain tensors and are not to be kept, with their classes: parameters, and quantized ones."""
    parameters = {
        each[0]: kind
        for parameter, each in names_of(module).items()
        if (kind := _foreign(parameter)) and not _is_kept(parameter, patterns.match(each))
    }
    return parameters | {
        name: kind for name, kind in _quantized(module) if KEEP not in (patterns.match([name]) or ((), None))[0]
    }


def _quantized(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Weights that are no parameters: packed by torch, or buffers of integers that are neither masks nor indices."""
    for name, each in module.named_modules():
        if isinstance(packed := getattr(each, "_packed_params", None), torch.ScriptObject):
            yield f"{name}._packed_params", type(packed).__name__
    for name, buffer in _plain_buffers(module):
        if sum(size > 1 for size in buffer.shape) < 2 or buffer.dtype == torch.bool or buffer.is_complex():
            continue
        most = buffer.double().abs().max() if buffer.dtype.itemsize == 1 or not buffer.is_floating_point() else 0
        if most > (1 if buffer.dtype.itemsize == 1 else buffer.numel()):
            yield name, str(buffer.dtype).removeprefix("torch.")


def _plain_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers whose numbers can be read."""
    for name, each in module.named_buffers():
        if type(each) is Tensor and each.layout == torch.strided and not each.is_meta and each.numel():
            yield name, each


def undefined(module: nn.Module) -> list[str]:
    """Buffers whose numbers nobody chose: not a number, or huge, and not all the same negative one, as in a mask.

    >>> model = nn.BatchNorm1d(2)
    >>> model.running_mean.fill_(torch.nan)
    tensor([nan, nan])
    >>> undefined(model)
    ['running_mean']
    """
    found = []
    for name, each in _plain_buffers(module):
        if each.is_floating_point() and each.dtype.itemsize > 1:
            wild = each[each.isnan() | (each.isfinite() & (each.abs() > 1e30))]
            if wild.numel() and (len(wild.unique()) > 1 or not wild[0] < 0):
                found.append(name)
    return found


def ancestors(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules around a parameter or module from the inside out, each with the name as seen from there.

    >>> model = nn.Sequential(nn.Linear(2, 2))
    >>> [(name, type(each).__name__) for name, each in ancestors(model, "0.weight")]
    [('weight', 'Linear'), ('0.weight', 'Sequential')]
    """
    path = name.split(".")
    chain = [*itertools.accumulate(path[:-1], nn.Module.get_submodule, initial=module)]
    for depth in range(len(path) - 1, -1, -1):
        yield ".".join(path[depth:]), chain[depth]


def _small(module: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters that may be biases."""
    for each in module.parameters():
        is_plain = not is_lazy(each) and type(each.data) is Tensor and not each.is_meta
        if is_plain and each.numel() <= 2**20:
            yield each


def is_wave(table: Tensor) -> bool:
    """Whether the rows of a table are pairs of sine and cosine, whose squares add up to half their length, exactly.

    A row for padding may be 0.

    >>> angles = torch.arange(5.0)[:, None] / 10 ** torch.arange(4.0)
    >>> is_wave(torch.cat([angles.sin(), angles.cos()], dim=1)), is_wave(torch.randn(5, 8))
    (True, False)
    """
    if table.is_meta:
        return False
    few = table[:: max(1, len(table) // 32)]  # of a large table, most are told by a few rows
    return all(map(_are_pairs, (few, table))) if few.shape != table.shape else _are_pairs(table)


def _are_pairs(table: Tensor) -> bool:
    width = table.shape[-1]
    squares = table.detach().double().square().sum(-1)
    is_pair = (squares - width / 2).abs() < 1e-3 * width
    return bool(is_pair.any() and (is_pair | (squares == 0)).all())


def listing(items: Collection[str], limit: int = 8) -> str:
    """The first of the items, and how many more there are.

    >>> listing(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return (", ".join([*items][:limit]) or "none") + more


def _beneath(name: str, other: str) -> str:
    """As many components of a name as another has.

    >>> _beneath("deep.2.att.out.weight", "deep.0.att")
    'deep.2.att'
    """
    return ".".join(name.split(".")[: other.count(".") + 1])


def _is_plain(layout: Layout) -> bool:
    return layout.sizes is None and layout.groups == 1 and layout.stacked is None and not layout.transposed


def _turns(sizes: Sequence[int], groups: int) -> Iterator[Sequence[int]]:
    """The rows of each role where all of them take turns.

    >>> list(_turns((2, 1), groups=2)), list(_turns((2, 1), groups=1))
    ([[0, 1, 3, 4], [2, 5]], [range(0, 2), range(2, 3)])
    """
    start, period = 0, sum(sizes)
    for size in sizes:
        turns = [range(group * period + start, group * period + start + size) for group in range(groups)]
        yield turns[0] if groups == 1 else [*itertools.chain(*turns)]
        start += size


def _as_matrices(
    name: str, parameter: nn.Parameter, owner: nn.Module, roles: tuple[str, ...], layout: Layout
) -> Iterator[tuple[Matrix, bool]]:
    """The parameter as ``(fan_out, fan_in)`` matrices, each with whether its rows are looked up."""
    data = parameter.detach()
    kinds = {kind.__name__ for kind in type(owner).__mro__}
    is_raw = name.rpartition(".")[2] != "weight"
    if layout.stacked is not None:
        if data.ndim != 3:
            raise ValueError(f"{name} must have three dimensions to be stacked: got shape {tuple(data.shape)}.")
        # a stack of heads holds (heads, fan_in, d_head), as y = x @ w: its output matrix (heads, d_head, fan_out)
        if layout.stacked == "experts":
            yield from ((Matrix(each.mT if layout.transposed else each), False) for each in data)
        elif roles[0] == "output":
            each = data if layout.transposed else data.transpose(1, 2)  # (heads, fan_out, d_head)
            yield Matrix(each.transpose(0, 1), 1), False
        else:
            yield Matrix(data if layout.transposed else data.transpose(1, 2), 2), False
        return
    if "Embedding" in kinds or (is_raw and roles[0] in TABLES):
        yield Matrix(data.reshape(-1, data.shape[-1]).mT), True
    elif "Conv1D" in kinds or layout.transposed:  # Hugging Face's Conv1D keeps its matrix transposed
        yield Matrix(data.mT), False
    elif "_ConvNd" in kinds:
        yield Matrix(data.flatten(1)), False
    elif data.ndim != 2:
        raise ValueError(
            f"{name} must be a matrix to have the role {' + '.join(roles)}: got shape {tuple(data.shape)}. "
            f'Say how it is stacked, Layout({name!r}, stacked="heads"), or leave it alone, roles={{"keep": {name!r}}}.'
        )
    else:
        yield Matrix(data), False
