"""What compression cost: the distributions of two models over the same held-out tokens, both computed by llama.cpp.

KL(source || model) per token says how far the model's answers move, before any of them becomes wrong; perplexity says
how well each predicts the text. Letters: T tokens of a window, V vocabulary of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data.dataset import Dataset
from ..data.question import question_text
from ..data.rows import prompt_of
from ..errors import DataError, MismatchError
from ..llamacpp import library as llamacpp
from ..llamacpp.context import Context
from ..llamacpp.divergence import divergence
from ..llamacpp.tokenizer import Tokenizer
from ..serving.model import ServedModel
from .progress import Progress, ignore, never, raise_if_stopped

Logprobs = NDArray[np.float32]
COUNT = 10  # answers
LENGTH = 48  # tokens of each
_ASKED = (
    "What is the capital of France?", "Name three colours.", "What is 7 + 5?", "Write one sentence about the sea.",
    "What does a thermostat do?", "Give a synonym of quick.", "Which planet is closest to the sun?",
    "How do I boil an egg?", "Translate 'good morning' into Spanish.", "What is a computer?",
)


@dataclass(frozen=True)
class Cost:
    """Means over `tokens` predictions. kl: nats a token, kl_error: its standard error; top1: share of the tokens for
    which both models give the same one the highest probability."""

    tokens: int
    perplexity: float
    source_perplexity: float
    kl: float
    kl_error: float
    top1: float


def compare(source: Path, model: Path, windows: NDArray[np.int32], kept: NDArray[np.int32] | None = None, *,
            threads: int = 0, on_progress: Progress = ignore, should_stop: Callable[[], bool] = never) -> Cost:
    """The model compared with its source on windows [W, T] of token ids.

    kept: int32 [V], where the model's vocabulary is a part of the source's, the source's id of each of the model's
    tokens. The windows are in the model's ids then, and the source's distribution is that over the kept tokens.
    Memory: float32 [T, V] of both models. DataError for windows of fewer than two tokens.
    """
    if windows.size == 0 or windows.shape[1] < 2:
        raise DataError(f"there are {windows.size} tokens to measure on, at least a window of two is needed",
                        "give a longer text")
    theirs = windows if kept is None else kept[windows]
    sums = np.zeros(5)
    with opened(source, windows.shape[1], threads) as whole, opened(model, windows.shape[1], threads) as small:
        for i, (window, ids) in enumerate(zip(windows, theirs, strict=True)):
            raise_if_stopped(should_stop)
            expected = whole(ids) if kept is None else whole(ids)[:, kept]
            found = small(window)
            if expected.shape != found.shape:
                raise MismatchError(f"{source} has {expected.shape[1]} tokens and {model} has {found.shape[1]}",
                                    "say which of them were kept")
            sums += divergence(expected[:-1], found[:-1], window[1:])
            on_progress("measuring", i + 1, len(windows))
    tokens = windows.shape[0] * (windows.shape[1] - 1)
    source_loss, loss, kl, squares, agreed = (sums / tokens).tolist()
    return Cost(tokens, math.exp(loss), math.exp(source_loss), kl,
                math.sqrt(max(squares - kl * kl, 0.0) / max(tokens - 1, 1)), agreed)


@contextmanager
def opened(path: Path, length: int, threads: int = 0) -> Iterator[Callable[[NDArray[np.int32]], Logprobs]]:
    """A model in llama.cpp, as a function from up to `length` token ids [T] to logits [T, V]."""
    llama = llamacpp.load()
    with ExitStack() as stack:
        model = llamacpp.open_model(path, path)
        stack.callback(llama.llama_model_free, model)
        context = Context(llama, model, length, threads)
        stack.callback(context.close)

        def logits(tokens: NDArray[np.int32]) -> Logprobs:
            context.clear()  # nothing of a window is taken from the one before: the same window gives the same bits
            out = np.empty((len(tokens), context.n_vocab), np.float32)
            for positions, values in context.feed(tokens.tolist(), np.ones(len(tokens), np.bool_)):
                out[positions] = values
            return out

        yield logits


@dataclass(frozen=True)
class SampleRow:
    """A row whose answers before and after a person can judge without a number. question: what is read; prompt: what
    the model is given, template included.
    """

    question: str
    prompt: str


def samples(rows: Dataset | None, tokenizer: Tokenizer) -> list[SampleRow]:
    """Questions of the first rows that ask something, else ten questions of our own."""
    if rows is not None and rows.asking:
        return [SampleRow(question_text(row), prompt_of(row, tokenizer)[0]) for row in rows.asking[:COUNT]]
    if tokenizer.chat_template is None:
        return [SampleRow(text, text) for text in _ASKED]
    return [SampleRow(text, tokenizer.render([{"role": "user", "content": text}], add_generation_prompt=True))
            for text in _ASKED]


def answered(model: ServedModel, asked: SampleRow) -> str:
    """The likeliest answer, by whatever serves the model."""
    return "".join(model.generate(asked.prompt, max_tokens=LENGTH))
