"""A llama.cpp context: tokens in, logits out, keys and values kept between calls. Letters: V vocabulary.

Sequence 0 is the one that `feed` works on: it keeps its tokens, and what begins alike is not computed again. With a
prefix it, and so all that share its cells, begin with keys and values that no token here made.
Sequences 1 to PARALLEL belong to `greedy`, which answers many prompts at once; they share sequence 0's cells.
Whoever shares the cache out otherwise (kv_cache.py) uses `batch`, `decode`, `copy` and `drop`, and neither of these.

llama.cpp's kernels round the same product otherwise for other numbers of tokens at once, by up to 0.8 in a logit of a
model in Q4_K, and attention by the order of its cells. Results that must repeat whatever was computed before, or is
computed with them, hold to one number: `feed` to pieces of CUT tokens from the beginning of a text, `greedy` to
multiples of ROWS. And no cell is given back before the cache is cleared, so that those of a sequence stay in order.
A token that is computed alone has its attention divided between the threads by cells, from 512 on, and so it rounds by
where its sequence begins; `decode_anywhere` gives it company.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ContextLengthError, EdgetuneError, UsageError
from ..machine.device import thread_count
from .kv_state import MAGIC, KvPrefix
from .other_engine import OtherEngine

DEFAULT_CONTEXT = 2048
BATCH = 512  # tokens that one llama_decode takes at most; the model's buffers are as large as a batch needs
SMALL_BATCH = 64  # where fewer tokens are computed at once: then the buffers are small
OUTPUTS = 64  # logits held at a time at most: float32 [OUTPUTS, V]
PARALLEL = 16  # answers that `greedy` works on together
CUT = 64  # tokens that `feed` computes at once where its results must repeat
TOGETHER = 56  # tokens that `greedy` computes at once: from 64 on llama.cpp's attention rounds otherwise
ROWS = 8  # tokens that a kernel of llama.cpp computes alike; it rounds those left over in another way
FEWEST = 2  # tokens with which llama.cpp divides attention between threads by tokens and heads, and not by cells
Pick = Callable[[int, "NDArray[np.float32]"], int]
IsEnough = Callable[[int, list[int]], bool]


class LlamaBatch:
    """Room for BATCH tokens in numpy arrays that llama.cpp reads in place, as its struct llama_batch."""

    def __init__(self, llama: ModuleType) -> None:
        self.size = 0
        self.tokens = np.zeros(BATCH, np.int32)
        self.positions = np.zeros(BATCH, np.int32)
        self.sequences = np.zeros(BATCH, np.int32)
        self.wanted = np.zeros(BATCH, np.int8)  # 1 where logits are computed
        self._ones = np.ones(BATCH, np.int32)  # every token belongs to one sequence
        self._places = (self.sequences.ctypes.data + self.sequences.itemsize * np.arange(BATCH)).astype(np.uintp)
        self.struct = llama.llama_batch()
        arrays: dict[str, NDArray[Any]] = {
            "token": self.tokens, "pos": self.positions, "n_seq_id": self._ones, "seq_id": self._places,
            "logits": self.wanted,
        }
        kinds = dict(llama.llama_batch._fields_)
        for name, array in arrays.items():
            setattr(self.struct, name, ctypes.cast(array.ctypes.data, kinds[name]))

    def add(self, tokens: list[int], start: int, sequence: int,
            wanted: NDArray[np.bool_]) -> None:
        """Append tokens at positions start, start + 1, ... of a sequence."""
        new = slice(self.size, self.size + len(tokens))
        self.tokens[new] = tokens
        self.sequences[new] = sequence
        self.wanted[new] = wanted
        self.positions[new] = np.arange(start, start + len(tokens))
        self.size = new.stop


@dataclass
class _GreedyAnswer:
    """A prompt that `greedy` is answering."""

    index: int
    pending: list[int]  # tokens that llama.cpp has not seen yet
    position: int  # of pending[0]
    budget: int  # tokens that may still be added
    tokens: list[int] = field(default_factory=list)  # of the answer, so far

    @property
    def cells(self) -> int:
        """What it may still need in the cache."""
        return len(self.pending) + self.budget

    def take(self, token: int, is_end: Callable[[int], bool]) -> bool:
        """Add a token; whether the answer is complete."""
        if is_end(token):
            return True
        self.tokens.append(token)
        self.pending = [token]
        self.budget -= 1
        return self.budget == 0


class Context:
    """Owned memory of a context over `model` (a llama_model pointer), with room for `size` tokens in all.

    threads: 0 for one a physical core. sequences: how many there may be; logits of one token each are reserved. batch:
    tokens that one llama_decode takes at most.
    Raises EdgetuneError if llama.cpp cannot make it. Close it before the model.
    """

    def __init__(self, llama: ModuleType, model: int, size: int, threads: int = 0,
                 sequences: int = 1 + PARALLEL, batch: int = BATCH) -> None:
        self.size = size
        self.sequences = sequences
        self.before_decode: Callable[[], object] = lambda: None  # other work may go first
        self.other: OtherEngine | None = None  # which may compute instead of llama.cpp
        self.prefix: KvPrefix | None = None  # what sequence 0 begins with; to be changed before `clear`
        self.cached: list[int] = []  # tokens whose keys and values sequence 0 holds, after virtual ones
        self._begun = False  # whether sequence 0 holds the prefix
        self._used = 0  # cells of what `greedy` has ended, and of what all its prompts begin with
        self._repeatable = 0  # of these, how many at the beginning were computed in pieces of CUT
        self._filler = sequences  # the sequence of rows that only fill a batch
        self._ended = sequences + 1  # that of ended answers, whose cells must not be taken by others
        self._llama = llama
        self._window = int(llama.llama_model_n_swa(model))  # tokens that blocks with a sliding window see; 0: all
        # whether a sequence has a state of all its tokens, which cannot become that of fewer
        self._has_state = bool(llama.llama_model_is_recurrent(model) or llama.llama_model_is_hybrid(model))
        self.n_vocab = int(llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model)))
        options = llama.llama_context_default_params()
        options.n_ctx = max(size, sequences + 2)  # with less than a token a sequence llama.cpp aborts
        options.n_batch = batch
        options.n_ubatch = batch
        options.n_seq_max = sequences + 2
        options.kv_unified = True  # a shared prefix is held once
        self._threads = thread_count(threads)
        options.n_threads = self._threads
        options.n_threads_batch = self._threads
        self._handle = llama.llama_init_from_model(model, options)
        if not self._handle:
            raise EdgetuneError(f"llama.cpp cannot make a context of {size} tokens", "choose a smaller one")
        self.room = int(llama.llama_n_batch(self._handle))  # batch, or a smaller context: above it llama.cpp aborts
        self.batch = LlamaBatch(llama)

    @property
    def handle(self) -> int:
        """The llama_context pointer; ValueError after `close`."""
        if not self._handle:
            raise ValueError("the model is closed")
        return int(self._handle)

    @property
    def _memory(self) -> int:
        return int(self._llama.llama_get_memory(self.handle))

    def close(self) -> None:
        if self._handle:
            self._llama.llama_free(self._handle)
        self._handle = None

    def clear(self) -> None:
        self._llama.llama_memory_clear(self._memory, False)
        if self.other:
            self.other.clear()
        self.cached.clear()
        self._begun = False
        self._repeatable = 0

    @property
    def virtual(self) -> int:
        """Positions before the first token of sequence 0."""
        return self.prefix.virtual if self.prefix else 0

    def _begin(self, tokens: list[int]) -> None:
        """Lets sequence 0 begin with the prefix, unless these tokens begin otherwise, or more of them is cached."""
        prefix = self.prefix
        if prefix is None or not prefix.begins(tokens):
            return
        if not self._begun or common(self.cached, tokens) < len(prefix.tokens):
            self.drop(0)
            self.restore(0, prefix.saved)
            self.cached[:] = prefix.tokens
            self._repeatable = len(self.cached)
            self._begun = True

    def feed(self, tokens: list[int], wanted: NDArray[np.bool_],
             repeats: bool = False) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
        """Make sequence 0 hold exactly `tokens`, and give the logits after the wanted ones (wanted: bool [T]). repeats:
        they are the same whatever was computed before, which takes up to a third longer.

        Yields (positions [n], logits [n, V]) in order, n <= OUTPUTS; the logits are a view that the next step
        overwrites. To be exhausted. Raises EdgetuneError if the tokens do not fit the context.
        """
        self.check(tokens)
        self._begin(tokens)
        first = int(wanted.argmax()) if wanted.any() else len(tokens)
        done = min(common(self.cached, tokens), first)
        if repeats:
            done = min(done, self._repeatable) // CUT * CUT
        if self._has_state and done < len(self.cached):
            done = max(self.held(0, self.virtual + done) - self.virtual, 0)
            done *= not repeats or done % CUT == 0
        self._repeatable = min(self._repeatable, done)
        self.cut(0, self.virtual + done)
        del self.cached[done:]
        self.batch.size = 0  # an interrupt may have left something
        while done < len(tokens):
            end = min(done + (CUT if repeats else self.room), done + self.room, len(tokens))
            positions = done + np.flatnonzero(wanted[done:end])
            if len(positions) > OUTPUTS:
                end = int(positions[OUTPUTS])
                positions = positions[:OUTPUTS]
            self.batch.add(tokens[done:end], self.virtual + done, 0, wanted[done:end])
            logits = self.decode()
            self.cached.extend(tokens[done:end])
            done = end
            if repeats:
                self._repeatable = done
            if len(positions):
                yield positions, logits

    def greedy(self, prompts: list[list[int]], budgets: list[int],
               is_end: Callable[[int], bool], pick: Pick,
               is_enough: IsEnough | None = None) -> Iterator[tuple[int, list[int]]]:
        """Answers to many prompts, PARALLEL at a time; yields (index of the prompt, its answer) when done. pick: the
        next token for the prompt of an index, by its logits. is_enough: whether its answer so far is all of it.

        An answer ends before the token that `is_end` names, after its budget of tokens, or where the context ends.
        What all prompts begin with is computed once. An answer depends on its prompt alone, and not on the others. To
        be exhausted before any other call.
        """
        for prompt in prompts:
            self.check(prompt, room=1)
        self.clear()
        shared = min((common(prompts[0], prompt[:-1]) for prompt in prompts), default=0)
        begin = self.virtual + shared
        self._share(prompts[0][:shared] if prompts else [])
        waiting: deque[_GreedyAnswer] = deque()
        for index, (prompt, budget) in enumerate(zip(prompts, budgets, strict=True)):
            room = self.size - self.virtual - len(prompt)
            waiting.append(_GreedyAnswer(index, prompt[shared:], begin, min(budget, room)))
        active: dict[int, _GreedyAnswer] = {}
        try:
            while waiting or active:
                if not self._admit(active, waiting, begin):
                    self._share(prompts[0][:shared])
                    continue
                ready = self._gather(active)
                used = self._used + sum(answer.position - begin for answer in active.values())
                for sequence, logits in zip(ready, self._decode_filled(used), strict=True):
                    answer = active[sequence]
                    if answer.take(pick(answer.index, logits), is_end) or (
                            is_enough and is_enough(answer.index, answer.tokens)):
                        self._llama.llama_memory_seq_cp(self._memory, sequence, self._ended, begin, -1)
                        self.drop(sequence)
                        self._used += answer.position - begin
                        del active[sequence]
                        yield answer.index, answer.tokens
        finally:
            if self._handle:
                for sequence in (*active, self._ended):
                    self.drop(sequence)

    def _share(self, tokens: list[int]) -> None:
        """Let sequence 0 alone hold what all prompts begin with."""
        self.clear()
        self._begin(tokens)
        self._used = self.virtual + len(self.cached)
        for start in range(len(self.cached), len(tokens), TOGETHER):
            part = tokens[start : start + TOGETHER]
            self.batch.size = 0
            self.batch.add(part, self.virtual + start, 0, np.zeros(len(part), np.bool_))
            self._used += len(part)
            self._decode_filled(self._used)

    def drop(self, sequence: int) -> None:
        """Forget a sequence; cells that another one shares stay."""
        self.cut(sequence, 0)

    def cut(self, sequence: int, count: int) -> None:
        """Forget what a sequence holds after its first `count` positions."""
        self._llama.llama_memory_seq_rm(self._memory, sequence, count, -1)
        if self.other:
            self.other.cut(sequence, count)

    def held(self, sequence: int, count: int) -> int:
        """The most tokens of a sequence, at most `count`, so that the cache has all that the one after them needs. At
        least `count` tokens were computed.

        Where blocks see a window, llama.cpp gives a cell away that the sequence's own end does not see any more.
        """
        if self.other and (held := self.other.held(sequence, count)):
            return held
        first = int(self._llama.llama_memory_seq_pos_min(self._memory, sequence))
        if self._has_state:
            return first + 1 if first < count else 0  # of the state
        return count if 0 <= first <= max(count - self._window, 0) else 0

    def copy(self, source: int, sequence: int, count: int) -> None:
        """Let an empty sequence begin with the first tokens of another one; both hold the same cells."""
        self._llama.llama_memory_seq_cp(self._memory, source, sequence, 0, count)
        if self.other:
            self.other.copy(source, sequence, count)

    @property
    def magic(self) -> bytes:
        """What every saved sequence begins with."""
        return bytes(self.save(self._filler)[:MAGIC])

    def save(self, sequence: int) -> bytearray:
        """All that the cache holds of a sequence, as llama.cpp writes it; `restore` takes it back."""
        llama = self._llama
        size = int(llama.llama_state_seq_get_size(self.handle, sequence))
        saved = bytearray(size)
        llama.llama_state_seq_get_data(self.handle, (ctypes.c_uint8 * size).from_buffer(saved), size, sequence)
        return saved

    def restore(self, sequence: int, saved: bytearray) -> None:
        """Lets an empty sequence hold what was saved. Raises EdgetuneError if the cache has no room for it."""
        place = (ctypes.c_uint8 * len(saved)).from_buffer(saved)
        if not self._llama.llama_state_seq_set_data(self.handle, place, len(saved), sequence):
            raise EdgetuneError("the cache has no room for the keys and values of an adapter",
                                "choose a larger context")

    def _admit(self, active: dict[int, _GreedyAnswer], waiting: deque[_GreedyAnswer], begin: int) -> bool:
        """Start answers while a sequence is free and the cache has room for them whole; whether any is in progress."""
        used = self._used + sum(answer.position - begin + answer.cells for answer in active.values())
        for sequence in range(1, PARALLEL + 1):
            if waiting and sequence not in active and used + waiting[0].cells <= self.size:
                used += waiting[0].cells
                active[sequence] = waiting.popleft()
                self.copy(0, sequence, begin)
        return bool(active)

    def _gather(self, active: dict[int, _GreedyAnswer]) -> list[int]:
        """Fill the batch with pending tokens; the sequences whose last one is in it, in the order of their logits."""
        ready = []
        self.batch.size = 0
        for sequence, answer in active.items():
            part = answer.pending[: min(self.room, TOGETHER) - self.batch.size]
            del answer.pending[: len(part)]
            last = np.zeros(len(part), np.bool_)
            last[-1:] = not answer.pending
            self.batch.add(part, answer.position, sequence, last)
            answer.position += len(part)
            if last.any():
                ready.append(sequence)
        return ready

    def decode_anywhere(self, used: int) -> NDArray[np.float32]:
        """`decode` of one sequence, with logits that do not depend on the cells before its own. It takes one cell more
        for a moment, if there is one; a sequence that has all cells begins at the first. used: as `_decode_filled`.
        """
        divided = self.batch.size == 1 and self._threads > 1 and not (self.other and self.other.computes)
        return self._decode_filled(used, FEWEST if divided else 1)

    def _decode_filled(self, used: int, rows: int = ROWS) -> NDArray[np.float32]:
        """`decode` with rows that nobody wants, up to a multiple of `rows`. used: cells, with those of the batch."""
        count = min(-self.batch.size % rows, self.room - self.batch.size, self.size - used)
        self.batch.add([0] * count, 0, self._filler, np.zeros(count, np.bool_))
        logits = self.decode()
        if count:
            self.drop(self._filler)
        return logits

    def decode(self) -> NDArray[np.float32]:
        """Compute the batch and empty it; the logits of its wanted tokens, [n, V], as a view."""
        self.before_decode()
        batch = self.batch
        if self.other and self.other.computes:
            return self._decode_otherwise(self.other)
        llama = self._llama
        batch.struct.n_tokens = batch.size
        batch.size = 0
        code = llama.llama_decode(self.handle, batch.struct)
        if code != 0:
            self.clear()
            raise EdgetuneError(f"llama.cpp could not compute {batch.struct.n_tokens} tokens (llama_decode: {code})",
                                "free memory or choose a smaller context")
        rows = int(batch.wanted[: batch.struct.n_tokens].sum())
        if rows == 0:
            return np.empty((0, self.n_vocab), np.float32)
        return np.ctypeslib.as_array(llama.llama_get_logits(self.handle), (rows, self.n_vocab))

    def _decode_otherwise(self, other: OtherEngine) -> NDArray[np.float32]:
        batch = self.batch
        size = batch.size
        batch.size = 0
        try:
            return other.compute(batch.tokens[:size], batch.positions[:size], batch.sequences[:size],
                                 batch.wanted[:size].astype(np.bool_))
        except EdgetuneError:
            self.clear()
            raise

    def check(self, tokens: list[int], room: int = 0) -> None:
        """EdgetuneError unless these tokens, and `room` more, fit; ValueError for one outside the vocabulary."""
        check_tokens(tokens, room, self.size - self.virtual, self.n_vocab)


def context_size(asked: int | None, trained: int) -> int:
    """The size asked for (None: DEFAULT_CONTEXT, or less), at most what the model was trained for."""
    size = min(DEFAULT_CONTEXT, trained) if asked is None else asked
    if not 2 <= size <= trained:
        raise UsageError(f"context is {size} tokens", f"choose from 2 to {trained}, what the model was trained for")
    return size


def check_tokens(tokens: list[int], room: int, size: int, n_vocab: int) -> None:
    """Checks, as Context.check does, a context of `size` tokens."""
    if len(tokens) + room > size:
        raise ContextLengthError(f"{len(tokens)} tokens do not fit the context of {size}"
                                 + " with an answer" * bool(room), "shorten the text or choose a larger context")
    if len(tokens) and not 0 <= min(tokens) <= max(tokens) < n_vocab:
        wrong = next(token for token in tokens if not 0 <= token < n_vocab)
        raise UsageError(f"a token id is {wrong}", f"token ids must be from 0 to {n_vocab - 1}")


def common(a: list[int], b: list[int]) -> int:
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    return next(i for i in range(n) if a[i] != b[i])
