"""A model in floats as a configuration of transformers, one function an architecture.

Each function returns the type of models and what it has besides `base_of`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ...errors import UnsupportedError
from ...formats.rope import Rope
from .floats import Floats

Settings = tuple[str, dict[str, Any]]


def base_of(model: Floats) -> dict[str, Any]:
    """What all configurations have."""
    s = model.shape
    keys = model.metadata
    settings: dict[str, Any] = {
        "vocab_size": s.n_vocab, "hidden_size": s.d_model, "intermediate_size": s.d_ff,
        "num_hidden_layers": s.n_layer, "num_attention_heads": s.n_head, "num_key_value_heads": s.n_kv,
        "head_dim": s.d_head, "max_position_embeddings": s.context,
        "rms_norm_eps": keys[f"{s.architecture}.attention.layer_norm_rms_epsilon"],
        "rope_theta": s.ropes[0].base, "rope_scaling": _rope_scaling(s.ropes[0]),
        "tie_word_embeddings": "output.weight" not in model.tensors,
    }
    for ours, theirs in (("bos", "bos_token_id"), ("eos", "eos_token_id"), ("padding", "pad_token_id")):
        settings[theirs] = keys.get(f"tokenizer.ggml.{ours}_token_id")
    return settings


def _rope_scaling(rope: Rope) -> dict[str, Any] | None:
    if rope.kind == "linear" and rope.factor != 1.0:
        return {"rope_type": "linear", "factor": rope.factor}
    if rope.kind != "yarn":
        return None
    found = {"rope_type": "yarn", "factor": rope.factor, "original_max_position_embeddings": rope.original_context,
             "beta_fast": rope.fast, "beta_slow": rope.slow}
    stretched = 0.1 * math.log(rope.factor)
    if rope.attn_factor != 1.0 or rope.log_multiplier:
        found["attention_factor"] = rope.attn_factor * (1 + stretched) / (1 + rope.log_multiplier * stretched)
    return found


def _biases(model: Floats) -> dict[str, Any]:
    return {"attention_bias": "blk.0.attn_q.bias" in model.tensors, "mlp_bias": "blk.0.ffn_up.bias" in model.tensors}


def _windows(model: Floats) -> list[str]:
    return ["sliding_attention" if window else "full_attention" for window in model.shape.windows]


def _gemma3(model: Floats) -> Settings:
    s = model.shape
    return "gemma3_text", {
        "query_pre_attn_scalar": round(s.attn_scale**-2), "rope_local_base_freq": s.ropes[1].base,
        "sliding_window": max(s.windows) or s.context, "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": _windows(model)}


def _smollm3(model: Floats) -> Settings:
    s = model.shape
    return "smollm3", _biases(model) | {"no_rope_layers": [int(i not in s.unrotated) for i in range(s.n_layer)]}


def _granite(model: Floats) -> Settings:
    s = model.shape
    if s.unrotated:
        raise UnsupportedError("transformers' granite rotates all blocks, this model none",
                               "leave out --calibrate and --distill, and measure with --measure")
    residual = model.metadata.get("granite.residual_scale") or 1.0
    return "granite", _biases(model) | {
        "embedding_multiplier": s.embed_scale * residual, "residual_multiplier": residual,
        "attention_multiplier": s.attn_scale, "logits_scaling": s.logit_scale}


def _olmo2(model: Floats) -> Settings:
    windows = model.shape.windows
    if not any(windows):
        return "olmo2", {"attention_bias": False}
    return "olmo3", {"attention_bias": False, "sliding_window": max(windows), "layer_types": _windows(model)}


def _phi3(model: Floats) -> Settings:
    s = model.shape
    return "phi3", {"partial_rotary_factor": s.n_rot / s.d_head, "original_max_position_embeddings": s.context,
                    "sliding_window": None}


def _lfm2(model: Floats) -> Settings:
    s = model.shape
    kinds = ["full_attention" if mixer == "attention" else "conv" for mixer in s.mixers]
    return "lfm2", {"layer_types": kinds, "conv_L_cache": s.conv, "conv_bias": False,
                    "block_auto_adjust_ff_dim": False,
                    "norm_eps": model.metadata["lfm2.attention.layer_norm_rms_epsilon"]}


OF_ARCHITECTURE: dict[str, Callable[[Floats], Settings]] = {
    "llama": lambda model: ("llama", _biases(model)),
    "internlm2": lambda model: ("llama", _biases(model)),
    "qwen2": lambda _: ("qwen2", {}), "qwen3": lambda _: ("qwen3", {}),
    "gemma3": _gemma3, "smollm3": _smollm3, "granite": _granite,
    "ernie4_5": lambda _: ("ernie4_5", {"use_bias": False}), "olmo2": _olmo2, "phi3": _phi3, "lfm2": _lfm2,
    "exaone4": lambda model: ("exaone4", {"sliding_window": None,
                                          "layer_types": ["full_attention"] * model.shape.n_layer}),
    "mistral3": lambda _: ("mistral", {"sliding_window": None}),
    "glm4": lambda model: ("glm4", {"attention_bias": "blk.0.attn_q.bias" in model.tensors,
                                    "partial_rotary_factor": model.shape.n_rot / model.shape.d_head}),
    "hunyuan-dense": lambda _: ("hunyuan_v1_dense", {})}
