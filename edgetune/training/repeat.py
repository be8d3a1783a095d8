"""run.toml: the options of a run, as `edgetune train --config` takes them to repeat it.

It has the files that the run was made from, its method, and all options that are not at their default. An option that
was "auto" and depends on the rows, such as max-length, has its number. Limits that run.json has as the run's machine
set them, its temperature and free memory, are left to the next machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..disk import replaced
from ..machine.policy import Policy
from ..machine.toml import toml_text
from ..objectives.base import read_objective
from ..objectives.sft import Sft
from ..persisted import from_json
from ..version import __version__
from .config import TrainConfig
from .origin import TENTH, RunOrigin

NAME = "run.toml"
OF_MACHINE = ("max_temp", "min_free")


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


def write(folder: Path, record: Mapping[str, Any]) -> None:
    """Writes run.toml into the folder of a run, unless its rows came from a program, which alone can repeat it."""
    origin = record["origin"] or {}
    if not (origin.get("data") and origin.get("held_out")):
        return
    try:
        text = toml_text(options_of(record, NAME))
    except UnicodeEncodeError:  # a path that is no UTF-8, which TOML cannot hold
        return
    legs = [*record["legs"][1:], record] if record["legs"] else []
    later = [f"# then: edgetune resume NEW --epochs +{leg['more']:g}\n" for leg in legs]
    with replaced(folder / NAME) as beside:
        beside.write_text(f"# written by edgetune {__version__}; to repeat this run:\n"
                          f"# edgetune train --config {NAME} -o NEW\n{''.join(later)}{text}", encoding="utf-8")
