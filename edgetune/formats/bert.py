"""A Hugging Face folder of a BERT as a GGUF, equal to what llama.cpp's converter makes of it.

It needs neither torch nor transformers and holds one tensor at a time, so a device can do it. How a text's vector is
pooled is said by sentence-transformers' files next to the model; without them it is the mean, as there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..disk import read_small
from ..errors import FormatError, UnsupportedError
from . import wordpiece
from .checkpoint import AGAIN, as_written, read_json, weight_files
from .gguf import ENCODER, write_gguf
from .gguf.write import Deferred
from .safetensors import Safetensors

IN_BLOCK = {
    "attention.self.query": "attn_q", "attention.self.key": "attn_k", "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output", "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up", "output.dense": "ffn_down", "output.LayerNorm": "layer_output_norm",
}
"""Parts of a block: transformers' name -> GGUF's."""
OUTSIDE = {"word_embeddings": "token_embd", "position_embeddings": "position_embd",
           "token_type_embeddings": "token_types", "LayerNorm": "token_embd_norm"}
FLOAT_TENSORS = ("position_embd.weight", "token_types.weight")  # matrices that llama.cpp keeps as F32
POOLINGS = {"mean_tokens": 1, "cls_token": 2, "lasttoken": 3}  # sentence-transformers' names -> GGUF's numbers
# Heads that BERT was trained with and nobody needs for vectors, and a buffer that old transformers stored.
_UNUSED = re.compile(r"embeddings\.position_ids|pooler\.dense\.(weight|bias)|cls\.(predictions|seq_relationship)\..*")
_USUAL = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False,
          "add_cross_attention": False}
_SIZES = {"context_length": "max_position_embeddings", "embedding_length": "hidden_size",
          "block_count": "num_hidden_layers", "feed_forward_length": "intermediate_size",
          "attention.head_count": "num_attention_heads"}


def is_bert(folder: Path) -> bool:
    """Whether a folder's config.json says that its model is a BERT."""
    return read_json(folder / "config.json").get("model_type") == "bert"


def write_bert(path: Path, folder: Path, format: str = "F16", general: dict[str, Any] | None = None) -> None:
    """Write the GGUF of a folder with config.json, safetensors and tokenizer.json.

    format: of the matrices: F32, F16, or one that the gguf package quantizes. general: more keys, such as
    general.license. FormatError for what is missing or damaged, UnsupportedError for a variant that llama.cpp does not
    compute.
    """
    with as_written(folder / "config.json", "transformers"):
        sizes, keys = _read_config(folder)
    with ExitStack() as opened:
        stored: dict[str, tuple[Safetensors, str]] = {}
        for file in weight_files(folder):
            tensors = opened.enter_context(Safetensors(file))
            for name in tensors.shapes:
                if (ours := _name(file, name)) is not None:
                    stored[ours] = (tensors, name)
        _check_shapes(folder, stored, sizes)
        tokenizer = wordpiece.read(folder, sizes["vocab_size"])
        metadata = {"general.type": "model", **(general or {}), "general.file_type": _file_type(format),
                    "general.quantization_version": 2, **keys, "bert.pooling_type": _pooling(folder),
                    "tokenizer.ggml.token_type_count": sizes["type_vocab_size"], **tokenizer}
        write_gguf(path, ENCODER, metadata, {ours: _deferred(ours, *where, format) for ours, where in stored.items()})


def _read_config(folder: Path) -> tuple[dict[str, int], dict[str, Any]]:
    """Sizes by transformers' names, and the keys bert.*."""
    config = read_json(folder / "config.json")
    if (kind := config.get("model_type")) != "bert":
        raise UnsupportedError(f"{folder} is of model_type {kind!r:.60}", "known is bert")
    for name, value in _USUAL.items():
        if (found := config.get(name, value)) != value:
            raise UnsupportedError(f"{folder} has {name} = {found!s:.60}",
                                   f"edgetune converts encoders where it is {value}")
    defaults = {"max_position_embeddings": 512, "type_vocab_size": 2}
    names = [*_SIZES.values(), "vocab_size", "type_vocab_size"]
    sizes = {name: int(config[name] if name in config else defaults[name]) for name in names}
    keys: dict[str, Any] = {f"bert.{ours}": sizes[theirs] for ours, theirs in _SIZES.items()}
    keys |= {"bert.attention.layer_norm_epsilon": float(config.get("layer_norm_eps", 1e-12)),
             "bert.attention.causal": False}
    return sizes, keys


def _pooling(folder: Path) -> int:
    """GGUF's number of the way in which sentence-transformers pools."""
    path = folder / "modules.json"
    with as_written(path, "sentence-transformers"):
        modules = json.loads(read_small(path)) if path.is_file() else []
        place = next((module["path"] for module in modules if module["type"].endswith("Pooling")), None)
        if place is None:
            return POOLINGS["mean_tokens"]
        if not re.fullmatch(r"[\w-]+", place):
            raise FormatError(f"{path} names the folder {place!r:.60}, which is not in its own", AGAIN)
    config = read_json(folder / place / "config.json")
    for name, number in POOLINGS.items():
        if config.get(f"pooling_mode_{name}") or config.get("pooling_mode") == name.partition("_")[0]:
            return number
    raise UnsupportedError(f"{folder / place} pools in none of the ways {', '.join(POOLINGS)}",
                           "take a model that does")


def _name(file: Path, name: str) -> str | None:
    """GGUF's name of a tensor; None for one that is left out. UnsupportedError for one that has no place there."""
    plain = name.removeprefix("bert.").replace(".gamma", ".weight").replace(".beta", ".bias")
    if _UNUSED.fullmatch(plain):
        return None
    if match := re.fullmatch(r"encoder\.layer\.(\d+)\.([\w.]+)\.(weight|bias)", plain):
        number, part, kind = match.groups()
        if part in IN_BLOCK:
            return f"blk.{int(number)}.{IN_BLOCK[part]}.{kind}"
    if match := re.fullmatch(r"embeddings\.(\w+)\.(weight|bias)", plain):
        part, kind = match.groups()
        if part in OUTSIDE:
            return f"{OUTSIDE[part]}.{kind}"
    raise UnsupportedError(f"{file} has the tensor {name!r:.80}, llama.cpp's {ENCODER} has none such",
                           "take the encoder alone, or a model of another variant")


def _check_shapes(folder: Path, stored: dict[str, tuple[Safetensors, str]], sizes: dict[str, int]) -> None:
    d = sizes["hidden_size"]
    f = sizes["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (sizes["vocab_size"], d), "position_embd.weight": (sizes["max_position_embeddings"], d),
        "token_types.weight": (sizes["type_vocab_size"], d)}
    layers: dict[str, tuple[int, ...]] = {"token_embd_norm": (d,)}
    for i in range(sizes["num_hidden_layers"]):
        for part in IN_BLOCK.values():
            layers[f"blk.{i}.{part}"] = (d,) if part.endswith("_norm") else (d, d)
        layers[f"blk.{i}.ffn_up"] = (f, d)
        layers[f"blk.{i}.ffn_down"] = (d, f)
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    belong = "config.json and the weights must belong together"
    if wrong := sorted(shapes.keys() ^ stored.keys()):
        what = "lacks" if wrong[0] in shapes else "has besides"
        raise FormatError(f"{folder} {what} the tensor that a GGUF calls {wrong[0]}", belong)
    for name, shape in shapes.items():
        file, theirs = stored[name]
        if (found := file.shapes[theirs]) != shape:
            raise FormatError(f"{folder} has {theirs} of shape {list(found)}, config.json says {list(shape)}", belong)


# ---- formats ---------------------------------------------------------------------------------------------------------


def _deferred(ours: str, file: Safetensors, name: str, format: str) -> Deferred:
    shape = file.shapes[name]
    if len(shape) == 1 or ours in FLOAT_TENSORS:
        return Deferred(shape, "F32", lambda: file.read(name))
    return Deferred(shape, format, lambda: _quantized(file.read(name), format))


def _quantized(array: NDArray[np.float32], format: str) -> NDArray[Any]:
    from gguf import GGMLQuantizationType, quants

    quantize: Callable[..., NDArray[Any]] = quants.quantize
    return quantize(array, GGMLQuantizationType[format])


def _file_type(format: str) -> int:
    from gguf import LlamaFileType

    return int(LlamaFileType["ALL_F32" if format == "F32" else f"MOSTLY_{format}"])
