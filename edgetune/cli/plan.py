"""plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from ..training.config import TrainConfig
from .app import MODEL, command, out, show, train_options
from .objective import ObjectiveCommand, take_objective

if TYPE_CHECKING:
    from ..objectives.base import Objective


@command("plan", MODEL,
         click.option("--data", type=click.Path(path_type=Path),
                      help="Rows to train on: buffers are sized for them, and the time that they take is predicted."),
         click.option("--speed", type=click.Path(path_type=Path),
                      help="What edgetune bench train --save FILE wrote [what --save alone left for this device]."),
         click.option("--device", metavar="NAME", help="Plan for such a board, the one with the least memory, as "
                      "edgetune device lists them [this machine]."),
         train_options, cls=ObjectiveCommand)
def plan_command(model: Path, data: Path | None, speed: Path | None, device: str | None, as_json: bool,
                 **options: Any) -> None:
    """Print every buffer that training MODEL would hold, what was traded for --memory, and what to expect.

    A buffer lives for the whole run, for a step (one micro-batch), or for the pass of a block or of the head; these two
    share one place. Without --data rows are taken to be max-length long.
    """
    from ..console import mib, plan_lines, table
    from ..data.packing import lengths_of
    from ..formats.bundle import open_bundle
    from ..llamacpp.tokenizer import Tokenizer
    from ..machine.device import board_named
    from ..models.networks import open_network
    from ..training.length import epochs_of, units_of
    from ..training.run import disk_writes
    from ..training.trainer import make_plan
    objective = take_objective(options)
    config = TrainConfig(**options).check()
    board = board_named(device, options["memory"]) if device else None
    bundle, rows, _ = (load_for_training(model, data, None, config, out if not as_json else None, objective) if data
                       else (open_bundle(model), None, None))
    lengths = lengths_of(rows.examples) if rows else []
    network = open_network(bundle.gguf)
    plan = make_plan(network, config, lengths=lengths, board=board)
    if rows is None:
        Tokenizer(bundle.gguf).close()  # llama.cpp may refuse the vocabulary; after the plan, which counts memory
    tokens = (rows.tokens * epochs_of(config, len(units_of(rows.examples, config))) if rows else
              config.steps * config.batch_size * plan.run.max_length)
    predicted = expect(network.structure, plan, speed, board, config.batch_size, tokens)
    buffers = [[b.name, " x ".join(map(str, b.shape)), b.dtype, b.lifetime, mib(b.nbytes)] for b in plan.buffers]
    disk = disk_writes(plan, config, held_out=True)
    show(as_json, plan.to_json() | {"predicted": predicted, "disk": disk},
         table("", ["buffer", "shape", "type", "lifetime", "size"], buffers, (4,)), "",
         table("", ["", ""], [*totals(plan), *wear_rows(disk)], (1,)), *plan_lines(plan.to_json()),
         *expected_lines(predicted))


def load_for_training(model: Path, data: Path, held_out: Path | None, config: TrainConfig,
                      console: Console | None, objective: Objective) -> tuple[Any, Any, Any]:
    from ..console import note, say
    from ..data import loader
    from ..formats.bundle import open_bundle
    bundle = open_bundle(model)
    sets = loader.load(bundle.gguf.path, (data, held_out), config, parser=objective.rows)
    for path, rows in zip((data, held_out), sets, strict=True):
        if console and rows and (rows.truncated or rows.skipped):
            say(console, note(f"{path}: {rows.truncated} rows cut to {config.max_length} tokens, {rows.skipped} left "
                              "out"))
    return bundle, sets[0], sets[1]


def totals(plan: Any) -> list[list[str]]:
    from ..console import mib
    weights = "weights, mapped" + (" (at most)" if plan.tradeoffs.streamed else "")
    rows = [["arena", mib(plan.arena_bytes)], [weights, mib(plan.weight_bytes)],
            ["interpreter, libraries, data", mib(plan.to_json()["process_bytes"])]]
    if plan.limits.before == plan.peak_bytes:
        rows.append(["before training (tokenising)", mib(plan.limits.before)])
    return [*rows, ["whole process", mib(plan.peak_bytes)], [f"budget: {plan.limits.asked}", mib(plan.limits.budget)]]


def wear_rows(disk: dict[str, Any]) -> list[list[str]]:
    """With --eval; without, a checkpoint never holds a best adapter beside the last."""
    from ..console import mib
    if disk["checkpoint_every"] in ("never", "0"):
        return [["a checkpoint, on disk (at most)", mib(disk["checkpoint_bytes"])]]
    return [["a checkpoint, on disk (at most)", mib(disk["checkpoint_bytes"])],
            [f"written a day, checkpoint every {disk['checkpoint_every']} (at most)", mib(disk["bytes_per_day"])]]


def expect(structure: Any, plan: Any, named: Path | None, board: Any, batch_size: int,
           tokens: float) -> dict[str, Any] | None:
    """Tokens a second, and seconds for a number of tokens (0: unknown), by what was measured here, else by the board's
    profile; None: that does not say.
    """
    from ..machine.device import read_device
    from ..training.cost import profile_speed, read_speed, state_file, tokens_per_s
    measured = named or (state_file() if board is None and state_file().exists() else None)
    profile = board or read_device().profile
    speed = read_speed(measured) if measured else (
        profile_speed(profile, plan.run, plan.run.max_tokens) if profile else None)
    if speed is None:
        return None
    if measured and not named and (speed.precision, speed.threads) != (plan.run.precision, plan.run.threads):
        return None
    rate = tokens_per_s(structure, plan.run, speed, plan.read_bytes)
    return {"tokens_per_s": rate, "step_s": batch_size * plan.run.max_length / rate,
            "seconds": tokens / rate if tokens else None, "measured": measured is not None, "speed": vars(speed)}


def expected_lines(expected: dict[str, Any] | None) -> list[str]:
    from ..console import duration
    if expected is None:
        return ["no speed is known for this: edgetune bench train MODEL --save measures it"]
    speed = expected["speed"]
    seconds = expected["seconds"]
    in_all = f", {duration(seconds)} in all" if seconds else ""
    source = "reached" if expected["measured"] else "has by its profile, nothing was measured,"
    return [f"expected: {expected['tokens_per_s']:.0f} tokens/s{in_all}, as {speed['device']} {source} "
            f"{speed['flops_per_s'] / 1e9:.0f} GFLOP/s ({speed['isa']}, {speed['precision']}, "
            f"{speed['threads']} threads)"]
