"""Schemas of requests and answers: OpenAI's shapes, and our own. Options are taken from their definitions.

The schemas of chat and completions are in generation.py, the common parts in shapes.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Field, create_model

from ...objectives.base import Objective, objectives
from ...objectives.rewarded import Rewarded
from ...objectives.sft import Sft
from ...options import declared, kind_of, takes_auto
from ...training.config import FILE_OPTIONS, train_options
from ..jobs.rewarded import ELSEWHERE
from .generation import ChatMessage
from .shapes import Answer, Body, Whole

T = TypeVar("T")
Auto = Literal["auto"]
MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)]  # as OpenAI has it


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
    system: str = Field("", description="The system message that chats without one are given; the adapter was trained "
                        "with it.")


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


class RowsFinding(Answer):
    kind: str
    what: str
    hint: str = Field(description="The way out.")
    lines: list[int] = Field(description="The first 100 lines that it is about.")
    fatal: bool = Field(description="Whether a job would fail, or be of no use.")


class RowsCheck(Answer):
    object: Literal["rows.check"] = "rows.check"
    rows: int = Field(description="The first rows of the file, 5,000 at most, which were checked.")
    usable: int
    shape: str = Field(description="Of the usable rows: messages, prompt, text, preference, unpaired and others.")
    longest: int = Field(description="Tokens of the longest row.")
    findings: list[RowsFinding] = Field(description="The fatal ones first.")


class Deleted(Answer):
    id: str
    object: str
    deleted: Literal[True] = True


# ---- jobs -----------------------------------------------------------------------------------------------------------


def _kind(spec: Any) -> Any:
    """The type of an option of training, with its range."""
    meta = spec.metadata
    if meta["choices"]:
        return Literal[meta["choices"]]
    number: Any = Whole if kind_of(spec) is int else kind_of(spec)
    ranged: Any = Annotated[number, Field(ge=meta["low"], le=meta["high"])]
    return ranged | Auto if takes_auto(spec) else ranged


def _hyperparameters(objective: type[Objective]) -> type[Body]:
    """Every option of training but those of files, those of the objective, and OpenAI's."""
    left_out = (*FILE_OPTIONS, *ELSEWHERE)
    specs = [spec for spec in (*train_options().values(), *declared(objective)) if spec.name not in left_out]
    named: dict[str, Any] = {spec.name: (_kind(spec) | None, Field(None, description=spec.metadata["help"]))
                             for spec in specs}
    for spec in declared(objective):
        if spec.name not in left_out and kind_of(spec) in (int, float):  # of OpenAI's every number may be "auto"
            named[spec.name] = (_kind(spec) | Auto | None, Field(None, description=spec.metadata["help"]))
    named["n_epochs"] = (Annotated[Whole, Field(ge=1)] | Auto | None, Field(None, description="OpenAI's epochs."))
    named["learning_rate_multiplier"] = (Annotated[float, Field(gt=0)] | Auto | None,
                                         Field(None, description="Of the lr that the job would have otherwise."))
    if issubclass(objective, Rewarded):
        named |= _of_reinforcement()
    prefix = "" if objective is Sft else objective.method.capitalize()
    return create_model(f"{prefix}Hyperparameters", __base__=Body, **named)


def _of_reinforcement() -> dict[str, Any]:
    """OpenAI's hyperparameters of reinforcement fine-tuning."""
    least_one: Any = Annotated[Whole, Field(ge=1)] | Auto | None
    multiplier: Any = Annotated[float, Field(gt=0, lt=1000)] | Auto | None
    return {
        "eval_interval": (least_one, Field(None, description="OpenAI's eval_every.")),
        "eval_samples": (least_one, Field(None, description="Held-out prompts that a measurement answers; auto: all.")),
        "compute_multiplier": (multiplier, Field(None, description="Of the answers to each prompt.")),
        "reasoning_effort": (Literal["default", "low", "medium", "high"] | None, Field(
            None, description="default alone is taken: the model does not reason apart from its answer."))}


Hyperparameters = _hyperparameters(Sft)
Grader = Annotated[dict[str, Any], Field(description="A grader as OpenAI has it, or one of edgetune's: "
                                         "type, name, and the fields of its type.")]


def _method() -> type[Body]:
    """OpenAI's method: the type, and under its name the hyperparameters and, where it learns from rewards, the grader;
    one for each objective.
    """
    parts: dict[str, Any] = {}
    for objective in objectives().values():
        inner = Hyperparameters if objective is Sft else _hyperparameters(objective)
        named: dict[str, Any] = {"hyperparameters": (inner | None, None)}
        if issubclass(objective, Rewarded):
            named["grader"] = (Grader | None, None)
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
        """The options that are given, as Jobs.create takes them."""
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
    status: Literal["queued", "running", "pausing", "paused", "succeeded", "failed", "cancelled"]
    origin: str = Field(description="Its kind: api, begun by a client; learn, by the daemon from feedback; tutor, by "
                                    "the daemon from prompts that it keeps.")
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
    progress: dict[str, Any] | None = Field(description="While it runs: phase, step, steps, loss, reward, "
                                                       "tokens_per_s, eta_s, rows of the gate, round, rounds.")
    rounds: list[dict[str, Any]] = Field(default_factory=list, description="Of the tutor: round, held_out (the share "
                                         "of held-out questions that are right, or their score), held_out_before, "
                                         "questions, published, reason.")
    organization_id: str = ""
    result_files: list[str] = Field(default_factory=list)
    report: str | None = Field(description="Where a page shows how the training of an adapter went.")
    integrations: list[Any] = Field(default_factory=list)


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


# ---- graders --------------------------------------------------------------------------------------------------------


class GraderRequest(Body):
    grader: Grader


class GradeRequest(GraderRequest):
    model_sample: str = Field(description="The answer to grade.")
    item: dict[str, Any] | None = Field(None, description="The row that it answers, with all its columns.")


class ValidGrader(Answer):
    grader: dict[str, Any]


def _grade_errors() -> type[Answer]:
    """OpenAI's. Those of its servers happen here where the model, or the process of a python grader, is not there."""
    flags = ("formula_parse", "invalid_variable", "model_grader_parse", "model_grader_refusal", "model_grader_server",
             "other", "python_grader_runtime", "python_grader_server", "sample_parse", "truncated_observation",
             "unresponsive_reward")
    texts = ("model_grader_server_error_details", "python_grader_runtime_error_details",
             "python_grader_server_error_type")
    fields: dict[str, Any] = {**{f"{flag}_error": (bool, False) for flag in flags},
                              **dict.fromkeys(texts, (str | None, None))}
    return create_model("GradeErrors", __base__=Answer, **fields)


GradeErrors = _grade_errors()


class GradeMetadata(Answer):
    name: str
    type: str
    errors: GradeErrors  # type: ignore[valid-type]
    execution_time: float = Field(description="Seconds.")
    scores: dict[str, Any] = Field(description="Of a multi grader the reward of each of its graders.")
    token_usage: int | None = Field(description="Tokens that a model read and wrote to judge.")
    sampled_model_name: str | None = Field(description="The model that graded.")


class GradeObject(Answer):
    reward: float
    metadata: GradeMetadata
    sub_rewards: dict[str, float]
    model_grader_token_usage_per_model: dict[str, Any]


# ---- beyond OpenAI --------------------------------------------------------------------------------------------------


class FeedbackRequest(Body):
    """A correction, a thumb, or a worse answer, on an answer: one of the last 1,000, by its id, or given whole."""

    completion_id: str | None = Field(None, description="The id of an answer: one of the last 1,000, which are "
                                      "forgotten when the daemon restarts.")
    messages: list[ChatMessage] | None = Field(None, description="The question, without completion_id.")
    tools: list[dict[str, Any]] | None = Field(None, description="The tools of that question.")
    prompt: str | None = Field(None, description="The question as one text, in place of messages.")
    answer: str | None = Field(None, description="The answer that was given; with rejected, the better one of two.")
    rating: Literal["up", "down"] | None = Field(None, description="Whether the answer is right.")
    correction: str | None = Field(None, description="The right answer: this is learned.")
    rejected: str | None = Field(None, description="A worse answer to the same question.")
    model: str | None = Field(None, description="The model that answered.")


class FeedbackObject(Answer):
    id: str
    object: Literal["feedback"] = "feedback"
    created_at: int
    rating: Literal["up", "down"] | None
    model: str = Field(description="Whose answer it is about.")
    learns: bool = Field(description="Whether there is a row to learn from.")
    state: Literal["new", "used", "aside", "withdrawn", "counted"] = Field(
        description="new: waits; used: learned; aside: only refused jobs learned it; withdrawn: later feedback "
                    "replaced it; counted: the method cannot learn it.")
    held_out: bool = Field(description="It is held out: it is never learned.")
    job: str | None = Field(description="The training that took it.")
    question: str | None = Field(description="What was asked last; in lists its beginning.")
    answer: str | None = Field(description="The right answer, or the better of two; in lists its beginning.")
    rejected: str | None = Field(description="The wrong answer, or the worse of two; in lists its beginning.")
    reason: str = Field(description="What becomes of it.")


class WholeFeedback(FeedbackObject):
    row: dict[str, Any] | None = Field(description="The row to learn, whole; its answer is empty where no right one is "
                                       "known.")


class FeedbackEdit(Body):
    correction: str = Field(description="What should have been answered.")


class LearnRequest(Body):
    all: bool = Field(False, description="Learn again all that was ever learned, as if it were new, instead of what is "
                      "new.")
    prompts: bool = Field(False, description="Begin the tutor's rounds over the prompts that are kept instead.")


class LearnSwitch(Body):
    on: bool = Field(description="false: nothing is learned by itself, and what is being learned is paused; true: that "
                     "is resumed.")


class LearnState(Answer):
    object: Literal["learning"] = "learning"
    on: bool
    state: str = Field(description="Why nothing is learned now, or what is.")


class DeletedFeedback(Deleted):
    remains: str = Field(description="What the daemon still has of it, a sentence; empty: nothing.")


class FeedbackPage(Page[FeedbackObject]):
    counts: dict[str, int]


class PromptObject(Answer):
    id: str
    object: Literal["prompt"] = "prompt"
    created_at: int
    question: str = Field(description="What was asked last; in lists its beginning.")
    job: str | None = Field(description="The training that asked it again.")


class WholePrompt(PromptObject):
    row: dict[str, Any] = Field(description="What is kept: messages, or a prompt, and no answer.")


class PromptPage(Page[PromptObject]):
    counts: dict[str, int] = Field(description="kept; new: no training has taken them; most: --keep-prompts.")


class DeletedPrompts(Answer):
    object: Literal["list"] = "list"
    count: int = Field(description="How many there were.")
    remains: str = Field(description="What the daemon still has of them, a sentence; empty: nothing.")


class AdapterName(Body):
    name: str = Field(max_length=64, description="What people call it, for requests as good as its id: letters, "
                      "digits, spaces and . _ -; empty: none.")


class AdapterObject(Answer):
    id: str
    name: str | None = Field(description="What people call it: for requests as good as its id.")
    object: Literal["adapter"] = "adapter"
    created_at: int
    state: Literal["serving", "candidate", "retired"]
    structured: bool = Field(description="Its answers obey the JSON schema of its training rows.")
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
    keep_prompts: int = Field(description="Prompts that are kept at most; 0: none.")
    job: dict[str, Any] | None
    governor: list[dict[str, Any]]
