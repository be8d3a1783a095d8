"""Schemas of Ollama's /api/chat, /api/generate and /api/embed: requests and responses."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from ...daemon.api.embeddings import TEXTS
from ...daemon.api.generation import (
    FREQUENCY,
    PRESENCE,
    REPEAT_LAST_N,
    REPEAT_PENALTY,
    SOURCES,
    STOP,
    PassageSource,
    Sampled,
    TokenLogprobs,
    Tool,
)
from ...daemon.api.shapes import Answer, AsGiven, Body, Whole
from ...daemon.service import Service
from ...daemon.state.adapters import LATEST
from ...errors import UsageError
from ...serving.question import Question
from ...serving.thoughts import EFFORTS

BASE = ":base"  # the tag of the base alone: in Ollama a name without a tag means :latest
NEUTRAL = {"mirostat": 0, "tfs_z": 1, "typical_p": 1, "penalize_newline": False, "embedding_only": False}
FORMED = 1024  # tokens of an answer with a format, if the request names no most: small models may find no end
NOT_USED = "Taken and not used: "
UNUSED = {
    "num_ctx": "the context is that of edgetune serve --context.", "num_keep": "nothing is cut from a prompt.",
    **dict.fromkeys(("mirostat_tau", "mirostat_eta"), "of mirostat."),
    **dict.fromkeys(("num_batch", "num_gpu", "main_gpu", "num_thread", "low_vram", "f16_kv", "logits_all", "vocab_only",
                     "use_mmap", "use_mlock", "numa"), "the daemon decides."),
}


class PlainError(Answer):
    """The body of an answer of /api/ with a status from 400 on."""

    error: str = Field(description="What was wrong with which value, the limit, and what to do.")


def plain_error(body: dict[str, Any]) -> dict[str, Any]:
    """Returns an error of OpenAI's shape in Ollama's."""
    return {"error": body["error"]["message"]}


def _unsupported() -> type[Body]:
    """The options that clients send and that change nothing here."""
    described = {name: f"Only {str(value).lower()}." for name, value in NEUTRAL.items()}
    described |= {name: NOT_USED + why for name, why in UNUSED.items()}
    fields: dict[str, Any] = {name: (bool | int | float | None, Field(None, description=text))
                              for name, text in described.items()}
    return create_model("Unsupported", __base__=Body, **fields)


class Options(_unsupported(), Sampled):  # type: ignore[misc]
    """What is left out or null has this daemon's default: temperature 0, and as many tokens as the context holds, with
    format 1,024.
    """

    num_predict: Whole | None = Field(None, description="Tokens of the answer at most; -1 or -2: what the context "
                                                        "holds [with format 1,024, else -1].")
    stop: str | list[str] | None = Field(None, description=STOP)
    repeat_penalty: float | None = Field(None, description=REPEAT_PENALTY)
    repeat_last_n: Whole | None = Field(None, description=REPEAT_LAST_N)
    presence_penalty: float | None = Field(None, description=PRESENCE)
    frequency_penalty: float | None = Field(None, description=FREQUENCY)

    def here(self, context: int, usual: int) -> dict[str, Any]:
        """The options as Question.options has them. context: tokens of the longest answer; usual: of one whose request
        names no most. Raises UsageError.
        """
        for name, value in NEUTRAL.items():
            if getattr(self, name) not in (None, value):
                raise UsageError(f"options.{name} is {getattr(self, name)}", f"leave it out: {value} is what is done")
        given: dict[str, Any] = self.model_dump(exclude_none=True, exclude={*NEUTRAL, *UNUSED})
        most = given.pop("num_predict", usual)
        return given | {"max_tokens": context if most in (-1, -2) else most}


def _given(body: _OllamaRequest | EmbedBody | OlderEmbedBody, unused: Container[str]) -> list[str]:
    """The names of unused options that a request gives, and keep_alive, which never has an effect."""
    given = body.options.model_dump(exclude_none=True) if body.options else {}
    names = [f"options.{name}" for name in given if name in unused]
    return names if body.keep_alive is None else [*names, "keep_alive"]


class _OllamaRequest(Body):
    model: str = Field(min_length=1, description="A name of /api/tags; without a tag :latest is meant, NAME:base is "
                                                 "only the base.")
    stream: bool | None = Field(None, description="true, the default: lines of JSON while the answer is made.")
    format: Literal["", "json"] | dict[str, Any] | None = Field(None, description="json, or a JSON schema that the "
                                                                                  "answer obeys.")
    options: Options | None = Field(None, description="Sampling and the length of the answer.")
    think: bool | Literal["low", "medium", "high"] | None = Field(
        None, description="Of a model that thinks before it answers: whether it does, or low (512 tokens at most), "
        "medium (2,048), high (any number). Other models refuse all but false.")
    keep_alive: float | str | None = Field(None, description=NOT_USED + "the model stays loaded.")
    logprobs: bool | None = Field(None, description="true: the log-probability of each token.")
    top_logprobs: Annotated[Whole, Field(ge=0, le=20)] | None = Field(None, description="With logprobs: those of this "
                                                                      "many most probable tokens, too.")

    def ignored(self) -> list[str]:
        """The options that are given and have no effect."""
        return _given(self, UNUSED)

    def question(self, service: Service) -> Question:
        """Raises UsageError."""
        if self.think and not service.served.thinks:
            raise UsageError(f"think is {self.think!r}, {self.model!r:.100} does not support thinking", "leave it out")
        if self.top_logprobs and not self.logprobs:
            raise UsageError(f"top_logprobs is {self.top_logprobs} without logprobs", "let logprobs be true")
        schema: dict[str, Any] | None = self.format if isinstance(self.format, dict) else None
        if self.format == "json":
            schema = {"type": "object"}
        context = service.served.context
        usual = context if schema is None else min(FORMED, context)
        options = (self.options or Options.model_validate({})).here(context, usual)
        effort = ("high" if self.think else "none") if isinstance(self.think, bool) else self.think
        return Question(model=named(service, self.model), schema=schema, options=options,
                        logprobs=(self.top_logprobs or 0) if self.logprobs else None,
                        thinking=None if effort is None else EFFORTS[effort])


class OllamaFunction(BaseModel):
    """The tool that a call names."""

    model_config = ConfigDict(strict=True, extra="allow")
    name: str = Field(description="The tool.")
    arguments: dict[str, Any] = Field(default_factory=dict, description="Its arguments.")


class OllamaCall(BaseModel):
    """A call of a tool."""

    model_config = ConfigDict(strict=True, extra="allow")
    function: OllamaFunction = Field(description="The tool and its arguments.")


class Message(BaseModel):
    """A message. A message's other keys are for the model's chat template."""

    model_config = ConfigDict(strict=True, extra="allow")
    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(description="Who says it.")
    content: str | None = Field(None, description="The text.")
    thinking: str | None = Field(None, description=NOT_USED + "thoughts of earlier turns are not shown to the model.")
    images: list[Any] | None = Field(None, max_length=0, description="None: the model reads text.")
    tool_calls: list[OllamaCall] | None = Field(None, description="The assistant's calls of tools.")
    tool_name: str | None = Field(None, description="The tool that a message of role tool is from.")

    def plain(self) -> dict[str, Any]:
        """The message in OpenAI's shape."""
        plain = self.model_dump(exclude={"thinking", "images", "tool_name", "tool_calls"}, exclude_none=True)
        plain["role"] = "system" if self.role == "developer" else self.role
        if self.tool_calls:
            plain["tool_calls"] = [{"type": "function", "function": {"name": call.function.name, "arguments":
                                                                     call.function.arguments}}
                                   for call in self.tool_calls]
        if self.tool_name:
            plain["name"] = self.tool_name
        return {"content": ""} | plain


class ChatBody(_OllamaRequest):
    messages: list[Message] | None = Field(None, description="The conversation; without it nothing is answered.")
    tools: list[Tool] | None = Field(None, description="Shown to the model by its chat template.")

    @property
    def asks(self) -> bool:
        return bool(self.messages)

    def asked(self, service: Service) -> Question:
        """Raises UsageError."""
        return replace(self.question(service), messages=[message.plain() for message in self.messages or ()],
                       tools=[tool.model_dump(exclude_unset=True) for tool in self.tools or ()])


class GenerateBody(_OllamaRequest):
    prompt: str | None = Field(None, description="A user's message; without it nothing is answered.")
    system: str | None = Field(None, description="The system message.")
    raw: bool | None = Field(None, description="true: continue the prompt as it is, without the chat template.")
    suffix: str | None = Field(None, max_length=0, description="None: text is not filled in.")
    template: str | None = Field(None, description="As /api/show has it alone: the model's own is used.")
    context: list[Whole] | None = Field(None, description="That of an earlier answer, which the prompt continues.")
    images: list[Any] | None = Field(None, max_length=0, description="None: the model reads text.")

    @property
    def asks(self) -> bool:
        return bool(self.prompt)

    def asked(self, service: Service) -> Question:
        """Raises UsageError."""
        if self.template and self.template != service.served.chat_template:
            raise UsageError(f"template is {self.template!r:.60}, and the model's own chat template is used here",
                             "leave it out, or write the whole prompt and let raw be true")
        if self.raw and self.context:
            raise UsageError("context is given with raw, whose prompt is all that the model reads",
                             "leave one of them out")
        if self.raw:
            return replace(self.question(service), prompt=self.prompt)
        messages = [{"role": "system", "content": self.system}] if self.system else []
        return replace(self.question(service), messages=[*messages, {"role": "user", "content": self.prompt or ""}],
                       after=self.context or (), may_be_kept=not self.context)


class EmbedBody(Body):
    model: str = Field(min_length=1, description="The base, or the file of --embeddings, with or without :latest.")
    input: str | Annotated[list[str], Field(max_length=TEXTS)] = Field(
        description="A text, or a list of them; where there is none the answer has no vectors.")
    truncate: bool | None = Field(None, description="Cut a text that is too long, which is the default; false: refuse "
                                                    "it.")
    dimensions: Whole | None = Field(None, description="The width that the model has: vectors are not cut.")
    options: Options | None = Field(None, description=NOT_USED + "none of them changes a vector.")
    keep_alive: float | str | None = Field(None, description=NOT_USED + "the model stays loaded.")

    def ignored(self) -> list[str]:
        """The options that are given and have no effect."""
        return _given(self, Options.model_fields)


class OlderEmbedBody(Body):
    model: str = Field(min_length=1, description="The base, or the file of --embeddings, with or without :latest.")
    prompt: str | None = Field(None, description="A text, which is cut if it is too long; without it the answer has no "
                                                 "numbers.")
    options: Options | None = Field(None, description=NOT_USED + "none of them changes a vector.")
    keep_alive: float | str | None = Field(None, description=NOT_USED + "the model stays loaded.")

    def ignored(self) -> list[str]:
        """The options that are given and have no effect."""
        return _given(self, Options.model_fields)


class OlderEmbedAnswer(Answer):
    """The vector of a text."""

    embedding: list[float] = Field(description="The vector.")


class EmbedAnswer(Answer):
    """The vectors of texts."""

    model: str = Field(description=AsGiven)
    embeddings: list[list[float]] = Field(description="A vector for each text, in their order.")
    total_duration: int = Field(description="Nanoseconds.")
    load_duration: int = Field(0, description="Always 0: the model is loaded.")
    prompt_eval_count: int = Field(description="Tokens of all texts.")


class Timed(Answer):
    """An answer, or a piece of it. Counts and durations, in nanoseconds, come with the last piece."""

    model: str = Field(description=AsGiven)
    created_at: str = Field(description="When it was made (RFC 3339).")
    done: bool = Field(description="Whether it is the last piece.")
    done_reason: Literal["stop", "length", "load", "unload"] | None = Field(None, description="Why it ended.")
    total_duration: int | None = Field(None, description="From the request to the end.")
    load_duration: int | None = Field(None, description="Always 0: the model is loaded.")
    prompt_eval_count: int | None = Field(None, description="Tokens of the prompt.")
    prompt_eval_duration: int | None = Field(None, description="From the request to the first token.")
    eval_count: int | None = Field(None, description="Tokens of the answer.")
    eval_duration: int | None = Field(None, description="From the first token to the end.")
    logprobs: list[TokenLogprobs] | None = Field(None, description="Of each token, if they were asked for.")
    sources: list[PassageSource] | None = Field(None, description=SOURCES)


class SaidCall(Answer):
    """A call of a tool."""

    function: OllamaFunction = Field(description="The tool and its arguments.")


class OllamaMessage(Answer):
    """The assistant's message."""

    role: Literal["assistant"] = "assistant"
    content: str = Field(description="The text.")
    thinking: str | None = Field(None, description="What the model thought before, where it does.")
    tool_calls: list[SaidCall] | None = Field(None, description="Calls of tools.")


class ChatAnswer(Timed):
    message: OllamaMessage = Field(description="The message, or a piece of it.")


class GenerateAnswer(Timed):
    response: str = Field(description="The text, or a piece of it.")
    context: list[int] | None = Field(None, description="With the last piece, but not of raw: the tokens of prompt and "
                                                        "answer, for the next request.")
    thinking: str | None = Field(None, description="What the model thought before, where it does.")


def named(service: Service, model: str) -> str:
    """The service's name of the model."""
    model = service.spelled(model)
    if model == service.name:
        return service.name + LATEST
    if service.embeddings.file and model == service.embeddings.name + LATEST:
        return service.embeddings.name
    return service.name if model == service.name + BASE else model
