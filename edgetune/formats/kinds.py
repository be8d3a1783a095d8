"""The tensors of each kind of sublayer of a decoder, by its shape. Classes of models/structure.py compute with them.

Names are GGUF's, without block and ".weight"; matrices are [N, K], N outputs and K inputs; a stack is one [N, K]
of each of E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .shape import Shape

Matrices = dict[str, tuple[int, int]]
Stacks = dict[str, tuple[int, int, int]]
Vectors = dict[str, int]


def delta_channels(s: Shape) -> int:
    """Values a token of a delta net's queries, keys and values together."""
    return 2 * s.recurrent.groups * s.recurrent.state + s.recurrent.inner


def mamba_channels(s: Shape) -> int:
    """Values a token of Mamba's x, B and C together."""
    return s.recurrent.inner + 2 * s.recurrent.groups * s.recurrent.state


def mamba_rows(s: Shape) -> int:
    """Values a token of z, of those, and of dt."""
    return s.recurrent.inner + mamba_channels(s) + s.recurrent.heads


def _attention(s: Shape) -> Matrices:
    d = s.d_model
    return {"attn_q": (s.d_q, d), "attn_k": (s.d_kv, d), "attn_v": (s.d_kv, d), "attn_output": (d, s.d_q)}


def _attention_norms(s: Shape) -> Vectors:
    if not s.qk_norm:
        return {}
    is_whole = s.qk_norm == "width"
    return {"attn_q_norm": s.d_q if is_whole else s.d_head, "attn_k_norm": s.d_kv if is_whole else s.d_head}


def _experts(s: Shape) -> Stacks:
    size = (s.n_expert, s.d_expert, s.d_model)
    return {"ffn_gate_exps": size, "ffn_up_exps": size, "ffn_down_exps": (s.n_expert, s.d_model, s.d_expert)}


PROJECTIONS: dict[str, Callable[[Shape], Matrices]] = {
    "attention": _attention,
    "fused attention": lambda s: {"attn_qkv": (s.d_q + 2 * s.d_kv, s.d_model), "attn_output": (s.d_model, s.d_q)},
    "shared attention": lambda s: {"attn_q": (s.d_q, s.d_model), "attn_output": (s.d_model, s.d_q)},
    "attention to keys": lambda s: {name: size for name, size in _attention(s).items() if name != "attn_v"},
    "gated attention": lambda s: {**_attention(s), "attn_q": (2 * s.d_q, s.d_model)},  # a head's query, then its gate
    "short convolution": lambda s: {"shortconv.in_proj": (3 * s.d_model, s.d_model),
                                    "shortconv.out_proj": (s.d_model, s.d_model)},
    "delta net": lambda s: {"attn_qkv": (delta_channels(s), s.d_model), "attn_gate": (s.recurrent.inner, s.d_model),
                            "ssm_out": (s.d_model, s.recurrent.inner)},
    "mamba": lambda s: {"ssm_in": (mamba_rows(s), s.d_model), "ssm_out": (s.d_model, s.recurrent.inner)},
    "gated": lambda s: {"ffn_gate": (s.d_ff, s.d_model), "ffn_up": (s.d_ff, s.d_model),
                        "ffn_down": (s.d_model, s.d_ff)},
    "fused gated": lambda s: {"ffn_up": (2 * s.d_ff, s.d_model), "ffn_down": (s.d_model, s.d_ff)},
    "experts": lambda _: {},
    "shared experts": lambda s: {"ffn_gate_shexp": (s.d_shared, s.d_model), "ffn_up_shexp": (s.d_shared, s.d_model),
                                 "ffn_down_shexp": (s.d_model, s.d_shared)}}
NORMS: dict[str, Callable[[Shape], Vectors]] = {
    "attention": _attention_norms, "fused attention": _attention_norms, "attention to keys": _attention_norms,
    "shared attention": lambda s: {"attn_q_norm": _attention_norms(s)["attn_q_norm"]},
    "gated attention": _attention_norms, "delta net": lambda s: {"ssm_norm": s.recurrent.state}}
STACKS: dict[str, Callable[[Shape], Stacks]] = {"experts": _experts, "shared experts": _experts}
FROZEN: dict[str, Callable[[Shape], dict[str, tuple[int, ...]]]] = {
    "experts": lambda s: {"ffn_gate_inp": (s.n_expert, s.d_model)},
    "shared experts": lambda s: {"ffn_gate_inp": (s.n_expert, s.d_model)},
    "short convolution": lambda s: {"shortconv.conv": (s.d_model, s.conv)},
    "delta net": lambda s: {"ssm_alpha": (s.recurrent.heads, s.d_model), "ssm_beta": (s.recurrent.heads, s.d_model),
                            "ssm_conv1d": (delta_channels(s), s.recurrent.taps)},
    "mamba": lambda s: {"ssm_conv1d": (mamba_channels(s), s.recurrent.taps),
                        "ssm_norm": (s.recurrent.groups, s.recurrent.inner // s.recurrent.groups)}}
"""Other tensors, which are never adapted."""
UNNAMED: dict[str, Callable[[Shape], dict[str, tuple[int, ...]]]] = {
    "delta net": lambda s: {"ssm_a": (s.recurrent.heads,), "ssm_dt.bias": (s.recurrent.heads,)},
    "mamba": lambda s: {"ssm_a": (s.recurrent.heads, 1), "ssm_d": (s.recurrent.heads, 1),
                        "ssm_dt.bias": (s.recurrent.heads,), "ssm_conv1d.bias": (mamba_channels(s),)}}
"""Those of them whose names do not end with ".weight": in full."""


def frozen(kind: str, s: Shape) -> dict[str, tuple[int, ...]]:
    """All of these tensors of a kind, by their full names."""
    plain, unnamed = FROZEN.get(kind), UNNAMED.get(kind)
    found = {f"{name}.weight": shape for name, shape in (plain(s) if plain else {}).items()}
    return found | (unnamed(s) if unnamed else {})
