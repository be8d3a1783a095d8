"""A model in floats as transformers' model, and back: names, row order, configuration.

transformers rotates (i, i + C/2) of a head, llama.cpp's llama rotates neighbours (2i, 2i + 1), so a llama GGUF holds
the rows of q and k in another order. gemma3's norms are 1 + w in transformers and whole in a GGUF.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ...adapters.peft import MODULES, row_order
from ...errors import UnsupportedError, named
from ...formats.families import FAMILIES
from ...formats.rope import Rope
from ...formats.shape import Shape
from .floats import Floats

_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_INSIDE = MODULES | {
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}
_POST_NORMS = {"post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
          "post_ffw_norm": "post_feedforward_layernorm"}


def name_in_torch(name: str, architecture: str) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight"""
    if match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name):
        return f"model.layers.{match[1]}.{_inside(architecture)[match[2]]}.{match[3]}"
    part, _, kind = name.rpartition(".")
    return f"{_OUTSIDE[part]}.{kind}"


def name_in_gguf(name: str, architecture: str) -> str | None:
    """The inverse of name_in_torch; None for a tensor that a GGUF of this architecture has no place for."""
    if match := re.fullmatch(r"model\.layers\.(\d+)\.([\w.]+)\.(weight|bias)", name):
        inside = {theirs: ours for ours, theirs in _inside(architecture).items()}.get(match[2])
        return inside and f"blk.{match[1]}.{inside}.{match[3]}"
    part, _, kind = name.rpartition(".")
    outside = {theirs: ours for ours, theirs in _OUTSIDE.items()}.get(part)
    return outside and f"{outside}.{kind}"


def _inside(architecture: str) -> dict[str, str]:
    return _INSIDE | (_POST_NORMS if FAMILIES[architecture].post_norms else {})


def gguf_rows(name: str, rows: int, shape: Shape) -> NDArray[np.intp]:
    """Row i of the GGUF's tensor, weight or bias, is row order[i] of transformers'."""
    return row_order(name.rpartition(".")[0], rows, shape)


def tensor_to_torch(name: str, array: NDArray[np.float32], shape: Shape) -> NDArray[np.float32]:
    if name.endswith("norm.weight"):
        return np.subtract(array, shape.family.norm_offset, dtype=np.float32)
    return array[np.argsort(gguf_rows(name, array.shape[0], shape))]


def tensor_to_gguf(name: str, array: NDArray[np.float32], shape: Shape) -> NDArray[np.float32]:
    """The inverse of tensor_to_torch; `name` is the GGUF's."""
    if name.endswith("norm.weight"):
        return np.add(array, shape.family.norm_offset, dtype=np.float32)
    return np.ascontiguousarray(array[gguf_rows(name, array.shape[0], shape)])


def to_torch(model: Floats, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """transformers' model with these weights, in eval mode, attention by PyTorch's own kernel."""
    shape = model.shape
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config_of(model), attn_implementation="sdpa")
    built = built.to_empty(device="cpu").to(dtype)
    state = {name_in_torch(name, model.architecture): torch.from_numpy(tensor_to_torch(name, array, shape)).to(dtype)
             for name, array in model.tensors.items() if name != "rope_freqs.weight"}
    if built.config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    built.load_state_dict(state, strict=True, assign=True)
    built.tie_weights()
    _fill_buffers(built, shape.ropes[0])
    return built.eval()


def unpadded(ids: torch.Tensor) -> dict[str, Any]:
    """The other arguments of a model from to_torch for ids [B, T], or embeddings [B, T, D], without padding.

    Without a mask transformers takes them for packed sequences and makes a mask of T x T for each call, which took a
    third of a tiny model's seconds, and with which PyTorch leaves its faster causal attention.
    """
    return {"attention_mask": torch.ones(ids.shape[:2], dtype=torch.long), "use_cache": False}


def from_torch(trained: PreTrainedModel, model: Floats) -> Floats:
    """`model` with the weights that `trained`, once made from it by to_torch, has now."""
    shape = model.shape
    state = trained.state_dict()
    tensors = {}
    for name, array in model.tensors.items():
        if name == "rope_freqs.weight":
            tensors[name] = array
        else:
            values = state[name_in_torch(name, model.architecture)].float().numpy()
            tensors[name] = tensor_to_gguf(name, values, shape)
    return model.with_keys(tensors)


def _fill_buffers(built: PreTrainedModel, rope: Rope) -> None:
    """What is computed and not stored (rotary frequencies, gemma's embedding scale) is lost on the meta device.

    llama3's scaling comes as the factors that a GGUF holds: each frequency is divided by its own.
    """
    fresh = dict(AutoModelForCausalLM.from_config(_small(built.config)).named_buffers())
    for name, _ in list(built.named_buffers()):
        module, _, leaf = name.rpartition(".")
        owner = built.get_submodule(module)
        values = fresh[name]
        if rope.factors and leaf == "inv_freq":
            values = values / torch.tensor(rope.factors)
        setattr(owner, leaf, values)
        if hasattr(owner, f"original_{leaf}"):
            setattr(owner, f"original_{leaf}", values)


def _small(config: PretrainedConfig) -> PretrainedConfig:
    """The same rotary tables and scales with next to no weights."""
    small = type(config)(**config.to_dict())
    small.num_hidden_layers = 1
    small.vocab_size = 8
    small.intermediate_size = 8
    small.pad_token_id = None
    if getattr(small, "layer_types", None):
        small.layer_types = sorted(set(small.layer_types))
        small.num_hidden_layers = len(small.layer_types)
    return small


def config_of(model: Floats) -> PretrainedConfig:
    """transformers' configuration of the model."""
    s = model.shape
    keys = model.metadata
    settings: dict[str, Any] = {
        "vocab_size": s.n_vocab, "hidden_size": s.d_model, "intermediate_size": s.d_ff,
        "num_hidden_layers": s.n_layer, "num_attention_heads": s.n_head, "num_key_value_heads": s.n_kv,
        "head_dim": s.d_head, "max_position_embeddings": s.context, "rms_norm_eps": s.norm_eps,
        "rope_theta": s.ropes[0].base, "rope_scaling": _rope_scaling(s.ropes[0]),
        "tie_word_embeddings": "output.weight" not in model.tensors,
    }
    for ours, theirs in (("bos", "bos_token_id"), ("eos", "eos_token_id"), ("padding", "pad_token_id")):
        settings[theirs] = keys.get(f"tokenizer.ggml.{ours}_token_id")
    kind = s.architecture
    if kind == "llama":
        settings["attention_bias"] = "blk.0.attn_q.bias" in model.tensors
        settings["mlp_bias"] = "blk.0.ffn_up.bias" in model.tensors
    if kind == "gemma3":
        kind = "gemma3_text"
        settings |= {
            "query_pre_attn_scalar": round(s.attn_scale**-2), "rope_local_base_freq": s.ropes[1].base,
            "sliding_window": max(s.windows) or s.context, "hidden_activation": "gelu_pytorch_tanh",
            "layer_types": ["sliding_attention" if window else "full_attention" for window in s.windows],
        }
    try:
        return AutoConfig.for_model(kind, **settings)
    except Exception as error:  # its checks grow with its versions
        raise UnsupportedError(f"transformers {transformers.__version__} refuses a {kind} of this shape "
                               f"({named(error)})", "choose another --width, or install transformers 4.57") from None


def _rope_scaling(rope: Rope) -> dict[str, Any] | None:
    if rope.kind == "linear" and rope.factor != 1.0:
        return {"rope_type": "linear", "factor": rope.factor}
    if rope.kind == "yarn":
        return {"rope_type": "yarn", "factor": rope.factor, "original_max_position_embeddings": rope.original_context}
    return None
