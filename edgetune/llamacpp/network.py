"""A grammar as a network of nodes, in which rules are called as functions are, and the least bytes from each to an end.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict

from . import gbnf
from .gbnf import Ranges

END = 0  # the node with which each rule ends


class Network:
    """A node is one of four kinds: END; a character of a set; a call of a rule; a choice among the nodes that follow.

    Lists by node: sets of characters, the nodes with which called rules begin, the nodes that follow, and needs, the
    least bytes to the end of the node's rule (Knuth's generalization of Dijkstra's algorithm). root, starts: the nodes
    with which the grammar and its rules begin. bounds: characters between two of them are in the same sets.
    """

    def __init__(self, rules: gbnf.Rules) -> None:
        self.sets: list[Ranges] = [[]]
        self.calls: list[int] = [END]
        self.nexts: list[tuple[int, ...]] = [()]
        self._starts = {name: self._node(()) for name in rules}
        for name, sequences in rules.items():
            self.nexts[self._starts[name]] = tuple(map(self._sequence, sequences))
        self.root = self._starts["root"]
        self.starts = tuple(self._starts.values())
        self.bounds = sorted({bound for ranges in self.sets for low, high in ranges for bound in (low, high + 1)})
        self.needs = self._shortest_needs()

    def _node(self, nexts: tuple[int, ...], ranges: Ranges | None = None, call: int = END) -> int:
        self.sets.append(ranges or [])
        self.calls.append(call)
        self.nexts.append(nexts)
        return len(self.nexts) - 1

    def _sequence(self, items: list[gbnf.Item]) -> int:
        """The node with which a sequence begins."""
        node = END
        for item in reversed(items):
            node = self._repeated(item, node)
        return node

    def _repeated(self, item: gbnf.Item, behind: int) -> int:
        start = END
        sets = gbnf.sets(item.characters)
        if item.rule is not None:
            start = self._starts[item.rule]
        elif len(sets) > 1 and item.most != 1:
            start = self._once(sets, END, END)
        if item.most is None:
            node = self._node(())
            self.nexts[node] = (self._once(sets, start, node), behind)
        else:
            node = behind
            for _ in range(item.most - item.least):
                node = self._node((self._once(sets, start, node), behind))
        for _ in range(item.least):
            node = self._once(sets, start, node)
        return node

    def _once(self, sets: list[Ranges], start: int, behind: int) -> int:
        """A call of the rule that starts there, or a text's characters."""
        if start != END:
            return self._node((behind,), call=start)
        for ranges in reversed(sets):
            behind = self._node((behind,), ranges) if ranges else self._node(())  # nothing follows
        return behind

    def _shortest_needs(self) -> list[float]:
        """Computes the least bytes from each node to the end of its rule; infinite where a rule has no end."""
        users: dict[int, list[int]] = defaultdict(list)
        for node, nexts in enumerate(self.nexts):
            for used in (*nexts, self.calls[node]) if self.calls[node] != END else nexts:
                users[used].append(node)
        needs = [math.inf] * len(self.nexts)
        queue: list[tuple[float, int]] = [(0, END)]
        while queue:
            need, node = heapq.heappop(queue)
            if need >= needs[node]:
                continue
            needs[node] = need
            for user in users[node]:
                if self.calls[user] != END:
                    total = needs[self.calls[user]] + needs[self.nexts[user][0]]
                elif self.sets[user]:
                    total = need + len(chr(self.sets[user][0][0]).encode())  # in UTF-8
                else:
                    total = need
                if total < needs[user]:
                    heapq.heappush(queue, (total, user))
        return needs
