"""The origin of a run, by which it is continued or repeated.

run.json holds it from the start, so that the folder alone is enough to continue the run. run.toml has the options as
`edgetune train --config` takes them to repeat it: the files that the run was made from, its method, and all options
that are not at their default. An option that was "auto" and depends on the rows, such as max-length, has its number.
Limits that run.json has as the run's machine set them, its temperature and free memory, are left to the next machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from ..adapters.store import RUN, read_run
from ..disk import replaced
from ..errors import FormatError
from ..machine.policy import Policy
from ..machine.toml import toml_text
from ..objectives.base import read_objective
from ..objectives.sft import Sft
from ..persisted import from_json
from ..version import __version__
from .config import TrainConfig

TENTH = "tenth"  # as an origin's held-out rows: nothing was said
TOML = "run.toml"
OF_MACHINE = ("max_temp", "min_free")


@dataclass(frozen=True)
class RunOrigin:
    """An origin. model, data: paths that can be opened from any folder. held_out: a path, or "tenth" or "none".

    started: ISO 8601. objective: its name and options. policy: the governor's options. `run` fills in these two.
    """

    model: str
    data: str
    held_out: str
    command: list[str] = field(default_factory=list)
    started: str = field(default_factory=lambda: datetime.now().astimezone().isoformat(timespec="seconds"))
    objective: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)


def read_origin(folder: str | Path) -> RunOrigin:
    """Reads the origin of the run in `folder`. Raises FormatError if there is no run, or if it has no origin."""
    folder = Path(folder)
    record = read_run(folder)
    if not record:
        raise FormatError(f"{folder} holds no run: there is no {RUN}", "name the output folder of a training")
    if record.get("origin") is None:
        raise FormatError(f"the run in {folder} does not say which files it was made from",
                          "give them again: edgetune train MODEL DATA -o OUT --resume")
    return from_json(RunOrigin, record["origin"], f"the origin in {folder / RUN}")


def options_of(record: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The options of a run by the names of `edgetune train`, from the content of its run.json. Raises FormatError.

    Rows that came from a program have no name here. source: what holds the record, for errors.
    """
    origin = from_json(RunOrigin, record["origin"] or {"model": "", "data": "", "held_out": TENTH}, source)
    config = from_json(TrainConfig, record["options"], source)
    objective = read_objective(origin.objective or {"name": Sft.name})
    start = record.get("start")
    files = {"model": origin.model, "data": origin.data, "eval": "" if origin.held_out == TENTH else origin.held_out,
             "start": str(start["path"]) if start else "", "method": objective.name}
    found = {name: value for name, value in files.items() if value}
    for given, defaults in ((config.to_json(), TrainConfig().to_json() | dict(objective.defaults)),
                            (objective.options(), type(objective)().options()),
                            (origin.policy, Policy().to_json())):
        found |= {name.replace("_", "-"): value for name, value in given.items()
                  if name not in OF_MACHINE and (name not in defaults or value != defaults[name])}
    return found


def write_toml(folder: Path, record: Mapping[str, Any]) -> None:
    """Writes run.toml into the folder of a run, unless its rows came from a program, which alone can repeat it."""
    origin = record["origin"] or {}
    if not (origin.get("data") and origin.get("held_out")):
        return
    try:
        text = toml_text(options_of(record, TOML))
    except UnicodeEncodeError:  # a path that is no UTF-8, which TOML cannot hold
        return
    legs = [*record["legs"][1:], record] if record["legs"] else []
    later = [f"# then: edgetune resume NEW --epochs +{leg['more']:g}\n" for leg in legs]
    with replaced(folder / TOML) as beside:
        beside.write_text(f"# written by edgetune {__version__}; to repeat this run:\n"
                          f"# edgetune train --config {TOML} -o NEW\n{''.join(later)}{text}", encoding="utf-8")
