"""The autograd graph of one forward pass, read: which matrix multiplies what, and what becomes of the result."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from attntut.anatomy.weight import OPERANDS

Node = Any  # torch.autograd.graph.Node: what made a tensor
INSIDE = (*OPERANDS, "logits")

# Nodes that multiply: the positions of the two factors among their inputs.
PRODUCTS = {
    "MmBackward0": (0, 1),
    "BmmBackward0": (0, 1),
    "AddmmBackward0": (1, 2),
    "BaddbmmBackward0": (1, 2),
    "ConvolutionBackward0": (0, 1),
    "GroupedMmBackward0": (0, 1),
    "GeneratedBackwardFor_transformers_grouped_mm_fallback_defaultBackward": (0, 1),  # the same before torch 2.8
}
LOOKUPS = {"EmbeddingBackward0", "IndexSelectBackward0", "IndexBackward0", "GatherBackward0"}
SOFTMAX = {"SoftmaxBackward0", "SafeSoftmaxBackward0"}
FUSED = re.compile(r"ScaledDotProduct\w*Backward\d|FlexAttention\w*Backward")
# What moves entries, and changes none.
LAYOUT = re.compile(
    r"(T|Transpose|Permute|View|UnsafeView|ReshapeAlias|Reshape|Expand|Unsqueeze|Squeeze|Select|Slice|Split|"
    r"SplitWithSizes|Unbind|Chunk|Narrow|Clone|ToCopy|Alias|Movedim|AsStrided|Unfold|Contiguous)Backward\d"
)


class Edge(NamedTuple):
    """One of the outputs of a node: a tensor of the forward pass."""

    node: Node
    output: int

    @property
    def shape(self) -> torch.Size:
        if is_leaf(self.node):
            return self.node.variable.shape
        try:
            return torch.Size(map(int, self.node._input_metadata[self.output].shape))
        except (AttributeError, RuntimeError) as error:
            raise ValueError("Nested tensors hide their rows, and roles cannot be heard: give padded ones.") from error


@dataclass(eq=False)
class Product:
    """A parameter at work: a product with it, or a lookup in it.

    Attributes:
        node: of the graph.
        weight: what was multiplied with, as the product got it (perhaps transposed, sliced or copied).
        parameters: names of the parameters that it is made of.
        reads: the other factor; None where it needs no gradient (data).
        is_table: whether rows are looked up.
        weight_first: whether the parameter is the left factor.
        channels: the dimension of the result that runs over ``fan_out``.
    """

    node: Node = field(repr=False)
    weight: Edge = field(repr=False)
    parameters: tuple[str, ...]
    reads: Edge | None = field(repr=False)
    is_table: bool = False
    weight_first: bool = False
    channels: int = -1

    @property
    def summed(self) -> int:
        """The dimension of what it reads that it sums over."""
        return 1 if self.channels == 1 else -2 if self.weight_first else -1

    @property
    def result(self) -> Edge:
        return Edge(self.node, 0)


@dataclass(eq=False)
class Heard:
    """One call of attention: where its operands come from, and where its output goes.

    Attributes:
        node: that made the output (a fused kernel, or the product of weights and values).
        entry: that received the logits (a softmax, or the fused kernel itself).
        scores: product of queries and keys; None inside a fused kernel.
        query, key, value: operands; None for what needs no gradient.
        scale: of a fused kernel, where it is known.
        more: pairs of query and key of other products that the logits add up (places apart from contents).
        values: what else is mixed by the same weights (values of places, those of a later layer that has no weights of
            its own).
        is_one: whether one query meets one key, so that the logits do not tell which of them is which.
    """

    node: Node = field(repr=False)
    entry: Node = field(repr=False)
    scores: Node | None = field(repr=False)
    query: Edge | None = field(repr=False)
    key: Edge | None = field(repr=False)
    value: Edge | None = field(repr=False)
    scale: float | None = None
    more: list[tuple[Edge | None, Edge | None]] = field(default_factory=list, repr=False)
    values: list[Edge | None] = field(default_factory=list, repr=False)
    is_one: bool = False


Sink = tuple[str, Any]
"""Where a tensor goes: ("product", Product), ("query", "key", "value" or "logits", Heard), or ("end", None)."""


def is_leaf(node: Node) -> bool:
    """Whether this is a parameter, or an input that asks for a gradient."""
    return hasattr(node, "variable")


def below(node: Node, ends: Callable[[Node], Any] = is_leaf) -> Iterator[Node]:
    """A node and those that it is made of, each once, down to where ``ends`` holds, and with that."""
    stack, seen = [node], {None}
    while stack:
        each = stack.pop()
        if each not in seen:
            seen.add(each)
            yield each
            if not ends(each):
                stack += [child for child, _ in each.next_functions]


class Graph:
    """Everything that led to some tensors.

    Args:
        outputs: the tensors.
        parameters: ``id`` of each parameter to its name.
    """

    def __init__(self, outputs: Iterable[Tensor], parameters: Mapping[int, str]) -> None:
        self.names = parameters
        self.roots = {node: None for each in outputs if (node := each.grad_fn) is not None}
        self.order: list[Node] = []  # what a node needs comes before it
        self.users: dict[Node, list[tuple[Node, int]]] = {}
        self._sort()
        self.roots = {node: None for node in self.roots if node not in self.users}
        self.products: dict[Node, Product] = {}
        # convolutions of each channel by itself: no product is seen there
        self.filters: dict[Node, tuple[str, ...]] = {}
        self.biases: set[str] = set()  # of stacked matrices
        self._weights: dict[Node, tuple[str, ...] | None] = {}  # parameters that a node is made of; None: of more
        self._made: dict[Node, tuple[str, ...]] = {}  # products of two parameters, and what is made of them
        for node in self.order:
            self._classify(node)
            self._take_biases(node)
        self.attentions: list[Heard] = []
        self._scored: set[Node] = set()
        self._along: dict[Node, int] = {}  # along which dimension a softmax runs
        self.over_tokens: list[Product] = []  # that sum over tokens
        self.mixers: dict[str, str] = {}  # parameters that are heard through, and why they have no role
        self._mixing: dict[str, str] = {}  # those around one softmax, which may be none of an attention
        self.by_operand: dict[tuple[Node, int], Sink] = {}
        self._find_attentions()
        self._trace()

    def _trace(self) -> None:
        self._sources: dict[Node, frozenset[Any]] = {}
        for node in self.order:
            self._sources[node] = self._gather_sources(node)
        self._sinks: dict[Node, frozenset[Sink]] = {}
        for node in reversed(self.order):
            self._sinks[node] = self._gather_sinks(node)

    def is_inside(self, product: Product) -> bool:
        """Whether a result goes to operands or logits only."""
        sinks = self.sinks(product.node)
        return bool(sinks) and all(kind in INSIDE for kind, _ in sinks)

    def hear_through(self, products: Collection[Product], why: str) -> None:
        """Take products for steps on the way between others: they have no role, because of ``why``."""
        for product in products:
            del self.products[product.node]
            self.mixers |= dict.fromkeys(product.parameters, why)
        if products:
            self._trace()

    # ---- what is asked

    def sources(self, edge: Edge | None) -> frozenset[Any]:
        """The nearest products and attentions that a tensor is made of."""
        return frozenset() if edge is None else self._sources[edge.node]

    def sinks(self, node: Node) -> frozenset[Sink]:
        """The nearest products, attentions and ends that the output of a node goes to."""
        return self._sinks[node]

    def made_of(self, node: Node) -> tuple[str, ...]:
        """The parameters that a tensor is made of, if it is made of nothing else."""
        return (self._weights.get(node) or ()) if node is not None else ()

    def ahead(self, node: Node, ends: Callable[[Node], Any]) -> Iterator[tuple[Node, int]]:
        """What uses a tensor before products and attentions do, the nearest first, until ``ends`` holds.

        Nodes, each with the input that the tensor is of it.
        """
        queue, seen = [node], {node}
        for each in queue:
            for user, index in self.users.get(each, ()):
                if user not in seen and not self._reads(user, index):
                    seen.add(user)
                    yield user, index
                    if not ends(user):
                        queue.append(user)

    def is_read(self, node: Node) -> bool:
        """Whether a product or an attention takes a tensor as it is."""
        return any(self._reads(*each) for each in self.users.get(node, ()))

    def _reads(self, user: Node, index: int) -> bool:
        return user in self.products or (user, index) in self.by_operand

    def joins(self, node: Node) -> bool:
        """Whether two tensors of different origin meet in a node, both made by products or attentions."""
        made = [self._sources[each] for each, _ in node.next_functions if each is not None]
        return len(made) == 2 and all(made) and made[0] != made[1]

    # ---- how it is made

    def _sort(self) -> None:
        seen: set[Node] = set()
        stack = [(root, False) for root in reversed(self.roots)]
        while stack:
            node, is_complete = stack.pop()
            if is_complete:
                self.order.append(node)
                for index, (child, _) in enumerate(node.next_functions):
                    if child is not None:
                        self.users.setdefault(child, []).append((node, index))
            elif node not in seen:
                seen.add(node)
                stack.append((node, True))
                stack += [(child, False) for child, _ in reversed(node.next_functions) if child is not None]

    def _classify(self, node: Node) -> None:
        """Find out whether a node is a product with a parameter, or makes one out of parameters."""
        if is_leaf(node):
            name = self.names.get(id(node.variable))
            self._weights[node] = (name,) if name is not None else None
            return
        kind, inputs = node.name(), node.next_functions
        if kind in PRODUCTS:
            self._weights[node] = None
            factors = [inputs[position] for position in PRODUCTS[kind]]
            made_of = [self._weights.get(each) if each is not None else None for each, _ in factors]
            which = self._which(kind, factors, made_of)
            if which is not None:
                self._take(node, kind, factors, which, made_of[which] or ())
                if made_of[0] and made_of[1] and len(Edge(node, 0).shape) == 2:
                    self._made[node] = tuple(dict.fromkeys(made_of[0] + made_of[1]))
            elif kind in ("MmBackward0", "AddmmBackward0", "ConvolutionBackward0"):
                self._take_composed(node, kind, factors)
            return
        below = [self._made.get(each) or self._weights.get(each) for each, _ in inputs if each is not None]
        if below and all(below) and any(each in self._made for each, _ in inputs):
            self._made[node] = tuple(dict.fromkeys(name for names in below if names for name in names))
        known = [self._weights.get(each) for each, _ in inputs if each is not None]
        is_lookup = kind in LOOKUPS and bool(inputs) and inputs[0][0] is not None and bool(known[0])
        if is_lookup and (kind == "EmbeddingBackward0" or len(Edge(*inputs[0]).shape) == 2):  # not one of a stack
            self._weights[node] = None
            self.products[node] = Product(node, Edge(*inputs[0]), known[0] or (), None, is_table=True)
            return
        self._weights[node] = None
        if known and all(known) and kind[-1].isdigit() and not self._adds_data(node):
            self._weights[node] = tuple(dict.fromkeys(name for names in known if names for name in names))

    def _take_composed(self, node: Node, kind: str, factors: list[Any]) -> None:
        """A product with a matrix that is computed from several, or from rows that are looked up."""
        which = 1 if factors[1][0] is not None else 0
        weight = factors[which][0]
        names, below = self._made.get(weight), weight
        while names is None and below is not None and not is_leaf(below) and LAYOUT.fullmatch(below.name()):
            below = below.next_functions[0][0]
            taken = self.products.get(below)  # rows of a matrix, taken by number
            is_picked = taken is not None and taken.is_table and below.name() != "EmbeddingBackward0"
            if taken is not None and is_picked and len(taken.result.shape) == 2:
                names = self._weights[below] = self.products.pop(below).parameters
        if not names:
            return
        for each in [*self._made]:  # the products that made it are no products with data
            if each in self.products and set(self.products[each].parameters) <= set(names):
                del self.products[each]
        self._take(node, kind, factors, which, names)

    def _take_biases(self, node: Node) -> None:
        """Rows of a parameter that are added to a product with a stack of as many matrices: the biases of these."""
        if not node.name().startswith(("Add", "Baddbmm", "torch::autograd::CopySlices")):
            return
        ends = [node, *(self.origin(each) for each, _ in node.next_functions if each is not None)]
        for product in [self.products[each] for each in ends if each in self.products]:
            shapes = [each.variable.shape for each in below(product.weight.node) if is_leaf(each)]
            stacks = [shape for shape in shapes if len(shape) == 3 and product.channels != 1]
            for end in ends:
                table = self.products.get(end)
                leaf = end if table is None else self.origin(table.weight.node)
                if is_leaf(leaf) and any(leaf.variable.shape in (each[:2], each[::2]) for each in stacks):
                    self.biases.update(self.made_of(leaf))
                    if table is not None:
                        del self.products[end]

    def _take(self, node: Node, kind: str, factors: list[Any], which: int, names: tuple[str, ...]) -> None:
        """Note a product of data with a parameter."""
        if kind == "ConvolutionBackward0" and node._saved_groups == Edge(*factors[which]).shape[0] > 1:
            self.filters[node] = names
            return
        data = factors[1 - which]
        channels = 1 if kind == "ConvolutionBackward0" else -1 if which else -2
        reads = None if data[0] is None else Edge(*data)
        weight = Edge(*factors[which])
        self.products[node] = Product(node, weight, names, reads, weight_first=not which, channels=channels)

    def _adds_data(self, node: Node) -> bool:
        """Whether data went in: the result is larger than the parameters, though nothing was expanded."""
        if LAYOUT.fullmatch(node.name()) or all(each is not None for each, _ in node.next_functions):
            return False
        largest = max(Edge(each, output).shape.numel() for each, output in node.next_functions if each is not None)
        return Edge(node, 0).shape.numel() > largest

    def _which(self, kind: str, factors: list[Any], made_of: list[tuple[str, ...] | None]) -> int | None:
        """Which of two factors is the parameter; None if neither is."""
        if kind == "ConvolutionBackward0" or "grouped" in kind.lower():
            return 1 if made_of[1] else None
        if made_of[0] and made_of[1]:
            moved = [is_leaf(self.origin(each)) for each, _ in factors]
            return 0 if moved[0] and not moved[1] else 1
        return next((index for index in (1, 0) if made_of[index]), None)

    def _find_attentions(self) -> None:
        for node in self.order:
            kind = node.name()
            if FUSED.match(kind):
                edges = [None if each is None else Edge(each, output) for each, output in node.next_functions]
                if len(edges) >= 3:
                    query, key, value = edges[:3]
                    if self._asks_the_stream(query, key, value):
                        continue
                    scale = getattr(node, "_saved_scale", None)
                    heard = Heard(node, node, None, query, key, value, scale=scale)
                    self.attentions.append(heard)
                    for index in range(len(edges)):
                        self.by_operand[node, index] = (OPERANDS[index] if index < 3 else "logits", heard)
            elif kind in SOFTMAX:
                self._written_out(node, node._saved_dim)
            elif (by_parts := _softmax_by_parts(node)) is not None:
                self._written_out(*by_parts)

    def _written_out(self, softmax: Node, dim: int) -> None:
        """An attention of separate operations around a softmax, if this is one."""
        self._along[softmax] = dim - 2**64 if dim >= 2**63 else dim  # a negative one is saved as an unsigned number
        self._mixing.clear()
        mixes = self._forward_to_products(softmax)
        every = self._back_to_products(softmax, [each for mix in mixes if (each := _edge(*mix)) is not None])
        if not mixes:
            return
        (node, value), *later = mixes
        if not every:
            for product in [self.products[each] for each in self._behind(softmax)]:
                if not product.is_table:
                    self._asks_the_stream(product.weight, product.reads, _edge(node, value))
            return
        scores, *others = every
        left, right = (_edge(scores, position) for position in PRODUCTS[scores.name()])
        dim = self._key_dim(softmax, node, value)
        query, key = (left, right) if self._rows_are_queries(softmax, scores, dim) else (right, left)
        if self._asks_the_stream(query, key, _edge(node, value)):
            return
        self.mixers |= self._mixing
        self._scored.add(scores)
        logits = Edge(softmax, 0).shape
        heard = Heard(node, softmax, scores, query, key, _edge(node, value), is_one=set(logits[-2:]) == {1})
        self.attentions.append(heard)
        swapped = query is right and left is not right
        for position, role in zip(
            PRODUCTS[scores.name()], ("key", "query") if swapped else ("query", "key"), strict=True
        ):
            self.by_operand.setdefault((scores, position), (role, heard))
        for other in others:
            self._scored.add(other)
            ways = PRODUCTS[other.name()][:: 1 if self._rows_are_queries(softmax, other, dim) else -1]
            heard.more.append((_edge(other, ways[0]), _edge(other, ways[1])))
            for position, role in zip(ways, ("query", "key"), strict=True):
                self.by_operand.setdefault((other, position), (role, heard))
        self.by_operand[softmax, 0] = ("logits", heard)
        for mix, operand in mixes:
            for position in _factors(mix):
                self.by_operand[mix, position] = "value" if position == operand else "logits", heard
        heard.values += [_edge(*each) for each in later]

    def _back_to_products(self, softmax: Node, values: list[Edge]) -> list[Node]:
        """The products of queries and keys that the logits add up: one, or two where places have one of their own."""

        def ends(node: Node) -> bool:
            if node in self.products:
                return not self._mixes_heads(node, softmax)
            is_attention = node.name() in SOFTMAX or FUSED.match(node.name())
            return _is_of_data(node) or bool(is_attention and node is not softmax)

        found = [node for node in below(softmax, ends) if node not in self.products and _is_of_data(node)]
        both = [node for node in found if all(node.next_functions[i][0] is not None for i in PRODUCTS[node.name()])]
        both = [node for node in both if node not in self._scored] or both  # logits of an earlier layer may be added
        if values and len(both) > 1:
            reads = {self._read_behind(value.node) for value in values} - {frozenset(["table"])}
            pairs = {
                each: [self._read_behind(each.next_functions[i][0]) for i in PRODUCTS[each.name()]] for each in both
            }
            alike = {each: sum(read in reads for read in pair) for each, pair in pairs.items()}
            both = [  # keys read what values read, places do not
                each
                for each, pair in pairs.items()
                if alike[each] == max(alike.values())
                or (alike[each] and all(read in reads or not read <= {"table", "data"} for read in pair))
            ]
        return sorted(both or found[:1], key=lambda node: node._sequence_nr())

    def _read_behind(self, node: Node) -> frozenset[Node | str]:
        """What the nearest products behind a tensor read: nodes, or ``"table"``, or ``"data"``."""
        products = [self.products[each] for each in self._behind(node)]
        return frozenset(
            "table" if each.is_table else "data" if each.reads is None else self.origin(each.reads.node)
            for each in products
        )

    def _behind(self, node: Node, or_at: Node = None) -> set[Node]:
        """The nearest products behind a tensor, and a certain node if that is met before one."""

        def ends(each: Node) -> bool:
            return each in self.products or (or_at is not None and each is or_at)

        return {each for each in below(node, ends) if ends(each)}

    def _asks_the_stream(self, query: Edge | None, key: Edge | None, value: Edge | None) -> bool:
        """Whether parameters alone choose among what several layers wrote: no projection is in there."""
        if not (query and key and value and (names := self.made_of(query.node))):
            return False
        made = self._behind(key.node)
        if len(made) < 2 or made != self._behind(value.node):
            return False
        self.mixers |= dict.fromkeys(names, "it mixes tokens or layers")
        return True

    def origin(self, node: Node) -> Node:
        """What made a tensor, before it was moved about."""
        while LAYOUT.fullmatch(node.name()) and node.next_functions[0][0] is not None:
            node = node.next_functions[0][0]
        return node

    def _forward_to_products(self, softmax: Node) -> list[tuple[Node, int]]:
        """The products of the weights with values, and which of their inputs the values are; tables come last."""
        seen, stack, found = {softmax}, [softmax], list[tuple[Node, int]]()
        while stack:
            for user, index in self.users.get(stack.pop(), ()):
                if user in seen or user.name() in SOFTMAX:
                    continue
                seen.add(user)
                if user in self.products:
                    if self._mixes_heads(user, softmax):
                        stack.append(user)
                    continue
                is_mix = _is_of_data(user) or self._mixes_one(user, index, softmax)
                if is_mix and not self._is_map(user.next_functions[_other(user, index)][0]):
                    found.append((user, _other(user, index)))
                elif len(seen) < 256:
                    stack.append(user)
        found.sort(key=lambda each: each[0]._sequence_nr())
        made = {mix: self._behind(mix.next_functions[value][0], or_at=softmax) for mix, value in found}
        found[1:] = [(mix, value) for mix, value in found[1:] if made[mix] and softmax not in made[mix]]
        tables = {mix for mix in made if all(getattr(self.products.get(each), "is_table", False) for each in made[mix])}
        return sorted(found, key=lambda each: each[0] in tables)

    def _mixes_one(self, node: Node, index: int, softmax: Node) -> bool:
        """Whether the weight of a single key multiplies its value: ``einsum`` makes no sum over one."""
        if node.name() != "MulBackward0" or Edge(softmax, 0).shape[self._along[softmax]] != 1:
            return False
        value, is_gate = _edge(node, 1 - index), Edge(*node.next_functions[index]).shape == Edge(node, 0).shape
        return value is not None and not is_gate and bool(self._behind(value.node))

    def _is_map(self, node: Node | None) -> bool:
        """Whether a tensor is made of attention weights alone: maps are multiplied there (Nyström's way)."""

        def ends(each: Node) -> bool:
            return each.name() in SOFTMAX or each in self.products or is_leaf(each)

        made = [] if node is None else [each for each in below(node, ends) if ends(each)]
        return bool(made) and all(each.name() in SOFTMAX for each in made)

    def _mixes_heads(self, node: Node, softmax: Node) -> bool:
        """Whether a product adds up the maps of different heads (talking heads), before the softmax or after."""
        logits, weight = Edge(*softmax.next_functions[0]).shape, [n for n in self.products[node].weight.shape if n > 1]
        if len(logits) < 4 or weight != [logits[-3]] * 2:
            return False
        self._mixing |= dict.fromkeys(self.products[node].parameters, "it mixes heads")
        return True

    def _key_dim(self, softmax: Node, mix: Node, value: int) -> int:
        """Which dimension of the logits runs over keys: the one that the mix sums over, even if queries compete."""
        dim, shape = self._along[softmax], Edge(softmax, 0).shape
        weights = _edge(mix, _other(mix, value))
        if weights is None or len(shape) < 2 or mix.name() not in PRODUCTS:
            return dim
        gradient = torch.zeros(weights.shape)
        row = gradient.movedim(-1 if value == _factors(mix)[1] else -2, -1)[(-1,) * (gradient.ndim - 1)]
        row += torch.arange(1.0, len(row) + 1)  # all alike would add up to what is constant
        try:
            (touched,) = gradients([weights], [Edge(softmax, 0)], [gradient])
        except RuntimeError:
            return dim
        where = torch.zeros(len(shape), 0) if touched is None else (touched != 0).nonzero().T
        varies = [each - len(shape) for each, at in enumerate(where) if len(at.unique()) > 1]
        return varies[0] if len(varies) == 1 else dim

    def _rows_are_queries(self, softmax: Node, scores: Node, dim: int) -> bool:
        """Whether the left factor of the scores holds the queries: what one query sees then stands in one row."""
        logits = Edge(*softmax.next_functions[0])
        like = torch.zeros(logits.shape).movedim(dim, -1)
        n_keys, n_rows = like.shape[-1], like[..., 0].numel()
        weights = torch.arange(1.0, n_keys + 1)  # all alike would hide it where a maximum is subtracted
        for row in range(n_rows - 1, -1, -max(1, n_rows // 16)):  # one that sees a single key does not tell
            only = torch.zeros(n_rows, n_keys)
            only[row] = weights
            gradient = only.view(like.shape).movedim(-1, dim)
            try:
                (touched,) = gradients([logits], [Edge(scores, 0)], [gradient])
            except RuntimeError:
                return True
            if touched is not None:
                rows, columns = ((touched != 0).any(each).sum().item() for each in (-1, -2))
                if rows != columns:
                    return rows < columns
        return Edge(scores, 0).shape[-1] == n_keys or Edge(scores, 0).shape[-2] != n_keys

    def _gather_sources(self, node: Node) -> frozenset[Any]:
        """What counts as the source of this node's output."""
        if node in self.products:
            return frozenset([self.products[node]])
        roles = dict(self.by_operand[node, i] for i in range(len(node.next_functions)) if (node, i) in self.by_operand)
        if "value" in roles:
            return frozenset([roles["value"]])
        return frozenset().union(*(self._sources[each] for each, _ in node.next_functions if each is not None))

    def _gather_sinks(self, node: Node) -> frozenset[Sink]:
        found: set[Sink] = {("end", None)} if node in self.roots else set()
        for user, index in self.users.get(node, ()):
            if (user, index) in self.by_operand:
                found.add(self.by_operand[user, index])
            elif user in self.products:
                product = self.products[user]
                if product.reads is not None and node is product.reads.node:
                    found.add(("product", product))
            else:
                found |= self._sinks[user]
        return frozenset(found)


def gradients(
    outputs: list[Edge], inputs: list[Edge], weights: list[Tensor], silent: Iterable[Any] = ()
) -> tuple[Tensor | None, ...]:
    """Gradients between tensors of the graph, which stays usable; None where there is no path.

    Args:
        outputs, inputs: from where to where.
        weights: the gradient at each of ``outputs``.
        silent: products and attentions that nothing shall come through.
    """
    like = [_metadata(edge) for edge in outputs]
    given = [each.to(dtype=dtype, device=device) for each, (dtype, device) in zip(weights, like, strict=True)]
    with ExitStack() as hooks:
        for each in silent:
            hooks.enter_context(each.node.register_prehook(_silence))
        return torch.autograd.grad(
            [_gradient_edge(edge) for edge in outputs],  # type: ignore[arg-type]
            [_gradient_edge(edge) for edge in inputs],  # type: ignore[arg-type]
            grad_outputs=given,
            allow_unused=True,
            retain_graph=True,
        )


def _is_of_data(node: Node) -> bool:
    """Whether a node multiplies matrices; of those that hold no parameter, these are queries with keys, or values."""
    return node.name() in PRODUCTS and "Convolution" not in node.name()


def _silence(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return tuple(None if each is None else torch.zeros_like(each) for each in gradients)


def _gradient_edge(edge: Edge) -> GradientEdge | Tensor:
    return edge.node.variable if is_leaf(edge.node) else GradientEdge(edge.node, edge.output)


def _metadata(edge: Edge) -> tuple[torch.dtype, torch.device]:
    if is_leaf(edge.node):
        return edge.node.variable.dtype, edge.node.variable.device
    metadata = edge.node._input_metadata[edge.output]
    return metadata.dtype, metadata.device


def _factors(node: Node) -> tuple[int, int]:
    """The positions of the two factors among the inputs of a product, or of a multiplication of entries."""
    return PRODUCTS.get(node.name(), (0, 1))


def _other(node: Node, index: int) -> int:
    """The position of the other factor."""
    first, second = _factors(node)
    return second if index == first else first


def _edge(node: Node, index: int) -> Edge | None:
    child, output = node.next_functions[index]
    return None if child is None else Edge(child, output)


def _softmax_by_parts(node: Node) -> tuple[Node, int] | None:
    """What the logits enter of a softmax that ends in this node, written with exp and a sum, and its dimension."""
    if node.name() not in ("ExpBackward0", "DivBackward0"):
        return None
    exp = node if node.name() == "ExpBackward0" else node.next_functions[0][0]
    if exp is None or exp.name() != "ExpBackward0":
        return None
    before = exp.next_functions[0][0]
    is_shift = before.name().startswith(("LogSoftmax", "Sub")) and before.next_functions[0][0] is not None
    with suppress(RuntimeError, TypeError):  # something was changed in place, or not saved
        weights = node._saved_result if node is exp else node._saved_self / node._saved_other
        for dim in (-1, -2) if weights.ndim > 1 else ():
            if weights.shape[dim] > 1 and (weights.sum(dim) - 1).abs().max() < 1e-2:
                return (before if is_shift else exp), dim
    return None
