"""What the graph tells of the architecture around an attention: norms, soft-caps, gates, sharing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch

from attntut.anatomy.graph import Edge, Graph, Heard, Node, Product, below
from attntut.anatomy.roles import Roles
from attntut.anatomy.weight import OPERANDS

NORMS = {
    "NativeLayerNormBackward0",
    "FusedRmsNormBackward0",
    "NativeGroupNormBackward0",
    "NativeBatchNormBackward0",
    "LinalgVectorNormBackward0",
    "NormBackward0",
    "RsqrtBackward0",
}


class Architecture:
    """Reads traits off a graph.

    Args:
        graph: of a forward pass.
        roles: of its products.
        in_norm: whether a node was made inside a module that normalizes.
    """

    def __init__(self, graph: Graph, roles: Roles, in_norm: Callable[[Node], bool]) -> None:
        self.graph, self.roles, self.in_norm = graph, roles, in_norm
        calls: list[Product | Heard] = [*roles.products, *graph.attentions]
        self.calls = sorted(calls, key=lambda each: each.node._sequence_nr())  # in the order of the forward pass

    def traits(self, heard: Heard) -> dict[str, Any]:
        """What is known of one attention, by the names of :class:`~attntut.TransformerConfig` where it has one."""
        query = next(iter(self._makers(heard, "query")), None)
        inside = [each for each, place in self.roles.place.items() if place is heard]
        found: dict[str, Any] = {
            "qk_norm": any(self._is_normed(edge) for edge in (heard.query, heard.key)),
            "output_gate": any(self.roles.role.get(each) == "gate" for each in inside)
            or (query is not None and self.roles.gates(query)),
        }
        if heard.scores is not None:
            found["soft_cap"] = self._cap(heard)
        output = next((each for each in inside if self.roles.role.get(each) == "output"), None)
        return found if output is None else found | self._norm_place(output, query)

    def is_cross(self, heard: Heard) -> bool | None:
        """Whether queries and keys are made from different things; None where both are made from raw inputs."""
        query, key = (self._makers(heard, role) for role in ("query", "key"))
        asks, tells = (self._read_by(heard, each) for each in (query, key))
        return asks.isdisjoint(tells) if query and key and (asks or tells) else None

    def _read_by(self, heard: Heard, products: Iterable[Product]) -> set[Any]:
        """What products read; of what is made for this attention alone (latents, fewer tokens), what that reads."""
        sources = set[Any]().union(*(self.graph.sources(each.reads) for each in products))
        own = [
            source
            for source in sources
            if isinstance(source, Product)
            and all(heard in (each, self.roles.place.get(each)) for _, each in self.graph.sinks(source.node))
        ]
        return sources.difference(own) | (self._read_by(heard, own) if own else set())

    def passes(self) -> dict[str, int]:
        """How often the stream comes through each parameter: how many calls follow on each other."""
        calls = Counter(name for product in self.roles.products for name in product.parameters)
        so_far: dict[Any, Counter[str]] = {}  # of each product and attention: calls on the longest way there
        count = dict.fromkeys(calls, 1)
        if not any(number > 1 for number in calls.values()):
            return count
        for each in self.calls:
            so_far[each] = Counter()
            for source in self._sources(each, OPERANDS):
                so_far[each] |= so_far.get(source, Counter())
            for name in each.parameters if isinstance(each, Product) else ():
                if calls[name] > 1:
                    so_far[each][name] += 1
                    count[name] = max(count[name], so_far[each][name])
        return count

    def _sources(self, call: Product | Heard, roles: Iterable[str]) -> set[Any]:
        """What a product reads is made of, or what these operands of an attention are."""
        edges = [getattr(call, role) for role in roles] if isinstance(call, Heard) else [call.reads]
        return {source for edge in edges for source in self.graph.sources(edge)}

    def layers(self, tower: Mapping[Any, str]) -> dict[str, tuple[int, int]]:
        """Which attention of its kind each parameter stands at on the way of the stream, and of how many.

        Args:
            tower: of each product and attention: the tower that it is in. Only those of its own count.
        """
        up = {
            each: [other for other in before if tower[other] == tower[each]]
            for each, before in self._upstream("query").items()
        }
        count: dict[Heard, int] = {}
        total: dict[Heard, int] = {}
        found: dict[str, tuple[int, int]] = {}
        kind = {each: self.is_cross(each) is True for each in self.calls if isinstance(each, Heard)}
        for each in kind:
            before = [other for other in up[each] if kind[other] == kind[each]]
            count[each] = 1 + max((count[other] for other in before), default=0)
            for other in (*before, each):
                total[other] = max(total.get(other, 0), count[each])
        for product in self.roles.products:
            at = self.roles.place.get(product) or max(up[product], key=lambda each: count[each], default=None)
            if at is None and product in self.roles.role:
                at = next((each for each in self.graph.attentions if tower[each] == tower[product]), None)
            for name in product.parameters:
                if at is not None:
                    found.setdefault(name, (count[at], total[at]))
        return found

    def apart(self, stack: Mapping[Heard, str]) -> set[str]:
        """Stacks of two or more attentions none of which another follows on."""
        up = self._upstream(*OPERANDS)
        several = {name for name, times in Counter(stack.values()).items() if name and times > 1}
        return several - {stack[each] for each in stack if any(stack[other] == stack[each] for other in up[each])}

    def _upstream(self, *roles: str) -> dict[Any, frozenset[Heard]]:
        """The attentions that each product and attention comes after, on the way of these operands."""
        up: dict[Any, frozenset[Heard]] = {}
        for each in self.calls:
            sources = self._sources(each, roles)
            up[each] = frozenset(each for each in sources if isinstance(each, Heard)).union(
                *(up.get(source, frozenset()) for source in sources)
            )
        return up

    def _makers(self, heard: Heard, role: str) -> list[Product]:
        sources = self.graph.sources(getattr(heard, role))
        return [each for each in self.roles.products if each in sources and role in self.roles.makes.get(each, ())]

    def _back(self, edges: Iterable[Edge]) -> set[Node]:
        """The nodes between tensors and the products or sums that they are made of."""

        def ends(node: Node) -> bool:
            return node in self.graph.products or self._is_sum(node)

        return {node for edge in edges for node in below(edge.node, ends) if not ends(node)}

    def _is_normed(self, edge: Edge | None, but: Collection[Node] = ()) -> bool:
        """Whether a norm, but for some nodes, lies between a tensor and what :meth:`_back` ends at."""
        return edge is not None and any(self._is_norm(node) for node in self._back([edge]).difference(but))

    def _cap(self, heard: Heard) -> float | None:
        """The number c of a soft-cap c·tanh(s/c); None where there is none, or it is not a number in the code."""
        for node in below(heard.entry, lambda each: each is heard.scores or each in self.graph.products):
            if node.name() == "TanhBackward0":
                factors = (getattr(user, "_saved_other", None) for user, _ in self.graph.users.get(node, ()))
                known = (torch.as_tensor(each) for each in factors if each is not None)
                return next((each.item() for each in known if each.numel() == 1), None)
        return None

    def _norm_place(self, output: Product, query: Product | None) -> dict[str, Any]:
        """Where the norm stands: before a branch (pre), in front of its sum (res-post), both (sandwich), after the sum
        (post), or nowhere (none)."""
        join = self._next_sum(output.node, through_norms=True)
        if join is None:
            return {"residual": False}
        if self._next_sum(join, through_norms=True) is None:
            return {"residual": True}
        if self._next_sum(join, through_norms=False) is None:
            return {"residual": True, "norm": "post"}
        is_inside = self._next_sum(output.node, through_norms=False) is None
        skip = [Edge(*each) for each in join.next_functions if output not in self.graph.sources(Edge(*each))]
        is_before = query is not None and self._is_normed(query.reads, self._back(skip))
        places = {(True, True): "sandwich", (True, False): "pre", (False, True): "res-post", (False, False): "none"}
        return {"residual": True, "norm": places[is_before, is_inside]}

    def _next_sum(self, node: Node, *, through_norms: bool) -> Node | None:
        """The first sum of a branch and the stream that a result goes into, without another product."""
        users = self.graph.ahead(node, lambda user: not through_norms and self._is_norm(user))
        return next((user for user, _ in users if self._is_sum(user)), None)

    def _is_norm(self, node: Node) -> bool:
        return node.name() in NORMS or self.in_norm(node)

    def _is_sum(self, node: Node) -> bool:
        """Whether two tensors of different origin are added here: a branch and the stream."""
        return node.name() == "AddBackward0" and not self.in_norm(node) and self.graph.joins(node)
