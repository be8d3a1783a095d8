"""Sources of answers, in a list. Each one answers a question or leaves it to the next; the model is the last.

A source is one file with an `AnswerSource`; `Service.sources` lists them in their order. Each answer names its source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from ..errors import UsageError
from ..llamacpp.tokenizer import Tokenizer
from ..serving.answering import Answering
from ..serving.completion import MODEL, Completion
from ..serving.question import Question
from ..serving.served import Served
from .options import DaemonConfig
from .state.adapters import Adapters

RECALL, SIMILAR, CERTAIN = 100, 200, 300  # places of sources, with room between them
FORMS = ("grammar", "echo", "among")  # options that ask for another answer than a text


@dataclass(frozen=True)
class AskedQuestion:
    """A question as sources read it. content: {messages, tools} or {prompt}; empty where only tokens are known, or
    where the answer has a form that no other source keeps. prompt: the model's input, text or tokens. model: a name of
    `Service.models`. is_free: the answer is not held to the form that an adapter learned. options: of `Batcher.submit`.
    may_be_kept: the client allows the question to be stored.
    """

    content: Mapping[str, Any]
    prompt: str | Sequence[int]
    model: str = ""
    is_free: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    may_be_kept: bool = True


class AnswerSource(Protocol):
    """Something that answers questions. name: as `Completion.source` and the API say it. place: those with a lower
    number are asked first: corrections (RECALL), similar ones (SIMILAR), then models of certain questions (CERTAIN).
    """

    name: ClassVar[str]
    place: ClassVar[int]

    def answer(self, asked: AskedQuestion) -> Completion | None:
        """Returns the answer; None asks the next source. Any thread calls it. Raises errors for a bad question."""
        ...


@dataclass(frozen=True)
class ModelSource:
    """The model with the adapter that the question names; it answers everything."""

    name: ClassVar[str] = MODEL
    place: ClassVar[int] = 1000
    batcher: Answering[Any]
    adapters: Adapters
    served: Served
    config: DaemonConfig

    def answer(self, asked: AskedQuestion) -> Completion:
        adapter = self.adapters.named(asked.model)
        options = dict(asked.options)
        if not asked.is_free and self.config.structured != "off" and (form := self.served.grammar_of(adapter)):
            options.setdefault("grammar", form)  # of the answers that the adapter learned
        return self.batcher.submit(asked.prompt, adapter=adapter, **options)


def whole_answer(text: str, asked: AskedQuestion, served: Served, adapter: str | None,
                 details: dict[str, str | float]) -> Completion | None:
    """Returns a completion with an answer that is known already; None if a stop string or `max_tokens` would cut it.
    Raises the errors of Batcher.submit.
    """
    options = {"max_tokens": 256, "stop": (), **asked.options}
    options["seed"] = options.get("seed") or 0
    on_piece = options.pop("on_piece", None)
    stops = [options["stop"]] if isinstance(options["stop"], str) else [*options["stop"]]
    request = served.prepare(asked.prompt, **options | {"stop": stops})
    tokens = served.count(text)
    if tokens > request.budget or any(each in text for each in stops):
        return None
    made = Completion(adapter, len(request.tokens), wake=lambda: None, on_piece=on_piece)
    made.prompt = tuple(request.tokens)
    made.details = details
    made.completion_tokens = tokens
    made.end("stop", text)
    return made


def first_answer(sources: Sequence[AnswerSource], asked: AskedQuestion) -> Completion:
    """Returns the answer of the first source that has one, marked with its name; the last source answers everything."""
    for source in sources:
        if (completion := source.answer(asked)) is not None:
            completion.source = source.name
            return completion
    raise AssertionError("the last source answers everything")


def thinking_of(question: Question, served: Served, name: str, options: dict[str, Any]) -> bool | None:
    """Adds the budget of thinking to the options, and returns whether the template shall let the model think; None: as
    it likes. name: the model's. Raises UsageError for a model that does not think.
    """
    if question.thinking is None:
        return None
    if served.thinks:
        options["thinking_budget"] = question.thinking
        return question.thinking != 0
    if question.thinking:
        raise UsageError(f"the answer shall be thought about first, and {name} does not support thinking",
                         "leave reasoning, reasoning_effort, reasoning_budget and think out")
    return None


ANSWER = "the-earlier-answer-ends-here"
EARLIER = ({"role": "user", "content": "?"}, {"role": "assistant", "content": ANSWER})  # before the turn, to render it


def continued(tokens: Sequence[int], rendered: str, served: Served) -> list[int]:
    """Returns the token ids of a chat: those of its earlier turns, and of what the template writes after an answer.

    rendered: EARLIER and the messages of this turn. Raises UsageError for a model that reads only the last message.
    """
    tokenizer = served.tokenizer
    place = rendered.find(ANSWER)
    if place < 0 or not isinstance(tokenizer, Tokenizer):
        raise UsageError("context is given, and the model reads one message only", "leave it out")
    return [*tokens, *tokenizer.encode(rendered[place + len(ANSWER) :], continues=True)]
