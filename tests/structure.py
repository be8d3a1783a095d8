"""The package's import graph: boxes, arrows, floors and circles. `python tests/structure.py` prints it.

A box is an entry of the package's top folder: a module or a room. An arrow is a pair of boxes of which the first
imports the second, at a module's top or within a function. Imports for type checkers alone do not count.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
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


def arrows(edges: dict[str, set[str]]) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """(box, box) -> the imports between them. The package's face imports lazily, from everywhere, and is left out."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for module, targets in edges.items():
        for target in targets:
            if FACE not in (box(module), box(target)) and box(module) != box(target):
                found[box(module), box(target)].append((module, target))
    return found


def upward(edges: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Imports that do not go to a lower floor."""
    return sorted(pair for (here, there), pairs in arrows(edges).items() if FLOOR[there] >= FLOOR[here]
                  for pair in pairs)


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import one another, by Tarjan's strongly connected components (1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for target in edges.get(module, ()):
            if target not in index:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], index[target])
        if low[module] == index[module]:
            start = stack.index(module)
            group = stack[start:]
            del stack[start:]
            if len(group) > 1:
                found.append(sorted(group))

    for module in edges:
        if module not in index:
            visit(module)
    return found


def main() -> None:
    edges = graph()
    top = sorted(name for name, path in modules().items() if path.parent == ROOT)
    boxes = {box(name) for name in edges} - {FACE}
    print(f"modules in the top folder: {len(top)} ({', '.join(name or FACE for name in top)})")
    print(f"boxes: {len(boxes)}")
    print(f"arrows: {len(arrows(edges))}")
    print(f"upward arrows: {len(upward(edges))}")
    for module, target in upward(edges):
        print(f"    {module} -> {target}")
    print(f"circles: {len(circles(edges))}")
    for group in circles(edges):
        print(f"    {', '.join(group)}")


if __name__ == "__main__":
    main()
