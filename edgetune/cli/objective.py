"""The option --method, and the flags of the named method, which are made when a command is parsed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import Field
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from ..options import default_text
from ..training.config import TrainConfig, train_options
from .app import explicit, flag_type
from .grouped import ALONE, HELP, GroupedCommand, GroupedOption, chosen

if TYPE_CHECKING:
    from ..formats.gguf import Gguf
    from ..objectives.base import Objective

DEFAULT = "sft"
FLAG = "--method"


class ObjectiveCommand(GroupedCommand):
    """A command that takes an objective: its function gets `method` and each option of it that was given.

    Help shows the options of the named method, and its defaults of options that every training has.
    """

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        found = super().get_params(ctx)
        name = chosen(ctx, FLAG, DEFAULT)
        own = [param for param in found if HELP.isdisjoint(param.opts)]
        helps = [param for param in found if not HELP.isdisjoint(param.opts)]
        known = methods(ctx)
        defaults = known[name].defaults if name in known else {}
        return [*with_defaults(own, defaults), *self.method_flags(name, known), *helps]

    def method_flags(self, name: str, known: Mapping[str, type[Objective]]) -> Iterator[click.Option]:
        """Makes --method, and the options of the known methods; help shows those of the named one."""
        yield click.Option([FLAG], type=click.Choice(list(known)), default=DEFAULT, show_default=True,
                           metavar="NAME", help=self.method_help(known))
        for option, owners in options_of(known).items():
            yield method_option(option, owners, name)

    def method_help(self, known: Iterable[str]) -> str:
        return f"What is learned from the rows, and how: {_listed(known)}. {FLAG} NAME --help shows its options."


def methods(ctx: click.Context) -> dict[str, type[Objective]]:
    """The methods whose options a command takes: all, or the named one alone where that is all that is typed."""
    from ..objectives.base import find_objective, objectives
    name = chosen(ctx, FLAG, DEFAULT)
    alone = find_objective(name) if ctx.meta.get(ALONE) else None
    return {name: alone} if alone else objectives(train_options())


def with_defaults(params: Sequence[click.Parameter], defaults: Mapping[str, Any]) -> list[click.Parameter]:
    from copy import copy
    found = []
    for param in params:
        if param.name in defaults:
            param = copy(param)
            param.default = defaults[param.name]
        found.append(param)
    return found


def method_option(name: str, owners: Mapping[str, Field[Any]], method: str) -> click.Option:
    """The flag of an option that some methods have; help hides it where the named method has none of that name."""
    spec = owners.get(method)
    flag = "--" + name.replace("_", "-")
    if isinstance(next(iter(owners.values())).default, bool):
        flag = f"{flag}/--no-{flag[2:]}"
    if spec is None:
        return click.Option([flag, name], type=None if "/" in flag else str, default=None, hidden=True)
    default = f" [{default_text(spec.default)}]" if spec.default != "" else ""
    return GroupedOption([flag, name], type=flag_type(spec), default=None, group=f"The method {method}",
                         help=f"{spec.metadata['help']}{default}")


def _listed(known: Iterable[str]) -> str:
    """The established methods, those of encoders, then the experimental ones."""
    from ..objectives.base import ESTABLISHED, OF_ENCODERS
    others = [name for name in known if name not in (*ESTABLISHED, *OF_ENCODERS)]
    kinds = {"": ESTABLISHED, "of encoders: ": OF_ENCODERS, "experimental: ": others}
    found = {title: [name for name in names if name in known] for title, names in kinds.items()}
    return "; ".join(title + ", ".join(names) for title, names in found.items() if names)


def options_of(known: Mapping[str, type[Objective]]) -> dict[str, dict[str, Field[Any]]]:
    from ..options import declared
    found: dict[str, dict[str, Field[Any]]] = {}
    for name, kind in known.items():
        for spec in declared(kind):
            found.setdefault(spec.name, {})[name] = spec
    return found


def take_objective(options: dict[str, Any], model: Gguf | None = None) -> Objective:
    """The objective that a command's options ask for; takes them out of `options`. model: what is trained, which
    decides where no method is named.

    Raises UsageError for an option of another method, and for one out of its range.
    """
    from ..models.networks import network_of
    from ..objectives.base import find_objective, make_objective
    is_named = "method" in explicit(options)
    name = options.pop("method", DEFAULT)
    if model is not None and not is_named:
        name = network_of(model).objective
    asked: dict[str, Any] = {}
    own = options_of({name: kind} if (kind := find_objective(name)) else {})
    for option, owners in options_of(methods(click.get_current_context())).items():
        value = options.pop(option, None)
        if value is None:
            continue
        if option not in own:
            raise UsageError(f"--{option.replace('_', '-')} is no option of the method {name}",
                             f"leave it out, or add {FLAG} {' or '.join(owners)}")
        asked[option] = value
    return make_objective(name, asked)


def train_config(options: dict[str, Any], objective: Objective) -> TrainConfig:
    """A command's options of training, with the objective's defaults. Raises UsageError."""
    return TrainConfig(**{**options, **objective.defaults, **explicit(options)}).check()
