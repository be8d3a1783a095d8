"""The projections of a block that adapters may train: their names in PEFT, and the GGUF's names of the same."""

from __future__ import annotations

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
