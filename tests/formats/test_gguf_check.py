"""What a sound GGUF must say to be used as a model or an adapter: one row for every way in which it can be wrong."""

import re
import subprocess
import sys

import numpy as np
import pytest
from tiny import write_tiny

from edgetune.errors import FormatError, UnsupportedError
from edgetune.formats.gguf import Tensor, check_adapter, check_model, open_gguf, write_gguf

T = "tokenizer.ggml."
Changes = dict[str, object]  # key -> value, or None to leave the key out
NAN = float("nan")


def changed(path, base, keys, types, tensors):
    metadata = {k: v for k, v in (dict(base.metadata) | keys).items() if v is not None}
    kinds = {k: v for k, v in base.types.items() if k not in keys} | types
    write_gguf(path, base.architecture, metadata, tensors, kinds)
    return open_gguf(path)


# name, changed keys, their types where not the usual ones, what the message must say. The tiny model has 416 tokens,
# 2 blocks, 4 heads of width 16.
WRONG_MODELS: list[tuple[str, Changes, dict[str, str], tuple[str, ...]]] = [
    ("an adapter", {"general.type": "adapter"}, {}, ("'adapter'", "'model'")),
    ("type of the file's type", {"general.type": 5}, {}, ("general.type is of type u32", "str")),
    ("one of several parts", {"split.count": 3}, {"split.count": "u16"}, ("one of 3 parts", "llama-gguf-split")),
    ("no blocks", {"llama.block_count": None}, {}, ("llama.block_count is missing",)),
    ("0 blocks", {"llama.block_count": 0}, {}, ("is 0", "1 to 512")),
    ("513 blocks", {"llama.block_count": 513}, {}, ("is 513", "1 to 512")),
    ("blocks as i32", {"llama.block_count": 2}, {"llama.block_count": "i32"}, ("of type i32", "u32")),
    ("blocks as text", {"llama.block_count": "2"}, {}, ("of type str", "u32")),
    ("no context", {"llama.context_length": 0}, {}, ("llama.context_length is 0", "2 to 2147483647")),
    ("context over 2^31", {"llama.context_length": 2**31}, {}, (str(2**31), "2 to 2147483647")),
    ("no width", {"llama.embedding_length": 0}, {}, ("is 0", "1 to")),
    ("no heads", {"llama.attention.head_count": 0}, {}, ("is 0", "1 to")),
    ("heads of a block 0", {"llama.attention.head_count": [4, 0]}, {}, ("is 0", "1 to")),
    ("heads for 3 blocks", {"llama.attention.head_count": [4, 4, 4]}, {}, ("has 3 values", "must have 2")),
    ("heads as floats", {"llama.attention.head_count": [4.0, 4.0]}, {}, ("[f32]", "u32 or [u32] or [i32]")),
    ("3 key heads", {"llama.attention.head_count_kv": 3}, {}, ("4 heads", "3 key heads")),
    ("3 key heads in one block", {"llama.attention.head_count_kv": [2, 3]}, {}, ("4 heads", "3 key heads")),
    ("keys wider than values", {"llama.attention.key_length": 32}, {}, ("32 wide", "values 16")),
    ("more heads than the tensors have", {"llama.attention.head_count": 8}, {}, ("attn_q", "[64, 64]", "[128, 64]")),
    ("fewer key heads than the tensors", {"llama.attention.head_count_kv": 1}, {}, ("attn_k", "[32, 64]", "[16, 64]")),
    ("no feed forward", {"llama.feed_forward_length": 0}, {}, ("is 0",)),
    ("epsilon is NaN", {"llama.attention.layer_norm_rms_epsilon": NAN}, {}, ("is nan", "0 to 1")),
    ("epsilon as integer", {"llama.attention.layer_norm_rms_epsilon": 1}, {}, ("of type u32", "f32")),
    ("rotary base 0", {"llama.rope.freq_base": 0.0}, {}, ("is 0.0", "1 to")),
    ("rotary base infinite", {"llama.rope.freq_base": float("inf")}, {}, ("is inf",)),
    ("rotary scaling", {"llama.rope.scaling.type": "spiral"}, {}, ("'spiral'", "none, linear, yarn, longrope")),
    ("rotary scaling's type", {"llama.rope.scaling.type": 1}, {}, ("of type u32", "str")),
    ("rotary factor", {"llama.rope.scaling.factor": -1.0}, {}, ("is -1.0", "0 to")),
    ("rotary values odd", {"llama.attention.key_length": 15, "llama.attention.value_length": 15,
                           "llama.rope.dimension_count": 15}, {}, ("is 15", "even numbers")),
    ("rotary values over the head", {"llama.rope.dimension_count": 18}, {}, ("is 18", "16 to 16")),
    ("rotary values of half the head", {"llama.rope.dimension_count": 8}, {}, ("is 8", "16 to 16")),
    ("rotary sections' type", {"llama.rope.dimension_sections": ["a"] * 4}, {}, ("[str]", "[i32] or [u32]")),
    ("three rotary sections", {"llama.rope.dimension_sections": [1, 2, 3]}, {}, ("3 values", "must have 4")),
    ("negative rotary section", {"llama.rope.dimension_sections": [-1, 2, 3, 4]}, {}, ("is -1", "0 to")),
    ("window pattern's type", {"llama.attention.sliding_window_pattern": "x"}, {}, ("of type str", "[bool]")),
    ("window pattern's length", {"llama.attention.sliding_window_pattern": [True]}, {}, ("1 values", "must have 2")),
    ("no block with a window", {"llama.attention.sliding_window": 8, "llama.attention.sliding_window_pattern": 1}, {},
     ("0 blocks", "at least 1")),
    ("no switch for a window", {"llama.attention.sliding_window": 8,
                                "llama.attention.sliding_window_pattern": [False, False]}, {}, ("0 blocks",)),
    ("mixture of experts", {"llama.expert_count": 8}, {}, ("llama.expert_count is 8", "allowed is 0")),
    ("experts without a count", {"llama.expert_used_count": [1, 2]}, {}, ("[1, 2]", "allowed is 0")),
    ("no tokenizer", {T + "model": None}, {}, ("tokenizer.ggml.model is missing",)),
    ("unknown tokenizer", {T + "model": "t5"}, {}, ("'t5'", "gpt2, ", "llama")),
    ("no tokens", {T + "tokens": None}, {}, ("tokenizer.ggml.tokens is missing",)),
    ("tokens as numbers", {T + "tokens": [1, 2]}, {}, ("[i32]", "[str]")),
    ("tokens as one text", {T + "tokens": "abc"}, {}, ("of type str", "[str]")),
    ("a token twice", {T + "tokens": ["a"] * 416}, {}, ("416 tokens", "1 different")),
    ("a token named as an empty one", {T + "tokens": ["", "[EMPTY_0]"], T + "token_type": None}, {}, ("2 tokens",)),
    ("tokens equal up to a zero byte", {T + "tokens": ["a\0b", "a"], T + "token_type": None}, {}, ("1 different",)),
    ("sentencepiece without bytes", {T + "model": "llama"}, {}, ("'<0x00>'", "each byte")),
    ("fewer tokens than rows", {T + "tokens": ["a", "b"], T + "token_type": None, T + "bos_token_id": 0,
                                T + "eos_token_id": 1}, {}, ("[416, 64]", "[2, 64]")),
    ("scores as integers", {T + "scores": [1] * 416}, {}, ("[i32]", "[f32]")),
    ("scores too few", {T + "scores": [1.0] * 415}, {}, ("415 values", "416 tokens")),
    ("token types as texts", {T + "token_type": ["a"] * 416}, {}, ("[str]", "[i32]")),
    ("token types too few", {T + "token_type": [1]}, {}, ("1 values", "416 tokens")),
    ("no merges", {T + "merges": None}, {}, ("tokenizer.ggml.merges is missing",)),
    ("merges as floats", {T + "merges": [1.0]}, {}, ("[f32]", "[str]")),
    ("first token outside", {T + "bos_token_id": 416}, {}, ("bos_token_id is 416", "0 to 415")),
    ("last token outside", {T + "eos_token_id": 2**32 - 1}, {}, (str(2**32 - 1), "0 to 415")),
    ("last token negative", {T + "eos_token_id": -1}, {T + "eos_token_id": "i32"}, ("of type i32", "u32")),
    ("template as number", {"tokenizer.chat_template": 1}, {}, ("of type u32", "str")),
]


@pytest.mark.dev
@pytest.mark.parametrize(("keys", "types", "parts"), [r[1:] for r in WRONG_MODELS], ids=[r[0] for r in WRONG_MODELS])
def test_a_wrong_model_is_refused_with_value_and_limit(tmp_path, tiny_llama, keys, types, parts):
    base = open_gguf(tiny_llama)
    opened = changed(tmp_path / "x.gguf", base, keys, types, base.tensors)
    with pytest.raises((FormatError, UnsupportedError)) as caught:
        check_model(opened)
    message = str(caught.value)
    assert [part for part in (*parts, str(opened.path)) if part not in message] == []
    assert "\n" not in message
    assert caught.value.hint


def test_good_models_pass(tmp_path, tiny_models):
    for path in tiny_models.values():
        check_model(open_gguf(path))
    base = open_gguf(tiny_models["llama"])
    harmless = {
        "general.type": "model", "split.count": None, "llama.attention.head_count": [4, 4],
        "llama.attention.head_count_kv": [2, 2], "llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 2.0,
        "llama.rope.dimension_sections": [4, 4, 0, 0],
        "llama.attention.sliding_window": 8, "llama.attention.sliding_window_pattern": [True, False],
        "llama.expert_count": 0, T + "scores": [-1e9] * 416,
        T + "padding_token_id": 2**32 - 1,  # llama.cpp only warns
    }
    check_model(changed(tmp_path / "x.gguf", base, harmless, {}, base.tensors))


def test_weights_that_llama_cpp_cannot_use_are_refused(tmp_path, tiny_llama):
    base = open_gguf(tiny_llama)
    norm = base.tensors["output_norm.weight"]
    embedding = base.tensors["token_embd.weight"]
    wide = Tensor(embedding.name, (embedding.shape[0], 32), "F32", embedding.data[: embedding.shape[0] * 128])
    replaced = {
        r"'output_norm.weight' is F16; .*F32": Tensor(norm.name, norm.shape, "F16", norm.data[: norm.data.size // 2]),
        r"'blk.0.ffn_up.weight' is I32; .*Q4_K": Tensor("blk.0.ffn_up.weight", (1, 1), "I32", np.zeros(4, np.uint8)),
        r"of shape \[416, 32\], it must have \[416, 64\]": wide,
    }
    for message, tensor in replaced.items():
        with pytest.raises((FormatError, UnsupportedError), match=message):
            check_model(changed(tmp_path / "x.gguf", base, {}, {}, base.tensors | {tensor.name: tensor}))
    without = {name: t for name, t in base.tensors.items() if name != embedding.name}
    with pytest.raises(FormatError, match=r"'token_embd.weight' is missing"):
        check_model(changed(tmp_path / "x.gguf", base, {}, {}, without))


def test_a_file_without_architecture_is_no_model(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
    with pytest.raises(FormatError, match=r"general.architecture is missing"):
        check_model(open_gguf(path))
    with pytest.raises(FormatError, match=r"general.architecture is None"):
        _ = open_gguf(path).architecture


@pytest.mark.dev
def test_a_vocabulary_of_260k_is_checked_fast(tmp_path):
    import time

    path = write_tiny(tmp_path / "x.gguf", n_vocab=260_000, d_model=16, n_heads=1, n_kv_heads=1, d_ff=16, n_blocks=1)
    opened = open_gguf(path)
    start = time.process_time()  # of the CPU, for machines are shared; a check that is quadratic takes minutes
    check_model(opened)
    assert time.process_time() - start < 5


LORA: Changes = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 16.0}
A = np.ones((4, 64), np.float32)
B = np.ones((32, 4), np.float32)
PAIR = {"blk.0.attn_q.weight.lora_a": A, "blk.0.attn_q.weight.lora_b": B}

WRONG_ADAPTERS: list[tuple[str, Changes, dict[str, np.ndarray], tuple[str, ...]]] = [
    ("a model", {"general.type": "model"}, PAIR, ("'model'", "'adapter'")),
    ("no type", {"general.type": None}, PAIR, ("''", "'adapter'")),
    ("type as a number", {"general.type": 3}, PAIR, ("of type u32", "str")),
    ("control vector", {"adapter.type": "control"}, PAIR, ("'control'", "'lora'")),
    ("alpha as integer", {"adapter.lora.alpha": 16}, PAIR, ("of type u32", "f32")),
    ("alpha NaN", {"adapter.lora.alpha": NAN}, PAIR, ("is nan", "0 to")),
    ("activated", {"adapter.alora.invocation_tokens": [1]}, PAIR, ("activated",)),
    ("empty", {}, {}, ("0 tensors", "at least 2")),
    ("half a pair", {}, {"x.lora_a": A}, ("'x.lora_a'", "'x.lora_b'")),
    ("the other half", {}, {"x.lora_b": B}, ("'x.lora_b'", "'x.lora_a'")),
    ("a norm", {}, PAIR | {"blk.0.attn_norm.weight": A}, ("'blk.0.attn_norm.weight'", "lora_a")),
    ("no name", {}, {".lora_a": A, ".lora_b": B}, ("'.lora_a'",)),
    ("suffix inside", {}, {"x.lora_a.y.lora_a": A, "x.lora_a.y.lora_b": B}, ("'x.lora_a.y.lora_a'",)),
    ("one dimension", {}, {"x.lora_a": A[0], "x.lora_b": B}, ("1 dimensions", "2 dimensions")),
    ("three dimensions", {}, {"x.lora_a": A, "x.lora_b": B[None]}, ("3 dimensions", "2 dimensions")),
    ("ranks differ", {}, {"x.lora_a": A, "x.lora_b": B[:, :3]}, ("rank 4", "has 3")),
]


@pytest.mark.parametrize("row", WRONG_ADAPTERS, ids=lambda row: row[0])
def test_a_wrong_adapter_is_refused_with_value_and_limit(tmp_path, row):
    _, keys, tensors, parts = row
    metadata = {k: v for k, v in (LORA | keys).items() if v is not None}
    write_gguf(tmp_path / "x.gguf", "llama", metadata, tensors)
    with pytest.raises((FormatError, UnsupportedError)) as caught:
        check_adapter(open_gguf(tmp_path / "x.gguf"))
    message = str(caught.value)
    assert [part for part in (*parts, str(tmp_path)) if part not in message] == []
    assert "\n" not in message
    assert caught.value.hint


def test_a_good_adapter_passes(tmp_path):
    for alpha in (16.0, 0.0, None):  # llama.cpp takes a missing alpha as 0: no scaling by rank
        write_gguf(tmp_path / "x.gguf", "llama", {k: v for k, v in (LORA | {"adapter.lora.alpha": alpha}).items()
                                                  if v is not None}, PAIR)
        check_adapter(open_gguf(tmp_path / "x.gguf"))


ARRAYS = """
import resource, sys
from edgetune.formats.gguf import check_model, open_gguf
from edgetune.errors import EdgetuneError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    check_model(open_gguf(sys.argv[1]))
except EdgetuneError as error:
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, error)
"""


@pytest.mark.dev
@pytest.mark.parametrize(("key", "kind", "width"), [
    ("llama.feed_forward_length", 4, 4), ("llama.attention.head_count", 4, 4), ("tokenizer.ggml.scores", 6, 4),
    ("tokenizer.ggml.token_type", 5, 4), ("tokenizer.ggml.tokens", 8, 8), ("tokenizer.ggml.merges", 8, 8),
    ("llama.rope.dimension_sections", 5, 4), ("llama.expert_count", 4, 4)])
def test_an_array_is_counted_before_it_is_made(key, kind, width, tmp_path, tiny_llama):
    """A header with an array of 20 million values, in a sparse file: it takes its pages at most, no objects."""
    base = open_gguf(tiny_llama)
    count = 20_000_000
    metadata = {name: base.metadata[name] for name in base.metadata if name not in (key, "general.architecture")}
    path = tmp_path / "x.gguf"
    write_gguf(path, "llama", metadata, base.tensors, base.types)
    raw = path.read_bytes()
    name = key.encode()
    keys = int.from_bytes(raw[16:24], "little") + 1
    with path.open("wb") as file:
        entry = len(name).to_bytes(8, "little") + name + (9).to_bytes(4, "little") + kind.to_bytes(4, "little")
        file.write(raw[:16] + keys.to_bytes(8, "little") + entry + count.to_bytes(8, "little"))
        file.truncate(file.tell() + count * width)
        file.seek(0, 2)
        file.write(raw[24:] + bytes(64))  # the data begins later now
    done = subprocess.run([sys.executable, "-c", ARRAYS, str(path)], capture_output=True, text=True, check=True)
    grown, _, message = done.stdout.partition(" ")
    assert re.search(key, message)
    assert int(grown) < count * width / 2**20 + 32


@pytest.mark.parametrize("used", [0, 9])
def test_more_experts_than_there_are_is_refused_before_llama_cpp_sees_it(used, tmp_path):
    path = write_tiny(tmp_path / "model.gguf", "granitemoe", metadata={"granitemoe.expert_used_count": used})
    with pytest.raises(FormatError, match=f"granitemoe.expert_used_count is {used}, allowed are 1 to 4, the experts"):
        check_model(open_gguf(path))
