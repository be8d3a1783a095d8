"""A Hugging Face folder as a model in floats: what llama.cpp's converter would write, without executing anything in it.

Weights come from safetensors alone, the configuration from config.json with transformers' defaults for what it leaves
out, the tokenizer from tokenizer.json. Facts (keys, their meaning, llama3's factors): llama.cpp, convert_hf_to_gguf.py.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoConfig, PretrainedConfig

from ...errors import FormatError, UnsupportedError
from ...formats.checkpoint import as_written, read_json, weight_files
from ...formats.families import FAMILIES
from ...formats.rope import Rope
from ...formats.safetensors import Safetensors
from ..memory import FLOAT
from . import huggingface as hf
from . import vocabulary
from .floats import Floats
from .model_types import CONVERTED, OF_TEXT, ModelType, type_of

_MOSTLY_F16 = 1  # general.file_type, as floats.write stores it
_NUMBERS_OF_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
# Of checkpoints that also see or draft several tokens ahead, and buffers that old transformers stored.
_NOT_TEXT = re.compile(r"(model\.)?(vision_tower|multi_modal_projector|visual|mtp)\.|.*\.rotary_emb\.inv_freq$")
_IN_BLOCK = re.compile(r"model\.layers\.(\d+)\.([\w.]+)\.(weight|bias)")
_CONVOLUTIONS = ("conv.weight", "conv1d.weight")
_OF_EXPERT = re.compile(r"\w+\.experts\.(\d{1,6})\.(\w+)")
_BARE = re.compile(r"model\.layers\.(\d+)\.([\w.]+)")  # a tensor without a name in its module


def convert(folder: Path) -> Floats:
    """A folder with config.json, safetensors and tokenizer.json, of a type that model_types.py has (its text part).

    FormatError for what is missing or damaged, UnsupportedError for what llama.cpp or edgetune would compute otherwise.
    """
    with as_written(folder / "config.json", "transformers"):
        config, kind = _read_config(folder)
        keys = _hyperparameters(config, kind)
        factors = _rotary_factors(config, keys)
    architecture = kind.architecture
    general = {"type": "model", "name": name_of(folder), "license": licence_of(folder), "file_type": _MOSTLY_F16,
               "quantization_version": 2}
    metadata = {f"general.{key}": value for key, value in general.items() if value != ""}
    metadata |= {f"{architecture}.{key}": value for key, value in keys.items()}
    tensors = _read_tensors(folder, kind, config)
    tensors |= {f"{name}.weight": np.array(values, np.float32) for name, values in factors.items()}
    try:
        # sizes alone are looked at: rows are still in transformers' order
        shape = Floats(architecture, metadata, {}, tensors).shape
    except FormatError as error:
        raise FormatError(f"{folder}: {error.what}", "config.json and the weights must belong together") from None
    except UnsupportedError as error:
        raise UnsupportedError(f"{folder}: {error.what}", error.hint) from None
    ordered = {}
    for name in list(tensors):
        array = tensors.pop(name)  # so that one tensor at a time is in memory twice
        ordered[name] = array if hf.is_rotary(name) else hf.tensor_to_gguf(name, array, shape)
        del array
    metadata |= {f"{architecture}.vocab_size": shape.n_vocab, **vocabulary.read(folder, shape.n_vocab)}
    return Floats(architecture, metadata, {}, ordered)


def memory_needed(folder: Path) -> int:
    """Bytes of memory that convert(folder) takes: all weights in float32, and the largest tensor once more while its
    rows are ordered. Raises as convert does for weights that are missing or damaged.
    """
    sizes = []
    for path in weight_files(folder):
        with Safetensors(path) as file:
            sizes += [math.prod(shape) for name, shape in file.shapes.items() if not _NOT_TEXT.match(name)]
    return FLOAT * (sum(sizes) + max(sizes, default=0))


def licence_of(folder: Path) -> str:
    """What the model card (README.md) gives as its license, else what config.json does, else ""."""
    from huggingface_hub import ModelCard

    path = folder / "README.md"
    found = None
    if path.is_file():
        card = ModelCard(path.read_text("utf-8", "replace"), ignore_metadata_errors=True)
        found = card.data.get("license")
    found = found or read_json(folder / "config.json").get("license")
    return found if isinstance(found, str) else ""


def name_of(folder: Path) -> str:
    """The folder's name, or the model's where the folder is a snapshot in the hub's cache."""
    folder = folder.resolve()
    if folder.parent.name == "snapshots" and "--" in folder.parents[1].name:
        return folder.parents[1].name.rpartition("--")[2]
    return folder.name


def _read_config(folder: Path) -> tuple[PretrainedConfig, ModelType]:
    """transformers' configuration of the text model, and the row of its type."""
    if not (folder / "config.json").is_file():
        raise FormatError(f"{folder} has no config.json", "name a Hugging Face checkpoint's folder, or a .gguf file")
    given = _with_floats(read_json(folder / "config.json"))
    name = given.get("model_type")
    text = given
    if name in OF_TEXT:
        text = given.get("text_config") or {}
        name = text.get("model_type", OF_TEXT[name])
    kind = type_of(str(name), text)
    has_experts = any(text.get(key) not in (None, 0, 1) for key in _NUMBERS_OF_EXPERTS)
    if has_experts and not (kind and "expert_count" in kind.keys):
        raise UnsupportedError(f"{folder} is a mixture of experts ({name})", "take a dense model")
    if kind is None:
        raise UnsupportedError(f"{folder} is of model_type {name!r:.60}", f"edgetune converts {', '.join(CONVERTED)}")
    if quantization := given.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise UnsupportedError(f"{folder} is quantized already (quantization_config: {method!s:.40})",
                               "take the model in 16 or 32 bits, or a GGUF of it")
    own = ("model_type", "text_config", "rope_parameters", "per_layer_config")
    known = {key: value for key, value in text.items() if key not in own
             and not (key == "rope_scaling" and value is None)}
    config = AutoConfig.for_model(kind.config or str(name), **_old_rope(text) | known)
    config.of_rotation = (text.get("rope_parameters") or {}).get("full_attention", {})
    config.of_blocks = text.get("per_layer_config") or {}  # under its own name it is an object of transformers 5
    _refuse_variants(folder, config, str(name), kind)
    return config, kind


def _with_floats(value: Any) -> Any:
    """transformers 5 writes infinity as {"__float__": "Infinity"}."""
    if isinstance(value, dict):
        tag = value.get("__float__")
        return {key: _with_floats(of) for key, of in value.items()} if tag is None else float(tag)
    return [_with_floats(of) for of in value] if isinstance(value, list) else value


def _old_rope(given: dict[str, Any]) -> dict[str, Any]:
    """transformers 5 writes rope_parameters, one set or one a kind of layer, where 4 writes what both read."""
    new = given.get("rope_parameters")
    if not isinstance(new, dict):
        return {}
    whole = new.get("full_attention", new)
    is_known = whole.get("rope_type") != "proportional"  # to transformers 4, which would warn
    scaling = {k: v for k, v in whole.items() if k != "rope_theta"}
    settings: dict[str, Any] = {"rope_scaling": scaling if is_known else None}
    if "rope_theta" in whole:
        settings["rope_theta"] = whole["rope_theta"]
    if "rope_theta" in new.get("sliding_attention", {}):
        settings["rope_local_base_freq"] = new["sliding_attention"]["rope_theta"]
    return settings


@dataclass(frozen=True)
class _Rotary:
    """Reads a configuration of transformers 4 or 5: the base, that of blocks with a window, and the scaling."""

    base: float
    base_of_windows: float
    scaling: dict[str, Any]

    @classmethod
    def of(cls, config: PretrainedConfig) -> _Rotary:
        new = getattr(config, "rope_parameters", None)
        if config.of_rotation.get("rope_type") == "proportional":
            return cls(float(config.of_rotation["rope_theta"]), float(config.rope_local_base_freq), config.of_rotation)
        if new is None:
            local = getattr(config, "rope_local_base_freq", config.rope_theta)
            return cls(float(config.rope_theta), float(local), getattr(config, "rope_scaling", None) or {})
        whole = new.get("full_attention", new)
        local = new.get("sliding_attention", whole)["rope_theta"]
        return cls(float(whole["rope_theta"]), float(local), whole)

    @property
    def kind(self) -> str:
        found = str(self.scaling.get("rope_type", self.scaling.get("type", "default")))
        return "dynamic with alpha" if found == "dynamic" and self.scaling.get("alpha") else found


def _refuse_variants(folder: Path, config: PretrainedConfig, name: str, kind: ModelType) -> None:
    """What llama.cpp's graph of the architecture does not compute."""
    family = FAMILIES[kind.architecture]
    head = config.hidden_size // config.num_attention_heads if (
        config.num_hidden_layers == family.wide_blocks) else _head_width(config)
    usual = {"hidden_act": "silu", "hidden_activation": "gelu_pytorch_tanh", "use_sliding_window": False,
             "query_pre_attn_scalar": head, "attn_logit_softcapping": None, "use_bidirectional_attention": False,
             **({} if family.caps_logits else {"final_logit_softcapping": None}),
             **({} if family.partly_rotated else {"partial_rotary_factor": 1.0}), **kind.usual}
    for field, value in usual.items():
        wanted = value(config) if callable(value) else value
        if (found := getattr(config, field, wanted)) != wanted and found is not None:
            raise UnsupportedError(f"{folder} has {field} = {found!s:.60}",
                                   f"edgetune converts models where it is {wanted!s:.60}")
    rotary = _Rotary.of(config)
    if rotary.kind not in kind.scalings:
        raise UnsupportedError(f"{folder} scales its rotary embedding by {rotary.kind!s:.60}",
                               f"known for {name} are {', '.join(kind.scalings)}")
    fixed = {"truncate": True, "mscale": 1.0, "attention_factor": None} if family.yarn_keys else {
        "beta_fast": Rope.fast, "beta_slow": Rope.slow, "truncate": True, "mscale": None, "mscale_all_dim": None}
    for field, value in fixed.items() if rotary.kind == "yarn" else ():
        if rotary.scaling.get(field, value) not in (value, None):
            raise UnsupportedError(f"{folder} has rope_scaling.{field} = {rotary.scaling[field]!s:.60}",
                                   f"llama.cpp computes yarn with {value}")


def _head_width(config: PretrainedConfig) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _hyperparameters(config: PretrainedConfig, of: ModelType) -> dict[str, Any]:
    """Keys after "llama."."""
    width = _head_width(config)
    rotary = _Rotary.of(config)
    family = FAMILIES[of.architecture]
    keys: dict[str, Any] = {
        "context_length": config.max_position_embeddings, "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers, "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads, "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": width, "attention.value_length": width, "rope.dimension_count": width,
        "rope.freq_base": rotary.base, "attention.layer_norm_rms_epsilon": float(getattr(config, of.epsilon)),
    }
    kind = rotary.kind
    scaling = rotary.scaling
    if kind in ("linear", "yarn"):
        keys |= {"rope.scaling.type": kind, "rope.scaling.factor": float(scaling["factor"])}
    if kind == "yarn":
        keys["rope.scaling.original_context_length"] = int(
            scaling.get("original_max_position_embeddings") or config.max_position_embeddings)
        if scaling.get("attention_factor"):  # whole in transformers, a factor of YaRN's own in llama.cpp
            keys["rope.scaling.attn_factor"] = scaling["attention_factor"] / (1 + 0.1 * math.log(scaling["factor"]))
    if family.windows_every and (not family.plain_windows or rotary.base_of_windows != rotary.base):
        keys["rope.freq_base_swa"] = rotary.base_of_windows
    return keys | {ours: getattr(config, theirs) for ours, theirs in of.keys.items()} | of.more(config)


def _rotary_factors(config: PretrainedConfig, keys: dict[str, Any]) -> dict[str, list[float]]:
    """What each rotary frequency is divided by, by GGUF's name: under llama3's scaling, in short and long texts, or so
    much that a part of a head is not rotated.
    """
    rotary = _Rotary.of(config)
    if rotary.kind == "proportional":
        width = int(keys["rope.dimension_count"])
        turned = int(rotary.scaling["partial_rotary_factor"] * width / 2)
        return {"rope_freqs": [1.0] * turned + [1e30] * (width // 2 - turned)}
    if rotary.kind in ("longrope", "su"):
        return {f"rope_factors_{of}": list(map(float, rotary.scaling[f"{of}_factor"])) for of in ("long", "short")}
    return {"rope_freqs": _llama3_factors(config)} if rotary.kind == "llama3" else {}


def _llama3_factors(config: PretrainedConfig) -> list[float]:
    """C/2 numbers."""
    rotary = _Rotary.of(config)
    scaling = rotary.scaling
    width = _head_width(config)
    context = scaling["original_max_position_embeddings"]
    low = scaling["low_freq_factor"]
    high = scaling["high_freq_factor"]
    factors = []
    for i in range(0, width, 2):
        rotations = context * rotary.base ** (-i / width) / (2 * math.pi)  # within the first context
        kept = min(max((rotations - low) / (high - low), 0.0), 1.0)
        factors.append(1.0 / ((1.0 - kept) / scaling["factor"] + kept))
    return factors


def _read_tensors(folder: Path, kind: ModelType, config: PretrainedConfig) -> dict[str, NDArray[np.float32]]:
    """Every tensor of the text model by its GGUF name, rows in transformers' order."""
    placed = GgufTensors(kind, config)
    for path in weight_files(folder):
        with Safetensors(path) as file:
            for name in file.shapes:
                if _NOT_TEXT.match(name):
                    continue
                # text may be a part of the model
                text = re.sub(r"^(model\.)?language_model\.(model\.)?", "model.", name)
                text = text.replace("model.lm_head", "lm_head")
                if not placed.has_place(text):
                    lack = f"llama.cpp's {kind.architecture} has none such"
                    raise UnsupportedError(f"{path} has the tensor {name!r:.80}, {lack}",
                                           "the model is of a variant that cannot be converted")
                if text != "lm_head.weight" or not config.tie_word_embeddings:
                    placed.put(text, file.read(name))
    return placed.whole()


class GgufTensors:
    """The tensors of a checkpoint under the names that a GGUF has for them, in its shapes; rows in transformers' order.
    A GGUF holds matrices of one module apart, and those of a block's experts as one tensor [E, N, K]. `tensors`: those
    that were put, float32 by GGUF's name.
    """

    def __init__(self, kind: ModelType, config: PretrainedConfig) -> None:
        self.tensors: dict[str, NDArray[np.float32]] = {}
        self._experts = int(getattr(config, kind.keys.get("expert_count", ""), 0))
        self._config = config
        self._kind = kind
        self._inside = {theirs: ours for ours, theirs in kind.modules.items()}
        self._outside = {theirs: ours for ours, theirs in kind.outside.items()}
        self._counts: Counter[str] = Counter()

    def has_place(self, name: str) -> bool:
        """Whether GGUF's architecture has a tensor like transformers' `name`."""
        return bool(self._names(name))

    def put(self, name: str, array: NDArray[np.float32]) -> None:
        """Takes a tensor that has a place. FormatError for an expert that the configuration does not have."""
        names = self._names(name)
        if len(names) > 1:
            self.tensors |= zip(names, self._kind.divide(array, self._config), strict=True)
        elif (expert := _expert(name)) is not None:
            self._put_expert(names[0], expert, array)
        elif names[0].endswith(_CONVOLUTIONS) and array.ndim == 3:  # of each channel by itself: [D, 1, L]
            self.tensors[names[0]] = array[:, 0]
        else:
            of_shape = self._kind.shapes.get(names[0].split(".", 2)[-1])
            self.tensors[names[0]] = of_shape(array, self._config) if of_shape else array

    def whole(self) -> dict[str, NDArray[np.float32]]:
        """All tensors. FormatError where a block lacks an expert."""
        for name, count in self._counts.items():
            if count != self._experts:
                raise FormatError(f"the weights have {count} experts of {name}, config.json says {self._experts}",
                                  "config.json and the weights must belong together")
        return self.tensors

    def _put_expert(self, name: str, expert: int, array: NDArray[np.float32]) -> None:
        if expert >= self._experts:
            raise FormatError(f"the weights have an expert {expert} of {name}, config.json says {self._experts}",
                              "config.json and the weights must belong together")
        if name not in self.tensors:
            self.tensors[name] = np.empty((self._experts, *array.shape), np.float32)
        self.tensors[name][expert] = array
        self._counts[name] += 1

    def _names(self, name: str) -> list[str]:
        """GGUF's names of what a tensor holds; []: there are none."""
        if (bare := _BARE.fullmatch(name)) and (ours := self._kind.bare.get(bare[2])):
            return [f"blk.{bare[1]}.{ours}"]
        part, _, suffix = name.rpartition(".")
        if part in self._outside:
            return [f"{self._outside[part]}.{suffix}"]
        if not (match := _IN_BLOCK.fullmatch(name)):
            return []
        block, module, suffix = match.groups()
        if fused := self._kind.fused.get(module):
            return [f"blk.{block}.{ours}.{suffix}" for ours in fused]
        if stacked := self._kind.stacked.get(module):
            return [f"blk.{block}.{ours}_exps.{suffix}" for ours in stacked]
        if expert := _OF_EXPERT.fullmatch(module):
            ours = self._kind.experts.get(expert[2])
            return [f"blk.{block}.{ours}_exps.{suffix}"] if ours else []
        return [f"blk.{block}.{self._inside[module]}.{suffix}"] if module in self._inside else []


def _expert(name: str) -> int | None:
    """The number of the expert whose tensor this is; None: of none."""
    match = _IN_BLOCK.fullmatch(name)
    expert = match and _OF_EXPERT.fullmatch(match[2])
    return int(expert[1]) if expert else None
