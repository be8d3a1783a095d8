"""The shortest way in which an answer can still end by its grammar, so that max_tokens does not cut it.

A stack is a node of the grammar's network and where its callers continue; a state has all stacks that the text so far
may lead to. States are kept with their moves, so that most characters of an answer are one look-up in a dict. A stack's
need is the least number of bytes to the end: that of each of its nodes to the end of its rule, summed.
"""

from __future__ import annotations

import codecs
import math
from dataclasses import dataclass, field

from .network import END, Network
from .tokenizer import Tokenizer

MAX_WORK = 300_000  # nodes visited in one answer, about half a second: an ambiguous grammar visits more and more
EMPTY = 0  # the stack on which the whole grammar has ended


class TooAmbiguousError(Exception):
    """The answer has visited MAX_WORK nodes."""


@dataclass(eq=False)
class State:
    """Stacks that the text so far may lead to, the least need of them, and states by the next character."""

    stacks: tuple[int, ...]
    need: float
    moves: dict[str, State] = field(default_factory=dict)


class Closing:
    """An answer of at most `budget` tokens: it replaces tokens after which the shortest ending would no longer fit.

    Where the shortest answer has more tokens than the budget, or the grammar is too
    ambiguous, it lets all tokens through, and the answer may be cut.
    """

    def __init__(self, network: Network, tokenizer: Tokenizer, budget: int) -> None:
        self._tokenizer = tokenizer
        self._left = budget
        self._begun = b""  # of a character whose last bytes are still to come
        self._plan: list[int] | None = None  # tokens of an ending that fits; None: of the shortest in bytes, any does
        self._states = _States(network)
        self._active = True
        try:
            self._state = self._states.start()
            self._active = self._fits(self._state, b"", budget)
        except TooAmbiguousError:
            self._active = False

    def token(self, wanted: int) -> int:
        """The token that the answer continues with: the wanted one, which the grammar allows, if it can be."""
        if not self._active or self._tokenizer.is_end(wanted):
            return wanted
        self._left -= 1
        try:
            return self._chosen(wanted)
        except TooAmbiguousError:
            self._active = False
            return wanted

    def _chosen(self, wanted: int) -> int:
        plan = self._plan
        state, begun = self._after(wanted)
        if self._fits(state, begun, self._left):
            self._state, self._begun = state, begun
            return wanted
        if plan is None:
            plan = self._ending(self._state, self._begun)
        if not plan:  # the answer is whole
            ends = (self._tokenizer.eot, self._tokenizer.eos)
            return next((end for end in ends if end is not None and self._tokenizer.is_end(end)), wanted)
        self._plan = plan[1:]
        self._state, self._begun = self._after(plan[0])
        return plan[0]

    @property
    def whole(self) -> bool:
        """Whether the answer may end here by its grammar; False where it only lets tokens through."""
        return self._active and EMPTY in self._state.stacks and not self._begun

    def _after(self, token: int) -> tuple[State, bytes]:
        decoder = codecs.getincrementaldecoder("utf-8")()
        state = self._state
        for character in decoder.decode(self._begun + self._tokenizer.piece(token)):
            state = self._states.move(state, character)
        return state, decoder.getstate()[0]

    def _fits(self, state: State, begun: bytes, left: int) -> bool:
        """Whether an ending from here has at most `left` tokens; it becomes the plan. No token has less than a byte."""
        if not begun and state.need <= left:
            self._plan = None
            return True
        ending = self._ending(state, begun)
        fits = 0 < len(ending) <= left
        if fits:
            self._plan = ending
        return fits

    def _ending(self, state: State, begun: bytes) -> list[int]:
        """The tokens of the shortest ending in bytes; [] where there is none, or where it is empty."""
        first = self._states.completed(state, begun) if begun else ""
        if first is None:
            return []
        if first:
            state = self._states.move(state, first)
        if state.need == math.inf:
            return []
        rest_of_character = first.encode()[len(begun) :]
        text = self._states.shortest(state)
        tokens = self._tokenizer.encode(text, special=False, continues=True)
        if b"".join(map(self._tokenizer.piece, tokens)) != text.encode():  # a vocabulary that normalizes
            tokens = self._bytes(text.encode())
        tokens = self._bytes(rest_of_character) + tokens
        return [] if -1 in tokens else tokens

    def _bytes(self, data: bytes) -> list[int]:
        """The tokens of single bytes, -1 for those that the vocabulary lacks."""
        return [int(self._tokenizer.table.alone[byte]) for byte in data]


class _States:
    """The states that the texts of a grammar lead to, as far as one answer has met them."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._stacks: list[tuple[int, int]] = [(END, -1)]  # (node, stack of the caller)
        self._stack_needs: list[float] = [0]
        self._numbers: dict[tuple[int, int], int] = {}
        self._states: dict[frozenset[int], State] = {}
        self._work = 0

    def start(self) -> State:
        return self._state([(self._network.root, EMPTY)])

    def move(self, state: State, character: str) -> State:
        """The state after one more character."""
        found = state.moves.get(character)
        if found is None:
            code = ord(character)
            behind = []
            for node, caller in map(self._stacks.__getitem__, state.stacks):
                if any(low <= code <= high for low, high in self._network.sets[node]):
                    behind.append((self._network.nexts[node][0], caller))
            self._work += len(state.stacks)
            found = state.moves[character] = self._state(behind)
        return found

    def _state(self, todo: list[tuple[int, int]]) -> State:
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
            self._work += len(follow)
            if self._work > MAX_WORK:
                raise TooAmbiguousError
        key = frozenset(stacks)
        if key not in self._states:
            need = min((self._stack_needs[stack] for stack in stacks), default=math.inf)
            self._states[key] = State(tuple(stacks), need)
        return self._states[key]

    def _stack(self, node: int, caller: int) -> int:
        """The number of a stack."""
        number = self._numbers.setdefault((node, caller), len(self._stacks))
        if number == len(self._stacks):
            self._stacks.append((node, caller))
            self._stack_needs.append(self._network.needs[node] + self._stack_needs[caller])
        return number

    def completed(self, state: State, begun: bytes) -> str | None:
        """A character that begins with these bytes and may follow, that with the shortest ending; None without any."""
        first, last = _span(begun)
        found = {}
        for stack in state.stacks:
            for low, high in self._network.sets[self._stacks[stack][0]]:
                if max(low, first) <= min(high, last):
                    character = chr(max(low, first))
                    found[self.move(state, character).need] = character
        return found[min(found)] if found else None

    def shortest(self, state: State) -> str:
        """The shortest text that ends the answer."""
        stack = min(state.stacks, key=lambda stack: (self._stack_needs[stack], stack))
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


def _span(begun: bytes) -> tuple[int, int]:
    """The first and the last character whose UTF-8 begins with these bytes."""
    size = 2 if begun[0] < 0xE0 else 3 if begun[0] < 0xF0 else 4
    code = begun[0] & (0x7F >> size)
    for byte in begun[1:]:
        code = code << 6 | byte & 0x3F
    bits = 6 * (size - len(begun))
    return max(code << bits, (0x80, 0x800, 0x10000)[size - 2]), min((code + 1 << bits) - 1, 0x10FFFF)
