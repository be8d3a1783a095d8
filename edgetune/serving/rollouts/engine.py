"""Answers by the engine that trains: K samples to each of many prompts; all answers in progress advance together.

Prompts are read once, as forests, and their keys and values are kept while they are being answered (kv_blocks.py).
Every step passes the last token of each answer in progress through the blocks, and the head draws the next one of each
(draws.py). A finished answer makes room for the next. No logits are held.

The same prompt, number, sample and options give the same answer, whatever is answered with it: a draw is a pure
function of (seed, number of the prompt, sample, position, token), and with precision "exact" logits are bitwise equal.
Letters: n rows, T tokens, D model width, H heads, G key/value heads, C head width, P blocks of a path.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...backends.base import CACHE, SAMPLE_STATE
from ...data.forest import Tokens
from ...errors import NumericsError, UsageError
from ...llamacpp.sampling import Sampling
from ...models.cache import CacheArrays
from ...models.common import Cached
from ...models.decoder import Decoder
from ...models.linear import Activations
from ...models.states import States
from ...models.stream import HEAD_TOKENS
from .draws import COLDEST, check_sampling, keys_of, limits_of
from .kv_blocks import (
    GRANULE,
    WHOLE,
    FreeBlocks,
    Path,
    Segment,
    blocks_for,
    forest_size,
    forward_batch,
    read_together,
)
from .plan import HEAD_ENTRIES, AnswerPlan

if TYPE_CHECKING:
    from ...data.packing import Batch

WORTHWHILE = 8
"""Others are begun when a part of the rows is free, one of this many: to read prompts takes a pass over all weights."""

ROWS = 16
PATH = 8
"""Where passes are recorded, a step has a multiple of these rows and blocks of a path, so that few sizes come."""


@dataclass(frozen=True)
class Rollout:
    """One answer. logp, drawn [n]: log-probability of each token by the model, and by the distribution of the draw
    (temperature, top_k and so on). ended: whether its last token ends an answer, or `watch` ended it.
    """

    prompt: int  # its index
    sample: int
    tokens: NDArray[np.int32]
    logp: NDArray[np.float32]
    drawn: NDArray[np.float32]
    ended: bool


@dataclass(frozen=True)
class Wanted:
    """Options of all prompts. max_tokens: of each prompt's answers. is_end: whether a token ends an answer;
    watch (prompt, sample, token): whether an answer ends with this token for another reason. numbers: of the prompts;
    draws depend on them (None: their indices).
    """

    prompts: Sequence[Tokens]
    samples: int
    max_tokens: Sequence[int]
    sampling: Sampling
    is_end: Callable[[int], bool] = lambda _: False
    watch: Callable[[int, int, int], bool] = lambda _prompt, _sample, _token: False
    numbers: Sequence[int] | None = None


@dataclass(eq=False)
class _Prompt:
    """A prompt that was read, until its last sample is finished."""

    index: int
    number: int
    length: int
    segment: Segment
    path: Path
    slot: int  # of the states at its end, until its last sample begins
    hidden: NDArray[np.float32]  # [D], of its last token
    begun: int = 0  # samples
    finished: int = 0


@dataclass(eq=False)
class _Rollout:
    """An answer in progress. row: its place in the table of paths, and the slot of its states."""

    prompt: _Prompt
    sample: int
    budget: int
    row: int
    blocks: list[int]
    tokens: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    drawn: list[float] = field(default_factory=list)
    ended: bool = False

    @property
    def finished(self) -> bool:
        return self.ended or len(self.tokens) == self.budget

    @property
    def position(self) -> int:
        """The place of its last token."""
        return self.prompt.length + len(self.tokens) - 1


class Rollouts:
    """The answers of one call, in the memory of a decoder whose arena has the buffers of `plan`; iterate once.

    Not thread-safe, and between two answers the decoder makes no other pass. Raises UsageError for options that are out
    of range or that only llama.cpp has, for an empty prompt and for one that is longer than planned; NumericsError
    where logits are not finite.
    """

    def __init__(self, decoder: Decoder, plan: AnswerPlan, wanted: Wanted) -> None:
        check_sampling(wanted.sampling)
        _check(plan, wanted, decoder)
        self._decoder = decoder
        self._plan = plan
        before = -1 - np.arange(decoder.virtual_tokens, dtype=np.int32)
        self._wanted = replace(wanted, prompts=[np.concatenate([before, prompt]) for prompt in wanted.prompts])
        s = decoder.shape
        cache = decoder.model.structure.cache
        assert cache
        self._cache = CacheArrays(cache, decoder.arena)
        self._blocks = FreeBlocks(plan.blocks)
        self._step = WHOLE if any(s.windows) else GRANULE
        self._paths = np.full((plan.live, plan.path), -1, np.int32)
        self._free_rows = list(range(plan.live))[::-1]
        self._waiting = deque(range(len(wanted.prompts)))
        self._prompts: deque[_Prompt] = deque()  # those that have samples to begin
        self._live: list[_Rollout] = []
        self._slots = np.empty(0, np.int32)  # of the tokens of the pass
        self._seen = np.empty((0, 0), np.int32)  # their paths

    def __iter__(self) -> Iterator[Rollout]:
        """Answers as they are finished."""
        while self._waiting or self._prompts or self._live:
            begun = self._begin()
            hidden = [self._advance(), *(answer.prompt.hidden[None] for answer in begun)]
            self._live += begun
            self._draw(self._together(hidden))
            finished = [answer for answer in self._live if answer.finished]
            self._live = [answer for answer in self._live if not answer.finished]
            yield from map(self._finish, finished)

    # ---- begin and end ------------------------------------------------------------------------------------------

    def _begin(self) -> list[_Rollout]:
        """The next answers, if there is room for enough of them."""
        if self._live and len(self._free_rows) * WORTHWHILE < self._plan.live:
            return []
        begun = self._begin_samples()
        while self._free_rows and not self._prompts and (chosen := self._next_prompts(not self._live and not begun)):
            self._read(chosen)
            begun += self._begin_samples()
        return begun

    def _begin_samples(self) -> list[_Rollout]:
        """Begins answers to prompts that were read."""
        begun = []
        while self._prompts and self._free_rows:
            prompt = self._prompts[0]
            budget = self._wanted.max_tokens[prompt.index]
            count = blocks_for(budget - 1)
            if count > len(self._blocks):
                break
            answer = _Rollout(prompt, prompt.begun, budget, self._free_rows.pop(), self._blocks.take(count))
            self._paths[answer.row] = -1
            self._paths[answer.row, :prompt.path.size] = prompt.path
            self._cache.copy_state(prompt.slot, answer.row)
            begun.append(answer)
            prompt.begun += 1
            if prompt.begun == self._wanted.samples:
                self._prompts.popleft()
        return begun

    def _next_prompts(self, idle: bool) -> list[int]:
        """Prompts for the free rows that fit one pass and the free blocks. idle: nothing is in progress, so that there
        are blocks for the first.
        """
        chosen: list[int] = []
        for index in self._waiting:
            if len(chosen) * self._wanted.samples >= len(self._free_rows):
                break
            tokens, blocks = forest_size([self._wanted.prompts[i] for i in (*chosen, index)], self._step)
            own = blocks_for(self._wanted.max_tokens[chosen[0] if chosen else index] - 1)
            most = self._decoder.run.max_tokens + self._decoder.virtual_tokens
            fits = tokens <= most and blocks + own <= len(self._blocks)
            if not fits and (chosen or not idle):
                break
            chosen.append(index)
        return chosen

    def _read(self, chosen: list[int]) -> None:
        """Reads prompts, common prefixes once, and keeps what their answers need."""
        prompts = [self._wanted.prompts[self._waiting.popleft()] for _ in chosen]
        numbers = self._wanted.numbers or range(len(self._wanted.prompts))
        reading = read_together(prompts, self._blocks, self._step, self._plan.live)
        self._slots = self._decoder.ops.place(reading.slots)
        states = self._states(reading.runs, reading.batch)
        hidden = self._forward(reading.batch, Cached(self._attend_prompts, states))
        self._decoder.ops.synchronize()
        for number, index in enumerate(chosen):
            segment = reading.segments[number]
            self._prompts.append(_Prompt(index, numbers[index], prompts[number].size, segment, segment.path(),
                                         self._plan.live + number, hidden[reading.places[number]].copy()))

    def _states(self, runs: NDArray[np.int32], batch: Batch) -> States | None:
        return States(runs, batch.before, self._cache.states) if self._cache.states else None

    def _finish(self, answer: _Rollout) -> Rollout:
        self._blocks.give_back(answer.blocks)
        self._free_rows.append(answer.row)
        answer.prompt.finished += 1
        if answer.prompt.finished == self._wanted.samples:
            self._blocks.release(answer.prompt.segment)
        return Rollout(answer.prompt.index, answer.sample, np.array(answer.tokens, np.int32),
                       np.array(answer.logp, np.float32), np.array(answer.drawn, np.float32), answer.ended)

    # ---- a step -------------------------------------------------------------------------------------------------

    def _advance(self) -> NDArray[np.float32]:
        """The hidden state [n, D] after the last token of each answer in progress."""
        live = self._live
        if not live:
            return np.empty((0, self._decoder.shape.d_model), np.float32)
        slots = np.array([self._extend(answer) for answer in live], np.int32)
        seen = self._paths[[answer.row for answer in live]]
        rounded = self._decoder.repeated.rounded
        n = rounded(len(live), ROWS, self._plan.live)
        width = rounded(int((seen >= 0).sum(1).max()), PATH, self._plan.path)
        view = self._decoder.arena.view
        self._slots = view("answer_slots", n)
        self._seen = view("answer_paths", n, width)
        self._decoder.ops.synchronize()  # the old values are no longer read
        last = np.minimum(np.arange(n), len(live) - 1)  # added rows repeat the last one
        np.copyto(self._slots, slots[last])
        np.copyto(self._seen, seen[last, :width])
        batch = forward_batch(np.array([answer.tokens[-1] for answer in live])[last],
                              np.array([answer.position for answer in live])[last], np.arange(1, n + 1),
                              np.arange(n))
        places = np.arange(len(live), dtype=np.int32)
        rows = np.array([answer.row for answer in live], np.int32)
        states = self._states(np.stack([places, places + 1, rows, rows], axis=1), batch)
        return self._forward(batch, Cached(self._attend_answers, states, (self._plan, width)))[:len(live)]

    def _together(self, hidden: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Hidden states [n, D] that ops can read; those of answers in progress already are."""
        if len(hidden) == 1:
            return hidden[0]
        self._decoder.ops.synchronize()
        return self._decoder.ops.place(np.concatenate(hidden))

    def _extend(self, answer: _Rollout) -> int:
        """The slot of an answer's last token, which its path has from now on."""
        block, place = divmod(len(answer.tokens) - 1, CACHE)
        slot = answer.blocks[block] * CACHE + place
        self._paths[answer.row, answer.prompt.path.size + block] = slot
        return slot

    def _forward(self, batch: Batch, cached: Cached) -> NDArray[np.float32]:
        """The residual stream [T, D] after all blocks, of the tokens that are read; valid until the next pass."""
        decoder = self._decoder
        decoder.cached = cached
        try:
            decoder.forward(batch, keep=False)
        finally:
            decoder.cached = None
        x: NDArray[np.float32] = decoder.arena.view("x", batch.tokens.size, decoder.shape.d_model)
        return x

    def _attend_prompts(self, layer: int, k: Activations, q: np.ndarray, key: np.ndarray, v: np.ndarray,
                        batch: Batch) -> None:
        self._cache.store(self._decoder.ops, self._decoder.shape, layer, key, v, self._slots)
        self._decoder.attend_batch(layer, k, q, key, v, batch)

    def _attend_answers(self, layer: int, k: Activations, q: np.ndarray, key: np.ndarray, v: np.ndarray,
                        _batch: Batch) -> None:
        decoder = self._decoder
        self._cache.attend(decoder.ops, decoder.shape, layer, k["att"], q, key, v, self._slots, self._seen)

    # ---- the head -----------------------------------------------------------------------------------------------

    def _draw(self, hidden: NDArray[np.float32]) -> None:
        """Draws the next token of each answer in progress, from its hidden state [n, D]."""
        self._decoder.stream.enter(self._decoder.shape.n_layer)
        for begin in range(0, len(hidden), HEAD_TOKENS):
            self._draw_part(self._live[begin:begin + HEAD_TOKENS], hidden[begin:begin + HEAD_TOKENS])
        self._decoder.stream.leave()

    def _draw_part(self, answers: list[_Rollout], hidden: NDArray[np.float32]) -> None:
        n = len(answers)
        decoder = self._decoder
        shape = decoder.shape
        sampling = self._wanted.sampling
        view = decoder.arena.view
        token = view("drawn_token", n)
        logp, drawn = view("drawn_logp", 2, n)
        h = view("head_h", n, shape.d_model)
        decoder.norms.forward(h, view("head_rstd", n), hidden, "output_norm")
        keys = decoder.ops.place(keys_of(sampling.seed, [answer.prompt.number for answer in answers],
                                         [answer.sample for answer in answers],
                                         [len(answer.tokens) for answer in answers]))
        limits = None
        if self._plan.candidates:
            limits = decoder.ops.place(limits_of(sampling, lambda limit: self._top(h, limit), n))
        temperature = sampling.temperature if sampling.temperature >= COLDEST else 0.0
        for part in self._parts():
            decoder.ops.head_sample(token, logp, drawn, *self._work(n), h, decoder.stream.head.data,
                                    decoder.stream.head.format, keys, limits, temperature, part, decoder.run.precision,
                                    shape.logit_cap)
        decoder.ops.synchronize()
        if not np.isfinite(logp).all():
            raise NumericsError("the logits of an answer are not finite", "look at the adapter, or leave it out")
        for answer, *found in zip(answers, token.tolist(), logp.tolist(), drawn.tolist(), strict=True):
            self._add(answer, *found)

    def _add(self, answer: _Rollout, token: int, logp: float, drawn: float) -> None:
        answer.tokens.append(token)
        answer.logp.append(logp)
        answer.drawn.append(drawn)
        answer.ended = self._wanted.is_end(token) or self._wanted.watch(answer.prompt.index, answer.sample, token)

    def _top(self, h: np.ndarray, limit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Finds the likeliest tokens, as a draws.Top."""
        decoder = self._decoder
        below = decoder.ops.place(limit)
        top = decoder.arena.view("top", len(h), self._plan.candidates)
        lse = decoder.ops.empty((len(h),))
        for part in self._parts():
            decoder.ops.head_top(top, lse, *self._work(len(h)), h, decoder.stream.head.data, decoder.stream.head.format,
                                 below, part, decoder.run.precision, decoder.shape.logit_cap)
        decoder.ops.synchronize()
        return top, lse

    def _parts(self) -> Iterator[tuple[int, int]]:
        return self._decoder.stream.slices(np.empty(0, np.int32))

    def _work(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """logits [n, B] and state of n rows."""
        view = self._decoder.arena.view
        return view("logits", n, min(HEAD_ENTRIES, self._decoder.shape.n_vocab)), view("sample_state", n, SAMPLE_STATE)


def _check(plan: AnswerPlan, wanted: Wanted, decoder: Decoder) -> None:
    for index, prompt in enumerate(wanted.prompts):
        if not 1 <= prompt.size <= plan.prompt_tokens:
            raise UsageError(f"prompt {index} has {prompt.size} tokens", f"choose from 1 to {plan.prompt_tokens}")
    for budget in wanted.max_tokens:
        if not 1 <= budget <= plan.answer_tokens:
            raise UsageError(f"max_tokens is {budget}", f"choose from 1 to {plan.answer_tokens}")
    if wanted.samples < 1:
        raise UsageError(f"samples is {wanted.samples}", "choose 1 or more")
    if max(plan.live, plan.prompt_tokens) > decoder.run.max_tokens:
        raise UsageError(f"a pass takes {decoder.run.max_tokens} tokens, the plan needs "
                         f"{max(plan.live, plan.prompt_tokens)}", "plan for them")
