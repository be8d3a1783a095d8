"""--help with the options that are common, --help-all with all, in the same groups; the flags of adapter families."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import Field
from typing import Any

import click

from ..errors import UsageError
from ..options import default_text
from ..training.config import ADAPTER, LORA
from . import configured

FAMILY = "--family"
OWN = "Options"
VARIABLES = 76  # columns from which the names of environment variables fit
ARGS = "edgetune.args"  # of a context: what is typed
ALL = "edgetune.help_all"  # of a context: whether all options are to be shown
ALONE = "edgetune.alone"  # of a context: whether no options of others than the named family and method are needed
HELP = {"-h", "--help", "--help-all"}


class GroupedOption(click.Option):
    """An option of a group. common: --help shows it. zero: the word for a default of 0."""

    def __init__(self, *names: Any, group: str = "", common: bool = True, zero: str = "", **options: Any) -> None:
        super().__init__(*names, **options)
        self.group = group
        self.common = common
        self.zero = zero

    def get_help_extra(self, ctx: click.Context) -> Any:
        found = super().get_help_extra(ctx)
        if "default" in found:
            found["default"] = default_text(self.get_default(ctx, call=False), self.zero)
        return found


class DeferredOptions(click.Option):
    """A placeholder for options that are made when a command is parsed, because their modules take long to import."""

    def __init__(self, make: Callable[[click.Context], Iterable[click.Option]]) -> None:
        super().__init__(["--deferred"], hidden=True, expose_value=False)
        self.make = make


class FamilyName(click.Choice[str]):
    """The name of an adapter family. Raises UsageError for one that there is not, with the reason where that is known.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from ..adapters.base import REFUSED
        if value in REFUSED:
            raise UsageError(*REFUSED[value])
        return super().convert(value, param, ctx)


class GroupedCommand(click.Command):
    """A command whose options may be in groups; --help-all exists where --help leaves some out."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[ARGS] = tuple(args)
        configured.read(self, ctx, named(args, configured.FLAG, ""))
        ctx.meta[ALONE] = not ctx.resilient_parsing and self._are_enough(ctx, args)
        try:
            return super().parse_args(ctx, args)
        except click.BadParameter as error:
            if not (place := configured.where(ctx, error.param)):
                raise
            raise click.BadParameter(f"{error.message} {place} says so.", ctx, error.param) from None

    def _are_enough(self, ctx: click.Context, args: list[str]) -> bool:
        """Whether the options of the named family and method are all that is typed: the other modules are not imported
        then, as a board's memory holds all that are.
        """
        ctx.meta[ALONE] = True
        known = {flag for param in self.get_params(ctx) for flag in (*param.opts, *param.secondary_opts)} - HELP
        typed = {word.partition("=")[0] for word in args if word.startswith("--") or word in HELP}
        return not ctx.default_map and typed <= known

    def invoke(self, ctx: click.Context) -> Any:
        """Names the file or the environment variable of an option that is refused."""
        try:
            return super().invoke(ctx)
        except UsageError as error:
            option = error.what.partition(" ")[0].lstrip("-").replace("-", "_")
            param = next((param for param in self.get_params(ctx) if param.name == option), None)
            if not (place := configured.where(ctx, param)):
                raise
            raise UsageError(f"{place}: {error.what}", error.hint) from None

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        found = [param for one in super().get_params(ctx)
                 for param in (one.make(ctx) if isinstance(one, DeferredOptions) else [one])]
        if not any(is_rare(param) for param in self.params):
            return found
        return [*found[:-1], click.Option(["--help-all"], is_flag=True, expose_value=False, is_eager=True,
                                          callback=_show_all, help="Show all options and exit."), *found[-1:]]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        everything = ctx.meta.get(ALL)
        groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
        left_out = 0
        for param in self.get_params(ctx):
            if formatter.width < VARIABLES and isinstance(param, click.Option):
                param = copy(param)
                param.show_envvar = False
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is None:
                continue
            if is_rare(param) and not everything:
                left_out += 1
                continue
            groups[getattr(param, "group", "") or OWN].append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)
        if left_out:
            formatter.write_paragraph()
            formatter.write_text(f"{ctx.command_path} --help-all shows {left_out} more.")


def is_rare(param: click.Parameter) -> bool:
    return not getattr(param, "common", True)


def _show_all(ctx: click.Context, _option: click.Parameter, asked: bool) -> None:
    if asked:
        ctx.meta[ALL] = True
        click.echo(ctx.get_help(), color=ctx.color)
        ctx.exit()


def family_flags(ctx: click.Context, typed: Callable[[Field[Any]], Any], defaults: bool) -> Iterator[click.Option]:
    """Makes --family and the options of all families, or of the named one alone. Help shows those of the named family,
    and --family where there is a choice. typed, defaults: as in `app.config_options`.
    """
    from ..adapters.base import families, find_family
    from ..options import declared
    family = chosen(ctx, FAMILY, LORA)
    alone = find_family(family) if ctx.meta.get(ALONE) else None
    known = {family: alone} if alone else families()
    yield GroupedOption([FAMILY, "family"], type=FamilyName(list(known)), default=LORA if defaults else None,
                        show_default=defaults, metavar="NAME", group=ADAPTER, hidden=len(known) == 1,
                        help=f"What is trained: {', '.join(known)}. {FAMILY} NAME --help shows its options.")
    own = {spec.name: spec for spec in declared(known.get(family) or known[LORA])}
    others = {spec.name: spec for kind in known.values() for spec in declared(kind) if spec.name not in own}
    for name, spec in {**own, **others}.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(spec.default, bool):
            flag = f"{flag}/--no-{flag[2:]}"
        default = spec.default if defaults and name in own else None
        yield GroupedOption([flag, name], type=typed(spec), default=default, group=ADAPTER, hidden=name in others,
                            common=spec.metadata["common"], zero=spec.metadata["zero"],
                            show_default=default is not None, help=spec.metadata["help"])


def chosen(ctx: click.Context, flag: str, default: str) -> str:
    """The value of an option that decides which others there are: as it is typed, else as the file of options says."""
    of_file = (ctx.default_map or {}).get(flag.removeprefix("--"), default)
    return named(ctx.meta.get(ARGS, ()), flag, str(of_file))


def named(args: Sequence[str], flag: str, default: str) -> str:
    """The value after the last occurrence of a flag; the default without one."""
    found = default
    for i, word in enumerate(args):
        if word == flag and i + 1 < len(args):
            found = args[i + 1]
        elif word.startswith(f"{flag}="):
            found = word.removeprefix(f"{flag}=")
    return found


class Listing(click.Group):
    """A group whose default command is list."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)
