"""How large the project is, in the figures that a reader feels: `python tests/size.py` prints them as a table."""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields

import structure

ROOT = structure.ROOT.parent
NATIVE = (".c", ".h", ".cu", ".cuh", ".inc")


def lines_of(*folders: str, suffixes: tuple[str, ...] = (".py",)) -> int:
    """Lines of the files below folders of the project."""
    found = {path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in suffixes}
    return sum(len(path.read_text("utf-8").splitlines()) for path in found)


def words_of_docs() -> int:
    return sum(len(path.read_text("utf-8").split()) for path in (ROOT / "docs").rglob("*.md"))


def classes() -> Iterator[tuple[str, ast.ClassDef]]:
    """(module, class) of the package."""
    for name, path in structure.modules().items():
        for node in ast.walk(structure.tree(path)):
            if isinstance(node, ast.ClassDef):
                yield name, node


def shared_names() -> dict[str, int]:
    """Names of top-level classes that several modules have."""
    counts = Counter(node.name for name, path in structure.modules().items() for node in structure.tree(path).body
                     if isinstance(node, ast.ClassDef))
    return {name: count for name, count in counts.items() if count > 1}


def dataclasses_of_one_use() -> tuple[int, int]:
    """(dataclasses that the package constructs in at most one place, all dataclasses)"""
    made = {node.name for _, node in classes() if any("dataclass" in ast.unparse(one) for one in node.decorator_list)}
    calls = Counter(node.func.id for path in structure.modules().values() for node in ast.walk(structure.tree(path))
                    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name))
    return sum(calls[name] <= 1 for name in made), len(made)


def commands() -> tuple[int, int, int]:
    """(commands at the top, all commands, options of different names)"""
    import click

    from edgetune.cli import cli
    found: list[click.Command] = []
    context = click.Context(cli)

    def walk(group: click.Group) -> None:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command
            found.append(command)
            if isinstance(command, click.Group):
                walk(command)

    walk(cli)
    options = {flag for command in found for param in command.get_params(click.Context(command))
               for flag in param.opts if flag.startswith("--")}
    shown = [name for name in cli.list_commands(context) if not cli.get_command(context, name).hidden]  # type: ignore[union-attr]
    return len(shown), len(found), len(options)


def figures() -> Iterator[tuple[str, object]]:
    from edgetune.daemon.options import DaemonConfig
    package = lines_of("edgetune")
    yield "lines of Python: package", package
    for room in ("daemon", "cli", "parts"):
        yield f"of it {room}", lines_of(f"edgetune/{room}")
    yield "lines of Python: tests", lines_of("tests")
    yield "lines of native code", lines_of("native", suffixes=NATIVE)
    yield "words of docs", words_of_docs()
    top, every, options = commands()
    yield "commands at the top", top
    yield "all commands", every
    yield "options", options
    yield "make targets", len(re.findall(r"^[a-z-]+:.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    yield "options of DaemonConfig", len(fields(DaemonConfig))
    yield "modules that Service imports", len(set(structure.graph()["daemon.service"]))
    yield "modules", len(structure.modules())
    yield "names that several classes have", len(shared_names())
    few, all_of_them = dataclasses_of_one_use()
    yield "dataclasses made in one place", f"{few} of {all_of_them}"


def main() -> None:
    for name, value in figures():
        print(f"| {name} | {value:,} |" if isinstance(value, int) else f"| {name} | {value} |")


if __name__ == "__main__":
    sys.exit(main())
