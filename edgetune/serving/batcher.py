"""Many requests answered at once by one llama.cpp context: continuous batching.

Each decode takes one token of every running answer and some tokens of prompts that wait to be read, so that answers
continue while others begin. It computes with one adapter; adapters take turns. The cache of a finished answer stays for
the next request with the same beginning (kv_cache.py). The number of tokens computed at once changes the rounding of
sums, and so, rarely, a token. Therefore an answer with a seed, which must repeat, is computed alone, its prompt in
pieces of equal size; it takes turns with the others. One thread does this; `submit` and completions are for any thread.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Interrupted, TooMuchError, UsageError
from ..llamacpp.sampling import SEED_LIMIT, log_softmax
from . import kv_cache
from .answer import Answer
from .completion import Completion, OnPiece, TokenLogprob, logprob_of
from .llama import LlamaModel

TOGETHER = 63  # tokens in a decode: few, for answers that run; from 64 on llama.cpp's attention rounds otherwise
KEPT = 16  # sequences that a model should be opened with besides those in progress, to keep finished answers


class Batcher:
    """Answers up to `parallel` requests together; `queue` more may wait. It has `served` to itself from start to stop.

    `on_busy`, if set, is called on the batcher's thread with whether somebody is being answered, when that changes; it
    must not raise. Raises UsageError if `served` was opened for fewer sequences.
    """

    def __init__(self, served: LlamaModel, *, parallel: int, queue: int) -> None:
        if not 1 <= parallel <= (most := served.cache.sequences - 2):
            raise UsageError(f"parallel is {parallel}", f"choose from 1 to {most}")
        self.served = served
        self.parallel = parallel
        self.queue = queue
        self.on_busy: Callable[[bool], None] | None = None
        self.idle_since = time.monotonic()  # meaningful while nobody is answered
        self._totals = dict.fromkeys(("requests", "prompt_tokens", "cached_tokens", "completion_tokens"), 0)
        self._speed = 0.0  # tokens a second of the answer that got the latest token
        self._wake = threading.Condition(threading.RLock())  # held to change the attributes below
        self._open = False  # whether it takes requests
        self._now = False  # whether it cancels those that it took
        self._waiting: deque[Answer] = deque()
        self._cells = kv_cache.KvCache(served.cache)
        self._calls: list[tuple[Callable[[], bool], Future[None]]] = []  # for the thread; False: not yet
        self._leaving: set[str] = set()  # adapters that take no new requests
        self._working: list[Answer] = []  # the thread's, in the order in which they began
        self._turns: dict[Answer | str | None, float] = {}  # when each lane had its last one
        self._told = False  # the last argument of on_busy
        self.thread = threading.Thread(target=self._loop, name="batcher", daemon=True)

    # ---- for any thread -----------------------------------------------------------------------------------------

    def start(self) -> None:
        self._cells.clear()
        self._open = True
        self.thread.start()

    def stop(self, now: bool = False) -> None:
        """Take no more requests and return when those taken are answered; now: cancel them."""
        with self._wake:
            self._open = False
            self._now = self._now or now
            self._wake.notify()
        if self.thread.ident:
            self.thread.join()

    def break_off(self) -> None:
        """Cancel all answers in progress and all that wait; others may come."""
        with self._wake:
            for answer in (*self._working, *self._waiting):
                answer.completion.cancelled = True
            self._wake.notify()

    @property
    def busy(self) -> bool:
        """Whether somebody is being answered or waits, or other work is done between decodes."""
        return bool(self._waiting or self._working or self._calls)

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
        with self._wake:
            self._check_open()
            self.served.check_adapter(adapter)
            if adapter in self._leaving:
                raise UsageError(f"the adapter {adapter!r} is being removed", "choose another one")
            if len(self._waiting) + len(self._working) >= self.queue + self.parallel:
                raise TooMuchError(f"{self.queue} requests wait already", "ask again in a few seconds")
            self._waiting.append(Answer(completion, request))
            self._totals["requests"] += 1
            self._wake.notify()
        return completion

    def load(self, name: str, path: Path) -> None:
        """Loads a further adapter between two decodes; returns when it is loaded. Errors: LlamaModel's."""
        def load() -> bool:
            self.served.load_adapter(path, name)
            return True

        self._call(load)

    def unload(self, name: str) -> None:
        """Take no more requests for an adapter, and free it after its last answer; returns when that is done."""
        def unload() -> bool:
            if any(answer.completion.adapter == name for answer in (*self._working, *self._waiting)):
                return False
            self._leaving.discard(name)
            self._turns.pop(name, None)
            self._cells.forget(name)
            if self.served.active == name:
                self.served.switch(None)  # else unloading it would clear the cache
            self.served.unload(name)
            return True

        with self._wake:
            self.served.check_adapter(name)
            self._leaving.add(name)
        self._call(unload)

    def between(self, step: Callable[[], bool]) -> None:
        """Have a step of other work done after each decode until one returns True; returns then, with its error raised.

        Raises Interrupted where the batcher stops.
        """
        self._call(step)

    def facts(self) -> dict[str, Any]:
        """Counts since the start, and the current state; tokens_per_s: of the last answer, from its first token to its
        latest; 0 where none had two.
        """
        return {**self._totals, "waiting": len(self._waiting), "working": len(self._working),
                "tokens_per_s": round(self._speed, 1), "cells_used": self._cells.used, "cells": self._cells.size}

    def _check_open(self) -> None:
        if not self._open:
            raise Interrupted("the model takes no requests: it is being stopped", "ask again when it is back")

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify()

    def _call(self, work: Callable[[], bool]) -> None:
        """Have the thread do something, and wait for it."""
        done: Future[None] = Future()
        with self._wake:
            self._check_open()
            self._calls.append((work, done))
            self._wake.notify()
        done.result()

    # ---- the batcher's thread -----------------------------------------------------------------------------------

    def _loop(self) -> None:
        while self._prepare():
            try:
                self._step()
            except Exception as error:  # llama.cpp's or our own: whoever waits gets it
                self._cells.clear()  # the cache holds nothing any more
                for answer in self._working.copy():
                    answer.completion.error = error
                    self._end(answer, "error")

    def _prepare(self) -> bool:
        """Do requested work between decodes, and wait until somebody is to be answered; False: nobody will be."""
        while True:
            self._run_calls()
            with self._wake:
                for answer in (*self._working, *self._waiting):
                    if answer.completion.cancelled or self._now:
                        self._end(answer, "cancelled")
                self._admit()
            self._tell(bool(self._working or self._calls))
            if self._working:
                return True
            with self._wake:
                if not self._open and not self._waiting and not self._calls:
                    return False
                while self._open and not self._waiting and not self._calls:
                    self._wake.wait()

    def _run_calls(self) -> None:
        for call in self._calls.copy():
            work, done = call
            try:
                if work():
                    self._calls.remove(call)
                    done.set_result(None)
            except Exception as error:  # raised for the caller of the work
                self._calls.remove(call)
                done.set_exception(error)

    def _tell(self, busy: bool) -> None:
        if busy == self._told:
            return
        self._told = busy
        if not busy:
            self.idle_since = time.monotonic()
        if self.on_busy:
            self.on_busy(busy)

    def _admit(self) -> None:
        """Begin answers while the cache has room for their prompts and for everybody's next tokens."""
        while self._waiting and len(self._working) < self.parallel:
            answer = self._waiting[0]
            if any(other.request.repeats for other in (answer, *self._working)):
                if not self._has_room_in_order(answer):
                    return
                self._working.append(self._waiting.popleft())
                continue
            promised = answer.growth + sum(other.pending + other.growth for other in self._working)
            tokens = answer.request.tokens
            missing = len(tokens)
            if not answer.measures:
                missing = self._cells.missing(answer.completion.adapter, tokens, answer.request.repeats)
            if self._working and missing + promised > self._cells.free:
                return
            self._working.append(self._waiting.popleft())

    def _has_room_in_order(self, answer: Answer) -> bool:
        """Whether an answer can begin without harm to answers that must repeat, itself included: no cell may be given
        back before they end. If nothing is in progress, the cache is emptied for that.
        """
        count = sum(each.pending + each.left for each in (answer, *self._working))
        if self._cells.can_stay_in_order(count):
            return True
        if self._working:
            return False
        self._cells.clear()
        return True

    def _step(self) -> None:
        """One decode of one adapter's answers."""
        plan = self._plan()
        while not self._cells.make_room(sum(count for _, count in plan)) and len(self._working) > 1:
            self._put_back(self._working[-1])
            plan = self._plan()
        self._turns[plan[0][0].lane] = time.monotonic()
        self.served.switch(plan[0][0].completion.adapter)
        ends = self._fill(plan)
        logits = self.served.cache.decode()
        for answer, count in plan:
            start = len(answer.sequence.tokens)
            self._cells.extend(answer.sequence, answer.request.tokens[start : start + count],
                               answer.request.repeats and start < answer.completion.prompt_tokens)
        for (answer, _), rows in zip(plan, np.split(logits, ends[:-1]), strict=True):
            self._measure(answer, rows)
            if not answer.pending:
                self._continue(answer, rows[-1])

    def _measure(self, answer: Answer, logits: NDArray[np.float32]) -> None:
        """Note the log-probabilities of a prompt's tokens by the logits [n, V] before each."""
        completion = answer.completion
        known = completion.prompt_logprobs
        if answer.measures:
            for row in logits[: completion.prompt_tokens - len(known)]:
                token = answer.request.tokens[len(known)]
                known.append(logprob_of(token, row, answer.request.logprobs or 0, self.served.tokenizer))

    def _continue(self, answer: Answer, logits: NDArray[np.float32]) -> None:
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

    def _plan(self) -> list[tuple[Answer, int]]:
        """The answers of the next decode and their tokens, from the lane whose last turn is longest ago."""
        lane = min((answer.lane for answer in self._working), key=lambda lane: self._turns.get(lane, 0.0))
        if isinstance(lane, Answer):
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

    def _begin(self, answer: Answer) -> None:
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

    def _fill(self, plan: list[tuple[Answer, int]]) -> NDArray[np.intp]:
        """Put the tokens into the batch; return the ends of each answer's rows in the logits."""
        batch = self.served.cache.batch
        rows = []
        batch.size = 0
        for answer, count in plan:
            start = len(answer.sequence.tokens)
            wanted = np.full(count, answer.measures)
            wanted[-1] |= count == answer.pending
            batch.add(answer.request.tokens[start : start + count], start, answer.sequence.id, wanted)
            rows.append(int(wanted.sum()))
        return np.cumsum(rows)

    def _take(self, answer: Answer, token: int, logits: NDArray[np.float32]) -> None:
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

    def _note(self, answer: Answer, token: int, logits: NDArray[np.float32]) -> None:
        if (count := answer.request.logprobs) is not None:
            answer.completion.logprobs.append(logprob_of(token, logits, count, self.served.tokenizer))

    def _put_back(self, answer: Answer) -> None:
        """Let an answer wait until there is room again; its cells are kept until somebody needs them."""
        self._working.remove(answer)
        self._cells.end(answer.sequence)
        answer.sequence = kv_cache.nowhere()
        self._waiting.appendleft(answer)

    def _end(self, answer: Answer, finish: str, piece: str = "") -> None:
        if answer in self._working:
            self._working.remove(answer)
            self._cells.end(answer.sequence)
        else:
            self._waiting.remove(answer)
        self._turns.pop(answer, None)
        answer.request.sampler.close()
        answer.completion.end(finish, piece)
