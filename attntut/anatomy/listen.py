"""Roles without names: run a model once, and see which columns of which product become query, key and value.

A tensor ``y = x Wᵀ`` is a query if it is what the softmax's product received as query. Autograd says which of its
columns: the gradient of the captured query by ``y`` is non-zero in exactly the columns that feed it, and for one head
in those of the head. That holds through packing, interleaving, unequal groups, transposition, rotary positions,
QK-norm and gates, and no name is read.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from attntut._restore import tensors_in
from attntut.anatomy.architecture import Architecture
from attntut.anatomy.blocks import LISTS, block_of, find_blocks, is_norm, tower_of
from attntut.anatomy.columns import Columns
from attntut.anatomy.graph import Graph, Heard, Node, Product, is_leaf
from attntut.anatomy.layout import Matrix
from attntut.anatomy.roles import Roles

UNEVEN = "it does not lie evenly"


class Part(NamedTuple):
    """Rows of a parameter that play one role.

    Attributes:
        role: ``"query"``, ``"feed_forward_in"``, …
        parameter: its dotted name.
        matrix: those rows; None where their place in the parameter is not known.
        bias: the part of a bias that belongs to them, as a matrix of one column, or None.
        attention: name of the module that the attention ran in; None for other roles.
        n_heads: of query, key or value; 0 for others.
        is_table: whether rows are looked up.
        why: why the matrix is not known, if so.
        padding: the row of a table that stands for padding and stays 0.
    """

    role: str
    parameter: str
    matrix: Matrix | None
    bias: Matrix | None = None
    attention: str | None = None
    n_heads: int = 0
    is_table: bool = False
    why: str = ""
    padding: int | None = None

    @property
    def place(self) -> Any:
        """Where in memory it lies."""
        view = None if self.matrix is None else self.matrix.view
        return None if view is None else (view.storage_offset(), sorted(zip(view.shape, view.stride(), strict=True)))


@dataclass
class Anatomy:
    """What listening to one forward pass tells.

    Attributes:
        parts: the roles of each parameter that was heard, by its name.
        attention: modules that attention ran in, in the order of the forward pass, and how often it ran.
        cross: whether queries and keys come from different sequences, by module; not where both read raw inputs.
        scale: of the logits, by module, where a fused kernel said it.
        biases: parameters of two or more dimensions that are added to a projection.
        gains: parameters of two or more dimensions that something is multiplied with, entry by entry.
        traits: what is known of the architecture around each attention, by its module.
        around: whether the attention of a parameter is cross, its number of heads, and their width.
        zero_centred: vectors to which 1 is added before they multiply.
        layers: at which attention on the way of the stream a parameter stands, and of how many.
        called: names of the modules that ran.
        passes: how often the stream came through each parameter, where blocks share it.
        left: parameters that no scheme speaks of, and why.
        apart: lists of modules with attention that do not follow on each other.
        met: parameters in the graph, whatever is done with them.
        single: modules with an attention in which one query meets one key.
    """

    parts: dict[str, list[Part]] = field(default_factory=dict)
    attention: dict[str, int] = field(default_factory=dict)
    cross: dict[str, bool] = field(default_factory=dict)
    scale: dict[str, float] = field(default_factory=dict)
    biases: set[str] = field(default_factory=set)
    gains: set[str] = field(default_factory=set)
    traits: dict[str, dict[str, Any]] = field(default_factory=dict)
    called: set[str] = field(default_factory=set)
    passes: dict[str, int] = field(default_factory=dict)
    around: dict[str, tuple[bool | None, int, int]] = field(default_factory=dict)
    zero_centred: set[str] = field(default_factory=set)
    layers: dict[str, tuple[int, int]] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    apart: set[str] = field(default_factory=set)
    met: set[str] = field(default_factory=set)
    single: set[str] = field(default_factory=set)


class Ears:
    """Notes which module makes which part of the autograd graph; a context around a forward pass with gradients.

    Example:
        >>> layer, x = nn.MultiheadAttention(8, num_heads=2), torch.randn(5, 3, 8)
        >>> with Ears(layer) as ears:
        ...     output = layer(x, x, x)
        >>> [(part.role, part.n_heads, part.matrix.shape) for part in ears.hear(output).parts["in_proj_weight"]]
        [('query', 2, (8, 8)), ('key', 2, (8, 8)), ('value', 2, (8, 8))]
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.calls: list[list[Any]] = []  # name, first and last number of the graph's nodes
        self._open: list[list[Any]] = []
        self._outputs: list[torch.Tensor] = []  # the last; a model may return none of them: a dataclass, an argmax
        self._hooks = ExitStack()
        self._frozen: list[nn.Parameter] = []

    def __enter__(self) -> Ears:
        self.thaw()
        for name, each in self.module.named_modules():
            if not isinstance(each, torch.jit.ScriptModule):
                before = each.register_forward_pre_hook(lambda module, args, name=name: self.entered(name, module))
                after = each.register_forward_hook(lambda module, args, out: self.left(module, out), always_call=True)
                for hook in (before, after):
                    self._hooks.enter_context(hook)
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.close()
        self.freeze()

    def thaw(self) -> None:
        """Let frozen parameters take part in the graph."""
        for parameter in self.module.parameters():
            if is_lazy(parameter) or parameter.requires_grad:
                continue
            if parameter.is_floating_point() and not parameter.is_inference():
                parameter.requires_grad_(True)
                self._frozen.append(parameter)

    def freeze(self) -> None:
        """Make them as they were."""
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        self._frozen.clear()

    def entered(self, name: str, module: nn.Module) -> None:
        """A module begins to run."""
        if not isinstance(module, nn.Softmax | nn.Dropout):
            self._open.append([name, _now(), math.inf])
            self.calls.append(self._open[-1])

    def left(self, module: nn.Module, output: Any = None) -> None:
        """It has ended."""
        self._outputs = [each for each in tensors_in(output) if each.grad_fn is not None] or self._outputs
        if self._open and not isinstance(module, nn.Softmax | nn.Dropout):
            self._open.pop()[2] = _now()

    def hear(self, output: Any) -> Anatomy:
        """What the graph behind a model's output tells; call it before the graph is freed by a backward pass."""
        parameters = dict(self.module.named_parameters())
        kinds = siblings(self.module, parameters)
        outputs = [each for each in tensors_in(output) if each.grad_fn is not None] or self._outputs
        self._outputs = []  # as large as anything that the model makes
        graph = Graph(outputs, {id(parameter): name for name, parameter in parameters.items()})
        columns = Columns(graph, parameters, kinds)
        graph.over_tokens = columns.over_tokens()
        graph.hear_through([each for each in graph.over_tokens if graph.is_inside(each)], "it mixes tokens")
        where = {heard: self._module_of(heard.entry) for heard in graph.attentions}
        roles = Roles(graph, columns, lambda name, heard: bool(where[heard]) and name.startswith(f"{where[heard]}."))
        norms = {name for name, each in self.module.named_modules() if is_norm(each)}
        spans = [(start, end) for name, start, end in self.calls if name in norms]
        starts = [start for start, _ in spans]

        def in_norm(node: Node) -> bool:
            number = node._sequence_nr()
            last = bisect.bisect_right(starts, number) - 1
            return last >= 0 and number < spans[last][1]

        anatomy = Anatomy(called={name for name, _, _ in self.calls} if graph.order else set())
        anatomy.met = {graph.names.get(id(node.variable), "") for node in graph.order if is_leaf(node)}
        for heard in sorted(graph.attentions, key=lambda each: each.entry._sequence_nr()):
            name = where[heard]
            anatomy.attention[name] = anatomy.attention.get(name, 0) + 1
            if heard.is_one:
                anatomy.single.add(name)
            if isinstance(heard.scale, float):
                anatomy.scale[name] = heard.scale
        architecture = Architecture(graph, roles, in_norm)
        blocks = find_blocks(self.module, anatomy.attention)
        anatomy.apart = architecture.apart({heard: block_of(blocks, name).stack for heard, name in where.items()})
        blocks = find_blocks(self.module, anatomy.attention, anatomy.apart)
        roles.find_rest(blocks)
        names = where | {each: each.parameters[0] for each in roles.products}
        anatomy.passes = architecture.passes()
        anatomy.layers = architecture.layers({each: tower_of(blocks, name) for each, name in names.items()})
        for heard in graph.attentions:
            anatomy.traits.setdefault(where[heard], {}).update(architecture.traits(heard))
            if (is_cross := architecture.is_cross(heard)) is not None:
                anatomy.cross[where[heard]] = is_cross
        asking = {roles.place[each]: made["query"] for each, made in reversed(roles.makes.items()) if "query" in made}
        for product, heard in roles.place.items():
            query = asking.get(heard, [])
            for name in product.parameters if len(query) > 1 else ():
                anatomy.around.setdefault(name, (architecture.is_cross(heard), len(query), len(query[0])))
        _Writer(graph, columns, roles, where, anatomy).write()
        return anatomy

    def _module_of(self, node: Node) -> str:
        """The innermost module that was running when a node was made."""
        number = node._sequence_nr()
        around = [name for name, start, end in self.calls if start <= number < end]
        return around[-1] if around else ""


class _Writer:
    """Writes down the parts of every parameter, each with its place in memory."""

    def __init__(self, graph: Graph, columns: Columns, roles: Roles, where: dict[Heard, str], anatomy: Anatomy) -> None:
        self.graph, self.columns, self.roles, self.where, self.anatomy = graph, columns, roles, where, anatomy

    def write(self) -> None:
        """Fill the anatomy."""
        self.anatomy.biases |= self.graph.biases
        self.anatomy.left |= self.graph.mixers
        for names in self.graph.filters.values():
            self.anatomy.left |= dict.fromkeys(names, "it filters each channel by itself")
        for product in self.roles.products:
            if product in self.roles.left:
                self.anatomy.left |= dict.fromkeys(product.parameters, self.roles.left[product])
                continue
            self._tell(product)
        self.anatomy.zero_centred.update(self.roles.zero_centred())
        for name, role in self.roles.leaves():
            if role in ("gain", "bias"):
                (self.anatomy.gains if role == "gain" else self.anatomy.biases).add(name)
            elif name not in self.anatomy.biases:
                data = self.columns.parameters[name].detach()
                table = Matrix(data.reshape(-1, data.shape[-1]).mT) if data.is_contiguous() else None
                self._add(Part(role, name, table, is_table=True, why="" if table else "it is not contiguous"))

    def _tell(self, product: Product) -> None:
        heard = self.roles.place.get(product)
        where = None if heard is None else self.where[heard]
        if len(product.parameters) > 1:
            role = self.roles.role.get(product) or next(iter(self.roles.makes[product]))
            why = f"it is made of {', '.join(product.parameters)}"
            for name in product.parameters:
                self._add(Part(role, name, None, attention=where, why=why))
            return
        name, matrix, bias = product.parameters[0], self.columns.matrix(product), self._bias(product)
        if (
            self.columns.parameters[name].ndim == 1
            and min(self.columns.fan_in(product), self.columns.fan_out(product)) > 1
        ):
            role = self.roles.role.get(product) or next(iter(self.roles.makes.get(product, {})), "left")
            self._add(Part(role, name, None, attention=where, why="it is stored in one dimension"))
            return
        if product in self.roles.absorbed:
            self._add(Part("key", name, None, attention=where, why="it was absorbed into the queries"))
            return
        if product in self.roles.makes:
            used: set[int] = set()
            for role, heads in self.roles.makes[product].items():
                columns = [column for head in heads for column in head]
                if used.isdisjoint(columns):  # else one matrix plays two roles, on purpose
                    used.update(columns)
                    self._add(_part(role, name, matrix, bias, columns, where, n_heads=len(heads)))
            used |= self._made_elsewhere(product)
            if gate := sorted(self.roles.gating.get(product, set()) - used):
                used.update(gate)
                self._add(_part("gate", name, matrix, bias, gate, where))
            rest = [column for column in range(self.columns.fan_out(product)) if column not in used]
            if rest:
                goes_to = {self.roles.role.get(each) for _, each in self.graph.sinks(product.node)}
                kinds = {"feed_forward_out": "feed_forward_in", "output": "gate"}
                role = next((kinds[each] for each in kinds if each in goes_to), "latent")
                if any(each in self.roles.fused for _, each in self.graph.sinks(product.node)):
                    role = "feed_forward_in"
                self._add(_part(role, name, matrix, bias, rest, where))
            return
        role = self.roles.role[product]
        if product in self.roles.fused and matrix is not None:
            start = 0
            for part, width in self.roles.fused[product]:
                place = where if part == "output" else None
                piece = matrix.columns(range(start, start + width))
                self._add(Part(part, name, piece, None if start else bias, place, why="" if piece else UNEVEN))
                start += width
            return
        pieces = self.columns.pieces(product) if role == "feed_forward_in" else None
        if role.startswith("feed_forward") and product.channels != 1 and matrix is not None:
            data = self.columns.parameters[name].detach()
            if data.ndim == 3:  # of a stack of experts, each token uses a few: all are laid out alike
                if name in self.anatomy.parts:
                    return
                is_turned = matrix.view.stride(-1) != data.stride(-1)
                for expert in data:
                    one = Matrix(expert.mT if is_turned else expert)
                    for columns in pieces or [list(range(one.shape[0]))]:
                        self._add(_part(role, name, one, None, columns, None))
                return
        for columns in pieces or [list(range(self.columns.fan_out(product)))]:
            self._add(_part(role, name, matrix, bias, columns, where, is_table=product.is_table))

    def _made_elsewhere(self, product: Product) -> set[int]:
        """Columns that become operands in another product with the same parameter (one call for each role)."""
        others = [each for each in self.roles.makes if each.parameters == product.parameters and each is not product]
        heads = [head for each in others for heads in self.roles.makes[each].values() for head in heads]
        return {column for head in heads for column in head}

    def _add(self, part: Part) -> None:
        """Note a part; what is used several times keeps its first role (a tied embedding is used first as one)."""
        parts = self.anatomy.parts.setdefault(part.parameter, [])
        if all(part.place != each.place for each in parts):
            parts.append(part)

    def _bias(self, product: Product) -> Matrix | None:
        """What is added to a product right after it: a parameter with a number for each output."""
        added: list[Node] = []
        if product.node.name() in ("AddmmBackward0", "BaddbmmBackward0"):
            added.append(product.node.next_functions[0][0])
        elif product.channels == 1:
            added += [each for each, _ in product.node.next_functions[2:]]
        for user in self.roles.beyond_layout(product.node):
            if user.name() == "AddBackward0":  # there may be several: Transformer-XL's u and v
                added += [each for each, _ in user.next_functions]
        found, size = None, self.columns.fan_out(product)
        for names in map(self.graph.made_of, added):
            parameter = self.columns.parameters[names[0]] if len(names) == 1 else None
            if parameter is not None and parameter.numel() == size and parameter.is_contiguous():
                if parameter.ndim > 1:
                    self.anatomy.biases.add(names[0])
                found = found or Matrix(parameter.detach().view(-1, 1))
        return found


def _part(
    role: str,
    name: str,
    matrix: Matrix | None,
    bias: Matrix | None,
    columns: list[int],
    where: str | None,
    *,
    n_heads: int = 0,
    is_table: bool = False,
) -> Part:
    """The rows of a matrix that are given by columns of its product."""
    is_all = matrix is not None and columns == list(range(matrix.shape[0]))
    rows = matrix if matrix is None or is_all else matrix.rows(columns)
    shift = bias if bias is None or is_all else bias.rows(columns)
    why = "what is multiplied with is no rearrangement of it" if matrix is None else UNEVEN
    return Part(role, name, rows, shift, where, n_heads, is_table, "" if rows else why)


def siblings(module: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Names of parameters or modules to those with ``*`` for the place in a list of modules of one class.

    >>> siblings(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.ReLU()), ["1.weight", "1.bias"])
    {'1.weight': '*.weight', '1.bias': '*.bias'}
    """
    several: dict[int, Counter[type]] = {}  # of each list of modules: how many of each class

    def shown(name: str) -> Iterator[str]:
        current: Any = module
        for part in name.split("."):
            child = getattr(current, part, None)
            if isinstance(current, LISTS) and isinstance(child, nn.Module):
                if id(current) not in several:
                    several[id(current)] = Counter(map(type, current.children()))
                yield "*" if several[id(current)][type(child)] > 1 else part
            else:
                yield part
            current = child

    return {name: ".".join(shown(name)) for name in names}


def _now() -> int:
    return torch._C._autograd._get_sequence_nr()
