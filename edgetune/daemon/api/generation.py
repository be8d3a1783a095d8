"""Schemas of chat and completions, in OpenAI's shape with llama-server's further options."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ...errors import UsageError
from ...serving.question import Question
from .shapes import Answer, Body, Whole

OPTIONS = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "frequency_penalty",
           "presence_penalty", "repeat_penalty", "repeat_last_n")
IGNORED = ("user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key",
           "prompt_cache_retention", "prediction", "cache_prompt", "parallel_tool_calls")


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class JsonSchema(Body):
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | bool | None = Field(None, alias="schema")
    strict: bool | None = Field(None, description="Answers obey the schema in any case.")


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = Field(None, description="With type json_schema.")
    schema_: dict[str, Any] | None = Field(None, alias="schema", description="llama-server's place of it, with type "
                                           "json_object.")

    def wanted(self) -> dict[str, Any] | bool | None:
        """The schema of the answers."""
        given = self.json_schema.schema_ if self.json_schema else None
        if self.type == "json_schema":
            if given is None:
                raise UsageError("response_format is json_schema, and json_schema.schema is missing", "give it")
            return given
        if self.json_schema is not None or (self.type == "text" and self.schema_ is not None):
            raise UsageError(f"response_format has a schema, and its type is {self.type}", "let it be json_schema")
        return (self.schema_ or {"type": "object"}) if self.type == "json_object" else None


class Sampled(Body):
    """The options of sampling that all of OpenAI's APIs have here."""

    temperature: float | None = Field(None, description="0: always the likeliest token, which is the default.")
    top_p: float | None = None
    top_k: Whole | None = None
    min_p: float | None = None
    seed: Whole | None = None


class Generation(Sampled):
    """What chat and completions share. What is left out or null has the default of `Batcher.submit`."""

    model: str | None = Field(None, description="The base, an adapter, or NAME:latest: the base with the active "
                              "adapter, as without.")
    max_tokens: Whole | None = Field(None, description="Tokens of the answer at most.")
    stop: str | Annotated[list[str], Field(max_length=16)] | None = Field(None, description="The answer ends before "
                                                                          "such a text.")
    frequency_penalty: float | None = Field(None, description="Of the last repeat_last_n tokens of prompt and answer, "
                                            "as in llama.cpp.")
    presence_penalty: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: Whole | None = None
    logit_bias: dict[str, float] | None = Field(None, description="Token id -> what is added to its logit.")
    n: Annotated[Whole, Field(ge=1, le=128)] | None = Field(None, description="Number of answers.")
    response_format: ResponseFormat | None = None
    json_schema: dict[str, Any] | None = Field(None, description="llama-server's place of the answers' schema.")
    grammar: str | None = Field(None, description="A grammar in GBNF that answers obey.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    store: bool | None = Field(None, description="false: the prompt is never kept, also where the daemon keeps some "
                               "(--keep-prompts).")
    # taken, without effect
    user: str | None = Field(None, description="Not used, nor kept; so are those that follow.")
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prediction: dict[str, Any] | None = None
    cache_prompt: bool | None = None

    def ignored(self) -> list[str]:
        """The options that are given and have no effect."""
        return [name for name in IGNORED if getattr(self, name, None) is not None]

    def options(self) -> dict[str, Any]:
        """The options of Batcher.submit that are given."""
        found = {name: value for name in OPTIONS if (value := getattr(self, name)) is not None}
        if self.logit_bias:
            found["logit_bias"] = tuple((_token(key), bias) for key, bias in self.logit_bias.items())
        return found

    def shared(self) -> dict[str, Any]:
        """Fields of the question that chat and completions give alike."""
        schemas = [self.response_format.wanted()] if self.response_format else []
        schemas = [schema for schema in (*schemas, self.json_schema) if schema is not None]
        if len(schemas) + bool(self.grammar) > 1:
            raise UsageError("two of response_format, json_schema and grammar are given", "leave one of them out")
        free = self.response_format is not None and self.response_format.type == "text"
        return {"model": self.model or "", "schema": schemas[0] if schemas else None, "grammar": self.grammar or "",
                "free": free, "n": self.n or 1, "options": self.options(), "may_be_kept": self.store is not False}


def _token(key: str) -> int:
    if not (key.isascii() and key.isdecimal() and len(key) < 10):
        raise UsageError(f"logit_bias names {key!r:.40}", "write token ids, as text")
    return int(key)


class ChatMessage(BaseModel):
    """A message as in OpenAI's API; other keys are for the model's chat template."""

    model_config = ConfigDict(strict=True, extra="allow")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None

    def plain(self) -> dict[str, Any]:
        """The message for the template, which has no role developer: OpenAI's newer name of system."""
        return {**self.model_dump(), "role": "system" if self.role == "developer" else self.role}


class ToolFunction(BaseModel):
    """What else it has is for the model's chat template."""

    model_config = ConfigDict(strict=True, extra="allow")
    name: str = Field(min_length=1, max_length=128)
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="A JSON schema of its arguments.")


class Tool(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    type: Literal["function"]
    function: ToolFunction


class NamedFunction(Body):
    name: str


class ToolChoice(Body):
    type: Literal["function"]
    function: NamedFunction


class ChatRequest(Generation):
    messages: list[ChatMessage] = Field(min_length=1)
    tools: list[Tool] | None = Field(None, description="Shown to the model by its chat template.")
    tool_choice: Literal["auto", "none", "required"] | ToolChoice | None = Field(
        None, description="required, or a function: the answer is a call, whose arguments obey the function's schema.")
    max_completion_tokens: Whole | None = Field(None, description="The newer name of max_tokens.")
    logprobs: bool | None = None
    top_logprobs: Annotated[Whole, Field(ge=0, le=20)] | None = Field(None, description="With logprobs: of this many "
                                                                      "tokens.")
    modalities: list[Literal["text"]] | None = None
    parallel_tool_calls: bool | None = Field(None, description="Not used.")

    def options(self) -> dict[str, Any]:
        newer = {} if self.max_completion_tokens is None else {"max_tokens": self.max_completion_tokens}
        return super().options() | newer

    def question(self) -> Question:
        if self.top_logprobs is not None and not self.logprobs:
            raise UsageError("top_logprobs is given without logprobs", "let logprobs be true")
        choice = self.tool_choice
        named = choice.function.name if isinstance(choice, ToolChoice) else None
        return Question(messages=[message.plain() for message in self.messages],
                        tools=[tool.model_dump(exclude_unset=True) for tool in self.tools or ()],
                        tool_choice=choice if isinstance(choice, str) else "auto", function=named,
                        logprobs=(self.top_logprobs or 0) if self.logprobs else None, **self.shared())


class CompletionRequest(Generation):
    prompt: str | list[Whole] | list[str] | list[list[Whole]] = Field(description="Text, or token ids; or a list of "
                                                                      "them.")
    logprobs: Annotated[Whole, Field(ge=0, le=20)] | None = Field(None, description="For each token its "
                                                                  "log-probability, and those of this many tokens.")
    best_of: Annotated[Whole, Field(ge=1, le=1)] | None = None
    echo: bool | None = Field(None, description="The text begins with the prompt. With logprobs its tokens have some, "
                              "but for the first. max_tokens may be 0.")
    suffix: Annotated[str, Field(max_length=0)] | None = None

    def questions(self) -> list[Question]:
        shared = self.shared()
        several = isinstance(self.prompt, list) and self.prompt and not isinstance(self.prompt[0], int)
        prompts: Any = self.prompt if several else [self.prompt]
        return [Question(prompt=prompt, logprobs=self.logprobs, echo=bool(self.echo), **shared) for prompt in prompts]


class Usage(Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CalledFunction(Answer):
    name: str
    arguments: str = Field(description="JSON, as the model wrote it.")


class ToolCall(Answer):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class SaidMessage(Answer):
    role: Literal["assistant"] = "assistant"
    content: str | None
    tool_calls: list[ToolCall] | None = None
    refusal: None = None


class Likely(Answer):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobs(Likely):
    top_logprobs: list[Likely]


class ChatLogprobs(Answer):
    content: list[TokenLogprobs]
    refusal: None = None


class ChatChoice(Answer):
    index: int = 0
    message: SaidMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length", "tool_calls"]


class Origin(Answer):
    model_config = ConfigDict(extra="allow")  # a source may name more

    source: str = Field(description="Who answered in place of the model: recall.")
    recalled: str | None = Field(None, description="The feedback that the answer is from, where recall answered.")


class Chat(Answer):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str = Field(description="Who answered: the base or an adapter.")
    choices: list[ChatChoice]
    usage: Usage
    edgetune: Origin | None = Field(None, description="Who answered, where the model did not.")


class CompletionLogprobs(Answer):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(Answer):
    index: int = 0
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"]


class Completion(Answer):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str = Field(description="Who answered: the base or an adapter.")
    choices: list[CompletionChoice]
    usage: Usage
    edgetune: Origin | None = Field(None, description="Who answered, where the model did not.")
