"""Names of transformers' parameters in GGUF files, by family."""

GGUF_NAMES = {
    "embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down"}
GGUF_NAMES |= {"embedding_norm": "token_embd_norm", "ffn_norm": "ffn_norm",
               "operator_norm": "attn_norm", "conv.conv": "shortconv.conv",
               "conv.in_proj": "shortconv.in_proj", "conv.out_proj": "shortconv.out_proj",
               "self_attn.out_proj": "attn_output", "self_attn.q_layernorm": "attn_q_norm",
               "self_attn.k_layernorm": "attn_k_norm", "feed_forward.w1": "ffn_gate", "feed_forward.w3": "ffn_up",
               "feed_forward.w2": "ffn_down", "mlp.gate": "ffn_gate_inp", "feed_forward.gate": "ffn_gate_inp",
               "block_sparse_moe.router.layer": "ffn_gate_inp", "block_sparse_moe.router": "ffn_gate_inp",
               "block_sparse_moe.input_linear": "ffn_gate_up_exps", "block_sparse_moe.output_linear": "ffn_down_exps",
               "self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up",
               "linear_attn.in_proj_qkv": "attn_qkv", "linear_attn.in_proj_z": "attn_gate",
               "linear_attn.in_proj_b": "ssm_beta", "linear_attn.in_proj_a": "ssm_alpha",
               "linear_attn.conv1d": "ssm_conv1d", "linear_attn.norm": "ssm_norm", "linear_attn.out_proj": "ssm_out",
               "mamba.in_proj": "ssm_in", "mamba.conv1d": "ssm_conv1d", "mamba.norm": "ssm_norm",
               "mamba.out_proj": "ssm_out", "shared_mlp.input_linear": "ffn_gate_up",
               "shared_mlp.output_linear": "ffn_down",
               "self_attn.query_layernorm": "attn_q_norm", "self_attn.key_layernorm": "attn_k_norm"}
POST_NAMES = GGUF_NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
POST_NAMES |= {
    "embed_tokens_per_layer": "per_layer_token_embd", "per_layer_model_projection": "per_layer_model_proj",
    "per_layer_projection_norm": "per_layer_proj_norm", "per_layer_input_gate": "inp_gate",
    "per_layer_projection": "proj", "post_per_layer_input_norm": "post_norm", "layer_scalar": "layer_output_scale"}
SHARED = GGUF_NAMES | {"shared_mlp.input_linear": "ffn_gate_up_shexp", "shared_mlp.output_linear": "ffn_down_shexp"}
OWN_NAMES = {**dict.fromkeys(("granitehybridmoe", "granitemoeshared"), SHARED),
             "glm4": GGUF_NAMES | {"post_self_attn_layernorm": "post_attention_norm",
                                   "post_mlp_layernorm": "post_ffw_norm"}}
POST_NORMED = ("gemma3", "gemma4", "olmo2", "olmo3", "exaone4", "qwen35")
STATE_NAMES = {"A_log": "ssm_a", "D": "ssm_d", "dt_bias": "ssm_dt.bias"}


def gguf_name(hf_name: str, family: str) -> str:
    """model.layers.3.self_attn.q_proj.weight -> blk.3.attn_q.weight"""
    names = OWN_NAMES.get(family) or (POST_NAMES if family in POST_NORMED else GGUF_NAMES)
    *path, kind = hf_name.removeprefix("model.").split(".")
    if kind == "layer_scalar":
        return f"blk.{path[1]}.layer_output_scale.weight"
    if kind == "expert_bias":
        return f"blk.{path[1]}.exp_probs_b.bias"
    if kind in STATE_NAMES:
        return f"blk.{path[1]}.{STATE_NAMES[kind]}"
    if path[0] == "layers" and path[-1] == "experts":  # of all together: mlp.experts.gate_up_proj
        return f"blk.{path[1]}.ffn_{kind.removesuffix('_proj')}_exps.weight"
    if path[0] == "layers" and "experts" in path:  # mlp.experts.3.gate_proj
        name = names[f"mlp.{path[-1]}"]
        return f"blk.{path[1]}.{name}_exps.{path[4]}.{kind}"
    if path[0] == "layers":
        return f"blk.{path[1]}.{names['.'.join(path[2:])]}.{kind}"
    return f"{names[path[0]]}.{kind}"
