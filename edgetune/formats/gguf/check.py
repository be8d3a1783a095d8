"""What a sound file must say before it is used as a model or as a LoRA adapter.

llama.cpp trusts much of this. It ends the whole process on a token that occurs twice, an unknown rotary scaling or a
string of another type, and it has read past arrays of the wrong type or length (its issue 26690) and written past its
512 blocks (25821). So it is asked here, before llama.cpp sees the file. Whether the tensors are those that an
architecture needs is asked by shape.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...backends.native import FORMATS
from ...errors import FormatError, UnsupportedError
from ..families import FAMILIES
from .charsmap import check_charsmap
from .read import Gguf

_BROKEN = "the file was converted wrongly or is damaged: download or convert it again"
_SIZE = 2**31 - 1
_FLOAT = 1e30
_BASE = 1.001  # of 1, all pairs rotate alike, and nothing can be divided by its logarithm
_WINDOW = 2**24  # llama.cpp multiplies it by its sequences
_TOKENS = 2**20  # entries of a vocabulary: each becomes a string of Python

# Hyperparameters (after "llama."): the types that llama.cpp reads them as, smallest and largest value.
_HYPERPARAMETERS: dict[str, tuple[str, float, float]] = {
    "block_count": ("u32", 1, 512),
    "context_length": ("u32", 2, _SIZE),
    "embedding_length": ("u32", 1, _SIZE),
    "embedding_length_out": ("u32", 1, _SIZE),
    "pooling_type": ("u32", 0, 4),
    "classifier.pooling_type": ("u32", 0, 4),
    "feed_forward_length": ("u32 [u32] [i32]", 1, _SIZE),
    "hidden_activation": ("str", 0, 0),
    "vocab_size": ("u32", 1, _SIZE),
    "expert_count": ("u32", 0, 1024),
    "expert_used_count": ("u32 [u32] [i32]", 0, 1024),
    "expert_feed_forward_length": ("u32 [u32] [i32]", 0, _SIZE),
    "expert_shared_feed_forward_length": ("u32", 0, _SIZE),
    "leading_dense_block_count": ("u32", 0, 512),
    "expert_weights_scale": ("f32", 0, _FLOAT),
    "expert_weights_norm": ("bool", 0, 1),
    "expert_gating_func": ("u32", 0, 8),
    "attention.head_count": ("u32 [u32] [i32]", 1, _SIZE),
    "attention.head_count_kv": ("u32 [u32] [i32]", 0, _SIZE),
    "shortconv.l_cache": ("u32", 1, _SIZE),
    "ssm.conv_kernel": ("u32", 1, _SIZE),
    "ssm.inner_size": ("u32", 1, _SIZE),
    "ssm.state_size": ("u32", 1, _SIZE),
    "ssm.time_step_rank": ("u32", 1, _SIZE),
    "ssm.group_count": ("u32", 1, _SIZE),
    "full_attention_interval": ("u32", 1, _SIZE),
    "attention.recurrent_layers": ("[bool] [u32] [i32]", 0, 1),
    "attention.key_length": ("u32", 1, _SIZE),
    "attention.value_length": ("u32", 1, _SIZE),
    "attention.key_length_swa": ("u32", 1, _SIZE),
    "attention.value_length_swa": ("u32", 1, _SIZE),
    "attention.shared_kv_layers": ("u32", 0, 512),
    "embedding_length_per_layer_input": ("u32", 0, _SIZE),
    "attention.layer_norm_rms_epsilon": ("f32", 0, 1),
    "attention.layer_norm_epsilon": ("f32", 0, 1),
    "attention.scale": ("f32", 0, _FLOAT),
    "attention.temperature_scale": ("f32", 0, _FLOAT),
    "embedding_scale": ("f32", 0, _FLOAT),
    "residual_scale": ("f32", 0, _FLOAT),
    "logit_scale": ("f32", -_FLOAT, _FLOAT),
    "attention.causal": ("bool", 0, 1),
    "attention.sliding_window": ("u32", 0, _WINDOW),
    "attention.sliding_window_pattern": ("u32 [bool] [u32] [i32]", 0, _SIZE),
    "attn_logit_softcapping": ("f32", 0, _FLOAT),
    "final_logit_softcapping": ("f32", 0, _FLOAT),
    "rope.dimension_count": ("u32", 2, _SIZE),
    "rope.dimension_count_swa": ("u32", 2, _SIZE),
    "rope.dimension_sections": ("[i32] [u32]", 0, _SIZE),
    "rope.freq_base": ("f32", _BASE, _FLOAT),
    "rope.freq_base_swa": ("f32", _BASE, _FLOAT),
    "rope.scale_linear": ("f32", 0, _FLOAT),
    "rope.scaling.type": ("str", 0, 0),
    "rope.scaling.factor": ("f32", 0, _FLOAT),
    "rope.scaling.attn_factor": ("f32", 0, _FLOAT),
    "rope.scaling.alpha": ("f32", 0, _FLOAT),
    "rope.scaling.original_context_length": ("u32", 1, _SIZE),
    "rope.scaling.yarn_beta_fast": ("f32", 0, _FLOAT),
    "rope.scaling.yarn_beta_slow": ("f32", 0, _FLOAT),
    "rope.scaling.yarn_log_multiplier": ("f32", 0, _FLOAT),
    "rope.scaling.finetuned": ("bool", 0, 1),
}
_REQUIRED = ("block_count", "context_length", "embedding_length", "attention.head_count")
_ONLY_ZERO = ("expert_count", "expert_used_count", "expert_group_count", "expert_group_used_count",
              "nextn_predict_layers")
_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")

_TOKENIZER = {
    "model": "str",
    "pre": "str",
    "tokens": "[str]",
    "scores": "[f32]",
    "token_type": "[i32]",
    "merges": "[str]",
    "add_bos_token": "bool",
    "add_eos_token": "bool",
    "add_space_prefix": "bool",
    "add_sep_token": "bool",
    "normalizer.lowercase": "bool",
    "normalizer.strip_accents": "bool",
    "remove_extra_whitespaces": "bool",
    "precompiled_charsmap": "[u8] [i8]",
    "suppress_tokens": "[i32]",
    "token_type_count": "u32",
}
# Ids that llama.cpp ignores where they are no token's, but not where they are of another type.
_MARKS = ("fim_mid", "fim_pad", "fim_pre", "fim_rep", "fim_sep", "fim_suf", "mask", "middle", "padding", "prefix",
          "seperator", "suffix", "unknown", "cls")
_BPE = ("gpt2", "gemma4")  # of bytes, and of characters; both have merges
_TOKENIZER_MODELS = (*_BPE, "llama")  # and sentencepiece: those that the supported families use
ENCODER = "bert"  # the first architecture of encoders, and the tokenizer's name of all: WordPiece
NOMIC = "nomic-bert"
MODERN = "modern-bert"
ENCODER_TOKENIZERS = {ENCODER: (ENCODER, "gpt2", "t5"), NOMIC: (ENCODER,), MODERN: ("gpt2",)}
"""The tokenizers of each architecture of encoders."""
ENCODERS = ENCODER_TOKENIZERS.keys()
TABLE = "static"  # the architecture of a table of one vector a token, which is edgetune's own
_NOT_WEIGHTS = ("I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K")  # llama.cpp cannot multiply by these


def check_network(gguf: Gguf) -> None:
    """Checks a file of any kind: an encoder as check_encoder does, a table as check_table, else as check_model."""
    checks = {**dict.fromkeys(ENCODERS, check_encoder), TABLE: check_table}
    checks.get(str(gguf.metadata.get("general.architecture")), check_model)(gguf)


def check_model(gguf: Gguf) -> None:
    """FormatError or UnsupportedError unless the file is a whole dense language model that llama.cpp may be given."""
    if gguf.metadata.get("general.architecture") in (*ENCODERS, TABLE):
        raise UnsupportedError(f"{gguf.path} is an encoder, which makes vectors and no text",
                               "take a model that answers, such as smollm2")
    check_vocabulary(gguf)
    _check_weights(gguf, _text(gguf, "general.architecture"))


def check_encoder(gguf: Gguf) -> None:
    """Checks a BERT, which makes vectors of texts, as check_model does a decoder."""
    arch = _text(gguf, "general.architecture")
    if arch not in ENCODERS:
        raise UnsupportedError(f"{gguf.path} is of architecture {arch!r:.60}, no encoder",
                               f"take one of {', '.join(ENCODERS)}")
    _check_facts(gguf, ENCODER_TOKENIZERS[arch])
    _check_weights(gguf, arch)


def check_table(gguf: Gguf) -> None:
    """FormatError or UnsupportedError unless the file is a WordPiece vocabulary with a vector of int8 a token."""
    if (arch := _text(gguf, "general.architecture")) != TABLE:
        raise UnsupportedError(f"{gguf.path} is of architecture {arch!r:.60}, no table of vectors",
                               f"take one of {TABLE!r}")
    _check_tokenizer(gguf, (ENCODER,))
    wanted = (gguf.metadata.count("tokenizer.ggml.tokens"), gguf.metadata.get(f"{TABLE}.embedding_length"))
    if list(gguf.tensors) != ["token_embd.weight"]:
        raise FormatError(f"{gguf.path} has {len(gguf.tensors)} tensors, a table has token_embd.weight alone", _BROKEN)
    _check_shape(gguf, "token_embd.weight", wanted)
    if (format := gguf.tensors["token_embd.weight"].format) != "I8":
        raise UnsupportedError(f"{gguf.path}: 'token_embd.weight' is {format}", "a table of vectors is I8")


def check_vocabulary(gguf: Gguf) -> None:
    """Checks what check_model does but for the weights: llama.cpp may be given the vocabulary alone."""
    _check_facts(gguf, _TOKENIZER_MODELS)


def _check_facts(gguf: Gguf, tokenizers: tuple[str, ...]) -> None:
    """All but the weights. tokenizers: those that it may have."""
    kind = _text(gguf, "general.type", "model")
    if kind != "model":
        raise UnsupportedError(f"{gguf.path} holds general.type {kind!r}, not 'model'", "name the base model's file")
    for parts in _values(gguf, "split.count", "u16", 0, 65_535):
        if parts > 1:
            raise UnsupportedError(f"{gguf.path} is one of {parts} parts", "join them with llama-gguf-split --merge")
    arch = _text(gguf, "general.architecture")
    _check_hyperparameters(gguf, arch)
    _check_tokenizer(gguf, tokenizers)


def check_adapter(gguf: Gguf) -> None:
    """FormatError or UnsupportedError unless the file is a LoRA adapter: pairs X.lora_a [R, K] and X.lora_b [N, R], or
    of E experts [E, R, K] and [E, N, R].
    """
    for key, wanted in (("general.type", "adapter"), ("adapter.type", "lora")):
        if (value := _text(gguf, key, "")) != wanted:
            raise FormatError(f"{gguf.path} holds {key} {value!r}, not {wanted!r}", "name a LoRA adapter's file")
    _text(gguf, "general.architecture")
    _values(gguf, "adapter.lora.alpha", "f32", 0, _FLOAT)
    if "adapter.alora.invocation_tokens" in gguf.metadata:
        raise UnsupportedError(f"{gguf.path} is an activated LoRA", "edgetune takes plain LoRA adapters")
    if not gguf.tensors:
        raise FormatError(f"{gguf.path} has 0 tensors, a LoRA adapter has at least 2", _BROKEN)
    for name, tensor in gguf.tensors.items():
        base, _, half = name.rpartition(".")
        if half not in ("lora_a", "lora_b") or not base or ".lora_" in base:  # llama.cpp cuts at the first of these
            raise UnsupportedError(f"{gguf.path} has the tensor {name!r}", "allowed are NAME.lora_a and NAME.lora_b")
        dimensions = 3 if base.endswith("_exps.weight") else 2
        if len(tensor.shape) != dimensions or tensor.format not in FORMATS:
            raise UnsupportedError(
                f"{gguf.path}: {name!r} is {tensor.format} with {len(tensor.shape)} dimensions",
                f"allowed are {dimensions} dimensions and {', '.join(FORMATS)}",
            )
    for name, a in gguf.tensors.items():
        other = name[:-1] + ("b" if name.endswith("a") else "a")
        if other not in gguf.tensors:
            raise FormatError(f"{gguf.path} has {name!r}, but not {other!r}", _BROKEN)
        if name.endswith("a") and a.shape[-2] != (rank := gguf.tensors[other].shape[-1]):
            raise FormatError(f"{gguf.path}: {name!r} has rank {a.shape[-2]}, {other!r} has {rank}", _BROKEN)
        if len(a.shape) == 3 and a.shape[0] != (experts := gguf.tensors[other].shape[0]):
            raise FormatError(f"{gguf.path}: {name!r} has {a.shape[0]} experts, {other!r} has {experts}", _BROKEN)


def _values(gguf: Gguf, key: str, types: str, low: float = 0, high: float = 0, count: int | None = None) -> list[Any]:
    """The key's values (none if it is absent), after a look at its type, at the number of values where `count` says how
    many an array must have, and, for numbers, at their range.
    """
    if not _require_type(gguf, key, types):
        return []
    if count is not None and gguf.metadata.type(key)[0] == "[" and (found := gguf.metadata.count(key)) != count:
        raise FormatError(f"{gguf.path}: {key} has {found} values, it must have {count}", _BROKEN)
    value = gguf.metadata[key]
    values: list[Any] = value if isinstance(value, list) else [value]
    for number in () if "str" in types else values:
        if not low <= number <= high:  # not so for NaN either
            raise FormatError(f"{gguf.path}: {key} is {number}, allowed are {low} to {high}", _BROKEN)
    return values


def _require_type(gguf: Gguf, key: str, types: str) -> bool:
    """Whether the key is present; FormatError where it is of none of these types. No value is made an object."""
    if key not in gguf.metadata:
        return False
    if (found := gguf.metadata.type(key)) not in types.split():
        raise FormatError(f"{gguf.path}: {key} is of type {found}, it must be {' or '.join(types.split())}", _BROKEN)
    return True


def _text(gguf: Gguf, key: str, default: str | None = None) -> str:
    values = _values(gguf, key, "str") or ([] if default is None else [default])
    if not values:
        raise FormatError(f"{gguf.path}: {key} is missing", _BROKEN)
    return str(values[0])


def _check_hyperparameters(gguf: Gguf, arch: str) -> None:
    blocks = (_values(gguf, f"{arch}.block_count", *_HYPERPARAMETERS["block_count"]) or [0])[0]
    found = {}
    for name, rule in _HYPERPARAMETERS.items():
        wanted = 4 if name == "rope.dimension_sections" else blocks
        found[name] = _values(gguf, f"{arch}.{name}", *rule, wanted)
    for name in _REQUIRED:
        if not found[name]:
            raise FormatError(f"{gguf.path}: {arch}.{name} is missing", _BROKEN)
    takes_experts = arch in FAMILIES and (FAMILIES[arch].feed == "experts" or (
        FAMILIES[arch].may_have_experts and found["expert_count"] not in ([], [0])))
    for name in _ONLY_ZERO:
        if takes_experts and name in ("expert_count", "expert_used_count"):
            continue
        if name == "nextn_predict_layers" and arch in FAMILIES and FAMILIES[arch].drafts:
            _values(gguf, f"{arch}.{name}", "u32", 0, max(blocks - 1, 0))
            continue
        _values(gguf, f"{arch}.{name}", "u32 [u32] [i32]", 0, _SIZE, blocks)
        value = gguf.metadata.get(f"{arch}.{name}", 0)
        if value != 0 and value != [0] * blocks:
            raise UnsupportedError(f"{gguf.path}: {arch}.{name} is {value!r:.60}, allowed is 0", "take a dense model")
    if takes_experts:
        check_experts(gguf, (found["expert_count"] or [0])[0], found["expert_used_count"] or [0])
    for kind in found["rope.scaling.type"]:
        if kind not in _ROPE_SCALINGS:
            raise UnsupportedError(
                f"{gguf.path}: {arch}.rope.scaling.type is {kind!r:.60}", f"known are {', '.join(_ROPE_SCALINGS)}"
            )
    _check_windows(gguf, arch, found)
    _check_heads(gguf, arch, found)


def check_experts(gguf: Gguf, count: int, used: Sequence[int]) -> None:
    """FormatError unless a token takes 1 to `count` experts in each block: llama.cpp aborts on more than there are."""
    for each in used:
        if not 1 <= each <= count:
            key = f"{gguf.architecture}.expert_used_count"
            raise FormatError(f"{gguf.path}: {key} is {each}, allowed are 1 to {count}, the experts", _BROKEN)


def _check_windows(gguf: Gguf, arch: str, found: dict[str, list[Any]]) -> None:
    """The pattern is one number (every n-th block sees everything) or a switch a block; llama.cpp wants one window."""
    key = f"{arch}.attention.sliding_window_pattern"
    pattern = found["attention.sliding_window_pattern"]
    if pattern and any(found["attention.sliding_window"]):
        windows = any(pattern) if gguf.metadata.type(key)[0] == "[" else pattern != [1]
        if not windows:
            raise FormatError(f"{gguf.path}: {key} gives 0 blocks a window, it must be at least 1", _BROKEN)


def _check_heads(gguf: Gguf, arch: str, found: dict[str, list[Any]]) -> None:
    """Heads, their widths, and the projections that make and take them: llama.cpp asserts these late or never."""
    by_default = [found["embedding_length"][0] // found["attention.head_count"][0]]  # as llama.cpp derives them
    width, values = ((found[f"attention.{name}_length"] or by_default)[0] for name in ("key", "value"))
    if width != values:
        raise UnsupportedError(f"{gguf.path}: keys are {width} wide, values {values}", "take a model with equal widths")
    rotated = (found["rope.dimension_count"] or [width])[0]
    least = width if arch in FAMILIES and not FAMILIES[arch].partly_rotated else 2
    if not least <= rotated <= width or rotated % 2:
        raise FormatError(f"{gguf.path}: {arch}.rope.dimension_count is {rotated}, allowed are even numbers from "
                          f"{least} to {width}, the head's width", _BROKEN)
    blocks = found["block_count"][0]
    widths = _widths(gguf, arch, found, width, rotated)
    d_model = found["embedding_length"][0]
    heads = found["attention.head_count"]
    kv_heads = found["attention.head_count_kv"] or heads
    is_gated = arch in FAMILIES and FAMILIES[arch].mixer == "gated attention"
    for i in range(blocks):
        # one value, or one a block
        h = heads[i % len(heads)]
        g = kv_heads[i % len(kv_heads)]
        if not g and arch in FAMILIES and FAMILIES[arch].elsewhere:
            continue
        if not g:
            raise FormatError(f"{gguf.path}: {arch}.attention.head_count_kv is 0, allowed are 1 to {h}", _BROKEN)
        if h % g:
            raise FormatError(f"{gguf.path}: {h} heads cannot share {g} key heads evenly", _BROKEN)
        q = (h * widths[i], d_model)
        kv = (g * widths[i], d_model)
        asks = (2 * q[0], d_model) if is_gated else q
        for name, shape in {"attn_q": asks, "attn_k": kv, "attn_v": kv, "attn_output": q[::-1]}.items():
            _check_shape(gguf, f"blk.{i}.{name}.weight", shape)


def _widths(gguf: Gguf, arch: str, found: dict[str, list[Any]], width: int, rotated: int) -> list[int]:
    """The width of each block's heads: as given, but in blocks with a window where an architecture may differ there."""
    blocks = found["block_count"][0]
    is_sized = arch in FAMILIES and FAMILIES[arch].sized_blocks
    narrow = found["attention.key_length_swa"][0] if is_sized and found["attention.key_length_swa"] else width
    turned = found["rope.dimension_count_swa"][0] if is_sized and found["rope.dimension_count_swa"] else rotated
    for name, value in (("attention.key_length", narrow), ("attention.value_length", narrow),
                        ("rope.dimension_count", turned)):
        if found[f"{name}_swa"] not in ([], [value]):
            raise UnsupportedError(f"{gguf.path}: {arch}.{name}_swa is {found[f'{name}_swa'][0]}, allowed is {value}",
                                   "take a model whose blocks with and without a window are of one shape")
    if is_sized and (turned > narrow or turned % 2):
        raise FormatError(f"{gguf.path}: {arch}.rope.dimension_count_swa is {turned}, allowed are even numbers up to "
                          f"{narrow}, the head's width", _BROKEN)
    if (shared := (found["attention.shared_kv_layers"] or [0])[0]) > blocks - 2 and shared:
        raise FormatError(f"{gguf.path}: {arch}.attention.shared_kv_layers is {shared}, allowed are 0 to {blocks - 2}",
                          _BROKEN)
    windows = found["attention.sliding_window_pattern"]
    if is_sized and len(windows) != blocks:
        raise FormatError(f"{gguf.path}: {arch}.attention.sliding_window_pattern has {len(windows)} values for "
                          f"{blocks} blocks", _BROKEN)
    return [narrow if is_sized and windows[i] else width for i in range(blocks)]


def _check_tokenizer(gguf: Gguf, supported: tuple[str, ...]) -> None:
    at = "tokenizer.ggml."
    _require_type(gguf, "tokenizer.chat_template", "str")
    _require_type(gguf, "general.file_type", "u32")
    _require_type(gguf, "general.name", "str")
    for name, kind in _TOKENIZER.items():
        _require_type(gguf, at + name, kind)
    for name in _MARKS:
        _require_type(gguf, f"{at}{name}_token_id", "u32")
    model = _text(gguf, at + "model")
    if model not in supported:
        raise UnsupportedError(f"{gguf.path}: {at}model is {model!r:.60}", f"supported are {', '.join(supported)}")
    for name in ("tokens", "merges") if model in _BPE else ("tokens",):
        if at + name not in gguf.metadata:
            raise FormatError(f"{gguf.path}: {at}{name} is missing", _BROKEN)
    count = gguf.metadata.count(at + "tokens")
    if count > _TOKENS:
        raise UnsupportedError(f"{gguf.path}: {at}tokens has {count} tokens", f"allowed are {_TOKENS}")
    for name in ("scores", "token_type"):
        if at + name in gguf.metadata and (found := gguf.metadata.count(at + name)) != count:
            raise FormatError(f"{gguf.path}: {at}{name} has {found} values for {count} tokens", _BROKEN)
        _values(gguf, at + name, _TOKENIZER[name], -_FLOAT, _FLOAT)
    check_charsmap(gguf)
    tokens = _values(gguf, at + "tokens", "[str]")
    # As llama.cpp reads them: up to the first zero byte, the empty ones renamed.
    texts = {token.partition("\0")[0] or f"[EMPTY_{i}]" for i, token in enumerate(tokens)}
    if len(texts) != len(tokens):
        raise FormatError(f"{gguf.path}: {len(tokens)} tokens have only {len(texts)} different texts", _BROKEN)
    for byte in range(256) if model == "llama" else ():  # what sentencepiece falls back to
        if not texts & {f"<0x{byte:02X}>", bytes([byte]).decode("utf-8", "surrogateescape")}:
            raise FormatError(f"{gguf.path}: no token is '<0x{byte:02X}>', one is needed for each byte", _BROKEN)
    for name in ("bos", "eos", "eot", "eom"):
        _values(gguf, f"{at}{name}_token_id", "u32", 0, len(tokens) - 1)


def _check_weights(gguf: Gguf, arch: str) -> None:
    for name, tensor in gguf.tensors.items():
        if tensor.format in _NOT_WEIGHTS:
            raise UnsupportedError(f"{gguf.path}: {name!r} is {tensor.format}", f"supported are {', '.join(FORMATS)}")
        if len(tensor.shape) == 1 and tensor.format != "F32":
            raise UnsupportedError(f"{gguf.path}: {name!r} is {tensor.format}", "norms and biases must be F32")
    if "token_embd.weight" not in gguf.tensors:
        raise FormatError(f"{gguf.path}: 'token_embd.weight' is missing", _BROKEN)
    n_vocab = gguf.metadata.count("tokenizer.ggml.tokens")
    d_model = gguf.metadata[f"{arch}.embedding_length"]
    _check_shape(gguf, "token_embd.weight", (n_vocab, d_model))
    for name in ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"):
        if (factors := gguf.tensors.get(name)) is not None:
            values = gguf.read(factors).f32()
            if not (np.isfinite(values).all() and (values > 0).all()):
                raise FormatError(f"{gguf.path}: {name!r} holds {values.min():g} to {values.max():g}, by which "
                                  "frequencies cannot be divided", _BROKEN)


def _check_shape(gguf: Gguf, name: str, shape: tuple[object, ...]) -> None:
    """Checks a tensor that may be missing."""
    if name in gguf.tensors and (found := gguf.tensors[name].shape) != shape:
        raise FormatError(f"{gguf.path}: {name!r} is of shape {list(found)}, it must have {list(shape)}", _BROKEN)
