"""Roles without names: run a model once, and see which columns of which product become query, key and value.

A tensor ``y = x Wᵀ`` is a query if it is what the softmax's product received as query. Autograd says which of its
columns: the gradient of the captured query by ``y`` is non-zero in exactly the columns that feed it, and for one head
in those of the head. That holds through packing, interleaving, unequal groups, transposition, rotary positions,
QK-norm and gates, and no name is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attntut.anatomy.blocks import block_of, find_blocks
from attntut.anatomy.graph import LAYOUT, Edge, Graph, Heard, Node, Product, gradients, is_leaf
from attntut.anatomy.layout import Matrix, find_matrix

OPERANDS = ("query", "key", "value")
NORMS = {"NativeLayerNormBackward0", "FusedRmsNormBackward0", "NativeGroupNormBackward0", "RsqrtBackward0",
         "NativeBatchNormBackward0", "LinalgVectorNormBackward0", "NormBackward0"}


class Part(NamedTuple):
    """Rows of a parameter that play one role.

    Attributes:
        role: a role.
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


@dataclass
class Anatomy:
    """What listening to one forward pass tells.

    Attributes:
        parts: the roles of each parameter that was heard, by its name.
        attention: modules that attention ran in, in the order of the forward pass, and how often it ran.
        times: how often each parameter was multiplied with.
        cross: modules in which queries and keys come from different sequences.
        scale: of the logits, by module, where a fused kernel said it.
        biases: parameters of two or more dimensions that are added to a projection.
        gains: parameters of two or more dimensions that something is multiplied with, entry by entry.
        traits: what is known of the architecture around each attention, by its module.
        passes: how often the stream came through each parameter, where blocks share it.
    """

    parts: dict[str, list[Part]] = field(default_factory=dict)
    attention: dict[str, int] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)
    cross: set[str] = field(default_factory=set)
    scale: dict[str, float] = field(default_factory=dict)
    biases: set[str] = field(default_factory=set)
    gains: set[str] = field(default_factory=set)
    traits: dict[str, dict[str, Any]] = field(default_factory=dict)
    passes: dict[str, int] = field(default_factory=dict)


class Ears:
    """Notes which module makes which part of the autograd graph; a context around a forward pass with gradients.

    Args:
        module: the model.

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
        self._handles: list[Any] = []
        self._frozen: list[nn.Parameter] = []

    def __enter__(self) -> Ears:
        self.thaw()
        for name, each in self.module.named_modules():
            if not isinstance(each, torch.jit.ScriptModule):
                self._handles += [
                    each.register_forward_pre_hook(lambda module, args, name=name: self.entered(name, module)),
                    each.register_forward_hook(lambda module, args, output: self.left(module), always_call=True),
                ]
        return self

    def __exit__(self, *error: Any) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.freeze()

    def thaw(self) -> None:
        """Let frozen parameters take part in the graph."""
        for parameter in self.module.parameters():
            if not parameter.requires_grad and parameter.is_floating_point() and not parameter.is_inference():
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

    def left(self, module: nn.Module) -> None:
        """It has ended."""
        if self._open and not isinstance(module, nn.Softmax | nn.Dropout):
            self._open.pop()[2] = _now()

    @property
    def norms(self) -> list[tuple[int, float]]:
        """The calls of modules that normalize."""
        names = {name for name, each in self.module.named_modules() if "norm" in type(each).__name__.lower()}
        return [(start, end) for name, start, end in self.calls if name in names]

    def hear(self, output: Any) -> Anatomy:
        """What the graph behind an output tells; call it before the graph is freed by a backward pass.

        Args:
            output: what the model returned.
        """
        names = {id(parameter): name for name, parameter in self.module.named_parameters()}
        graph = Graph(tensors_in(output), names)
        return _Reader(self, graph).anatomy

    def module_of(self, node: Node) -> str:
        """The innermost module that was running when a node was made."""
        number = node._sequence_nr()
        around = [call for call in self.calls if call[1] <= number < call[2]]
        return max(around, key=lambda call: (call[1], -call[2]), default=[""])[0]


class _Reader:
    """Reads the roles off a graph."""

    def __init__(self, ears: Ears, graph: Graph) -> None:
        self.ears, self.graph = ears, graph
        self.parameters = dict(ears.module.named_parameters())
        self.anatomy = Anatomy()
        self.columns: dict[Product, dict[str, list[int]]] = {}  # of each product: role to columns, by head
        self.heads: dict[tuple[Product, str], int] = {}
        self.place: dict[Product, str] = {}
        self.role: dict[Product, str] = {}
        self._where: dict[Heard, str] = {}
        self._cache: dict[Any, Any] = {}
        self.leaves: dict[str, str] = {}
        self.block: dict[Product, str] = {}
        for product in graph.products.values():
            for name in product.parameters:
                self.anatomy.times[name] = self.anatomy.times.get(name, 0) + 1
        for heard in sorted(graph.attentions, key=lambda each: each.entry._sequence_nr()):
            self._attention(heard)
        self._latents()
        self._adapters()
        self._outputs()
        self._rest()
        self._leaves()
        self._passes()
        self._architecture()
        self._write()

    # ---- query, key and value

    def _attention(self, heard: Heard) -> None:
        where = self._where[heard] = self.ears.module_of(heard.entry)
        self.anatomy.attention[where] = self.anatomy.attention.get(where, 0) + 1
        if isinstance(heard.scale, float):
            self.anatomy.scale[where] = heard.scale
        for role in OPERANDS:
            edge = getattr(heard, role)
            products = [
                each
                for each in self.graph.sources(edge)
                if isinstance(each, Product) and not each.is_table and self._is_projection(each, role)
            ]
            for product in products:
                if role in self.columns.get(product, ()):
                    continue
                by_head = self._columns(edge, product, role)
                if by_head:
                    self.columns.setdefault(product, {})[role] = [column for head in by_head for column in head]
                    self.heads[product, role] = len(by_head)
                    self.place.setdefault(product, where)

    def _is_projection(self, product: Product, role: str) -> bool:
        """Whether a product makes something for attention alone: what goes elsewhere too is the stream."""
        sinks = self.graph.sinks(product.node)
        direct = [sink for sink in sinks if sink[0] in (*OPERANDS, "logits")]
        other = [sink for sink in sinks if sink not in direct and sink[0] != "end"]
        return bool(direct) and all(self._belongs(each) for _, each in other)

    def _belongs(self, product: Product) -> bool:
        """Whether a product is part of attention: it reads heads, or makes queries, keys, values or logits."""
        if any(isinstance(source, Heard) for source in self.graph.sources(product.reads)):
            return all(not isinstance(each, Product) or self._is_gate(each, product) for each in self.graph.sources(product.reads))
        sinks = self.graph.sinks(product.node)
        return bool(sinks) and all(kind in (*OPERANDS, "logits") for kind, _ in sinks)

    def _is_gate(self, product: Product, output: Product) -> bool:
        others = {each for kind, each in self.graph.sinks(product.node) if kind == "product"}
        return others <= {output}

    def _columns(self, edge: Edge, product: Product, role: str) -> list[list[int]]:
        """The columns of a product that feed an operand, a list a head."""
        key = (role, edge.shape, product.parameters and self._sibling(product.parameters[0]), product.result.shape)
        if key not in self._cache:
            try:
                self._cache[key] = self._find_columns(edge, product)
            except RuntimeError:  # something needed was changed in place, as only inference may
                self._cache[key] = None
        found = self._cache[key]
        if found is None:
            size = self._fan_out(product)
            return [list(range(size))]
        return found

    def _find_columns(self, edge: Edge, product: Product) -> list[list[int]]:
        every = self._touched(edge, product, None)
        if len(edge.shape) < 3 or not every:
            return [every] if every else []
        leading = edge.shape[-3] if len(edge.shape) > 3 else edge.shape[0]
        first = self._touched(edge, product, 0)
        if not first or len(every) % len(first) or len(first) == len(every):
            return [every]
        count = len(every) // len(first)
        heads = [first]
        done = set(first)
        for index in self._steps(leading, count):
            columns = self._touched(edge, product, index)
            if columns and done.isdisjoint(columns):
                shift = columns[0] - first[0]
                guess = [[column + head * shift for column in first] for head in range(count)]
                if sorted(column for head in guess for column in head) == every:
                    return guess
                heads.append(columns)
                done.update(columns)
        if len(heads) == count and len(done) == len(every):
            return heads
        return [every]

    @staticmethod
    def _steps(leading: int, count: int) -> Iterator[int]:
        """Leading indices that may belong to another head than 0: heads may vary fastest, or slowest."""
        yield from dict.fromkeys([1, leading // count, *range(2, leading)])

    def _touched(self, edge: Edge, product: Product, index: int | None) -> list[int]:
        shape = edge.shape
        weights = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        if index is not None:
            mask = torch.zeros(shape)
            (mask[:, index] if len(shape) > 3 else mask[index]).fill_(1.0)
            weights = weights * mask
        others = [each for each in self.graph.sources(edge) if product in self.graph.sources(getattr(each, "reads", None))]
        handles = [each.node.register_prehook(_silenced) for each in others]  # what comes through them is not its own
        try:
            (gradient,) = gradients([edge], [product.result], [weights])
        finally:
            for handle in handles:
                handle.remove()
        if gradient is None:
            return []
        return self._marks(gradient, product).nonzero()[:, 0].tolist()

    def _marks(self, gradient: Tensor, product: Product) -> Tensor:
        """Which outputs of a product a gradient touches; the outputs of a batch of matrices stand behind each other."""
        touched = gradient != 0
        if product.channels == 1:
            return touched.transpose(0, 1).flatten(1).any(1)
        if self._batch(product) > 1:
            return touched.any(-2 if product.channels == -1 else -1).flatten()
        return touched.movedim(product.channels, 0).flatten(1).any(1)

    def _batch(self, product: Product) -> int:
        """How many different matrices a product holds."""
        shape = product.weight.shape
        if len(shape) != 3 or product.channels == 1:
            return 1
        numel = sum(self.parameters[name].numel() for name in product.parameters)
        return shape[0] if shape[0] > 1 and numel >= math.prod(shape) else 1

    def _fan_out(self, product: Product) -> int:
        return product.result.shape[product.channels] * self._batch(product)

    # ---- what stands around them

    def _latents(self) -> None:
        """Narrow matrices that query, key or value are made from (multi-head latent attention)."""
        for product in self.graph.products.values():
            if product in self.columns or product.is_table:
                continue
            feeds = [each for kind, each in self.graph.sinks(product.node) if kind == "product"]
            if not feeds or len(feeds) < len(self.graph.sinks(product.node)):
                continue
            made = {role for each in feeds for role in self.columns.get(each, ())}
            alone = all(self.graph.sources(each.reads) == {product} for each in feeds)
            places = {self.place.get(each) for each in feeds}
            if alone and len(places) == 1 and made and made != set(OPERANDS) and all(each in self.columns for each in feeds):
                where = places.pop() or ""
                if self.ears.module_of(product.node).startswith(where.rpartition(".")[0]):
                    self.role[product], self.place[product] = "latent", where

    def _adapters(self) -> None:
        """Pairs of narrow matrices whose product is added to a larger one."""
        for second in self.graph.products.values():
            sources = self.graph.sources(second.reads)
            if second.is_table or len(sources) != 1 or not isinstance(first := next(iter(sources)), Product):
                continue
            rank = self._fan_out(first)
            if first.is_table or self.graph.sinks(first.node) != {("product", second)} or first.reads is None:
                continue
            wide = [
                each
                for each in self.graph.products.values()
                if each is not second
                and each is not first
                and self.graph.sources(each.reads) == self.graph.sources(first.reads)
                and self._fan_out(each) == self._fan_out(second)
                and self.graph.sinks(each.node) == self.graph.sinks(second.node)
                and rank < min(self._fan_out(second), first.reads.shape[-1])
            ]
            if wide and self._are_added(second, wide[0]):
                self.columns.pop(second, None)
                self.role[first], self.role[second] = "adapter_in", "adapter_out"
                self.place[first] = self.place[second] = self.place.get(wide[0], "")

    def _are_added(self, a: Product, b: Product) -> bool:
        """Whether two results meet in one sum, with nothing but scaling and reshaping before it."""
        ways = []
        for product in (a, b):
            seen, stack = [], [product.node]
            while stack and len(seen) < 12:
                node = stack.pop(0)
                for user, _ in self.graph.users.get(node, ()):
                    if user.name().startswith("Add") and user not in self.graph.products:
                        seen.append(user)
                    elif user.name().startswith(("View", "UnsafeView", "Mul", "NativeDropout", "ToCopy", "Reshape", "Transpose")):
                        seen.append(user)
                        stack.append(user)
            ways.append({node for node in seen if node.name().startswith("Add")})
        return bool(ways[0] & ways[1])

    def _outputs(self) -> None:
        """The first product that the heads' mix enters, and gates on the way."""
        for product in self.graph.products.values():
            if product in self.role or product in self.columns or product.is_table:
                continue
            sources = self.graph.sources(product.reads)
            heard = [each for each in sources if isinstance(each, Heard)]
            if not heard or not all(isinstance(each, Heard) or self._is_gate(each, product) or each in self.columns for each in sources):
                continue
            self.role[product], self.place[product] = "output", self._where[heard[0]]
            for gate in sources - set(heard):
                if gate not in self.columns and gate not in self.role:
                    self.role[gate], self.place[gate] = "gate", self._where[heard[0]]

    # ---- everything else

    def _rest(self) -> None:
        """Feed-forward matrices, embeddings and readouts."""
        before, after = self._reach()
        blocks = find_blocks(self.ears.module, self.anatomy.attention)
        self.block = {each: block_of(blocks, each.parameters[0]).name for each in self.graph.products.values()}
        rest = [each for each in self.graph.products.values() if each not in self.role and each not in self.columns]
        inner = {each for each in rest if not each.is_table and self._is_inner(each)}
        for product in rest:
            kinds = {kind for kind, _ in self.graph.sinks(product.node)}
            if product.is_table:
                self.role[product] = "position" if self._is_position(product, kinds) else "embedding"
            elif kinds and kinds <= {"logits"}:
                self.role[product] = "position"
            elif self.block[product] or (not blocks and product in after):
                self.role[product] = self._in_branch(product, inner, not blocks and product not in before)
            else:
                self.role[product] = "embedding" if product in before or product not in after else "readout"

    def _is_inner(self, product: Product) -> bool:
        """Whether a product stays inside a branch: all that it goes to are products of its block that read no stream."""
        goes_to = [each for kind, each in self.graph.sinks(product.node) if kind == "product"]
        return (
            bool(goes_to)
            and len(goes_to) == len(self.graph.sinks(product.node))
            and all(self._reads_inside(each, self.block[product]) for each in goes_to)
        )

    def _reads_inside(self, product: Product, block: str) -> bool:
        """Whether all that a product reads was made for products of one block."""
        if product in self.columns or self.role.get(product) in ("output", "latent") or self.block[product] != block:
            return False
        return all(
            isinstance(source, Product)
            and not source.is_table
            and self.block[source] == block
            and all(kind == "product" and self.block[each] == block for kind, each in self.graph.sinks(source.node))
            for source in self.graph.sources(product.reads)
        )

    def _in_branch(self, product: Product, inner: set[Product], may_be_last: bool) -> str:
        if product in inner:
            return "feed_forward_in"
        reads = self.graph.sources(product.reads)
        sinks = self.graph.sinks(product.node)
        if reads & inner:
            return "feed_forward_out"
        if may_be_last and all(kind == "end" for kind, _ in sinks):
            return "readout"
        for kind, each in sinks:
            if kind == "product" and each.reads and each.reads.shape[-1:] == product.result.shape[-1:]:
                # it adds to the stream, or makes it anew
                return "feed_forward_out" if reads & self.graph.sources(each.reads) else "embedding"
        return "gate"

    def _reach(self) -> tuple[set[Product], set[Product]]:
        """Products that attention comes after, and products that come after attention."""
        before, after = set(), set()
        for product in sorted(self.graph.products.values(), key=_number):
            sources = self.graph.sources(product.reads)
            if any(isinstance(each, Heard) or each in after for each in sources):
                after.add(product)
        for product in sorted(self.graph.products.values(), key=lambda each: -each.node._sequence_nr()):
            if any(kind in (*OPERANDS, "logits") or each in before for kind, each in self.graph.sinks(product.node)):
                before.add(product)
        return before, after

    def _is_position(self, product: Product, kinds: set[str]) -> bool:
        """Whether a table is looked up by place: for the logits, or with the same rising numbers in every sequence."""
        if kinds and kinds <= {"logits"}:
            return True
        indices = getattr(product.node, "_saved_indices", None)
        if not isinstance(indices, Tensor) or indices.numel() < 2 or indices.ndim < 1:
            return False
        rows = indices.reshape(-1, indices.shape[-1])
        return bool((rows == rows[0]).all() and (rows[0].diff() == 1).all())

    def _leaves(self) -> None:
        """Parameters that are added to tokens, or stand among them, and multiply nothing."""
        heard = {name for product in self.graph.products.values() for name in product.parameters}
        for node in self.graph.order:
            name = self.graph.names.get(id(node.variable)) if is_leaf(node) else None
            if name is None or name in heard or (parameter := self.parameters[name]).ndim < 2:
                continue
            kinds = {kind for kind, _ in self.graph.sinks(node)}
            users = self._users_beyond_layout(node)
            if any(user.startswith("Mul") for user in users):
                self.anatomy.gains.add(name)
                continue
            several = parameter.ndim > 1 and parameter.shape[-2] > 1
            is_added = any(user.startswith(("Add", "Sub")) for user in users)
            role = "position" if kinds and kinds <= {"logits"} or (is_added and several) else "embedding"
            self.leaves[name] = role

    def _users_beyond_layout(self, node: Node) -> set[str]:
        found, stack, seen = set(), [node], {node}
        while stack:
            for user, _ in self.graph.users.get(stack.pop(), ()):
                if user in seen:
                    continue
                seen.add(user)
                if LAYOUT.fullmatch(user.name()) or user.name() in ("IndexBackward0", "UpsampleBicubic2DBackward0"):
                    stack.append(user)
                else:
                    found.add(user.name())
        return found

    # ---- the architecture

    def _passes(self) -> None:
        """How often the stream comes through each parameter: a call that reads what an earlier call has led to."""
        calls: dict[str, list[Product]] = {}
        for product in sorted(self.graph.products.values(), key=_number):
            if len(product.parameters) == 1:
                calls.setdefault(product.parameters[0], []).append(product)
        for name, products in calls.items():
            passes, last = 1, products[0]
            for product in products[1:]:
                if any(_number(source) > _number(last) for source in self.graph.sources(product.reads)):
                    passes, last = passes + 1, product
            self.anatomy.passes[name] = passes

    def _architecture(self) -> None:
        for heard in self.graph.attentions:
            where = self._where[heard]
            traits = self.anatomy.traits.setdefault(where, {})
            asked = self._made(heard, "query")
            told = self._made(heard, "key")
            traits["qk_norm"] = bool(self._between(heard.query, asked, NORMS) or self._between(heard.key, told, NORMS))
            if heard.scores is not None:
                logits = Edge(*heard.entry.next_functions[0])
                traits["soft_cap"] = bool(self._between(logits, {heard.scores}, {"TanhBackward0"}))
            outputs = [each for each, place in self.place.items() if place == where and self.role.get(each) == "output"]
            traits["output_gate"] = any(
                place == where and self.role.get(each) == "gate" for each, place in self.place.items()
            ) or any(self._has_gate(each) for each in asked if isinstance(each, Product))
            reads = [self.graph.sources(each.reads) for made in (asked, told) for each in made if isinstance(each, Product)]
            if len(reads) > 1 and reads[0] and reads[-1] and reads[0].isdisjoint(reads[-1]):
                self.anatomy.cross.add(where)
            if outputs:
                traits |= self._norm_place(outputs[0], next((each for each in asked if isinstance(each, Product)), None))

    def _made(self, heard: Heard, role: str) -> set[Any]:
        return {each for each in self.graph.sources(getattr(heard, role)) if role in self.columns.get(each, ())}

    def _has_gate(self, product: Product) -> bool:
        return any(kind == "product" and self.role.get(each) == "output" for kind, each in self.graph.sinks(product.node))

    def _between(self, edge: Edge | None, ends: set[Any], kinds: Collection[str]) -> bool:
        """Whether a node of one of these kinds lies between a tensor and the nearest products."""
        stop = {getattr(each, "node", each) for each in ends}
        stack, seen = [] if edge is None else [edge.node], set()
        while stack:
            node = stack.pop()
            if node in seen or node in stop or node in self.graph.products:
                continue
            seen.add(node)
            if node.name() in kinds or self._is_norm_node(node) and "NativeLayerNormBackward0" in kinds:
                return True
            stack += [each for each, _ in node.next_functions if each is not None]
        return False

    def _norm_place(self, output: Product, query: Product | None) -> dict[str, Any]:
        """Where the norm stands: before a branch (pre), after each sum (post), or nowhere."""
        join = self._next_sum(output.node, through_norms=True)
        if join is None:
            return {"residual": False}
        plain = self._next_sum(join, through_norms=False)
        normed = self._next_sum(join, through_norms=True)
        if plain is None and normed is None:
            return {"residual": True}
        before = query is not None and query.reads is not None and self._between(query.reads, set(), NORMS)
        if plain is None:
            return {"residual": True, "norm": "post"}
        if not before:
            return {"residual": True, "norm": "none"}
        inside = self._next_sum(output.node, through_norms=False) is None
        return {"residual": True, "norm": "sandwich" if inside else "pre"}

    def _next_sum(self, node: Node, *, through_norms: bool) -> Node | None:
        """The first sum of two computed tensors that a result goes into without another product."""
        stack, seen = [node], {node}
        while stack:
            for user, _ in self.graph.users.get(stack.pop(0), ()):
                if user in seen or user in self.graph.products or any((user, i) in self.graph.by_operand for i in range(3)):
                    continue
                seen.add(user)
                if not through_norms and self._is_norm_node(user):
                    continue
                computed = [each for each, _ in user.next_functions if each is not None and self.graph.sources(Edge(each, 0))]
                if user.name() == "AddBackward0" and len(computed) > 1 and not self._in_norm(user):
                    return user
                stack.append(user)
        return None

    def _is_norm_node(self, node: Node) -> bool:
        return node.name() in NORMS or self._in_norm(node)

    def _in_norm(self, node: Node) -> bool:
        number = node._sequence_nr()
        return any(start <= number < end for start, end in self.ears.norms)

    # ---- the matrices

    def _write(self) -> None:
        seen: set[tuple[str, ...]] = set()
        for product in sorted(self.graph.products.values(), key=_number):
            if product.parameters in seen and self.role.get(product) != "embedding":
                continue
            if len(product.parameters) != 1:
                for name in product.parameters:
                    self._add(Part(self.role.get(product, "query"), name, None, why="it is made of several parameters: " + ", ".join(product.parameters)))
                continue
            seen.add(product.parameters)
            name = product.parameters[0]
            matrix = self._matrix(product)
            why = "" if matrix is not None else "what is multiplied with is no rearrangement of it"
            bias = self._bias(product)
            where = self.place.get(product)
            if product in self.columns:
                roles = self.columns[product]
                used: set[int] = set()
                for role, columns in roles.items():
                    if used & set(columns):  # one matrix for two roles: shared on purpose
                        continue
                    used.update(columns)
                    self._add(self._part(role, name, matrix, bias, columns, where, self.heads[product, role], why))
                rest = [column for column in range(self._fan_out(product)) if column not in used]
                if rest:
                    role = "gate" if any(kind == "product" and self.role.get(each) == "output" for kind, each in self.graph.sinks(product.node)) else "latent"
                    self._add(self._part(role, name, matrix, bias, rest, where, 0, why))
                continue
            role = self.role.get(product, "")
            if self._is_stacked(product) and matrix is not None:
                for part in self._experts(product, role, name, matrix):
                    self._add(part)
                continue
            parts = self._halves(product, role) or [list(range(self._fan_out(product)))]
            for columns in parts:
                self._add(self._part(role, name, matrix, bias, columns, where, 0, why, product.is_table))
        for name, role in self.leaves.items():
            if name not in self.anatomy.parts and name not in self.anatomy.biases:
                data = self.parameters[name].detach()
                table = Matrix(data.reshape(-1, data.shape[-1]).mT) if data.is_contiguous() else None
                self._add(Part(role, name, table, is_table=True, why="" if table else "it is not contiguous"))

    def _part(self, role: str, name: str, matrix: Matrix | None, bias: Matrix | None, columns: list[int], where: str | None, n_heads: int, why: str, is_table: bool = False) -> Part:
        every = matrix is not None and len(columns) == matrix.shape[0] and columns == list(range(len(columns)))
        rows = matrix if every or matrix is None else matrix.rows(columns)
        shift = bias if every or bias is None else bias.rows(columns)
        if rows is None and not why:
            why = "its rows do not lie evenly in memory"
        return Part(role, name, rows, shift, where, n_heads, is_table, why)

    def _is_stacked(self, product: Product) -> bool:
        """Whether a parameter holds a matrix for each of several experts."""
        in_branch = self.role.get(product, "").startswith("feed_forward")
        return in_branch and product.channels == -1 and self.parameters[product.parameters[0]].ndim == 3

    def _experts(self, product: Product, role: str, name: str, matrix: Matrix) -> Iterator[Part]:
        """A stack of matrices, of which each token uses a few: all are laid out like the one that was heard."""
        data = self.parameters[name].detach()
        of_first = matrix.view[: matrix.shape[0] // self._batch(product)] if matrix.row_dims == 1 else matrix.view[0]
        transposed = of_first.stride()[-2:] != data.stride()[-2:]
        pieces = self._halves(product, role)
        for number in range(data.shape[0]):
            one = Matrix(data[number].mT if transposed else data[number])
            for columns in pieces or [list(range(one.shape[0]))]:
                yield self._part(role, f"{name}", one, None, columns, None, 0, "")

    def _add(self, part: Part) -> None:
        parts = self.anatomy.parts.setdefault(part.parameter, [])
        if not any(each.role == part.role and each.matrix is not None and part.matrix is not None and each.matrix.view.storage_offset() == part.matrix.view.storage_offset() for each in parts):
            parts.append(part)

    def _halves(self, product: Product, role: str) -> list[list[int]] | None:
        """The two inner matrices of a gated feed-forward network that are packed into one."""
        if role != "feed_forward_in":
            return None
        outs = [each for kind, each in self.graph.sinks(product.node) if kind == "product"]
        width = product.result.shape[product.channels]
        for out in outs:
            if out.reads is not None and out.reads.shape and width == 2 * out.reads.shape[-1]:
                key = ("halves", self._sibling(product.parameters[0]))
                if key not in self._cache:
                    weights = torch.zeros(out.reads.shape)
                    weights[..., 0] = 1.0
                    (gradient,) = gradients([out.reads], [product.result], [weights])
                    pair = [] if gradient is None else self._marks(gradient, product).nonzero()[:, 0].tolist()
                    self._cache[key] = pair
                pair = self._cache[key]
                if pair == [0, width // 2]:
                    return [list(range(width // 2)), list(range(width // 2, width))]
                if pair == [0, 1]:
                    return [list(range(0, width, 2)), list(range(1, width, 2))]
        return None

    def _matrix(self, product: Product) -> Matrix | None:
        parameter = self.parameters[product.parameters[0]]
        data = parameter.detach()
        if product.is_table:
            return Matrix(data.reshape(-1, data.shape[-1]).mT) if data.ndim > 1 and data.is_contiguous() else None
        node = product.weight.node
        if product.channels == 1:
            return Matrix(data) if product.weight.shape.numel() == data.numel() else None
        direct = hasattr(node, "variable")
        moved = node.name() in ("TBackward0",) and hasattr(node.next_functions[0][0], "variable")
        if data.ndim == 2 and (direct or moved):
            return Matrix(data if moved != product.weight_first else data.mT)
        return self._by_codes(product, parameter)

    def _by_codes(self, product: Product, parameter: nn.Parameter) -> Matrix | None:
        """Number the entries of the factor, and see where autograd carries the numbers."""
        shape = product.weight.shape
        batch, first, second = (1, *shape) if len(shape) == 2 else shape
        if self._batch(product) == 1:
            batch = 1
        size = batch * first * second
        digits = 2 ** {torch.float64: 52, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}.get(parameter.dtype, 8)
        numbers = torch.arange(1, size + 1)
        codes = torch.zeros(parameter.shape, dtype=torch.int64)
        base = 1
        while base <= size:
            part = (numbers // base % digits).double()
            weights = torch.zeros(shape, dtype=torch.float64)
            (weights if len(shape) == 2 else weights[:batch]).copy_(part.view(*((batch,) if len(shape) > 2 else ()), first, second))
            (gradient,) = gradients([product.weight], [Edge(self._leaf(product, parameter), 0)], [weights])
            if gradient is None:
                return None
            codes += gradient.detach().cpu().double().round().long() * base
            base *= digits
        if int(codes.max()) > size or int(codes.min()) < 0:
            return None
        return find_matrix(parameter, codes.to(parameter.device), (batch, first, second), weight_first=product.weight_first)

    def _leaf(self, product: Product, parameter: nn.Parameter) -> Node:
        stack = [product.weight.node]
        while stack:
            node = stack.pop()
            if hasattr(node, "variable"):
                if node.variable is parameter:
                    return node
                continue
            stack += [each for each, _ in node.next_functions if each is not None]
        raise RuntimeError("no such leaf")

    def _bias(self, product: Product) -> Matrix | None:
        """What is added to a product right after it: a parameter with a number for each output."""
        candidates = []
        if product.node.name() in ("AddmmBackward0", "BaddbmmBackward0"):
            candidates.append(product.node.next_functions[0][0])
        elif product.channels == 1 and len(product.node.next_functions) > 2:
            candidates.append(product.node.next_functions[2][0])
        node = product.node
        for _ in range(4):
            users = self.graph.users.get(node, ())
            if len(users) != 1:
                break
            user = users[0][0]
            if user.name() == "AddBackward0":
                candidates += [each for each, _ in user.next_functions if each is not node]
                break
            node = user
        for each in candidates:
            names = self.graph._weights.get(each) if each is not None else None
            if names and len(names) == 1:
                parameter = self.parameters[names[0]]
                if parameter.numel() == self._fan_out(product) and parameter.is_contiguous():
                    if parameter.ndim > 1:
                        self.anatomy.biases.add(names[0])
                    return Matrix(parameter.detach().view(-1, 1))
        return None

    def _sibling(self, name: str) -> str:
        """A parameter's name, with the places in lists of modules left out: equal for the same matrix of each block."""
        return siblings(self.ears.module, name)


def siblings(module: nn.Module, name: str) -> str:
    """The name of a parameter or module with ``*`` for its place in a list of modules of one class.

    >>> siblings(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.ReLU()), "1.weight")
    '*.weight'
    """
    path, current, shown = name.split("."), module, []
    for part in path:
        child = getattr(current, part, None)
        if isinstance(current, nn.ModuleList | nn.ModuleDict | nn.Sequential) and isinstance(child, nn.Module):
            alike = sum(type(each) is type(child) for each in current.children())
            shown.append("*" if alike > 1 else part)
        else:
            shown.append(part)
        current = child
    return ".".join(shown)


def tensors_in(values: Any) -> Iterator[Tensor]:
    """The tensors in what a module takes or gives: a tensor, a tuple, a mapping, or any of these inside another."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping | tuple | list):
        for each in values.values() if isinstance(values, Mapping) else values:
            yield from tensors_in(each)


def _number(source: Any) -> int:
    return source.node._sequence_nr()  # type: ignore[no-any-return]


def _silenced(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return tuple(None if each is None else torch.zeros_like(each) for each in gradients)


def _now() -> int:
    return torch._C._autograd._get_sequence_nr()  # type: ignore[attr-defined]
