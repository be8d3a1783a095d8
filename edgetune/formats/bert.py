"""A Hugging Face folder of an encoder as a GGUF, equal to what llama.cpp's converter makes of it.

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
from .checkpoint import AGAIN, as_written, read_json, weight_files
from .encoder_kinds import KINDS, SIZES, Kind, Shapes
from .gguf import write_gguf
from .gguf.charsmap import KEY as CHARSMAP
from .gguf.write import Deferred
from .safetensors import Safetensors

POSITIONS = "position_embd.weight"
FLOAT_TENSORS = (POSITIONS, "token_types.weight")  # matrices that llama.cpp keeps as F32
POOLINGS = {"mean_tokens": 1, "cls_token": 2, "lasttoken": 3}  # sentence-transformers' names -> GGUF's numbers


def is_bert(folder: Path) -> bool:
    """Whether a folder's config.json says that its model is an encoder that is converted."""
    return read_json(folder / "config.json").get("model_type") in KINDS


def write_bert(path: Path, folder: Path, format: str = "F16", general: dict[str, Any] | None = None) -> None:
    """Write the GGUF of a folder with config.json, safetensors and tokenizer.json.

    format: of the matrices: F32, F16, or one that the gguf package quantizes. general: more keys, such as
    general.license. FormatError for what is missing or damaged, UnsupportedError for a variant that llama.cpp does not
    compute.
    """
    with as_written(folder / "config.json", "transformers"):
        kind, sizes, keys = _read_config(folder)
    with ExitStack() as opened:
        stored: dict[str, tuple[Safetensors, str]] = {}
        for file in weight_files(folder):
            tensors = opened.enter_context(Safetensors(file))
            for name in tensors.shapes:
                if (ours := kind.name(name)) is None:
                    raise UnsupportedError(
                        f"{file} has the tensor {name!r:.80}, llama.cpp's {kind.architecture} has none such",
                        "take the encoder alone, or a model of another variant")
                if ours:
                    stored[ours] = (tensors, name)
        _check_shapes(folder, stored, kind.shapes(sizes), sizes["first_position"])
        tokenizer = kind.tokenizer(folder, sizes["vocab_size"])
        metadata = {"general.type": "model", **(general or {}), "general.file_type": _file_type(format),
                    "general.quantization_version": 2, **keys,
                    f"{kind.architecture}.pooling_type": _pooling(folder), **tokenizer}
        write_gguf(path, kind.architecture, metadata,
                   {ours: _deferred(ours, *where, format, sizes["first_position"]) for ours, where in stored.items()},
                   {CHARSMAP: "[u8]"})


def _read_config(folder: Path) -> tuple[Kind, dict[str, int], dict[str, Any]]:
    """The kind, sizes by transformers' names with the first position of a text, and the keys of the architecture."""
    config = read_json(folder / "config.json")
    if (model_type := config.get("model_type")) not in KINDS:
        raise UnsupportedError(f"{folder} is of model_type {model_type!r:.60}", f"known are {', '.join(KINDS)}")
    kind = KINDS[str(model_type)]
    for name, value in kind.usual.items():
        if (found := config.get(name, value)) != value:
            raise UnsupportedError(f"{folder} has {name} = {found!s:.60}",
                                   f"edgetune converts encoders where it is {value}")
    names = [*SIZES.values(), "vocab_size", *kind.defaults]
    sizes = {name: int(config[name] if name in config else kind.defaults[name]) for name in names}
    sizes["first_position"] = int(config["pad_token_id"]) + 1 if kind.offset else 0
    sizes["max_position_embeddings"] -= sizes["first_position"]
    keys: dict[str, Any] = {f"{kind.architecture}.{ours}": sizes[theirs] for ours, theirs in SIZES.items()}
    keys |= {f"{kind.architecture}.attention.layer_norm_epsilon": float(config.get(kind.epsilon, kind.usual_epsilon)),
             f"{kind.architecture}.attention.causal": False, **kind.keys(config)}
    return kind, sizes, keys


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


def _check_shapes(folder: Path, stored: dict[str, tuple[Safetensors, str]], shapes: Shapes, first: int) -> None:
    """first: rows of the embedding of positions before that of a text's first token."""
    belong = "config.json and the weights must belong together"
    if wrong := sorted(shapes.keys() ^ stored.keys()):
        what = "lacks" if wrong[0] in shapes else "has besides"
        raise FormatError(f"{folder} {what} the tensor that a GGUF calls {wrong[0]}", belong)
    for name, shape in shapes.items():
        file, theirs = stored[name]
        rows = shape[0] + (first if name == POSITIONS else 0)
        if (found := file.shapes[theirs]) != (wanted := (rows, *shape[1:])):
            raise FormatError(f"{folder} has {theirs} of shape {list(found)}, config.json says {list(wanted)}", belong)


# ---- formats ---------------------------------------------------------------------------------------------------------


def _deferred(ours: str, file: Safetensors, name: str, format: str, first: int) -> Deferred:
    shape = file.shapes[name]
    if ours == POSITIONS:
        return Deferred((shape[0] - first, *shape[1:]), "F32", lambda: file.read(name)[first:])
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
