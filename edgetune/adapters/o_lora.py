"""O-LoRA (Wang et al. 2023, arXiv:2310.14152), with a projection in place of the paper's penalty: a LoRA whose A reads
nothing that an earlier task's A reads, A . A_earlier^T = 0.

So the new update changes no output for what the earlier LoRA reads from an input. After each step A is projected, as
AdamW's update does not stay within a subspace in which the gradient is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from ..backends.arena import Arena, Buffer
from ..backends.base import Backend
from ..errors import MismatchError
from ..options import option
from .base import Artifact, Shapes, register
from .lora import Lora
from .low_rank import CarvedLora, LoraFamily
from .store import open_adapter


@register
@dataclass(frozen=True)
class OrthogonalLora(LoraFamily):
    """LoRA that stays out of the subspace of an earlier adapter, which --orthogonal-to names."""

    name: ClassVar[str] = "o-lora"
    orthogonal_to: str = option("", "Adapter of an earlier task, a LoRA: what it reads is not read [none: as lora].",
                                common=True, local=True)

    def check_shapes(self, shapes: Shapes) -> None:
        super().check_shapes(shapes)
        for name, pair in self.earlier(shapes).items():
            if self.rank + pair.rank > (width := shapes[name][1]):
                raise MismatchError(f"ranks {self.rank} and {pair.rank}, of {self.orthogonal_to}, are more than the "
                                    f"{width} inputs of {name}", "lower --rank")

    def earlier(self, shapes: Shapes) -> Lora:
        """The earlier adapter's pairs of these projections. Raises MismatchError where their inputs differ."""
        found = _read(self.orthogonal_to) if self.orthogonal_to else {}
        for name, pair in found.items():
            if name in shapes and pair.a.shape[1] != shapes[name][1]:
                raise MismatchError(f"{self.orthogonal_to} reads {pair.a.shape[1]} inputs of {name}, the model has "
                                    f"{shapes[name][1]}", "name an adapter of the same model")
        return {name: pair for name, pair in found.items() if name in shapes}

    def state(self, shapes: Shapes) -> list[Buffer]:
        size = sum(pair.a.size for pair in self.earlier(shapes).values())
        return [Buffer("earlier", (size,), "run")] if size else []

    def carve(self, shapes: Shapes, arena: Arena, ops: Backend, seed: int) -> CarvedOrthogonalLora:
        return CarvedOrthogonalLora(self, shapes, arena, ops, seed)


class CarvedOrthogonalLora(CarvedLora):
    """taken [R of the earlier one, K]: an orthonormal basis of what its A reads, of each projection that it adapts."""

    family: OrthogonalLora

    def __init__(self, family: OrthogonalLora, shapes: Shapes, arena: Arena, ops: Backend, seed: int) -> None:
        super().__init__(family, shapes, arena, ops, seed)
        self.taken: dict[str, np.ndarray] = {}
        end = 0
        for name, pair in family.earlier(shapes).items():
            begin, end = end, end + pair.a.size
            self.taken[name] = arena.flat("earlier")[begin:end].reshape(pair.a.shape)
            self.taken[name][:] = np.linalg.qr(pair.a.T.astype(np.float64))[0].T
        self._project()

    def after_step(self, step: int, total: int, lr: float) -> None:  # noqa: ARG002
        self._project()

    def load(self, found: Artifact, source: str) -> None:
        super().load(found, source)
        self._project()

    def _project(self) -> None:
        self.ops.synchronize()
        for name, basis in self.taken.items():
            a = self.adapted[name].a
            a -= (a @ basis.T) @ basis


@lru_cache(maxsize=1)  # the planner asks for many sizes
def _read(path: str) -> Lora:
    return open_adapter(path).pairs
