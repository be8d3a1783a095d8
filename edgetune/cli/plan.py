"""The command plan: forecasts whether a training fits, its steps and its time, and lists its buffers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from ..errors import EdgetuneError, UsageError, size_text
from ..training.config import TrainConfig
from .app import MODEL, RowsPath, command, show, step_progress, train_options
from .configured import config_option
from .grouped import GroupedOption
from .objective import ObjectiveCommand, take_objective, train_config

if TYPE_CHECKING:
    from ..backends.base import Backend
    from ..data.dataset import Dataset
    from ..formats.bundle import Bundle
    from ..machine.device import Profile
    from ..models.base import Structure
    from ..objectives.base import Objective
    from ..training.cost import Forecast
    from ..training.plan import Plan


@command("plan", MODEL,
         click.argument("data", type=RowsPath(), required=False),
         click.option("--data", "named", type=click.Path(path_type=Path), hidden=True),  # DATA, as it was once given
         click.option("--eval", "held_out", metavar="FILE|none",
                      help="Held-out rows, as train has them; none: all rows are learned [a tenth of DATA]."),
         click.option("--measure/--no-measure", default=True, show_default=True, cls=GroupedOption,
                      help="Measure two steps where no speed is known."),
         click.option("--speed", type=click.Path(path_type=Path),
                      help="What edgetune lab bench train --save FILE wrote [what --save without a name left for "
                           "this device]."),
         click.option("--device", metavar="NAME", help="Plan for such a board, the one with the least memory, as "
                      "edgetune lab device lists them [this machine]."),
         click.option("--buffers", is_flag=True, help="Also list every buffer, and what the memory is made of."),
         train_options, config_option("train"), cls=ObjectiveCommand)
def plan_command(model: Path, data: Path | None, named: Path | None, held_out: str | None, measure: bool,
                 speed: Path | None, device: str | None, buffers: bool, as_json: bool, **options: Any) -> None:
    """Say whether training fits, and how long it takes.

    It also says how many steps it takes, and what is traded for the memory.

    Without DATA, rows are taken to be max-length long. If no speed is known for this device and these options, two
    steps are measured, within --memory.

    --buffers: a buffer lives for the whole run, for a step (one micro-batch), or for the pass of a block or of the
    head; these two share one place.
    """
    from ..backends.opening import open_backend
    from ..bench import train  # noqa: F401  (what measuring imports is memory of this process, which the plan counts)
    from ..console import plan_lines
    from ..formats.bundle import open_bundle
    from ..llamacpp.tokenizers import open_tokenizer
    from ..machine.device import board_named, thread_count
    from ..models.networks import open_network
    from ..training.anchored import lengths_with_anchors, rows_per_anchor
    from ..training.batches import Batches
    from ..training.cost import forecast
    from ..training.length import batch_of
    from ..training.run import disk_writes
    from ..training.sizing import make_plan
    bundle = open_bundle(model)
    objective = take_objective(options, bundle.gguf)
    config = train_config(options, objective)
    if data and named:
        raise UsageError(f"{data} and --data {named} both name the rows to train on", "give one of them")
    data = data or named
    board = board_named(device, options["memory"]) if device else None
    reserved = reserved_for_grader(objective, config, board)
    config, objective, rows, held = planned_rows(bundle, data, held_out, config, objective, board, reserved)
    parts = [found.examples for found in (rows, held) if found]
    network = open_network(bundle.gguf)
    lengths = lengths_with_anchors(objective, config, *parts).with_known(reserved)
    ops = None if board else open_backend(config.backend, thread_count(config.threads))
    plan = make_plan(network, config, ops=ops, lengths=lengths, board=board, objective=objective)
    work = forecast(config, rows, held, plan.run.max_length, rows_per_anchor(config, objective))
    share = Batches(config, rows.examples).computed_share(plan.run.max_tokens, plan.run.prefix) if rows else 1.0
    predicted = known_speed(network.structure, plan, speed, board, share)
    why_not = ""
    if predicted is None and measure and ops:
        predicted, why_not = measured_speed(bundle, config, plan, objective, rows, as_json, ops=ops)
    del ops  # and the memory that it computed in
    if rows is None:
        open_tokenizer(bundle.gguf).close()  # llama.cpp may refuse the vocabulary; after the plan, which counts memory
    if predicted is not None:
        rate = predicted["tokens_per_s"]
        predicted |= {"step_s": batch_of(config, work.rows) * plan.run.max_length / rate,
                      "seconds": work.seconds(network.structure, plan.run, rate)}
    disk = disk_writes(plan, config, held_out=held is not None or data is None, folder=Path())
    facts = {"fits": True, "rows": work.rows, "held_out_rows": work.held_out, "steps": work.steps,
             "tokens": rows.tokens if rows else None, "computed": round(rows.tokens * share) if rows else None,
             "measurements": work.measurements, "predicted": predicted, "disk": disk}
    lines: list[Any] = [answer(plan, work, predicted, device), *plan_lines(plan.to_json()),
                        *row_lines(work, rows, held, held_out, share), *speed_lines(predicted, why_not),
                        *wear_lines(disk, predicted)]
    show(as_json, plan.to_json() | facts, *lines, *(buffer_tables(plan) if buffers else ()))


def planned_rows(bundle: Bundle, data: Path | None, held_out: str | None, config: TrainConfig,
                 objective: Objective, board: Profile | None,
                 reserved: int) -> tuple[TrainConfig, Objective, Dataset | None, Dataset | None]:
    """The options with max_length as a number, the objective for the rows, those to learn and those held out, as train
    has them.
    """
    from ..data import loader
    from ..training.sizing import least_held_out, load_run
    if data is None:
        if held_out:
            raise UsageError("--eval is given without rows to train on", "name them after the model")
        return config, objective, None, None
    config.check_held_out(held_out != loader.NONE)
    return load_run(bundle, data, held_out, config, objective, board, reserved, least_held_out(objective, config))


def reserved_for_grader(objective: Objective, config: TrainConfig, board: Profile | None) -> int:
    """The memory that is left to processes of the grader, as train leaves it."""
    from ..machine.device import rss
    from ..objectives.drawn import Rewarded
    from ..training.plan import PROCESS
    if not (isinstance(objective, Rewarded) and objective.grader):
        return 0
    from ..evaluation.graders.rewards import rewards_of
    _, rewards = rewards_of(objective)
    rewards.reserve(config.memory_bytes(board.available) - PROCESS if board else config.memory_here() - rss())
    return rewards.reserved


# ---- speed -----------------------------------------------------------------------------------------------------------


def known_speed(structure: Structure, plan: Plan, named: Path | None, board: Profile | None,
                share: float) -> dict[str, Any] | None:
    """Tokens of rows a second, by a saved measurement, else by the board's profile; None: neither has them.

    share: the part of these tokens that is computed.
    """
    from ..machine.device import read_device
    from ..training.cost import profile_speed, read_speed, state_file, tokens_per_s
    kept = named or (state_file() if board is None and state_file().exists() else None)
    profile = board or read_device().profile
    speed = read_speed(kept) if kept else (
        profile_speed(profile, plan.run, plan.run.max_tokens) if profile else None)
    if speed is None:
        return None
    if kept and not named and (speed.precision, speed.threads) != (plan.run.precision, plan.run.threads):
        return None
    rate = tokens_per_s(structure, plan.run, speed, plan.read_bytes) / share
    return {"tokens_per_s": rate, "measured": kept is not None, "source": "saved" if kept else "profile",
            "speed": vars(speed)}


def measured_speed(bundle: Bundle, config: TrainConfig, plan: Plan, objective: Objective, rows: Dataset | None,
                   as_json: bool, *, ops: Backend) -> tuple[dict[str, Any] | None, str]:
    """The speed of two steps, and "", or None and the reason why they could not be made."""
    from ..bench import train
    from ..console import Terminal
    from ..data import rows as supervised_rows
    if plan.answers:
        return None, "how long it takes depends on how long the model's answers are: it is shown while it trains"
    if rows is None and objective.rows is not supervised_rows:
        return None, "this objective is measured on rows: name them after the model"
    try:
        with step_progress(Terminal(stderr=True), as_json) as progress:  # the answer is the first line of stdout
            rate, speed = train.two_steps(
                bundle, config, plan, objective, rows.examples if rows else (),
                lambda done: progress.step("measuring two steps", done, train.MEASURED_STEPS), ops=ops)
    except EdgetuneError as error:
        return None, f"two steps could not be measured: {error}"
    return {"tokens_per_s": rate, "measured": True, "source": "two steps", "speed": vars(speed)}, ""


# ---- what is said ----------------------------------------------------------------------------------------------------


def answer(plan: Plan, work: Forecast, predicted: dict[str, Any] | None, device: str | None) -> Text:
    """Says in a sentence whether the run fits, its steps and its time."""
    from ..console import about
    said = f": {size_text(plan.peak_bytes)} of {size_text(plan.limits.budget)}"
    place = f"on {predicted['speed']['device']}" if predicted and device else "here"
    if work.steps is not None:
        said += f"; {'at most ' if work.stops_early else ''}{work.steps} steps"
        said += f", about {about(predicted['seconds'])} {place}" if predicted else ""
    elif predicted:
        said += f"; {predicted['tokens_per_s']:.0f} tokens/s {place}"
    return Text.assemble(("fits", "bold green"), said)


def row_lines(work: Forecast, rows: Dataset | None, held: Dataset | None, held_out: str | None,
              share: float) -> list[str]:
    """Counts rows that are learned and held out and their tokens, and says what was done with long rows."""
    from ..console import tokens_text
    if rows is None:
        return []
    lines = [f"rows: {work.rows} to learn, none held out"]
    if held is not None:
        whose = "" if held_out else ", a tenth of the data"
        early = "; training ends early where their loss rises" if work.stops_early else ""
        lines = [f"rows: {work.rows} to learn, {work.held_out} held out{whose}, measured {work.measurements} "
                 f"times{early}"]
    if rows.supervised:
        lines.append(f"to learn in a pass: {tokens_text(rows.tokens, round(rows.tokens * share))}")
    found = [one for one in (rows, held) if one is not None]
    cut = sum(one.truncated for one in found)
    skipped = sum(one.skipped for one in found)
    return [*lines, f"{cut} rows are cut to --max-length, {skipped} left out"] if cut or skipped else lines


def wear_lines(disk: dict[str, Any], predicted: dict[str, Any] | None) -> list[str]:
    """The bytes that checkpoints write, where the run is known to last until one is due."""
    from ..console import checkpoint_line
    seconds = (predicted or {}).get("seconds")
    interval = disk["checkpoint_seconds"]
    return [checkpoint_line(disk, seconds)] if seconds and interval and seconds > interval else []


def speed_lines(predicted: dict[str, Any] | None, why_not: str) -> list[str]:
    if predicted is None:
        return [why_not or "no speed is known for this: edgetune lab bench train MODEL --save measures it"]
    speed = predicted["speed"]
    rate = f"{predicted['tokens_per_s']:.0f} tokens/s"
    how = f"({speed['isa']}, {speed['precision']}, {speed['threads']} threads)"
    if predicted["source"] == "two steps":
        return [f"speed: {rate} in the second of two steps {how}; edgetune lab bench train MODEL --save measures more "
                "of them, for all plans"]
    source = "reached" if predicted["measured"] else "has by its profile, nothing was measured,"
    return [f"speed: {rate}, as {speed['device']} {source} {speed['flops_per_s'] / 1e9:.0f} GFLOP/s {how}"]


def buffer_tables(plan: Plan) -> list[Any]:
    from ..console import table
    buffers = [[b.name, " x ".join(map(str, b.shape)), b.dtype, b.lifetime, size_text(b.nbytes)] for b in plan.buffers]
    return ["", table("", ["buffer", "shape", "type", "lifetime", "size"], buffers, (4,)), "",
            table("", ["", ""], totals(plan), (1,))]


def totals(plan: Plan) -> list[list[str]]:
    weights = "weights, mapped" + (" (at most)" if plan.tradeoffs.streamed else "")
    rows = [["arena", size_text(plan.arena_bytes)], [weights, size_text(plan.weight_bytes)],
            ["interpreter, libraries, data", size_text(plan.process_bytes)]]
    if plan.limits.before == plan.peak_bytes:
        rows.append(["before training (tokenising)", size_text(plan.limits.before)])
    return [*rows, ["whole process", size_text(plan.peak_bytes)],
            [f"budget: {plan.limits.asked}", size_text(plan.limits.budget)]]
