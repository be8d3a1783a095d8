"""The reference of the commands: each with its own options; options of several commands stand once, in groups."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache

import click
import option_tables as options

from edgetune.cli import cli
from edgetune.cli.names import GROUPS
from edgetune.compress.options import CompressConfig
from edgetune.daemon.options import DaemonConfig
from edgetune.machine.policy import Policy
from edgetune.options import default_text, groups_of
from edgetune.training.config import TrainConfig

SHARED: dict[str, tuple[type, str]] = {
    "Training options": (TrainConfig, "They are also options of `edgetune.train`, `Trainer`, and of a job's "
                         "`hyperparameters`, with underscores. [Methods](methods.md) and [families](families.md) "
                         "of adapters have more."),
    "Yielding options": (Policy, "A file given by `--policy` may hold them, a line each."),
    "Daemon options": (DaemonConfig, "They are also options of `DaemonConfig`."),
    "Compression options": (CompressConfig, "They are options of `edgetune compress`."),
}
COMMON = "Common options"
SEVERAL = 2  # commands
HELP = {"--help", "--help-all"}
EVERYWHERE = {"--json", "--url", "--key-file"}
HEAD = """\
`edgetune COMMAND --help` shows the options that most people need, `--help-all` all of them. This page has all, each
once; headings leave out `edgetune`. Defaults are in parentheses; what holds without an option, in brackets.

Every command takes `--json`: one JSON object, and progress as JSON lines on stderr ([files](files.md)). Commands that
ask a daemon take `--url` (http://HOST:PORT or unix:/PATH) and `--key-file`. Without them the
[environment](files.md#environment-variables) decides, else `http://127.0.0.1:8642`."""


def lines() -> Iterator[str]:
    listed_here = {name for names in GROUPS.values() for name in names}
    assert listed_here == {path.split()[0] for path in commands()}, "GROUPS has other commands than edgetune"
    yield from (HEAD, "")
    for title, names in GROUPS.items():
        yield f"- {title}: {', '.join(map(links, names))}"
    yield from (f"- Options: {', '.join(link(title.lower(), title) for title in (COMMON, *SHARED))}", "")
    for names in GROUPS.values():
        for name in names:
            for path in paths_of(name):
                yield from command_lines(path)
    yield from (f"## {COMMON}", "", *listed(common_rows()))
    for title, (kind, where) in SHARED.items():
        yield from (f"## {title}", "", where, "", *grouped(kind))


def link(text: str, heading: str) -> str:
    return f"[{text}](#{re.sub(r'[^a-z0-9_ -]', '', heading.lower()).replace(' ', '-')})"


def heading(path: str) -> str:
    """A command with its arguments."""
    command = commands()[path]
    pieces = [piece for piece in command.collect_usage_pieces(click.Context(command)) if piece != "[OPTIONS]"]
    return " ".join((path, *pieces))


def links(name: str) -> str:
    """A command, or the name of a group with its commands."""
    found = paths_of(name)
    if found == [name]:
        return link(name, heading(name))
    return f"{name} ({', '.join(link(path.removeprefix(name).strip(), heading(path)) for path in found)})"


@cache
def commands() -> dict[str, click.Command]:
    """Every command by its words after `edgetune`."""
    return dict(walk(cli, ()))


def walk(group: click.Group, path: tuple[str, ...]) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from walk(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def paths_of(name: str) -> list[str]:
    """The commands of a name: itself, or those of its group."""
    return [path for path in commands() if path.split()[0] == name]


def command_lines(path: str) -> Iterator[str]:
    command = commands()[path]
    yield from (f"## {heading(path)}", "")
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        is_shown_as_it_is = paragraph.startswith("\b\n")
        yield from (("```text", paragraph[2:], "```", "") if is_shown_as_it_is else (paragraph, ""))
    found = options_of(command)
    shared = dict(shared_options(found))
    apart = [one for one in found if not any(one in others for others in shared.values())]
    yield from listed([option for option in map(row, apart) if len(usage()[option]) < SEVERAL])
    if common := [one for one in apart if len(usage()[row(one)]) >= SEVERAL]:
        yield from (f"{flags(common)}: {link('common', COMMON)}.", "")
    for title, others in shared.items():
        yield from (named(others, title), "")


def options_of(command: click.Command) -> list[click.Option]:
    return [one for one in command.get_params(click.Context(command)) if isinstance(one, click.Option)
            and not one.hidden and (HELP | EVERYWHERE).isdisjoint(one.opts)]


@cache
def usage() -> dict[str, list[str]]:
    """The commands in which each line would stand."""
    found: dict[str, list[str]] = {}
    for path, command in commands().items():
        of_command = options_of(command)
        shared = [one for others in dict(shared_options(of_command)).values() for one in others]
        for one in of_command:
            if one not in shared:
                found.setdefault(row(one), []).append(path)
    return found


def common_rows() -> list[str]:
    """The lines of several commands; of an option that has several lines, with its commands."""
    common = {option: paths for option, paths in usage().items() if len(paths) >= SEVERAL}
    names = Counter(name_in(option) for option in common)
    return [option if names[name_in(option)] == 1 else f"{option} ({', '.join(paths)})"
            for option, paths in sorted(common.items(), key=lambda pair: list(names).index(name_in(pair[0])))]


def name_in(line: str) -> str:
    """The last flag of an option's line."""
    return line.split(":")[0].split(" (")[0].rpartition("`, `")[2].strip("-` ")


def listed(rows: list[str]) -> Iterator[str]:
    if rows:
        yield from (*rows, "")


def row(option: click.Option) -> str:
    names = "`, `".join((*option.opts, *option.secondary_opts))
    return f"- `{names}`{shown_default(option)}: {options.line(option.help or '')}"


def shown_default(option: click.Option) -> str:
    value = option.default
    absent = value is None or value == "" or value == () or "UNSET" in repr(value).upper()
    is_off = value is False and not option.secondary_opts  # a flag that is given or not
    return "" if absent or is_off or callable(value) else f" ({default_text(value, getattr(option, 'zero', ''))})"


def grouped(kind: type) -> Iterator[str]:
    """All options of a class, in its groups."""
    titles = groups_of(kind)
    rows: dict[str, list[str]] = {}
    for spec in options.specs_of(kind):
        title = titles.get(spec.name) or spec.metadata["group"] or "The adapter" if titles else ""
        rows.setdefault(title, []).append(options.option_row(spec))
    for title, of_group in rows.items():
        if title:
            yield from (f"**{title}**", "")
        yield from (*of_group, "")


def shared_options(found: list[click.Option]) -> Iterator[tuple[str, list[click.Option]]]:
    """(title, those options of a command that stand in the shared table), the class with the most of them first."""
    by_title = {title: [one for one in found if is_shared(one, kind)] for title, (kind, _) in SHARED.items()}
    taken: list[click.Option] = []
    for title in sorted(by_title, key=lambda title: -len(by_title[title])):
        own = [one for one in by_title[title] if one not in taken]
        if own:
            taken += own
            yield title, own


def is_shared(option: click.Option, kind: type) -> bool:
    """Whether a flag is that of a class of options, with its help and default."""
    spec = next((spec for spec in options.specs_of(kind) if spec.name == option.name), None)
    return spec is not None and option.help == spec.metadata["help"] and option.default in (spec.default, None)


def named(found: list[click.Option], title: str) -> str:
    """Names the fewer of those options of a table that a command has and those that it lacks."""
    names = {one.name for one in found}
    missing = [spec.name for spec in options.specs_of(SHARED[title][0]) if spec.name not in names]
    table = link(title.lower(), title)
    if not missing:
        return f"All {table}."
    if len(missing) < len(names):
        return f"All {table} but {options.flags(missing)}."
    return f"{flags(found)} of the {table}."


def flags(found: list[click.Option]) -> str:
    return ", ".join(f"`{one.opts[-1]}`" for one in found)
