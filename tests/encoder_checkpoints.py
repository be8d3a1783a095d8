"""Encoders with BPE or unigrams as transformers and sentence-transformers save them, tiny and random;
a ModernBERT also as a GGUF file.
"""

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from encoders import write_pooling
from tiny import SPECIALS, byte_letters, tokenizer_metadata, write_gguf

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


# ---- checkpoints -----------------------------------------------------------------------------------------------------


MERGES = [("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e"), ("o", "n"), ("Ġ", "on")]


def write_modern_checkpoint(folder: Path, pooling: str = "mean_tokens", **sizes: Any) -> Path:
    """A ModernBERT; more rows in its embedding than tokens, as the published ones have."""
    model = tiny_modern(vocab_size=300, **sizes)
    model.config.layer_norm_eps = model.config.norm_eps  # the published ones say it twice, and llama.cpp reads this
    model.save_pretrained(folder)
    _write_tokenizer(folder, [], "[CLS]", "[SEP]", ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"], ["  "])
    return write_pooling(folder, pooling)


LETTERS_OF_CHARACTERS = [*"\n▁abcdefghijklmnopqrstuvwxyzTW,.?'ü"]
CHARACTER_MERGES = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("o", "n"), ("▁", "on"), ("▁", "▁"), ("l", "i"),
                    ("\n", "\n")]
MARKS_OF_CHARACTERS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]


def write_mmbert_checkpoint(folder: Path, pooling: str = "mean_tokens", cuts_words: bool = True) -> Path:
    """A ModernBERT with a vocabulary like Gemma's, such as mmBERT-small: pairs of characters, bytes of others.
    cuts_words: as mmBERT does; Gemma itself merges over spaces.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    texts = [*MARKS_OF_CHARACTERS, *bytes_, *LETTERS_OF_CHARACTERS, *("".join(pair) for pair in CHARACTER_MERGES)]
    sizes = {"pad_token_id": 0, "eos_token_id": 1, "sep_token_id": 1, "bos_token_id": 2, "cls_token_id": 2}
    model = tiny_modern(vocab_size=N_VOCAB, classifier_pooling="mean", **sizes)
    model.config.layer_norm_eps = model.config.norm_eps
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate(texts)}, merges=CHARACTER_MERGES,
                                     unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = (pre_tokenizers.Metaspace(prepend_scheme="always") if cuts_words else
                               pre_tokenizers.Split(" ", "merged_with_previous"))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in MARKS_OF_CHARACTERS])
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=True) for word in ("\n\n", "▁▁", "<table>")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A <eos> $B:1 <eos>:1", special_tokens=[("<bos>", 2), ("<eos>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", cls_token="<bos>", sep_token="<eos>",
        unk_token="<unk>", pad_token="<pad>", mask_token="<mask>").save_pretrained(folder)
    return write_pooling(folder, pooling)


def write_gemma_checkpoint(folder: Path) -> Path:
    """The same, of which a text stays whole."""
    return write_mmbert_checkpoint(folder, cuts_words=False)


def write_roberta_checkpoint(folder: Path, pooling: str = "mean_tokens") -> Path:
    """A RoBERTa, the first of whose positions is that after the mark of padding."""
    from transformers import RobertaConfig, RobertaModel
    model = RobertaModel(RobertaConfig(
        vocab_size=4 + 256 + len(MERGES) + 1, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, max_position_embeddings=98, type_vocab_size=1, layer_norm_eps=1e-5)).eval()
    _set_random(model)
    model.save_pretrained(folder)
    _write_tokenizer(folder, ["<s>", "<pad>", "</s>", "<unk>"], "<s>", "</s>", ["<mask>"], [])
    return write_pooling(folder, pooling)


LETTERS = "abcdefghijklmnopqrstuvwxyzéß.,?'"
PIECES = [("▁", -3.0), ("▁the", -4.0), ("▁light", -4.5), ("▁turn", -4.6), ("on", -5.0), ("▁on", -4.2),
          *((letter, -6.0 - i / 10) for i, letter in enumerate(LETTERS))]


def write_xlm_checkpoint(folder: Path, pooling: str = "mean_tokens") -> Path:
    """An XLM-RoBERTa with unigrams."""
    return _write_unigrams(folder, "XLMRoberta", pooling, max_position_embeddings=98)


def write_e5_checkpoint(folder: Path, pooling: str = "mean_tokens") -> Path:
    """A BERT with unigrams, such as multilingual-e5-small."""
    return _write_unigrams(folder, "Bert", pooling, max_position_embeddings=96, layer_norm_eps=1e-12)


def _write_unigrams(folder: Path, name: str, pooling: str, **sizes: Any) -> Path:
    import transformers
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    vocabulary = [*((mark, 0.0) for mark in ("<s>", "<pad>", "</s>", "<unk>")), *PIECES, ("<mask>", 0.0)]
    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(vocabulary), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        type_vocab_size=2, pad_token_id=1, **sizes)
    model = getattr(transformers, f"{name}Model")(config)
    _set_random(model)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=3))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Precompiled(charsmap()),
                                                 normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>",
        unk_token="<unk>", pad_token="<pad>", mask_token="<mask>").save_pretrained(folder)
    return write_pooling(folder, pooling)


def charsmap() -> bytes:
    """A normalisation in SentencePiece's form that makes "A" of a text "a", and of "½" what NFKC does."""
    nodes = np.zeros(1024, "<u4")
    leaf = 1 << 8
    nodes[0] = 0x100 << 10  # children of the root are at 0x100 XOR byte
    for value, letters in ((0, b"A"), (2, "½".encode())):
        node = 0x100
        for i, byte in enumerate(letters):
            node ^= byte
            is_last = i == len(letters) - 1
            child = 0x200 if not is_last else node ^ 1  # of the next byte, or the value
            nodes[node] = ((node ^ child) << 10) | byte | (leaf if is_last else 0)
            node = child
        nodes[node] = (1 << 31) | value
    return (4 * nodes.size).to_bytes(4, "little") + nodes.tobytes() + "a\0001\u20442\0".encode()


def _write_tokenizer(folder: Path, first: list[str], cls: str, sep: str, last: list[str], words: list[str]) -> None:
    """first: marks with the first ids, last: with the last ones. words: tokens that are no marks and not cut."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast
    texts = [*first, *byte_letters(), *("".join(pair) for pair in MERGES)]
    tokenizer = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate(texts)}, merges=MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    if not first:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in (*first, *last)])
    tokenizer.add_tokens([AddedToken(word, special=False) for word in words])
    marks = [(text, tokenizer.token_to_id(text)) for text in (cls, sep)]
    tokenizer.post_processor = (
        processors.RobertaProcessing(sep=marks[1], cls=marks[0], add_prefix_space=False) if first else
        processors.TemplateProcessing(single=f"{cls} $A {sep}", pair=f"{cls} $A {sep} $B:1 {sep}:1",
                                      special_tokens=marks))
    named = {"bos_token": cls, "eos_token": sep} if first else {}
    unknown, padding = ("<unk>", "<pad>") if first else ("[UNK]", "[PAD]")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, cls_token=cls, sep_token=sep, unk_token=unknown,
                            pad_token=padding, mask_token=last[-1], **named).save_pretrained(folder)


def _set_random(model: Any) -> None:
    import torch
    rng = np.random.default_rng(4)
    with torch.no_grad():
        for name, values in model.named_parameters():
            center = 1.0 if name.endswith("LayerNorm.weight") else 0.0
            values.copy_(torch.from_numpy((center + 0.2 * rng.standard_normal(values.shape)).astype(np.float32)))
