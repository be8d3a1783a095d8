"""The command group, and the common parts of commands: options, output, errors, signals."""

from __future__ import annotations

import json
import logging
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import Field, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource
from rich.text import Text

from ..console import Terminal
from ..disk import refusals
from ..errors import EdgetuneError, UsageError, install_hint, lacking
from ..machine.policy import Policy, read_policy
from ..machine.signals import stop_requests
from ..options import AUTO, declared, groups_of, kind_of, seconds_of, share_of, takes_auto
from ..training.config import BACKENDS, FILE_OPTIONS, CommonOptions
from ..version import __version__
from .grouped import DeferredOptions, GroupedCommand, GroupedOption, family_flags
from .names import GROUPS, extra_of, renamed
from .output import refusal, to_the_end

if TYPE_CHECKING:
    from ..progress import JsonProgress, StepProgress, TrainProgress

out = Terminal()
GIVEN = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT, ParameterSource.DEFAULT_MAP)
F = TypeVar("F", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else. Progress, "
                           "where there is any, is JSON lines on stderr.")


def one_adapter(_ctx: click.Context, _option: click.Parameter, paths: tuple[Path, ...]) -> Path | None:
    """Refuses an option that is given twice, where the last would win in silence. Raises UsageError."""
    if len(paths) > 1:
        raise UsageError(f"--adapter is given {len(paths)} times", "a model answers with one at a time")
    return paths[0] if paths else None


adapter_option = click.option("--adapter", type=click.Path(path_type=Path), multiple=True, callback=one_adapter,
                              help="Adapter folder (or adapter.gguf) to answer with.")
threads_option = click.option("--threads", type=click.IntRange(0, 1024), default=0,
                              help="Threads; 0: one a core that this process may use.")
backend_option = click.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True,
                              help="Device of edgetune's own engine: cpu, cuda (an NVIDIA GPU), or auto: the GPU if "
                              "one can be used.")
system_option = click.option("--system", default="",
                             help="System message [with an adapter: the one that it was trained with].")


def engine_option(says: str) -> Callable[[F], F]:
    """Adds the option --engine. says: the engine's task in the command."""
    return click.option("--engine", type=click.Choice(["llama.cpp", "native"]), default="llama.cpp", show_default=True,
                        help=says)


def precision_option(says: str) -> Callable[[F], F]:
    """Adds --precision: that of our own engine's products. says: the help text, as for `engine_option`."""
    return click.option("--precision", type=click.Choice(["fast", "exact", "int8"]), default="fast", show_default=True,
                        help=says)


class ModelPath(click.Path):
    """A file or folder, or the name of a model that is on this device."""

    name = "model"

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from ..formats.named import find_model
        if ctx is not None and ctx.params.get("url"):  # a name of that daemon's
            return Path(value)
        return super().convert(find_model(value), param, ctx)


class RowsPath(click.Path):
    """The name of rows, as data/parts.py reads it: a file, several between commas, a folder, a data set of the hub."""

    name = "rows"

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def get_missing_message(self, param: click.Parameter, ctx: click.Context | None = None) -> str:  # noqa: ARG002
        return "It is a file of rows; edgetune train --help shows their form."


MODEL = click.argument("model", type=ModelPath())
DATA = click.argument("data", type=RowsPath())


class Commands(click.Group):
    """Commands in groups, in the order in which people need them; errors are one sentence on stderr."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Understands old names too, and says what they are now."""
        if new := renamed().get(args[0]):
            if "--json" not in args:
                click.echo(f"edgetune {args[0]} is called edgetune {new} now", err=True)
            args = [*new.split(), *args[1:]]
        return super().resolve_command(ctx, args)

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return [name for names in GROUPS.values() for name in names]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        known = {name: modules for names in GROUPS.values() for name, modules in names.items()}
        for modules in [known[cmd_name]] if cmd_name in known else known.values():  # all, for click names the nearest
            for module in modules:
                import_module(module)
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.list_commands(ctx)))
        for title, names in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), self._summary(ctx, name)) for name in names])

    def _summary(self, ctx: click.Context, name: str) -> str:
        command = self.get_command(ctx, name)
        assert command
        return summary(command.help or "")

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with told(), refusals():
                return self._invoke(ctx)
        except EdgetuneError as error:
            if "--json" in sys.argv:
                click.echo(json.dumps({"error": error.what, "hint": error.hint}))
            else:
                complain(error)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            sys.exit(130)

    def _invoke(self, ctx: click.Context) -> Any:
        """Raises EdgetuneError where the disk or the system refuses and, with the extra to install, where a package is
        missing.
        """
        try:
            return self._within_limits(ctx)
        except ModuleNotFoundError as error:
            name = (error.name or "").split(".")[0]
            extra = extra_of(name)
            if extra is None:
                raise
            raise EdgetuneError(f"edgetune {ctx.invoked_subcommand} needs the package {name}, which is not installed",
                                install_hint(extra.name)) from None

    def _within_limits(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (OSError, ImportError, MemoryError) as error:
            if found := lacking(error) or (refusal(error) if isinstance(error, OSError) else None):
                raise found from None
            raise


def complain(error: object) -> None:
    from ..console import say
    say(Terminal(stderr=True), Text(f"edgetune: {error}"))


class Lines(logging.Handler):
    """Shows the log records of the library on stderr: as lines, or with --json as events of progress."""

    def emit(self, record: logging.LogRecord) -> None:
        from ..console import say
        ctx = click.get_current_context(silent=True)
        if ctx and ctx.params.get("as_json"):
            click.echo(json.dumps({"event": "log", "line": record.getMessage()}), err=True)
        else:
            say(Terminal(stderr=True), record.getMessage())


@contextmanager
def told() -> Iterator[None]:
    """Shows, within it, the messages of the backends, which steps take long among them, and of downloads."""
    logs = [logging.getLogger(f"edgetune.{name}") for name in ("backends", "parts", "hub")]
    lines = Lines()
    before = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.INFO)
        log.addHandler(lines)
    try:
        yield
    finally:
        for log, level in zip(logs, before, strict=True):
            log.removeHandler(lines)
            log.setLevel(level)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="edgetune")
def cli() -> None:
    """Fine-tune a quantized language model (GGUF) with LoRA on the device that runs it.

    \b
    edgetune demo                                 see it work
    edgetune train model.gguf rows.jsonl -o NEW   learn rows
    edgetune chat model.gguf --adapter NEW        talk to it
    """


def main() -> None:
    to_the_end(cli, complain)


class NumberOrAuto(click.ParamType):  # type: ignore[type-arg]  # older versions of click are not generic
    """A number of this kind, or auto. zero: auto is 0."""

    def __init__(self, kind: type[int] | type[float], zero: bool = False) -> None:
        self.kind = kind
        self.zero = zero
        self.name = f"{'integer' if kind is int else 'float'}|{AUTO}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == AUTO:
            return self.kind(0) if self.zero else value
        try:
            return self.kind(value)
        except ValueError:
            self.fail(f"{value!r} is neither {AUTO} nor a {'whole number' if self.kind is int else 'number'}.", param,
                      ctx)


class Share(click.types.FloatParamType):
    """A number, which may be a percentage."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        share = share_of(value) if isinstance(value, str) else None
        return super().convert(value, param, ctx) if share is None else share


class Time(click.ParamType):  # type: ignore[type-arg]
    """A time such as 24h, in whole seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = float(value) if isinstance(value, int | float) else seconds_of(value)
        if seconds is None:
            self.fail(f"{value!r} is no time: give 90s, 5m, 2h or 1d.", param, ctx)
        return int(seconds)


def flag_type(spec: Field[Any]) -> Any:
    """The click type of an option's value."""
    if spec.metadata["choices"]:
        return click.Choice(spec.metadata["choices"])
    if spec.metadata["share"]:
        return Share()
    if takes_auto(spec) or spec.metadata["zero"]:
        return NumberOrAuto(kind_of(spec), zero=not takes_auto(spec))
    return type(spec.default)


def config_options(*names: str, of: type = CommonOptions, typed: Callable[[Field[Any]], Any] = flag_type,
                   defaults: bool = True, grouped: bool = True) -> Callable[[F], F]:
    """Adds a flag for each of these fields of a class of options; the command gets them as keyword arguments.

    typed: the click type of a flag's value. defaults: those of the class; without, a flag that is not given is None.
    grouped: in the groups of the class, and those that are not common in --help-all alone.
    """
    groups = groups_of(of) if grouped else {}

    def add(command: F) -> F:
        for spec in reversed([spec for spec in declared(of) if spec.name in names]):
            flag = "--" + spec.name.rstrip("_").replace("_", "-")  # `with_` is --with
            meta = spec.metadata
            if isinstance(spec.default, bool):
                flag = f"{flag}/--no-{flag[2:]}"
            default = spec.default if defaults else None
            command = click.option(flag, spec.name, type=typed(spec), default=default, cls=GroupedOption,
                                   group=groups.get(spec.name, ""), common=meta["common"] or not grouped,
                                   zero=meta["zero"], show_default=default not in ("", None),
                                   help=meta["help"])(command)
        return command

    return add


TRAIN_OPTIONS = tuple(spec.name for spec in declared(CommonOptions))


def training_options(*left_out: str, typed: Callable[[Field[Any]], Any] = flag_type,
                     defaults: bool = True) -> Callable[[F], F]:
    """The flags of a training: --family, where there is a choice, the options of families, and the common ones."""
    common = config_options(*(name for name in TRAIN_OPTIONS if name not in left_out), typed=typed, defaults=defaults)

    def add(command: F) -> F:
        command = common(command)
        flags = DeferredOptions(lambda ctx: family_flags(ctx, typed, defaults))
        command.__click_params__.append(flags)  # type: ignore[attr-defined]  # as click's own decorators do
        return command

    return add


train_options = training_options()
job_options = training_options(*FILE_OPTIONS)
column_options = config_options(*FILE_OPTIONS, grouped=False)
policy_options = config_options(*(spec.name for spec in fields(Policy)), of=Policy)
policy_file_option = click.option("--policy", "policy_file", type=click.Path(path_type=Path), cls=GroupedOption,
                                  common=False,
                                  help="File of yielding options, a line each, such as max-temp = 75; flags win.")


def governor_of(policy_file: Path | None, options: dict[str, Any]) -> Any:
    """The governor that a command's options ask for; takes them out of `options`."""
    from ..machine.device import read_device
    from ..machine.governor import Governor
    return Governor(policy_of(policy_file, options), read_device().profile)


def policy_of(policy_file: Path | None, options: dict[str, Any], **fixed: Any) -> Policy:
    """The policy of a command's options, which it takes out of `options`. fixed: values that the command decides."""
    asked = {spec.name: options.pop(spec.name) for spec in fields(Policy) if spec.name not in fixed}
    if policy_file:
        return read_policy(policy_file, **explicit(asked), **fixed)
    return Policy(**asked, **fixed).check()


def explicit(options: dict[str, Any]) -> dict[str, Any]:
    """The options that a person gave: on the command line, by the environment or in the file of options."""
    ctx = click.get_current_context()
    return {name: value for name, value in options.items() if ctx.get_parameter_source(name) in GIVEN}


def command(name: str, *decorators: Callable[[Any], Any], group: click.Group = cli,
            cls: type[click.Command] = GroupedCommand) -> Callable[[F], F]:
    """A command with its arguments and options in the order given, --json last."""

    def register(function: F) -> F:
        wrapped: Any = function
        for decorator in reversed((*decorators, json_option)):
            wrapped = decorator(wrapped)
        group.command(name, cls=cls, short_help=summary(function.__doc__ or ""))(wrapped)
        return function

    return register


def summary(text: str) -> str:
    """The first sentence of a help text."""
    return re.split(r"(?<=\.)\s", " ".join(text.split()), maxsplit=1)[0]


def show(as_json: bool, result: dict[str, Any], *lines: Any) -> None:
    if as_json:
        click.echo(json.dumps(result))
    else:
        from ..console import say
        for line in lines:
            if isinstance(line, str | Text):
                say(out, line)
            else:
                out.print(line)


def train_progress(as_json: bool) -> TrainProgress | JsonProgress:
    """A reporter of a run's events on stdout; with --json on stderr, because stdout has the result alone."""
    from ..progress import JsonProgress, TrainProgress
    return JsonProgress(sys.stderr) if as_json else TrainProgress(out)


def step_progress(console: Terminal, as_json: bool) -> StepProgress | JsonProgress:
    """The same for other long steps."""
    from ..progress import JsonProgress, StepProgress
    return JsonProgress(sys.stderr) if as_json else StepProgress(console)


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether Ctrl-C, SIGTERM or SIGHUP came. A second one stops at once, but for SIGHUP:
    shell and kernel send one each when a terminal is closed.
    """
    asked: list[int] = []

    def ask(number: int) -> None:
        asked.append(number)
        if number != signal.SIGHUP:
            signal.signal(number, signal.SIG_DFL)

    with stop_requests(ask):
        yield lambda: bool(asked)
