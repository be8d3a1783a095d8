"""Full fine-tuning: the matrices of the projections themselves are trained, with their biases and the norms.

Masters in float32 begin at the values of the base's quantized weights. A step computes with the masters; whatever
measures, or answers, computes with the bytes that are written: the masters, encoded again. So a held-out loss is that
of the model which `edgetune adapters merge` makes. While nothing is learned a gradient's memory is free, and holds
these bytes.
N outputs and K inputs of a projection, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ..backends.arena import Arena
from ..backends.base import Array, Backend
from ..errors import UsageError
from ..formats.gguf import Gguf, Tensor
from ..formats.gguf.read import BY_NAME
from ..llamacpp.quantizer import encode
from ..options import option
from .base import BIASES, NORMS, PROJECTIONS, Artifact, Carved, Frozen, Shapes, register
from .bitfit import AT_ONCE, BitFit, CarvedBitFit
from .merge import FLOATS, KEEP


@register
@dataclass(frozen=True)
class Full(BitFit):
    """The weights themselves, of all blocks or of `--blocks last:K`: more memory than any other family."""

    name: ClassVar[str] = "full"
    adapts: ClassVar[tuple[str, ...]] = (PROJECTIONS, NORMS, BIASES)
    libraries: ClassVar[int] = 5 << 20  # ggml's, which encodes
    rate: ClassVar[float] = 0.25  # each of many weights moves: docs/results/training.md
    weight_format: str = option("Q8_0", "Format of trained matrices that were quantized; keep: the one that each had.",
                                choices=("Q8_0", "F16", KEEP))

    def carve(self, shapes: Shapes, arena: Arena, ops: Backend, seed: int) -> Carved:  # noqa: ARG002
        return CarvedFull(self, shapes, arena, ops)

    def written(self, tensor: Tensor) -> str:
        """The format in which a tensor of the base is written. Raises UsageError where that would lose most of it."""
        block = BY_NAME.get(self.weight_format)
        if block is not None and tensor.format not in FLOATS and tensor.shape[-1] % block.block == 0:
            return self.weight_format
        if tensor.format == "Q2_0":
            raise UsageError(f"{tensor.name} is Q2_0, which cannot be written again without losing most of it",
                             "leave --weight-format at Q8_0")
        return tensor.format


class CarvedFull(CarvedBitFit):
    family: Full

    def __init__(self, family: Full, shapes: Shapes, arena: Arena, ops: Backend) -> None:
        super().__init__(family, shapes, arena)
        self.family = family
        self.ops = ops
        self._measures = False
        self._written: dict[str, Tensor] = {}  # in the memory of the gradients

    def read_base(self, base: Gguf) -> None:
        super().read_base(base)
        self._base = base
        self._formats = {name: self.family.written(base.tensors[name]) for name in self.values}

    def forward(self, linear: Frozen, out: Array, inp: Array, kept: Array | None, accumulate: bool) -> None:  # noqa: ARG002
        self._trained(linear).forward(out, inp, accumulate)

    def backward(self, linear: Frozen, dinp: Array | None, dout: Array, kept: Array | None, accumulate: bool) -> None:  # noqa: ARG002
        self._dout = dout
        if dinp is not None:
            self._trained(linear).backward(dinp, dout, accumulate)

    def finish(self, linear: Frozen, inp: Array) -> None:
        self.ops.matmul_dweight(self.gradients[f"{linear.name}.weight"], self._dout, inp, precision=linear.precision)

    def before_step(self, seed: int) -> None:  # noqa: ARG002
        self._measure(False)

    def before_pass(self, seed: int | None) -> None:
        self._measure(seed is None)

    def artifact(self) -> Artifact:
        self._measure(True)
        return Artifact(weights={name: self._stored(name) for name in self.values})

    def _measure(self, measures: bool) -> None:
        self._measures = measures
        self._written.clear()

    def _trained(self, linear: Frozen) -> Frozen:
        name = f"{linear.name}.weight"
        return replace(linear, weight=self._stored(name) if self._measures else self._floats(name))

    def _stored(self, name: str) -> Tensor:
        """The tensor as it is written, in a gradient's memory; as in the base where training has not changed it."""
        if name not in self._written:
            rows = self._rows(name)
            place = self.gradients[name].reshape(-1).view(np.uint8)
            base = self._base.tensors[name]
            self.ops.synchronize()
            if self._is_unchanged(name):
                stored = replace(base, data=place[:base.data.nbytes])
                stored.data[:] = self._base.read(base).data
            else:
                format = self._formats[name]
                size = rows.size // BY_NAME[format].block * BY_NAME[format].size
                stored = Tensor(name, base.shape, format, place[:size])
                for part, tensor in stored.parts(AT_ONCE):
                    tensor.data[:] = encode(rows[part], format, threads=self.ops.threads).reshape(-1)
            self._written[name] = stored
        return self._written[name]

    def _is_unchanged(self, name: str) -> bool:
        return all(np.array_equal(self._rows(name)[place], self._base.read(part).f32())
                   for place, part in self._base.tensors[name].parts(AT_ONCE))
