"""The commands of fleet: rounds of devices that learn together, as folders that anything carries."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ....cli.app import (
    MODEL,
    ModelPath,
    RowsPath,
    cli,
    command,
    config_options,
    explicit,
    governor_of,
    policy_file_option,
    policy_options,
    show,
    stop_on_signals,
    train_progress,
)
from ....errors import shell_word
from ....options import declared
from ....training.config import FILE_OPTIONS, CommonOptions, TrainConfig
from ..carriers.registry import RoundAddress, carrier_of, carriers
from ..rounds.options import LOCAL, USUAL_ROUNDS, RoundOptions

if TYPE_CHECKING:
    from ..privacy import NoiseSpent
    from ..rounds.answer import AnswerFacts
    from ..rounds.lead import Ended
    from ..rounds.options import Noise
    from ..rounds.task import RoundRecord

OWN = ("memory", "weights", "threads", "backend", "checkpoint_every", "prompt_column", "completion_column")
NOT_HERE = (*LOCAL, *FILE_OPTIONS, "eval_every", "patience")
TRAINING = tuple(spec.name for spec in declared(CommonOptions) if spec.name not in NOT_HERE)
DEFAULTS = {"epochs": 1.0, "batch_size": 1, "schedule": "constant", "anchors": 0}  # of a round, where training has auto
TASK = click.argument("task", type=click.Path(path_type=Path))
URLS = ("http://", "https://", "unix:")
KEY = click.option("--sign", "key", type=click.Path(path_type=Path), metavar="KEY",
                   help="Private Ed25519 key that signs the folder.")
BASE = click.option("--model", type=ModelPath(), default="smollm2", show_default=True,
                    help="The model that the task is about, as this device has it.")


DEVICE_OPTIONS = (
    click.option("--eval", "held_out", help="Held-out rows of this device, or none [a tenth of ROWS]."),
    click.option("--device", default="", help="Name of this device [drawn once, kept; with --sign the key]."),
    click.option("--rank", type=click.IntRange(0), default=0, help="With svd: a smaller rank, which takes less memory "
                 "[the task's]."),
    click.option("--noise", type=click.FloatRange(0.0, min_open=True), help="Add Gaussian noise to the answer, of this "
                 "many times --noise-norm."),
    click.option("--noise-norm", type=click.FloatRange(0.0, min_open=True), default=1.0, show_default=True,
                 help="With --noise: scale the answer down to this norm before."),
    KEY, config_options(*OWN), policy_file_option, policy_options)
SECONDS = ", ".join(f"{one.name} {one.seconds:.0f}" for one in carriers() if one.schemes)
FOLDER = click.argument("folder", type=click.Path(path_type=Path))
JOINED_AT = click.option("--joined", "joined_at", default="", metavar="URL",
                         help="In a folder: sign by the key of the fleet at URL.")
EVERY = click.option("--every", type=click.FloatRange(0.1), default=60.0, show_default=True,
                     help="Seconds between two looks at the folder.")


def out_option(says: str) -> Any:
    return click.option("-o", "--out", "to", type=click.Path(path_type=Path), required=True, help=says)


@cli.group("fleet")
def fleet() -> None:
    """Let devices learn together, each from its own rows.

    A round is a folder with a task. Each device learns its own rows and writes its answer, another folder of a few
    megabytes. The answers become the next task and an adapter. Carry the folders as you like. A roll-out brings an
    adapter to many devices, ring by ring.
    """


@command("task", MODEL, out_option("New folder of the task."),
         click.option("--start", type=click.Path(path_type=Path), help="Adapter to begin from [none]."),
         click.option("--least-rows", type=click.IntRange(1), default=1, show_default=True,
                      help="Rows without which a device does not answer."),
         KEY, config_options(*(spec.name for spec in fields(RoundOptions)), of=RoundOptions),
         click.option("--rank", type=click.IntRange(1), default=8, show_default=True, help="Rank of the adapter."),
         click.option("--alpha", type=click.FloatRange(0.0, min_open=True), default=16.0, show_default=True,
                      help="The adapter is scaled by alpha / rank."), config_options(*TRAINING), group=fleet)
def fleet_task(model: Path, to: Path, start: Path | None, least_rows: int, key: Path | None, as_json: bool,
               **options: Any) -> None:
    """Write the task of the first round of MODEL.

    It says what each device trains and how: an epoch of its rows, one at a time, unless told otherwise. The options
    hold for all rounds. With --lr auto a device takes 4e-3 for up to 8 steps, 8e-3 with frozen-a, and less for more.
    """
    from ....adapters.store import recorded_size
    from ....formats.bundle import open_bundle
    from ..rounds.lead import make_task
    asked = RoundOptions(**{spec.name: options.pop(spec.name) for spec in fields(RoundOptions)}).check()
    begun = {name: value for name, value in recorded_size(start).items() if name not in ("family", "rslora")}
    config = TrainConfig(**{**options, **DEFAULTS, **begun, **explicit(options)})
    pairs = make_task(open_bundle(model), to, config, asked, start=start, least_rows=least_rows, key=key)
    values = sum(pair.a.size + pair.b.size for pair in pairs.values())
    show(as_json, {"out": str(to), "aggregation": asked.aggregation, "pairs": len(pairs), "values": values,
                   "rounds": asked.planned_rounds or USUAL_ROUNDS},
         f"{to} is the task of round 1: {asked.aggregation}, {len(pairs)} projections, {values:,} values",
         rounds_line(asked.planned_rounds),
         f"on each device: edgetune fleet train-round {shell_word(to)} ROWS -o ANSWER")


def rounds_line(planned: int) -> str:
    """Returns what a person is told of the rounds that a task needs. planned: as of the options, 0: not said."""
    if planned >= USUAL_ROUNDS:
        return f"{planned} rounds are planned"
    why = "devices train briefly in each, and an average takes little from what only one device knows"
    if planned:
        return f"{planned} rounds are planned, and about {USUAL_ROUNDS} are needed: {why}"
    return f"about {USUAL_ROUNDS} rounds: {why}; with --planned-rounds {USUAL_ROUNDS} the last ones take smaller steps"


@command("train-round", TASK, click.argument("rows", type=RowsPath()), out_option("New folder of the answer."), BASE,
         *DEVICE_OPTIONS, group=fleet)
def fleet_train_round(task: Path, rows: Path, to: Path, model: Path, held_out: str | None, device: str, rank: int,
                      noise: float | None, noise_norm: float, key: Path | None, policy_file: Path | None, as_json: bool,
                      **options: Any) -> None:
    """Learn ROWS for the round of TASK.

    The answer has what was learned, counts and losses; no row is in it. Ctrl-C stops; the same command continues.
    """
    from ....formats.bundle import open_bundle
    from ....training.callbacks import RunCallbacks
    from ..membership.device import device_name
    from ..rounds.member import train_round
    from ..rounds.task import open_task
    asked = noise_of(noise, noise_norm)
    governor = governor_of(policy_file, options)
    bundle = open_bundle(model)
    found = open_task(task, bundle)
    with stop_on_signals() as should_stop, train_progress(as_json) as progress:
        facts = train_round(found, bundle, rows, to, device or device_name(), held_out=held_out, rank=rank, noise=asked,
                            key=key, callbacks=RunCallbacks(progress.event, should_stop, governor), **options)
    show(as_json, {"out": str(to), **vars(facts)}, answer_line(to, found.number, facts))


@command("aggregate", TASK, click.argument("answers", type=click.Path(path_type=Path), nargs=-1, required=True),
         out_option("New folder of the next task, and of the adapter: OUT/adapter."), BASE, KEY, group=fleet)
def fleet_aggregate(task: Path, answers: tuple[Path, ...], to: Path, model: Path, key: Path | None,
                    as_json: bool) -> None:
    """Make the next task from ANSWERS to TASK.

    What cannot count is left out and named: an answer that is damaged, too large, not finite, repeated, or to another
    task.
    """
    from ....formats.bundle import open_bundle
    from ..rounds.lead import write_next
    from ..rounds.task import open_task
    bundle = open_bundle(model)
    ended = write_next(open_task(task, bundle), bundle, answers, to, key)
    show(as_json, {"out": str(to), **round_json(ended)}, *round_lines(ended),
         f"{to} is the task of round {ended.record.round + 1}; ask its adapter: edgetune chat MODEL --adapter "
         f"{shell_word(to / 'adapter')}")


def noise_of(noise: float | None, norm: float) -> Noise | None:
    """Returns the noise that options ask for. Raises UsageError for a norm without it."""
    from ....errors import UsageError
    from ..rounds.options import Noise
    if noise is None and explicit({"noise_norm": norm}):
        raise UsageError("--noise-norm is given without --noise", "give both, or neither")
    return None if noise is None else Noise(norm, noise).check()


def answer_line(to: Path, number: int, facts: AnswerFacts) -> str:
    """Returns what a person is told of an answer."""
    if facts.noise:
        from ..privacy import DELTA, epsilon_of
        return (f"{to} answers round {number} with noise: epsilon {epsilon_of(facts.noise_norm / facts.noise):.3g} at "
                f"delta {DELTA:g} against whoever sees it")
    losses = "" if facts.loss_before is None else (
        f"; loss {facts.loss_before:.3f} -> {facts.loss_after:.3f} on {facts.held_rows} own held-out rows")
    return f"{to} answers round {number}: {facts.rows} rows, {facts.tokens} tokens{losses}"


def round_json(ended: Ended) -> dict[str, Any]:
    from ..rounds.lead import devices_table
    return {**vars(ended.record), "counted": devices_table(ended), "refused": [vars(one) for one in ended.left_out],
            "privacy": spent_json(ended.spent)}


def round_lines(ended: Ended) -> list[Any]:
    """Returns what a person is told of a round."""
    from ....console import table
    from ....errors import printable
    from ..rounds.lead import devices_table
    record = ended.record
    rows = [[printable(one["device"])[:24], f"{one['share']:.1%}", str(one["rows"]), _loss(one),
             f"{one['norm']:.3g}{' clipped' if one['clipped'] else ''}"] for one in devices_table(ended)]
    missed = "ranks differ, so that they have none" if record.missed is None else (
        f"they would miss {record.missed:.1%} of the round's change")
    return [table("", ["device", "share", "rows", "loss", "norm"], rows, (1, 2, 4)),
            *(f"left out: {printable(one.device)}: {one.reason}" for one in ended.left_out),
            f"round {record.round}: {record.devices} devices, {learned(record)}",
            f"averages of A and B apart: {missed}; the rank cuts {record.cut:.1%}", *spent_lines(ended.spent)]


def learned(record: RoundRecord) -> str:
    """Returns the end of the line of a round: what was learned, and the bytes that were sent."""
    from ....errors import size_text
    losses = "" if record.loss_before is None else f", loss {record.loss_before:.3f} -> {record.loss_after:.3f}"
    return f"{record.tokens} tokens{losses}; {size_text(record.up)} up, {size_text(record.down)} down to each"


def spent_json(found: NoiseSpent | None) -> dict[str, Any] | None:
    return None if found is None else asdict(found)


def spent_lines(found: NoiseSpent | None) -> list[str]:
    """Returns what a person is told of the noise of all rounds; nothing where there was none."""
    if found is None:
        return []
    lines = [f"noise, delta {found.delta:g}: epsilon {_bound(one.last)} in the last round and {_bound(one.total)} in "
             f"all, against whoever sees {whom}"
             for whom, one in (("the answers of a device", found.answer), ("the sums alone", found.sum))
             if one.last is not None]
    return lines or ["the last round had no noise, so that the noise of others gives no bound of epsilon"]


def _bound(epsilon: float | None) -> str:
    return "without a bound" if epsilon is None else f"{epsilon:.3g}"


def _loss(one: dict[str, Any]) -> str:
    return "" if one["loss_before"] is None else f"{one['loss_before']:.3f} -> {one['loss_after']:.3f}"


@command("follow", click.argument("folder"), click.argument("rows", type=RowsPath()), BASE,
         click.option("--every", type=click.FloatRange(0.1),
                      help=f"Seconds between two looks [{SECONDS}]."),
         click.option("--lead-key-file", type=click.Path(path_type=Path),
                      help="At a URL that this device has not joined: file with a key."),
         JOINED_AT,
         click.option("--rounds", type=click.IntRange(0), default=0, help="Stop after this many answers; 0: never."),
         *DEVICE_OPTIONS, group=fleet)
def fleet_follow(folder: str, rows: Path, model: Path, every: float | None, lead_key_file: Path | None, joined_at: str,
                 rounds: int, held_out: str | None, device: str, rank: int, noise: float | None, noise_norm: float,
                 key: Path | None, policy_file: Path | None, as_json: bool, **options: Any) -> None:
    """Answer each round in a FOLDER with ROWS.

    FOLDER is carried by anything, such as a sync, or is the URL of a daemon that serves one with --fleet. ROWS are read
    again each round. Nothing is sent but the answer's folder; checkpoints are not in FOLDER. Ctrl-C stops; the same
    command continues.
    """
    from ....disk import state_folder
    from ....formats.bundle import open_bundle
    from ....training.callbacks import RunCallbacks
    from ..carriers.exchange import CopyMember
    from ..pauses import again
    from ..rounds.member import Member
    governor = governor_of(policy_file, options)  # takes its options away
    asked = noise_of(noise, noise_norm)
    bundle = open_bundle(model)
    answered: list[int] = []
    with ExitStack() as opened, stop_on_signals() as should_stop, train_progress(as_json) as progress:
        carrier = carrier_of(folder)
        found = carrier.open(RoundAddress(folder, device, key, joined_at, lead_key_file), opened)
        name = found.device
        own = Member(found.folder, bundle, rows, name, state_folder() / "fleet", held_out, rank, asked, found.key,
                     options)
        member = CopyMember(found.server, own) if found.server else own

        def look() -> bool:
            while made := member.answer(RunCallbacks(progress.event, should_stop, governor)):
                place, facts = made
                tell(as_json)(answer_line(place.answers / name, place.number, facts))
                answered.append(place.number)
                if len(answered) == rounds > 0:
                    return True
            return False

        again(look, every or carrier.seconds, should_stop, tell(as_json))
    show(as_json, {"device": name, "answered": answered}, f"{len(answered)} rounds answered")


@command("lead", FOLDER, BASE, EVERY,
         click.option("--rounds", type=click.IntRange(1), default=10, show_default=True,
                      help="Rounds to end; the task after the last one has the adapter."),
         click.option("--devices", type=click.IntRange(1), default=1, show_default=True,
                      help="Answers that end a round."),
         click.option("--wait", type=click.FloatRange(0.0), default=86400.0, show_default=True,
                      help="Seconds after which the quorum of the task is enough."), KEY, group=fleet)
def fleet_lead(folder: Path, model: Path, every: float, rounds: int, devices: int, wait: float, key: Path | None,
               as_json: bool) -> None:
    """End the rounds in a FOLDER and write their next tasks.

    One device of the fleet does it; it may also follow. Ctrl-C stops; the same command continues.
    """
    from ....formats.bundle import open_bundle
    from ..pauses import again
    from ..rounds.lead import RoundLead
    leader = RoundLead(folder, open_bundle(model), devices, wait, key)
    ended: list[dict[str, Any]] = []

    def look() -> bool:
        found = leader.end_round()
        if found is not None:
            ended.append(round_json(found))
            if not as_json:
                show(False, {}, *round_lines(found))
        return len(ended) == rounds

    with stop_on_signals() as should_stop:
        again(look, every, should_stop, tell(as_json))
    show(as_json, {"rounds": ended}, f"{len(ended)} rounds ended")


def tell(as_json: bool) -> Callable[[str], object]:
    """Says a line to a person; with --json nothing, because stdout has only the result."""
    def say(line: str) -> None:
        if not as_json:
            show(False, {}, line)

    return say
