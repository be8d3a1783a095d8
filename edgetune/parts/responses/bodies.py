"""Schemas of OpenAI's /v1/responses: the request, which becomes a Question, and the response."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ...daemon.api.generation import CACHED, SOURCES, PassageSource, Sampled, allowed
from ...daemon.api.schemas import Metadata
from ...daemon.api.shapes import Answer, AsGiven, Body, Id, Time, Whole
from ...errors import UsageError
from ...serving.question import Question
from ...serving.thoughts import EFFORTS

NOT_USED = "Taken and not used: "
STATUS = "incomplete: max_output_tokens were made."
IGNORED = ("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "stream_options")
PARTS = ("input_text", "output_text", "text")
ROLES = ("system", "developer", "user", "assistant")


class FunctionTool(BaseModel):
    """A function that the model may call. Its other keys are not used."""

    model_config = ConfigDict(strict=True, extra="allow")
    type: Literal["function"]
    name: str = Field(min_length=1, max_length=128, description="Its name.")
    description: str | None = Field(None, description="What it does, for the model.")
    parameters: dict[str, Any] | None = Field(None, description="A JSON schema of its arguments.")
    strict: bool | None = Field(None, description=NOT_USED + "a call that must be obeys the schema anyway.")

    def plain(self) -> dict[str, Any]:
        """The tool in the shape of /v1/chat/completions."""
        function = self.model_dump(include={"name", "description", "parameters"}, exclude_none=True)
        return {"type": "function", "function": function}


class FileSearchTool(Body):
    """Vector stores whose passages are put before the question."""

    type: Literal["file_search"]
    vector_store_ids: list[str] = Field(min_length=1, max_length=8, description="Vector stores.")
    max_num_results: Annotated[Whole, Field(ge=1, le=50)] | None = Field(None, description="Passages at most [3].")
    ranking_options: None = Field(None, description="Only null.")
    filters: None = Field(None, description="Only null.")


class ChosenFunction(Body):
    """The function that must be called."""

    type: Literal["function"]
    name: str = Field(description="Its name.")


class AllowedFunctions(Body):
    """Some of the functions, in place of all."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"] = Field(description="auto: the model decides; required: one of them is called.")
    tools: list[ChosenFunction] = Field(min_length=1, description="Some of tools, by their names.")


class Reasoning(Body):
    """The thinking before an answer."""

    effort: Literal["none", "minimal", "low", "medium", "high"] | None = Field(
        None, description="As reasoning_effort of /v1/chat/completions.")
    summary: None = Field(None, description="Only null: thoughts are not given back.")


class JsonSchemaFormat(Body):
    """A schema that the answer obeys."""

    model_config = ConfigDict(serialize_by_alias=True)
    type: Literal["json_schema"]
    name: str = Field(description=NOT_USED + "the model is not told.")
    json_schema: dict[str, Any] = Field(alias="schema", description="The JSON schema.")
    description: str | None = Field(None, description=NOT_USED + "the model is not told.")
    strict: bool | None = Field(None, description=NOT_USED + "the answer obeys the schema anyway.")


class OtherFormat(Body):
    """Text, or any JSON object."""

    type: Literal["text", "json_object"] = Field(description="The form.")


class TextOptions(Body):
    """Options of the answer's text."""

    format: OtherFormat | JsonSchemaFormat | None = Field(None, description="The form of the answer.")
    verbosity: Literal["medium"] | None = Field(None, description="Only medium, which clients send.")


class ResponseStream(Body):
    """Options of a stream."""

    include_obfuscation: bool | None = Field(None, description=NOT_USED + "events are not padded.")


class InputItem(BaseModel):
    """A message, a function_call or a function_call_output. An item's other keys are not used."""

    model_config = ConfigDict(strict=True, extra="allow")
    type: str = Field(default="message", description="message, function_call or function_call_output.")
    role: str | None = Field(default=None, description="Who says a message: system, developer, user or assistant.")
    content: str | list[dict[str, Any]] | None = Field(default=None, description="A message's text, or parts of text.")
    call_id: str | None = Field(default=None, description="The id of a call, or of the call that an output is of.")
    name: str | None = Field(default=None, description="The function of a call.")
    arguments: str | None = Field(default=None, description="The arguments of a call, as JSON.")
    output: str | list[dict[str, Any]] | None = Field(default=None, description="An output's text, or parts of text.")


class ResponseRequest(Sampled):
    model: str | None = Field(None, description="The base, an adapter, or NAME:latest, as without.")
    input: str | Annotated[list[InputItem], Field(min_length=1)] = Field(description="A user's message, or items of a "
                                                                                "conversation.")
    instructions: str | None = Field(None, description="A system message before all others.")
    max_output_tokens: Whole | None = Field(None, description="Tokens of the answer at most [256].")
    tools: list[Annotated[FunctionTool | FileSearchTool, Field(discriminator="type")]] | None = Field(
        None, description="Functions that the model may call, and vector stores that it answers from.")
    tool_choice: Literal["auto", "none", "required"] | ChosenFunction | AllowedFunctions | None = Field(
        None, description="required, or a function: the answer is a call, whose arguments obey the function's schema. "
        "allowed_tools: the model is shown only these.")
    reasoning: Reasoning | None = Field(None, description="How much the model thinks before it answers.")
    text: TextOptions | None = Field(None, description="Options of the answer's text.")
    stream: bool | None = Field(None, description="true: server-sent events, while the answer is made.")
    stream_options: ResponseStream | None = Field(None, description=NOT_USED + "events are not padded.")
    metadata: Metadata | None = Field(None, description="Given back.")
    user: str | None = Field(None, description=NOT_USED + "nor kept.")
    safety_identifier: str | None = Field(None, description=NOT_USED + "nor kept.")
    prompt_cache_key: str | None = Field(None, description=NOT_USED + "what begins alike is found by its tokens.")
    prompt_cache_retention: str | None = Field(None, description=NOT_USED + "what is used last is kept longest.")
    store: bool | None = Field(None, description="false: the prompt is never kept, also where the daemon keeps some. "
                               "Responses are not stored.")
    service_tier: Literal["auto", "default"] | None = Field(None, description="Only auto or default.")
    truncation: Literal["disabled"] | None = Field(None, description="What does not fit the context is refused.")
    parallel_tool_calls: Literal[True] | None = Field(None, description="Only true.")
    include: Annotated[list[Literal["reasoning.encrypted_content"]], Field(max_length=1)] | None = Field(
        None, description="The model has no hidden reasoning, so there is none to include.")
    background: Literal[False] | None = Field(None, description="Only false.")
    top_logprobs: Annotated[Whole, Field(ge=0, le=0)] | None = Field(None, description="Only 0: ask "
                                                                     "/v1/chat/completions for them.")
    previous_response_id: str | None = Field(None, description="Only null: responses are not stored.")
    conversation: str | dict[str, Any] | None = Field(None, description="Only null: responses are not stored.")

    def ignored(self) -> list[str]:
        """The options that are given and have no effect."""
        return [name for name in IGNORED if getattr(self, name) is not None]

    def searched(self) -> FileSearchTool | None:
        """The vector stores to search. Raises UsageError where several tools name some."""
        found = [tool for tool in self.tools or () if isinstance(tool, FileSearchTool)]
        if len(found) > 1:
            raise UsageError(f"tools has {len(found)} of type file_search", "name all vector stores in one")
        return found[0] if found else None

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
        tools = [tool.plain() for tool in self.tools or () if isinstance(tool, FunctionTool)]
        if isinstance(choice, AllowedFunctions):
            tools = allowed(tools, [tool.name for tool in choice.tools])
            choice = choice.mode
        effort = self.reasoning.effort if self.reasoning else None
        return Question(messages=self._messages(), model=self.model or "", tools=tools,
                        tool_choice=choice if isinstance(choice, str) else "auto", function=function,
                        schema=self._schema(), may_be_kept=self.store is not False,
                        options=options, thinking=EFFORTS[effort] if effort else None)

    def _schema(self) -> dict[str, Any] | None:
        form = self.text.format if self.text else None
        if isinstance(form, JsonSchemaFormat):
            return form.json_schema
        return {"type": "object"} if form and form.type == "json_object" else None

    def _messages(self) -> list[dict[str, Any]]:
        items = [InputItem(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        found = list(_messages(items))
        if not self.instructions:
            return found
        if found and found[0]["role"] == "system":  # templates know one system message
            return [{"role": "system", "content": f"{self.instructions}\n\n{found[0]['content']}"}, *found[1:]]
        return [{"role": "system", "content": self.instructions}, *found]


def _messages(items: Iterable[InputItem]) -> Iterable[dict[str, Any]]:
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


class FileCitation(Answer):
    """A file that stood before the question."""

    type: Literal["file_citation"] = "file_citation"
    index: int = Field(description="The character after which it is named: the end of the text.")
    file_id: str = Field(description="The id of an uploaded file, or the name of one in an index.")
    filename: str = Field(description="Its name.")


class OutputText(Answer):
    """A part of a message."""

    type: Literal["output_text"] = "output_text"
    text: str = Field(description="The text.")
    annotations: list[FileCitation] = Field(default_factory=list, description="The files of the passages that stood "
                                            "before the question.")
    logprobs: list[Any] = Field(default_factory=list, description="Always empty.")


class OutputMessage(Answer):
    """The assistant's message."""

    id: Id
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: Literal["in_progress", "completed", "incomplete"] = Field(description=STATUS)
    content: list[OutputText] = Field(description="Its parts.")


class OutputCall(Answer):
    """A call of a function."""

    id: Id
    type: Literal["function_call"] = "function_call"
    call_id: str = Field(description="The id for its output.")
    name: str = Field(description="The function.")
    arguments: str = Field(description="JSON, as the model wrote it.")
    status: Literal["in_progress", "completed", "incomplete"] = Field(description=STATUS)


class OutputSearch(Answer):
    """A search of vector stores, made before the answer."""

    id: Id
    type: Literal["file_search_call"] = "file_search_call"
    status: Literal["completed"] = "completed"
    queries: list[str] = Field(description="What was looked for.")
    results: None = None


class InputDetails(Answer):
    """Parts of the prompt's tokens."""

    cached_tokens: int = Field(description=CACHED)
    cache_write_tokens: int = Field(0, description="Always 0.")


class OutputDetails(Answer):
    """Parts of the answer's tokens."""

    reasoning_tokens: int = Field(0, description="Always 0.")


class ResponseUsage(Answer):
    """Tokens of a request and its answer."""

    input_tokens: int = Field(description="Tokens of the prompt.")
    input_tokens_details: InputDetails = Field(description="Parts of these.")
    output_tokens: int = Field(description="Tokens of the answer.")
    output_tokens_details: OutputDetails = Field(description="Parts of these.")
    total_tokens: int = Field(description="Their sum.")


class IncompleteDetails(Answer):
    """Why an answer is not whole."""

    reason: Literal["max_output_tokens"]


class ResponseObject(Answer):
    """The output, with the options of the request."""

    id: str = Field(description="Its id, for feedback.")
    object: Literal["response"] = "response"
    created_at: Time
    status: Literal["in_progress", "completed", "incomplete", "failed"] = Field(description=STATUS)
    error: dict[str, Any] | None = Field(None, description="In a stream: why it failed.")
    incomplete_details: IncompleteDetails | None = Field(None, description="Why it is not whole.")
    model: str = Field(description="The model that answers: the base or an adapter.")
    output: list[OutputMessage | OutputCall | OutputSearch] = Field(description="A message, calls of functions, and a "
                                                                    "search before them.")
    usage: ResponseUsage | None = Field(None, description="What it took.")
    instructions: str | None = Field(None, description=AsGiven)
    max_output_tokens: int | None = Field(None, description=AsGiven)
    metadata: dict[str, str] | None = Field(None, description=AsGiven)
    parallel_tool_calls: bool = Field(True, description="Always true.")
    previous_response_id: None = None
    reasoning: dict[str, Any] | None = Field(None, description=AsGiven)
    temperature: float | None = Field(None, description=AsGiven)
    top_p: float | None = Field(None, description=AsGiven)
    text: dict[str, Any] = Field(description="The form of the answer.")
    tool_choice: str | dict[str, Any] = Field(description=AsGiven)
    tools: list[dict[str, Any]] = Field(description=AsGiven)
    truncation: str = Field("disabled", description="Always disabled.")
    store: bool = Field(False, description="Always false: responses are not stored.")
    sources: list[PassageSource] | None = Field(None, description=SOURCES)
