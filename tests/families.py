"""Tiny random transformers models of every family, and the same weights as a GGUF file.

transformers is the truth that the engine is compared with; `logits_of` asks llama.cpp, the truth on what a file means.
"""

import ctypes
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import llama_cpp as llama
import numpy as np
import pytest
import torch
import transformers
import without_sklearn  # noqa: F401
from formats_of_ggml import dequantize, quantize
from gguf_names import gguf_name
from tiny import (
    Shape,
    delta_metadata,
    format_of,
    mamba_metadata,
    model_metadata,
    tokenizer_metadata,
    write_gguf,
)
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, masking_utils

torch.set_num_threads(1)  # products this small take ten times longer on two threads of a busy machine
# No row here is several in one: to look for that takes 40 % of a pass and its backward.
masking_utils.find_packed_sequence_indices = lambda _position_ids: None

SIZES = {
    "vocab_size": 416, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "rms_norm_eps": 1e-5}
# What each family is beside SIZES. Heads wider than D / H are usual for qwen3 and gemma3.
FAMILIES: dict[str, dict[str, object]] = {
    "llama": {"rope_theta": 1e4, "tie_word_embeddings": False},
    "qwen2": {"rope_theta": 1e6, "tie_word_embeddings": True},
    "qwen3": {"rope_theta": 1e6, "tie_word_embeddings": True, "head_dim": 32},
    "gemma3": {
        "rope_theta": 1e6, "rope_local_base_freq": 1e4, "tie_word_embeddings": True, "head_dim": 32,
        "query_pre_attn_scalar": 32, "sliding_window": 24, "sliding_window_pattern": 2, "rms_norm_eps": 1e-6},
}
# Families that are trained and served, and not compressed.
TRAINED: dict[str, dict[str, object]] = {
    "smollm3": {"rope_theta": 1e6, "tie_word_embeddings": True, "num_hidden_layers": 4, "pad_token_id": 0},
    "granite": {"rope_theta": 1e4, "tie_word_embeddings": True, "embedding_multiplier": 12.0,
                "residual_multiplier": 0.22, "attention_multiplier": 0.05, "logits_scaling": 8.0},
    "ernie4_5": {"rope_theta": 5e5, "tie_word_embeddings": True, "use_bias": False},
    "olmo2": {"rope_theta": 5e5, "tie_word_embeddings": False},
    "olmo3": {"rope_theta": 5e5, "tie_word_embeddings": False, "sliding_window": 24, "num_hidden_layers": 4},
    "exaone4": {"rope_theta": 1e6, "tie_word_embeddings": True, "sliding_window": None,
                "layer_types": ["full_attention"] * 3},
    "hunyuan-dense": {"rope_theta": 1e4, "tie_word_embeddings": True, "head_dim": 32},
    "mistral3": {"rope_theta": 1e6, "tie_word_embeddings": False, "head_dim": 32},
    "phi3": {"rope_theta": 1e4, "tie_word_embeddings": True, "pad_token_id": 0, "partial_rotary_factor": 0.75},
    "glm4": {"rope_theta": 1e4, "tie_word_embeddings": False, "head_dim": 32, "partial_rotary_factor": 0.5,
             "attention_bias": True, "pad_token_id": 0},
    "internlm2": {"rope_theta": 1e6, "tie_word_embeddings": False},  # a llama for transformers
    "lfm2": {"rope_theta": 1e6, "tie_word_embeddings": True, "norm_eps": 1e-5, "conv_L_cache": 3, "conv_bias": False,
             "layer_types": ["conv", "full_attention", "conv"], "block_auto_adjust_ff_dim": False},
    "qwen3moe": {"rope_theta": 1e6, "tie_word_embeddings": True, "head_dim": 32, "num_experts": 6,
                 "num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True},
    "olmoe": {"rope_theta": 1e4, "num_key_value_heads": 4,
              "tie_word_embeddings": False, "num_experts": 5, "num_experts_per_tok": 3,
              "intermediate_size": 64, "norm_topk_prob": False, "pad_token_id": 0},
    "granitehybrid": {"rope_theta": 1e4, "tie_word_embeddings": True, "embedding_multiplier": 12.0,
                      "residual_multiplier": 0.22, "attention_multiplier": 0.05, "logits_scaling": 8.0,
                      "layer_types": ["mamba", "attention", "mamba"], "position_embedding_type": "nope",
                      "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 32, "mamba_n_groups": 1,
                      "mamba_chunk_size": 16, "num_local_experts": 0, "shared_intermediate_size": 160},
    "granitehybridmoe": {"rope_theta": 1e4, "tie_word_embeddings": True, "embedding_multiplier": 12.0,
                         "residual_multiplier": 0.22, "attention_multiplier": 0.05, "logits_scaling": 8.0,
                         "layer_types": ["mamba", "attention", "mamba"], "position_embedding_type": "nope",
                         "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 32, "mamba_n_groups": 1,
                         "mamba_chunk_size": 16, "num_local_experts": 5, "num_experts_per_tok": 2,
                         "intermediate_size": 48, "shared_intermediate_size": 96},
    "granitemoeshared": {"rope_theta": 1e4, "tie_word_embeddings": True, "embedding_multiplier": 12.0,
                         "residual_multiplier": 0.22, "attention_multiplier": 0.05, "logits_scaling": 8.0,
                         "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 64,
                         "shared_intermediate_size": 96},
    "granitemoe": {"rope_theta": 1e4, "tie_word_embeddings": True, "embedding_multiplier": 12.0,
                   "residual_multiplier": 0.22, "attention_multiplier": 0.05, "logits_scaling": 8.0,
                   "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 64},
}
# Families that only transformers 5 has, as `make lab NAME=families5` does. Without it their tests are skipped.
NEWER: dict[str, dict[str, object]] = {
    "ministral3": {"rope_theta": 1e6, "tie_word_embeddings": False, "head_dim": 32, "pad_token_id": 0,
                   "rope_parameters": {
                       "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 128,
                       "beta_fast": 16.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 0.5,
                       "llama_4_scaling_beta": 0.1}},
    "gemma4": {"rope_theta": 1e6, "tie_word_embeddings": True, "num_hidden_layers": 6, "head_dim": 16,
               "global_head_dim": 32, "rms_norm_eps": 1e-6, "sliding_window": 24, "num_kv_shared_layers": 2,
               "use_double_wide_mlp": True, "hidden_size_per_layer_input": 32, "vocab_size_per_layer_input": 416,
               "final_logit_softcapping": 20.0, "pad_token_id": 0,
               "layer_types": ["sliding_attention", "full_attention"] * 3},
    "lfm2moe": {"rope_theta": 1e6, "tie_word_embeddings": True, "norm_eps": 1e-5, "conv_L_cache": 3,
                "layer_types": ["conv", "full_attention", "conv"], "num_experts": 6, "num_experts_per_tok": 2,
                "moe_intermediate_size": 48, "num_dense_layers": 1, "pad_token_id": 0},
    "qwen35": {"rope_theta": 1e6, "tie_word_embeddings": True, "head_dim": 32, "rms_norm_eps": 1e-6, "pad_token_id": 0,
               "layer_types": ["linear_attention", "full_attention", "linear_attention"], "linear_key_head_dim": 16,
               "linear_value_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 2,
               "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5,
                                   "mrope_section": [3, 3, 2], "mrope_interleaved": True}},
}
ALL_FAMILIES = FAMILIES | TRAINED | NEWER
# transformers' names of models
MODEL_TYPES = {"gemma3": "gemma3_text", "qwen3moe": "qwen3_moe", "lfm2moe": "lfm2_moe", "gemma4": "gemma4_text",
               "hunyuan-dense": "hunyuan_v1_dense", "mistral3": "mistral", "internlm2": "llama",
               "qwen35": "qwen3_5_text", **dict.fromkeys(("granitehybrid", "granitehybridmoe"), "granitemoehybrid")}
REORDERED = ("llama", "smollm3", "granite", "granitemoe", "granitemoeshared", "granitemoehybrid", "mistral",
             "ministral3")
# whose rows of q and k a GGUF holds in another order
ROPES: dict[str, dict[str, object] | None] = {
    "none": None,
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
}
VARIANTS: list[tuple[str, dict[str, object]]] = [  # other configurations of the families
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"num_key_value_heads": 4}),
    ("qwen2", {"tie_word_embeddings": False}),
    ("qwen3", {"tie_word_embeddings": False, "num_key_value_heads": 1}),
    ("gemma3", {"rope_local_base_freq": 500.0}),
    ("gemma3", {"num_hidden_layers": 7, "sliding_window_pattern": 6}),
    ("gemma3", {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}),
    ("smollm3", {"tie_word_embeddings": False, "num_key_value_heads": 4}),
    ("granite", {"tie_word_embeddings": False, "residual_multiplier": 1.5}),
    ("granite", {"attention_bias": True, "mlp_bias": True}),
    ("ernie4_5", {"tie_word_embeddings": False, "num_key_value_heads": 1}),
    ("olmo3", {"sliding_window": 24, "num_hidden_layers": 4}),
    ("exaone4", {"tie_word_embeddings": False, "num_key_value_heads": 4}),
    ("hunyuan-dense", {"tie_word_embeddings": False}),
    ("gemma4", {"tie_word_embeddings": False, "final_logit_softcapping": None, "num_key_value_heads": 4}),
    ("gemma4", {"attention_k_eq_v": True, "num_global_key_value_heads": 1, "num_kv_shared_layers": 0,
                "use_double_wide_mlp": False, "hidden_size_per_layer_input": 0}),
    ("gemma4", {"attention_k_eq_v": True, "layer_types": ["sliding_attention"] * 3 + ["full_attention"] * 3,
                "num_kv_shared_layers": 2}),
    ("qwen35", {"linear_num_value_heads": 6, "tie_word_embeddings": False}),
]
# The kinds of rotary scaling that llama.cpp computes as transformers does, for each family.
ROPES_OF = {
    "llama": ["none", "linear", "llama3", "yarn"],
    "qwen2": ["none", "linear", "yarn"],
    "qwen3": ["none", "linear", "yarn"],
    "gemma3": ["none", "linear", "yarn"],
    **{name: ["none"] for name in TRAINED | NEWER},
}
ZERO_CENTERED = ("gemma3_text", "qwen3_5_text")  # whose norms a GGUF holds with 1 more
ARCHITECTURES = {"olmo3": "olmo2", "ministral3": "mistral3", "granitehybridmoe": "granitehybrid",
                 "granitemoeshared": "granitemoe"}  # of GGUF, where transformers has another name


def make_family(
    name: str, folder: Path, seed: int = 0, rope: str = "none", formats: str | Mapping[str, str] = "F32",
    metadata: Mapping[str, object] | None = None, **config_overrides: object) -> tuple[Path, PreTrainedModel]:
    """A random model of family `name` -> (GGUF path, transformers model in float32, eval mode, eager attention).

    formats: as in `tiny.write_tiny`; the transformers model gets the values that the quantized bytes stand for.
    config_overrides: fields of the transformers configuration. metadata: GGUF keys to add or replace; None removes.
    """
    if name in NEWER and int(transformers.__version__.partition(".")[0]) < 5:
        pytest.skip(f"transformers {transformers.__version__} has no {name}: make lab NAME=families5")
    settings = SIZES | ALL_FAMILIES[name] | config_overrides
    if ROPES[rope]:
        settings["rope_scaling"] = dict(ROPES[rope])
    config = AutoConfig.for_model(MODEL_TYPES.get(name, name), **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
        randomize(model)
    if name == "gemma4":
        config.allow_global_per_layer_attribute_access = True
    tensors = {}
    with torch.no_grad():
        for hf_name, parameter in weights_of(model):
            tensor = gguf_name(hf_name, name)
            values = to_gguf(parameter.numpy(), hf_name, model)
            if values.ndim == 2 and parameter.ndim == 2:
                format = format_of(tensor, formats)
                kept = dequantize(quantize(values, format), format)
                parameter.copy_(torch.from_numpy(from_gguf(kept, hf_name, model)))
            tensors[tensor] = values
    tensors = stacked_experts(tensors)
    if rope == "llama3":
        tensors["rope_freqs.weight"] = rope_factors(model)
    if name == "gemma4":
        turns = model.model.rotary_emb.full_attention_inv_freq.numpy() > 0
        tensors["rope_freqs.weight"] = np.where(turns, 1, 1e30).astype(np.float32)
    fields = tokenizer_metadata(config.vocab_size, pre=name) | config_metadata(name, config, settings)
    path = folder / f"{name}-{rope}-{seed}.gguf"
    return write_gguf(path, ARCHITECTURES.get(name, name), fields | dict(metadata or {}), tensors, formats), model


def weights_of(model: PreTrainedModel) -> list[tuple[str, torch.Tensor]]:
    """All that a file holds: parameters, biases of experts and scales of blocks, which transformers has as buffers."""
    buffers = [pair for pair in model.named_buffers() if pair[0].endswith(("expert_bias", "layer_scalar"))]
    return [*model.named_parameters(), *buffers]


def stacked_experts(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The matrices of experts as a GGUF has them: [E, F, D] each; one that holds gate and up is divided."""
    found: dict[str, Any] = {}
    for name, values in tensors.items():
        if single := re.fullmatch(r"(blk.\d+.ffn_\w+_exps).\d+.weight", name):
            found.setdefault(f"{single[1]}.weight", []).append(values)
        elif name.endswith(("ffn_gate_up_exps.weight", "ffn_gate_up_shexp.weight", "ffn_gate_up.weight")):
            gate, up = np.split(values, 2, axis=-2)
            found |= {name.replace("gate_up", "gate"): gate, name.replace("gate_up", "up"): up}
        else:
            found[name] = values
    return {name: np.stack(values) if isinstance(values, list) else values for name, values in found.items()}


def randomize(model: PreTrainedModel) -> None:
    """Weights that spread the logits, norms around 1, biases that matter."""
    zero_centered = model.config.model_type in ZERO_CENTERED
    with torch.no_grad():
        for name, parameter in weights_of(model):
            parameter.normal_()
            if name.endswith(("norm.weight", "layer_scalar")):
                parameter.mul_(0.2).add_(0.0 if zero_centered and ".linear_attn." not in name else 1.0)
            elif parameter.ndim >= 2:
                parameter.mul_(1.5 / parameter.shape[-1] ** 0.5)
            else:
                parameter.mul_(0.3)


def config_metadata(name: str, config: PretrainedConfig, settings: Mapping[str, object]) -> dict[str, object]:
    """The configuration under GGUF's keys, as llama.cpp's converters write it."""
    shape = Shape(
        d_model=config.hidden_size, n_blocks=config.num_hidden_layers, n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads, head_width=head_width(config), d_ff=config.intermediate_size,
        n_vocab=config.vocab_size, n_context=config.max_position_embeddings, rope_base=settings["rope_theta"],
        rms_eps=getattr(config, "rms_norm_eps", None) or config.norm_eps)
    fields = {}
    if name == "gemma3":
        fields["attention.sliding_window"] = config.sliding_window
        if settings.get("layer_types"):
            fields["attention.sliding_window_pattern"] = [kind == "sliding_attention" for kind in config.layer_types]
        elif settings["sliding_window_pattern"] != 6:  # what a file means that does not say
            fields["attention.sliding_window_pattern"] = settings["sliding_window_pattern"]
        if settings["rope_local_base_freq"] != 1e4:
            fields["rope.freq_base_swa"] = settings["rope_local_base_freq"]
    if name in ("lfm2", "lfm2moe"):
        fields["shortconv.l_cache"] = config.conv_L_cache
        fields["attention.head_count_kv"] = [config.num_key_value_heads * (kind == "full_attention")
                                             for kind in config.layer_types]
    if name == "gemma4":
        fields |= gemma4_metadata(config)
    if name == "qwen35":
        full = config.layer_types.index("full_attention") + 1
        fields |= delta_metadata(config.linear_num_key_heads, config.linear_num_value_heads, config.linear_key_head_dim,
                                 full, rotated=int(config.head_dim * config.rope_parameters["partial_rotary_factor"]))
    if name in ("granitehybrid", "granitehybridmoe"):
        sizes = (config.mamba_n_heads, config.mamba_d_state, config.mamba_n_groups)
        fields |= mamba_metadata(sizes, config.hidden_size)
        attention = ("attention", "full_attention")  # of transformers 4 and 5
        fields["attention.head_count_kv"] = [config.num_key_value_heads * (kind in attention)
                                             for kind in config.layer_types]
    if name == "olmo3":
        fields["attention.sliding_window"] = config.sliding_window
    if name in ("granitehybridmoe", "granitemoeshared"):
        fields["expert_shared_feed_forward_length"] = config.shared_intermediate_size
    if name in ("qwen3moe", "olmoe", "granitemoe", "granitemoeshared", "granitehybridmoe", "lfm2moe"):
        experts = config.num_local_experts if name.startswith("granite") else config.num_experts
        fields |= {"expert_count": experts, "expert_used_count": config.num_experts_per_tok}
    if name in ("qwen3moe", "lfm2moe"):
        fields["expert_feed_forward_length"] = config.moe_intermediate_size
    if name == "lfm2moe":
        fields |= {"leading_dense_block_count": config.num_dense_layers, "expert_gating_func": 2}
    if name == "ministral3":
        scaling = config.rope_parameters
        fields |= {"rope.scaling.type": "yarn", "rope.scaling.factor": scaling["factor"],
                   "rope.scaling.original_context_length": scaling["original_max_position_embeddings"],
                   "rope.scaling.yarn_beta_fast": scaling["beta_fast"],
                   "rope.scaling.yarn_log_multiplier": scaling["mscale_all_dim"],
                   "attention.temperature_scale": scaling["llama_4_scaling_beta"]}
    if name.startswith("granite"):
        fields |= {"embedding_scale": config.embedding_multiplier, "residual_scale": config.residual_multiplier,
                   "attention.scale": config.attention_multiplier, "logit_scale": config.logits_scaling}
    if name in ("phi3", "glm4"):
        fields["rope.dimension_count"] = int(head_width(config) * settings["partial_rotary_factor"])
    scaling = settings.get("rope_scaling")
    if scaling and scaling["rope_type"] != "llama3":
        fields["rope.scaling.type"] = scaling["rope_type"]
        fields["rope.scaling.factor"] = scaling["factor"]
        if scaling["rope_type"] == "yarn":
            fields["rope.scaling.original_context_length"] = scaling["original_max_position_embeddings"]
    architecture = ARCHITECTURES.get(name, name)
    return model_metadata(architecture, shape) | {f"{architecture}.{key}": value for key, value in fields.items()}


def gemma4_metadata(config: PretrainedConfig) -> dict[str, object]:
    """Of the two kinds of blocks, and of those that take keys and values of others."""
    every = range(config.num_hidden_layers)
    full, narrow = (config.per_layer_config[config.layer_types.index(kind)]
                    for kind in ("full_attention", "sliding_attention"))
    has_window = [kind == "sliding_attention" for kind in config.layer_types]
    own = config.num_hidden_layers - config.num_kv_shared_layers
    return {"attention.key_length": full.head_dim, "attention.value_length": full.head_dim,
            "rope.dimension_count": full.head_dim, "attention.key_length_swa": narrow.head_dim,
            "attention.value_length_swa": narrow.head_dim, "rope.dimension_count_swa": narrow.head_dim,
            "rope.freq_base_swa": 1e4, "attention.sliding_window": config.sliding_window,
            "attention.sliding_window_pattern": has_window, "attention.shared_kv_layers": config.num_kv_shared_layers,
            "embedding_length_per_layer_input": config.hidden_size_per_layer_input or 0,
            "final_logit_softcapping": config.final_logit_softcapping or 0.0,
            "attention.head_count_kv": [config.per_layer_config[i].num_key_value_heads for i in every],
            "feed_forward_length": [config.intermediate_size * (2 if config.use_double_wide_mlp and i >= own else 1)
                                    for i in every]}


def head_width(config: PretrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def rotary_rows(heads: int, width: int) -> np.ndarray:
    """Order in which llama's GGUF holds the rows of q and k: row i of the file is row order[i] of transformers.

    transformers rotates (i, i + C/2), llama.cpp's llama rotates neighbours (2i, 2i + 1).
    """
    return np.arange(heads * width).reshape(heads, 2, width // 2).transpose(0, 2, 1).reshape(-1)


def value_order(size: int, model: PreTrainedModel) -> np.ndarray:
    """Order in which a GGUF holds what a delta net has of all channels or heads: value heads of one key head stand
    together in transformers; the file has the first of each key head, then the second.
    """
    keys, values = model.config.linear_num_key_heads, model.config.linear_num_value_heads
    width = model.config.linear_value_head_dim
    each = 1 if size == values else width
    heads = np.arange(values).reshape(keys, -1).T.reshape(-1)
    first = size - values * each  # queries and keys stand before
    return np.concatenate([np.arange(first), first + (heads[:, None] * each + np.arange(each)).reshape(-1)])


def row_order(hf_name: str, rows: int, model: PreTrainedModel) -> np.ndarray | None:
    """The order in which a GGUF has the rows of a projection; None where it is that of transformers."""
    if ".linear_attn." in hf_name:
        return None if ".out_proj" in hf_name or hf_name.endswith(".norm.weight") else value_order(rows, model)
    if model.config.model_type not in REORDERED or not any(part in hf_name for part in ("q_proj", "k_proj")):
        return None
    width = head_width(model.config)
    return rotary_rows(rows // width, width)


def column_order(hf_name: str, columns: int, model: PreTrainedModel) -> np.ndarray | None:
    """The same of columns."""
    return value_order(columns, model) if ".linear_attn.out_proj" in hf_name else None


def to_gguf(values: np.ndarray, hf_name: str, model: PreTrainedModel) -> np.ndarray:
    """A parameter as the file holds it: rows and columns in its order, 1 + w for zero-centred norms."""
    order = row_order(hf_name, values.shape[0], model)
    columns = column_order(hf_name, values.shape[-1], model)
    values = values if order is None else values[order]
    values = values if columns is None else values[:, columns]
    if ".mamba." in hf_name and hf_name.endswith(("A_log", ".D")):
        values = values[:, None]
    if hf_name.endswith("A_log"):
        return -np.exp(values)
    if ".mamba.norm" in hf_name:
        return values.reshape(model.config.mamba_n_groups, -1)
    if model.config.model_type in ZERO_CENTERED and hf_name.endswith("norm.weight") and ".linear_attn." not in hf_name:
        return values + 1
    return values[:, 0].copy() if ".conv.conv." in hf_name or ".conv1d.weight" in hf_name else values.copy()


def from_gguf(values: np.ndarray, hf_name: str, model: PreTrainedModel) -> np.ndarray:
    """The inverse of `to_gguf` for weight matrices."""
    order = row_order(hf_name, values.shape[0], model)
    columns = column_order(hf_name, values.shape[-1], model)
    values = values if order is None else values[np.argsort(order)]
    return values if columns is None else values[:, np.argsort(columns)]


def rope_factors(model: PreTrainedModel) -> np.ndarray:
    """float32 [C/2]: what llama3 scaling divides each rotary frequency by, read from transformers' own table."""
    width = head_width(model.config)
    base = FAMILIES["llama"]["rope_theta"]
    plain = 1.0 / base ** (np.arange(0, width, 2, dtype=np.float64) / width)
    return (plain / model.model.rotary_emb.inv_freq.double().numpy()).astype(np.float32)


def hf_logits(model: PreTrainedModel, tokens: Sequence[int]) -> np.ndarray:
    """float32 [T, V]: transformers' logits at every position."""
    with torch.no_grad():
        return model(torch.tensor([list(tokens)]), use_cache=False).logits[0].numpy()


def log_p(logits: np.ndarray) -> np.ndarray:
    """In float64, over the last axis of [T, V]."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


@llama.llama_log_callback
def quiet(_level: int, _text: bytes, _data: object) -> None:
    """llama.cpp logs to stderr otherwise. At module level: it keeps the pointer for good."""


def logits_of(path: Path, tokens: Sequence[int], adapter: Path | None = None) -> np.ndarray:
    """float32 [T, V]: llama.cpp's logits at every position, keys and values kept in float32."""
    llama.llama_log_set(quiet, None)
    model = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
    if not model:
        raise RuntimeError(f"llama.cpp does not load {path}")
    settings = llama.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = max(len(tokens), 32)
    settings.n_threads = 2
    settings.n_threads_batch = 2
    settings.type_k = 0
    settings.type_v = 0
    settings.flash_attn_type = 0
    settings.swa_full = True
    context = llama.llama_init_from_model(model, settings)
    batch = llama.llama_batch_init(len(tokens), 0, 1)
    try:
        if adapter is not None:
            lora = llama.llama_adapter_lora_init(model, str(adapter).encode())
            if not lora:
                raise RuntimeError(f"llama.cpp does not load {adapter}")
            llama.llama_set_adapters_lora(context, (type(lora) * 1)(lora), 1, (ctypes.c_float * 1)(1.0))
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = int(token)
            batch.pos[i] = i
            batch.n_seq_id[i] = 1
            batch.logits[i] = True
            batch.seq_id[i][0] = 0
        if llama.llama_decode(context, batch):
            raise RuntimeError(f"llama.cpp does not decode {path}")
        n_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        return np.ctypeslib.as_array(llama.llama_get_logits(context), (len(tokens), n_vocab)).copy()
    finally:
        llama.llama_batch_free(batch)
        llama.llama_free(context)
        llama.llama_model_free(model)
