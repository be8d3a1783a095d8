"""What a text that follows a grammar may be followed by: states, as of an automaton that is made while it is needed.

A stack is a node of the grammar's network and where its callers continue; a state has all stacks that the text so far
may lead to. States are kept with their moves, so that most characters of an answer are one look-up in a dict. A stack's
need is the least number of bytes to the end: that of each of its nodes to the end of its rule, summed.
"""

from __future__ import annotations

import codecs
import functools
import heapq
import math
from bisect import bisect
from collections import defaultdict
from dataclasses import dataclass, field
from functools import reduce

from ..errors import UsageError
from . import gbnf
from .gbnf import Ranges

END = 0  # the node with which each rule ends


class GrammarNetwork:
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
            self.nexts[self._starts[name]] = tuple(  # the node with which each sequence begins
                reduce(lambda behind, item: self._repeated(item, behind), reversed(items), END) for items in sequences)
        self.root = self._starts["root"]
        self.starts = tuple(self._starts.values())
        self.bounds = sorted({bound for ranges in self.sets for low, high in ranges for bound in (low, high + 1)})
        self.needs = self._shortest_needs()

    def _node(self, nexts: tuple[int, ...], ranges: Ranges | None = None, call: int = END) -> int:
        self.sets.append(ranges or [])
        self.calls.append(call)
        self.nexts.append(nexts)
        return len(self.nexts) - 1

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


WAYS = 1024  # stacks of a state
VISITED = 10_000  # nodes of a state: a rule that begins with itself has no end of them
MAX_WORK = 1_000_000  # nodes visited in one answer, about two seconds of a core; long JSON takes a tenth
EMPTY = 0  # the stack on which the whole grammar has ended


@dataclass(eq=False)
class GrammarState:
    """Stacks that the text so far may lead to, the least need of them, and states by the class of the next character.
    Without stacks nothing continues the text.
    """

    stacks: tuple[int, ...]
    need: float
    moves: dict[int, GrammarState] = field(default_factory=dict)

    @property
    def may_end(self) -> bool:
        return EMPTY in self.stacks


@functools.lru_cache(4)
def network_of(text: str) -> GrammarNetwork:
    """The network of a grammar, for any number of answers. Raises UsageError for a grammar that is not valid, or that
    may begin a rule in more ways than a state can have.
    """
    network = GrammarNetwork(gbnf.parse(text))
    states = FormStates(network)
    for start in network.starts:
        states.start(start)
    if not states.start().stacks:
        raise UsageError("the grammar lets no text through", gbnf.HINT)
    return network


class FormStates:
    """The states that the texts of a grammar lead to, as far as one answer has met them."""

    def __init__(self, network: GrammarNetwork) -> None:
        self._network = network
        self._stacks: list[tuple[int, int]] = [(END, -1)]  # (node, stack of the caller)
        self._needs: list[float] = [0.0]  # by stack
        self._numbers: dict[tuple[int, int], int] = {}
        self._states: dict[frozenset[int], GrammarState] = {}
        self._work = 0

    def start(self, node: int | None = None) -> GrammarState:
        """The state before the first character: of the grammar, or of the rule that begins with a node."""
        return self._state([(self._network.root if node is None else node, EMPTY)])

    def move(self, state: GrammarState, character: str) -> GrammarState:
        """The state after one more character."""
        code = ord(character)
        kind = bisect(self._network.bounds, code)
        found = state.moves.get(kind)
        if found is None:
            behind = []
            for node, caller in map(self._stacks.__getitem__, state.stacks):
                if any(low <= code <= high for low, high in self._network.sets[node]):
                    behind.append((self._network.nexts[node][0], caller))
            found = state.moves[kind] = self._state(behind)
        return found

    def follow(self, state: GrammarState, begun: bytes, data: bytes) -> tuple[GrammarState, bytes] | None:
        """(state, the bytes of a character whose last ones are still to come) after more bytes; None if they cannot
        follow. begun: such bytes before them.
        """
        try:
            text, used = codecs.utf_8_decode(begun + data, "strict", False)
        except UnicodeDecodeError:
            return None
        for character in text:
            state = self.move(state, character)
            if not state.stacks:
                return None
        rest = (begun + data)[used:]
        return None if rest and self.completed(state, rest) is None else (state, rest)

    def completed(self, state: GrammarState, begun: bytes) -> str | None:
        """A character that begins with these bytes and may follow, that with the shortest ending; None without any."""
        first, last = _span(begun)
        found = {}
        for stack in state.stacks:
            for low, high in self._network.sets[self._stacks[stack][0]]:
                if max(low, first) <= min(high, last):
                    character = chr(max(low, first))
                    found[self.move(state, character).need] = character
        return found[min(found)] if found else None

    def shortest(self, state: GrammarState) -> str:
        """The shortest text that ends the answer."""
        stack = min(state.stacks, key=lambda stack: (self._needs[stack], stack))
        node, caller = self._stacks[stack]
        callers = [(node, caller)]  # the last one is followed first
        characters = []
        while callers:
            node, caller = callers.pop()
            while node != END:
                if self._network.sets[node]:
                    characters.append(chr(self._network.sets[node][0][0]))
                    node = self._network.nexts[node][0]
                elif self._network.calls[node] != END:
                    callers.append((self._network.nexts[node][0], caller))
                    node = self._network.calls[node]
                    caller = -1
                else:
                    node = min(self._network.nexts[node], key=self._network.needs.__getitem__)
            if caller > EMPTY:
                callers.append(self._stacks[caller])
        return "".join(characters)

    def _state(self, todo: list[tuple[int, int]]) -> GrammarState:
        """The state of these stacks, each followed to the characters that may come next."""
        seen = set(todo)
        stacks = set()
        while todo:
            node, caller = todo.pop()
            if node == END and caller == EMPTY:
                stacks.add(EMPTY)
                continue
            if node == END:
                follow = [self._stacks[caller]]
            elif self._network.sets[node]:
                stacks.add(self._stack(node, caller))
                continue
            elif self._network.calls[node] != END:
                behind = self._network.nexts[node][0]
                follow = [(self._network.calls[node], caller if behind == END else self._stack(behind, caller))]
            else:
                follow = [(next_node, caller) for next_node in self._network.nexts[node]]
            todo += [each for each in follow if each not in seen]
            seen.update(follow)
            if len(seen) > VISITED or len(stacks) > WAYS:
                raise _too_many_ways()
        self._work += len(seen)
        if self._work > MAX_WORK:
            raise _too_many_ways()
        key = frozenset(stacks)
        if key not in self._states:
            need = min((self._needs[stack] for stack in stacks), default=math.inf)
            self._states[key] = GrammarState(tuple(stacks), need)
        return self._states[key]

    def _stack(self, node: int, caller: int) -> int:
        """The number of a stack."""
        number = self._numbers.setdefault((node, caller), len(self._stacks))
        if number == len(self._stacks):
            self._stacks.append((node, caller))
            self._needs.append(self._network.needs[node] + self._needs[caller])
        return number


def _too_many_ways() -> UsageError:
    return UsageError("the grammar can be followed in too many ways at once",
                      "let alternatives and repetitions begin with different characters, and no rule with itself")


def _span(begun: bytes) -> tuple[int, int]:
    """The first and the last character whose UTF-8 begins with these bytes."""
    size = 2 if begun[0] < 0xE0 else 3 if begun[0] < 0xF0 else 4
    code = begun[0] & (0x7F >> size)
    for byte in begun[1:]:
        code = code << 6 | byte & 0x3F
    bits = 6 * (size - len(begun))
    return max(code << bits, (0x80, 0x800, 0x10000)[size - 2]), min((code + 1 << bits) - 1, 0x10FFFF)
