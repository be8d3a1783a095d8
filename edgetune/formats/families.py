"""The architectures that edgetune trains, one row each: by what their decoders differ beyond numbers in the file.

A new one whose block has the same parts is a row here.
"""

from __future__ import annotations

from dataclasses import dataclass

QKV = ("attn_q", "attn_k", "attn_v")
ALL = (*QKV, "attn_output", "ffn_gate", "ffn_up", "ffn_down")


@dataclass(frozen=True)
class Family:
    """Switches of an architecture, as llama.cpp computes it."""

    name: str
    biases: tuple[str, ...]  # projections that may have one; with any other llama.cpp refuses the file
    neox: bool = True  # rotary order: pairs (i, i + n_rot / 2) instead of (2i, 2i + 1), which moves rows of q and k
    rope_factors: bool = False  # whether rope_freqs.weight is read
    act: str = "silu"
    qk_norm: bool = False
    post_norms: bool = False  # it normalises again before each residual sum
    scaled_embedding: bool = False  # by the root of the model's width
    norm_offset: float = 0.0  # what a GGUF's norm weights are above those of transformers
    windows_every: int = 0  # all but every n-th block see a window unless the file says otherwise; 0: none does
    wide_blocks: int = 0  # blocks of the one size whose attention is scaled by D / H and not by the head's width


FAMILIES = {family.name: family for family in (
    Family("llama", ALL, neox=False, rope_factors=True),
    Family("qwen2", QKV),
    Family("qwen3", QKV, qk_norm=True),
    Family("gemma3", QKV, act="gelu", qk_norm=True, post_norms=True, scaled_embedding=True, norm_offset=1.0,
           windows_every=6, wide_blocks=62),
)}
