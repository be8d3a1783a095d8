"""Numbers of which several may be named, --lr 1e-4,5e-4: a run each, and a table of all."""

from __future__ import annotations

from dataclasses import Field
from typing import TYPE_CHECKING, Any

import click

from ..options import kind_of
from ..training.config import LORA, train_options
from .app import flag_type, training_options

if TYPE_CHECKING:
    from ..runs.sweep import Sweep


class Several(click.ParamType):  # type: ignore[type-arg]  # older versions of click are not generic
    """A value of this type, or several between commas, as a tuple."""

    def __init__(self, single: click.ParamType) -> None:  # type: ignore[type-arg]
        self.single = single
        self.name = f"{single.name},..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and "," in value:
            return tuple(self.single.convert(part.strip(), param, ctx) for part in value.split(","))
        return self.single.convert(value, param, ctx)


def several(spec: Field[Any]) -> Any:
    """The click type of an option in a sweep: a number may have several values."""
    single = flag_type(spec)
    return Several(click.types.convert_type(single)) if kind_of(spec) in (int, float) else single


sweep_options = training_options(typed=several)


def take_grid(options: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    """The options of which several values are given; takes them out of `options`."""
    names = dict.fromkeys([*train_options(options.get("family", LORA)), *options])
    return {name: options.pop(name) for name in names if isinstance(options.get(name), tuple)}


def sweep_table(found: Sweep) -> Any:
    """A line a run, the best marked."""
    from ..console import duration, table
    from ..runs.sweep import short
    names = list(found.tried[0].point)
    lines = []
    for tried in found.tried:
        values = [short(tried.point[name]) for name in names]
        r = tried.result
        if r is None:
            lines.append([*values, "not a number", "", "", "", ""])
            continue
        loss = "" if r.loss_after is None else f"{r.loss_after:.4f}"
        exact = "" if r.exact_after is None else f"{r.exact_after:.0%}"
        best = "best" if tried is found.best else ""
        lines.append([*values, loss, exact, str(r.steps), duration(r.seconds), best])
    columns = [*(name.replace("_", "-") for name in names), "held-out loss", "exact", "steps", "time", ""]
    return table("", columns, lines, tuple(range(len(columns) - 1)))
