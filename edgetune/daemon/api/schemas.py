"""Schemas of requests and answers: OpenAI's shapes, and our own. Options are taken from their definitions.

The schemas of chat and completions are in generation.py, those of feedback in feedback.py, the common parts in
shapes.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

from fastapi import File, UploadFile
from pydantic import Field, create_model

from ...adapters.base import families
from ...manifest import manifests
from ...objectives.base import Objective
from ...objectives.drawn import Rewarded
from ...objectives.sft import Sft
from ...options import declared, kind_of, takes_auto
from ...training.config import FILE_OPTIONS, train_options
from ..jobs.recipe import by_method
from ..jobs.rewards import ELSEWHERE
from .shapes import Answer, AsGiven, Body, Id, Time, Whole

T = TypeVar("T")
Auto = Literal["auto"]
MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]
RowsFile = Annotated[UploadFile, File(description="Rows: JSON Lines, or by the name's ending a .csv or .tsv table, or "
                                      "an array of .json. A document: .txt, .md, .rst, .pdf or .jsonl.")]
AdapterFile = Annotated[UploadFile, File(description="The adapter.gguf.")]
RunFile = Annotated[UploadFile | None, File(description="Its run.json, which has the system message of its chats.")]
SchemaFile = Annotated[UploadFile | None, File(description="Its schema.json, where its answers are JSON.")]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)]  # as OpenAI has it


# ---- lists, models, files -------------------------------------------------------------------------------------------


class Page(Answer, Generic[T]):
    """A part of a list. The next part begins after the id of its last item: `after`."""

    object: Literal["list"] = "list"
    data: list[T] = Field(description="The items.")
    has_more: bool = Field(False, description="Whether more items follow.")


class Model(Answer):
    """A name that requests may give as their model."""

    id: str = Field(description="The name: the base, NAME:latest, NAME:auto, an adapter's id or its name.")
    object: Literal["model"] = "model"
    created: Time
    owned_by: str = Field("edgetune", description="Always edgetune.")
    system: str = Field("", description="The system message that chats without one are given; the adapter was trained "
                        "with it.")


class ModelName(Answer):
    """A name that requests may give as their model, as TypeSafe's clients read it."""

    name: str = Field(description="The name.")
    description: str = Field(description="The system message that chats without one are given.")
    release_date: str = Field(description="The day on which it was made, YYYY-MM-DD.")


class ModelPage(Page[Model]):
    """All names, twice: as OpenAI's clients and as TypeSafe's read them."""

    models: list[ModelName] = Field(description="The names once more.")


class FileObject(Answer):
    """An uploaded file, or the results of a job."""

    id: Id
    object: Literal["file"] = "file"
    bytes: int = Field(description="Its size.")
    created_at: Time
    filename: str = Field(description="The name that it was uploaded with.")
    purpose: str = Field(description="fine-tune: rows to train on; fine-tune-results: a table of a job's steps; "
                         "assistants: a document.")
    status: Literal["processed"] = "processed"
    rows: int = Field(description="Rows in it.")
    sha256: str = Field(description="The hash of its content.")


class RowsFinding(Answer):
    """Something that may keep training on a file from working."""

    kind: str = Field(description="A word for programs, such as no-rows or shapes.")
    what: str = Field(description="What was found, in a sentence.")
    hint: str = Field(description="The way out.")
    lines: list[int] = Field(description="The first 100 lines that it is about.")
    fatal: bool = Field(description="Whether a job would fail, or be of no use.")


class RowsCheck(Answer):
    """What was found in a file of rows."""

    object: Literal["rows.check"] = "rows.check"
    rows: int = Field(description="The first rows of the file, which were checked: 5,000, or 8 MiB, at most.")
    usable: int = Field(description="Rows that can be learned.")
    shape: str = Field(description="The kind of the usable rows: messages, prompt, text, preference, and others.")
    longest: int = Field(description="Tokens of the longest row.")
    findings: list[RowsFinding] = Field(description="What was found, the fatal first.")


class Deleted(Answer):
    """What was deleted."""

    id: Id
    object: str = Field(description="Its kind.")
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
    specs = [spec for spec in (*train_options().values(), *declared(objective))
             if spec.name not in left_out and not spec.metadata["local"]]
    named: dict[str, Any] = {spec.name: (_kind(spec) | None, Field(None, description=spec.metadata["help"]))
                             for spec in specs}
    for spec in declared(objective):
        if spec.name not in left_out and kind_of(spec) in (int, float):  # of OpenAI's every number may be "auto"
            named[spec.name] = (_kind(spec) | Auto | None, Field(None, description=spec.metadata["help"]))
    named["family"] = (Literal[tuple(families())] | None, Field(
        None, description="The family of the adapter (families.md). Families have different options."))
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
            None, description="only default is taken: the model does not reason apart from its answer."))}


Hyperparameters = _hyperparameters(Sft)
Grader = Annotated[dict[str, Any], Field(description="A grader: OpenAI's or one of edgetune's (graders.md).")]


def _method() -> type[Body]:
    """OpenAI's method: the type, and under its name the hyperparameters and, where it learns from rewards, the grader;
    one for each objective.
    """
    parts: dict[str, Any] = {}
    for objective in by_method().values():
        inner = Hyperparameters if objective is Sft else _hyperparameters(objective)
        options = Field(None, description="Options of training and of the method, by their names with underscores; "
                        "OpenAI's n_epochs and learning_rate_multiplier.")
        named: dict[str, Any] = {"hyperparameters": (inner | None, options)}
        if issubclass(objective, Rewarded):
            named["grader"] = (Grader | None, Field(None, description="The grader that rewards its answers."))
        part = create_model(objective.method.capitalize(), __base__=Body, **named)
        parts[objective.method] = (part | None, Field(None, description=f"Options of the type {objective.method}."))
    parts["type"] = (Literal[tuple(parts)], Field(description="What is learned from the rows (methods.md)."))
    return create_model("Method", __base__=Body, **parts)


Method = _method()


class JobRequest(Body):
    """A training to begin. What is left out is chosen by the rows and the machine, as `edgetune train` does."""

    model: str = Field(description="The base, NAME:latest, or an adapter, whose options are taken then.")
    training_file: str = Field(description="The id of an uploaded file of rows. A fifth of their questions is held "
                               "out, unless validation_file is given.")
    validation_file: str | None = Field(None, description="The id of a file of held-out rows.")
    suffix: str | None = Field(None, description="A part of the adapter's id.")
    seed: Whole | None = Field(None, description="The seed of all that is random.")
    method: Method | None = Field(None, description="type, and under the name of the type its options: "  # type: ignore[valid-type]
                                  "hyperparameters, and grader where it learns from rewards.")
    hyperparameters: Hyperparameters | None = Field(None, description="The older place of those in method.")  # type: ignore[valid-type]
    metadata: Metadata | None = Field(None, description="Up to 16 texts by their names, given back with the job.")
    integrations: Annotated[list[Any], Field(max_length=0)] | None = Field(None, description="Only an empty list.")

    def options(self) -> dict[str, Any]:
        """The options that are given, as Jobs.create takes them."""
        given = self.model_dump(exclude_none=True, exclude={"integrations"})
        method = given.get("method", {})
        inner = method.get(method.get("type"), {}).pop("hyperparameters", {})
        return given | {"hyperparameters": given.get("hyperparameters", {}) | inner}


class JobError(Answer):
    """Why a job failed."""

    code: str = Field(description="A word for programs.")
    message: str = Field(description="What was wrong, and what to do.")
    param: str | None = Field(None, description="The field of the job that it is about.")


class Job(Answer):
    """A training: begun by a client, or by the daemon itself."""

    id: Id
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: Time
    started_at: int | None = Field(description="When it began, seconds since 1970; null: it waits.")
    finished_at: int | None = Field(description="When it ended, in whatever way.")
    estimated_finish: int | None = Field(description="When it will probably have trained; null: not known.")
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"] = Field(
        description="Where it is, in OpenAI's words. One job runs at a time; the next one waits.")
    state: Literal["queued", "running", "pausing", "paused", "succeeded", "failed", "cancelled"] = Field(
        description="The same, but of a job that is set aside: pausing (its status is running) until it is saved, then "
        "paused (its status is queued).")
    origin: str = Field(description="api: a client began it; learn: the daemon, from feedback; evaluate, base: a "
                                    "client, to evaluate an adapter or a base; else the part that began it.")
    model: str = Field(description="The model or adapter that it began from.")
    fine_tuned_model: str | None = Field(description="The id of the adapter that it made, or evaluated.")
    training_file: str | None = Field(description="The file of rows. Of a job from feedback: the file that "
                                      "it learns again; null: none.")
    validation_file: str | None = Field(description="The file of held-out rows.")
    suffix: str = Field(description="A part of the adapter's id.")
    seed: int = Field(description="The seed of all that is random.")
    hyperparameters: dict[str, Any] = Field(description="n_epochs, batch_size, learning_rate_multiplier.")
    method: dict[str, Any] = Field(description="type, and under its name all options that it has.")
    metadata: dict[str, str] = Field(description=AsGiven)
    trained_tokens: int | None = Field(description="Tokens that it computed, when it has trained.")
    error: JobError | None = Field(description="Why it failed.")
    progress: dict[str, Any] | None = Field(description="While it runs, as far as known: phase, step, steps, loss, "
                                                        "held_out_loss, reward, held_out_reward, tokens_per_s, eta_s, "
                                                        "counts of rows that the gate asks; of work in rounds: round, "
                                                        "rounds, says (a sentence).")
    verdict: dict[str, Any] | None = Field(description="The gate's decision: passed, reason, old and new (right, rows, "
                                                       "...); null: it has not decided.")
    rounds: list[dict[str, Any]] = Field(default_factory=list, description="Of work in rounds: round, held_out (share "
                                         "of held-out questions that are right, or their score), held_out_before, "
                                         "questions, published, reason.")
    organization_id: str = Field("", description="Always empty.")
    result_files: list[str] = Field(default_factory=list, description="The id of a file with a table of its steps, "
                                                                      "when it has ended.")
    report: str | None = Field(description="The path of a page that shows how the training of an adapter went.")
    integrations: list[Any] = Field(default_factory=list, description="Always empty.")


class JobEvent(Answer):
    """A line of a job's history."""

    id: Id
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: Time
    level: Literal["info", "warn", "error"] = Field(description="How grave it is.")
    type: Literal["message", "metrics"] = Field(description="metrics: data has numbers.")
    message: str = Field(description="What happened, for a person.")
    data: dict[str, Any] | None = Field(description="The same for programs: OpenAI's names, and a line of "
                                                    "metrics.jsonl (files.md).")


class Checkpoint(Answer):
    """A measurement of the held-out loss."""

    id: Id
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: Time
    fine_tuning_job_id: str = Field(description="The job.")
    fine_tuned_model_checkpoint: str = Field(description="The adapter that the job made; empty before.")
    step_number: int = Field(description="The steps before it.")
    metrics: dict[str, Any] = Field(description="step, valid_loss, and others of the method.")


# ---- graders --------------------------------------------------------------------------------------------------------


class GraderRequest(Body):
    """A grader to check."""

    grader: Grader


class GradeRequest(GraderRequest):
    """A grader and an answer to grade with it."""

    model_sample: str = Field(description="The answer to grade.")
    item: dict[str, Any] | None = Field(None, description="The row that it answers, with all its columns.")


class ValidGrader(Answer):
    """A grader that can be used here."""

    grader: dict[str, Any] = Field(description=AsGiven)


def _grade_errors() -> type[Answer]:
    """OpenAI's. Those of its servers happen here where the model, or the process of a python grader, is not there."""
    flags = ("formula_parse", "invalid_variable", "model_grader_parse", "model_grader_refusal", "model_grader_server",
             "other", "python_grader_runtime", "python_grader_server", "sample_parse", "truncated_observation",
             "unresponsive_reward")
    texts = ("model_grader_server_error_details", "python_grader_runtime_error_details",
             "python_grader_server_error_type")
    flag = Field(False, description="Whether this happened.")
    text = Field(None, description="The details of such an error.")
    fields: dict[str, Any] = {**{f"{name}_error": (bool, flag) for name in flags},
                              **dict.fromkeys(texts, (str | None, text))}
    return create_model("GradeErrors", __base__=Answer, __doc__="What went wrong in a grader.", **fields)


GradeErrors = _grade_errors()


class GradeMetadata(Answer):
    """The details of a grade."""

    name: str = Field(description="The grader's name.")
    type: str = Field(description="The grader's type.")
    errors: GradeErrors = Field(description="What went wrong; an answer that cannot be graded has the reward 0.")  # type: ignore[valid-type]
    execution_time: float = Field(description="Seconds.")
    scores: dict[str, Any] = Field(description="The reward of each part of a multi grader.")
    token_usage: int | None = Field(description="Tokens that a grading model read and wrote.")
    sampled_model_name: str | None = Field(description="The model that graded.")


class GradeObject(Answer):
    """The grade of an answer."""

    reward: float = Field(description="The reward.")
    metadata: GradeMetadata = Field(description="How it came about.")
    sub_rewards: dict[str, float] = Field(description="The reward of each part of a multi grader.")
    model_grader_token_usage_per_model: dict[str, Any] = Field(description="Tokens by the name of a grading model.")


# ---- beyond OpenAI --------------------------------------------------------------------------------------------------


class AdapterName(Body):
    """A name for people."""

    name: str = Field(max_length=64, description="Letters, digits, spaces and . _ -; empty: none. Requests may call "
                      "the adapter by it, too.")


class Rollback(Body):
    """Which adapter is rolled back."""

    adapter: str | None = Field(None, description="Only if this adapter is active.")


class Evaluation(Body):
    """Options of an evaluation."""

    promote: bool = Field(False, description="Whether it becomes active if it passes.")
    required: Literal["better", "not-worse"] = Field(
        "better", description="better: surely better than the active one; not-worse: not surely worse.")
    if_none: Literal["refuse", "canary"] = Field(
        "refuse", description="If fewer than 4 questions are held out. canary: only unrelated text decides.")
    probation: Whole = Field(0, description="Seconds after its activation in which bad ratings roll it back; 0: none.")
    bad_ratings: Whole = Field(3, description="The number of bad ratings that roll it back, if good ones are fewer.")


class CommonAdapter(Answer):
    """An adapter that a job made, or a client added."""

    id: Id
    name: str | None = Field(description="Its name for people, by which requests may call it too.")
    base: str = Field(description="sha256 of its model.")
    object: Literal["adapter"] = "adapter"
    created_at: Time
    state: Literal["serving", "candidate", "retired"] = Field(
        description="serving: the active adapter; candidate: no gate has accepted it, it may be promoted; retired: it "
                    "was active before.")
    structured: bool = Field(description="Whether its answers obey the JSON schema of its training rows.")
    job: str = Field(description="The job that made it; empty: a client added it.")
    verdict: dict[str, Any] = Field(description="The gate's decision: passed, reason, old and new (right, rows, ...), "
                                                "wins, losses, p, alpha, tests, canary, corrected.")
    probation: dict[str, Any] | None = Field(
        description="Its time after an evaluation activated it: since, until, bad_ratings (that it may have), bad and "
                    "good (that it has), state: running, passed, rolled back, or replaced by another adapter.")


_OF_PARTS: dict[str, Any] = {name: (int, Field(0, description=text)) for manifest in manifests()
                             for name, text in manifest.adapter.items()}
AdapterObject = create_model("AdapterObject", __doc__=CommonAdapter.__doc__, __base__=CommonAdapter, **_OF_PARTS)


class Switch(Answer):
    """A change of the active adapter."""

    at: Time
    adapter: str | None = Field(description="The adapter that became active; null: the base.")
    cause: str = Field(description="Why, in a sentence.")


class AdapterList(Answer):
    """All adapters, and which of them was active when."""

    object: Literal["list"] = "list"
    data: list[AdapterObject] = Field(  # type: ignore[valid-type]
        description="The adapters, the newest first; verdicts without scores of rows.")
    serving: str | None = Field(description="The adapter that answers for NAME:latest; null: the base.")
    history: list[Switch] = Field(description="Changes of the active adapter, the newest first.")


class Recovered(Answer):
    """Adapters that were taken back."""

    recovered: list[str] = Field(description="Adapters that are candidates now.")
    refused: dict[str, str] = Field(description="Folders that remain set aside, and why, a sentence each.")


class Serving(Answer):
    """The active adapter."""

    serving: str | None = Field(description="The adapter that answers for NAME:latest; null: the base.")


class Health(Answer):
    """Whether all of the daemon works."""

    status: Literal["ok", "degraded"] = Field(description="degraded: it answers, and something does not work.")
    reasons: list[str] = Field(description="What does not work, and what to do, a sentence each.")


class CommonDevice(Answer):
    """The facts of every daemon."""

    object: Literal["device"] = "device"
    model: str = Field(description="The model's name.")
    short_name: str = Field(description="Its name for commands, such as smollm2, which requests may use too; without "
                                        "one, the same.")
    fingerprint: str = Field(description="sha256 of the model, which adapters name.")
    adapter: str | None = Field(description="The active adapter's id; null: only the base answers.")
    device: dict[str, Any] = Field(description="model, machine, kind, cpu, cores, "
                                   "processors, memory_installed, memory_total and memory_available (bytes), "
                                   "power_mode, profile, matched.")
    memory: dict[str, Any] = Field(description="budget of the whole daemon, used by it, available here, in bytes.")
    temperature: float | None = Field(description="The hottest zone that counts, in degrees Celsius.")
    serving: dict[str, Any] = Field(description="Since the start: requests, prompt_tokens, cached_tokens, "
                                    "completion_tokens. Now: waiting, working, tokens_per_s, cells_used, cells.")
    answered: dict[str, int] = Field(description="Answers since the start, by who gave them, such as model and recall.")
    learning: dict[str, Any] = Field(description="on, mode, learns (the mode in words), state (a sentence), "
                                                 "needed, and counts of feedback; by the origin of other jobs that it "
                                                 "begins, the same.")
    drawn: dict[str, int] = Field(description="Questions drawn to test new adapters: days for which one is kept, kept, "
                                              "unrated.")
    proposals: int = Field(description="Corrections in chats that wait to be accepted or dismissed.")
    job: dict[str, Any] | None = Field(description="The job that runs: id, status, progress.")
    governor: list[dict[str, Any]] = Field(description="When training yielded, the newest first: at, action, cause.")


DeviceObject = create_model(
    "DeviceObject", __doc__="The machine, and what the daemon does on it, with the facts of the parts that it runs.",
    __base__=(CommonDevice, *(manifest.load(manifest.device) for manifest in manifests() if manifest.device)))
