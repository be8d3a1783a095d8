"""The models of transformers that are converted, one row a type: in what they differ from a llama's checkpoint.

Facts (keys, names of tensors): transformers' models, and what llama.cpp reads in src/models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PretrainedConfig

from ...adapters.peft import MODULES, column_order, value_order
from ...formats.families import FAMILIES, INPUT_LINEAR, SHARED_INPUT, SHARED_OUTPUT
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
_LOCAL_EXPERTS = {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"}
_SHARED_EXPERT = {**_LOCAL_EXPERTS, "expert_shared_feed_forward_length": "shared_intermediate_size"}
_GRANITE_ROUTER = {"ffn_gate_inp": "block_sparse_moe.router.layer"}
_GRANITE_STACKS = {"block_sparse_moe.input_linear": ("ffn_gate", "ffn_up"),
                   "block_sparse_moe.output_linear": ("ffn_down",)}
_BY_EXPERT = {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}


def _halves(array: Array, _: PretrainedConfig) -> list[Array]:
    """Two matrices, one above the other; of experts [E, N, K]."""
    return np.split(array, 2, axis=1 if array.ndim == 3 else 0)


def _by_key_head(array: Array, config: PretrainedConfig) -> list[Array]:
    """Queries, keys and values, which stand together by heads of keys: the queries of one, its keys, its values."""
    heads = config.num_key_value_heads
    grouped = array.reshape(heads, config.num_attention_heads // heads + 2, -1, *array.shape[1:])
    return [part.reshape(-1, *array.shape[1:]) for part in (grouped[:, :-2], grouped[:, -2], grouped[:, -1])]


@dataclass(frozen=True)
class ModelType:
    """What a type of models has besides what families.py says of its architecture.

    config: the type whose configuration has the same defaults, where transformers 4 does not know this one. names:
    modules of a block by GGUF's names, where others are meant than usual. further: those outside of blocks. bare:
    GGUF's names of tensors of a block that no module names. fused: modules that hold several matrices, which `divide`
    makes of one. stacked: modules that hold those of all experts. experts: of each expert. shapes: functions that give
    a tensor, by GGUF's name in a block, the shape that a GGUF has. keys: GGUF's keys by the field of the configuration.
    more: further keys. usual: values that llama.cpp's graph computes with, or a function that says one. scalings: of
    the rotary embedding. epsilon: the field with that of norms.
    """

    architecture: str
    config: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    last_norm: str = "norm"
    further: Mapping[str, str] = field(default_factory=dict)
    bare: Mapping[str, str] = field(default_factory=dict)
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    divide: Callable[[Array, PretrainedConfig], list[Array]] = _halves
    stacked: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    experts: Mapping[str, str] = field(default_factory=dict)
    shapes: Mapping[str, Callable[[Array, PretrainedConfig], Array]] = field(default_factory=dict)
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
                  "rope.dimension_count": _rotated(config)}
    scale = config.max_position_embeddings / original
    if _rotary(config, "long_factor"):
        keys["rope.scaling.attn_factor"] = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    return keys


def _rotated(config: PretrainedConfig) -> int:
    """Values of a head that are rotated."""
    return int(_width(config) * (_rotary(config, "partial_rotary_factor") or 1.0))


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


def _unlimited(config: PretrainedConfig) -> Any:
    """Its limits of dt, if they are none."""
    limits = getattr(config, "time_step_limit", None)
    return limits if limits is None or list(limits) == [0.0, math.inf] else [0.0, math.inf]


def _granite_hybrid(config: PretrainedConfig) -> Keys:
    heads = [config.num_key_value_heads * (kind in _ATTENTION) for kind in config.layer_types]
    return {"attention.head_count_kv": heads,
            "rope.scaling.finetuned": config.position_embedding_type == "rope",
            "ssm.conv_kernel": config.mamba_d_conv, "ssm.state_size": config.mamba_d_state,
            "ssm.group_count": config.mamba_n_groups, "ssm.time_step_rank": config.mamba_n_heads,
            "ssm.inner_size": config.mamba_n_heads * config.mamba_d_head}


def _qwen35(config: PretrainedConfig) -> Keys:
    """Positions in a text rotate all pairs, so that the sections of images and films only have to be there."""
    keys = config.linear_num_key_heads
    values = config.linear_num_value_heads
    sections = _rotary(config, "mrope_section") or [11, 11, 10]
    return {"ssm.conv_kernel": config.linear_conv_kernel_dim, "ssm.state_size": config.linear_key_head_dim,
            "ssm.group_count": keys, "ssm.time_step_rank": values,
            "ssm.inner_size": values * config.linear_value_head_dim,
            "attention.recurrent_layers": [kind == "linear_attention" for kind in config.layer_types],
            "full_attention_interval": getattr(config, "full_attention_interval", FAMILIES["qwen35"].attends_every),
            "rope.dimension_count": int(_width(config) * _rotary(config, "partial_rotary_factor")),
            "rope.dimension_sections": [*sections, *[0] * (4 - len(sections))]}


_LFM2_NAMES = {"attn_norm": "operator_norm", "ffn_norm": "ffn_norm", "shortconv.conv": "conv.conv",
               "attn_q_norm": "self_attn.q_layernorm", "attn_k_norm": "self_attn.k_layernorm"}
_LFM2_MOE_NAMES = {**_LFM2_NAMES, "ffn_gate_inp": "feed_forward.gate"}
_INTERNLM2 = {"attn_norm": "attention_norm", "ffn_norm": "ffn_norm", "attn_output": "attention.wo",
              "ffn_gate": "feed_forward.w1", "ffn_up": "feed_forward.w3", "ffn_down": "feed_forward.w2"}
_HYBRID = "granitemoehybrid with mamba"
_HYBRID_EXPERTS = "granitemoehybrid with mamba and experts"
_ATTENTION = {"attention", "full_attention"}  # of Granite's hybrids, in transformers 4 and 5

# norms of several groups are one norm in transformers, and not in llama.cpp
_MAMBA_USUAL = {"mamba_conv_bias": True, "mamba_proj_bias": False, "mamba_n_groups": 1, "time_step_limit": _unlimited}

TYPES: dict[str, ModelType] = {
    "llama": ModelType("llama", scalings=(*PLAIN, "llama3")),
    "mistral": ModelType("llama", scalings=PLAIN, usual={"sliding_window": None}),
    "qwen2": ModelType("qwen2", scalings=PLAIN),
    "qwen3": ModelType("qwen3", scalings=PLAIN),
    "gemma3": ModelType("gemma3", config="gemma3_text", more=_gemma3, scalings=PLAIN),
    "gemma3_text": ModelType("gemma3", more=_gemma3, scalings=PLAIN),
    "gemma4_text": ModelType(
        "gemma4", config="llama", more=_gemma4, scalings=("proportional",), usual={"attention_bias": False},
        names={"post_norm": "post_per_layer_input_norm"},
        bare={"layer_scalar": "layer_output_scale.weight"},
        further={"per_layer_token_embd": "model.embed_tokens_per_layer",
                 "per_layer_model_proj": "model.per_layer_model_projection",
                 "per_layer_proj_norm": "model.per_layer_projection_norm"}),
    "smollm3": ModelType("smollm3", usual={"no_rope_layers": _every_fourth, "layer_types": _all_full},
                         scalings=("default", "linear")),
    "granite": ModelType("granite", keys=_SCALES, scalings=("default", "llama3")),
    # Granite 4 without Mamba: its parts for all tokens are those of a dense granite
    "granitemoehybrid": ModelType(
        "granite", keys=_SCALES, fused=INPUT_LINEAR, names={"ffn_down": "shared_mlp.output_linear"},
        usual={"num_local_experts": 0, "position_embedding_type": "rope"}),
    _HYBRID: ModelType(
        "granitehybrid", config="granitemoehybrid", keys={**_SCALES, "feed_forward_length": "shared_intermediate_size"},
        more=_granite_hybrid, fused=INPUT_LINEAR, names=MAMBA, bare=MAMBA_BARE,
        shapes=MAMBA_SHAPES, usual={**_MAMBA_USUAL, "num_local_experts": 0}),
    _HYBRID_EXPERTS: ModelType(
        "granitehybrid", config="granitemoehybrid", keys=_SCALES | _SHARED_EXPERT, more=_granite_hybrid,
        fused=SHARED_INPUT, stacked=_GRANITE_STACKS, names={**MAMBA, **_GRANITE_ROUTER, **SHARED_OUTPUT},
        bare=MAMBA_BARE, shapes=MAMBA_SHAPES, usual=_MAMBA_USUAL),
    "ernie4_5": ModelType("ernie4_5"),
    "olmo2": ModelType("olmo2"),
    "olmo3": ModelType("olmo2", more=_olmo3, scalings=("default", "yarn")),
    "exaone4": ModelType("exaone4", usual={"layer_types": _all_full}, scalings=("default", "llama3")),
    "ministral3": ModelType("mistral3", config="mistral", more=_ministral3, scalings=("yarn",),
                            usual={"sliding_window": None}),
    "hunyuan_v1_dense": ModelType(
        "hunyuan-dense", more=_hunyuan, scalings=("default", "dynamic with alpha"),
        names={"attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"}),
    "phi3": ModelType("phi3", more=_phi3, scalings=("default", "longrope", "su")),
    "glm4": ModelType("glm4", more=lambda c: {"rope.dimension_count": _rotated(c)}, names={
        "ffn_norm": "post_attention_layernorm", "post_attention_norm": "post_self_attn_layernorm",
        "post_ffw_norm": "post_mlp_layernorm"}),
    # its scaling begins where its context ends
    "internlm2": ModelType(
        "internlm2", config="llama", names=_INTERNLM2, scalings=("default", "dynamic"),
        further={"token_embd": "model.tok_embeddings", "output": "output"},
        fused={"attention.wqkv": ("attn_q", "attn_k", "attn_v")}, divide=_by_key_head),
    "qwen3_5_text": ModelType(
        "qwen35", config="qwen3_next", names={**DELTA_NET, "post_attention_norm": "post_attention_layernorm"},
        bare=DELTA_NET_BARE, more=_qwen35, usual={"attention_bias": False, "attn_output_gate": True}),
    "lfm2": ModelType("lfm2", names=_LFM2_NAMES, last_norm="embedding_norm", keys={"shortconv.l_cache": "conv_L_cache"},
                      more=_lfm2, usual={"conv_bias": False}, epsilon="norm_eps"),
    "lfm2_moe": ModelType(
        "lfm2moe", config="lfm2", names=_LFM2_MOE_NAMES, bare={"feed_forward.expert_bias": "exp_probs_b.bias"},
        epsilon="norm_eps",
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
    "granitemoe": ModelType("granitemoe", keys=_SCALES | _LOCAL_EXPERTS, names=_GRANITE_ROUTER,
                            stacked=_GRANITE_STACKS),
    # also Granite 4 without Mamba
    "granitemoeshared": ModelType(
        "granitemoe", keys=_SCALES | _SHARED_EXPERT, names={**_GRANITE_ROUTER, **SHARED_OUTPUT}, fused=SHARED_INPUT,
        stacked=_GRANITE_STACKS, usual={"position_embedding_type": "rope"}),
}
OF_TEXT = {"gemma3": "gemma3_text", "gemma4": "gemma4_text", "mistral3": "ministral3", "qwen3_5": "qwen3_5_text"}
"""Types of models that also see -> the type of their text_config."""
CONVERTED = tuple(dict.fromkeys(kind.architecture for kind in TYPES.values()))


def type_of(name: str, text: Mapping[str, Any]) -> ModelType | None:
    """The row of a configuration's model_type; None: there is none. text: the configuration of the text model."""
    if name == "granitemoehybrid":
        has_mamba = not set(text.get("layer_types") or [""]) <= _ATTENTION
        if text.get("num_local_experts"):
            name = _HYBRID_EXPERTS if has_mamba else "granitemoeshared"
        elif has_mamba:
            name = _HYBRID
    return TYPES.get(name)
