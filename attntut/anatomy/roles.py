"""Who plays what: the role of every product of a forward pass, read off the graph around it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from attntut.anatomy.blocks import Block, block_of
from attntut.anatomy.columns import Columns
from attntut.anatomy.graph import (
    INSIDE,
    LAYOUT,
    PRODUCTS,
    Edge,
    Graph,
    Heard,
    Node,
    Product,
    below,
    gradients,
    is_leaf,
)
from attntut.anatomy.weight import OPERANDS

# Nodes that multiply with a matrix in a way that is not read.
STRANGE = re.compile("^(Fft|IndexPut|Rnn|Lstm|Trilinear|Mv|Dot|Quantized|Cdist|Linear)")
ACTIVATION = re.compile("Sigmoid|Tanh|Silu|Softplus|Relu|Gelu|Hard|Elu|Softmax|LogSigmoid")
SQUASH = re.compile("Sigmoid|Tanh|HardSigmoid")
NORM = re.compile("Native.*Norm|FusedRmsNorm|Rsqrt|Sqrt|LinalgVectorNorm|NormBackward|Std|Var")
OTHERWISE = "it mixes tokens otherwise than by softmax attention"


class Roles:
    """Reads the roles off a graph; the order of the steps matters, each looks at what the ones before have found.

    Args:
        graph: of a forward pass.
        columns: asks it about columns.
        is_inside: whether a parameter is in the module that an attention ran in.

    Attributes:
        makes: products that make operands: role to columns, a list per head.
        role: the role of each other product.
        place: of products that belong to an attention: the attention.
        left: products that no scheme speaks of, and why.
        absorbed: products that turn queries into what latents are compared with: keys' matrices, transposed.
        gating: of products that make operands: the columns that only multiply others of their own.
        fused: of output matrices that read heads beside something else: the pieces of what they read, in order, each
            with its role and width.
    """

    def __init__(self, graph: Graph, columns: Columns, is_inside: Callable[[str, Heard], bool]) -> None:
        self.graph, self.columns, self.is_inside = graph, columns, is_inside
        self.products = [each for each in graph.products.values() if graph.mixers.keys().isdisjoint(each.parameters)]
        self.products.sort(key=lambda product: product.node._sequence_nr())
        self.makes: dict[Product, dict[str, list[list[int]]]] = {}
        self.role: dict[Product, str] = {}
        self.place: dict[Product, Heard] = {}
        self.left: dict[Product, str] = {}
        self._branches: dict[Product, bool] = {}
        self.absorbed: set[Product] = set()
        self.gating: dict[Product, set[int]] = {}
        self.fused: dict[Product, list[tuple[str, int]]] = {}
        self._asked: dict[tuple[Product, str], int] = {}  # how often an operand has been made of a product
        self._reading: dict[frozenset[Any], list[Product]] = {}  # products, by what they read
        for product in self.products:
            self._reading.setdefault(graph.sources(product.reads), []).append(product)
        for heard in graph.attentions:
            self._find_operands(heard)
        self._find_gates()
        self._find_adapters()
        self._find_latents()
        self._find_outputs()

    # ---- attention

    def _find_operands(self, heard: Heard) -> None:
        mine: dict[tuple[Product, str], list[list[int]]] = {}
        edges = [*((role, getattr(heard, role)) for role in OPERANDS)]
        edges += [each for pair in heard.more for each in zip(OPERANDS, pair, strict=False)]
        edges += [("value", edge) for edge in heard.values]
        for role, edge in edges:
            sources = [each for each in self.graph.sources(edge) if isinstance(each, Product)]
            for product in sorted(sources, key=lambda each: each.node._sequence_nr()):  # a set has no order
                if product.is_table or not self._is_projection(product, heard):
                    continue
                asked = self._asked[product, role] = self._asked.get((product, role), -1) + 1
                heads = self._without_gate(edge, product, self.columns.by_head(edge, product, role, asked))
                known = self.makes.get(product, {}).get(role, [])
                taken = {column for head in known for column in head}
                if not heads or not all(taken.isdisjoint(head) for head in heads):
                    continue
                if len(mine.get((product, role), ())) == len(heads):  # places have a part of their own in each head
                    known[:] = [[*a, *b] for a, b in zip(known, heads, strict=True)]
                    self.makes[product][role] = [sorted(head) for head in known]
                else:  # a loop over heads asks for one at a time
                    self.makes.setdefault(product, {})[role] = known + heads
                mine[product, role] = heads
                self.place.setdefault(product, heard)
        same = [each for each, role in mine if role == "key" and self._is_shared(self.makes[each])]
        for product in [each for each, role in mine if role == "query" and same]:
            reads = self.graph.sources(product.reads)
            if reads and all(isinstance(each, Product) and self._asks_through(each, product) for each in reads):
                self.absorbed.add(product)

    def _without_gate(self, edge: Edge | None, product: Product, heads: list[list[int]]) -> list[list[int]]:
        """The columns of an operand, but for those that are bent and multiply others of the same product."""
        for node in () if edge is None else below(edge.node, self.graph.products.__contains__):
            sides = [Edge(*each) for each in node.next_functions if each[0] is not None]
            if node in self.graph.products or not node.name().startswith("Mul") or len(sides) != 2:
                continue
            bent = [self.graph.sources(each) == {product} and self._is_bent(each) for each in sides]
            if bent[0] == bent[1] or self.graph.sources(sides[bent[0]]) != {product}:
                continue
            gate, gated = (set(self.columns.feed(each, product)) for each in (sides[bent[1]], sides[bent[0]]))
            if gate and gated and gate.isdisjoint(gated):
                self.gating.setdefault(product, set()).update(gate)
                heads = [left for head in heads if (left := [column for column in head if column not in gate])]
        return heads

    def _asks_through(self, product: Product, other: Product) -> bool:
        """Whether a result goes to another product, and beside it only to queries (of places)."""
        sinks = self.graph.sinks(product.node)
        return {each for kind, each in sinks if kind != "query"} == {other}

    def _is_shared(self, made: dict[str, list[list[int]]]) -> bool:
        """Whether some columns are both key and value."""
        key, value = ({column for head in made.get(role, ()) for column in head} for role in ("key", "value"))
        return not key.isdisjoint(value)

    def _is_projection(self, product: Product, heard: Heard) -> bool:
        """Whether a product makes something for attention alone: what goes elsewhere too is the stream."""
        sinks = self.graph.sinks(product.node)
        others = [each for kind, each in sinks if kind == "product"]
        return any(kind in INSIDE for kind, _ in sinks) and (
            self.is_inside(product.parameters[0], heard)
            or all(self.is_inside(each.parameters[0], heard) or self._is_in_attention(each) for each in others)
        )

    def _is_in_attention(self, product: Product) -> bool:
        """Whether a product makes operands or logits, or reads heads and what only multiplies them."""
        reads = self.graph.sources(product.reads)
        if any(isinstance(each, Heard) for each in reads):
            return all(isinstance(each, Heard) or self._goes_only_to(each, product) for each in reads)
        return self.graph.is_inside(product)

    def _goes_only_to(self, product: Product, other: Product) -> bool:
        """Whether, of all products, a result goes to one alone: a gate, if that reads heads."""
        return {each for kind, each in self.graph.sinks(product.node) if kind == "product"} <= {other}

    def _find_gates(self) -> None:
        """What multiplies an operand, bent or narrower than what it multiplies, is a gate of it."""
        for product in [*self.makes]:
            sides = self._multiplied(product.node)
            if sides is None:
                continue
            others = self.graph.sources(sides[1]) & self.makes.keys()
            is_narrow = any(self.columns.fan_out(product) < self.columns.fan_out(each) for each in others)
            if is_narrow or (others and self._is_bent(sides[0]) and not self._is_bent(sides[1])):
                del self.makes[product]
                self.role[product] = "gate"

    def _is_bent(self, edge: Edge, kinds: re.Pattern[str] = ACTIVATION) -> bool:
        """Whether a function of some kind lies between a tensor and the products that it is made of."""
        products = self.graph.products
        return any(kinds.match(each.name()) for each in below(edge.node, products.__contains__) if each not in products)

    def _is_bent_on(self, node: Node, kinds: re.Pattern[str]) -> bool:
        """Whether a result goes nowhere but through some kind of function: what is not bent makes the stream."""

        def ends(user: Node) -> bool:
            return bool(kinds.match(user.name()))

        straight = [node, *(user for user, _ in self.graph.ahead(node, ends) if not ends(user))]
        return not any(each in self.graph.roots or self.graph.is_read(each) for each in straight)

    def _is_alone(self, product: Product) -> bool:
        """Whether a result meets nothing else up to the next products."""
        mine = {frozenset(), frozenset([product])}
        return all(
            self.graph.sources(Edge(each, 0)) in mine
            for user, _ in self.graph.ahead(product.node, lambda user: False)
            for each, _ in user.next_functions
            if each
        )

    def _find_latents(self) -> None:
        """Narrow matrices that queries, or keys and values, are made from (multi-head latent attention)."""
        for product in self.products:
            sinks = self.graph.sinks(product.node)
            readers = [each for kind, each in sinks if kind == "product"]
            if product in self.makes or product.is_table or any(kind in ("end", "logits") for kind, _ in sinks):
                continue
            if not readers or any(each not in self.makes for each in readers):
                continue
            made = {role for each in readers for role in self.makes[each]}
            reads_it_alone = all(self.graph.sources(each.reads) == {product} for each in readers)
            if reads_it_alone and made != set(OPERANDS) and len({self.place[each] for each in readers}) == 1:
                self.role[product], self.place[product] = "latent", self.place[readers[0]]

    def _readers(self, product: Product) -> list[Product]:
        """The products that read a result; none if it goes elsewhere too."""
        sinks = self.graph.sinks(product.node)
        return [each for _, each in sinks] if all(kind == "product" for kind, _ in sinks) else []

    def _find_adapters(self) -> None:
        """Pairs of narrow matrices whose product is added to that of a larger one."""
        for second in self.products:
            sources = self.graph.sources(second.reads)
            first = next(iter(sources)) if len(sources) == 1 else None
            if second.is_table or not isinstance(first, Product) or first.is_table:
                continue
            narrow = self.columns.fan_out(first) < min(self.columns.fan_out(second), self.columns.fan_in(first))
            ends = self._readers(first)
            if not narrow or second not in ends:
                continue
            for wide in self._reading[self.graph.sources(first.reads)]:
                if wide is not first and all(each is not wide and self._are_added(each, wide) for each in ends):
                    self.makes.pop(second, None)
                    self.role[first], self.role[second] = "adapter_in", "adapter_out"
                    if wide in self.place:
                        self.place[first] = self.place[second] = self.place[wide]
                    break

    def _are_added(self, a: Product, b: Product) -> bool:
        """Whether a result and one as wide, or a part of one, meet in a sum before anything but scaling is done."""
        if self.columns.fan_out(a) > self.columns.fan_out(b):
            return False
        sums = [set(self.beyond_layout(each.node, "MulBackward", "NativeDropout", "Cat")) for each in (a, b)]
        return any(node.name() == "AddBackward0" for node in sums[0] & sums[1])

    def beyond_layout(self, node: Node, *also: str) -> Iterator[Node]:
        """What uses a result, moved about as it may be."""
        seen, stack = {node}, [node]
        while stack:
            for user, _ in self.graph.users.get(stack.pop(), ()):
                if user not in seen:
                    seen.add(user)
                    if LAYOUT.fullmatch(user.name()) or (
                        user.name().startswith(("Index", "Upsample", *also)) and "Put" not in user.name()
                    ):
                        stack.append(user)
                    else:
                        yield user

    def _find_outputs(self) -> None:
        """The first product that the heads' mix enters, and gates on the way there."""
        for product in self.products:
            sources = self.graph.sources(product.reads)
            heard = [each for each in self.graph.attentions if each in sources]
            others = [each for each in sources if isinstance(each, Product)]
            if product in self.role or product in self.makes or product.is_table or not heard:
                continue
            if any(self.role.get(each) == "output" for each in others) or self._is_added_to_data(product.reads):
                continue  # it has entered one already, or goes into the stream as it is
            if all(each in self.makes or self._goes_only_to(each, product) for each in others):
                self.role[product], self.place[product] = "output", heard[0]
                beside = self._find_pieces(product) if others else set()
                for each in others:
                    if each not in self.makes and each not in self.role:
                        if each in beside:
                            self.role[each] = "feed_forward_in"
                        else:
                            self.role[each], self.place[each] = "gate", heard[0]

    def _is_added_to_data(self, edge: Edge | None) -> bool:
        """Whether the heads' mix is added to raw inputs on the way to a tensor, of whose size these are."""
        if edge is None:
            return False
        ends = {each.node for each in self.graph.attentions} | self.graph.products.keys()
        return any(
            node.name() == "AddBackward0"
            and any(each is None for each, _ in node.next_functions)
            and Edge(node, 0).shape.numel() == edge.shape.numel()  # no epsilon of a norm
            and any(isinstance(each, Heard) for each in self.graph.sources(Edge(node, 0)))  # no gain + 1
            for node in below(edge.node, ends.__contains__)
        )

    def _find_pieces(self, product: Product) -> set[Any]:
        """What an output matrix reads beside the heads, not mixed with them: the other branch of a parallel block."""
        node = None if product.reads is None else self.graph.origin(product.reads.node)
        if node is None or node.name() != "CatBackward0" or product.channels != -1:
            return set()
        edges = [Edge(*each) for each in node.next_functions if each[0] is not None]
        sources = [self.graph.sources(each) for each in edges]
        of_heads = [any(isinstance(one, Heard) for one in each) for each in sources]
        widths = [each.shape[-1] for each in edges]
        if all(of_heads) or sum(widths) != self.columns.fan_in(product):
            return set()
        self.fused[product] = [
            ("output" if is_head else "feed_forward_out", n) for is_head, n in zip(of_heads, widths, strict=True)
        ]
        return {one for each, is_head in zip(sources, of_heads, strict=True) if not is_head for one in each}

    def gates(self, product: Product) -> bool:
        """Whether a part of a result goes to the output matrix: it multiplies the heads."""
        return any(
            kind == "product" and self.role.get(each) == "output" for kind, each in self.graph.sinks(product.node)
        )

    # ---- everything else

    def find_rest(self, blocks: dict[str, Block]) -> None:
        """Feed-forward matrices, embeddings and readouts, by the blocks of the model."""
        self.block = {each: block_of(blocks, each.parameters[0]).name for each in self.products}
        rest = [each for each in self.products if each not in self.role and each not in self.makes]
        before, after = self._around_attention()
        self._find_recurrent(rest)
        inner = {each for each in rest if not (each.is_table or each in self.left) and self._stays_inside(each)}
        self._find_mixers(inner)
        for_logits = self._for_logits(rest)
        for product in rest:
            if product in self.left or (
                not product.is_table and product not in inner and self._modulates(product, inner)
            ):
                self.left.setdefault(product, "it modulates the stream")
                continue
            if for_logits.get(product):
                self.left[product] = "it adds to the logits"
            elif product in for_logits:
                self.role[product] = "position"
            elif product.is_table:
                self.role[product] = "position" if self._is_by_place(product) else "embedding"
            elif (readers := self._readers(product)) and all(self.role.get(each) == "gate" for each in readers):
                self.role[product] = "gate"
            elif (
                self.block[product]
                or (product in after and (product in before or not blocks))
                or self._is_branch(product, inner)
            ):
                self.role[product] = self._in_branch(product, inner, may_be_last=not blocks and product not in before)
            elif self._mixes_by_data(product):
                self.left[product] = OTHERWISE
            else:
                self.role[product] = "readout" if product in after - before else "embedding"

    def _is_branch(self, product: Product, inner: set[Product]) -> bool:
        """Whether what is made of something is added to it: the matrices of a branch in a tower of one block."""
        if product in inner:
            if product not in self._branches:  # asked again and again where the stream has many sources
                self._branches[product] = any(self._is_branch(each, inner) for each in self._readers(product))
            return self._branches[product]
        first = self.graph.sources(product.reads) & inner
        reads = {self.graph.sources(each.reads) for each in (product, *first)} - {frozenset()}
        return any(
            user.name() == "AddBackward0" and self.graph.sources(Edge(side, 0)) in reads
            for user in self.beyond_layout(product.node, "Mul", "NativeDropout")
            for side, _ in user.next_functions
            if side is not None
        )

    def _stays_inside(self, product: Product) -> bool:
        """Whether a result goes to products of its own block only, none of which reads the stream."""
        readers = self._readers(product)
        return bool(readers) and all(self._reads_inside(each, self.block[product]) for each in readers)

    def _reads_inside(self, product: Product, block: str) -> bool:
        """Whether all that a product reads was made for products of one block."""
        if product in self.place or self.block.get(product) != block:
            return False
        return all(
            isinstance(source, Product)
            and not source.is_table
            and self.role.get(source) != "output"
            and self.block.get(source) == block
            and (
                (bool(readers := self._readers(source)) and all(self.block.get(each) == block for each in readers))
                or self._is_narrow(self._multiplied(source.node), source)  # a router that weighs experts
            )
            for source in self.graph.sources(product.reads)
        )

    def _in_branch(self, product: Product, inner: set[Product], *, may_be_last: bool) -> str:
        reads, sinks = self.graph.sources(product.reads), self.graph.sinks(product.node)
        if product in inner:
            return "gate" if self._is_narrow(self._multiplied(product.node), product) else "feed_forward_in"
        is_last = all(kind == "end" for kind, _ in sinks)
        if self._is_bent_on(product.node, SQUASH) and not (is_last and self._is_alone(product)):
            return "gate"
        if reads & inner or reads & self.makes.keys():  # a parallel block packs its first matrix with the queries
            return "feed_forward_out"
        if self._multiplied(product.node):
            return "gate"
        if is_last and (may_be_last or not self._is_branch(product, inner)):
            return "readout"
        if self._is_bent_on(product.node, ACTIVATION):
            return "gate"
        for kind, each in sinks:
            if kind == "product" and each.reads and each.reads.shape[-1] == product.result.shape[product.channels]:
                # A result as wide as the stream is added to it, or is the stream from here on.
                return "feed_forward_out" if reads & self.graph.sources(each.reads) else "embedding"
        return "gate"

    def _for_logits(self, rest: list[Product]) -> dict[Product, bool]:
        """Products whose results go to logits alone, and whether they read tokens there, not places."""
        alone: dict[Product, bool] = {}
        for product in reversed(rest):
            sinks = self.graph.sinks(product.node)
            if sinks and all(kind == "logits" or each in alone for kind, each in sinks):
                alone[product] = False
        for product in rest:
            if product in alone and not product.is_table:
                alone[product] = any(alone.get(each, True) for each in self.graph.sources(product.reads))
        return alone

    def _find_recurrent(self, rest: list[Product]) -> None:
        """Matrices that read what they have written themselves, with no attention between, and what is added to it."""
        calls = Counter(each.parameters for each in rest)
        before: dict[Product, tuple[frozenset[Heard], frozenset[Product]]] = {}
        found: dict[tuple[str, ...], Product] = {}
        for product in self.products if any(number > 1 for number in calls.values()) else ():
            sources = self.graph.sources(product.reads)
            heard = {each for each in sources if isinstance(each, Heard)}
            again = {each for each in sources if isinstance(each, Product) and calls[each.parameters] > 1}
            for each in sources:
                heard_before, again_before = before.get(each, (frozenset(), frozenset()))
                heard |= heard_before
                again |= again_before
            before[product] = frozenset(heard), frozenset(again)
            if any(
                each.parameters == product.parameters
                and each.weight.shape == product.weight.shape
                and before[each][0] == heard
                for each in again
            ):
                found[product.parameters] = product
        for product in rest if found else ():
            if product.parameters in found or any(self._are_added(product, each) for each in found.values()):
                self.left[product] = "it is recurrent"

    def _find_mixers(self, inner: set[Product]) -> None:
        """Branches that mix tokens otherwise than by softmax attention; a feed-forward network mixes none."""
        over = [each for each in self.graph.over_tokens if each not in self.makes and each not in self.role]
        self.left |= dict.fromkeys(over, OTHERWISE)
        asked: dict[tuple[str, ...], bool] = {}  # blocks that are alike are asked once
        mixing = inner.intersection(over)
        for product in [each for each in self.products if each in inner and each not in mixing]:
            path = (product, *self._readers(product))
            kind = tuple(self.columns.siblings[name] for each in path for name in each.parameters)
            if kind not in asked:
                asked[kind] = self._mixes_tokens(product)
            if asked[kind]:
                mixing.add(product)
        for product in self.products:
            sources = self.graph.sources(product.reads)
            if sources & mixing:
                self.left |= dict.fromkeys([product, *(sources & inner)], OTHERWISE)
        for product in reversed(self.products):
            reads = self.graph.sources(product.reads)
            if product in inner and reads and all(each in self.left for each in self._readers(product)):
                self.left.setdefault(product, OTHERWISE)

    def _mixes_tokens(self, product: Product) -> bool:
        """Whether what one token of a next product reads is made of several tokens, a short filter aside."""
        handles = [node.register_hook(_as_identity) for node in self.graph.filters]
        try:
            return any(self._spreads(product, each) for each in self._readers(product))
        except RuntimeError:  # it cannot be asked: something was changed in place
            return False
        finally:
            for handle in handles:
                handle.remove()

    def _mixes_by_data(self, product: Product) -> bool:
        """Whether a result mixes tokens by a product of data and data, as an attention does that was not heard."""

        def behind_a_block(user: Node) -> bool:  # the stream there may be mixed by a pool
            return user.name() == "AddBackward0" and not self.graph.sources(Edge(user, 0)).isdisjoint(self.role)

        return any(user.name() in PRODUCTS for user, _ in self.graph.ahead(product.node, behind_a_block)) and any(
            self._spreads(each, reader)
            for kind, reader in self.graph.sinks(product.node)
            if kind == "product"
            for each in self.graph.sources(reader.reads)
            if isinstance(each, Product)
        )

    def _spreads(self, product: Product, reader: Product) -> bool:
        """Whether more tokens of a result go into the last token, or every second one, that another product reads."""
        assert reader.reads is not None
        if 0 in reader.reads.shape:  # an expert to whom no token was sent
            return False
        between = self.graph.sources(reader.reads) - {product}
        for some in (slice(-1, None), slice(None, None, 2)):
            weights = torch.zeros(reader.reads.shape)
            tokens = weights.movedim(reader.summed, 0).flatten(1)[:, some]
            tokens.fill_(1.0)
            (gradient,) = gradients([reader.reads], [product.result], [weights], silent=between)
            touched = torch.zeros(1) if gradient is None else (gradient != 0).any(product.channels)
            if (touched.any(0) if self.columns.batch(product) > 1 else touched).sum() > tokens.shape[1]:
                return True
        return False

    def _modulates(self, product: Product, inner: set[Product]) -> bool:
        """Whether each feature of a result multiplies one of the stream."""
        sides = None if self.graph.sources(product.reads) & inner else self._multiplied(product.node)
        return sides is not None and not self._is_narrow(sides, product) and not self._is_bent(sides[0], NORM)

    def _is_narrow(self, sides: tuple[Edge, Edge] | None, product: Product) -> bool:
        """Whether one number of a result multiplies all features of something."""
        return sides is not None and sides[0].shape[product.channels] == 1

    def _multiplied(self, node: Node) -> tuple[Edge, Edge] | None:
        """Where a result is multiplied, entry by entry, before it is added to anything else: itself, and with what."""
        for user, index in self.graph.ahead(node, self.graph.joins):
            if user.name().startswith("Mul") and self.graph.joins(user):
                sides = [Edge(*each) for each in user.next_functions]
                return sides[index], sides[1 - index]
        return None

    def _around_attention(self) -> tuple[set[Product], set[Product]]:
        """Products that an attention comes after, and products that come after one."""
        before, after = set(), set()
        for product in self.products:
            if any(isinstance(each, Heard) or each in after for each in self.graph.sources(product.reads)):
                after.add(product)
        for product in reversed(self.products):
            if any(kind in INSIDE or each in before for kind, each in self.graph.sinks(product.node)):
                before.add(product)
        return before, after

    def _is_by_place(self, product: Product) -> bool:
        """Whether a table is looked up with the same rising numbers in every sequence."""
        indices = getattr(product.node, "_saved_indices", None)
        if isinstance(indices, tuple | list) and len(indices) == 1:  # ``table[places]``
            (indices,) = indices
        if not isinstance(indices, Tensor) or indices.numel() < 2 or indices.ndim < 1:
            return False
        rows = indices.reshape(-1, indices.shape[-1])
        return bool((rows == rows[0]).all() and (rows[0].diff() == 1).all())

    def _is_computed(self, node: Node) -> bool:
        """Whether a node has something to do with a product; a mask of zeros and ones has not."""
        return any(self.graph.sources(Edge(each, 0)) for each, _ in node.next_functions if each is not None)

    def zero_centred(self) -> Iterator[str]:
        """Vectors to which a number is added before they multiply: the identity of such a norm is 0."""
        for node in self.graph.order:
            name = self.graph.names.get(id(node.variable)) if is_leaf(node) else None
            if name is None or node.variable.ndim > 1:
                continue
            for user in self.beyond_layout(node):
                if self._is_shifted(user):
                    yield name

    def leaves(self) -> Iterator[tuple[str, str]]:
        """Matrices that are added to tokens, stand among them, or multiply entry by entry: name and role, or "gain"."""
        known = {name for product in self.graph.products.values() for name in product.parameters} | self.graph.biases
        for node in self.graph.order:
            name = self.graph.names.get(id(node.variable)) if is_leaf(node) else None
            if name is None or name in known or name in self.graph.mixers or node.variable.ndim < 2:
                continue
            kinds = {kind for kind, _ in self.graph.sinks(node)}
            users = set(self._uses(node))
            names = {user.name() for user in users}
            only_logits = bool(kinds) and kinds <= {"logits"}
            beside = [self._beside(node, user) for user in users if user.name().startswith(("Add", "Sub"))]
            is_added = node.variable.shape[-2] > 1 and not all(is_made for _, is_made in beside)
            is_vector = max(node.variable.shape) == node.variable.numel()
            if (
                self._is_no_token(node)
                or any(user.name() == "MulBackward0" and self._is_computed(user) for user in users)
                or (is_vector and only_logits)
                or any(made and made <= self.left.keys() for made, _ in beside)
            ):
                yield name, "gain"
            elif self._is_bias(node, users):
                yield name, "bias"
            elif all(_is_known(each) for each in names) and not self._is_factor(node):
                yield name, "position" if is_added or only_logits else "embedding"

    def _uses(self, node: Node) -> Iterator[Node]:
        """What a parameter goes into, moved about, bent, or with a number added."""
        for user in self.beyond_layout(node, "Exp", "Sigmoid", "Softplus", "Clamp", "Tanh", "Neg"):
            if self._is_shifted(user) and self.graph.made_of(user):
                yield from self._uses(user)
            else:
                yield user

    def _is_shifted(self, node: Node) -> bool:
        """Whether a number is added to something before that multiplies."""
        is_sum = node.name() == "AddBackward0" and sum(each is not None for each, _ in node.next_functions) == 1
        return is_sum and any(each.name() == "MulBackward0" for each, _ in self.graph.users.get(node, ()))

    def _beside(self, node: Node, total: Node) -> tuple[frozenset[Any], bool]:
        """What the rest of a sum is made of, and whether what is added is in there, too: it holds tokens."""
        made, stack, seen = frozenset[Any](), list[Node](), set[Node]()
        for each, _ in total.next_functions:
            if each is not None and not self._is_only(each, node):
                made |= self.graph.sources(Edge(each, 0))
                stack.append(each)
        while stack:
            each = stack.pop()
            if each is node:
                return made, True
            if each not in seen:
                seen.add(each)
                stack += [below for below, _ in each.next_functions if below is not None]
        return made, False

    def _is_only(self, node: Node, leaf: Node) -> bool:
        """Whether a tensor is a parameter, moved about or scaled."""
        return node is leaf or (not is_leaf(node) and self.graph.made_of(node) == self.graph.made_of(leaf))

    def _is_factor(self, node: Node) -> bool:
        """Whether a parameter, or what it scales, multiplies data as a matrix that is not read."""
        scaled = re.compile("Mul|Div|ConstantPad")
        users = self.graph.ahead(node, lambda user: not (LAYOUT.fullmatch(user.name()) or scaled.match(user.name())))
        return any(user.name() in PRODUCTS or STRANGE.match(user.name()) for user, _ in users)

    def _is_bias(self, node: Node, users: set[Node]) -> bool:
        """Whether it is added to an operand and has a number for each of its features, in all heads."""
        sums = [user for user in users if user.name() == "AddBackward0"]
        made = [self.makes.get(each, {}) for user in sums for each in self.graph.sources(Edge(user, 0))]
        return any(sum(map(len, heads)) == node.variable.numel() for roles in made for heads in roles.values())

    def _is_no_token(self, node: Node) -> bool:
        """Whether a matrix is none of tokens: no product reads its width, or an operand is multiplied with it."""
        sinks, shape = self.graph.sinks(node), node.variable.shape
        widths = {each.reads.shape[each.summed] for kind, each in sinks if kind == "product" and each.reads}
        if widths:
            return widths.isdisjoint(shape)
        return {kind for kind, _ in sinks} <= {*OPERANDS} and self._multiplied(node) is not None


def _as_identity(inputs: tuple[Tensor | None, ...], outputs: tuple[Tensor | None, ...]) -> Any:
    """As if a convolution were none, in a backward pass."""
    (before, *rest), (after, *_) = inputs, outputs
    if before is None or after is None or before.shape[:2] != after.shape[:2]:
        return None
    made = torch.zeros_like(before)
    part = tuple(slice(min(a, b)) for a, b in zip(before.shape, after.shape, strict=True))
    made[part] = after[part]
    return (made, *rest)


def _is_known(kind: str) -> bool:
    """Whether a node is one of torch's whose work is read; what a function of somebody's own does is not known."""
    return "CopySlices" in kind or (kind[-1].isdigit() and not STRANGE.match(kind))
