"""Rounding whose errors make up for each other (GPTQ, Frantar et al. 2022, arXiv:2210.17323) on ggml's own blocks.

What a matrix gets wrong is E X for its inputs X, so columns that go together can undo one another's errors: column by
column, each is rounded to its block's grid and the columns after it take over what it lost, in the proportions that the
second moments of the inputs say. llama.cpp's quantizer chooses the grid of a block from what the columns are by then.
Letters: N rows, K columns, B weights in a block.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...formats.gguf.read import BY_NAME
from . import grid

_DAMPING = 0.01  # of the mean of the diagonal, added to it: directions that the text hardly shows stay as they are
_ROWS = 2048


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
    blocks = grid.fit(weights, format, importance)
    lines = grid.lines(blocks, format, len(columns))
    scale, offset = (torch.from_numpy(np.ascontiguousarray(line.T)) for line in lines)
    nearest = grid.Nearest(format)
    left = columns.clone()
    codes = torch.empty(columns.shape, dtype=torch.uint8)
    errors = torch.empty_like(columns)
    for j in range(len(columns)):
        codes[j], level = nearest((left[j] - offset[j]) / scale[j])
        errors[j] = (left[j] - offset[j] - scale[j] * level) / factor[j, j]
        left[j + 1:] -= torch.outer(factor[j, j + 1:], errors[j])
    grid.put(blocks, codes.numpy().T, format)
    return blocks, errors
