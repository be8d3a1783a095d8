"""The kinds of encoders that become a GGUF, as transformers stores them: names, shapes, keys, tokenizer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import UnsupportedError
from .encoder import ACTIVATIONS
from .encoder_tokenizers import (
    is_unigram,
    marks_spaces,
    read_byte_pairs,
    read_character_pairs,
    read_unigrams,
    read_wordpiece,
)
from .gguf import ENCODER, MODERN

Sizes = Mapping[str, int]  # by transformers' names
Shapes = dict[str, tuple[int, ...]]  # by GGUF's


@dataclass(frozen=True)
class Kind:
    """A model_type. architecture: GGUF's. prefix: before all names in some checkpoints.

    blocks: what the names of a block's parts begin with, before its number; in_block, outside: transformers' names of
    parts -> GGUF's. unused: tensors that are left out: heads of pre-training, and buffers that old versions stored.
    usual: values of config.json other than which llama.cpp computes nothing. epsilon: of norms, by its name there, and
    its default. tokenizer: reads the keys of one, by the rows of the embedding. shapes: of all tensors. keys: what
    else becomes of config.json. defaults: of sizes there. offset: whether the positions of a text begin after that of
    padding.
    """

    architecture: str
    prefix: str
    blocks: str
    in_block: Mapping[str, str]
    outside: Mapping[str, str]
    unused: str
    usual: Mapping[str, Any]
    epsilon: str
    usual_epsilon: float
    tokenizer: Callable[[Path, int], dict[str, Any]]
    shapes: Callable[[Sizes], Shapes]
    keys: Callable[[Mapping[str, Any]], dict[str, Any]]
    defaults: Mapping[str, int] = field(default_factory=dict)
    offset: bool = False

    def name(self, stored: str) -> str | None:
        """GGUF's name of a tensor; "" of one that is left out, None of one that has no place there."""
        plain = stored.removeprefix(self.prefix).replace(".gamma", ".weight").replace(".beta", ".bias")
        if re.fullmatch(self.unused, plain):
            return ""
        place, _, kind = plain.rpartition(".")
        if kind not in ("weight", "bias"):
            return None
        if place in self.outside:
            return f"{self.outside[place]}.{kind}"
        if (match := re.fullmatch(rf"{self.blocks}\.(\d+)\.([\w.]+)", place)) and match[2] in self.in_block:
            return f"blk.{int(match[1])}.{self.in_block[match[2]]}.{kind}"
        return None


SIZES = {"context_length": "max_position_embeddings", "embedding_length": "hidden_size",
         "block_count": "num_hidden_layers", "feed_forward_length": "intermediate_size",
         "attention.head_count": "num_attention_heads"}
"""GGUF's keys -> those of config.json."""


def _bert_shapes(sizes: Sizes) -> Shapes:
    d = sizes["hidden_size"]
    f = sizes["intermediate_size"]
    shapes: Shapes = {
        "token_embd.weight": (sizes["vocab_size"], d), "position_embd.weight": (sizes["max_position_embeddings"], d),
        "token_types.weight": (sizes["type_vocab_size"], d)}
    layers: Shapes = {"token_embd_norm": (d,)}
    for i in range(sizes["num_hidden_layers"]):
        for part in BERT.in_block.values():
            layers[f"blk.{i}.{part}"] = (d,) if part.endswith("_norm") else (d, d)
        layers[f"blk.{i}.ffn_up"] = (f, d)
        layers[f"blk.{i}.ffn_down"] = (d, f)
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def _bert_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"tokenizer.ggml.token_type_count": int(config.get("type_vocab_size", BERT.defaults["type_vocab_size"]))}


def _bert_tokenizer(folder: Path, rows: int) -> dict[str, Any]:
    """The keys of a BERT's tokenizer: WordPiece, or of the multilingual ones unigrams."""
    return read_unigrams(folder, rows) if is_unigram(folder) else read_wordpiece(folder, rows)


BERT = Kind(
    architecture=ENCODER, prefix="bert.", blocks=r"encoder\.layer",
    in_block={"attention.self.query": "attn_q", "attention.self.key": "attn_k", "attention.self.value": "attn_v",
              "attention.output.dense": "attn_output", "attention.output.LayerNorm": "attn_output_norm",
              "intermediate.dense": "ffn_up", "output.dense": "ffn_down", "output.LayerNorm": "layer_output_norm"},
    outside={"embeddings.word_embeddings": "token_embd", "embeddings.position_embeddings": "position_embd",
             "embeddings.token_type_embeddings": "token_types", "embeddings.LayerNorm": "token_embd_norm"},
    unused=r"embeddings\.position_ids|pooler\.dense\.(weight|bias)|cls\.(predictions|seq_relationship)\..*",
    usual={"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False,
           "add_cross_attention": False},
    epsilon="layer_norm_eps", usual_epsilon=1e-12, tokenizer=_bert_tokenizer, shapes=_bert_shapes, keys=_bert_keys,
    defaults={"max_position_embeddings": 512, "type_vocab_size": 2})

ROBERTA = replace(BERT, prefix="roberta.", offset=True, tokenizer=partial(read_byte_pairs, pre="roberta-bpe"),
                  unused=rf"{BERT.unused}|lm_head\..*")
XLM_ROBERTA = replace(ROBERTA, tokenizer=read_unigrams)


def _modern_tokenizer(folder: Path, rows: int) -> dict[str, Any]:
    """The keys of a ModernBERT's tokenizer: pairs of bytes, or of the multilingual ones pairs of characters."""
    if marks_spaces(folder):
        return read_character_pairs(folder, rows)
    return read_byte_pairs(folder, rows, pre="modern-bert")


def _modern_shapes(sizes: Sizes) -> Shapes:
    d = sizes["hidden_size"]
    f = sizes["intermediate_size"]
    shapes: Shapes = {"token_embd.weight": (sizes["vocab_size"], d), "token_embd_norm.weight": (d,),
                      "output_norm.weight": (d,)}
    for i in range(sizes["num_hidden_layers"]):
        parts: Shapes = {"attn_qkv": (3 * d, d), "attn_output": (d, d), "ffn_norm": (d,), "ffn_up": (2 * f, d),
                         "ffn_down": (d, f)}
        if i:
            parts["attn_norm"] = (d,)
        shapes |= {f"blk.{i}.{part}.weight": shape for part, shape in parts.items()}
    return shapes


def _modern_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    activation = str(config.get("hidden_activation", "gelu"))
    if activation not in ACTIVATIONS:
        raise UnsupportedError(f"the model has hidden_activation = {activation:.60}",
                               f"edgetune converts encoders with one of {', '.join(ACTIVATIONS)}")
    bases = config.get("rope_parameters") or {  # as transformers 5 writes it
        "full_attention": {"rope_theta": config["global_rope_theta"]},
        "sliding_attention": {"rope_theta": config.get("local_rope_theta") or config["global_rope_theta"]}}
    pooling = {"cls": 2, "mean": 1}[config.get("classifier_pooling", "cls")]
    epsilon = float(config.get("norm_eps", 1e-5))  # llama.cpp's converter writes it by both names, and reads one
    found = {"rope.freq_base": float(bases["full_attention"]["rope_theta"]),
             "rope.freq_base_swa": float(bases["sliding_attention"]["rope_theta"]),
             "attention.layer_norm_rms_epsilon": epsilon,
             "classifier.pooling_type": pooling, "attention.sliding_window": int(config["local_attention"]),
             "attention.sliding_window_pattern": int(config["global_attn_every_n_layers"]),
             "rope.scaling.type": "none", "vocab_size": int(config["vocab_size"]), "hidden_activation": activation}
    return {f"{MODERN}.{name}": value for name, value in found.items()}


MODERN_BERT = Kind(
    architecture=MODERN, prefix="model.", blocks="layers",
    in_block={"attn_norm": "attn_norm", "attn.Wqkv": "attn_qkv", "attn.Wo": "attn_output", "mlp_norm": "ffn_norm",
              "mlp.Wi": "ffn_up", "mlp.Wo": "ffn_down"},
    outside={"embeddings.tok_embeddings": "token_embd", "embeddings.norm": "token_embd_norm",
             "final_norm": "output_norm"},
    unused=r"head\.(dense|norm)\.weight|decoder\.(weight|bias)",
    usual={"norm_bias": False, "attention_bias": False, "mlp_bias": False},
    epsilon="norm_eps", usual_epsilon=1e-5, tokenizer=_modern_tokenizer,
    shapes=_modern_shapes, keys=_modern_keys)

KINDS = {"bert": BERT, "roberta": ROBERTA, "xlm-roberta": XLM_ROBERTA, "modernbert": MODERN_BERT}
"""By the model_type of config.json."""
