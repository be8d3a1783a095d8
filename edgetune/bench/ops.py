"""The ops of a backend while they are measured: what a call computes, and a clock around all of them.

Letters as in `backend`. An op is told by its name and its arguments' names, so that new ops need nothing here.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import numpy as np

from ..backends.base import OPS, Backend, Ops
from ..formats.gguf import FORMATS


def arguments(name: str) -> list[str]:
    """What the arguments of an op are called."""
    return list(inspect.signature(getattr(Ops, name)).parameters)[1:]


def flops(name: str, a: dict[str, Any]) -> int:
    """Counts the FLOP of a call, a multiplication and an addition as 2; 0 where memory is the limit.

    A frozen product that adds its adapter's is counted without it. head_backward makes the logits a second time.
    """
    match name:
        case "matmul_forward":
            return 2 * int(a["out"].size) * int(a["inp"].shape[1])
        case "matmul_backward":
            return 2 * int(a["dinp"].size) * int(a["dout"].shape[1])
        case "matmul_dweight":
            return 2 * int(a["dw"].size) * int(a["dout"].shape[0])
        case "head_forward" | "head_backward" | "head_sample" | "head_top":
            begin, end = a.get("part", (0, -1))
            if end < 0:
                end = a["w"].nbytes // FORMATS[a["fmt"]].size * FORMATS[a["fmt"]].block // a["h"].shape[1]
            both = 2 if name == "head_backward" else 1
            return 2 * both * int(a["h"].size) * int(end - begin)
        case "attention_forward" | "attention_backward":
            products = 2 if name == "attention_forward" else 5
            return 2 * products * _pairs(a) * int(a["q"].shape[1] * a["q"].shape[2])
    return 0


def _pairs(a: dict[str, Any]) -> int:
    """The pairs of a query and a token that it sees, of a call of attention."""
    queries = slice(-len(a["q"]), None)
    before = a["position"][queries]
    after = np.zeros_like(before)
    if (begin := a.get("begin")) is not None:
        after = (a["end"] - begin)[queries] - 1 - before
    if window := a.get("window", 0):
        before, after = np.minimum(before, window - 1), np.minimum(after, window - 1)
    return int((before + after + 1).sum())


@dataclass
class Spent:
    """Over all calls of an op."""

    calls: int = 0
    seconds: float = 0.0
    flops: int = 0


@contextmanager
def clocked(ops: Backend) -> Iterator[dict[str, Spent]]:
    """While it lasts, every op is timed: name, with the format of its weights if it has any -> Spent."""
    spent: dict[str, Spent] = {}
    for name in OPS:
        setattr(ops, name, _clocked(name, getattr(ops, name), spent))
    try:
        yield spent
    finally:
        for name in OPS:
            delattr(ops, name)


def _clocked(name: str, function: Callable[..., Any], spent: dict[str, Spent]) -> Callable[..., Any]:
    parameters = arguments(name)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(parameters, args, strict=False)) | kwargs
        began = time.perf_counter()
        result = function(*args, **kwargs)
        seconds = time.perf_counter() - began
        op = spent.setdefault(f"{name} {given['fmt']}" if "fmt" in given else name, Spent())
        op.calls += 1
        op.seconds += seconds
        op.flops += flops(name, given)
        return result

    return call
