"""Rotary embeddings: their tables, and what a file says of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import FormatError, UnsupportedError

if TYPE_CHECKING:
    from .families import ModelFamily
    from .gguf import Gguf
    from .metadata import MetadataReader


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of one kind of block (Su et al. 2021; YaRN: Peng et al. 2023)."""

    base: float = 10000.0
    kind: str = "none"  # none | linear | yarn; llama3's scaling comes as `factors`
    factor: float = 1.0
    original_context: int = 0
    attn_factor: float = 1.0
    fast: float = 32.0  # rotations from which YaRN keeps a frequency,
    slow: float = 1.0  # and up to which it interpolates one
    log_multiplier: float = 0.0  # by which YaRN's scale of attention is taken back
    factors: tuple[float, ...] = ()  # rope_freqs.weight: each frequency is divided by its factor

    def tables(self, positions: int, n_rot: int) -> tuple[np.ndarray, np.ndarray]:
        """cos and sin, float32 [positions, n_rot / 2]."""
        pair = np.arange(n_rot // 2, dtype=np.float64)
        freq = self.base ** (-2.0 * pair / n_rot)
        if self.factors:
            freq = freq / np.asarray(self.factors, np.float64)
        magnitude = self.attn_factor
        if self.kind in ("linear", "yarn"):
            interpolated = freq / self.factor
            if self.kind == "linear":
                freq = interpolated
            else:
                freq = interpolated + (freq - interpolated) * self._extrapolated_share(pair, n_rot)
                stretched = 0.1 * math.log(self.factor)
                magnitude *= (1.0 + stretched) / (1.0 + self.log_multiplier * stretched)
        angle = np.arange(positions, dtype=np.float64)[:, None] * freq
        return (np.cos(angle) * magnitude).astype(np.float32), (np.sin(angle) * magnitude).astype(np.float32)

    def _extrapolated_share(self, pair: np.ndarray, n_rot: int) -> np.ndarray:
        """YaRN's ramp: 1 keeps the frequency, 0 interpolates it."""

        def dimension(rotations: float) -> float:
            return n_rot * math.log(self.original_context / (rotations * 2 * math.pi)) / (2 * math.log(self.base))

        low = max(math.floor(dimension(self.fast)), 0)
        high = min(math.ceil(dimension(self.slow)), n_rot - 1)
        return 1.0 - np.clip((pair - low) / max(high - low, 0.001), 0.0, 1.0)


def read_rope(gguf: Gguf, get: MetadataReader, family: ModelFamily) -> Rope:
    """That of blocks without a window, as llama.cpp reads it: a factor without a kind is linear, one of 0 is none."""
    kind = get.text("rope.scaling.type", "linear")
    factor = get.number("rope.scaling.factor", get.number("rope.scale_linear", 0.0)) or 1.0
    short = gguf.tensors.get("rope_factors_short.weight") if family.long_keys else None
    if kind == "longrope" and family.long_keys:
        kind = "none"
    if kind not in ("none", "linear", "yarn"):
        raise UnsupportedError(f"{gguf.path} scales its rotary embedding by {kind!r}",
                               "edgetune knows none, linear, llama3 and yarn")
    factors: tuple[float, ...] = ()
    if "rope_freqs.weight" in gguf.tensors:
        factors = tuple(float(f) for f in gguf.tensors["rope_freqs.weight"].f32().ravel())
    elif short is not None:
        factors = tuple(float(f) for f in short.f32().ravel())
    blend = {} if not family.yarn_keys else {
        "fast": get.number("rope.scaling.yarn_beta_fast", 32.0), "slow": get.number("rope.scaling.yarn_beta_slow", 1.0),
        "log_multiplier": get.number("rope.scaling.yarn_log_multiplier", 0.0)}
    rope = Rope(base=get.number("rope.freq_base", 10000.0), kind=kind, factor=factor,
                original_context=get.integer("rope.scaling.original_context_length", get.integer("context_length")),
                attn_factor=get.number("rope.scaling.attn_factor", 1.0), factors=factors, **blend)
    if (rope.base <= 1.0 or rope.factor <= 0.0 or rope.original_context < 1
            or not all(0 < factor < math.inf for factor in factors)):
        raise FormatError(f"{gguf.path} has rotary base {rope.base:g}, factor {rope.factor:g} and original context "
                          f"{rope.original_context}", "base must be over 1, the others positive")
    return rope
