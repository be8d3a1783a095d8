"""Encoders with byte-level BPE or unigrams as transformers and sentence-transformers save them, tiny and random."""

from pathlib import Path
from typing import Any

import numpy as np
from encoders import write_pooling
from modern_berts import tiny_modern
from tiny import byte_letters

MERGES = [("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e"), ("o", "n"), ("Ġ", "on")]


def write_modern_checkpoint(folder: Path, pooling: str = "mean_tokens", **sizes: Any) -> Path:
    """A ModernBERT; more rows in its embedding than tokens, as the published ones have."""
    model = tiny_modern(vocab_size=300, **sizes)
    model.config.layer_norm_eps = model.config.norm_eps  # the published ones say it twice, and llama.cpp reads this
    model.save_pretrained(folder)
    _write_tokenizer(folder, [], "[CLS]", "[SEP]", ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"], ["  "])
    return write_pooling(folder, pooling)


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
