"""What requests and answers look like: OpenAI's shapes, and ours beyond them. Options come from where they are defined.

An unknown field of a request is refused, not ignored: a client must not believe that it had an effect.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model

from ...objectives.base import Objective, objectives
from ...objectives.sft import Sft
from ...options import declared, kind_of, takes_auto
from ...training.config import FILE_OPTIONS, TrainConfig

T = TypeVar("T")


def _whole(value: Any) -> Any:
    """In JSON 3.0 is an integer too."""
    return int(value) if type(value) is float and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
No = Annotated[Literal[False], BeforeValidator(lambda value: value if isinstance(value, bool) else None)]  # 0 is not no
Auto = Literal["auto"]
MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)]  # as OpenAI has it


class Body(BaseModel):
    """A request, read strictly: "1" is no number, and other fields are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Answer(BaseModel):
    """A response."""


# ---- errors ---------------------------------------------------------------------------------------------------------


class ErrorDetail(Answer):
    message: str = Field(description="What was wrong with which value, the limit, and what to do.")
    type: str
    param: str | None
    code: str | None


class Error(Answer):
    error: ErrorDetail


# ---- answers of the model -------------------------------------------------------------------------------------------


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


class ChatRequest(Generation):
    messages: list[ChatMessage] = Field(min_length=1)
    tools: list[dict[str, Any]] | None = Field(None, description="Shown to the model by its chat template; calls come "
                                               "as text, in the form that the model was trained on.")
    tool_choice: Literal["auto", "none"] | None = None
    max_completion_tokens: Whole | None = Field(None, description="The newer name of max_tokens.")
    response_format: ResponseFormat | None = None
    logprobs: No | None = None

    def options(self) -> dict[str, Any]:
        newer = {} if self.max_completion_tokens is None else {"max_tokens": self.max_completion_tokens}
        return super().options() | newer


class CompletionRequest(Generation):
    prompt: str | list[Whole] = Field(description="Text, or token ids.")


class Usage(Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class SaidMessage(Answer):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(Answer):
    index: int = 0
    message: SaidMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


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


# ---- lists, models, files -------------------------------------------------------------------------------------------


class Page(Answer, Generic[T]):
    object: Literal["list"] = "list"
    data: list[T]
    has_more: bool = False


class Model(Answer):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "edgetune"


class FileObject(Answer):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    rows: int
    sha256: str


class Deleted(Answer):
    id: str
    object: str
    deleted: Literal[True] = True


# ---- jobs -----------------------------------------------------------------------------------------------------------


def _kind(spec: Any) -> Any:
    """The type of a field of TrainConfig, with its range."""
    meta = spec.metadata
    if meta["choices"]:
        return Literal[meta["choices"]]
    number: Any = Whole if kind_of(spec) is int else kind_of(spec)
    ranged: Any = Annotated[number, Field(ge=meta["low"], le=meta["high"])]
    return ranged | Auto if takes_auto(spec) else ranged


def _hyperparameters(objective: type[Objective]) -> type[Body]:
    """Every option of training but those of files, those of the objective, and OpenAI's three."""
    specs = [*(spec for spec in fields(TrainConfig) if spec.name not in FILE_OPTIONS), *declared(objective)]
    named: dict[str, Any] = {spec.name: (_kind(spec) | None, Field(None, description=spec.metadata["help"]))
                             for spec in specs}
    named["batch_size"] = (_kind(next(spec for spec in specs if spec.name == "batch_size")) | Auto | None,
                           named["batch_size"][1])
    named["n_epochs"] = (Annotated[Whole, Field(ge=1)] | Auto | None, Field(None, description="OpenAI's epochs."))
    named["learning_rate_multiplier"] = (Annotated[float, Field(gt=0)] | Auto | None,
                                         Field(None, description="Of the lr that the job would have otherwise."))
    prefix = "" if objective is Sft else objective.method.capitalize()
    return create_model(f"{prefix}Hyperparameters", __base__=Body, **named)


Hyperparameters = _hyperparameters(Sft)


def _method() -> type[Body]:
    """OpenAI's method: the type, and under its name the hyperparameters; one for each objective."""
    parts: dict[str, Any] = {}
    for objective in objectives().values():
        inner = Hyperparameters if objective is Sft else _hyperparameters(objective)
        named: dict[str, Any] = {"hyperparameters": (inner | None, None)}
        part = create_model(objective.method.capitalize(), __base__=Body, **named)
        parts[objective.method] = (part | None, None)
    parts["type"] = (Literal[tuple(parts)], ...)
    return create_model("Method", __base__=Body, **parts)


Method = _method()


class JobRequest(Body):
    model: str = Field(description="The base, NAME:latest, or an adapter, whose options are taken then.")
    training_file: str
    validation_file: str | None = None
    suffix: str | None = Field(None, description="A part of the adapter's name.")
    seed: Whole | None = None
    method: Method | None = None  # type: ignore[valid-type]
    hyperparameters: Hyperparameters | None = Field(None, description="The older place of those in method.")  # type: ignore[valid-type]
    metadata: Metadata | None = None
    integrations: Annotated[list[Any], Field(max_length=0)] | None = None

    def options(self) -> dict[str, Any]:
        """Those that are given, as Jobs.create takes them."""
        given = self.model_dump(exclude_none=True, exclude={"integrations"})
        method = given.get("method", {})
        inner = method.get(method.get("type"), {}).pop("hyperparameters", {})
        return given | {"hyperparameters": given.get("hyperparameters", {}) | inner}


class JobError(Answer):
    code: str
    message: str
    param: str | None = None


class Job(Answer):
    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    started_at: int | None
    finished_at: int | None
    estimated_finish: int | None
    status: Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
    origin: Literal["api", "learn"] = Field(description="learn: begun by the daemon itself, from feedback.")
    model: str
    fine_tuned_model: str | None
    training_file: str | None
    validation_file: str | None
    suffix: str
    seed: int
    hyperparameters: dict[str, Any]
    method: dict[str, Any]
    metadata: dict[str, str]
    trained_tokens: int | None
    error: JobError | None
    progress: dict[str, Any] | None = Field(description="While it runs: phase, step, steps, loss, "
                                                       "tokens_per_s, eta_s, judged, judging.")
    organization_id: str = ""
    result_files: list[str] = []
    integrations: list[Any] = []


class JobEvent(Answer):
    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    type: Literal["message", "metrics"]
    message: str
    data: dict[str, Any] | None


class Checkpoint(Answer):
    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuning_job_id: str
    fine_tuned_model_checkpoint: str
    step_number: int
    metrics: dict[str, Any]


# ---- beyond OpenAI --------------------------------------------------------------------------------------------------


class FeedbackRequest(Body):
    """A correction or a thumb for an answer: one of the last 1,000, by its id, or one that is given whole."""

    completion_id: str | None = None
    messages: list[ChatMessage] | None = None
    tools: list[dict[str, Any]] | None = None
    prompt: str | None = None
    answer: str | None = None
    rating: Literal["up", "down"] | None = None
    correction: str | None = Field(None, description="What should have been answered: this is learnt.")
    model: str | None = None


class FeedbackObject(Answer):
    id: str
    object: Literal["feedback"] = "feedback"
    created_at: int
    rating: Literal["up", "down"] | None
    model: str = Field(description="Whose answer it is about.")
    learns: bool = Field(description="Whether there is a row to learn from.")
    state: Literal["new", "used", "aside", "withdrawn", "counted"]
    held_out: bool = Field(description="It judges what is learned, and is never learned.")
    job: str | None = Field(description="The training that took it.")
    question: str | None = Field(description="What was asked last; in lists its beginning.")
    answer: str | None = Field(description="What is learned as its answer; in lists its beginning.")
    reason: str = Field(description="What becomes of it.")


class WholeFeedback(FeedbackObject):
    row: dict[str, Any] | None = Field(description="The row to learn, whole.")


class FeedbackEdit(Body):
    correction: str = Field(description="What should have been answered.")


class DeletedFeedback(Deleted):
    remains: str = Field(description="What the daemon still has of it, a sentence; empty: nothing.")


class FeedbackPage(Page[FeedbackObject]):
    counts: dict[str, int]


class AdapterObject(Answer):
    id: str
    object: Literal["adapter"] = "adapter"
    created_at: int
    state: Literal["serving", "candidate", "retired"]
    job: str
    verdict: dict[str, Any]


class Switch(Answer):
    at: int
    adapter: str | None
    cause: str


class AdapterList(Answer):
    object: Literal["list"] = "list"
    data: list[AdapterObject]
    serving: str | None = Field(description="The adapter that answers for NAME:latest; null: the base.")
    history: list[Switch]


class Recovered(Answer):
    recovered: list[str] = Field(description="Adapters that are candidates now.")
    refused: dict[str, str] = Field(description="Folders that remain set aside, and why, a sentence each.")


class Serving(Answer):
    serving: str | None


class Health(Answer):
    status: Literal["ok", "degraded"]
    reasons: list[str]


class DeviceObject(Answer):
    object: Literal["device"] = "device"
    model: str
    device: dict[str, Any]
    memory: dict[str, Any]
    temperature: float | None
    serving: dict[str, Any]
    learning: dict[str, Any]
    job: dict[str, Any] | None
    governor: list[dict[str, Any]]
