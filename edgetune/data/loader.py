"""Rows are tokenised by a separate process, so that the memory of llama.cpp and templates is free when training begins.

That process reads a JSON object of arguments from its first line of stdin. It answers on stdout with a line of JSON,
then the examples of each data set: of every field of Example that is an array the lengths (int64) and the values of all
examples, one after another; so of a field of several arrays, of which the JSON has the counts; other fields are in the
JSON, and those that no example sets are nowhere. A CRC-32 of everything before it ends the answer. An answer that is
incomplete, or comes from a process that failed, is refused.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, fields, replace
from importlib import import_module
from itertools import accumulate, islice
from pathlib import Path
from types import ModuleType
from typing import IO, Any, Protocol, cast

import numpy as np

from .. import errors
from ..errors import BudgetError, EdgetuneError
from ..python_child import child, die_with, how_it_ended, limit_memory, private_memory, resident_memory, unlimit_memory
from . import rows as supervised_rows
from .dataset import Dataset
from .files import STDIN
from .formats import Columns
from .packing import Example
from .rows import Row, RowParser

NONE = "none"  # as the name of a file of held-out rows: all rows are learned
ROWS_LIMIT = 1 << 20  # characters of the held-out rows, as JSON, that come with their examples: memory holds them
_FACTS = ("rows", "kind", "truncated", "skipped", "digest", "schema", "system")
_LEAST = 16 << 20  # bytes that it may use whatever the budget; the plan decides whether training fits
_SLACK = 1.2  # of an estimate by the rows that were read


class LoadOptions(Protocol):
    """The options of a training that say how its rows are read."""

    @property
    def row_limit(self) -> int: ...
    @property
    def system(self) -> str: ...
    @property
    def overflow(self) -> str: ...
    @property
    def markup(self) -> str: ...
    @property
    def prompt_column(self) -> str: ...
    @property
    def completion_column(self) -> str: ...
    def memory_here(self) -> int: ...


class Cut(Exception):
    """The answer is incomplete or damaged."""


def load_run(model: Path, data: Path, held_out: str | Path | None, config: LoadOptions,
             parser: RowParser) -> tuple[Dataset, Dataset | None]:
    """The rows that a run learns and those that it holds out: a file of them, NONE, or by default a tenth of `data`.

    Raises what `load` raises.
    """
    is_none = str(held_out) == NONE
    paths = (data, None if held_out is None or is_none else Path(held_out))
    rows, held = load(model, paths, config, parser, hold_out=not is_none)
    assert rows
    return rows, held


def load(model: Path, paths: Sequence[Path | None], config: LoadOptions,
         parser: RowParser = supervised_rows, hold_out: bool = False, learnable: bool = True) -> list[Dataset | None]:
    """`dataset.load` of each path with the options of config, None for None, by the tokenizer of the GGUF `model`.

    parser: a module, which the process imports. The process may use the memory that config gives to training, less what
    this one has, and ends with the calling thread. Check the GGUF first: llama.cpp does not validate it.

    The result has the examples of the rows, not the rows. hold_out: paths are (data, held-out); where the second is
    None, rows of the first are held out (`dataset.load_divided`), None if there are too few. The second set then has
    its rows too, for whoever grades answers: all of them, or the first that fit into ROWS_LIMIT.

    learnable: an empty answer is refused, where nobody has looked at the rows before.

    Raises the errors of Tokenizer and `dataset.load`, BudgetError where the rows take more memory, and EdgetuneError
    where the process was ended early.
    """
    asked = {"model": str(model), "paths": [path and str(path) for path in paths], "markup": config.markup,
             "options": {"max_length": config.row_limit, "system": config.system or None, "overflow": config.overflow},
             "columns": [config.prompt_column, config.completion_column],
             "parser": cast(ModuleType, parser).__name__, "hold_out": hold_out, "learnable": learnable,
             "memory": config.memory_here(), "parent": os.getpid()}
    with _started(asked, Path(STDIN) in paths) as process:
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(json.dumps(asked).encode() + b"\n")
            process.stdin.close()
            sets = receive(process.stdout)
        except (Cut, BrokenPipeError):
            process.kill()
            what = f"the process that tokenises the rows was ended before it was done ({how_it_ended(process.wait())})"
            raise EdgetuneError(what, "free memory, raise --memory or give fewer rows") from None
        except BaseException:
            process.kill()
            raise
        if process.wait() != 0:
            what = f"the process that tokenises the rows failed ({how_it_ended(process.returncode)})"
            raise EdgetuneError(what, "what it wrote above says why")
    return sets


def _started(asked: dict[str, Any], reads_stdin: bool) -> subprocess.Popen[bytes]:
    """The process; where rows come from standard input, it inherits this process's as another descriptor."""
    lent = [os.dup(0)] if reads_stdin else []
    asked["stdin"] = lent
    try:
        return subprocess.Popen(**child(__name__), stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=lent)
    finally:
        for descriptor in lent:
            os.close(descriptor)


# ---- what goes over the pipe -----------------------------------------------------------------------------------------


def send(pipe: IO[bytes], sets: Sequence[Dataset | None]) -> None:
    """The sets as `receive` reads them."""
    head = json.dumps({"sets": [data and _facts(data) for data in sets]}).encode() + b"\n"
    checked = zlib.crc32(head)
    pipe.write(head)
    for data in sets:
        for piece in _pieces(data.examples) if data else ():
            checked = zlib.crc32(piece, checked)
            pipe.write(piece)
    pipe.write(checked.to_bytes(4, "little"))


def send_error(pipe: IO[bytes], error: EdgetuneError) -> None:
    """Sends an error, which `receive` raises."""
    more = [error.needed] if isinstance(error, BudgetError) else []
    facts = {"error": type(error).__name__, "told": [error.what, error.hint, *more]}
    head = json.dumps(facts).encode() + b"\n"
    pipe.write(head + zlib.crc32(head).to_bytes(4, "little"))


def receive(pipe: IO[bytes]) -> list[Dataset | None]:
    """The sets that were sent; their examples are views of a few arrays. Raises the error that was sent, or Cut."""
    head = pipe.readline()
    reader = _Checked(pipe, zlib.crc32(head))
    if not head.endswith(b"\n"):
        raise Cut
    try:
        answer = json.loads(head)
    except ValueError:
        raise Cut from None
    sets = [facts and _columns_of(reader, facts) for facts in answer.get("sets", ())]
    reader.end()
    if "error" in answer:
        raise getattr(errors, answer["error"])(*answer["told"])
    return [facts and _dataset(columns, facts) for columns, facts in zip(sets, answer["sets"], strict=True)]


def _facts(data: Dataset) -> dict[str, Any]:
    facts: dict[str, Any] = {name: getattr(data, name) for name in _FACTS}
    facts["examples"] = len(data.examples)
    facts["arrays"] = {}
    facts["counts"] = {}
    facts["values"] = {}
    for name, values in _columns(data.examples):
        arrays = _arrays(values)
        if arrays is None:
            facts["values"][name] = values
        else:
            facts["arrays"][name] = [arrays[0].dtype.str, sum(array.size for array in arrays)]
            if isinstance(values[0], tuple):
                facts["counts"][name] = [len(value) for value in values]
    return facts


def _columns(examples: Sequence[Example]) -> Iterator[tuple[str, list[Any]]]:
    """(name, values of all examples) of each field that is not at its default in all of them."""
    for field in fields(Example):
        values = [getattr(example, field.name) for example in examples]
        if not all(_is_default(field, value) for value in values):
            yield field.name, values


def _is_default(field: Field[Any], value: Any) -> bool:
    """An array is at its default where it is empty and may be."""
    if isinstance(value, np.ndarray):
        return not value.size and field.default_factory is not MISSING
    return bool(value == field.default)


def _arrays(values: list[Any]) -> list[np.ndarray[Any, Any]] | None:
    """Parts of a field that is an array, or several; None for another."""
    if isinstance(values[0], tuple):
        return [array for value in values for array in value]
    return values if isinstance(values[0], np.ndarray) else None


def _pieces(examples: Sequence[Example]) -> Iterator[bytes]:
    for _, values in _columns(examples):
        arrays = _arrays(values) or ()
        if arrays:
            yield np.array([array.size for array in arrays], np.int64).tobytes()
        for array in arrays:
            yield array.tobytes()


def _columns_of(reader: _Checked, facts: dict[str, Any]) -> dict[str, Any]:
    """(where each value ends, all of them) of each field that is an array."""
    columns = {}
    for name, (kind, size) in facts["arrays"].items():
        counts = facts["counts"].get(name)
        ends = np.cumsum(reader.array(sum(counts) if counts else facts["examples"], "<i8"))
        if ends[-1] != size:
            raise Cut
        columns[name] = ends, reader.array(size, kind)
    return columns


def _dataset(received: dict[str, Any], facts: dict[str, Any]) -> Dataset:
    """The examples, made when the process that sent them has freed its own."""
    columns: dict[str, Any] = dict(facts["values"])
    for name, (ends, values) in received.items():
        counts = facts["counts"].get(name)
        arrays = iter(np.split(values, ends[:-1]))
        columns[name] = [tuple(islice(arrays, count)) for count in counts] if counts else [*arrays]
    examples = [Example(**{name: column[i] for name, column in columns.items()}) for i in range(facts["examples"])]
    return Dataset(examples, **{name: facts[name] for name in _FACTS})


class _Checked:
    """Reads exact amounts, and updates the checksum of all of it."""

    def __init__(self, pipe: IO[bytes], checked: int) -> None:
        self._pipe = pipe
        self._checked = checked

    def array(self, n: int, kind: str) -> Any:
        array: Any = np.empty(n, kind)
        rest = memoryview(array).cast("B") if n else memoryview(b"")
        while rest:
            count = self._pipe.readinto(rest)  # type: ignore[attr-defined]
            if not count:
                raise Cut
            self._checked = zlib.crc32(rest[:count], self._checked)
            rest = rest[count:]
        return array

    def end(self) -> None:
        if self._pipe.read(5) != self._checked.to_bytes(4, "little"):
            raise Cut


# ---- the process -----------------------------------------------------------------------------------------------------


def main() -> None:
    try:
        _answer()
    except (KeyboardInterrupt, BrokenPipeError):
        os._exit(130)


def _answer() -> None:
    asked = json.loads(sys.stdin.buffer.readline())
    die_with(asked["parent"])
    for descriptor in asked["stdin"]:
        os.dup2(descriptor, 0)
    pipe = sys.stdout.buffer
    try:
        sets = _tokenized(asked)
    except EdgetuneError as error:
        send_error(pipe, error)
    else:
        send(pipe, sets)
    pipe.flush()
    os._exit(0)  # at once: the parent makes examples, and has the memory of both


def _tokenized(asked: dict[str, Any]) -> list[Dataset | None]:
    from ..llamacpp.tokenizer import Tokenizer
    tokenizer = Tokenizer(asked["model"])
    tokenizer.markup = asked["markup"]
    began = resident_memory()
    of_parent = private_memory(asked["parent"])
    try:
        limit_memory(asked["memory"] - of_parent, _LEAST)
        sets = _sets(asked["paths"], asked["hold_out"], tokenizer=tokenizer,
                     parser=cast(RowParser, import_module(asked["parser"])), columns=Columns(*asked["columns"]),
                     learnable=asked["learnable"], **asked["options"])
        grown = resident_memory() - began + _sent_bytes(sets)
        if began + grown > max(asked["memory"] - of_parent, began + _LEAST):
            raise MemoryError
        unlimit_memory()
    except MemoryError as error:
        unlimit_memory()
        share, = error.args or (1.0,)  # of the bytes of the file that were read
        grown = max(resident_memory() - began, asked["memory"] - of_parent - began, _LEAST)
        needed = of_parent + began + int(_SLACK * grown / share)
        what = f"the rows take more than the {asked['memory'] >> 20} MiB of memory that training may have"
        raise BudgetError(what, f"give fewer rows, or --memory {-(-needed >> 20)}M", needed) from None
    return sets


def _sent_bytes(sets: Sequence[Dataset | None]) -> int:
    """Bytes of the arrays, which the parent has, too, before this process ends."""
    return sum(array.nbytes for data in sets if data for _, values in _columns(data.examples)
               for array in _arrays(values) or ())


def _sets(paths: Sequence[str | None], hold_out: bool, **options: Any) -> list[Dataset | None]:
    """The sets with the rows that go over."""
    from .dataset import load, load_divided
    if not hold_out:
        return [replace(load(path, **options), rows=[]) if path else None for path in paths]
    data, held_out = paths
    assert data
    learned, held = (load(data, **options), load(held_out, **options)) if held_out else load_divided(data, **options)
    return [replace(learned, rows=[]), held and replace(held, rows=_first(held.rows))]


def _first(rows: Sequence[Row]) -> list[Row]:
    """The first rows, together of at most ROWS_LIMIT characters as JSON."""
    sizes = accumulate(len(json.dumps(row)) for row in rows)
    return [row for row, size in zip(rows, sizes, strict=True) if size <= ROWS_LIMIT]
