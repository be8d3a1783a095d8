"""The facts that must be unchanged when a run is resumed, by the names that a user knows.

The state of a run is its adapter, its optimizer and the number of steps. Everything else is a pure function of these
things and the step: the rows of a batch, dropout's masks, the learning rate, the order of sums.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..data.dataset import Dataset
from ..errors import MismatchError, UsageError
from ..version import __version__
from . import length
from .trainer import Trainer

# Options that change speed or the times of saves, but not the result; "isa" tells another backend.
FREE = ("memory", "weights", "threads", "backend", "checkpoint_every")
# Facts that decide the shapes of a checkpoint's arrays, or their first values.
FIXED = ("family", "rank", "targets", "blocks", "optimizer-state", "start")

Identity = dict[str, Any]


def fingerprint_run(trainer: Trainer, data: Dataset, held_out: Dataset | None) -> Identity:
    """The options as users spell them. The plan's decisions are included, because the order of sums depends on them."""
    run = trainer.plan.run
    given = {name: value for name, value in trainer.config.to_json().items() if name not in FREE}
    given |= trainer.objective.options()
    given |= run.family.options()
    if trainer.config.prompt:
        from ..serving.prompt_file import prompt_digest
        given["prompt"] = prompt_digest(trainer.config.prompt)
    given["patience"] = length.patience(trainer.config)
    given["anchors"] = trainer.rows_per_anchor
    given["max_grad_norm"] = length.largest_norm(trainer.config, trainer.model)
    if trainer.config.steps:
        del given["epochs"]  # steps override them
    options = {name.replace("_", "-"): value for name, value in given.items()}
    options["method"] = trainer.objective.name
    options["family"] = run.family.name
    options |= trainer.source.identity()
    at_once = f"{run.max_tokens} after {run.prefix}" if run.prefix else run.max_tokens
    plan = {"micro-batch": at_once, "recompute": _recomputed(trainer),
            "optimizer-state": trainer.plan.tradeoffs.optimizer_state}
    return {"version": __version__, "base": trainer.bundle.fingerprint, "data": data.digest,
            "held-out": held_out.digest if held_out else None, **options, **plan,
            "isa": f"{trainer.ops.isa} ({trainer.ops.products(trainer.config.precision)})"}


def _recomputed(trainer: Trainer) -> str:
    """The trained blocks that are computed again in backward, by the names of --recompute where possible."""
    run = trainer.plan.run
    live = trainer.model.structure.n_layer - run.lowest
    again = live - run.kept
    if again == live - 1:  # also where one block is trained, which is never computed again
        return "block"
    if again == 0:
        return "none"
    return f"{again} of {live} blocks"


def differences(folder: Path, was: Identity, now: Identity, allowed: Collection[str]) -> list[dict[str, Any]]:
    """The allowed differences as {"name", "was", "now"}.

    Raises MismatchError for the first that is not allowed, UsageError for a name in `allowed` that cannot be.
    """
    for name in allowed:
        if name not in now or name in FIXED:
            free = ", ".join(key for key in now if key not in FIXED)
            raise UsageError(f"{name} cannot be allowed to change", f"what can: {free}")
    found = [{"name": name, "was": was[name], "now": value} for name, value in now.items()
             if name in was and was[name] != value]
    for change in found:
        name = change["name"]
        if name not in allowed:
            what = f"the run in {folder} was started with {_spoken(name, change['was'])}, not {_value(change['now'])}"
            allow = "" if name in FIXED else f" allow it with --allow-changed {name},"
            raise MismatchError(what, f"give what it was started with,{allow} or start a new run in another folder")
    return found


def _spoken(name: str, value: Any) -> str:
    other = {"version": "edgetune", "isa": "the kernels", "base": "the base", "data": "the data",
             "held-out": "the held-out data"}
    return f"{other.get(name, f'--{name}')} {_value(value)}"


def _value(value: Any) -> str:
    return f"{value!s:.40}" if value not in (None, "") else "none"
