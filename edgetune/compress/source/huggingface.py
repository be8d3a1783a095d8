"""A model in floats as transformers' model, and back: names, row order, configuration.

transformers rotates (i, i + C/2) of a head, llama.cpp's llama rotates neighbours (2i, 2i + 1), so a llama GGUF holds
the rows of q and k in another order. gemma3's norms are 1 + w in transformers and whole in a GGUF.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ...adapters.peft import row_order
from ...errors import UnsupportedError, named
from ...formats.rope import Rope
from ...formats.shape import Shape
from .floats import Floats
from .model_types import TYPES, ModelType, is_state, state_to_gguf

# transformers has no code for an internlm2, which is a llama under other names
_TYPE_OF: dict[str, ModelType] = {"internlm2": replace(TYPES["llama"], architecture="internlm2")}
Settings = tuple[str, dict[str, Any]]


for _kind in TYPES.values():
    _TYPE_OF.setdefault(_kind.architecture, _kind)


def computes(architecture: str) -> bool:
    """Whether to_torch takes models of this architecture."""
    return architecture in OF_ARCHITECTURE


def is_rotary(name: str) -> bool:
    """Whether a tensor holds factors of rotary frequencies, which transformers has in its configuration."""
    return name.startswith("rope_f")


def name_in_torch(name: str, architecture: str) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight"""
    kind = _TYPE_OF[architecture]
    if match := re.fullmatch(r"blk\.(\d+)\.([\w.]+)\.(weight|bias)", name):
        return f"model.layers.{match[1]}.{kind.modules[match[2]]}.{match[3]}"
    part, _, suffix = name.rpartition(".")
    return f"{kind.outside[part]}.{suffix}"


def module_in_torch(name: str, architecture: str) -> str:
    """blk.3.attn_q -> model.layers.3.self_attn.q_proj"""
    return name_in_torch(f"{name}.weight", architecture).removesuffix(".weight")


def gguf_rows(name: str, rows: int, shape: Shape) -> NDArray[np.intp]:
    """Row i of the GGUF's tensor, weight or bias, is row order[i] of transformers'."""
    return row_order(name.rpartition(".")[0], rows, shape)


def tensor_to_torch(name: str, array: NDArray[np.float32], shape: Shape) -> NDArray[np.float32]:
    if name.endswith("norm.weight"):
        return np.subtract(array, shape.family.norm_offset, dtype=np.float32)
    if name.endswith(".conv.weight"):
        return np.array(array[:, None])  # torch wants its own
    return array[np.argsort(gguf_rows(name, array.shape[0], shape))]


def tensor_to_gguf(name: str, array: NDArray[np.float32], shape: Shape) -> NDArray[np.float32]:
    """The inverse of tensor_to_torch; `name` is the GGUF's."""
    if name.endswith("norm.weight"):
        return np.add(array, 0 if name.endswith("ssm_norm.weight") else shape.family.norm_offset, dtype=np.float32)
    if is_state(name):
        return state_to_gguf(name, array, shape)
    if name.endswith(".conv.weight"):
        return np.ascontiguousarray(array.reshape(len(array), -1))
    if array.ndim == 3:  # of experts
        return np.ascontiguousarray(array)
    return np.ascontiguousarray(array[gguf_rows(name, array.shape[0], shape)])


def to_torch(model: Floats, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """transformers' model with these weights, in eval mode, attention by PyTorch's own kernel. UnsupportedError for an
    architecture that it does not compute for us, and for tensors that its model does not have.
    """
    shape = model.shape
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config_of(model), attn_implementation="sdpa")
    built = built.to_empty(device="cpu").to(dtype)
    state = {name_in_torch(name, model.architecture): torch.from_numpy(tensor_to_torch(name, array, shape)).to(dtype)
             for name, array in model.tensors.items() if not is_rotary(name)}
    if built.config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    if state.keys() != built.state_dict().keys():
        others = sorted(state.keys() ^ built.state_dict().keys())
        raise UnsupportedError(f"transformers' {built.config.model_type} and this model differ in {others[0]}",
                               "leave out --calibrate and --distill, and measure with --measure")
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
        if is_rotary(name):
            tensors[name] = array
        else:
            values = state[name_in_torch(name, model.architecture)].float().numpy()
            tensors[name] = tensor_to_gguf(name, values, shape)
    return model.with_keys(tensors)


def embedded(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """What the first block gets, [..., D]."""
    scaled: torch.Tensor = model.model.embed_tokens(ids) * getattr(model.config, "embedding_multiplier", 1.0)
    return scaled


def head_of(model: PreTrainedModel) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function that makes logits [..., V] of what the last norm gives."""
    scale = getattr(model.config, "logits_scaling", 1.0)
    if scale == 1.0:
        plain: Callable[[torch.Tensor], torch.Tensor] = model.lm_head
        return plain
    return lambda hidden: model.lm_head(hidden) / scale


def last_norm(model: PreTrainedModel, architecture: str) -> nn.Module:
    name = _TYPE_OF[architecture].last_norm
    norm: nn.Module = model.model.get_submodule(name)
    return norm


def _fill_buffers(built: PreTrainedModel, rope: Rope) -> None:
    """What is computed and not stored (rotary frequencies, gemma's embedding scale) is lost on the meta device.

    llama3's scaling comes as the factors that a GGUF holds: each frequency is divided by its own. So do phi3's.
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
        if rope.kind != "yarn" and rope.attn_factor != 1.0 and hasattr(owner, "attention_scaling"):
            owner.attention_scaling = rope.attn_factor


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
    if not computes(model.architecture):
        raise UnsupportedError(f"{model.architecture} is not computed by transformers here",
                               "leave out --calibrate and --distill, and measure with --measure")
    kind, settings = OF_ARCHITECTURE[model.architecture](model)
    try:
        return AutoConfig.for_model(kind, **base_of(model), **settings)
    except Exception as error:  # its checks grow with its versions
        raise UnsupportedError(f"transformers {transformers.__version__} refuses a {kind} of this shape "
                               f"({named(error)})", "choose another --width, or install transformers 4.57") from None


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
    "gemma3": _gemma3, "smollm3": lambda model: ("smollm3", _biases(model) | {
        "no_rope_layers": [int(i not in model.shape.unrotated) for i in range(model.shape.n_layer)]}),
    "granite": _granite,
    "ernie4_5": lambda _: ("ernie4_5", {"use_bias": False}), "olmo2": _olmo2,
    "phi3": lambda model: ("phi3", {"partial_rotary_factor": model.shape.n_rot / model.shape.d_head,
                                    "original_max_position_embeddings": model.shape.context,
                                    "sliding_window": None}),
    "lfm2": _lfm2,
    "exaone4": lambda model: ("exaone4", {"sliding_window": None,
                                          "layer_types": ["full_attention"] * model.shape.n_layer}),
    "mistral3": lambda _: ("mistral", {"sliding_window": None}),
    "glm4": lambda model: ("glm4", {"attention_bias": "blk.0.attn_q.bias" in model.tensors,
                                    "partial_rotary_factor": model.shape.n_rot / model.shape.d_head}),
    "hunyuan-dense": lambda _: ("hunyuan_v1_dense", {})}
