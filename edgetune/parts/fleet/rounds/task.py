"""The task of a round, a folder: task.json, the adapter to begin from, and the server's moments if it keeps any.

    task.json                what is trained and how; the digests of the others
    adapter/                 adapter.gguf and run.json: `edgetune chat MODEL --adapter TASK/adapter` answers with it
    server.safetensors       FedAdam's moments, which devices do not need
    round.json               what became of the round before, for people: who counted, and why not
    manifest.sig             the signature, where there is one

A task is named by the SHA-256 of its task.json. The adapter is written in float16, and what is written is what devices
and the server begin from, so that all agree on it to the bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....adapters import store
from ....adapters.lora import Lora
from ....disk import MIB, json_text, new_folder, read_small, sha256
from ....errors import FormatError, MismatchError, UsageError
from ....formats.bundle import Bundle
from ....formats.safetensors import read_safetensors, write_safetensors
from ....options import make_options
from ....persisted import checked_fields, from_json
from ....training.config import TrainConfig
from ....version import __version__
from ..signed_folder import AGAIN, check_file, read_facts, write_facts
from .aggregation import LeftOut
from .options import FAMILIES, LOCAL, Noise, RoundOptions, half_of

OUTCOME_VERSION = 1
OUTCOME = "round.json"
MOST_OUTCOME = 16 * MIB
MOST_ROWS = 10**12
VERSION = 1
FACTS = "task.json"
ADAPTER = "adapter"
MOMENTS = "server.safetensors"
NEEDED = (f"{ADAPTER}/{store.FILE}", f"{ADAPTER}/{store.RUN}")
MOST_BYTES = 2048 * MIB  # of an adapter
FORMAT = "F16"
TEMPLATE = "tokenizer.chat_template"
MOST_HISTORY = 1000  # rounds whose records a task carries


@dataclass(frozen=True)
class DeviceOutcome:
    """A device that counted. share: of its update in the sum; norm: of the update, and in medians of all; clipped:
    whether it was scaled down. The others are as of AnswerFacts.
    """

    device: str
    share: float = 0.0
    norm: float = 0.0
    of_median: float = 1.0
    clipped: bool = False
    kind: str = ""
    rows: int = 0
    tokens: int = 0
    held_rows: int = 0
    loss_before: float | None = None
    loss_after: float | None = None
    noise: float = 0.0
    seconds: float = 0.0
    peak_mib: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """round.json. round: its number. devices: the fields of DeviceOutcome of each that counted. left_out: `device` and
    `reason` of each answer that did not.
    """

    version: int
    round: int
    devices: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[dict[str, Any]] = field(default_factory=list)


def read_outcome(task: Path) -> Outcome | None:
    """Returns the outcome of the round before a task's; None if the task has none. Raises FormatError."""
    path = task / OUTCOME
    try:
        raw = read_small(path, MOST_OUTCOME)
        found = from_json(Outcome, json.loads(raw), str(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"cannot read {path}: {error}", AGAIN) from None
    if found.version != OUTCOME_VERSION:
        raise FormatError(f"{path} is of version {found.version}, this edgetune reads {OUTCOME_VERSION}",
                          "update edgetune")
    devices = [asdict(from_json(DeviceOutcome, one, f"a device in {path}")) for one in found.devices]
    left_out = [vars(from_json(LeftOut, one, f"a device in {path}")) for one in found.left_out]
    if wrong := [one["device"] for one in devices if not 0 <= one["held_rows"] <= MOST_ROWS]:
        raise FormatError(f"{path} has a number of rows of {wrong[0]:.70} that is none", AGAIN)
    return replace(found, devices=devices, left_out=left_out)


def losses_by_kind(found: Outcome) -> list[dict[str, Any]]:
    """Returns the mean losses of a round by the kind of device, ordered by name, as JSON. Devices that say none are of
    the kind "".
    """
    kinds: dict[str, list[dict[str, Any]]] = {}
    for device in found.devices:
        kinds.setdefault(str(device.get("kind", "")), []).append(device)
    return [{"kind": kind, "devices": len(devices), "loss_before": mean_loss(devices, "loss_before"),
             "loss_after": mean_loss(devices, "loss_after")} for kind, devices in sorted(kinds.items())]


def mean_loss(devices: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Returns the mean of a loss of devices by their held-out rows; None: none of them measured any."""
    measured = [one for one in devices if one.get("loss_before") is not None and one.get("loss_after") is not None]
    rows = sum(one["held_rows"] for one in measured)
    return sum(one[name] * one["held_rows"] for one in measured) / rows if rows else None


@dataclass(frozen=True)
class BaseIdentity:
    """The model that a task is about. name: for people. fingerprint: as adapters name it. tokenizer, template: SHA-256
    of those parts of its file.
    """

    name: str
    fingerprint: str
    tokenizer: str
    template: str


@dataclass(frozen=True)
class RoundRecord:
    """What became of a round. loss_before, loss_after: means over devices by their held-out tokens; None: not measured.
    missed, cut: as of Aggregate; None if ranks differ. up, down: bytes of all answers, and of the task. mu_answer,
    mu_sum: what the noise of the least hidden device leaves to whoever sees its answer, and the sum (privacy.py); None
    if there is no bound.
    """

    round: int
    devices: int
    left_out: int
    tokens: int
    loss_before: float | None
    loss_after: float | None
    missed: float | None
    cut: float
    up: int
    down: int
    mu_answer: float | None = None
    mu_sum: float | None = None


@dataclass(frozen=True)
class TaskFacts:
    """task.json. base: as of BaseIdentity. files: the SHA-256 of each. training: the options of each device's run;
    fleet: those of the aggregation. least_rows: rows to learn of a device, at least. before: the name of the task
    before. history: the records of the rounds before.
    """

    version: int
    round: int
    base: dict[str, str]
    files: dict[str, str]
    training: dict[str, Any]
    fleet: dict[str, Any]
    least_rows: int
    edgetune: str
    before: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read_json(cls, found: Mapping[str, Any], source: str) -> TaskFacts:
        """Reads it as from_json does. Raises UsageError for a task of an earlier version that asks for a secret sum."""
        if found.get("secret"):
            raise UsageError(f"{source} asks for a sum in secret, which this edgetune no longer has",
                             "begin a new fleet with edgetune fleet task")
        return cls(**checked_fields(cls, {name: found[name] for name in found if name != "secret"}, source))


@dataclass(frozen=True, eq=False)
class RoundTask:
    """An opened task. name: the SHA-256 of its task.json. config: of a device's run in this round; pairs: its start."""

    folder: Path
    name: str
    facts: TaskFacts
    base: BaseIdentity
    config: TrainConfig
    options: RoundOptions
    pairs: Lora
    bytes: int

    @property
    def number(self) -> int:
        return self.facts.round

    @property
    def half(self) -> str:
        """Returns the halves of the pairs that the round trains."""
        return half_of(self.options.aggregation, self.number)

    @property
    def noise(self) -> Noise | None:
        """Returns the noise that each device adds."""
        return Noise(self.options.noise_norm, self.options.noise) if self.options.noise else None

    @property
    def adapter(self) -> Path:
        return self.folder / ADAPTER

    def moments(self) -> dict[str, NDArray[np.float32]]:
        """Returns the server's moments. Raises FormatError if they are missing or damaged."""
        if MOMENTS not in self.facts.files:
            return {}
        check_file(self.folder / MOMENTS, self.facts.files[MOMENTS], MOST_BYTES)
        return read_safetensors(self.folder / MOMENTS)


def open_task(folder: Path, bundle: Bundle) -> RoundTask:
    """Returns a task that is whole and of this model. Raises FormatError, MismatchError and UsageError, each for what
    it is.
    """
    task = read_task(folder)
    check_base(task.base, base_of(bundle), str(folder / FACTS))
    return replace(task, pairs=store.open_adapter(folder / NEEDED[0], bundle.gguf).pairs)


def read_task(folder: Path) -> RoundTask:
    """Returns a task that is whole, of any model, which need not be here: its pairs have shapes, and zeros in place of
    values. Raises as open_task.
    """
    facts, name, _ = read_facts(folder, FACTS, TaskFacts, VERSION)
    source = str(folder / FACTS)
    base = from_json(BaseIdentity, facts.base, f"the base in {source}")
    options = make_options(RoundOptions, facts.fleet).check()
    if facts.round < 1 or facts.least_rows < 1:
        raise FormatError(f"{source} has round {facts.round} and least_rows {facts.least_rows}, both begin at 1", AGAIN)
    config = from_json(TrainConfig, facts.training, f"the training in {source}").check()
    for local in LOCAL:
        if getattr(config, local) != getattr(TrainConfig(), local):
            raise UsageError(f"{source} sets {local}, which a device decides for itself", "make the task without it")
    for needed in NEEDED:
        if not isinstance(facts.files.get(needed), str):
            raise FormatError(f"{source} lists no {needed}", AGAIN)
    size = sum(check_file(folder / needed, facts.files[needed], MOST_BYTES) for needed in NEEDED)
    pairs = store.blank_pairs(folder / NEEDED[0])
    return RoundTask(folder, name, facts, base, config, options, pairs, size + (folder / FACTS).stat().st_size)


def of_round(config: TrainConfig, options: RoundOptions, number: int) -> TrainConfig:
    """Returns the options of a device's run in round `number`, with the family that trains its half. Raises UsageError
    for a family that has no rank and alpha.
    """
    size = config.family.options()
    return TrainConfig(**{**vars(config), "family": FAMILIES[half_of(options.aggregation, number)],
                          "rank": size["rank"], "alpha": size["alpha"]})


def records_of(history: Sequence[Mapping[str, Any]], source: str) -> list[RoundRecord]:
    """Returns the records of a task's history. source: what holds it. Raises FormatError."""
    return [from_json(RoundRecord, one, f"a round in {source}") for one in history]


def write_task(folder: Path, bundle: Bundle, pairs: Lora, config: TrainConfig, options: RoundOptions, *,
               number: int = 1, least_rows: int = 1, before: str = "", history: Sequence[dict[str, Any]] = (),
               moments: Mapping[str, NDArray[np.float32]] | None = None, outcome: Outcome | None = None,
               key: Path | None = None) -> None:
    """Writes a task as a new folder, whole or not at all. pairs: its adapter. config: of a device's run. number,
    least_rows, before, history: as of TaskFacts. moments: of the server. outcome: of the round before. key: signs it.

    Raises UsageError if the folder exists, NumericsError for pairs that float16 cannot hold, DiskError.
    """
    base = base_of(bundle)
    record = {"status": "fleet", "edgetune": __version__, "round": number, "system": config.system,
              "base": {"name": base.name, "fingerprint": base.fingerprint}, "options": config.to_json()}
    with new_folder(folder) as beside:
        (beside / ADAPTER).mkdir()
        store.save_run(beside / ADAPTER, pairs, bundle.gguf, record, FORMAT)
        if moments:
            write_safetensors(beside / MOMENTS, dict(moments))
        if outcome:
            (beside / OUTCOME).write_text(json_text(vars(outcome), indent=1) + "\n", encoding="utf-8")
        names = (*NEEDED, *([MOMENTS] if moments else []), *([OUTCOME] if outcome else []))
        files = {name: sha256(beside / name) for name in names}
        facts = TaskFacts(VERSION, number, vars(base), files, config.to_json(), vars(options), least_rows, __version__,
                          before, [*history])
        write_facts(beside, FACTS, facts, key)


def base_of(bundle: Bundle) -> BaseIdentity:
    """Returns the identity of a model: three hashes, so that an error says which part differs."""
    words = {key: value for key, value in bundle.gguf.metadata.items() if key.startswith("tokenizer.")}
    templates = {key: words.pop(key) for key in [*words] if key.startswith(TEMPLATE)}
    digests = [hashlib.sha256(json_text(one, sort_keys=True).encode()).hexdigest() for one in (words, templates)]
    return BaseIdentity(store.base_name(bundle.gguf), bundle.fingerprint, *(f"sha256:{one}" for one in digests))


def check_base(asked: BaseIdentity, found: BaseIdentity, source: str) -> None:
    """Raises MismatchError for the first part that differs. source: names the file that asks for `asked`."""
    for what, wanted, given in (("tokenizer", asked.tokenizer, found.tokenizer),
                                ("chat template", asked.template, found.template),
                                ("model", asked.fingerprint, found.fingerprint)):
        if wanted != given:
            raise MismatchError(f"{source} is of {asked.name} with the {what} {wanted:.19}, {found.name} here has "
                                f"{given:.19}", "give the same model file on all devices, by --model")
