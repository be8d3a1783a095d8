"""Texts by the engine that trains (engine.py): K answers to each of many prompts, within a memory budget.

llama.cpp serves; this is for thousands of answers, such as those that a model learns from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...adapters.base import Artifact
from ...adapters.lora import Lora
from ...adapters.store import read_artifact
from ...backends.arena import arena_bytes
from ...backends.base import Backend
from ...backends.opening import open_backend
from ...errors import UsageError
from ...formats.gguf import Gguf
from ...llamacpp.sampling import Sampling, TextStream
from ...llamacpp.tokenizer import Tokenizer
from ...machine import device
from ...models.cache import Cache
from ...models.decoder import Model
from ...models.linear import RunShape
from ...models.stream import sizes
from .draws import candidates_of, check_sampling
from .engine import Rollout, Rollouts, Wanted
from .forward import forward_buffers, forward_run, open_decoder
from .plan import AnswerPlan, fitting

PARALLEL = 64  # answers in progress at once, if memory has room
READ = 512  # tokens of prompts that are read in a pass, unless one is longer
GREEDY = Sampling()
GROWTH = 8 << 20  # bytes that Python takes while it answers


@dataclass(frozen=True)
class Engine:
    """Options of the engine. parallel: answers in progress at once at most. budget: bytes of this process; asked: the
    same as the user gave it. precision: of products: exact, fast or int8. threads: 0 for one a core. backend: as for
    `opening.open_backend`.
    """

    budget: int
    asked: str
    parallel: int = PARALLEL
    precision: str = "fast"
    threads: int = 0
    backend: str = "auto"


@dataclass(frozen=True)
class TokenPrompts:
    """Prompts as token ids. Each is answered `samples` times, with at most its max_tokens tokens. ends: whether a token
    that ends a turn ends an answer.
    """

    prompts: Sequence[Sequence[int]]
    max_tokens: Sequence[int]
    samples: int = 1
    sampling: Sampling = GREEDY
    stop: str | Iterable[str] = ()
    ends: bool = True


@dataclass(frozen=True)
class TextAnswer:
    """One answer: its text without its end, its tokens with their log-probabilities, and the reason of its end: "stop"
    (a token that ends a turn, or a stop string) or "length".
    """

    text: str
    rollout: Rollout

    @property
    def finish_reason(self) -> str:
        return "stop" if self.rollout.ended else "length"


def adapter_of(gguf: Gguf, path: Path | None) -> Artifact:
    """An adapter's folder or file, for `answers`; None: the base. Errors: those of `store.read_artifact`."""
    return read_artifact(path, gguf) if path else Artifact()


def answers(gguf: Gguf, tokenizer: Tokenizer, adapter: Artifact | Lora, asked: TokenPrompts,
            engine: Engine) -> Iterator[TextAnswer]:
    """Yields answers as they are finished, in any order.

    Raises UsageError, before the first answer, for an option out of its range, an empty prompt, a prompt that leaves no
    room in the model's context, and if memory has no room for one answer.
    """
    check_sampling(asked.sampling)
    asked = replace(asked, stop=(asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop))
    TextStream(asked.stop)  # refuses an empty one
    texts = [[_AnswerText(TextStream(asked.stop), tokenizer) for _ in range(asked.samples)] for _ in asked.prompts]
    drawn = draw(Model(gguf), adapter, asked, engine, tokenizer.is_end if asked.ends else lambda _: False,
                 lambda prompt, sample, token: texts[prompt][sample].ends_with(token))
    return (TextAnswer(texts[rollout.prompt][rollout.sample].whole(), rollout) for rollout in drawn)


def draw(model: Model, adapter: Artifact | Lora, asked: TokenPrompts, engine: Engine, is_end: Callable[[int], bool],
         watch: Callable[[int, int, int], bool] = lambda _prompt, _sample, _token: False,
         before_block: Callable[[], None] = lambda: None) -> Iterator[Rollout]:
    """Yields answers as tokens, as they are finished. is_end, watch: as of `Wanted`; stop and ends of `asked` are
    ignored. before_block: called before each block of the model, may raise.

    Raises UsageError, before the first answer, as `answers` does, except for sampling options.
    """
    model.structure.check_answers()
    _check(model, asked, engine)
    return _drawn(model, adapter, asked, engine, is_end, watch, before_block) if asked.prompts else iter(())


def _drawn(model: Model, adapter: Artifact | Lora, asked: TokenPrompts, engine: Engine, is_end: Callable[[int], bool],
           watch: Callable[[int, int, int], bool], before_block: Callable[[], None]) -> Iterator[Rollout]:
    ops = open_backend(engine.backend, device.thread_count(engine.threads))
    plan = plan_of(model, adapter, asked, engine, ops)
    run = _run(model, adapter, plan, engine)
    decoder = open_decoder(model, adapter, threads=engine.threads, max_tokens=run.max_tokens, max_length=run.max_length,
                           precision=engine.precision, more=plan.buffers(_cache(model), run.activations), ops=ops)
    decoder.before_block = before_block
    wanted = Wanted([np.array(prompt, np.int32) for prompt in asked.prompts], asked.samples, asked.max_tokens,
                    asked.sampling, is_end, watch)
    yield from Rollouts(decoder, plan, wanted)


def plan_of(model: Model, adapter: Artifact | Lora, asked: TokenPrompts, engine: Engine, ops: Backend) -> AnswerPlan:
    """The plan of as many answers at once as the budget has room for. Raises UsageError if there is none."""
    most = AnswerPlan(min(engine.parallel, len(asked.prompts) * asked.samples), asked.samples,
                      max(map(len, asked.prompts)), max(asked.max_tokens),
                      candidates_of(asked.sampling, model.shape.n_vocab))
    most = replace(most, virtual=_run(model, adapter, most, engine).virtual)
    device.trim()
    process = device.rss() + GROWTH

    def needs(plan: AnswerPlan) -> int:
        run = _run(model, adapter, plan, engine)
        weights = sizes(model.gguf.tensors.values(), model.shape.n_layer).in_memory(0, run.max_tokens)
        beside = plan.buffers(_cache(model), run.activations)
        return process + weights + arena_bytes([*forward_buffers(model, run, ops), *beside])

    return fitting(most, needs, engine.budget, engine.asked)


def _cache(model: Model) -> Cache:
    cache = model.structure.cache
    assert cache
    return cache


def _run(model: Model, adapter: Artifact | Lora, plan: AnswerPlan, engine: Engine) -> RunShape:
    tokens = max(plan.live, plan.prompt_tokens, min(READ, plan.prompts * plan.prompt_tokens))
    return forward_run(model, adapter, threads=engine.threads, max_tokens=tokens,
                       max_length=plan.prompt_tokens + plan.answer_tokens, precision=engine.precision)


def _check(model: Model, asked: TokenPrompts, engine: Engine) -> None:
    if engine.parallel < 1:
        raise UsageError(f"parallel is {engine.parallel}", "choose 1 or more")
    if asked.samples < 1:
        raise UsageError(f"samples is {asked.samples}", "choose 1 or more")
    for number, (prompt, budget) in enumerate(zip(asked.prompts, asked.max_tokens, strict=True), start=1):
        if budget < 1:
            raise UsageError(f"max_tokens is {budget}", "choose 1 or more")
        if not prompt:
            raise UsageError(f"prompt {number} is empty", "give it at least one token")
        if len(prompt) + budget > model.shape.context:
            what = f"prompt {number} of {len(prompt)} tokens and an answer of {budget} do not fit the context"
            raise UsageError(f"{what} of {model.shape.context}", "shorten the prompt or lower max_tokens")


class _AnswerText:
    """The text of an answer in progress."""

    def __init__(self, stream: TextStream, tokenizer: Tokenizer) -> None:
        self._stream = stream
        self._printed: Callable[[int], bytes] = tokenizer.printed
        self._pieces: list[str] = []

    def ends_with(self, token: int) -> bool:
        """Adds a token that ends no turn; returns whether a stop string is met."""
        self._pieces.append(self._stream.push(self._printed(token)))
        return self._stream.stopped

    def whole(self) -> str:
        return "".join([*self._pieces, self._stream.flush()])
