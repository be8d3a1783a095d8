"""Schemas of requests and answers: OpenAI's shapes, and our own.

The schemas of chat and completions are in generation.py, those of jobs and graders in fine_tuning_schemas.py, those of
feedback in feedback.py, the common parts in shapes.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

from fastapi import File, UploadFile
from pydantic import Field, create_model

from ...manifest import manifests
from .shapes import Answer, Body, Id, Time, Whole

T = TypeVar("T")
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


class ModelObject(Answer):
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


class ModelPage(Page[ModelObject]):
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
    learning: dict[str, Any] = Field(description="on, mode, learns (when that is, in words), needed, and counts of "
                                     "feedback. waits: why no job begins now: told (it is to be told), off, job (one "
                                     "runs), paused, rows (too few), failed, jobs (none can begin), time, machine; "
                                     "empty: one begins. state: the same in a sentence. By the origin of other jobs "
                                     "that it begins, the same.")
    drawn: dict[str, int] = Field(description="Questions drawn to test new adapters: days for which one is kept, kept, "
                                              "unrated.")
    proposals: int = Field(description="Corrections in chats that wait to be accepted or dismissed.")
    job: dict[str, Any] | None = Field(description="The job that runs: id, status, progress.")
    governor: list[dict[str, Any]] = Field(description="When training yielded, the newest first: at, action, cause.")


DeviceObject = create_model(
    "DeviceObject", __doc__="The machine, and what the daemon does on it, with the facts of the parts that it runs.",
    __base__=(CommonDevice, *(manifest.load(manifest.device) for manifest in manifests() if manifest.device)))
