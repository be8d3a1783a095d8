"""Options of a command from a file, --config, or from the environment. The command line wins, then the environment.

The file is TOML, or JSON; a run's run.json counts as the options of that run. Keys are flags, with dashes or
underscores, and the names of arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ..disk import read_object
from ..errors import FormatError, UsageError
from ..machine.toml import read_toml
from ..options import unknown_option

FLAG = "--config"
FILE = "edgetune.config"  # of a context: the file
NOT_KEYS = ("config", "help", "help_all", "json")


class ConfigOption(click.Option):
    """An option that --help-all shows. also: commands whose keys may be in the file too, without an effect on this one.
    """

    common = False

    def __init__(self, *names: Any, also: tuple[str, ...] = (), **options: Any) -> None:
        super().__init__(*names, **options)
        self.also = also


def config_option(*also: str) -> Callable[[Any], Any]:
    """Adds --config to a command. also: as in ConfigOption."""
    return click.option(FLAG, cls=ConfigOption, also=also, type=click.Path(path_type=Path), expose_value=False,
                        metavar="FILE", help="File of options: TOML, such as lr = 1e-3, or run.json of a run. What is "
                        "typed wins.")


def from_environment(prefix: str) -> Callable[[Any], Any]:
    """Gives each option of a command, and its arguments, a variable: the prefix, and its key in capital letters."""
    def add(command: Any) -> Any:
        for param in command.__click_params__:
            for key in keys_of([param]):
                param.envvar = f"{prefix}_{key.upper()}"
                param.show_envvar = True
        return command

    return add


def read(command: click.Command, ctx: click.Context, named: str) -> None:
    """Makes the options of the file the defaults of the context. Raises UsageError for a key that is no option."""
    option = next((param for param in command.params if isinstance(param, ConfigOption)), None)
    if option is None or not named:
        return
    path = Path(named)
    known = keys_of(command.get_params(ctx))
    values = {}
    for written, value in file_options(path).items():
        key = written.replace("-", "_")
        if key in known:
            values[str(known[key].name)] = typed(path, written, value, known[key])
        elif key not in other_keys(ctx, option.also):
            error = unknown_option(written, [name.replace("_", "-") for name in known])
            raise UsageError(f"{path}: {error.what} of {ctx.command_path}", error.hint)
    ctx.default_map = values
    ctx.meta[FILE] = path


def keys_of(params: Iterable[click.Parameter]) -> dict[str, click.Parameter]:
    """{key of a file: the parameter}."""
    found: dict[str, click.Parameter] = {}
    for param in params:
        flags = [name.removeprefix("--") for name in param.opts if name.startswith("--")]
        for key in flags if isinstance(param, click.Option) else [str(param.name)]:
            found.setdefault(key.replace("-", "_"), param)
    return {key: param for key, param in found.items() if key not in NOT_KEYS}


def other_keys(ctx: click.Context, commands: Iterable[str]) -> set[str]:
    group = ctx.find_root().command
    assert isinstance(group, click.Group)
    found = [group.get_command(ctx, name) for name in commands]
    return {key for command in found if command for key in keys_of(command.get_params(ctx))}


def file_options(path: Path) -> Mapping[str, Any]:
    """{key: value} of a file. Raises FormatError."""
    if path.suffix != ".json":
        return read_toml(path, "write name = value, such as lr = 1e-3 or system = \"Answer briefly.\"")
    found = read_object(path, "name a file of options")
    if found is None:
        raise FormatError(f"there is no file {path}", "check the path")
    if "origin" not in found:
        return found
    from ..training.origin import options_of
    return options_of(found, str(path))


def typed(path: Path, key: str, value: Any, param: click.Parameter) -> Any:
    """The value as click takes it from a command line. Raises UsageError."""
    takes_bool = isinstance(param, click.Option) and param.is_flag
    items = value if isinstance(value, list) else [value]
    if any(not isinstance(item, str | int | float) or (isinstance(item, bool) and not takes_bool) for item in items):
        raise UsageError(f"{path}: {key} is {value!r:.60}",
                         "give true or false" if takes_bool else "give text, a number, or a list of these")
    if takes_bool:
        return value
    if param.multiple:
        return [str(item) for item in items]
    return ",".join(map(str, items))


def where(ctx: click.Context, param: click.Parameter | None) -> str:
    """The file or the environment variable that an option's value comes from; "" for what was typed, or is default."""
    source = ctx.get_parameter_source(str(param.name)) if param else None
    if param and source is ParameterSource.ENVIRONMENT:
        return str(param.envvar)
    if source is ParameterSource.DEFAULT_MAP:
        return str(ctx.meta[FILE])
    return ""
