"""The numbers that a block of a format can hold, codes put into its bytes, and rounding to them.

In every format here a weight is offset + scale * level[code], where offset and scale belong to its block or a part of
it. llama.cpp's quantizer chooses those; this module says where the codes lie, so that they can be chosen otherwise.
Layouts: ggml's ggml-common.h.

In rounding, errors make up for each other (GPTQ, Frantar et al. 2022, arXiv:2210.17323): what a matrix gets wrong is
E X for its inputs X, so columns that go together can undo one another's errors. Column by column, each is rounded to
its block's grid and the columns after it take over what it lost, in the proportions that the second moments of the
inputs say. Letters: n blocks, B weights in a block, N rows, K columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from gguf import quants
from numpy.typing import NDArray
from torch import Tensor

from ...formats.gguf.read import BY_NAME
from ...formats.gguf.read import Tensor as Stored
from ...llamacpp.quantizer import encode

_DAMPING = 0.01  # of the mean of the diagonal, added to it: directions that the text hardly shows stay as they are
_ROWS = 2048


class Field(NamedTuple):
    """Some bits of every code: from bit `shift` on, `bits` of them, in bytes from `offset` on.

    The codes are taken as [groups, 8 / bits, lanes]: a byte holds one lane's codes of a group, the first lowest.
    """

    offset: int
    shift: int
    bits: int
    groups: int
    lanes: int


FIELDS = {
    "Q8_0": (Field(2, 0, 8, 1, 32),),
    "Q4_0": (Field(2, 0, 4, 1, 16),),
    "Q4_1": (Field(4, 0, 4, 1, 16),),
    "Q5_0": (Field(6, 0, 4, 1, 16), Field(2, 4, 1, 4, 1)),
    "Q5_1": (Field(8, 0, 4, 1, 16), Field(4, 4, 1, 4, 1)),
    "IQ4_NL": (Field(2, 0, 4, 1, 16),),
    "MXFP4": (Field(1, 0, 4, 1, 16),),
    "Q2_0": (Field(2, 0, 2, 16, 1),),
    "Q2_K": (Field(16, 0, 2, 2, 32),),
    "Q3_K": (Field(32, 0, 2, 2, 32), Field(0, 2, 1, 1, 32)),
    "Q4_K": (Field(16, 0, 4, 4, 32),),
    "Q5_K": (Field(48, 0, 4, 4, 32), Field(16, 4, 1, 1, 32)),
    "Q6_K": (Field(0, 0, 4, 2, 64), Field(128, 4, 2, 2, 32)),
    "IQ4_XS": (Field(8, 0, 4, 8, 16),),
}


def levels(format: str) -> NDArray[np.float32]:
    """The value of code 0, 1, ..., in units of the block's scale, but for an offset that all share."""
    if format in ("IQ4_NL", "IQ4_XS"):
        return np.array(quants.IQ4_NL.kvalues, np.float32)
    if format == "MXFP4":
        return np.array(quants.MXFP4.kvalues, np.float32)
    if format == "Q8_0":
        return np.arange(256).astype(np.int8).astype(np.float32)
    return np.arange(2 ** sum(field.bits for field in FIELDS[format]), dtype=np.float32)


def put(blocks: NDArray[np.uint8], codes: NDArray[np.uint8], format: str) -> None:
    """Write codes [n, B] into blocks [n, size]; scales and offsets stay."""
    for field in FIELDS[format]:
        mask = (1 << field.bits) - 1
        places = 8 // field.bits
        part = (codes >> field.shift & mask).reshape(len(codes), field.groups, places, field.lanes)
        packed = (part << (field.bits * np.arange(places, dtype=np.uint8))[:, None]).sum(2, dtype=np.uint8)
        blocks[:, field.offset : field.offset + packed[0].size] = packed.reshape(len(codes), -1)


def values(blocks: NDArray[np.uint8], format: str, width: int) -> NDArray[np.float32]:
    """blocks [n, size] -> their values, float32 [n, B]."""
    one_row = Stored("blocks", (len(blocks) * width,), format, blocks.reshape(-1))
    return one_row.f32().reshape(-1, width)


def lines(blocks: NDArray[np.uint8], format: str, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(scale, offset) of every weight, [n, B] each: its value is offset + scale * level. A scale is never 0."""
    level = levels(format)
    ends = []
    for code in (0, 1):
        filled = blocks.copy()
        put(filled, np.full((len(blocks), width), code, np.uint8), format)
        ends.append(values(filled, format, width))
    scale = (ends[1] - ends[0]) / (level[1] - level[0])
    offset = ends[0] - scale * level[0]
    return np.where(scale == 0, np.float32(1e-30), scale), offset


class Nearest:
    """The code whose level is nearest."""

    def __init__(self, format: str) -> None:
        values = levels(format)
        self._codes = torch.from_numpy(np.argsort(values, kind="stable").astype(np.uint8))
        self._levels = torch.from_numpy(np.sort(values))
        self._middles = (self._levels[1:] + self._levels[:-1]) / 2

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x of any shape, in units of the scale -> (codes uint8, levels float32)."""
        place = torch.bucketize(x, self._middles)
        return self._codes[place], self._levels[place]


def fit(weights: NDArray[np.float32], format: str, importance: NDArray[np.float32]) -> NDArray[np.uint8]:
    """weights [N, K], importance [K] -> the format's bytes [N, K / B * size], in the scales that lose least."""
    out = encode(weights, format, importance)
    return _search(out, weights, format, importance) if format in _SCALES else out


def _f16_scales(blocks: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Shares of the largest weight, in either direction: the levels -1 to 2 are not the same both ways."""
    largest = np.ascontiguousarray(blocks[:, :2]).view(np.float16)
    for share in np.linspace(-0.9, 0.9, 20, dtype=np.float32):
        yield (share * largest.astype(np.float32)).astype(np.float16).view(np.uint8)


def _e8m0_scales(blocks: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """The power of two of the largest weight, and its neighbours."""
    for step in (0, -1, 1):
        yield np.clip(blocks[:, :1].astype(np.int16) + step, 1, 254).astype(np.uint8)


_SCALES = {"Q2_0": _f16_scales, "MXFP4": _e8m0_scales}  # llama.cpp takes the largest weight, and looks no further


def _search(out: NDArray[np.uint8], weights: NDArray[np.float32], format: str,
            importance: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The bytes with the best of _SCALES in each block and the codes nearest to the weights."""
    kind = BY_NAME[format]
    nearest = Nearest(format)
    blocks = out.reshape(-1, kind.size)
    writable = np.require(weights, requirements="W")  # of a file that is mapped they are not, which torch warns of
    parts = torch.from_numpy(writable.reshape(-1, kind.block))
    cost = torch.from_numpy(np.tile(importance.reshape(-1, kind.block), (len(weights), 1)))
    least = torch.full((len(parts),), torch.inf)
    codes = torch.empty(parts.shape, dtype=torch.uint8)
    best = blocks.copy()
    for scales in _SCALES[format](blocks):
        tried = blocks.copy()
        tried[:, : scales.shape[1]] = scales
        scale, offset = (torch.from_numpy(line[:, :1]) for line in lines(tried, format, kind.block))
        code, level = nearest((parts - offset) / scale)
        error = ((parts - offset - scale * level).square() * cost).sum(1)
        better = error < least
        least[better] = error[better]
        codes[better] = code[better]
        best[better.numpy()] = tried[better.numpy()]
    put(best, codes.numpy(), format)
    rows: NDArray[np.uint8] = best.reshape(out.shape)
    return rows


def compensated(weights: NDArray[np.float32], format: str, factor: Tensor) -> NDArray[np.uint8]:
    """weights [N, K], the factor [K, K] of their inputs' second moments -> the format's bytes, [N, K / B * size].

    Every row is rounded on its own; they are taken in parts that a cache holds.
    """
    parts = [_rows(weights[begin : begin + _ROWS], format, factor) for begin in range(0, len(weights), _ROWS)]
    return np.concatenate(parts)


def _rows(weights: NDArray[np.float32], format: str, factor: Tensor) -> NDArray[np.uint8]:
    block = BY_NAME[format].block
    parts = []
    left = torch.from_numpy(weights.T.copy())  # [K, N]: a column of the matrix is a row here
    for begin in range(0, weights.shape[1], block):
        part = slice(begin, begin + block)
        blocks, errors = _block(left[part], format, factor[part, part])
        parts.append(blocks)
        left[part.stop:] -= factor[part, part.stop:].T @ errors
    return np.concatenate(parts, 1)


def factor_of(moments: NDArray[np.float32]) -> Tensor:
    """Upper Cholesky factor of the inverse of moments [K, K]: row j says how columns after j take over its error."""
    damped = torch.from_numpy(moments).double()
    diagonal = damped.diagonal().mean().clamp_min(1e-30)
    damped = damped + _DAMPING * diagonal * torch.eye(len(damped), dtype=torch.float64)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True).float()
    return factor


def _block(columns: Tensor, format: str, factor: Tensor) -> tuple[NDArray[np.uint8], Tensor]:
    """columns [B, N], factor [B, B] -> (bytes [N, size], errors [B, N] in units of the factor's diagonal)."""
    weights = np.ascontiguousarray(columns.numpy().T)
    importance = factor.diagonal().square().reciprocal().numpy()
    blocks = fit(weights, format, importance)
    scale, offset = (torch.from_numpy(np.ascontiguousarray(line.T)) for line in lines(blocks, format, len(columns)))
    nearest = Nearest(format)
    left = columns.clone()
    codes = torch.empty(columns.shape, dtype=torch.uint8)
    errors = torch.empty_like(columns)
    for j in range(len(columns)):
        codes[j], level = nearest((left[j] - offset[j]) / scale[j])
        errors[j] = (left[j] - offset[j] - scale[j] * level) / factor[j, j]
        left[j + 1:] -= torch.outer(factor[j, j + 1:], errors[j])
    put(blocks, codes.numpy().T, format)
    return blocks, errors
