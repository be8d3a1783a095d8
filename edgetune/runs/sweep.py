"""Several runs that differ in numbers such as the learning rate, a table of what became of each, and which is best.

The folder has one of each run, sweep.json, `best`, a link to the folder of the best run, and report.html.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from .. import disk
from ..adapters import store
from ..data.files import digest_of_files
from ..data.loader import NONE
from ..errors import DataError, EdgetuneError, MismatchError, NumericsError, UsageError
from ..formats.bundle import Bundle, open_bundle
from ..training.callbacks import RunCallbacks
from ..training.config import TrainConfig
from ..training.metrics import REPORT
from ..training.resume import FREE
from .result import Result
from .train import Rows, as_file, train

MOST = 32  # runs
FILE = "sweep.json"
BEST = "best"
Point = dict[str, Any]  # the options of a run that differ from those of others


@dataclass(frozen=True)
class Tried:
    """A run of a sweep. result: None where its loss was no number."""

    point: Point
    folder: Path
    result: Result | None

    def to_json(self) -> dict[str, Any]:
        r = self.result
        facts = {"loss": r.loss_after, "exact": r.exact_after, "steps": r.steps, "seconds": r.seconds,
                 "verdict": r.record["verdict"]} if r else {}
        return {"folder": self.folder.name, "options": self.point, "failed": r is None, **facts}


@dataclass(frozen=True)
class Sweep:
    """What was tried in a folder, and its best: most exact answers, then the lowest loss on held-out rows."""

    folder: Path
    made_from: dict[str, Any]  # hashes of base, data and held-out rows
    tried: list[Tried]

    @property
    def best(self) -> Tried | None:
        """None where no run gave numbers."""
        measured = [tried for tried in self.tried if tried.result and tried.result.loss_after is not None]
        return min(measured, key=_rank, default=None)

    @property
    def means(self) -> list[dict[str, Any]]:
        """Runs that differ only in their seed, as `loss` and `exact`: each the mean, the least and the most.

        None for what one of them did not measure, and no list for a sweep of one seed.
        """
        groups: dict[str, list[Tried]] = {}
        for tried in self.tried:
            if "seed" in tried.point:
                groups.setdefault(folder_name(_without_seed(tried.point)), []).append(tried)
        return [{"options": _without_seed(group[0].point), "runs": len(group),
                 "loss": _spread([one.result.loss_after if one.result else None for one in group]),
                 "exact": _spread([one.result.exact_after if one.result else None for one in group])}
                for group in groups.values()]

    def to_json(self) -> dict[str, Any]:
        return {"made_from": self.made_from, "runs": [tried.to_json() for tried in self.tried],
                "means": self.means, "best": self.best.folder.name if self.best else None}


def sweep(model: str | Path | Bundle, data: Rows, out: str | Path, eval: Rows | None = None, *,
          grid: Mapping[str, Sequence[Any]], callbacks: RunCallbacks | None = None, resume: bool = False,
          **arguments: Any) -> Sweep:
    """A run of `train` for each combination of the values in `grid`, {option: values}, in a folder of `out`.

    resume: runs in `out` that are complete stay, the others are continued or started. arguments: all others of `train`.
    A run whose loss is not finite counts as failed. Raises UsageError for more than MOST runs, and where nothing could
    tell which is best; MismatchError for a resumed sweep of another model or other rows.
    """
    calls = callbacks or RunCallbacks()
    points = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    _check(points, data, eval)
    bundle = model if isinstance(model, Bundle) else open_bundle(model)
    with as_file(data, "data") as rows, as_file(eval, "held-out") as held:
        assert rows
        made_from = {"base": bundle.fingerprint, "data": _hash(rows), "held_out": _hash(held)}
        found = Sweep(Path(out), made_from, [])
        _begin(found, resume)
        for number, point in enumerate(points, start=1):
            calls.on_event({"event": "sweep", "number": number, "of": len(points),
                            "options": {name: short(value) for name, value in point.items()}})
            folder = found.folder / folder_name(point)
            options = {**arguments, **point}
            if _has_ended(folder, options):
                record = store.read_run(folder)
                result = Result(folder, record) if record["status"] == "done" else None
            else:
                result = None  # where the loss was no number
                with suppress(NumericsError):
                    result = train(bundle, rows, folder, held, callbacks=calls, resume=folder.exists(), **options)
            found.tried.append(Tried(point, folder, result))
            _save(found)
    _report(found)
    return found


def folder_name(point: Point) -> str:
    """Such as lr-1e-4, or lr-1e-4,rank-8."""
    return ",".join(f"{name.replace('_', '-')}-{short(value)}" for name, value in point.items())


def _without_seed(point: Point) -> Point:
    return {name: value for name, value in point.items() if name != "seed"}


def _spread(values: Sequence[float | None]) -> list[float] | None:
    measured = [value for value in values if value is not None]
    return [fmean(measured), min(measured), max(measured)] if len(measured) == len(values) else None


def short(value: Any) -> str:
    """A number as briefly as it can be written: 1e-4, 0.05, 8."""
    if not isinstance(value, float):
        return str(value)
    digits, _, exponent = f"{value:e}".partition("e")
    scientific = f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
    return min(f"{value:g}", scientific, key=len)


def _check(points: Sequence[Point], data: Rows, eval: Rows | None) -> None:
    if len(points) > MOST:
        raise UsageError(f"{len(points)} combinations of options are given, the most is {MOST}",
                         "name fewer values")
    if eval == NONE:
        raise UsageError("no rows are held out, so nothing would tell which run is best", f"leave out --eval {NONE}")
    if str(data) == "-":
        raise UsageError("rows from standard input can be read once, and there are several runs",
                         "write them to a file")
    names = [folder_name(point) for point in points]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{name} is given twice", "name each value once")
    for point in points:
        TrainConfig(**point).check()


def _hash(rows: Path | None) -> str | None:
    if rows is None:
        return None
    try:
        return digest_of_files(rows)
    except OSError as error:
        raise DataError(f"{rows} cannot be read ({error.strerror})", "check the path") from None


def _begin(found: Sweep, resume: bool) -> None:
    """Makes the folder; one that exists must have been made from the same."""
    if not resume:
        disk.refuse_existing(found.folder)
    earlier = disk.read_object(found.folder / FILE, "begin in another folder")
    if earlier is None:
        found.folder.mkdir(parents=True, exist_ok=True)
        _save(found)
        return
    was = earlier.get("made_from", {})
    for name, value in found.made_from.items():
        if was.get(name) != value:
            raise MismatchError(f"the runs in {found.folder} were made from {name.replace('_', '-')} "
                                f"{str(was.get(name))[:19]}, not {str(value)[:19]}", "begin in another folder")


def _has_ended(folder: Path, asked: Mapping[str, Any]) -> bool:
    """Whether a run is done, or has failed; MismatchError where that was with other options."""
    record = store.read_run(folder)
    if record.get("status") not in ("done", "failed"):
        return False
    config = {name: value for name, value in asked.items() if name in record["options"] and name not in FREE}
    for name, value in config.items():
        if record["options"][name] != value:
            raise MismatchError(f"the run in {folder} was made with --{name.replace('_', '-')} "
                                f"{record['options'][name]}, not {value}", "begin in another folder")
    return True


def _rank(tried: Tried) -> tuple[bool, float, float]:
    assert tried.result
    r = tried.result
    loss = r.loss_after if r.loss_after is not None else math.inf
    return r.is_worse, -(r.exact_after or 0.0), loss


def _save(found: Sweep) -> None:
    """sweep.json and the link to the best run so far."""
    with disk.replaced(found.folder / FILE) as beside:
        beside.write_text(json.dumps(found.to_json(), indent=2) + "\n")
    if found.best:
        link = found.folder / f"{BEST}.tmp"
        link.unlink(missing_ok=True)
        link.symlink_to(found.best.folder.name)
        link.replace(found.folder / BEST)
        disk.sync(found.folder)


def _report(found: Sweep) -> None:
    """The runs over one another; a sweep does not fail for it. One whose loss was no number at once has no folder."""
    from .comparison import write_comparison
    from .history import read_history
    with suppress(EdgetuneError):
        write_comparison(found.folder / REPORT, [read_history(tried.folder) for tried in found.tried
                                                 if tried.folder.exists()])
