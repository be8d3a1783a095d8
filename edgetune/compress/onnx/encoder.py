"""An encoder with an adapter, merged, as ONNX: from tokens to the probabilities of its heads, and to its vector.

PyTorch traces transformers' BertModel and the heads after it; int8.py rounds the weights to 8 bits in a second file.
Letters: n texts of T tokens, D the model's width, k labels of a head.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from ...adapters.base import Artifact
from ...adapters.heads import MULTILABEL, TAGS, HeadKind
from ...adapters.store import read_artifact
from ...disk import new_folder
from ...errors import UnsupportedError
from ...formats.bundle import ONNX
from ...formats.encoder import EncoderShape, read_encoder
from ...formats.encoder_kinds import KINDS
from ...formats.gguf import Gguf
from ...llamacpp.wordpiece import MARK, WordPiece
from ...serving.encoder import learned
from . import int8
from .export import silent

INT8 = "model-int8.onnx"
LABELS = "labels.json"
VECTOR = "vector"
INPUTS = ("input_ids", "attention_mask")
OPSET = 17


class Whole(torch.nn.Module):
    """The encoder and its heads. names: of the outputs, the vector last."""

    def __init__(self, encoder: BertModel, is_mean: bool, heads: Sequence[HeadKind], found: Artifact) -> None:
        super().__init__()
        self.encoder = encoder
        self.is_mean = is_mean
        self.heads = heads
        self.names = [*(output_name(head, heads) for head in heads), VECTOR]
        width = encoder.config.hidden_size
        self.linear = torch.nn.ModuleList(torch.nn.Linear(width, head.size) for head in heads)
        for head, linear in zip(heads, self.linear, strict=True):
            values = torch.from_numpy(np.array(found.tensors[f"head.{head.parameters}"], np.float32).reshape(-1))
            linear.weight.data = values[:head.size * width].reshape(head.size, width)
            linear.bias.data = values[head.size * width:]

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        h = self.encoder(input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None].to(h.dtype)
        pooled = (h * mask).sum(1) / mask.sum(1) if self.is_mean else h[:, 0]
        vector = torch.nn.functional.normalize(pooled, dim=1)
        outputs = []
        for head, linear in zip(self.heads, self.linear, strict=True):
            z = linear(h if head.name == TAGS.name else vector)
            outputs.append(torch.sigmoid(z) if head.name == MULTILABEL.name else torch.softmax(z, -1))
        return (*outputs, vector)


def output_name(head: HeadKind, heads: Sequence[HeadKind]) -> str:
    return "probabilities" if len(heads) == 1 and head.name != TAGS.name else head.parameters


def export_onnx(adapter: Path, base: Gguf, folder: Path) -> dict[str, Any]:
    """Writes a new folder with model.onnx in float32, INT8, LABELS and the tokenizer's files; returns its facts.

    Inputs are input_ids and attention_mask [n, T]; outputs are probabilities [n, k] of one head, or those of each head
    by its name (tags [n, T, k]), and the vector [n, D]. Raises UnsupportedError for another architecture than bert,
    MismatchError for an adapter of another base.
    """
    if base.architecture != "bert":
        raise UnsupportedError(f"{base.path} is of the architecture {base.architecture}, bert alone is written as ONNX",
                               "take a BERT, such as minilm")
    tokenizer = WordPiece(base)
    found = read_artifact(adapter, base)
    objective = learned(found, str(adapter)) if found.objective else None
    shape = read_encoder(base)
    if shape.is_fused:
        raise UnsupportedError(f"{base.path} has queries, keys and values in one matrix, which are not written as ONNX",
                               "take a GGUF that has three, such as minilm")
    whole = Whole(_encoder(base, shape, found), shape.pooling == "mean", objective.heads if objective else (), found)
    with new_folder(folder) as beside:
        _trace(whole, beside / ONNX)
        proto = onnx.load(str(beside / ONNX))
        int8.quantize(proto, tied=False)
        onnx.save(proto, str(beside / INT8))
        _save_tokenizer(tokenizer, beside, shape.context)
        facts = {"inputs": [*INPUTS], "outputs": whole.names, "max_length": shape.context,
                 "objective": objective.to_json() if objective else None}
        (beside / LABELS).write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", "utf-8")
    sizes = [(folder / name).stat().st_size for name in (ONNX, INT8)]
    return {"outputs": whole.names, "bytes": sizes[0], "int8_bytes": sizes[1]}


def _encoder(base: Gguf, shape: EncoderShape, found: Artifact) -> BertModel:
    """transformers' model with the weights of a GGUF and the pairs of an adapter."""
    config = BertConfig(vocab_size=shape.n_vocab, hidden_size=shape.d_model, num_hidden_layers=shape.n_layer,
                        num_attention_heads=shape.n_head, intermediate_size=shape.d_ff, hidden_act="gelu",
                        max_position_embeddings=base.tensors["position_embd.weight"].shape[0],
                        type_vocab_size=base.tensors["token_types.weight"].shape[0],
                        layer_norm_eps=shape.norm_eps, attn_implementation="eager")
    model = BertModel(config, add_pooling_layer=False).eval()
    state = {}
    for theirs in model.state_dict():
        ours = KINDS["bert"].name(theirs)
        if not ours:
            continue
        values = base.read(base.tensors[ours]).f32().copy()
        if (pair := found.pairs.get(ours.removesuffix(".weight"))) is not None:
            values += np.float32(pair.scale) * (pair.b @ pair.a)
        state[theirs] = torch.from_numpy(values)
    model.load_state_dict(state, strict=False)  # buffers are its own
    return model


def _trace(whole: Whole, path: Path) -> None:
    example = torch.ones(2, 8, dtype=torch.long)
    axes = {name: {0: "texts", 1: "tokens"} for name in INPUTS}
    axes |= {name: {0: "texts", **({1: "tokens"} if name == TAGS.name else {})} for name in whole.names}
    with silent(), torch.no_grad():
        torch.onnx.export(whole.eval(), (example, example), str(path), dynamo=False, input_names=[*INPUTS],
                          output_names=whole.names, dynamic_axes=axes, opset_version=OPSET)


def _save_tokenizer(tokenizer: WordPiece, folder: Path, longest: int) -> None:
    """The files of transformers' tokenizer. A GGUF marks the beginning of a word, BERT's vocabulary what continues."""
    marks = {"cls_token": tokenizer.cls, "sep_token": tokenizer.sep, "unk_token": tokenizer.unk,
             "pad_token": tokenizer.pad}
    special = {*marks.values()}
    vocabulary: dict[str, int] = {}
    for number, text in enumerate(tokenizer.texts):
        is_mark = number in special or (text.startswith("[") and text.endswith("]"))
        written = text if is_mark else text.removeprefix(MARK) if text.startswith(MARK) else f"##{text}"
        vocabulary.setdefault(written, number)
    path = folder / "vocab.txt"
    path.write_text("".join(f"{text}\n" for text in sorted(vocabulary, key=vocabulary.__getitem__)), "utf-8")
    names = {name: tokenizer.texts[number] for name, number in marks.items()}
    BertTokenizerFast(str(path), do_lower_case=tokenizer.lowers, model_max_length=longest,
                      **names).save_pretrained(folder)
