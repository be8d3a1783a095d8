"""Schemas of chat and completions, in OpenAI's shape with llama-server's further options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ...errors import UsageError
from ...serving.question import Question
from ...serving.thoughts import EFFORTS
from .shapes import Answer, Body, Id, Time, Whole

OPTIONS = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "frequency_penalty",
           "presence_penalty", "repeat_penalty", "repeat_last_n")
IGNORED = ("user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key",
           "prompt_cache_retention", "prediction", "cache_prompt", "parallel_tool_calls")


STOP = "The answer ends before such a text."
FREQUENCY = "Lowers a token's logit by this for each time that the last repeat_last_n tokens have it, as in llama.cpp."
PRESENCE = "Lowers a token's logit by this if the last repeat_last_n tokens have it."
REPEAT_PENALTY = "Makes tokens of the last repeat_last_n less probable by this factor; 1: not."
REPEAT_LAST_N = "Tokens of prompt and answer that the penalties look at; -1: all."
CACHED = "Tokens that are in a compiled prompt, or that an earlier answer had left in the cache."
NOT_USED = "Not used, nor kept."
ANSWERED = "The model that answered: the base or an adapter."
SOURCES = "The passages of documents that stood before the question; empty: nothing was found; null: none are asked."
FINISH = "stop: it is whole; length: max_tokens were made; tool_calls: it calls tools."


class StreamOptions(Body):
    """Options of a stream."""

    include_usage: bool | None = Field(None, description="true: the last event has usage.")
    include_obfuscation: bool | None = Field(None, description=NOT_USED)


class JsonSchema(Body):
    """A schema for answers."""

    name: str | None = Field(None, description=NOT_USED)
    description: str | None = Field(None, description=NOT_USED)
    schema_: dict[str, Any] | bool | None = Field(None, alias="schema", description="The JSON schema.")
    strict: bool | None = Field(None, description="Answers obey the schema in any case.")


class ResponseFormat(Body):
    """The form of the answer, which a grammar enforces."""

    type: Literal["text", "json_object", "json_schema"] = Field(description="text: any, also where the adapter has a "
                                                                "schema of its rows.")
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

    temperature: float | None = Field(None, description="0: always the most probable token [0].")
    top_p: float | None = Field(None, description="Sample among the most probable tokens of this share [0.95].")
    top_k: Whole | None = Field(None, description="Sample among this number of the most probable tokens; 0: all [40].")
    min_p: float | None = Field(None, description="Leave out tokens below this share of the most probable one [0.05].")
    seed: Whole | None = Field(None, description="The same seed gives the same answer, whatever else is requested "
                                                 "[random].")


class Generation(Sampled):
    """What chat and completions share. What is left out or null has the default of `Batcher.submit`."""

    model: str | None = Field(None, description="The base, an adapter, or NAME:latest: the base with the active "
                              "adapter, as without.")
    max_tokens: Whole | None = Field(None, description="Tokens of the answer at most [256].")
    stop: str | Annotated[list[str], Field(max_length=16)] | None = Field(None, description=STOP)
    frequency_penalty: float | None = Field(None, description=FREQUENCY)
    presence_penalty: float | None = Field(None, description=PRESENCE)
    repeat_penalty: float | None = Field(None, description=REPEAT_PENALTY)
    repeat_last_n: Whole | None = Field(None, description=REPEAT_LAST_N)
    logit_bias: dict[str, float] | None = Field(None, description="Token id -> what is added to its logit.")
    n: Annotated[Whole, Field(ge=1, le=128)] | None = Field(None, description="Number of answers.")
    response_format: ResponseFormat | None = Field(None, description="The form of the answer.")
    json_schema: dict[str, Any] | None = Field(None, description="llama-server's place of the answers' schema.")
    grammar: str | None = Field(None, description="A grammar in GBNF that answers obey.")
    stream: bool | None = Field(None, description="true: server-sent events of the answer's pieces, while it is made.")
    stream_options: StreamOptions | None = Field(None, description="Options of a stream.")
    store: bool | None = Field(None, description="false: the prompt is never kept, also where the daemon keeps some.")
    # taken, without effect
    user: str | None = Field(None, description=NOT_USED)
    metadata: dict[str, Any] | None = Field(None, description=NOT_USED)
    service_tier: str | None = Field(None, description=NOT_USED)
    safety_identifier: str | None = Field(None, description=NOT_USED)
    prompt_cache_key: str | None = Field(None, description=NOT_USED)
    prompt_cache_retention: str | None = Field(None, description=NOT_USED)
    prediction: dict[str, Any] | None = Field(None, description=NOT_USED)
    cache_prompt: bool | None = Field(None, description=NOT_USED)

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
    """A message as in OpenAI's API. A message's other keys are for the model's chat template."""

    model_config = ConfigDict(strict=True, extra="allow")
    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(description="Who says it.")
    content: str | list[dict[str, Any]] | None = Field(None, description="Text, or parts of type text.")

    def plain(self) -> dict[str, Any]:
        """The message for the template, which has no role developer: OpenAI's newer name of system."""
        return {**self.model_dump(), "role": "system" if self.role == "developer" else self.role}


class ToolFunction(BaseModel):
    """A function that the model may call. Its other keys are for the model's chat template."""

    model_config = ConfigDict(strict=True, extra="allow")
    name: str = Field(min_length=1, max_length=128, description="Its name.")
    description: str | None = Field(None, description="What it does, for the model.")
    parameters: dict[str, Any] | None = Field(None, description="A JSON schema of its arguments.")


class Tool(BaseModel):
    """A tool that the model may call."""

    model_config = ConfigDict(strict=True, extra="allow")
    type: Literal["function"]
    function: ToolFunction = Field(description="The function.")


class NamedFunction(Body):
    """The name of a function."""

    name: str = Field(description="Its name.")


class ToolChoice(Body):
    """The function that must be called."""

    type: Literal["function"]
    function: NamedFunction = Field(description="Its name.")


class AllowedFunction(Body):
    """A function that may be called."""

    type: Literal["function"]
    function: NamedFunction = Field(description="Its name.")


class AllowedTools(Body):
    """The functions that may be called."""

    mode: Literal["auto", "required"] = Field(description="auto: the model decides; required: one of them is called.")
    tools: list[AllowedFunction] = Field(min_length=1, description="Some of tools, by their names.")


class AllowedChoice(Body):
    """Some of the functions, in place of all."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools = Field(description="The functions, and whether one must be called.")


def allowed(tools: Sequence[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the tools of these names. Raises UsageError for a name that no tool has."""
    known = {tool["function"]["name"]: tool for tool in tools}
    for name in names:
        if name not in known:
            raise UsageError(f"tool_choice allows the function {name!r:.100}, which tools has not", "add it to tools")
    return [tool for name, tool in known.items() if name in names]


class ChatRequest(Generation):
    messages: list[ChatMessage] = Field(min_length=1, description="The conversation, of text.")
    tools: list[Tool] | None = Field(None, description="Shown to the model by its chat template.")
    tool_choice: Literal["auto", "none", "required"] | ToolChoice | AllowedChoice | None = Field(
        None, description="required, or a function: the answer is a call, whose arguments obey the function's schema. "
        "allowed_tools: the model is shown only these.")
    max_completion_tokens: Whole | None = Field(None, description="The newer name of max_tokens.")
    logprobs: bool | None = Field(None, description="true: the log-probability of each token.")
    top_logprobs: Annotated[Whole, Field(ge=0, le=20)] | None = Field(None, description="With logprobs: those of this "
                                                                      "many most probable tokens, too.")
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high"] | None = Field(
        None, description="Of a model that thinks before it answers: none, 128, 512, 2,048 tokens of thinking at most, "
        "or any number (high). Other models refuse all but none [any number].")
    reasoning_budget: Whole | None = Field(None, ge=-1, description="The same in tokens, as llama.cpp has it: 0: none, "
                                           "-1: any number.")
    modalities: list[Literal["text"]] | None = Field(None, description="Only text.")
    parallel_tool_calls: bool | None = Field(None, description=NOT_USED)

    def options(self) -> dict[str, Any]:
        newer = {} if self.max_completion_tokens is None else {"max_tokens": self.max_completion_tokens}
        return super().options() | newer

    def question(self) -> Question:
        if self.top_logprobs is not None and not self.logprobs:
            raise UsageError("top_logprobs is given without logprobs", "let logprobs be true")
        choice = self.tool_choice
        named = choice.function.name if isinstance(choice, ToolChoice) else None
        if self.reasoning_effort is not None and self.reasoning_budget is not None:
            raise UsageError("reasoning_effort and reasoning_budget are both given", "leave one of them out")
        effort = self.reasoning_budget if self.reasoning_effort is None else EFFORTS[self.reasoning_effort]
        tools = [tool.model_dump(exclude_unset=True) for tool in self.tools or ()]
        if isinstance(choice, AllowedChoice):
            tools = allowed(tools, [tool.function.name for tool in choice.allowed_tools.tools])
            choice = choice.allowed_tools.mode
        return Question(messages=[message.plain() for message in self.messages], thinking=effort,
                        tools=tools, tool_choice=choice if isinstance(choice, str) else "auto", function=named,
                        logprobs=(self.top_logprobs or 0) if self.logprobs else None, **self.shared())


class CompletionRequest(Generation):
    prompt: str | list[Whole] | list[str] | list[list[Whole]] = Field(description="Text, or token ids; or a list of "
                                                                      "them.")
    logprobs: Annotated[Whole, Field(ge=0, le=20)] | None = Field(None, description="For each token its "
                                                                  "log-probability, and those of this many tokens.")
    best_of: Annotated[Whole, Field(ge=1, le=128)] | None = Field(
        None, description="Answers that are made, of which the n with the greatest mean log-probability of a token are "
        "given; n at least, and not with stream. Needs a temperature [n].")
    echo: bool | None = Field(None, description="The text begins with the prompt. With logprobs its tokens have some, "
                              "but for the first. max_tokens may be 0.")
    suffix: Annotated[str, Field(max_length=0)] | None = Field(None, description="Only an empty text.")

    def questions(self) -> list[Question]:
        shared = self.shared()
        several = isinstance(self.prompt, list) and self.prompt and not isinstance(self.prompt[0], int)
        prompts: Any = self.prompt if several else [self.prompt]
        logprobs = self.logprobs
        if self.best_of is not None and self.best_of != shared["n"]:
            self._check_best_of(shared["n"])
            shared |= {"n": self.best_of, "kept": shared["n"]}
            logprobs = logprobs or 0
        return [Question(prompt=prompt, logprobs=logprobs, echo=bool(self.echo), **shared) for prompt in prompts]

    def _check_best_of(self, n: int) -> None:
        if self.best_of is not None and self.best_of < n:
            raise UsageError(f"best_of is {self.best_of}, and n is {n}", "let best_of be greater")
        if self.stream:
            raise UsageError(f"best_of is {self.best_of} with stream, and the best answer is known at the end",
                             "leave one of them out")
        if not self.temperature:
            raise UsageError(f"best_of is {self.best_of} at temperature 0, where all answers are the same",
                             "give a temperature, such as 0.7")
        if self.echo:
            raise UsageError(f"best_of is {self.best_of} with echo, whose tokens would count", "leave one of them out")


class PromptDetails(Answer):
    """Tokens of the prompts that were not computed."""

    cached_tokens: int = Field(description=CACHED)


class Usage(Answer):
    """Tokens of a request and its answers."""

    prompt_tokens: int = Field(description="Tokens of the prompts.")
    completion_tokens: int = Field(description="Tokens of the answers.")
    total_tokens: int = Field(description="Their sum.")
    prompt_tokens_details: PromptDetails = Field(description="Of the prompts' tokens.")


class CalledFunction(Answer):
    """A function that the model called."""

    name: str = Field(description="Its name.")
    arguments: str = Field(description="JSON, as the model wrote it.")


class ToolCall(Answer):
    """A call of a tool."""

    id: Id
    type: Literal["function"] = "function"
    function: CalledFunction = Field(description="The function and its arguments.")


class SaidMessage(Answer):
    """The assistant's message."""

    role: Literal["assistant"] = "assistant"
    content: str | None = Field(description="The text; null: only tools are called.")
    reasoning_content: str | None = Field(None, description="What the model thought before, where it does.")
    tool_calls: list[ToolCall] | None = Field(None, description="Calls of tools.")
    refusal: None = None


class Likely(Answer):
    """A token and how probable it was."""

    token: str = Field(description="Its text.")
    logprob: float = Field(description="The natural logarithm of its probability.")
    bytes: list[int] = Field(description="Its text as UTF-8.")


class TokenLogprobs(Likely):
    """A token of the answer, and the most probable ones in its place."""

    top_logprobs: list[Likely] = Field(description="top_logprobs of them, the most probable first.")


class ChatLogprobs(Answer):
    """Log-probabilities of an answer."""

    content: list[TokenLogprobs] = Field(description="Of each token.")
    refusal: None = None


class ChatChoice(Answer):
    """One of the answers."""

    index: int = Field(0, description="Which of n, from 0.")
    message: SaidMessage = Field(description="The answer.")
    logprobs: ChatLogprobs | None = Field(None, description="Log-probabilities, if they were asked for.")
    finish_reason: Literal["stop", "length", "tool_calls"] = Field(description=FINISH)


class Origin(Answer):
    """The source of an answer that is not the model's."""

    model_config = ConfigDict(extra="allow")  # a source may name more

    source: str = Field(description="recall: a correction of the same question; others, such as encoder, are of the "
                                    "daemon's parts.")
    recalled: str | None = Field(None, description="The feedback that the answer is from, where recall answered.")
    likeness: float | None = Field(None, description="Of the corrected question, which asked in other words: 1: the "
                                   "same, 0: unrelated; null: word for word.")
    probability: float | None = Field(None, description="That the answer is right, where the encoder answered.")


class PassageSource(Answer):
    """The place of a passage."""

    model_config = ConfigDict(extra="allow")  # a vector store names its file
    source: str = Field(description="For people: the file, its page or line, and the heading.")
    score: float = Field(description="1: the best by words and by meaning.")
    file: str = Field(description="The file in the folder that was indexed.")
    heading: str | None = Field(description="The headings above it.")
    page: int | None = Field(description="Of a PDF, from 1.")
    line: int | None = Field(description="Of a text, from 1.")


class Chat(Answer):
    """Answers to a conversation."""

    id: str = Field(description="Its id, for feedback.")
    object: Literal["chat.completion"] = "chat.completion"
    created: Time
    model: str = Field(description=ANSWERED)
    choices: list[ChatChoice] = Field(description="n answers.")
    usage: Usage = Field(description="What they took.")
    edgetune: Origin | None = Field(None, description="Present if the model did not answer: who did.")
    sources: list[PassageSource] | None = Field(None, description=SOURCES)


class CompletionLogprobs(Answer):
    """Log-probabilities of a text."""

    tokens: list[str] = Field(description="The texts of its tokens.")
    token_logprobs: list[float | None] = Field(description="The log-probability of each; null: of the first one.")
    top_logprobs: list[dict[str, float] | None] | None = Field(description="The most probable tokens in each place.")
    text_offset: list[int] = Field(description="The character at which each token begins.")


class CompletionChoice(Answer):
    """One of the continuations."""

    index: int = Field(0, description="Which of all, from 0: n of the first prompt, then of the next.")
    text: str = Field(description="The continuation.")
    logprobs: CompletionLogprobs | None = Field(None, description="Log-probabilities, if they were asked for.")
    finish_reason: Literal["stop", "length"] = Field(description=FINISH)


class TextCompletion(Answer):
    """Continuations of texts."""

    id: str = Field(description="Its id, for feedback.")
    object: Literal["text_completion"] = "text_completion"
    created: Time
    model: str = Field(description=ANSWERED)
    choices: list[CompletionChoice] = Field(description="n continuations of each prompt.")
    usage: Usage = Field(description="What they took.")
    edgetune: Origin | None = Field(None, description="Present if the model did not answer: who did.")
