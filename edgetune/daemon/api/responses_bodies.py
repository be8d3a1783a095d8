"""Schemas of OpenAI's /v1/responses: the request, which becomes a Question, and the response."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ...errors import UsageError
from ...serving.question import Question
from .generation import Sampled
from .schemas import Metadata
from .shapes import Answer, Body, Whole

NOT_USED = "Taken and not used: "
IGNORED = ("user", "safety_identifier", "prompt_cache_key", "stream_options")
PARTS = ("input_text", "output_text", "text")
ROLES = ("system", "developer", "user", "assistant")


class FunctionTool(BaseModel):
    """What else it has is not used."""

    model_config = ConfigDict(strict=True, extra="allow")
    type: Literal["function"]
    name: str = Field(min_length=1, max_length=128)
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="A JSON schema of its arguments.")
    strict: bool | None = Field(None, description=NOT_USED + "a call that must be obeys the schema anyway.")

    def plain(self) -> dict[str, Any]:
        """The tool in the shape of /v1/chat/completions."""
        function = self.model_dump(include={"name", "description", "parameters"}, exclude_none=True)
        return {"type": "function", "function": function}


class ChosenFunction(Body):
    type: Literal["function"]
    name: str


class JsonSchemaFormat(Body):
    model_config = ConfigDict(serialize_by_alias=True)
    type: Literal["json_schema"]
    name: str
    json_schema: dict[str, Any] = Field(alias="schema")
    description: str | None = Field(None, description=NOT_USED + "the model is not told.")
    strict: bool | None = Field(None, description=NOT_USED + "the answer obeys the schema anyway.")


class OtherFormat(Body):
    type: Literal["text", "json_object"]


class TextOptions(Body):
    format: OtherFormat | JsonSchemaFormat | None = None
    verbosity: Literal["medium"] | None = Field(None, description="medium alone, which clients send.")


class ResponseStream(Body):
    include_obfuscation: bool | None = Field(None, description=NOT_USED + "events are not padded.")


class Item(BaseModel):
    """A message, a function_call or a function_call_output. What else it has is not used."""

    model_config = ConfigDict(strict=True, extra="allow")
    type: str = "message"
    role: str | None = None
    content: str | list[dict[str, Any]] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[dict[str, Any]] | None = None


class ResponseRequest(Sampled):
    model: str | None = Field(None, description="The base, an adapter, or NAME:latest, as without.")
    input: str | Annotated[list[Item], Field(min_length=1)] = Field(description="A user's message, or items of a "
                                                                                "conversation.")
    instructions: str | None = Field(None, description="A system message before all others.")
    max_output_tokens: Whole | None = Field(None, description="Tokens of the answer at most.")
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["auto", "none", "required"] | ChosenFunction | None = None
    text: TextOptions | None = None
    stream: bool | None = None
    stream_options: ResponseStream | None = None
    metadata: Metadata | None = Field(None, description="Given back.")
    user: str | None = Field(None, description=NOT_USED + "nor kept.")
    safety_identifier: str | None = Field(None, description=NOT_USED + "nor kept.")
    prompt_cache_key: str | None = Field(None, description=NOT_USED + "what begins alike is found by its tokens.")
    store: bool | None = Field(None, description="false: the prompt is never kept, also where the daemon keeps some "
                               "(--keep-prompts). Responses are not stored.")
    service_tier: Literal["auto", "default"] | None = None
    truncation: Literal["disabled"] | None = Field(None, description="What does not fit the context is refused.")
    parallel_tool_calls: Literal[True] | None = None
    include: Annotated[list[Literal["reasoning.encrypted_content"]], Field(max_length=1)] | None = Field(
        None, description="The model has no hidden reasoning, so there is none to include.")
    background: Literal[False] | None = None
    top_logprobs: Annotated[Whole, Field(ge=0, le=0)] | None = Field(None, description="0 alone: ask "
                                                                     "/v1/chat/completions for them.")
    previous_response_id: str | None = Field(None, description="null alone: responses are not stored.")
    conversation: str | dict[str, Any] | None = Field(None, description="null alone: responses are not stored.")

    def ignored(self) -> list[str]:
        """The options that are given and have no effect."""
        return [name for name in IGNORED if getattr(self, name) is not None]

    def question(self) -> Question:
        """The question of the request. Raises UsageError for an item that the model cannot read, or a stored one."""
        for name in ("previous_response_id", "conversation"):
            if (value := getattr(self, name)) is not None:
                raise UsageError(f"{name} is {value!r:.100}, and responses are not stored here",
                                 "send the earlier turns as items of input")
        options = self.model_dump(include={*Sampled.model_fields}, exclude_none=True)
        if self.max_output_tokens is not None:
            options["max_tokens"] = self.max_output_tokens
        choice = self.tool_choice or "auto"
        function = choice.name if isinstance(choice, ChosenFunction) else None
        tools = [tool.plain() for tool in self.tools or ()]
        return Question(messages=self._messages(), model=self.model or "", tools=tools,
                        tool_choice=choice if isinstance(choice, str) else "auto", function=function,
                        schema=self._schema(), may_be_kept=self.store is not False,
                        options=options)

    def _schema(self) -> dict[str, Any] | None:
        form = self.text.format if self.text else None
        if isinstance(form, JsonSchemaFormat):
            return form.json_schema
        return {"type": "object"} if form and form.type == "json_object" else None

    def _messages(self) -> list[dict[str, Any]]:
        items = [Item(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        found = list(_messages(items))
        if not self.instructions:
            return found
        if found and found[0]["role"] == "system":  # templates know one system message
            return [{"role": "system", "content": f"{self.instructions}\n\n{found[0]['content']}"}, *found[1:]]
        return [{"role": "system", "content": self.instructions}, *found]


def _messages(items: Iterable[Item]) -> Iterable[dict[str, Any]]:
    """Messages in the shape of /v1/chat/completions: consecutive calls are one message."""
    called: dict[str, Any] | None = None
    names: dict[str | None, str] = {}
    for item in items:
        if item.type == "function_call":
            if called is None:
                called = {"role": "assistant", "content": "", "tool_calls": []}
            names[item.call_id] = item.name or ""
            called["tool_calls"].append({"id": item.call_id, "type": "function", "function": {
                "name": item.name, "arguments": item.arguments or "{}"}})
            continue
        if called is not None:
            yield called
            called = None
        if item.type == "function_call_output":
            yield {"role": "tool", "tool_call_id": item.call_id, "name": names.get(item.call_id, ""),
                   "content": _text(item.output)}
        elif item.type == "message" and item.role in ROLES:
            yield {"role": "system" if item.role == "developer" else item.role, "content": _text(item.content)}
        else:
            kind = f"role {item.role!r:.40}" if item.type == "message" else f"type {item.type!r:.40}"
            raise UsageError(f"input has an item of {kind}",
                             f"take messages of {', '.join(ROLES)}, function_call and function_call_output")
    if called is not None:
        yield called


def _text(content: str | list[dict[str, Any]] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        if part.get("type") not in PARTS or not isinstance(part.get("text"), str):
            raise UsageError(f"input has a part of type {part.get('type')!r:.40}", "only parts of text can be used")
    return "\n".join(part["text"] for part in content)


# ---- answers --------------------------------------------------------------------------------------------------------


class OutputText(Answer):
    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = Field(default_factory=list)
    logprobs: list[Any] = Field(default_factory=list)


class OutputMessage(Answer):
    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputText]


class OutputCall(Answer):
    id: str
    type: Literal["function_call"] = "function_call"
    call_id: str
    name: str
    arguments: str = Field(description="JSON, as the model wrote it.")
    status: Literal["in_progress", "completed", "incomplete"]


class InputDetails(Answer):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(Answer):
    reasoning_tokens: int = 0


class ResponseUsage(Answer):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class IncompleteDetails(Answer):
    reason: Literal["max_output_tokens"]


class ResponseObject(Answer):
    """The output, with what was asked."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: dict[str, Any] | None = None
    incomplete_details: IncompleteDetails | None = None
    model: str = Field(description="Who answers: the base or an adapter.")
    output: list[OutputMessage | OutputCall]
    usage: ResponseUsage | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool = True
    previous_response_id: None = None
    temperature: float | None = None
    top_p: float | None = None
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    truncation: str = "disabled"
    store: bool = False
