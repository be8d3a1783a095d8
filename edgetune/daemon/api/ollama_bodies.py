"""Schemas of Ollama's /api/chat and /api/generate: requests and responses."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ...errors import UsageError
from ...serving.question import Question
from ..service import LATEST, Service
from .generation import Tool
from .shapes import Answer, Body, Whole

BASE = ":base"  # the tag of the base alone: in Ollama a name without a tag means :latest
AS_HERE = ("num_predict", "temperature", "top_k", "top_p", "min_p", "seed", "stop", "repeat_penalty", "repeat_last_n",
           "presence_penalty", "frequency_penalty")
NEUTRAL = {"mirostat": 0, "tfs_z": 1, "typical_p": 1, "penalize_newline": False, "embedding_only": False}
NOT_USED = "Taken and not used: "


class PlainError(Answer):
    error: str = Field(description="What was wrong with which value, the limit, and what to do.")


class Options(Body):
    """What is left out or null has this daemon's default: temperature 0, and as many tokens as the context holds."""

    num_predict: Whole | None = Field(None, description="Tokens of the answer at most; -1 or -2: what the context "
                                                        "holds.")
    temperature: float | None = Field(None, description="0: always the likeliest token, which is the default.")
    top_k: Whole | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: Whole | None = None
    stop: str | list[str] | None = None
    repeat_penalty: float | None = None
    repeat_last_n: Whole | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    mirostat: Whole | None = Field(None, description="0 alone.")
    mirostat_tau: float | None = Field(None, description=NOT_USED + "of mirostat.")
    mirostat_eta: float | None = Field(None, description=NOT_USED + "of mirostat.")
    tfs_z: float | None = Field(None, description="1 alone.")
    typical_p: float | None = Field(None, description="1 alone.")
    penalize_newline: bool | None = Field(None, description="false alone.")
    embedding_only: bool | None = Field(None, description="false alone.")
    num_ctx: Whole | None = Field(None, description=NOT_USED + "the context is that of edgetune daemon --context.")
    num_keep: Whole | None = Field(None, description=NOT_USED + "nothing is cut from a prompt.")
    num_batch: Whole | None = Field(None, description=NOT_USED + "the daemon's affair.")
    num_gpu: Whole | None = Field(None, description=NOT_USED + "the daemon's affair.")
    main_gpu: Whole | None = Field(None, description=NOT_USED + "the daemon's affair.")
    num_thread: Whole | None = Field(None, description=NOT_USED + "the daemon's affair.")
    low_vram: bool | None = Field(None, description=NOT_USED + "the daemon's affair.")
    f16_kv: bool | None = Field(None, description=NOT_USED + "the daemon's affair.")
    logits_all: bool | None = Field(None, description=NOT_USED + "the daemon's affair.")
    vocab_only: bool | None = Field(None, description=NOT_USED + "the daemon's affair.")
    use_mmap: bool | None = Field(None, description=NOT_USED + "the daemon's affair.")
    use_mlock: bool | None = Field(None, description=NOT_USED + "the daemon's affair.")
    numa: bool | None = Field(None, description=NOT_USED + "the daemon's affair.")

    def here(self, context: int) -> dict[str, Any]:
        """The options as Question.options has them. context: tokens of the longest answer. Raises UsageError."""
        for name, value in NEUTRAL.items():
            if getattr(self, name) not in (None, value):
                raise UsageError(f"options.{name} is {getattr(self, name)}", f"leave it out: {value} is what is done")
        given = {name: value for name in AS_HERE if (value := getattr(self, name)) is not None}
        most = given.pop("num_predict", -1)
        return given | {"max_tokens": context if most in (-1, -2) else most}


class _Request(Body):
    model: str = Field(min_length=1, description="A name of /api/tags; without a tag :latest is meant, NAME:base is "
                                                 "the base alone.")
    stream: bool | None = Field(None, description="Lines of JSON while the answer is made, which is the default.")
    format: Literal["", "json"] | dict[str, Any] | None = Field(None, description="json, or a JSON schema that the "
                                                                                  "answer obeys.")
    options: Options | None = None
    think: bool | str | None = Field(None, description="false alone: this daemon tells thoughts from answers nowhere.")
    keep_alive: float | str | None = Field(None, description=NOT_USED + "the model stays loaded.")
    logprobs: bool | None = Field(None, description="false alone.")
    top_logprobs: Whole | None = Field(None, description="0 alone.")

    def ignored(self) -> list[str]:
        """The options that are given and have no effect."""
        given = self.options.model_dump(exclude_none=True) if self.options else {}
        unused = [name for name in given if name not in (*AS_HERE, *NEUTRAL)]
        return [*(f"options.{name}" for name in unused), *(["keep_alive"] if self.keep_alive is not None else [])]

    def question(self, service: Service) -> Question:
        """Raises UsageError."""
        if self.think:
            raise UsageError(f"think is {self.think!r}, {self.model!r:.100} does not support thinking", "leave it out")
        for name in ("logprobs", "top_logprobs"):
            if value := getattr(self, name):
                raise UsageError(f"{name} is {value}", "leave it out, or ask /v1/chat/completions for it")
        schema: dict[str, Any] | None = self.format if isinstance(self.format, dict) else None
        if self.format == "json":
            schema = {"type": "object"}
        options = (self.options or Options.model_validate({})).here(service.served.context)
        return Question(model=named(service, self.model), schema=schema, options=options)


class CalledFunction(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class ToolCall(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    function: CalledFunction


class Message(BaseModel):
    """What else it has is for the model's chat template."""

    model_config = ConfigDict(strict=True, extra="allow")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = Field(None, description=NOT_USED + "thoughts of earlier turns are not shown to the model.")
    images: list[Any] | None = Field(None, max_length=0, description="None: the model reads text.")
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None

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


class ChatBody(_Request):
    messages: list[Message] | None = Field(None, description="None: nothing is answered, the model is loaded anyway.")
    tools: list[Tool] | None = Field(None, description="Shown to the model by its chat template.")

    @property
    def asks(self) -> bool:
        return bool(self.messages)

    def asked(self, service: Service) -> Question:
        """Raises UsageError."""
        plain = self.question(service)
        return Question(messages=[message.plain() for message in self.messages or ()], model=plain.model,
                        tools=[tool.model_dump(exclude_unset=True) for tool in self.tools or ()],
                        schema=plain.schema, options=plain.options)


class GenerateBody(_Request):
    prompt: str | None = None
    system: str | None = None
    raw: bool | None = Field(None, description="Continue the prompt as it is, without the chat template.")
    suffix: str | None = Field(None, max_length=0, description="None: text is not filled in.")
    template: str | None = Field(None, max_length=0, description="None: the model's own is used.")
    context: list[Whole] | None = Field(None, max_length=0, description="None: /api/chat takes earlier turns.")
    images: list[Any] | None = Field(None, max_length=0, description="None: the model reads text.")

    @property
    def asks(self) -> bool:
        return bool(self.prompt)

    def asked(self, service: Service) -> Question:
        """Raises UsageError."""
        plain = self.question(service)
        if self.raw:
            return Question(prompt=self.prompt, model=plain.model, schema=plain.schema, options=plain.options)
        messages = [{"role": "system", "content": self.system}] if self.system else []
        messages.append({"role": "user", "content": self.prompt or ""})
        return Question(messages=messages, model=plain.model, schema=plain.schema, options=plain.options)


class Timed(Answer):
    """What every response has; counts and durations, in nanoseconds, come with the last one."""

    model: str
    created_at: str
    done: bool
    done_reason: Literal["stop", "length", "load", "unload"] | None = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None


class SaidCall(Answer):
    function: CalledFunction


class SaidMessage(Answer):
    role: Literal["assistant"] = "assistant"
    content: str
    tool_calls: list[SaidCall] | None = None


class ChatAnswer(Timed):
    message: SaidMessage


class GenerateAnswer(Timed):
    response: str


def named(service: Service, model: str) -> str:
    """The service's name of the model."""
    if model == service.name:
        return service.name + LATEST
    if service.embeddings.file and model == service.embeddings.name + LATEST:
        return service.embeddings.name
    return service.name if model == service.name + BASE else model
