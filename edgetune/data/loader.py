"""Rows are tokenised by a separate process, so that the memory of llama.cpp and templates is free when training begins.

That process reads a JSON object of arguments from the first line of its stdin, and answers on stdout. An answer that is
incomplete, or comes from a process that failed, is refused.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from importlib import import_module
from itertools import accumulate, islice
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import numpy as np

from ..errors import BudgetError, EdgetuneError, size_text
from ..python_child import (
    child,
    die_with,
    how_it_ended,
    limit_memory,
    memory_beside,
    note_together,
    peak_together,
    resident_memory,
    unlimit_memory,
)
from . import rows as supervised_rows
from .dataset import Dataset
from .formats import Columns
from .packing import Example
from .parts import STDIN, parts_of
from .rows import Row, RowParser

if TYPE_CHECKING:
    from ..llamacpp.tokenizers import AnyTokenizer

NONE = "none"  # as the name of a file of held-out rows: all rows are learned
ROWS_LIMIT = 1 << 20  # characters of the held-out rows, as JSON, that come with their examples: memory holds them
_LEAST = 16 << 20  # bytes that it may use whatever the budget; the plan decides whether training fits
_SLACK = 1.2  # of an estimate by the rows that were read

Array = np.ndarray[Any, Any]


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
    def thinking(self) -> str: ...
    @property
    def around(self) -> tuple[str, str, str] | None:
        """What is put around rows in place of a system message: a module, its function, and the argument."""
        ...
    @property
    def prompt_column(self) -> str: ...
    @property
    def completion_column(self) -> str: ...
    def memory_here(self) -> int: ...


def load_run(model: Path, data: Path, held_out: str | Path | None, config: LoadOptions,
             parser: RowParser, least: int = 1) -> tuple[Dataset, Dataset | None]:
    """The rows that a run learns and those that it holds out: a file of them, NONE, or by default a tenth of `data`, if
    that is at least `least` rows.

    Raises what `load` raises.
    """
    is_none = str(held_out) == NONE
    paths = (data, None if held_out is None or is_none else Path(held_out))
    rows, held = load(model, paths, config, parser, hold_out=0 if is_none else least)
    assert rows
    return rows, held


def load(model: Path, paths: Sequence[Path | None], config: LoadOptions,
         parser: RowParser = supervised_rows, hold_out: int = 0, learnable: bool = True) -> list[Dataset | None]:
    """`dataset.load` of each path with the options of config, None for None, by the tokenizer of the GGUF `model`.

    parser: a module, which the process imports. The process may use the memory that config gives to training, less what
    this one has, and ends with the calling thread. Check the GGUF first: llama.cpp does not validate it.

    The result has the examples of the rows, not the rows. hold_out: if not 0, paths are (data, held-out); where the
    second is None, rows of the first are held out (`dataset.load_divided`), None if they are fewer than this. The
    second set then has its rows too, for whoever grades answers: all of them, or the first that fit into ROWS_LIMIT.

    learnable: an empty answer is refused, where nobody has looked at the rows before.

    Raises the errors of Tokenizer and `dataset.load`, BudgetError where the rows take more memory, and EdgetuneError
    where the process was ended early.
    """
    asked = {"model": str(model), "paths": [path and str(path) for path in paths], "markup": config.markup,
             "thinking": config.thinking,
             "options": {"max_length": config.row_limit, "system": config.system or None, "overflow": config.overflow},
             "around": config.around, "columns": [config.prompt_column, config.completion_column],
             "parser": cast(ModuleType, parser).__name__, "hold_out": hold_out, "learnable": learnable,
             "memory": config.memory_here(), "parent": os.getpid()}
    for path in filter(None, paths):
        parts_of(path)  # downloads here, not within the memory of the process
    return _by_process(asked, Path(STDIN) in paths)


def _by_process(asked: dict[str, Any], reads_stdin: bool) -> list[Dataset | None]:
    with _started(asked, reads_stdin) as process:
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(json.dumps(asked).encode() + b"\n")
            process.stdin.close()
            sets = receive(process.stdout)
            note_together(pickle.load(process.stdout))
        except (EOFError, pickle.UnpicklingError, BrokenPipeError):
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


class ArrayLayout(NamedTuple):
    """A field's arrays, one after another. counts: arrays of each example, None where each has one."""

    kind: str
    sizes: list[int]
    counts: list[int] | None


def send(pipe: IO[bytes], sets: Sequence[Dataset | None]) -> None:
    """Writes the sets as `receive` reads them: a pickle of all but arrays, then these, field by field."""
    arrays: list[Array] = []
    heads = []
    for data in sets:
        columns = {}
        for name, values in _columns(data.examples) if data else ():
            columns[name], parts = _laid_out(values)
            arrays += parts
        heads.append(data and (replace(data, examples=[]), columns))
    pickle.dump(heads, pipe)
    pipe.writelines(array.data for array in arrays)


def send_error(pipe: IO[bytes], error: EdgetuneError) -> None:
    """Sends an error, which `receive` raises."""
    more = [error.needed] if isinstance(error, BudgetError) else []
    pickle.dump((type(error), [error.what, error.hint, *more]), pipe)


def receive(pipe: IO[bytes]) -> list[Dataset | None]:
    """The sets that were sent; their examples are views of a few arrays, made when all of these are here.

    Raises the error that was sent, and EOFError or UnpicklingError where what was sent is incomplete.
    """
    heads = pickle.load(pipe)
    if isinstance(heads, tuple):
        error, told = heads
        raise error(*told)
    received = [head and [(name, column, _read(pipe, column)) for name, column in head[1].items()] for head in heads]
    return [head and replace(head[0], examples=_examples(columns))
            for head, columns in zip(heads, received, strict=True)]


def _columns(examples: Sequence[Example]) -> Iterator[tuple[str, list[Any]]]:
    """(name, values of all examples) of each field that one of them sets; an empty array is not set."""
    for field in fields(Example):
        values = [getattr(example, field.name) for example in examples]
        if any(value.size if isinstance(value, np.ndarray) else value != field.default for value in values):
            yield field.name, values


def _laid_out(values: list[Any]) -> tuple[ArrayLayout | list[Any], list[Array]]:
    """A field of all examples as the head has it, and the arrays that follow the head."""
    if isinstance(values[0], np.ndarray):
        return ArrayLayout(values[0].dtype.str, [array.size for array in values], None), values
    if isinstance(values[0], tuple):
        parts = [array for value in values for array in value]
        return ArrayLayout(parts[0].dtype.str, [array.size for array in parts], [len(value) for value in values]), parts
    return values, []


def _read(pipe: IO[bytes], column: ArrayLayout | list[Any]) -> Array | None:
    if not isinstance(column, ArrayLayout):
        return None
    values = np.empty(sum(column.sizes), column.kind)
    if pipe.readinto(values) < values.nbytes:  # type: ignore[attr-defined]
        raise EOFError
    return values


def _examples(columns: list[tuple[str, Any, Array | None]]) -> list[Example]:
    values_of: dict[str, list[Any]] = {}
    for name, column, values in columns:
        if values is None:
            values_of[name] = column
            continue
        arrays = iter(np.split(values, np.cumsum(column.sizes)[:-1]))
        values_of[name] = [tuple(islice(arrays, count)) for count in column.counts] if column.counts else [*arrays]
    return [Example(**dict(zip(values_of, each, strict=True))) for each in zip(*values_of.values(), strict=True)]


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
        pickle.dump(peak_together(asked["parent"]), pipe)  # with what the parent was sent
    pipe.flush()
    os._exit(0)  # at once: the parent makes examples, and has the memory of both


def _tokenized(asked: dict[str, Any]) -> list[Dataset | None]:
    from ..llamacpp.tokenizers import open_tokenizer
    tokenizer = open_tokenizer(asked["model"], asked["markup"], asked["thinking"])
    began = resident_memory()
    of_parent = memory_beside(asked["parent"])
    try:
        limit_memory(asked["memory"] - of_parent, _LEAST)
        sets = _sets(asked, tokenizer)
        grown = resident_memory() - began + _sent_bytes(sets)
        if began + grown > max(asked["memory"] - of_parent, began + _LEAST):
            raise MemoryError
        unlimit_memory()
    except MemoryError as error:
        unlimit_memory()
        share, = error.args or (1.0,)  # of the bytes of the file that were read
        grown = max(resident_memory() - began, asked["memory"] - of_parent - began, _LEAST)
        needed = of_parent + began + int(_SLACK * grown / share)
        what = f"the rows take more than the {size_text(asked['memory'])} of memory that training may have"
        raise BudgetError(what, f"give fewer rows, or --memory {-(-needed >> 20)}M", needed) from None
    return sets


def _sent_bytes(sets: Sequence[Dataset | None]) -> int:
    """Bytes of the arrays, which the parent has, too, before this process ends."""
    return sum(array.nbytes for data in sets if data for _, values in _columns(data.examples)
               for array in _laid_out(values)[1])


def _sets(asked: dict[str, Any], tokenizer: AnyTokenizer) -> list[Dataset | None]:
    """The sets with the rows that go over."""
    from .dataset import load, load_divided
    options = {"tokenizer": tokenizer, "parser": import_module(asked["parser"]), "learnable": asked["learnable"],
               "columns": Columns(*asked["columns"]), **asked["options"]}
    if asked["around"]:
        module, function, argument = asked["around"]
        options["system"] = getattr(import_module(module), function)(argument)
    if not asked["hold_out"]:
        return [replace(load(path, **options), rows=[]) if path else None for path in asked["paths"]]
    data, held_out = asked["paths"]
    assert data
    learned, held = (load(data, **options), load(held_out, **options)) if held_out else (
        load_divided(data, least=asked["hold_out"], **options))
    return [replace(learned, rows=[]), held and replace(held, rows=_first(held.rows))]


def _first(rows: Sequence[Row]) -> list[Row]:
    """The first rows, together of at most ROWS_LIMIT characters as JSON."""
    sizes = accumulate(len(json.dumps(row)) for row in rows)
    return [row for row, size in zip(rows, sizes, strict=True) if size <= ROWS_LIMIT]
