"""The models of transformers that are converted, one row a type: in what they differ from a llama's checkpoint.

Facts (keys, names of tensors): transformers' models, and what llama.cpp reads in src/models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PretrainedConfig

from ...adapters.peft import MODULES
from ...formats.families import FAMILIES

Keys = dict[str, Any]
PLAIN = ("default", "linear", "yarn")
SIGMOID = 2  # as files number what a router makes of its logits
_BEFORE = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_AFTER = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_NORMS = {"before": _BEFORE, "after": _AFTER, "both": _BEFORE | _AFTER | {"ffn_norm": "pre_feedforward_layernorm"}}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_SCALES = {"embedding_scale": "embedding_multiplier", "residual_scale": "residual_multiplier",
           "attention.scale": "attention_multiplier", "logit_scale": "logits_scaling"}
_EXPERTS = {"expert_count": "num_experts", "expert_used_count": "num_experts_per_tok"}
_BY_EXPERT = {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}


@dataclass(frozen=True)
class ModelType:
    """What a type of models has besides what families.py says of its architecture.

    config: the type whose configuration has the same defaults, where transformers 4 does not know this one. names:
    modules of a block by GGUF's names, where others are meant than usual. further: those outside of blocks. fused:
    modules that hold two matrices, one above the other. stacked: modules that hold those of all experts. experts: of
    each expert. keys: GGUF's keys by the field of the configuration. more: further keys. usual: values that llama.cpp's
    graph computes with, or a function that says one. scalings: of the rotary embedding. epsilon: the field with that of
    norms.
    """

    architecture: str
    config: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    last_norm: str = "norm"
    further: Mapping[str, str] = field(default_factory=dict)
    fused: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    stacked: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    experts: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    more: Callable[[PretrainedConfig], Keys] = lambda _: {}
    usual: Mapping[str, Any] = field(default_factory=dict)
    scalings: tuple[str, ...] = ("default",)
    epsilon: str = "rms_norm_eps"

    @property
    def modules(self) -> dict[str, str]:
        """GGUF's name of a tensor of a block -> transformers' module."""
        family = FAMILIES[self.architecture]
        return MODULES | _HEAD_NORMS | _NORMS[family.norms] | dict(family.modules) | dict(self.names)

    @property
    def outside(self) -> dict[str, str]:
        """The same outside of blocks."""
        return {"token_embd": "model.embed_tokens", "output": "lm_head",
                FAMILIES[self.architecture].last_norm: f"model.{self.last_norm}", **self.further}


def _gemma3(config: PretrainedConfig) -> Keys:
    """Its window; which blocks have it is only said where it is not all but every sixth."""
    windows = [kind == "sliding_attention" for kind in config.layer_types]
    every = FAMILIES["gemma3"].windows_every
    usual = [bool((i + 1) % every) for i in range(len(windows))]
    return {"attention.sliding_window": config.sliding_window,
            **({} if windows == usual else {"attention.sliding_window_pattern": windows})}


def _gemma4(config: PretrainedConfig) -> Keys:
    """Sizes of blocks without a window, which a configuration names once, or block by block."""
    layers = config.num_hidden_layers
    windows = [kind == "sliding_attention" for kind in config.layer_types]
    shared = config.num_kv_shared_layers
    own = config.of_blocks.get(str(windows.index(False)), {})
    width = getattr(config, "global_head_dim", None) or own.get("head_dim", config.head_dim)
    heads = getattr(config, "num_global_key_value_heads", None) if config.attention_k_eq_v else None
    heads = heads or own.get("num_key_value_heads", config.num_key_value_heads)
    wide = 2 if config.use_double_wide_mlp else 1  # of blocks that take keys of others
    return {
        "attention.key_length": width, "attention.value_length": width, "rope.dimension_count": width,
        "attention.key_length_swa": config.head_dim, "attention.value_length_swa": config.head_dim,
        "rope.dimension_count_swa": config.head_dim, "attention.sliding_window": config.sliding_window,
        "attention.sliding_window_pattern": windows, "attention.shared_kv_layers": shared,
        "attention.head_count_kv": [config.num_key_value_heads if window else heads for window in windows],
        "embedding_length_per_layer_input": config.hidden_size_per_layer_input or 0,
        "feed_forward_length": [config.intermediate_size * (wide if i >= layers - shared else 1)
                                for i in range(layers)],
        "final_logit_softcapping": float(config.final_logit_softcapping or 0.0)}


def _olmo3(config: PretrainedConfig) -> Keys:
    windows = [kind == "sliding_attention" for kind in config.layer_types]
    return {"attention.sliding_window": config.sliding_window, "attention.sliding_window_pattern": windows}


def _phi3(config: PretrainedConfig) -> Keys:
    original = config.original_max_position_embeddings
    keys: Keys = {"rope.scaling.original_context_length": original,
                  "rope.dimension_count": int(_width(config) * (_rotary(config, "partial_rotary_factor") or 1.0))}
    scale = config.max_position_embeddings / original
    if _rotary(config, "long_factor"):
        keys["rope.scaling.attn_factor"] = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    return keys


def _glm4(config: PretrainedConfig) -> Keys:
    return {"rope.dimension_count": int(_width(config) * (_rotary(config, "partial_rotary_factor") or 1.0))}


def _lfm2(config: PretrainedConfig) -> Keys:
    heads = [config.num_key_value_heads * (kind != "conv") for kind in config.layer_types]
    width = config.intermediate_size
    if getattr(config, "block_auto_adjust_ff_dim", False):
        width = int((config.block_ffn_dim_multiplier or 1.0) * int(2 * width / 3))
        width = -(-width // config.block_multiple_of) * config.block_multiple_of
    return {"attention.head_count_kv": heads, "feed_forward_length": width}


def _lfm2moe(config: PretrainedConfig) -> Keys:
    heads = [config.num_key_value_heads * (kind != "conv") for kind in config.layer_types]
    return {"attention.head_count_kv": heads, "expert_gating_func": SIGMOID}


def _hunyuan(config: PretrainedConfig) -> Keys:
    """NTK-aware scaling by alpha is another base."""
    if not (alpha := _rotary(config, "alpha")):
        return {}
    width = _width(config)
    return {"rope.freq_base": float(_rotary(config, "rope_theta")) * float(alpha) ** (width / (width - 2))}


def _ministral3(config: PretrainedConfig) -> Keys:
    names = {"rope.scaling.yarn_beta_fast": "beta_fast", "rope.scaling.yarn_beta_slow": "beta_slow",
             "rope.scaling.yarn_log_multiplier": "mscale_all_dim",
             "attention.temperature_scale": "llama_4_scaling_beta"}
    return {key: float(value) for key, name in names.items() if (value := _rotary(config, name)) is not None}


def _rotary(config: PretrainedConfig, name: str) -> Any:
    """A setting of the rotary embedding, where transformers 4 or 5 has it."""
    new = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return new.get(name, getattr(config, name, None))


def _width(config: PretrainedConfig) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _every_fourth(config: PretrainedConfig) -> list[int]:
    every = FAMILIES["smollm3"].unrotated_every
    return [int((i + 1) % every > 0) for i in range(config.num_hidden_layers)]


def _all_full(config: PretrainedConfig) -> list[str]:
    return ["full_attention"] * config.num_hidden_layers


def _all_attention(config: PretrainedConfig) -> list[str]:
    """transformers 4 and 5 name it differently."""
    kinds: list[str] = config.layer_types
    return kinds if set(kinds) <= {"attention", "full_attention"} else ["attention"] * len(kinds)


_LFM2_NAMES = {"attn_norm": "operator_norm", "ffn_norm": "ffn_norm", "shortconv.conv": "conv.conv",
               "attn_q_norm": "self_attn.q_layernorm", "attn_k_norm": "self_attn.k_layernorm"}
_LFM2_MOE_NAMES = {**_LFM2_NAMES, "ffn_gate_inp": "feed_forward.gate", "exp_probs_b": "feed_forward.expert_bias"}

TYPES: dict[str, ModelType] = {
    "llama": ModelType("llama", scalings=(*PLAIN, "llama3")),
    "mistral": ModelType("llama", scalings=PLAIN, usual={"sliding_window": None}),
    "qwen2": ModelType("qwen2", scalings=PLAIN),
    "qwen3": ModelType("qwen3", scalings=PLAIN),
    "gemma3": ModelType("gemma3", config="gemma3_text", more=_gemma3, scalings=PLAIN),
    "gemma3_text": ModelType("gemma3", more=_gemma3, scalings=PLAIN),
    "gemma4_text": ModelType(
        "gemma4", config="llama", more=_gemma4, scalings=("proportional",), usual={"attention_bias": False},
        names={"inp_gate": "per_layer_input_gate", "proj": "per_layer_projection",
               "post_norm": "post_per_layer_input_norm", "layer_output_scale": "layer_scalar"},
        further={"per_layer_token_embd": "model.embed_tokens_per_layer",
                 "per_layer_model_proj": "model.per_layer_model_projection",
                 "per_layer_proj_norm": "model.per_layer_projection_norm"}),
    "smollm3": ModelType("smollm3", usual={"no_rope_layers": _every_fourth, "layer_types": _all_full},
                         scalings=("default", "linear")),
    "granite": ModelType("granite", keys=_SCALES, scalings=("default", "llama3")),
    # Granite 4 without Mamba: its parts for all tokens are those of a dense granite
    "granitemoehybrid": ModelType(
        "granite", keys=_SCALES, fused={"shared_mlp.input_linear": ("ffn_gate", "ffn_up")},
        names={"ffn_down": "shared_mlp.output_linear"},
        usual={"layer_types": _all_attention, "num_local_experts": 0, "position_embedding_type": "rope"}),
    "ernie4_5": ModelType("ernie4_5"),
    "olmo2": ModelType("olmo2"),
    "olmo3": ModelType("olmo2", more=_olmo3, scalings=("default", "yarn")),
    "exaone4": ModelType("exaone4", usual={"layer_types": _all_full}, scalings=("default", "llama3")),
    "ministral3": ModelType("mistral3", config="mistral", more=_ministral3, scalings=("yarn",),
                            usual={"sliding_window": None}),
    "hunyuan_v1_dense": ModelType(
        "hunyuan-dense", more=_hunyuan, scalings=("default", "dynamic"),
        names={"attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"}),
    "phi3": ModelType("phi3", more=_phi3, scalings=("default", "longrope", "su")),
    "glm4": ModelType("glm4", more=_glm4, names={
        "ffn_norm": "post_attention_layernorm", "post_attention_norm": "post_self_attn_layernorm",
        "post_ffw_norm": "post_mlp_layernorm"}),
    "lfm2": ModelType("lfm2", names=_LFM2_NAMES, last_norm="embedding_norm", keys={"shortconv.l_cache": "conv_L_cache"},
                      more=_lfm2, usual={"conv_bias": False}, epsilon="norm_eps"),
    "lfm2_moe": ModelType(
        "lfm2moe", config="lfm2", names=_LFM2_MOE_NAMES, epsilon="norm_eps",
        last_norm="embedding_norm", experts={"w1": "ffn_gate", "w3": "ffn_up", "w2": "ffn_down"}, more=_lfm2moe,
        keys={**_EXPERTS, "expert_feed_forward_length": "moe_intermediate_size", "shortconv.l_cache": "conv_L_cache",
              "leading_dense_block_count": "num_dense_layers"},
        usual={"conv_bias": False, "norm_topk_prob": True, "use_expert_bias": True, "routed_scaling_factor": 1.0}),
    "qwen3_moe": ModelType(
        "qwen3moe", names={"ffn_gate_inp": "mlp.gate"}, experts=_BY_EXPERT, scalings=PLAIN,
        keys={**_EXPERTS, "expert_feed_forward_length": "moe_intermediate_size"},
        usual={"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True}),
    "olmoe": ModelType("olmoe", names={"ffn_gate_inp": "mlp.gate"}, experts=_BY_EXPERT, keys=_EXPERTS,
                       usual={"norm_topk_prob": False, "clip_qkv": None}),
    "granitemoe": ModelType(
        "granitemoe", keys={**_SCALES, "expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"},
        names={"ffn_gate_inp": "block_sparse_moe.router.layer"},
        stacked={"block_sparse_moe.input_linear": ("ffn_gate", "ffn_up"),
                 "block_sparse_moe.output_linear": ("ffn_down",)}),
}
OF_TEXT = {"gemma3": "gemma3_text", "gemma4": "gemma4_text", "mistral3": "ministral3"}
"""Types of models that also see -> the type of their text_config."""
CONVERTED = tuple(dict.fromkeys(kind.architecture for kind in TYPES.values()))
