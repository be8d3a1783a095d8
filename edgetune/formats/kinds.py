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


def _attention(s: Shape) -> Matrices:
    d = s.d_model
    return {"attn_q": (s.d_q, d), "attn_k": (s.d_kv, d), "attn_v": (s.d_kv, d), "attn_output": (d, s.d_q)}


def _attention_norms(s: Shape) -> Vectors:
    if not s.qk_norm:
        return {}
    is_whole = s.qk_norm == "width"
    return {"attn_q_norm": s.d_q if is_whole else s.d_head, "attn_k_norm": s.d_kv if is_whole else s.d_head}


def _query_norms(s: Shape) -> Vectors:
    return {"attn_q_norm": _attention_norms(s)["attn_q_norm"]}


def _shared_attention(s: Shape) -> Matrices:
    return {"attn_q": (s.d_q, s.d_model), "attn_output": (s.d_model, s.d_q)}


def _attention_to_keys(s: Shape) -> Matrices:
    return {name: size for name, size in _attention(s).items() if name != "attn_v"}


def _fused_attention(s: Shape) -> Matrices:
    return {"attn_qkv": (s.d_q + 2 * s.d_kv, s.d_model), "attn_output": (s.d_model, s.d_q)}


def _gated_attention(s: Shape) -> Matrices:
    """attn_q makes the query and the gate of each head, one after the other."""
    return {**_attention(s), "attn_q": (2 * s.d_q, s.d_model)}


def _delta_net(s: Shape) -> Matrices:
    r = s.recurrent
    return {"attn_qkv": (delta_channels(s), s.d_model), "attn_gate": (r.inner, s.d_model),
            "ssm_out": (s.d_model, r.inner)}


def delta_channels(s: Shape) -> int:
    """Values a token of a delta net's queries, keys and values together."""
    return 2 * s.recurrent.groups * s.recurrent.state + s.recurrent.inner


def _delta_net_frozen(s: Shape) -> dict[str, tuple[int, ...]]:
    heads = s.recurrent.heads
    return {"ssm_alpha": (heads, s.d_model), "ssm_beta": (heads, s.d_model),
            "ssm_conv1d": (delta_channels(s), s.recurrent.taps)}


def _mamba(s: Shape) -> Matrices:
    return {"ssm_in": (mamba_rows(s), s.d_model), "ssm_out": (s.d_model, s.recurrent.inner)}


def mamba_channels(s: Shape) -> int:
    """Values a token of Mamba's x, B and C together."""
    return s.recurrent.inner + 2 * s.recurrent.groups * s.recurrent.state


def mamba_rows(s: Shape) -> int:
    """Values a token of z, of those, and of dt."""
    return s.recurrent.inner + mamba_channels(s) + s.recurrent.heads


def _mamba_frozen(s: Shape) -> dict[str, tuple[int, ...]]:
    r = s.recurrent
    return {"ssm_conv1d": (mamba_channels(s), r.taps), "ssm_norm": (r.groups, r.inner // r.groups)}


def _mamba_unnamed(s: Shape) -> dict[str, tuple[int, ...]]:
    heads = s.recurrent.heads
    return {"ssm_a": (heads, 1), "ssm_d": (heads, 1), "ssm_dt.bias": (heads,), "ssm_conv1d.bias": (mamba_channels(s),)}


def _gated(s: Shape) -> Matrices:
    return {"ffn_gate": (s.d_ff, s.d_model), "ffn_up": (s.d_ff, s.d_model), "ffn_down": (s.d_model, s.d_ff)}


def _short_conv(s: Shape) -> Matrices:
    return {"shortconv.in_proj": (3 * s.d_model, s.d_model), "shortconv.out_proj": (s.d_model, s.d_model)}


def _fused_gated(s: Shape) -> Matrices:
    return {"ffn_up": (2 * s.d_ff, s.d_model), "ffn_down": (s.d_model, s.d_ff)}


def _shared_expert(s: Shape) -> Matrices:
    return {"ffn_gate_shexp": (s.d_shared, s.d_model), "ffn_up_shexp": (s.d_shared, s.d_model),
            "ffn_down_shexp": (s.d_model, s.d_shared)}


def _router(s: Shape) -> dict[str, tuple[int, ...]]:
    return {"ffn_gate_inp": (s.n_expert, s.d_model)}


def _experts(s: Shape) -> Stacks:
    f = s.d_expert
    d = s.d_model
    return {"ffn_gate_exps": (s.n_expert, f, d), "ffn_up_exps": (s.n_expert, f, d),
            "ffn_down_exps": (s.n_expert, d, f)}


PROJECTIONS: dict[str, Callable[[Shape], Matrices]] = {
    "attention": _attention, "fused attention": _fused_attention, "gated": _gated, "fused gated": _fused_gated,
    "shared attention": _shared_attention, "attention to keys": _attention_to_keys,
    "short convolution": _short_conv, "experts": lambda _: {}, "shared experts": _shared_expert,
    "gated attention": _gated_attention, "delta net": _delta_net, "mamba": _mamba}
NORMS: dict[str, Callable[[Shape], Vectors]] = {
    "attention": _attention_norms, "fused attention": _attention_norms, "attention to keys": _attention_norms,
    "shared attention": _query_norms, "gated attention": _attention_norms,
    "delta net": lambda s: {"ssm_norm": s.recurrent.state}}
STACKS: dict[str, Callable[[Shape], Stacks]] = {"experts": _experts, "shared experts": _experts}
FROZEN: dict[str, Callable[[Shape], dict[str, tuple[int, ...]]]] = {
    "experts": _router, "shared experts": _router,
    "short convolution": lambda s: {"shortconv.conv": (s.d_model, s.conv)}, "delta net": _delta_net_frozen,
    "mamba": _mamba_frozen}
"""Other tensors, which are never adapted."""
UNNAMED: dict[str, Callable[[Shape], dict[str, tuple[int, ...]]]] = {
    "delta net": lambda s: {"ssm_a": (s.recurrent.heads,), "ssm_dt.bias": (s.recurrent.heads,)},
    "mamba": _mamba_unnamed}
"""Those of them whose names do not end with ".weight": in full."""


def frozen(kind: str, s: Shape) -> dict[str, tuple[int, ...]]:
    """All of these tensors of a kind, by their full names."""
    plain, unnamed = FROZEN.get(kind), UNNAMED.get(kind)
    found = {f"{name}.weight": shape for name, shape in (plain(s) if plain else {}).items()}
    return found | (unnamed(s) if unnamed else {})
