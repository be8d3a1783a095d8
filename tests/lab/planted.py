"""Breaks one line of edgetune at a time, and asks the quick tests (`make test`) whether they find it.

The faults are drawn by rule: the rooms take turns; in a room every module counts by its lines, and the kinds of faults
are as probable as each other. A comparison is turned around, a sum becomes a difference, `not` goes, a number up to 2
grows by one, two arguments change places. What people read (errors, docstrings, help) and annotations stay as they are.
Each fault is put into a copy of the package. The tests of the files that name the module are asked first, then those of
the room's folder; the first that fails has found it, and so has a run that takes more than --seconds.
"""

import argparse
import ast
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lab.common import ROOT, add

PACKAGE = ROOT / "edgetune"
TESTS = ROOT / "tests"
TURNED = {ast.Lt: ">=", ast.LtE: ">", ast.Gt: "<=", ast.GtE: "<", ast.Eq: "!=", ast.NotEq: "==", ast.In: "not in",
          ast.NotIn: "in", ast.Is: "is not", ast.IsNot: "is"}
OTHER = {ast.Add: "-", ast.Sub: "+", ast.Mult: "+", ast.FloorDiv: "*", ast.Div: "*", ast.Mod: "+"}
EITHER_WAY = {"min", "max", "gcd", "isclose", "allclose"}  # whose arguments may change places
READ = (ast.Raise, ast.JoinedStr, ast.Assert, ast.AnnAssign)  # what holds text for people, or types


class Fault(NamedTuple):
    """In a line of a file, from one column (in bytes) to another, `instead` takes the place of `text`."""

    path: Path
    line: int
    start: int
    end: int
    text: str
    instead: str

    def plant(self, package: Path) -> None:
        place = package / self.path
        lines = place.read_bytes().splitlines(keepends=True)
        old = lines[self.line - 1]
        lines[self.line - 1] = old[:self.start] + self.instead.encode() + old[self.end:]
        place.write_bytes(b"".join(lines))

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text!r} becomes {self.instead!r}"


def code(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those of what people read, of annotations and of decorators."""
    yield node
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns", "decorator_list"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and not isinstance(child, READ):
                    yield from code(child)


def faults_of(path: Path) -> dict[str, list[Fault]]:
    """{kind: all faults that a module could have}"""
    text = (PACKAGE / path).read_bytes()
    lines = text.splitlines()
    found: dict[str, list[Fault]] = {"comparison": [], "sum": [], "not": [], "number": [], "arguments": []}

    def put(kind: str, line: int, last: int, start: int, end: int, old: str, instead: str) -> None:
        """One that is in one line, and whose old text is there."""
        there = lines[line - 1][start:end].decode()
        if line == last and old in there:
            found[kind].append(Fault(path, line, start, end, there, there.replace(old, instead, 1)))

    def between(kind: str, left: ast.expr, right: ast.expr, instead: str) -> None:
        """The operator between two expressions."""
        old = lines[right.lineno - 1][left.end_col_offset:right.col_offset].decode().strip(" ()")
        put(kind, right.lineno, left.end_lineno or 0, left.end_col_offset or 0, right.col_offset, old, instead)

    for node in code(ast.parse(text)):
        match node:
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                between("comparison", left, right, TURNED[type(op)])
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OTHER:
                between("sum", left, right, OTHER[type(op)])
            case ast.UnaryOp(op=ast.Not()):
                put("not", node.lineno, node.lineno, node.col_offset, node.operand.col_offset, "not ", "")
            case ast.Constant(value=int(value)) if value in (0, 1, 2) and not isinstance(value, bool):
                put("number", node.lineno, node.lineno, node.col_offset, node.end_col_offset or 0, str(value),
                    str(value + 1))
            case ast.Call(func=func, args=[first, second, *_]) if ast.unparse(func).split(".")[-1] not in EITHER_WAY:
                one, other = ast.unparse(first), ast.unparse(second)
                if one != other:
                    put("arguments", first.lineno, second.end_lineno or 0, first.col_offset, second.end_col_offset or 0,
                        f"{one}, {other}", f"{other}, {one}")
    return {kind: faults for kind, faults in found.items() if faults}


def room(path: Path) -> str:
    """The folder of edgetune/, or of edgetune/parts/, that has a module; "" for what is in none."""
    *folders, _ = path.parts
    return "/".join(folders[:2 if folders[:1] == ["parts"] else 1])


def draw(count: int, seed: int) -> list[Fault]:
    rng = random.Random(seed)
    rooms: dict[str, dict[Path, dict[str, list[Fault]]]] = {}
    for path in sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")):
        if kinds := faults_of(path):
            rooms.setdefault(room(path), {})[path] = kinds
    drawn: list[Fault] = []
    while len(drawn) < count:
        for modules in list(rooms.values())[:count - len(drawn)]:
            weights = [len((PACKAGE / path).read_bytes().splitlines()) for path in modules]
            kinds = modules[rng.choices(list(modules), weights)[0]]
            drawn.append(rng.choice(kinds[rng.choice(sorted(kinds))]))
    return drawn


def files_for(fault: Fault) -> list[list[str]]:
    """The files of tests that are asked, in two runs: those that name the module, and the others of the room."""
    name = ".".join(("edgetune", *fault.path.with_suffix("").parts)).removesuffix(".__init__")
    above, _, last = name.rpartition(".")
    named = re.compile(rf"\b{re.escape(name)}\b|from {re.escape(above)} import [^\n]*\b{last}\b")
    tests = {path.relative_to(TESTS) for path in TESTS.rglob("test_*.py")}
    first = {path for path in tests if named.search((TESTS / path).read_text("utf-8"))}
    at_home = {path for path in tests if path.parent.as_posix().startswith(room(fault.path) or ".")} if room(
        fault.path) else {path for path in tests if len(path.parts) == 1}
    return [[str(path) for path in sorted(some)] for some in (first, at_home - first) if some]


def is_found(fault: Fault, seconds: float) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(PACKAGE, Path(folder) / "edgetune", ignore=shutil.ignore_patterns("__pycache__"))
        fault.plant(Path(folder) / "edgetune")
        there = os.environ | {"PYTHONPATH": folder}
        for files in files_for(fault):
            words = ["-n", "0", "-x", "-m", "not dev and not slow", "-p", "no:cacheprovider", "--timeout", "100"]
            try:
                done = subprocess.run([sys.executable, "-m", "pytest", *words, *files], cwd=TESTS, env=there,
                                      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=seconds)
            except subprocess.TimeoutExpired:
                return True
            if done.returncode not in (0, 5):  # 5: no test of these files is quick
                return True
    return False


def options(parser: argparse.ArgumentParser) -> None:
    add(parser, count=60, seed=0, seconds=900.0)
    parser.add_argument("--list", action="store_true", help="say which faults are drawn, and plant none")


def main(args: argparse.Namespace) -> None:
    faults = draw(args.count, args.seed)
    found = 0
    for fault in faults:
        says = "drawn" if args.list else "found" if is_found(fault, args.seconds) else "NOT FOUND"
        found += says == "found"
        print(f"{says}: {fault}", flush=True)
    if not args.list:
        print(f"{found} of {len(faults)} faults found")
