"""ModernBERTs of transformers, tiny and random, as GGUF files."""

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from tiny import SPECIALS, tokenizer_metadata, write_gguf

N_VOCAB = 320
NAMES = {"attn_norm": "attn_norm", "attn.Wqkv": "attn_qkv", "attn.Wo": "attn_output", "mlp_norm": "ffn_norm",
         "mlp.Wi": "ffn_up", "mlp.Wo": "ffn_down"}
"""Parts of a block: transformers' name -> GGUF's."""
OUTSIDE = {"embeddings.tok_embeddings": "token_embd", "embeddings.norm": "token_embd_norm", "final_norm": "output_norm"}
CLS, _, SEP = range(len(SPECIALS))


def tiny_modern(**sizes: Any) -> Any:
    """A ModernBertModel of four blocks, of which the first and the last see everything."""
    import torch
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch, which the import brings up
        from transformers import ModernBertConfig, ModernBertModel
    config = ModernBertConfig(**{
        "vocab_size": N_VOCAB, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
        "intermediate_size": 96, "max_position_embeddings": 128, "local_attention": 10, "global_rope_theta": 5000.0,
        "local_rope_theta": 100.0, "pad_token_id": CLS, "bos_token_id": CLS, "eos_token_id": SEP, "cls_token_id": CLS,
        "sep_token_id": SEP, "reference_compile": False, "attn_implementation": "eager", **sizes})
    model = ModernBertModel(config).eval()
    rng = np.random.default_rng(3)
    with torch.no_grad():
        for values in model.parameters():
            drawn = rng.standard_normal(values.shape).astype(np.float32)
            spread, center = (0.1, 1.0) if values.ndim == 1 else (0.2, 0.0)
            values.copy_(torch.from_numpy(center + spread * drawn))
    return model


def gguf_name(name: str) -> str:
    """That of one of its parameters."""
    if match := re.fullmatch(r"layers\.(\d+)\.([\w.]+)\.weight", name):
        return f"blk.{match[1]}.{NAMES[match[2]]}.weight"
    return f"{OUTSIDE[name.removesuffix('.weight')]}.weight"


def write_modern(path: Path, model: Any, formats: Any = "F32", **other: Any) -> Path:
    """As llama.cpp's converter writes it, with a tiny vocabulary. other: keys after "modern-bert."."""
    config = model.config
    keys = {"context_length": config.max_position_embeddings, "embedding_length": config.hidden_size,
            "block_count": config.num_hidden_layers, "feed_forward_length": config.intermediate_size,
            "attention.head_count": config.num_attention_heads, "attention.layer_norm_epsilon": config.norm_eps,
            "attention.causal": False, "attention.sliding_window": config.local_attention,
            "attention.sliding_window_pattern": config.global_attn_every_n_layers,
            "rope.freq_base": config.global_rope_theta, "rope.freq_base_swa": config.local_rope_theta,
            "rope.scaling.type": "none", "vocab_size": config.vocab_size, "pooling_type": 1,
            "hidden_activation": config.hidden_activation} | other
    tokenizer = tokenizer_metadata(N_VOCAB, add_bos=True) | {
        "tokenizer.ggml.add_eos_token": True, "tokenizer.ggml.eos_token_id": SEP, "tokenizer.chat_template": None}
    return write_gguf(path, "modern-bert", {f"modern-bert.{key}": value for key, value in keys.items()} | tokenizer,
                      {gguf_name(name): values.detach().numpy() for name, values in model.named_parameters()}, formats)
