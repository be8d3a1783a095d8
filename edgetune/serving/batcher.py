"""Many requests answered at once by one llama.cpp context: continuous batching.

Each decode takes one token of every running answer and some tokens of prompts that wait to be read, so that answers
continue while others begin. It computes with one adapter; adapters take turns. The cache of a finished answer stays for
the next request with the same beginning (kv_cache.py). The number of tokens computed at once changes the rounding of
sums, and so, rarely, a token. Therefore an answer with a seed, which must repeat, is computed alone, its prompt in
pieces of equal size; it takes turns with the others. With several threads its tokens have company that nobody wants
(`Context.decode_anywhere`). One thread does this; `submit` and completions are for any thread.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EdgetuneError, UsageError
from ..llamacpp.context import FEWEST
from ..llamacpp.sampling import SEED_LIMIT, log_softmax
from . import kv_cache
from .answering import Answering
from .completion import Completion, OnPiece, TokenLogprob, logprob_of
from .llama import LlamaModel
from .model import AnswerRequest

GROWTH = 16  # tokens that each answer must have room for when another one begins


@dataclass(eq=False)
class AnswerInProgress:
    """A request and how far it is."""

    completion: Completion
    request: AnswerRequest
    sequence: kv_cache.Sequence = field(default_factory=kv_cache.nowhere)
    first_at: float = 0.0  # when its first token was made, on the monotonic clock

    @property
    def pending(self) -> int:
        return len(self.request.tokens) - len(self.sequence.tokens)

    @property
    def measures(self) -> bool:
        """Whether log-probabilities of its prompt's tokens are still to be computed."""
        asked = self.request.echo and self.request.logprobs is not None
        return asked and len(self.completion.prompt_logprobs) < self.completion.prompt_tokens

    @property
    def running(self) -> bool:
        """Whether all of it is read, so that each decode gives a token."""
        return self.pending == 1 and self.completion.completion_tokens > 0

    @property
    def lane(self) -> AnswerInProgress | str | None:
        """The unit that takes turns: an answer that must repeat, or all others of an adapter."""
        return self if self.request.repeats else self.completion.adapter

    @property
    def piece(self) -> int:
        """Tokens that its next decode takes if it must repeat: up to a multiple of CUT in the prompt, then one each,
        also for an answer that is computed once more.
        """
        done = len(self.sequence.tokens)
        return max(1, min(self.completion.prompt_tokens - done, kv_cache.CUT - done % kv_cache.CUT))

    @property
    def growth(self) -> int:
        """Tokens to come for which there should be room."""
        return min(self.left, GROWTH)

    @property
    def left(self) -> int:
        """Tokens to come at most."""
        return self.request.budget - self.completion.completion_tokens

    def pick(self, logits: NDArray[np.float32]) -> int | None:
        """The next token by these logits; None: there is none, the completion has the error."""
        try:
            return self.request.sampler.pick(logits)
        except EdgetuneError as error:  # of its grammar
            self.completion.error = error
            return None


TOGETHER = 63  # tokens in a decode: few, for answers that run; from 64 on llama.cpp's attention rounds otherwise
KEPT = 16  # sequences that a model should be opened with besides those in progress, to keep finished answers


class Batcher(Answering[AnswerInProgress]):
    """Answers by continuous batching. Raises UsageError if `served` was opened for fewer sequences."""

    served: LlamaModel

    def __init__(self, served: LlamaModel, *, parallel: int, queue: int) -> None:
        if not 1 <= parallel <= (most := served.cache.sequences - 2):
            raise UsageError(f"parallel is {parallel}", f"choose from 1 to {most}")
        super().__init__(served, parallel, queue)
        self._speed = 0.0  # tokens a second of the answer that got the latest token
        self._cells = kv_cache.KvCache(served.cache, served.prefix_of)
        self._turns: dict[AnswerInProgress | str | None, float] = {}  # when each lane had its last one

    # ---- for any thread -----------------------------------------------------------------------------------------

    def start(self) -> None:
        self._cells.clear()
        super().start()

    def submit(self, prompt: str | Sequence[int], *, adapter: str | None = None, max_tokens: int = 256,
               seed: int | None = None, stop: str | Iterable[str] = (), logprobs: int | None = None,
               echo: bool = False, among: Sequence[int] = (), on_piece: OnPiece | None = None,
               **sampling: Any) -> Completion:
        """Answer a prompt (text, or token ids) with an adapter that is loaded; None: with the base alone.

        Options (sampling: fields of Sampling) and errors are those of `ServedModel.generate`, except: seed None is a
        random one, and with another the same request gives the same answer whatever else is requested; TooMuchError is
        raised if the queue is full. logprobs: the completion has the log-probability of each token, and those of this
        many likeliest ones. echo: the prompt's tokens too; max_tokens may be 0 then. among: tokens whose
        log-probabilities after the prompt the completion has, instead of text.

        on_piece: called on the batcher's thread with each piece, None at the end; if it raises, the answer ends.
        """
        drawn = secrets.randbelow(SEED_LIMIT) if seed is None else seed
        request = self.served.prepare(prompt, max_tokens, stop, logprobs, echo, among, seed=drawn, **sampling)
        request.repeats = seed is not None
        completion = Completion(adapter, len(request.tokens), self._notify, on_piece)
        completion.prompt = tuple(request.tokens)
        if request.sampler.thinking:
            completion.inside_thinking = request.sampler.thinking.inside
        return self._take_in(AnswerInProgress(completion, request))

    def facts(self) -> dict[str, Any]:
        """Counts since the start, and the current state; tokens_per_s: of the last answer, from its first token to its
        latest; 0 where none had two.
        """
        return {**self._totals, "waiting": len(self._waiting), "working": len(self._working),
                "tokens_per_s": round(self._speed, 1), "cells_used": self._cells.used, "cells": self._cells.size}

    # ---- the batcher's thread -----------------------------------------------------------------------------------

    def _forget(self, name: str) -> None:
        self._turns.pop(name, None)
        self._cells.forget(name)
        if self.served.active == name:
            self.served.switch(None)  # else unloading it would clear the cache

    def _reset(self) -> None:
        self._cells.clear()  # the cache holds nothing any more

    def _admit(self) -> None:
        """Begin answers while the cache has room for their prompts and for everybody's next tokens."""
        while self._waiting and len(self._working) < self.parallel:
            answer = self._waiting[0]
            if answer.request.repeats or self._keeps_order():
                if not self._has_room_in_order(answer):
                    return
                self._working.append(self._waiting.popleft())
                continue
            promised = answer.growth + sum(other.pending + other.growth for other in self._working)
            tokens = answer.request.tokens
            missing = self._cells.needed(answer.completion.adapter, len(tokens))
            if not answer.measures:
                missing = self._cells.missing(answer.completion.adapter, tokens, answer.request.repeats)
            if self._working and missing + promised > self._cells.free:
                return
            self._working.append(self._waiting.popleft())

    def _has_room_in_order(self, answer: AnswerInProgress) -> bool:
        """Whether an answer can begin without harm to answers that must repeat, itself included: no cell may be given
        back before they end. If nothing is in progress, the cache is emptied for that.
        """
        count = sum(self._cells.needed(each.completion.adapter, each.pending + each.left)
                    for each in (answer, *self._working))
        sequences = sum(each.sequence not in self._cells.working for each in (answer, *self._working))
        if self._cells.can_stay_in_order(count + FEWEST - 1, sequences):
            return True
        if self._working:
            return False
        self._cells.clear()
        return True

    def _keeps_order(self) -> bool:
        return any(answer.request.repeats for answer in self._working)

    def _step(self) -> None:
        """One decode of one adapter's answers."""
        plan = self._plan()
        while not self._cells.make_room(sum(count for _, count in plan)) and len(self._working) > 1:
            self._put_back(self._working[-1])
            plan = self._plan()
        self._turns[plan[0][0].lane] = time.monotonic()
        self.served.switch(plan[0][0].completion.adapter)
        ends = self._fill(plan)
        logits = self._decode(plan)
        for answer, count in plan:
            start = len(answer.sequence.tokens)
            self._cells.extend(answer.sequence, answer.request.tokens[start : start + count],
                               answer.request.repeats and start < answer.completion.prompt_tokens)
        for (answer, _), rows in zip(plan, np.split(logits, ends[:-1]), strict=True):
            self._measure(answer, rows)
            if not answer.pending:
                self._continue(answer, rows[-1])

    def _decode(self, plan: list[tuple[AnswerInProgress, int]]) -> NDArray[np.float32]:
        context = self.served.cache
        if plan[0][0].request.repeats:
            return context.decode_anywhere(self._cells.used + context.batch.size)
        return context.decode()

    def _measure(self, answer: AnswerInProgress, logits: NDArray[np.float32]) -> None:
        """Note the log-probabilities of a prompt's tokens by the logits [n, V] before each."""
        completion = answer.completion
        known = completion.prompt_logprobs
        if answer.measures:
            for row in logits[: completion.prompt_tokens - len(known)]:
                token = answer.request.tokens[len(known)]
                known.append(logprob_of(token, row, answer.request.logprobs or 0, self.served.tokenizer))

    def _continue(self, answer: AnswerInProgress, logits: NDArray[np.float32]) -> None:
        """Pick the next token of an answer by these logits, [V], if it is to have one."""
        if answer.request.among:
            answer.completion.among = log_softmax(logits)[list(answer.request.among)]
            return self._end(answer, "stop")
        if answer.request.budget == 0:
            return self._end(answer, "length")
        token = answer.pick(logits)
        if token is None:
            return self._end(answer, "error")
        self._totals["completion_tokens"] += 1
        return self._take(answer, token, logits)

    def _plan(self) -> list[tuple[AnswerInProgress, int]]:
        """The answers of the next decode and their tokens, from the lane whose last turn is longest ago."""
        lane = min((answer.lane for answer in self._working), key=lambda lane: self._turns.get(lane, 0.0))
        if isinstance(lane, AnswerInProgress):
            self._begin(lane)
            return [(lane, lane.piece)]
        mine = [answer for answer in self._working if answer.lane == lane]
        plan = [(answer, 1) for answer in mine if answer.running]
        left = min(TOGETHER, self.served.cache.room) - len(plan)
        rows = self.served.cache.sequences - len(mine)  # reserved rows of logits besides one each
        for answer in mine:
            if not answer.running and left > 0:
                self._begin(answer)
                count = min(answer.pending, left, rows) if answer.measures else min(answer.pending, left)
                rows -= count if answer.measures else 0
                if count:
                    plan.append((answer, count))
                    left -= count
        return plan

    def _begin(self, answer: AnswerInProgress) -> None:
        """Give it a sequence, if it has none. It is late because earlier answers may have read the same beginning."""
        if answer.sequence.tokens or answer.sequence in self._cells.working:
            return
        completion = answer.completion
        tokens = answer.request.tokens
        if answer.measures:  # all logits are wanted, so nothing that the cache holds is of use
            answer.sequence = self._cells.begin(completion.adapter, [])
            completion.prompt_logprobs = [TokenLogprob(tokens[0], self.served.tokenizer.piece(tokens[0]), None)]
        else:
            answer.sequence = self._cells.begin(completion.adapter, tokens, answer.request.repeats)
        if completion.completion_tokens == 0:
            completion.cached_tokens = len(answer.sequence.tokens)
            self._totals["prompt_tokens"] += len(tokens)
            self._totals["cached_tokens"] += completion.cached_tokens

    def _fill(self, plan: list[tuple[AnswerInProgress, int]]) -> NDArray[np.intp]:
        """Put the tokens into the batch; return the ends of each answer's rows in the logits."""
        batch = self.served.cache.batch
        rows = []
        batch.size = 0
        for answer, count in plan:
            start = len(answer.sequence.tokens)
            wanted = np.full(count, answer.measures)
            wanted[-1] |= count == answer.pending
            batch.add(answer.request.tokens[start : start + count], answer.sequence.virtual + start,
                      answer.sequence.id, wanted)
            rows.append(int(wanted.sum()))
        return np.cumsum(rows)

    def _take(self, answer: AnswerInProgress, token: int, logits: NDArray[np.float32]) -> None:
        """Add a token, picked by these logits, to an answer."""
        completion = answer.completion
        request = answer.request
        if self.served.tokenizer.is_end(token):
            if request.echo:
                self._note(answer, token, logits)  # so that it is always one more than the prompt's tokens
            return self._end(answer, "stop", request.text.flush())
        request.tokens.append(token)
        completion.completion_tokens += 1
        now = time.monotonic()
        answer.first_at = answer.first_at or now
        if completion.completion_tokens > 1:
            self._speed = (completion.completion_tokens - 1) / max(now - answer.first_at, 1e-6)
        self._note(answer, token, logits)
        piece = request.text.push(self.served.printed(token))
        if request.text.stopped:
            self._end(answer, "stop", piece)
        elif completion.completion_tokens == request.budget:
            finish = "stop" if request.sampler.whole else "length"
            self._end(answer, finish, piece + request.text.flush())
        elif piece and not completion.give(piece):
            self._end(answer, "error")
        return None

    def _note(self, answer: AnswerInProgress, token: int, logits: NDArray[np.float32]) -> None:
        if (count := answer.request.logprobs) is not None:
            answer.completion.logprobs.append(logprob_of(token, logits, count, self.served.tokenizer))

    def _put_back(self, answer: AnswerInProgress) -> None:
        """Let an answer wait until there is room again; its cells are kept until somebody needs them."""
        self._working.remove(answer)
        self._cells.end(answer.sequence, self._keeps_order())
        answer.sequence = kv_cache.nowhere()
        self._waiting.appendleft(answer)

    def _end(self, answer: AnswerInProgress, finish: str, piece: str = "") -> None:
        if answer in self._working:
            self._cells.end(answer.sequence, self._keeps_order())
        self._turns.pop(answer, None)
        answer.request.sampler.close()
        super()._end(answer, finish, piece)
