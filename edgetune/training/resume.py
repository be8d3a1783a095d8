"""What must be the same when a run goes on, by the names in which a user speaks of it.

The state of a run is its adapter and optimizer after so many steps. All else is a pure function of these things and the
step: the rows of a batch, dropout's masks, the learning rate, in which order sums are taken.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..data.dataset import Dataset
from ..errors import MismatchError, UsageError
from ..version import __version__
from .trainer import Trainer

# Options that change speed or when the run looks up, but not what is learned.
FREE = ("memory", "weights", "threads", "checkpoint_every")
# They decide the shape of what a checkpoint holds.
FIXED = ("family", "rank", "targets", "blocks", "optimizer-state")

Identity = dict[str, Any]


def fingerprint_run(trainer: Trainer, data: Dataset, held_out: Dataset | None) -> Identity:
    """The options, but of the plan what was decided, whatever decided it: sums are taken in that order."""
    options = {name.replace("_", "-"): value for name, value in trainer.config.to_json().items() if name not in FREE}
    options |= {name.replace("_", "-"): value for name, value in trainer.objective.options().items()}
    options["objective"] = trainer.objective.name
    family = trainer.plan.run.family
    options |= {name.replace("_", "-"): value for name, value in family.options().items()}
    options["family"] = family.name
    run = trainer.plan.run
    live = trainer.model.structure.n_layer - trainer.plan.run.lowest
    again = {0: "none", live - 1: "block"}.get(live - run.kept, f"{live - run.kept} of {live} blocks")
    plan = {"micro-batch": run.max_tokens, "recompute": again,
            "optimizer-state": trainer.plan.choice.optimizer_state}
    return {"version": __version__, "base": trainer.bundle.fingerprint, "data": data.digest,
            "held-out": held_out.digest if held_out else None, **options, **plan,
            "isa": f"{trainer.ops.isa} ({trainer.ops.products(trainer.config.precision)})"}


def differences(folder: Path, was: Identity, now: Identity, allowed: Collection[str]) -> list[dict[str, Any]]:
    """What differs and is allowed to, as {"name", "was", "now"}. MismatchError for the first that is not allowed."""
    for name in allowed:
        if name not in now or name in FIXED:
            free = ", ".join(key for key in now if key not in FIXED)
            raise UsageError(f"{name} cannot be allowed to change", f"what can: {free}")
    found = [{"name": name, "was": was[name], "now": value} for name, value in now.items()
             if name in was and was[name] != value]
    for change in found:
        name = change["name"]
        if name not in allowed:
            begin_anew = "start a new run in another folder"
            raise MismatchError(
                f"the run in {folder} was started with {_spoken(name, change['was'])}, not {_value(change['now'])}",
                f"give what it was started with, or {begin_anew}" if name in FIXED else
                f"give what it was started with, allow it with --allow-changed {name}, or {begin_anew}")
    return found


def _spoken(name: str, value: Any) -> str:
    other = {"version": "edgetune", "isa": "the kernels", "base": "the base", "data": "the data",
             "held-out": "the held-out data"}
    return f"{other.get(name, f'--{name}')} {_value(value)}"


def _value(value: Any) -> str:
    return f"{value!s:.40}" if value not in (None, "") else "none"
