"""--objective, and a flag for every option of every registered objective: made when a command is parsed, not before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from ..training.config import TrainConfig
from .app import flag_type
from .grouped import GroupedCommand, GroupedOption

if TYPE_CHECKING:
    from ..objectives.base import Objective

DEFAULT = "sft"


class ObjectiveCommand(GroupedCommand):
    """A command that takes an objective: its function is given `objective` and each option that was named."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        help_flags = [param for param in super().get_params(ctx) if param not in self.params]
        return [*self.params, *objective_flags(), *help_flags]


def objective_flags() -> list[click.Option]:
    """--objective where there is a choice, and the options of all; an option that several have is one flag."""
    from ..objectives.base import objectives
    from ..options import declared
    known = objectives(TrainConfig)
    flags: list[click.Option] = []
    if len(known) > 1:
        flags.append(click.Option(["--objective"], type=click.Choice(list(known)), default=DEFAULT, show_default=True,
                                  help="What is learned from the rows."))
    specs: dict[str, Any] = {}
    helps: dict[str, list[str]] = {}
    for name, kind in known.items():
        for spec in declared(kind):
            specs[spec.name] = spec
            default = f" [{spec.default}]" if spec.default != "" else ""
            helps.setdefault(spec.name, []).append(f"{name}: {spec.metadata['help']}{default}")
    for name, spec in specs.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(spec.default, bool):
            flag = f"{flag}/--no-{flag[2:]}"
        flags.append(GroupedOption([flag, name], type=flag_type(spec), default=None, help=" ".join(helps[name]),
                                   group="The objective", common=False))
    return flags


def take_objective(options: dict[str, Any]) -> Objective:
    """The objective that a command's options ask for; takes them out of `options`.

    Raises UsageError for an option of another objective, and for one out of its range.
    """
    from ..objectives.base import make_objective, objectives
    from ..options import declared
    known = objectives()
    name = options.pop("objective", DEFAULT)
    asked: dict[str, Any] = {}
    for spec in (spec for kind in known.values() for spec in declared(kind)):
        value = options.pop(spec.name, None)
        if value is not None:
            asked[spec.name] = value
    _refuse_others(name, asked, {other: [spec.name for spec in declared(kind)] for other, kind in known.items()})
    return make_objective(name, asked)


def _refuse_others(name: str, asked: Mapping[str, Any], options_of: Mapping[str, list[str]]) -> None:
    for option in asked:
        if option not in options_of[name]:
            owners = [other for other, its in options_of.items() if option in its]
            raise UsageError(f"--{option.replace('_', '-')} is no option of the objective {name}",
                             f"leave it out, or add --objective {' or '.join(owners)}")
