"""Tensors of blocks with a state, as a GGUF holds them: Mamba 2 and the gated delta net.

Facts: llama.cpp, conversion/mamba.py and qwen.py. A GGUF has A and not its logarithm. Its value heads of a delta net
stand in another order (value_order in adapters/peft.py).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from transformers import PretrainedConfig

from ...adapters.peft import column_order, value_order
from ...formats.shape import Shape

Array = NDArray[np.float32]
MAMBA = {"ssm_conv1d": "mamba.conv1d", "ssm_norm": "mamba.norm"}
MAMBA_BARE = {"mamba.A_log": "ssm_a", "mamba.D": "ssm_d", "mamba.dt_bias": "ssm_dt.bias"}
DELTA_NET = {"ssm_alpha": "linear_attn.in_proj_a", "ssm_beta": "linear_attn.in_proj_b",
             "ssm_conv1d": "linear_attn.conv1d", "ssm_norm": "linear_attn.norm"}
DELTA_NET_BARE = {"linear_attn.A_log": "ssm_a", "linear_attn.dt_bias": "ssm_dt.bias"}
_BY_VALUE_HEAD = (".ssm_alpha.weight", ".ssm_beta.weight", ".ssm_a", ".ssm_dt.bias")


def column(array: Array, _: PretrainedConfig) -> Array:
    """[H] as [H, 1]."""
    return array[:, None]


def by_group(array: Array, config: PretrainedConfig) -> Array:
    """[inner] as [groups, inner / groups]."""
    return array.reshape(config.mamba_n_groups, -1)


MAMBA_SHAPES = {"ssm_a": column, "ssm_d": column, "ssm_norm.weight": by_group}


def is_state(name: str) -> bool:
    """Whether a tensor, by its GGUF name, belongs to a block's state, its norm excepted."""
    return ".ssm_" in name and not name.endswith("norm.weight")


def state_to_gguf(name: str, array: Array, shape: Shape) -> Array:
    """Such a tensor, in a GGUF's shape, with the values and the order that a GGUF has."""
    values = -np.exp(array) if name.endswith(".ssm_a") else array
    if "delta net" not in shape.mixers:
        return np.ascontiguousarray(values)
    if name.endswith(".ssm_out.weight"):
        return np.ascontiguousarray(values[:, column_order(name.removesuffix(".weight"), values.shape[1], shape)])
    width = 1 if name.endswith(_BY_VALUE_HEAD) else shape.recurrent.state
    return np.ascontiguousarray(values[value_order(len(values), shape.recurrent, width)])
