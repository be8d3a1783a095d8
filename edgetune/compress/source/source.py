"""What is to be compressed, wherever it comes from: a Hugging Face folder, a hub id, a GGUF or a bundle.

Nothing that comes with a checkpoint is executed: no code next to it, no pickles.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path
from typing import Any

from ...errors import FormatError, UnsupportedError, UsageError
from ...formats.bundle import open_bundle, sha256
from ...formats.checkpoint import weight_files
from ...formats.named import find_model
from .. import memory
from . import convert, floats
from .floats import Floats
from .model_types import CONVERTED

FLOAT_FORMATS = ("F32", "F16", "BF16")
# What a download takes: never the .bin, .pth or .onnx next to it.
_NEEDED = ["*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json", "modules.json",
           "*_Pooling/config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
           "chat_template.*", "additional_chat_templates/*", "README.md"]
_UNNEEDED = ["consolidated*", "*/*.safetensors"]  # the same weights once more


@dataclass(frozen=True, eq=False)
class Source:
    """A model in floats and where it came from.

    `path` is the folder or file that was read, `sha256` the digest of each weight file in it by name, `revision` the
    hub's commit or "", `licence` as the GGUF, the model card or config.json names it or "". `quantized`: not all
    matrices of a GGUF are floats. `fingerprint` is a GGUF's (see gguf.fingerprint), else that of `sha256` and of the
    keys that the folder becomes, but for those that name it.
    """

    floats: Floats
    name: str
    kind: str  # folder | hub | gguf | bundle
    path: Path
    revision: str
    licence: str
    sha256: dict[str, str]
    quantized: bool
    fingerprint: str

    def to_json(self) -> dict[str, Any]:
        return {spec.name: getattr(self, spec.name) for spec in fields(self) if spec.name not in ("floats", "path")}


@dataclass(frozen=True)
class Located:
    """The place of a source on this device. kind: folder | hub | gguf | bundle. revision: the hub's commit or ""."""

    name: str
    kind: str
    path: Path

    @property
    def revision(self) -> str:
        commit = re.fullmatch(r".*/snapshots/([0-9a-f]{40})", self.path.resolve().as_posix())
        return commit[1] if commit else ""


def locate(name: str) -> Located:
    """A path, or else an id on the Hugging Face hub, whose files are then downloaded or taken from its local cache.

    UsageError where there is neither, FormatError for a folder of another kind. The hub's library shows a download's
    progress on stderr.
    """
    path = find_model(Path(name).expanduser())
    if path.is_dir() and (path / "config.json").exists() and not (path / "manifest.json").exists():
        return Located(convert.name_of(path), "folder", path)
    if path.is_dir() and not (path / "manifest.json").exists():
        found = sorted(path.glob("*.gguf"))
        raise FormatError(f"{path} has neither config.json nor manifest.json",
                          f"name {found[0]}" if found else "name a checkpoint's folder, a bundle or a .gguf file")
    if path.exists():
        return Located(path.name, "bundle" if path.is_dir() else "gguf", path)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.endswith(".gguf"):
        return Located(name, "hub", download(name))
    raise UsageError(f"there is no {name}", "name a folder, a .gguf file, a bundle, or OWNER/MODEL on the hub")


def open_source(place: Located | str) -> Source:
    """Reads what `locate` found. FormatError and UnsupportedError as convert.convert and bundle.open_bundle say."""
    place = locate(place) if isinstance(place, str) else place
    return _open_folder(place) if place.kind in ("folder", "hub") else _open_gguf(place.path)


def download(name: str) -> Path:
    """The local folder of a model on the hub. UsageError, with the way out, where it cannot be had."""
    from huggingface_hub import errors, snapshot_download

    by_hand = f"download https://huggingface.co/{name} where it can be had and name the folder"
    try:
        return Path(snapshot_download(name, allow_patterns=_NEEDED, ignore_patterns=_UNNEEDED))
    except errors.GatedRepoError:
        raise UsageError(f"the hub gives {name} only to those who accepted its terms",
                         f"accept them there and log in with `hf auth login`, or {by_hand}") from None
    except errors.RepositoryNotFoundError:
        raise UsageError(f"there is no {name} here, and none on the hub that may be read",
                         "check the name, or log in with `hf auth login`") from None
    except errors.LocalEntryNotFoundError:
        raise UsageError(f"the hub cannot be reached for {name}, and its local cache has no copy", by_hand) from None
    except OSError as error:  # the library's errors of HTTP are OSErrors too
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(f"cannot download {name}: {reason:.120}", by_hand) from None


def _open_folder(place: Located) -> Source:
    folder = place.path
    memory.require_memory(convert.memory_needed(folder), f"{folder} in float32")
    model = convert.convert(folder)
    weights = {path.name: sha256(path) for path in weight_files(folder)}
    keys = {key: value for key, value in model.metadata.items() if not key.startswith("general.")}
    digest = hashlib.sha256(json.dumps([weights, keys], sort_keys=True).encode())
    return Source(model, place.name, place.kind, folder, place.revision, _licence(model), weights, False,
                  f"sha256:{digest.hexdigest()}")


def _open_gguf(path: Path) -> Source:
    bundle = open_bundle(path)
    if (arch := bundle.gguf.architecture) not in CONVERTED:
        raise UnsupportedError(f"{path} is of architecture {arch!r}, edgetune compresses "
                               f"{', '.join(CONVERTED)}", "quantize it with llama-quantize, and train that")
    sizes = [prod(tensor.shape) for tensor in bundle.gguf.tensors.values()]
    memory.require_memory(memory.FLOAT * (sum(sizes) + max(sizes, default=0)), f"{path} in float32")
    model = floats.read(bundle.gguf)
    file = bundle.gguf.path
    matrices = [tensor for tensor in bundle.gguf.tensors.values() if len(tensor.shape) > 1]
    quantized = any(matrix.format not in FLOAT_FORMATS for matrix in matrices)
    model.shape  # noqa: B018  raises for what the engine cannot compute
    return Source(model, path.name, "bundle" if path.is_dir() else "gguf", path, "", _licence(model),
                  {file.name: sha256(file)}, quantized, bundle.fingerprint)


def _licence(model: Floats) -> str:
    return str(model.metadata.get("general.license", ""))

