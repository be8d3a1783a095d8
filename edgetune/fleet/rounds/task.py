"""The task of a round, a folder: task.json, the adapter to begin from, and the server's moments where it keeps any.

    task.json                what is trained and how; the digests of the others
    adapter/                 adapter.gguf and run.json: `edgetune chat MODEL --adapter TASK/adapter` answers with it
    server.safetensors       FedAdam's moments, which devices do not need
    round.json               what became of the round before, which devices do not need either (outcome.py)
    manifest.sig             the signature, where there is one

A task is named by the SHA-256 of its task.json. The adapter is written in float16, and what is written is what devices
and the server begin from, so that all agree on it to the bit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...adapters import store
from ...adapters.lora import Lora
from ...disk import MIB, new_folder, sha256
from ...errors import FormatError, UsageError
from ...formats.bundle import Bundle
from ...formats.safetensors import read_safetensors, write_safetensors
from ...options import make_options
from ...persisted import from_json
from ...training.config import TrainConfig
from ...version import __version__
from ..base import Base, base_of, check_base
from ..options import LOCAL, MEAN, FleetOptions
from ..secret.cards import Card
from ..secret.fixed_point import LIMIT
from ..secret.masks import Circle, least_threshold
from ..signed_folder import AGAIN, check_file, read_facts, write_facts
from ..sums.ways import FAMILIES, SVD, half_of
from . import outcome
from .noise import Noise

VERSION = 1
FACTS = "task.json"
ADAPTER = "adapter"
MOMENTS = "server.safetensors"
NEEDED = (f"{ADAPTER}/{store.FILE}", f"{ADAPTER}/{store.RUN}")
MOST_BYTES = 2048 * MIB  # of an adapter
FORMAT = "F16"
WITHIN = 5.0  # standard deviations of noise that a secret sum must hold: so that it cuts off nearly none
MOST_HISTORY = 1000  # rounds whose records a task carries


@dataclass(frozen=True)
class RoundRecord:
    """What became of a round. loss_before, loss_after: means over devices by their held-out tokens; None: not measured.
    missed, cut: as of Aggregate; None where ranks differ. up, down: bytes of all answers, and of the task. mu_answer,
    mu_sum: what the noise of the least hidden device leaves to whoever sees its answer, and the sum (privacy.py); None
    where there is no bound.
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
class Secret:
    """The devices whose updates are summed in secret (masks.py). keys: their public keys, 64 hexadecimal digits each,
    ascending; threshold: how many must answer and reveal. cards: of each key, as of secret.cards.Card, where the
    devices have names; else none.
    """

    keys: list[str]
    threshold: int
    cards: list[dict[str, str]] = field(default_factory=list)

    @property
    def public(self) -> tuple[bytes, ...]:
        return tuple(bytes.fromhex(key) for key in self.keys)

    @classmethod
    def of(cls, cards: Sequence[Card], threshold: int | None) -> Secret:
        """The devices with these cards. threshold: [the usual one]. Raises UsageError for too few devices, or a
        threshold out of range.
        """
        found = sorted(cards, key=lambda card: card.secret)
        circle = Circle(tuple(bytes.fromhex(card.secret) for card in found), bytes(32),
                        threshold or least_threshold(len(found)))
        return cls([card.secret for card in found], circle.threshold, [asdict(card) for card in found])

    @property
    def is_usual(self) -> bool:
        """Whether the threshold is the usual one of that number of devices."""
        return self.threshold == least_threshold(len(self.keys))

    def named(self) -> list[Card]:
        """The cards, whose signatures are not checked. Raises FormatError for what are none."""
        return [from_json(Card, card, "a device of the task") for card in self.cards]


@dataclass(frozen=True)
class TaskFacts:
    """task.json. base: as of Base. files: the SHA-256 of each. training: the options of each device's run; fleet: those
    of the aggregation. least_rows: rows to learn of a device, at least. before: the name of the task before. history:
    the records of the rounds before. secret: as of Secret, empty where updates are open.
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
    secret: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Content:
    """What a task says besides the model and the adapter. config: of a device's run; the others as of TaskFacts."""

    config: TrainConfig
    options: FleetOptions
    number: int = 1
    least_rows: int = 1
    before: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    secret: Secret | None = None


@dataclass(frozen=True, eq=False)
class Task:
    """An opened task. name: the SHA-256 of its task.json. config: of a device's run in this round; pairs: its start."""

    folder: Path
    name: str
    facts: TaskFacts
    base: Base
    config: TrainConfig
    options: FleetOptions
    pairs: Lora
    bytes: int
    secret: Secret | None = None

    @property
    def number(self) -> int:
        return self.facts.round

    @property
    def half(self) -> str:
        """The halves of the pairs that the round trains."""
        return half_of(self.options.aggregation, _turn(self.number, self.facts.history))

    @property
    def noise(self) -> Noise | None:
        """The noise that each device adds."""
        return Noise(self.options.noise_norm, self.options.noise) if self.options.noise else None

    @property
    def adapter(self) -> Path:
        return self.folder / ADAPTER

    def moments(self) -> dict[str, NDArray[np.float32]]:
        """The server's moments. Raises FormatError where they are missing or damaged."""
        if MOMENTS not in self.facts.files:
            return {}
        check_file(self.folder / MOMENTS, self.facts.files[MOMENTS], MOST_BYTES)
        return read_safetensors(self.folder / MOMENTS)


def open_task(folder: Path, bundle: Bundle) -> Task:
    """A task that is whole and of this model. Raises FormatError, MismatchError and UsageError, each for what it is."""
    task = read_task(folder)
    check_base(task.base, base_of(bundle, store.base_name(bundle.gguf)), str(folder / FACTS))
    return replace(task, pairs=store.open_adapter(folder / NEEDED[0], bundle.gguf).pairs)


def read_task(folder: Path) -> Task:
    """A task that is whole, of any model, which need not be here: its pairs have shapes, and zeros in place of values.
    Raises as open_task.
    """
    facts, name, _ = read_facts(folder, FACTS, TaskFacts, VERSION)
    source = str(folder / FACTS)
    base = from_json(Base, facts.base, f"the base in {source}")
    options = make_options(FleetOptions, facts.fleet).check()
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
    secret = _secret(facts, options, source)
    return Task(folder, name, facts, base, config, options, pairs, size + (folder / FACTS).stat().st_size, secret)


def _secret(facts: TaskFacts, options: FleetOptions, source: str) -> Secret | None:
    if not facts.secret:
        return None
    found = from_json(Secret, facts.secret, f"the devices in {source}")
    if not all(re.fullmatch("[0-9a-f]{64}", key) for key in found.keys):
        raise FormatError(f"{source} has a key of a device that is none", AGAIN)
    check_secret(options)
    Circle(found.public, bytes(32), found.threshold)  # refuses what is no circle
    cards = found.named()
    if cards and ([card.secret for card in cards] != found.keys or len({card.device for card in cards}) < len(cards)):
        raise FormatError(f"{source} has other keys of its devices than their cards", AGAIN)
    return found


def check_secret(options: FleetOptions) -> None:
    """Raises UsageError for options of sums that a secret one cannot have."""
    if options.aggregation == SVD:
        raise UsageError(f"aggregation is {SVD}, whose products cannot be summed in secret",
                         "take --aggregation frozen-a or rolora")
    if options.average != MEAN:
        raise UsageError(f"average is {options.average}, which needs the value of each device", "take --average mean")
    deviation = options.noise * options.noise_norm
    if deviation > LIMIT / WITHIN:
        raise UsageError(f"noise has the standard deviation {deviation:g}, and a secret sum, which cuts values off at "
                         f"{LIMIT:g}, has room for {LIMIT / WITHIN:g}", "lower --noise or --noise-norm")


def _turn(number: int, history: Sequence[Mapping[str, Any]]) -> int:
    """The number of a round without those that were dropped, so that halves take turns."""
    return number - len([record for record in history if record.get("devices") == 0])


def of_round(config: TrainConfig, options: FleetOptions, number: int) -> TrainConfig:
    """The options of a device's run in round `number`, of those that were not dropped, with the family that trains its
    half. Raises UsageError for a family that has no rank and alpha.
    """
    size = config.family.options()
    return TrainConfig(**{**vars(config), "family": FAMILIES[half_of(options.aggregation, number)],
                          "rank": size["rank"], "alpha": size["alpha"]})


def following(task: Task, record: RoundRecord, secret: Secret | None = None) -> Content:
    """What the task after this one says, whose round ended with this record. secret: the devices of its sum [the same].
    """
    number = task.number + 1
    history = [*task.facts.history, asdict(record)][-MOST_HISTORY:]
    config = of_round(task.config, task.options, _turn(number, history))
    config = replace(config, seed=task.config.seed + 1)  # another order of rows
    return Content(config, task.options, number, task.facts.least_rows, task.name, history, secret or task.secret)


def records_of(history: Sequence[Mapping[str, Any]], source: str) -> list[RoundRecord]:
    """The records of a task's history. source: what holds it. Raises FormatError."""
    return [from_json(RoundRecord, one, f"a round in {source}") for one in history]


def write_task(folder: Path, bundle: Bundle, pairs: Lora, content: Content, *,
               moments: Mapping[str, NDArray[np.float32]] | None = None, before: outcome.Outcome | None = None,
               key: Path | None = None) -> None:
    """Writes a task as a new folder, whole or not at all. pairs: its adapter. moments: of the server. before: what
    became of the round before. key: signs it.

    Raises UsageError where the folder exists, NumericsError for pairs that float16 cannot hold, DiskError.
    """
    with new_folder(folder) as beside:
        (beside / ADAPTER).mkdir()
        store.save_run(beside / ADAPTER, pairs, bundle.gguf, _record(bundle, content), FORMAT)
        if moments:
            write_safetensors(beside / MOMENTS, dict(moments))
        if before:
            outcome.write_outcome(beside / outcome.FILE, before)
        names = (*NEEDED, *([MOMENTS] if moments else []), *([outcome.FILE] if before else []))
        files = {name: sha256(beside / name) for name in names}
        base = base_of(bundle, store.base_name(bundle.gguf))
        facts = TaskFacts(VERSION, content.number, vars(base), files, content.config.to_json(), vars(content.options),
                          content.least_rows, __version__, content.before, content.history,
                          vars(content.secret) if content.secret else {})
        write_facts(beside, FACTS, facts, key)


def _record(bundle: Bundle, content: Content) -> dict[str, Any]:
    """run.json of the adapter: what commands that answer with it, or train from it, need to know."""
    return {"status": "fleet", "edgetune": __version__, "round": content.number, "system": content.config.system,
            "base": {"name": store.base_name(bundle.gguf), "fingerprint": bundle.fingerprint},
            "options": content.config.to_json()}
