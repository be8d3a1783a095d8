"""The least time of a training step on a GPU, by kind of kernel, on paper: a roofline (Williams et al. 2009).

The step is made by the network's own passes, in an arena of the plan's buffers, on a backend that computes nothing and
notes for each call what it would compute and move. So nothing is counted that a step does not do, whatever the network
and the options. A kernel reads its inputs once, writes its outputs once, and takes as long as the slower of the two:
computing at the GPU's peak, or moving at its memory's bandwidth. Not counted: unpacking the weights, launches, what the
memory does not reach of its bandwidth, work space that fits a cache. A real step takes longer.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import DTypeLike

from ..backends.arena import Arena
from ..backends.base import OPS, Array, Backend, Recorded
from ..data.packing import collate
from ..formats.gguf import FORMATS
from ..machine.gpu import Gpu
from ..models.base import Network
from ..models.linear import trained_shapes
from ..models.stream import NORESERVE
from ..training import optim
from ..training.config import TrainConfig
from ..training.length import batch_of, peak_rate
from ..training.plan import Plan
from .ops import arguments, flops
from .train import random_rows

KINDS = ("products forward", "products backward", "LoRA", "attention forward", "attention backward", "head", "norms",
         "elementwise", "optimizer")
# Of an op, what it reads and writes in place; and, where it accumulates, its first argument.
_IN_PLACE = {"matmul_dweight": ("dw",), "rope": ("x",), "add_bias": ("x",), "add": ("x",), "scale": ("x",),
             "adamw": ("param", "m", "v"), "adamw8": ("param", "moments")}
_WORK_SPACE = ("logits", "e", "state", "delta")
_OPTIMIZER = ("adamw", "adamw8", "sum_squares", "scale")


@dataclass(frozen=True)
class Call:
    """One kernel. is_exact: computed in float, without tensor cores."""

    kind: str
    flops: int
    nbytes: int
    is_exact: bool

    def seconds(self, gpu: Gpu) -> tuple[float, float]:
        """To compute at the peak, and to move at the memory's bandwidth."""
        peak = gpu.float_flops if self.is_exact else gpu.tensor_flops
        return self.flops / peak, self.nbytes / (gpu.memory_gb_s * 1e9)


@dataclass(frozen=True)
class Bound:
    """All kernels of a kind in a step, in the order of KINDS. bound: "computing" or "memory", by the greater part of
    its seconds.
    """

    kind: str
    calls: int
    flops: int
    nbytes: int
    seconds: float
    bound: str


class Counting:
    """A backend whose ops compute nothing; `calls` notes them."""

    isa = "none"
    threads = 1
    working = 1
    scratch_bytes = 0
    is_paged = True
    records = False

    def __init__(self) -> None:
        self.calls: list[Call] = []
        for name in OPS:
            setattr(self, name, partial(self._note, name, arguments(name)))

    def _note(self, name: str, parameters: Sequence[str], *args: Any, **kwargs: Any) -> float:
        given = dict(zip(parameters, args, strict=False)) | kwargs
        self.calls.append(Call(kind_of(name, given), flops(name, given) + _low_rank_flops(given), moved(name, given),
                               given.get("precision", "exact") == "exact"))
        return 0.0  # what sum_squares returns

    def products(self, _precision: str) -> str:
        return "none"

    def allocate(self, nbytes: int) -> Untouched:
        return Untouched(nbytes)

    def upload(self, mapped: Array) -> Array:
        return mapped

    def place(self, array: Array) -> Array:
        return array

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> Array:
        return np.empty(shape, dtype)

    def record(self, ops: Recorded) -> Recorded:
        return ops

    def synchronize(self) -> None:
        """Nothing runs."""


class Untouched:
    """Memory that takes none until it is written."""

    def __init__(self, nbytes: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
        self.array: Array = np.frombuffer(mmap.mmap(-1, max(nbytes, 1), flags), np.uint8)

    def discard(self, begin: int) -> None:
        """Nothing is there to release."""


def kind_of(name: str, given: dict[str, Any]) -> str:
    """One of KINDS. LoRA's matrices are float arrays, frozen weights the bytes of a file."""
    if name.startswith("matmul"):
        frozen = "w" in given and given["w"].dtype == np.uint8
        return f"products {name.removeprefix('matmul_')}" if frozen else "LoRA"
    if name.startswith(("attention", "head")):
        return "head" if name.startswith("head") else name.replace("_", " ")
    if name.startswith("rmsnorm"):
        return "norms"
    return "optimizer" if name in _OPTIMIZER else "elementwise"


def moved(name: str, given: dict[str, Any]) -> int:
    """Bytes of a call: each array once, twice where it is read and written; of weights the rows that are used."""
    twice = _IN_PLACE.get(name, ())
    if given.get("accumulate"):
        twice = (next(iter(given)),)
    total = 0
    for argument, value in given.items():
        arrays = [part for part in (value if isinstance(value, tuple) else (value,)) if isinstance(part, np.ndarray)]
        if argument == "w" and name == "embed":
            total += given["tokens"].size * _row_bytes(given["fmt"], given["out"].shape[1])
        elif argument == "w" and "part" in given:
            begin, end = given["part"]
            total += (end - begin) * _row_bytes(given["fmt"], given["h"].shape[1])
        elif argument not in _WORK_SPACE:
            total += sum(array.nbytes for array in arrays) * (2 if argument in twice else 1)
    return total


def _row_bytes(fmt: str, width: int) -> int:
    return width // FORMATS[fmt].block * FORMATS[fmt].size


def _low_rank_flops(given: dict[str, Any]) -> int:
    """Of LoRA's part of a frozen product, which `flops` leaves out."""
    x, _ = given.get("low_rank", (None, None))
    return 0 if x is None else 2 * int(next(iter(given.values())).size) * int(x.shape[1])


def step_calls(network: Network, plan: Plan, config: TrainConfig, needs_logp: bool = False) -> list[Call]:
    """The kernels of a step, on a batch of rows of the plan's greatest length, all but the first token supervised.

    needs_logp: whether the objective asks for log-probabilities before the gradient. Weights that are not in memory are
    taken to be.
    """
    run = plan.run
    counting = Counting()
    ops = cast(Backend, counting)
    arena = Arena(plan.buffers, ops.allocate)
    passes = network.build(run, ops, arena, 0, config.seed)
    rows = random_rows(network.structure.n_vocab, batch_of(config, 0), run.max_length, config.seed)
    at_once = run.max_tokens // run.max_length
    passes.adapter.before_step(config.seed)
    for begin in range(0, len(rows), at_once):
        batch = collate(rows[begin:begin + at_once], share=False)
        passes.forward(batch, keep=True)
        if needs_logp:
            passes.head_forward(batch)
        passes.backward(batch, np.ones(batch.supervised.size, np.float32))
    grad = arena.flat("dlora")
    optim.clip(ops, grad, config.max_grad_norm)
    moments = [arena.flat(name) for name in arena.buffers if name.startswith("adam_")]
    groups = run.family.parameters(trained_shapes(network.structure, run))
    optim.adamw(ops, arena.flat("lora"), grad, moments, groups, config, peak_rate(config, 0), 1)
    return counting.calls


def bounds(calls: Sequence[Call], gpu: Gpu) -> list[Bound]:
    """By kind, those that a step has."""
    found = []
    for kind in KINDS:
        own = [call for call in calls if call.kind == kind]
        if own:
            times = [call.seconds(gpu) for call in own]
            computing = sum(max(pair) for pair in times if pair[0] > pair[1])
            whole = sum(max(pair) for pair in times)
            found.append(Bound(kind, len(own), sum(call.flops for call in own), sum(call.nbytes for call in own), whole,
                               "computing" if computing > whole / 2 else "memory"))
    return found


def limit(calls: Sequence[Call], gpu: Gpu, tokens: int) -> dict[str, Any]:
    """What `edgetune plan` says of a GPU: the least seconds of a step of `tokens`, by kernel, and its speed."""
    kernels = bounds(calls, gpu)
    seconds = sum(kernel.seconds for kernel in kernels)
    peak = gpu.tensor_flops if any(call.flops and not call.is_exact for call in calls) else gpu.float_flops
    return {**asdict(gpu), "peak_flops": peak, "step_s": seconds, "tokens_per_s": tokens / seconds,
            "kernels": [asdict(kernel) for kernel in kernels]}
