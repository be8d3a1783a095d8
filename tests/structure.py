"""The package's import graph: boxes, arrows, floors and circles.

A box is an entry of the package's top folder: a module or a room. An arrow is a pair of boxes of which the first
imports the second, at a module's top or within a function. Imports for type checkers alone do not count.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / "edgetune"
FLOORS = [
    ["version", "errors"],
    ["options", "disk", "console", "persisted", "manifest"],
    ["machine", "backends", "progress"],
    ["formats", "python_child"],
    ["hub", "llamacpp"],
    ["data", "adapters"],
    ["models", "objectives"],
    ["serving"],
    ["training"],
    ["evaluation"],
    ["bench", "runs"],
    ["compress", "daemon", "demo"],
    ["cli"],
    ["parts"],
    ["__main__"],
]
"""Rooms and top modules from the lowest to the highest; a module imports only from lower floors, or its own room."""

FLOOR = {box: number for number, floor in enumerate(FLOORS) for box in floor}
FACE = "__init__"


def modules() -> dict[str, Path]:
    """Every module by its dotted name below edgetune; a package by its folder's name, edgetune itself as ""."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        if parts[-1] == FACE:
            parts.pop()
        found[".".join(parts)] = path
    return found


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules of edgetune that a module imports, with repetitions."""
    package = name if path.stem == FACE else name.rpartition(".")[0]
    for node in _run(tree(path)):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        parts = package.split(".") if package else []
        base = parts[:len(parts) - node.level + 1] + (node.module.split(".") if node.module else [])
        for alias in node.names:
            inner = ".".join([*base, alias.name])
            yield inner if inner in known else ".".join(base)


def _run(tree: ast.AST) -> Iterator[ast.AST]:
    """All statements but those below `if TYPE_CHECKING:`."""
    left: list[ast.AST] = [tree]
    while left:
        node = left.pop()
        yield node
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            left += node.orelse
        else:
            left += (child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr))


def graph() -> dict[str, set[str]]:
    """Module -> the modules that it imports."""
    known = modules()
    return {name: {to for to in imports(name, path, known) if to != name} for name, path in known.items()}


def box(module: str) -> str:
    return module.split(".")[0] or FACE


def upward(edges: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Imports that do not go to a lower floor. The package's face imports lazily, from everywhere, and is left out."""
    return sorted((module, target) for module, targets in edges.items() for target in targets
                  if box(module) != box(target) and FACE not in (box(module), box(target))
                  and FLOOR[box(target)] >= FLOOR[box(module)])


def circle(edges: dict[str, set[str]]) -> list[str]:
    """Modules of which each imports the next, and the last the first; none if no modules import one another."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []
