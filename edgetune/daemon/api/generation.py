"""Chat and completions: what requests and answers look like, in OpenAI's shape with llama-server's further options."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ...serving.question import Question
from .shapes import Answer, Body, Whole

No = Annotated[Literal[False], BeforeValidator(lambda value: value if isinstance(value, bool) else None)]  # 0 is not no


class StreamOptions(Body):
    include_usage: bool = False


class ResponseFormat(Body):
    type: Literal["text"]


class Generation(Body):
    """What chat and completions share. What is left out or null has the default of `Batcher.submit`."""

    model: str = Field("", description="The base, an adapter, or NAME:latest: the base with the adapter in service, as "
                       "for an empty one.")
    max_tokens: Whole | None = Field(None, description="Tokens of the answer at most.")
    temperature: float | None = Field(None, description="0: always the likeliest token, which is the default.")
    top_p: float | None = None
    top_k: Whole | None = None
    min_p: float | None = None
    seed: Whole | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = Field(None, description="The answer ends before "
                                                                          "such a text.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="Not used, nor kept.")
    # clients send these defaults; another value is refused
    n: Annotated[Whole, Field(ge=1, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None

    def options(self) -> dict[str, Any]:
        """Those that Batcher.submit takes, as far as they are given."""
        names = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class ChatMessage(BaseModel):
    """As in OpenAI's API; what else it has is for the model's chat template."""

    model_config = ConfigDict(strict=True, extra="allow")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None

    def plain(self) -> dict[str, Any]:
        """For the template, which knows no developer: OpenAI's newer name of the system."""
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


class ChatRequest(Generation):
    messages: list[ChatMessage] = Field(min_length=1)
    tools: list[Tool] | None = Field(None, description="Shown to the model by its chat template.")
    tool_choice: Literal["auto", "none"] | None = None
    max_completion_tokens: Whole | None = Field(None, description="The newer name of max_tokens.")
    response_format: ResponseFormat | None = None
    logprobs: No | None = None

    def options(self) -> dict[str, Any]:
        newer = {} if self.max_completion_tokens is None else {"max_tokens": self.max_completion_tokens}
        return super().options() | newer

    def question(self) -> Question:
        tools = [tool.model_dump(exclude_unset=True) for tool in self.tools or ()]
        return Question(messages=[message.plain() for message in self.messages], model=self.model, tools=tools,
                        tool_choice=self.tool_choice or "auto", options=self.options())


class CompletionRequest(Generation):
    prompt: str | list[Whole] = Field(description="Text, or token ids.")

    def questions(self) -> list[Question]:
        return [Question(prompt=self.prompt, model=self.model, options=self.options())]


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


class ChatChoice(Answer):
    index: int = 0
    message: SaidMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length", "tool_calls"]


class FromFeedback(Answer):
    recalled: str = Field(description="The feedback from which the answer was taken; the model made none.")


class Chat(Answer):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str = Field(description="Who answered: the base or an adapter.")
    choices: list[ChatChoice]
    usage: Usage
    edgetune: FromFeedback | None = Field(None, description="Of an answer that people gave as a correction.")


class CompletionChoice(Answer):
    index: int = 0
    text: str
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class Completion(Answer):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str = Field(description="Who answered: the base or an adapter.")
    choices: list[CompletionChoice]
    usage: Usage
    edgetune: FromFeedback | None = Field(None, description="Of an answer that people gave as a correction.")
