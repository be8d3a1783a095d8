"""The common face of served models, computed by llama.cpp (llama.py) or ONNX Runtime (onnx.py)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from ..data.around import Instruction, instructed
from ..errors import ContextLengthError, UsageError
from ..llamacpp import library as llamacpp
from ..llamacpp.sampling import Sampler, Sampling, TextStream
from ..llamacpp.thinking import ANY, Thinking, ThinkingBudget, thinking_of
from ..llamacpp.tokenizer import Tokenizer
from ..machine.sensors import answering

MOST_LOGPROBS = 100  # likeliest tokens of which they are given


@dataclass
class AnswerRequest:
    """A checked prompt, and the options of its answer."""

    tokens: list[int]  # the prompt's, then those of the answer too
    budget: int  # tokens that the answer may have
    sampler: Sampler
    text: TextStream
    logprobs: int | None = None  # for each token its log-probability, and those of this many likeliest ones
    echo: bool = False  # the prompt's tokens too
    among: Sequence[int] = ()  # tokens of which the log-probabilities after the prompt are wanted, and nothing else
    repeats: bool = False  # whether the same request must give the same answer, whatever else is computed


class ServedModel(ABC):
    """A model opened for answers; close it, or use it as a context manager. For one thread at a time.

    A subclass sets these three attributes, computes the next token, and limits the number of tokens.
    """

    tokenizer: Tokenizer
    seed: int  # of sampling, if a call names none
    busy_file: Path | None  # exists while an answer is streamed
    around: Instruction = None  # what is put around every chat

    @property
    @abstractmethod
    def context(self) -> int:
        """Tokens that prompt and answer may have together."""

    @abstractmethod
    def close(self) -> None:
        """Free the model; closing twice is fine."""

    @abstractmethod
    def reset(self) -> None:
        """Clear the cache: the next call computes all of its tokens."""

    @abstractmethod
    def _check(self, tokens: list[int], room: int = 0) -> None:
        """Raises unless these tokens, and `room` more, can be computed."""

    @abstractmethod
    def _next(self, tokens: list[int], sampler: Sampler) -> int:
        """Compute those of `tokens` that the cache lacks, and sample the next one."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def generate(self, prompt: str | Sequence[int], *, max_tokens: int = 256, seed: int | None = None,
                 stop: str | Iterable[str] = (), **sampling: Any) -> Iterator[str]:
        """Stream the continuation of a prompt (text, or token ids) in pieces of whole characters.

        sampling: fields of Sampling. Greedy at temperature 0; the same seed and cache give the same text. It ends
        before a stop string, at a token that ends a turn, after max_tokens, or where the context ends. Raises, before
        anything streams, UsageError for an option out of range, EdgetuneError for a prompt without room in the context.
        """
        sampling.setdefault("grammar", self._form())
        return self._stream(self.prepare(prompt, max_tokens, stop, seed=self.seed if seed is None else seed,
                                         **sampling))

    def _form(self) -> str:
        """The grammar of answers that are requested without one; "" for none."""
        return ""

    def _instruction(self) -> Instruction:
        """What chats without a system message are given with the active adapter; None: nothing."""
        return None

    def prepare(self, prompt: str | Sequence[int], max_tokens: int, stop: str | Iterable[str],
                logprobs: int | None = None, echo: bool = False, among: Sequence[int] = (),
                thinking_budget: int = ANY, **sampling: Any) -> AnswerRequest:
        """The checked request; errors as in `generate`. For any thread. thinking_budget: tokens of thinking, as of
        ThinkingBudget; only of a model that thinks.
        """
        if max_tokens < (0 if echo else 1):
            raise UsageError(f"max_tokens is {max_tokens}", "choose 1 or more")
        if logprobs is not None and not 0 <= logprobs <= MOST_LOGPROBS:
            raise UsageError(f"logprobs is {logprobs} tokens", f"choose from 0 to {MOST_LOGPROBS}")
        checked = Sampling(**sampling).check()
        text = TextStream(stop)
        tokens = self._tokens(prompt, min(max_tokens, 1))
        budget = min(max_tokens, self.context - len(tokens))
        marks = self.thinking
        thinking = ThinkingBudget(marks, thinking_budget, marks.opened_by(tokens)) if marks else None
        sampler = Sampler(llamacpp.load(), checked, self.tokenizer, tokens, budget, thinking)
        return AnswerRequest(tokens, budget, sampler, text, logprobs, echo, among)

    def _stream(self, request: AnswerRequest) -> Iterator[str]:
        tokens = request.tokens
        text = request.text
        with request.sampler as sampler, answering(self.busy_file):
            for _ in range(request.budget):
                token = self._next(tokens, sampler)
                if self.tokenizer.is_end(token):
                    break
                tokens.append(token)
                if piece := text.push(self.printed(token)):
                    yield piece
                if text.stopped:
                    return
        if piece := text.flush():
            yield piece

    def chat(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None = None,
             **options: Any) -> Iterator[str]:
        """Stream the assistant's next message; `options` are those of `generate`.

        The model's own chat template renders the messages (OpenAI's shape) and tools, with `around` put around them.
        Messages without a system message are given that of the active adapter, or its prompt.
        """
        messages = instructed(instructed(messages, self.around), self._instruction())
        return self.generate(self.tokenizer.render(messages, tools, add_generation_prompt=True), **options)

    @cached_property
    def thinking(self) -> Thinking | None:
        """The marks of a model that thinks before it answers; None for another one."""
        return thinking_of(self.tokenizer)

    def printed(self, token: int) -> bytes:
        """The visible bytes of a token: none for marks such as <|im_start|>, but those of thinking."""
        marks = self.thinking
        is_shown = marks is not None and token in (marks.begin, marks.end)
        return self.tokenizer.piece(token) if is_shown else self.tokenizer.printed(token)

    def _tokens(self, prompt: str | Sequence[int], room: int = 1) -> list[int]:
        """Token ids of a prompt that leaves room for that many more."""
        if isinstance(prompt, str):
            # a prompt that is surely too long is not tokenized: of 1 MB that may take llama.cpp a minute
            if len(prompt) > self.context and len(prompt) > self.context * self.tokenizer.longest:
                raise ContextLengthError(f"{len(prompt)} characters do not fit the context of {self.context} tokens",
                                         "shorten the text or choose a larger context")
            tokens = self.tokenizer.encode(prompt, bos=True)
        else:
            tokens = list(map(int, prompt))
        if not tokens:
            raise UsageError("the prompt is empty", "give it at least one token")
        self._check(tokens, room)
        return tokens
