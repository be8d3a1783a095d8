"""Rows tokenised by a process of its own, so that what llama.cpp and templates take is gone when training begins.

It reads a JSON object of arguments from stdin and answers on stdout: a line of JSON, then of each data set the lengths,
tokens (int32) and weights (float32) of all examples, one after another.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from . import errors
from .child import child
from .data import Dataset
from .packing import Example

_FACTS = ("kind", "truncated", "skipped", "digest")


def load(model: Path, paths: Sequence[Path | None], **options: Any) -> list[Dataset | None]:
    """data.load(path, **options) for each path, None for None, by the tokenizer of the GGUF `model`.

    The rows themselves do not come back, only their examples. Check the GGUF first: llama.cpp trusts what it reads.
    Raises what Tokenizer and data.load raise.
    """
    asked = {"model": str(model), "paths": [path and str(path) for path in paths], "options": options}
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
    """Examples are views of one array."""

    def array(n: int, kind: type) -> np.ndarray:
        return np.frombuffer(pipe.read(4 * n), kind)

    lengths = array(facts["examples"], np.int32)
    cuts = np.cumsum(lengths)[:-1]
    tokens, weights = (np.split(array(int(lengths.sum()), kind), cuts) for kind in (np.int32, np.float32))
    examples = [Example(*both) for both in zip(tokens, weights, strict=True)]
    return Dataset(examples, [], **{name: facts[name] for name in _FACTS})


def _send(pipe: IO[bytes], examples: list[Example]) -> None:
    pipe.write(np.array([e.tokens.size for e in examples], np.int32).tobytes())
    for name in ("tokens", "weights"):
        for e in examples:
            pipe.write(getattr(e, name).tobytes())


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
        sets = [path and load(path, tokenizer, **asked["options"]) for path in asked["paths"]]
    except errors.EdgetuneError as error:
        pipe.write(json.dumps({"error": type(error).__name__, "what": error.what, "hint": error.hint}).encode())
        return
    facts = [s and {name: getattr(s, name) for name in _FACTS} | {"examples": len(s.examples)} for s in sets]
    pipe.write(json.dumps({"sets": facts}).encode() + b"\n")
    for s in sets:
        if s:
            _send(pipe, s.examples)
