"""Which outputs of a product become which head of an operand, and where its matrix lies in a parameter."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attntut.anatomy.graph import LAYOUT, Edge, Graph, Node, Product, below, gradients, is_leaf
from attntut.anatomy.layout import Matrix, find_matrix

Heads = list[list[int]]
"""Columns of a product, a list per head."""
TURNS = re.compile("^(T|Transpose|Permute|Movedim)Backward")
DIGITS = {torch.float64: 52, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}
"""Integers up to two to this power are exact."""


class Columns:
    """Asks the graph about the columns of products.

    Args:
        graph: of a forward pass.
        parameters: by name.
        siblings: name of a parameter to that of its kind; one of a kind is asked, the others are alike.
    """

    def __init__(self, graph: Graph, parameters: Mapping[str, nn.Parameter], siblings: Mapping[str, str]) -> None:
        self.graph, self.parameters, self.siblings = graph, parameters, siblings
        self._known: dict[Any, Any] = {}
        self._drawn: dict[torch.Size, Tensor] = {}

    def batch(self, product: Product) -> int:
        """How many matrices a product holds: one a head, or one an expert; 1 as a rule."""
        shape = product.weight.shape
        if len(shape) != 3 or product.channels == 1:
            return 1
        numel = sum(self.parameters[name].numel() for name in product.parameters)
        return shape[0] if numel >= math.prod(shape) else 1

    def fan_out(self, product: Product) -> int:
        """How many outputs a product has."""
        return product.result.shape[product.channels] * self.batch(product)

    def fan_in(self, product: Product) -> int:
        """Over how many inputs a product sums."""
        shape = product.weight.shape
        return shape[1:].numel() if product.channels == 1 else shape[-1 if product.weight_first else -2]

    def by_head(self, edge: Edge, product: Product, role: str, number: int = 0) -> Heads:
        """The columns of a product that feed an operand.

        Args:
            edge: the operand.
            product: what it is made of, among others.
            role: of the operand.
            number: of the operand, among those of this role that the product feeds.

        Raises:
            ValueError: the graph cannot be asked, because something was changed in place.
        """
        key = (role, number, edge.shape, product.result.shape, *(self.siblings[name] for name in product.parameters))
        known = self._known.get(key)
        try:
            if known is None or self.feed(edge, product) not in ([], sorted(c for head in known for c in head)):
                self._known[key] = self._find_heads(edge, product)
        except RuntimeError as error:
            raise ValueError(
                f"What {', '.join(product.parameters)} feeds cannot be traced, because something that its gradient "
                f"needs was changed in place: {str(error).splitlines()[0]}"
            ) from error
        return self._known[key]

    def pieces(self, product: Product) -> Heads | None:
        """The columns of the matrices that a gated feed-forward network packs into one; None if there is one only."""
        key = self._kind(product)
        if key not in self._known:
            alike = (each for each in self.graph.products.values() if self._kind(each) == key)  # an expert may be idle
            self._known[key] = next(filter(None, map(self._find_pieces, alike)), None)
        return self._known[key]

    def _kind(self, product: Product) -> Any:
        return "pieces", product.result.shape[product.channels], *(self.siblings[name] for name in product.parameters)

    def _find_pieces(self, product: Product) -> Heads | None:
        width, shape = product.result.shape[product.channels], self.parameters[product.parameters[0]].shape
        if len(shape) == 3 and width not in shape:  # all matrices of a stack are alike, and one product gives all
            width //= shape[0]
        for kind, out in self.graph.sinks(product.node):
            if kind == "product" and out.reads is not None:
                weights = torch.zeros(out.reads.shape)
                weights.select(out.summed, 0).fill_(1.0)
                (gradient,) = gradients([out.reads], [product.result], [weights])
                touched = [] if gradient is None else self._touched(gradient, product)
                first = sorted({column % width for column in touched})
                n, size = len(first), out.reads.shape[out.summed]
                if n < 2 or width != n * size:
                    continue
                if first == [*range(0, width, size)]:
                    return [[*range(start, start + size)] for start in first]
                if first == [*range(n)]:
                    return [[*range(start, width, n)] for start in first]
        return None

    def _find_heads(self, edge: Edge, product: Product) -> Heads:
        every = self.feed(edge, product)
        if len(edge.shape) < 3 or not every:
            return [every] if every else []
        first = self.feed(edge, product, 0)
        row = self.feed(edge, product, 0, dim=-2) if first == every and edge.shape[-1] < len(every) else []
        if (
            1 < len(row) == edge.shape[-1] and len(every) % len(row) == 0
        ):  # one key for all heads: they are folded into the rows
            shift = next((c for c in every if c not in row), 0) if row == list(range(row[0], row[0] + len(row))) else 1
            evenly = [[column + head * shift for column in row] for head in range(len(every) // len(row))]
            if sorted(column for head in evenly for column in head) == every:
                return evenly
        behind = self._behind(edge, product, every) if first == every and edge.shape[-1] < len(every) else None
        if behind is not None:  # a norm over all heads mixes their columns (OLMo 2)
            first = [every[column] for column in self.feed(edge, product, 0, behind=behind)]
        if not first or len(every) % len(first) or len(first) == len(every):
            return [every]
        count, leading = len(every) // len(first), edge.shape[-3]
        heads, done = {0: first}, set(first)
        for index in dict.fromkeys([1, leading // count, *range(2, leading)]):  # heads may vary fastest, or slowest
            columns = self.feed(edge, product, index, behind=behind)
            columns = columns if behind is None else [every[column] for column in columns]
            if not columns or not done.isdisjoint(columns):
                continue
            shift = columns[0] - first[0]
            evenly = [[column + head * shift for column in first] for head in range(count)]
            if sorted(column for head in evenly for column in head) == every:
                return evenly
            heads[index] = columns
            done.update(columns)
        return [heads[i] for i in sorted(heads)] if len(heads) == count and len(done) == len(every) else [every]

    def _behind(self, edge: Edge, product: Product, every: list[int]) -> Edge | None:
        """The last tensor on the way to an operand that has these columns, and no others, in its last dimension."""
        size, seen, stack = product.result.shape, {product.node}, [edge]
        found = dict[int, Edge]()
        while stack and product.channels == -1 and self.batch(product) == 1:
            here = stack.pop()
            if here.node is None or here.node in seen or is_leaf(here.node):
                continue
            seen.add(here.node)
            if here.shape[-1:] == (len(every),) and here.shape.numel() * size[-1] == size.numel() * len(every):
                found[here.node._sequence_nr()] = here
            stack += [Edge(*each) for each in here.node.next_functions]
        first = found[min(found)] if found else edge
        in_order = all(self.feed(first, product, i, dim=-1) == [every[i]] for i in (0, 1, -1))
        return found[max(found)] if found and in_order else None

    def feed(
        self, edge: Edge, product: Product, index: int | None = None, dim: int = -3, behind: Edge | None = None
    ) -> list[int]:
        """The columns that feed an operand, or what stands at one index of its third last dimension.

        They are those of the result, or of a tensor ``behind`` it.
        """
        weights = self._random(edge.shape)
        if index is not None:
            mask = torch.zeros(edge.shape)
            mask.select(dim, index).fill_(1.0)
            weights = weights * mask
        between = [each for each in self.graph.sources(edge) if product in self.graph.sources(_read_by(each))]
        (gradient,) = gradients([edge], [behind or product.result], [weights], silent=between)
        return [] if gradient is None else self._touched(gradient, product)

    def _random(self, shape: torch.Size) -> Tensor:
        """Numbers that add up to nothing by chance."""
        if shape not in self._drawn:
            self._drawn = {shape: torch.randn(shape, generator=torch.Generator().manual_seed(0))}
        return self._drawn[shape]

    def _touched(self, gradient: Tensor, product: Product) -> list[int]:
        """The outputs that a gradient touches; those of a batch of matrices stand behind each other."""
        touched = gradient != 0
        if self.batch(product) > 1 and touched.ndim == 3:
            touched = touched.any(-2 if product.channels == -1 else -1).flatten()
        else:
            touched = touched.movedim(product.channels, 0).flatten(1).any(1)
        return touched.nonzero()[:, 0].tolist()

    def over_tokens(self) -> list[Product]:
        """The products each of whose results is a sum over tokens, of one channel (Linformer, the mixers of MLPs).

        What lies between two products and keeps a shape is passed as if it changed nothing: a norm, an activation.
        """
        found: list[Product] = []
        for product in sorted(self.graph.products.values(), key=lambda each: each.node._sequence_nr()):
            sources = self.graph.sources(product.reads)
            known = [each for each in sources if isinstance(each, Product) and each not in found]
            known = [each for each in known if self.fan_out(each) > 1]
            if known and not product.is_table and product.channels != 1 and self.batch(product) == 1:
                first = min(known, key=lambda each: each.node._sequence_nr())
                names = (self.siblings[name] for name in product.parameters)
                key = ("over tokens", product.reads and product.reads.shape, product.weight.shape, *names)
                if key not in self._known:
                    self._known[key] = self._sums_over_tokens(product, first, sources - {first})
                found += [product] if self._known[key] else []
        return found

    def _sums_over_tokens(self, product: Product, source: Product, others: Collection[Any]) -> bool:
        assert product.reads is not None

        def ends(node: Node) -> bool:
            return node in self.graph.products or is_leaf(node)

        between = [node for node in below(product.reads.node, ends) if not ends(node)]
        if not product.weight_first and not any(TURNS.match(node.name()) for node in between):
            return False
        handles = [node.register_hook(_unchanged) for node in between if not LAYOUT.fullmatch(node.name())]
        weights = torch.zeros(product.reads.shape)
        weights.movedim(product.summed, 0).flatten(1)[:, 0] = 1.0
        try:
            (gradient,) = gradients([product.reads], [source.result], [weights], silent=others)
        except RuntimeError:  # it cannot be asked: something was changed in place
            return False
        finally:
            for handle in handles:
                handle.remove()
        touched = torch.zeros(1, 1) if gradient is None else (gradient != 0).movedim(source.channels, 0).flatten(1)
        return bool(touched.any(1).sum() == 1 < touched.any(0).sum())

    # ---- the matrix in memory

    def matrix(self, product: Product) -> Matrix | None:
        """The matrix that a product multiplies with; None if it is no mere rearrangement of its parameter."""
        parameter, node = self.parameters[product.parameters[0]], product.weight.node
        data = parameter.detach()
        if product.is_table:
            return Matrix(data.reshape(-1, data.shape[-1]).mT) if data.ndim > 1 and data.is_contiguous() else None
        if product.channels == 1 and getattr(product.node, "_saved_transposed", False):
            return Matrix(data.transpose(0, 1)) if product.node._saved_groups == 1 else None
        if product.channels == 1:
            return Matrix(data) if product.weight.shape.numel() == data.numel() else None
        is_turned = node.name() == "TBackward0" and is_leaf(node.next_functions[0][0])
        if data.ndim == 2 and (is_turned or is_leaf(node)):
            return Matrix(data if is_turned != product.weight_first else data.mT)
        try:
            return self._by_numbers(product, parameter)
        except RuntimeError:
            return None

    def _by_numbers(self, product: Product, parameter: nn.Parameter) -> Matrix | None:
        """Number the entries of the factor, and see where autograd carries the numbers."""
        shape = product.weight.shape
        first, second = shape[-2:]
        batch = self.batch(product)
        size = batch * first * second
        base, codes = 1, torch.zeros(parameter.shape, dtype=torch.int64)
        made_of = [*below(product.weight.node)]
        leaves = [Edge(each, 0) for each in made_of if is_leaf(each) and each.variable is parameter]
        dtypes = {parameter.dtype} | {each._input_metadata[0].dtype for each in made_of if not is_leaf(each)}
        numbers = torch.arange(1, size + 1).view(batch, first, second)
        step = 2 ** min(DIGITS.get(each, 8) for each in dtypes)
        while base <= size:
            weights = torch.zeros(shape, dtype=torch.float64)
            weights.view(-1, first, second)[:batch] = (numbers // base % step).double()
            (gradient,) = gradients([product.weight], leaves, [weights])
            if gradient is None:
                return None
            codes += gradient.detach().cpu().double().round().long() * base
            base *= step
        if not 0 <= int(codes.min()) <= int(codes.max()) <= size:
            return None
        return find_matrix(parameter, codes, (batch, first, second), weight_first=product.weight_first)


def _unchanged(inputs: tuple[Tensor | None, ...], outputs: tuple[Tensor | None, ...]) -> Any:
    """As if a function of one tensor changed nothing, in a backward pass."""
    after = outputs[0]
    if after is None or all(each is None or each.shape != after.shape for each in inputs):
        return None
    return tuple(after if each is not None and each.shape == after.shape else None for each in inputs)


def _read_by(source: object) -> Edge | None:
    return source.reads if isinstance(source, Product) else None
