"""The projections of a network, frozen or adapted: forward and backward, next to each other.

Gradients of the adapter accumulate, dinp and out are overwritten unless `accumulate` is set.
Letters: T tokens, N outputs, K inputs.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from ..adapters.base import PROJECTIONS, Carved, Family, Frozen
from ..adapters.heads import VOCABULARY, HeadKind
from ..adapters.lora import stack_of
from ..backends.base import Backend, floats
from ..errors import UsageError
from ..formats.families import OF_EXPERTS, OF_SHARED, OTHER_TARGETS, TARGETS
from ..formats.gguf import Tensor

Activations = dict[str, np.ndarray]  # a block's activations by name
# A few values dominate the gradient of the residual stream. Rounding it to 8 bits alone causes the error that
# tests/backends/test_precision.py allows in total: where "fast" rounds so, this projection's backward is exact.
EXACT_DINP = ("ffn_down", "ffn_down_shexp")
ROWS = 256  # whose gradient of a vector is summed at a time, so that no array of size is allocated


@dataclass(frozen=True)
class RunShape:
    """The sizes of a run that decide the buffers, together with the structure of the model."""

    max_tokens: int  # T, in a micro-batch
    max_length: int  # positions in a document
    family: Family  # of the adapter
    targets: tuple[str, ...]  # GGUF names: attn_q, ...
    blocks: range  # trained
    kept: int  # blocks, counted from the last, whose activations are kept; at least 1
    threads: int
    precision: str  # of products: exact, fast or int8
    prefix: int = 0  # tokens of a prefix at most, whose keys and values are kept for batches after it
    prefix_inputs: bool = False  # whether the inputs of its blocks are, too, so that it is passed forward once
    heads: tuple[HeadKind, ...] = (VOCABULARY,)  # of the objective; log p is by the first
    on_disk: bool = False  # whether the inputs of trained blocks are in a file, and one of them in memory

    @property
    def activations(self) -> str:
        """The numpy type of activations: bf16 (as uint16) takes half the memory of float32, and products that are not
        exact round to bf16 or coarser anyway.
        """
        return "float32" if self.precision == "exact" else "uint16"

    @property
    def lowest(self) -> int:
        """The lowest block that backward passes through: the lowest trained one, or the first."""
        return 0 if self.virtual else self.blocks[0]

    @property
    def needs_dinp(self) -> bool:
        """Whether backward reaches the input of the lowest block, because more than projections is adapted."""
        return any(part != PROJECTIONS for part in self.family.adapts)

    @property
    def virtual(self) -> int:
        """Tokens of the adapter before a document. The tokens and positions above are of rows, and do not count them.
        """
        return self.family.virtual_tokens


def forward_precision(run: RunShape, layer: int) -> str:
    """The precision of a block's products in forward: the run's, but "fast" for the first two blocks of an int8 run.

    Their outputs are hundreds of times as large as others and reach all later blocks: rounded to 8 bits, they change
    some gradients by more than tests/backends/test_precision.py allows.
    """
    return "fast" if run.precision == "int8" and layer < 2 else run.precision


class Projections:
    """All projections of a network, some of them adapted. trained: the names of all adapted parts.

    The target of an expert's projection is such as "ffn_up_exps.3".
    """

    def __init__(self, ops: Backend, weights: Mapping[str, Tensor], vectors: Mapping[str, np.ndarray], run: RunShape,
                 adapter: Carved, trained: Collection[str]) -> None:
        self._ops = ops
        self.adapter = adapter
        self.trained = frozenset(trained)
        self._is_off = False
        rounds = run.precision == "fast" and ops.products("fast") == "float forward, int8 backward"
        self._run = run
        self._stacks = {name: weight for name, weight in weights.items() if len(weight.shape) == 3}
        self._linear = {}
        for full, weight in weights.items():
            name = full.removesuffix(".weight")
            if len(weight.shape) == 2 and (found := re.fullmatch(r"blk\.(\d+)\.([\w.]+)", name)) is not None:
                precision = forward_precision(run, int(found[1]))
                self._linear[name] = Frozen(name, found[2], ops, weight, vectors.get(f"{name}.bias"), run.precision,
                                            precision, rounds and found[2] in EXACT_DINP)
        self._adapted = {name: replace(linear, bias=adapter.bias(name)) if f"{name}.bias" in trained else linear
                         for name, linear in self._linear.items()}

    def adapts(self, name: str) -> bool:
        """Whether a part of the network is adapted, in a pass with the adapter."""
        return name in self.trained and not self._is_off

    @property
    def is_off(self) -> bool:
        """Whether the adapter is left out."""
        return self._is_off

    @contextmanager
    def off(self) -> Iterator[None]:
        """Makes forward passes within the context those of the base: no adapter is applied."""
        was_off = self._is_off
        self._is_off = True
        try:
            yield
        finally:
            self._is_off = was_off

    def forward(self, out: np.ndarray, inp: np.ndarray, layer: int, target: str, kept: Activations,
                accumulate: bool = False) -> None:
        """out [T, N] (+)= the projection of inp [T, K]."""
        linear = self._of(layer, target)
        if self.adapts(linear.name):
            self.adapter.forward(linear, out, inp, kept.get(f"u_{target}"), accumulate)
        else:
            linear.forward(out, inp, accumulate)

    def keep(self, inp: np.ndarray, layer: int, target: str, kept: Activations) -> None:
        """Computes again what forward keeps for backward, without the product."""
        linear = self._of(layer, target)
        if linear.name in self.trained:
            self.adapter.keep(linear, inp, kept.get(f"u_{target}"))

    def backward(self, dinp: np.ndarray | None, dout: np.ndarray, layer: int, target: str, kept: Activations,
                 accumulate: bool = False) -> None:
        """dinp [T, K] (None: not wanted) (+)= its gradient; the adapter's accumulates. `finish` follows."""
        linear = self._of(layer, target)
        if self.adapts(f"{linear.name}.bias"):
            self.adapter.bias_backward(linear.name, self._row_sum(dout))
        if linear.name in self.trained:
            self.adapter.backward(linear, dinp, dout, kept.get(f"u_{target}"), accumulate)
        elif dinp is not None:
            linear.backward(dinp, dout, accumulate)

    def finish(self, inp: np.ndarray, layer: int, target: str) -> None:
        """The rest of backward, which reads the projection's input."""
        linear = self._of(layer, target)
        if linear.name in self.trained:
            self.adapter.finish(linear, inp)

    def _of(self, layer: int, target: str) -> Frozen:
        name = f"blk.{layer}.{target}"
        found = (self._linear if self._is_off else self._adapted).get(name)
        return found or self._of_expert(layer, name)

    def _of_expert(self, layer: int, name: str) -> Frozen:
        """An expert's projection, which is made at each use: there are thousands."""
        stack, expert = stack_of(name)
        run = self._run
        return Frozen(name, stack.split(".", 2)[2], self._ops, self._stacks[f"{stack}.weight"].matrix(expert), None,
                      run.precision, forward_precision(run, layer), False)

    def _row_sum(self, dout: np.ndarray) -> np.ndarray:
        """[N], the sum of dout [T, N] over T."""
        self._ops.synchronize()
        total = np.zeros(dout.shape[1], np.float32)
        for begin in range(0, len(dout), ROWS):
            total += floats(dout[begin:begin + ROWS]).sum(0)
        return total


def target_names(targets: tuple[str, ...], have: Collection[str]) -> tuple[str, ...]:
    """PEFT's projection names as those of GGUF that a network has: of its blocks, its experts, or all. Raises
    UsageError for one that it lacks.
    """
    found = []
    for target in targets:
        of_experts = (OF_EXPERTS[target], OF_SHARED[target]) if target in OF_EXPERTS else ()
        known = OTHER_TARGETS.get(target) or (TARGETS[target], *of_experts)
        names = [name for name in known if name in have]
        if not names:
            raise UsageError(f"this model has no {known[0]} in its blocks", f"it has {', '.join(have)}")
        found += names
    return tuple(dict.fromkeys(found))
