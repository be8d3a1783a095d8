"""About how long each step takes here: its work, counted from shapes and options, at speeds measured within seconds.

Letters: L blocks, D model width, F channels of an MLP, V vocabulary, T tokens, N rows and K columns of a matrix.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..llamacpp.divergence import divergence
from ..llamacpp.quantizer import encode
from .measure import COUNT, LENGTH, opened
from .options import CompressConfig
from .quantize import assign, grid
from .shrink import distill, prune
from .shrink.blockwise import fast
from .source.floats import Floats

Step = tuple[str, float]  # what progress calls it, seconds
Named = tuple[tuple[str, ...], Step]
Windows = NDArray[np.int32]
LAST = "quantized"  # what needs all that was measured
LEAST_SECONDS = 0.05  # that a speed is measured for
PROBE_TOKENS = 64
PROBE_ROWS = 64
ROUNDED_ROWS = 1024  # that are rounded together: a column costs something besides its weights
BACKWARD = 2.0  # of forward, where no weight has a gradient: inputs' gradients, and what surrounds the products
TRAINED = 3.0  # of forward: the gradients of inputs and of weights, and the optimizer
FITTED_PASSES = 5  # over a block while what is left is fitted
SOLVED = 10  # systems of equations for each matrix that is fitted
FACTORED = 2.0  # times K^3 is the work of grid.factor_of
ONNX_PASSES = 8  # forward passes over each window that is compared, of the source and twice of the export
ONNX_SECONDS = 0.2  # to export and to round, a million weights


@dataclass(frozen=True)
class Speeds:
    """Each a second. flops: of PyTorch's products in float32; quick_flops: where bf16 does. compared: tokens of which
    llama.cpp compares two models; written: tokens of an answer. Of weights, on one thread: tried, in all formats;
    rounded, with compensation; stored, by llama.cpp.
    """

    flops: float
    quick_flops: float
    compared: float
    written: float
    tried: float
    rounded: float
    stored: float


def measure(model: Floats, reference: Path, threads: int) -> Speeds:
    """The speeds of this machine with this model's shapes; reference: its GGUF."""
    ends = ("ffn_gate.weight", "ffn_up.weight", "attn_output.weight")
    gate = next(array for name, array in model.tensors.items() if name.endswith(ends))
    weights = torch.from_numpy(gate.copy())
    inputs = torch.randn(4 * PROBE_TOKENS, weights.shape[1])
    work = 2.0 * inputs.shape[0] * weights.numel()

    def quickly() -> None:
        with fast():
            inputs @ weights.T

    with torch.inference_mode():
        flops = work / _seconds(lambda: inputs @ weights.T)
        quick_flops = work / _seconds(quickly)
    rows = gate[:PROBE_ROWS]
    formats = assign.formats_of(model)[next(name for name, array in model.tensors.items() if array is gate)]
    moments = np.eye(rows.shape[1], dtype=np.float32)
    importance = np.ones(rows.shape[1], np.float32)
    tried = rows.size / _seconds(lambda: [grid.fit(rows, format, importance) for format in formats])
    factor = grid.factor_of(moments)
    more = gate[:ROUNDED_ROWS]
    rounded = tried  # F16 alone, where no format divides the rows
    stored = tried
    if formats != ["F16"]:
        rounded = more.size / _seconds(lambda: grid.compensated(more, assign.REFERENCE, factor))
        stored = rows.size / _seconds(lambda: encode(rows, assign.REFERENCE, importance))
    compared, written = _answering(reference, model.shape.n_vocab, threads)
    return Speeds(flops, quick_flops, compared, written, tried, rounded, stored)


def _answering(reference: Path, n_vocab: int, threads: int) -> tuple[float, float]:
    """Tokens of which two models are compared, and tokens that are written."""
    tokens = np.arange(PROBE_TOKENS, dtype=np.int32) % n_vocab
    with opened(reference, PROBE_TOKENS, threads) as logits:
        logits(tokens)  # reads the weights from the disk
        found = logits(tokens)
        whole = 2 * _seconds(lambda: logits(tokens)) + _seconds(lambda: divergence(found[:-1], found[:-1], tokens[1:]))
        return PROBE_TOKENS / whole, 1 / _seconds(lambda: logits(tokens[:1]))


def _seconds(work: Callable[[], object]) -> float:
    """Measures a call: the mean of as many as take LEAST_SECONDS, of one at least."""
    began = time.perf_counter()
    calls = 0
    passed = 0.0
    while not calls or passed < LEAST_SECONDS:
        work()
        calls += 1
        passed = time.perf_counter() - began
    return passed / calls


class ModelSizes:
    """Sizes of the model on its way, and what its steps compute. fitted: whether it is stored in a size."""

    def __init__(self, model: Floats, config: CompressConfig, fitted: bool) -> None:
        shape = model.shape
        self.config = config
        self.fitted = fitted
        self.d = shape.d_model
        self.d_q = shape.d_q
        self.f = shape.d_ff
        self.layers = shape.n_layer
        self.head = float((config.vocab or shape.n_vocab) * shape.d_model)
        self.blocks = float(sum(array.size for name, array in model.tensors.items()
                                if array.ndim == 2 and name.startswith("blk.")))

    @property
    def weights(self) -> float:
        return self.blocks + self.head

    @property
    def forward(self) -> float:
        """FLOP of a token."""
        return 2 * self.weights

    @property
    def block(self) -> float:
        """FLOP of a token in a block."""
        return 2 * self.blocks / self.layers

    @property
    def inputs(self) -> list[int]:
        """K of each input that matrices of a block see."""
        return [self.d, self.d_q, self.d, self.f]

    def without(self, blocks: int) -> None:
        self.blocks *= (self.layers - blocks) / self.layers
        self.layers -= blocks

    def narrow(self, width: float) -> None:
        self.blocks *= width
        self.d_q = round(self.d_q * width)
        self.f = round(self.f * width)


def steps(shape: ModelSizes, speeds: Speeds, calibration: Windows | None, measuring: Windows | None) -> list[Named]:
    """The steps in order, each with the names of what is kept once it is done (see `Measured`)."""
    c = shape.config
    seen = calibration.size if calibration is not None else 0
    cost = [("measuring", measuring.size / speeds.compared)] if measuring is not None else []
    found: list[Named] = []
    if c.vocab:
        found += [(("cost_trim",), step) for step in cost]
    if c.drop_blocks:
        found.append((("blocks", "drop_blocks"), ("choosing blocks", _choosing(shape, min(seen, prune.SEARCH_TOKENS)) /
                                 speeds.quick_flops)))
        shape.without(c.drop_blocks)
        found.append((("drop_blocks",), ("fitting blocks", _fitting(shape, seen) / speeds.flops)))
        found += [(("cost_drop_blocks",), step) for step in cost]
    if c.width < 1:
        found.append((("narrow",), ("fitting blocks", _fitting(shape, seen) / speeds.flops)))
        shape.narrow(c.width)
        found += [(("cost_narrow",), step) for step in cost]
    if c.distill:
        found.append((("distilled",), ("distilling", _distilling(shape) / speeds.quick_flops)))
        found += [(("cost_heal",), step) for step in cost]
    if c.format == "onnx":
        windows = measuring.size if measuring is not None else 0
        found.append((("onnx",), ("exporting to ONNX", ONNX_SECONDS * shape.weights / 1e6)))
        found.append((("onnx",), ("comparing with the source", ONNX_PASSES * windows * shape.forward / speeds.flops)))
    else:
        found += _storing(shape, speeds, seen)
        found += [(("cost_quantize",), step) for step in cost]
    return [*found, (("answers",), ("answering", 2 * COUNT * LENGTH / speeds.written))]


def _choosing(shape: ModelSizes, tokens: int) -> float:
    """FLOP: of each candidate the blocks after it, and the head of both models."""
    left = range(shape.layers, shape.layers - shape.config.drop_blocks, -1)
    passed = sum(n * (n - 1) / 2 for n in left)
    return tokens * (passed * shape.block + sum(left) * 4 * shape.head)


def _fitting(shape: ModelSizes, tokens: int) -> float:
    solved = sum(2 * tokens * k * (k + shape.d) + SOLVED * (2 * k**3 / 3 + 2 * k * k * shape.d)
                 for k in (shape.d_q, shape.f))
    return shape.layers * (FITTED_PASSES * tokens * shape.block + 2 * solved)  # in float64, at half the speed


def _distilling(shape: ModelSizes) -> float:
    c = shape.config
    step = c.distill_batch * c.distill_length * (shape.forward + TRAINED * 2 * shape.blocks + 6 * shape.head)
    curve = (distill.POINTS + 1) * distill.HELD_TOKENS * 2 * shape.forward
    return c.steps * step + curve


def _storing(shape: ModelSizes, speeds: Speeds, seen: int) -> list[Named]:
    threads = torch.get_num_threads()
    if not shape.fitted:
        importance = ("importance", seen * shape.forward / speeds.flops)
        stored = ("quantizing", shape.weights / speeds.stored / threads)
        return [*([(("importance", LAST), importance)] if seen else []), ((LAST,), stored)]
    squares = shape.layers * sum(2 * k * k for k in shape.inputs) + 2 * shape.d**2
    cubes = shape.layers * (5 * shape.d**3 + shape.d_q**3 + shape.f**3)  # q, k, v, gate and up see D columns
    factors = 2 * FACTORED * cubes / speeds.flops  # in float64, at half the speed
    tried = min(shape.weights, (7 * shape.layers + 1) * assign.SAMPLE)
    return [(("moments", LAST), ("importance", seen * (shape.forward + squares) / speeds.flops)),
            (("costs", LAST), ("sensitivity", seen / 2 * (1 + BACKWARD) * shape.forward / speeds.flops)),
            (("costs", LAST), ("trying formats", tried / speeds.tried / threads + factors)),
            ((LAST,), ("quantizing", shape.weights / speeds.rounded / threads + factors))]
