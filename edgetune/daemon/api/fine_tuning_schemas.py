"""Schemas of /v1/fine_tuning: jobs and graders, in OpenAI's shapes. Options are taken from their definitions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, create_model

from ...adapters.base import families
from ...objectives.base import Objective
from ...objectives.drawn import Rewarded
from ...objectives.sft import Sft
from ...options import declared, kind_of, takes_auto
from ...training.config import FILE_OPTIONS, train_options
from ..jobs.recipe import by_method
from ..jobs.rewards import ELSEWHERE
from .schemas import Metadata
from .shapes import Answer, AsGiven, Body, Id, Time, Whole

Auto = Literal["auto"]


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


class JobObject(Answer):
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


class CheckpointObject(Answer):
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
