"""What the graph tells of the architecture around an attention: norms, soft-caps, gates, sharing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch

from attntut.anatomy.graph import Edge, Graph, Heard, Node, Product
from attntut.anatomy.roles import Roles

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

    def traits(self, heard: Heard) -> dict[str, Any]:
        """What is known of one attention, by the names of :class:`~attntut.TransformerConfig` where it has one."""
        query, key = (self._maker(heard, role) for role in ("query", "key"))
        inside = [each for each, place in self.roles.place.items() if place is heard]
        found: dict[str, Any] = {
            "qk_norm": any(self._between(edge, NORMS) for edge in (heard.query, heard.key)),
            "output_gate": any(self.roles.role.get(each) == "gate" for each in inside)
            or (query is not None and self.roles.gates(query)),
        }
        if heard.scores is not None:
            found["soft_cap"] = self._cap(heard)
        output = next((each for each in inside if self.roles.role.get(each) == "output"), None)
        return found if output is None else found | self._norm_place(output, query)

    def is_cross(self, heard: Heard) -> bool | None:
        """Whether queries and keys are made from different things; None where both are made from raw inputs."""
        query, key = (self._maker(heard, role) for role in ("query", "key"))
        asks, tells = (self.graph.sources(each.reads) if each else frozenset() for each in (query, key))
        return asks.isdisjoint(tells) if query and key and (asks or tells) else None

    def passes(self) -> dict[str, int]:
        """How often the stream comes through each parameter: how many calls follow on each other."""
        calls = Counter(name for product in self.roles.products for name in product.parameters)
        so_far: dict[Any, Counter[str]] = {}  # of each product and attention: calls on the longest way there
        count = dict.fromkeys(calls, 1)
        if not any(number > 1 for number in calls.values()):
            return count

        def merged(sources: Iterable[Any]) -> Counter[str]:
            total: Counter[str] = Counter()
            for each in sources:
                total |= so_far.get(each, Counter())
            return total

        calls_of: list[Product | Heard] = [*self.roles.products, *self.graph.attentions]
        for each in sorted(calls_of, key=lambda each: each.node._sequence_nr()):
            if isinstance(each, Heard):
                edges = (each.query, each.key, each.value)
                so_far[each] = merged(source for edge in edges for source in self.graph.sources(edge))
                continue
            so_far[each] = merged(self.graph.sources(each.reads))
            for name in each.parameters:
                if calls[name] > 1:
                    so_far[each][name] += 1
                    count[name] = max(count[name], so_far[each][name])
        return count

    def layers(self) -> dict[str, tuple[int, int]]:
        """Which attention of its kind each parameter stands at on the way of the stream, and of how many."""
        up = self._upstream("query")
        count: dict[Heard, int] = {}
        total: dict[Heard, int] = {}
        found: dict[str, tuple[int, int]] = {}
        kind = {heard: self.is_cross(heard) is True for heard in self.graph.attentions}
        for each in sorted(kind, key=lambda each: each.node._sequence_nr()):
            before = [other for other in up[each] if kind[other] == kind[each]]
            count[each] = 1 + max((count[other] for other in before), default=0)
            for other in (*before, each):
                total[other] = max(total.get(other, 0), count[each])
        for product in self.roles.products:
            at = self.roles.place.get(product) or max(up[product], key=lambda each: count[each], default=None)
            if at is None:
                at = next((each for each in self.graph.attentions if product in self.roles.role), None)
            for name in product.parameters:
                if at is not None:
                    found.setdefault(name, (count[at], total[at]))
        return found

    def apart(self, stack: Mapping[Heard, str]) -> set[str]:
        """Stacks of two or more attentions none of which another follows on."""
        up = self._upstream("query", "key", "value")
        several = {name for name, times in Counter(stack.values()).items() if name and times > 1}
        return several - {stack[each] for each in stack if any(stack[other] == stack[each] for other in up[each])}

    def _upstream(self, *roles: str) -> dict[Any, frozenset[Heard]]:
        """The attentions that each product and attention comes after, on the way of these operands."""
        up: dict[Any, frozenset[Heard]] = {}
        calls: list[Product | Heard] = [*self.roles.products, *self.graph.attentions]
        for each in sorted(calls, key=lambda each: each.node._sequence_nr()):
            edges = [getattr(each, role) for role in roles] if isinstance(each, Heard) else [each.reads]
            sources = {source for edge in edges for source in self.graph.sources(edge)}
            up[each] = frozenset(each for each in sources if isinstance(each, Heard)).union(
                *(up.get(source, frozenset()) for source in sources)
            )
        return up

    def _maker(self, heard: Heard, role: str) -> Product | None:
        sources = self.graph.sources(getattr(heard, role))
        return next((each for each in sources if role in self.roles.makes.get(each, ())), None)

    def _back(self, edges: Iterable[Edge]) -> set[Node]:
        """The nodes between tensors and the products or sums that they are made of."""
        stack, seen = [edge.node for edge in edges], set[Node]()
        while stack:
            node = stack.pop()
            if not (node is None or node in seen or node in self.graph.products or self._is_sum(node)):
                seen.add(node)
                stack += [each for each, _ in node.next_functions]
        return seen

    def _between(self, edge: Edge | None, kinds: Collection[str], but: Collection[Node] = ()) -> bool:
        """Whether a node of one of these kinds, but for some, lies between a tensor and what :meth:`_back` ends at."""
        return any(
            node not in but and (node.name() in kinds or (kinds is NORMS and self.in_norm(node)))
            for node in self._back([] if edge is None else [edge])
        )

    def _cap(self, heard: Heard) -> float | None:
        """The number c of a soft-cap c·tanh(s/c); None where there is none, or it is not a number in the code."""
        stack, seen = [heard.entry], {heard.scores}
        while stack:
            for node, _ in stack.pop().next_functions:
                if node is None or node in seen or node in self.graph.products:
                    continue
                seen.add(node)
                if node.name() == "TanhBackward0":
                    factors = (getattr(user, "_saved_other", None) for user, _ in self.graph.users.get(node, ()))
                    known = (torch.as_tensor(each) for each in factors if each is not None)
                    return next((each.item() for each in known if each.numel() == 1), None)
                stack.append(node)
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
        is_before = query is not None and self._between(query.reads, NORMS, self._back(skip))
        places = {(True, True): "sandwich", (True, False): "pre", (False, True): "res-post", (False, False): "none"}
        return {"residual": True, "norm": places[is_before, is_inside]}

    def _next_sum(self, node: Node, *, through_norms: bool) -> Node | None:
        """The first sum of a branch and the stream that a result goes into, without another product."""
        stack, seen = [node], {node}
        while stack:
            for user, index in self.graph.users.get(stack.pop(0), ()):
                if user in seen or user in self.graph.products or (user, index) in self.graph.by_operand:
                    continue
                seen.add(user)
                if self._is_sum(user):
                    return user
                if through_norms or not (user.name() in NORMS or self.in_norm(user)):
                    stack.append(user)
        return None

    def _is_sum(self, node: Node) -> bool:
        """Whether two tensors of different origin are added here: a branch and the stream."""
        if node is None or node.name() != "AddBackward0" or self.in_norm(node):
            return False
        made = [self.graph.sources(Edge(each, 0)) for each, _ in node.next_functions if each is not None]
        return len(made) == 2 and all(made) and made[0] != made[1]
