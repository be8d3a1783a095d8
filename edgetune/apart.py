"""Rows tokenised by a process of its own, so that what llama.cpp and templates take is gone when training begins.

It reads a JSON object of arguments from stdin and answers on stdout: a line of JSON, then of each data set the lengths
(int32) of all examples, and of each field of an Example its values, one example after another.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import IO, Any, cast

import numpy as np

from . import errors
from . import rows as supervised_rows
from .child import child
from .data import Dataset
from .packing import Example
from .rows import RowParser

_FACTS = ("kind", "truncated", "skipped", "digest")


def load(model: Path, paths: Sequence[Path | None], *, parser: RowParser = supervised_rows,
         **options: Any) -> list[Dataset | None]:
    """data.load(path, **options) for each path, None for None, by the tokenizer of the GGUF `model`.

    parser: a module, which the process imports. The rows themselves do not come back, only their examples. Check the
    GGUF first: llama.cpp trusts what it reads.
    Raises what Tokenizer and data.load raise.
    """
    asked = {"model": str(model), "paths": [path and str(path) for path in paths], "options": options,
             "parser": cast(ModuleType, parser).__name__}
    with subprocess.Popen(**child(__name__), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps(asked).encode())
        process.stdin.close()
        answer = json.loads(process.stdout.readline() or '{"error": "EdgetuneError", "what": "tokenising was stopped"}')
        if "error" in answer:
            raise getattr(errors, answer["error"])(answer["what"], answer.get("hint", ""))
        return [facts and _receive(process.stdout, facts) for facts in answer["sets"]]


def _receive(pipe: IO[bytes], facts: dict[str, Any]) -> Dataset:
    """Arrays of examples are views of one array."""

    def array(n: int, kind: str) -> np.ndarray:
        return np.frombuffer(pipe.read(n * np.dtype(kind).itemsize), kind)

    lengths = array(facts["examples"], "int32")
    cuts = np.cumsum(lengths)[:-1]
    columns: dict[str, list[Any]] = {}
    for name, kind in facts["arrays"].items():
        columns[name] = np.split(array(int(lengths.sum()), kind), cuts)
    for name, kind in facts["numbers"].items():
        columns[name] = array(lengths.size, kind).tolist()
    examples = [Example(**dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)]
    return Dataset(examples, [], **{name: facts[name] for name in _FACTS})


def _facts(dataset: Dataset) -> dict[str, Any]:
    """What `_receive` must know: of the data set, and the type of each field of its examples."""
    values = {spec.name: getattr(dataset.examples[0], spec.name) for spec in fields(Example)}
    return {**{name: getattr(dataset, name) for name in _FACTS}, "examples": len(dataset.examples),
            "arrays": {name: str(value.dtype) for name, value in values.items() if isinstance(value, np.ndarray)},
            "numbers": {name: str(np.asarray(value).dtype) for name, value in values.items()
                        if not isinstance(value, np.ndarray)}}


def _send(pipe: IO[bytes], dataset: Dataset, facts: dict[str, Any]) -> None:
    examples = dataset.examples
    pipe.write(np.array([e.tokens.size for e in examples], np.int32).tobytes())
    for name in facts["arrays"]:
        for e in examples:
            pipe.write(getattr(e, name).tobytes())
    for name, kind in facts["numbers"].items():
        pipe.write(np.array([getattr(e, name) for e in examples], kind).tobytes())


def main() -> None:
    try:
        _answer()
    except (KeyboardInterrupt, BrokenPipeError):
        os._exit(130)


def _answer() -> None:
    from .data import load
    from .tokens import Tokenizer
    asked = json.load(sys.stdin)
    pipe = sys.stdout.buffer
    try:
        tokenizer = Tokenizer(asked["model"])
        parser = cast(RowParser, import_module(asked["parser"]))
        sets = [path and load(path, tokenizer, parser=parser, **asked["options"]) for path in asked["paths"]]
    except errors.EdgetuneError as error:
        pipe.write(json.dumps({"error": type(error).__name__, "what": error.what, "hint": error.hint}).encode())
        return
    facts = [_facts(s) if s else None for s in sets]
    pipe.write(json.dumps({"sets": facts}).encode() + b"\n")
    for s, known in zip(sets, facts, strict=True):
        if s and known:
            _send(pipe, s, known)
