"""The architectures that edgetune trains, one row each: by what their decoders differ beyond numbers in the file.

A new one whose block has the same parts is a row here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TARGETS = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}
OF_EXPERTS = {  # the same projections where a block has experts
    "gate_proj": "ffn_gate_exps",
    "up_proj": "ffn_up_exps",
    "down_proj": "ffn_down_exps",
}
OF_SHARED = {name: f"{gguf.removesuffix('_exps')}_shexp" for name, gguf in OF_EXPERTS.items()}
"""Those of the expert that all tokens take besides."""
OTHER_TARGETS: dict[str, tuple[str, ...]] = {  # of phi3, lfm2, qwen35, granitehybrid, gemma4
    "qkv_proj": ("attn_qkv",),
    "gate_up_proj": ("ffn_up",),
    "in_proj": ("shortconv.in_proj", "ssm_in"),
    "in_proj_qkv": ("attn_qkv",),
    "in_proj_z": ("attn_gate",),
    "out_proj": ("shortconv.out_proj", "ssm_out"),
    "per_layer_input_gate": ("inp_gate",),
    "per_layer_projection": ("proj",),
}


ALL = tuple(TARGETS.values())
QKV = ALL[:3]

GRANITE_EXPERTS = {"block_sparse_moe.input_linear": ("ffn_gate_exps", "ffn_up_exps"),
                   "block_sparse_moe.output_linear": ("ffn_down_exps",)}
LFM2 = {"attn_output": "self_attn.out_proj", "shortconv.in_proj": "conv.in_proj", "shortconv.out_proj": "conv.out_proj",
        "ffn_gate": "feed_forward.w1", "ffn_up": "feed_forward.w3", "ffn_down": "feed_forward.w2"}


QWEN35 = {"attn_qkv": "linear_attn.in_proj_qkv", "attn_gate": "linear_attn.in_proj_z",
          "ssm_out": "linear_attn.out_proj"}


INPUT_LINEAR = {"shared_mlp.input_linear": ("ffn_gate", "ffn_up")}
SHARED_INPUT = {"shared_mlp.input_linear": ("ffn_gate_shexp", "ffn_up_shexp")}
SHARED_OUTPUT = {"ffn_down_shexp": "shared_mlp.output_linear"}
GRANITE_HYBRID = {"ssm_in": "mamba.in_proj", "ssm_out": "mamba.out_proj", "ffn_down": "shared_mlp.output_linear"}


@dataclass(frozen=True)
class ModelFamily:
    """Switches of an architecture, as llama.cpp computes it.

    norms: where a sublayer has one: "before" it, "after" it, before its sum with the residual stream, or "both".
    qk_norm: of queries and keys: "head" of each head, before it is rotated; "rotated" of each head, after that; "width"
    of all heads together, before it; "": none.
    """

    name: str
    biases: tuple[str, ...]  # projections that may have one; with any other llama.cpp refuses the file
    neox: bool = True  # rotary order: pairs (i, i + n_rot / 2) instead of (2i, 2i + 1)
    moves_rows: bool = False  # of q and k: transformers rotates the former pairs, the GGUF holds them as the latter
    rope_factors: bool = False  # whether rope_freqs.weight is read
    yarn_keys: bool = False  # whether the file says how YaRN blends, and scales q where texts are longer
    long_keys: bool = False  # rotary factors for texts up to the original context, and others for longer ones
    partly_rotated: bool = False  # a part of a head may be
    mixer: str = "attention"  # the kinds of sublayers (kinds.py)
    feed: str = "gated"
    elsewhere: str = ""  # the mixer of blocks without heads of keys
    attends_every: int = 0  # each n-th block alone has `mixer`, unless the file says it; 0: all have
    sections: bool = False  # pairs of a head are rotated by positions in text, height and width; in text by one alone
    drafts: bool = False  # the last blocks may draft tokens ahead, and are not read
    feed_norm: str = "ffn_norm"  # the name of the norm before the feed-forward part
    last_norm: str = "output_norm"  # the name of the norm before the head
    gating: str = "softmax"  # of a router's logits: softmax or sigmoid
    biased_experts: bool = False  # the file has a bias of each expert, for who is taken
    dense_first: bool = False  # the first blocks may be gated
    shared_width: bool = False  # a token's experts share the file's width, if it says none of one expert
    fused_experts: bool = False  # transformers holds those of a block as parameters, not as modules
    expert_parameters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # those that PEFT can adapt
    may_have_experts: bool = False  # the file says whether blocks have experts in place of `feed`
    shares_expert: bool = False  # the file may have an expert that all tokens take besides
    norms_experts: bool = False  # the weights of a token's experts are divided by their sum
    modules: Mapping[str, str] = field(default_factory=dict)  # projections that transformers names unlike others
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # modules that are several, without experts
    shared_modules: Mapping[str, str] = field(default_factory=dict)  # as `modules`, of an expert that all tokens take
    shared_fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # as `fused`
    unrotated_every: int = 0  # every n-th block has no rotary embedding; 0: all have one
    act: str = "silu"
    qk_norm: str = ""
    norms: str = "before"
    scales: bool = False  # the file has scales of embedding, attention, residual sums and logits
    scaled_embedding: bool = False  # by the root of the model's width
    own_head: bool = False  # the head is never the embedding
    narrow_heads: bool = False  # the heads are together as wide as the model
    ungrouped: bool = False  # as many heads have keys as there are heads
    norm_offset: float = 0.0  # what a GGUF's norm weights are above those of transformers
    windows_every: int = 0  # all but every n-th block see a window unless the file says otherwise; 0: none does
    plain_windows: bool = False  # where they are, rotary embeddings have the base of the others, and no scaling
    sized_blocks: bool = False  # blocks differ in sizes (block_sizes.py)
    shares_keys: bool = False  # blocks may take keys and values of others, and have keys for values
    norms_values: bool = False  # each head of values, by a norm without weights
    plain_scores: bool = False  # scores of attention are not scaled
    caps_logits: bool = False  # the file may cap logits
    embeds_blocks: bool = False  # each block may have embeddings (models/block_embedding.py)
    max_grad_norm: float = 1.0  # to which a gradient is clipped where a run does not say it
    untrained_blocks: int = 0  # models of this many blocks have windows of another kind, and are refused
    usual: Mapping[str, Any] = field(default_factory=dict)  # keys of a file that have this value, or it is refused
    wide_blocks: int = 0  # blocks of the one size whose attention is scaled by D / H and not by the head's width

    @property
    def pre_norms(self) -> bool:
        return self.norms != "after"

    @property
    def post_norms(self) -> bool:
        return self.norms != "before"


FAMILIES = {family.name: family for family in (
    ModelFamily("llama", ALL, neox=False, moves_rows=True, rope_factors=True),
    ModelFamily("qwen2", QKV),
    ModelFamily("qwen3", QKV, qk_norm="head"),
    ModelFamily("gemma3", QKV, act="gelu", qk_norm="head", norms="both", scaled_embedding=True, norm_offset=1.0,
                windows_every=6, wide_blocks=62),
    ModelFamily("gemma4", (), rope_factors=True, act="gelu", qk_norm="head", norms="both", scaled_embedding=True,
                windows_every=6, plain_windows=True, sized_blocks=True, shares_keys=True, norms_values=True,
                plain_scores=True, caps_logits=True, embeds_blocks=True, max_grad_norm=0.3,
                modules={"inp_gate": "per_layer_input_gate", "proj": "per_layer_projection"}),
    ModelFamily("smollm3", QKV, neox=False, moves_rows=True, unrotated_every=4),
    ModelFamily("granite", ALL, neox=False, moves_rows=True, rope_factors=True, scales=True),
    ModelFamily("ernie4_5", QKV, neox=False),
    ModelFamily("olmo2", QKV, qk_norm="width", norms="after", own_head=True, narrow_heads=True, windows_every=4,
                plain_windows=True),
    ModelFamily("exaone4", QKV, rope_factors=True, qk_norm="head", norms="after", narrow_heads=True,
                untrained_blocks=64),
    ModelFamily("mistral3", ALL, neox=False, moves_rows=True, rope_factors=True, yarn_keys=True),
    ModelFamily("hunyuan-dense", QKV, qk_norm="rotated"),
    ModelFamily("phi3", (), long_keys=True, partly_rotated=True, narrow_heads=True, mixer="fused attention",
                feed="fused gated", modules={"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}),
    ModelFamily("glm4", QKV, neox=False, partly_rotated=True, norms="both", feed="fused gated",
                modules={"ffn_up": "mlp.gate_up_proj"}, usual={"rope.dimension_sections": [0, 0, 0, 0]}),
    ModelFamily("internlm2", QKV, neox=False, moves_rows=True, own_head=True, narrow_heads=True),
    ModelFamily("lfm2", QKV, qk_norm="head", narrow_heads=True, elsewhere="short convolution",
                last_norm="token_embd_norm", modules=LFM2),
    ModelFamily("lfm2moe", QKV, qk_norm="head", narrow_heads=True, elsewhere="short convolution",
                last_norm="token_embd_norm", modules=LFM2, feed="experts", gating="sigmoid", norms_experts=True,
                biased_experts=True, dense_first=True, fused_experts=True),
    ModelFamily("qwen3moe", QKV, qk_norm="head", feed="experts", shared_width=True, norms_experts=True),
    ModelFamily("olmoe", QKV, qk_norm="width", narrow_heads=True, ungrouped=True, own_head=True, feed="experts"),
    ModelFamily("granitemoe", (*QKV, "attn_output"), neox=False, moves_rows=True, rope_factors=True, scales=True,
                feed="experts", norms_experts=True, fused_experts=True, expert_parameters=GRANITE_EXPERTS,
                shares_expert=True, shared_modules=SHARED_OUTPUT, shared_fused=SHARED_INPUT),
    ModelFamily("qwen35", (), qk_norm="head", partly_rotated=True, sections=True, drafts=True, mixer="gated attention",
                elsewhere="delta net", attends_every=4, feed_norm="post_attention_norm", norm_offset=1.0,
                modules=QWEN35),
    ModelFamily("granitehybrid", ALL, neox=False, moves_rows=True, rope_factors=True, scales=True, elsewhere="mamba",
                modules=GRANITE_HYBRID, fused=INPUT_LINEAR, may_have_experts=True, norms_experts=True,
                fused_experts=True, expert_parameters=GRANITE_EXPERTS, shares_expert=True,
                shared_modules=SHARED_OUTPUT, shared_fused=SHARED_INPUT),
)}
