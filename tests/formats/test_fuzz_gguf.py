"""Mutated GGUF files: whatever the bytes, an answer or an EdgetuneError comes, soon and in little memory."""

import resource
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from tiny import write_tiny

from edgetune.errors import EdgetuneError
from edgetune.formats.gguf import FORMATS, check_adapter, check_model, fingerprint, open_gguf, write_gguf

ROOM = 256 * 2**20  # bytes of address space that a case may take beyond what the process has
DEADLINE = 20_000  # ms, of an example: far more than it takes where others work beside it, less than a count of 2^32
EXAMPLES = examples(150, derandomize=True, deadline=DEADLINE, database=None)

# Numbers at which counts, lengths and offsets go wrong.
HOSTILE = st.sampled_from([0, 1, 2, 3, 4, 5, 8, 9, 12, 13, 31, 32, 63, 64, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32,
                           2**40, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1])
NUMBER = st.one_of(HOSTILE, st.integers(0, 2**64 - 1))


@pytest.fixture(scope="module", autouse=True)
def little_memory():
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A model whose weights have several formats, one with a window, and an adapter."""
    folder = tmp_path_factory.mktemp("fuzz")
    formats = {"attn_q": "Q4_0", "attn_k": "F16", "attn_v": "Q8_0", "ffn_up": "Q5_1", "token_embd": "BF16"}
    llama = write_tiny(folder / "llama.gguf", formats=formats, n_blocks=1, n_vocab=384)
    gemma = write_tiny(folder / "gemma.gguf", "gemma3", n_blocks=2, n_vocab=384)
    pair = {"x.lora_a": np.ones((4, 32), np.float32), "x.lora_b": np.ones((32, 4), np.float16),
            "x_exps.weight.lora_a": np.ones((2, 4, 32), np.float32),
            "x_exps.weight.lora_b": np.ones((2, 32, 4), np.float32)}
    lora = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 8.0}
    write_gguf(folder / "lora.gguf", "llama", lora, pair)
    return [path.read_bytes() for path in (llama, gemma, folder / "lora.gguf")]


def examine(path):
    """Ask everything of the file that the program asks; True if it opened."""
    try:
        opened = open_gguf(path)
    except EdgetuneError as error:
        if not error.hint or "\n" in str(error):
            raise AssertionError("a refusal is one sentence with a way out") from error
        return False
    for check in (check_model, check_adapter, fingerprint):
        with suppress(EdgetuneError):
            check(opened)
    for key in opened.metadata:
        value = opened.metadata[key]
        assert opened.metadata.count(key) == (len(value) if isinstance(value, list) else 1)
    for tensor in opened.tensors.values():
        if tensor.format in FORMATS:
            assert tensor.f32().shape == tensor.shape
    return True


def test_the_originals_are_sound(tmp_path, originals):
    for i, (raw, check) in enumerate(zip(originals, (check_model, check_model, check_adapter), strict=True)):
        (tmp_path / f"{i}.gguf").write_bytes(raw)
        assert examine(tmp_path / f"{i}.gguf")
        check(open_gguf(tmp_path / f"{i}.gguf"))


@EXAMPLES
@given(data=st.data())
def test_overwritten_headers(tmp_path, originals, data):
    raw = bytearray(data.draw(st.sampled_from(originals)))
    header = 24 if data.draw(st.booleans()) else 12_000  # counts and first key, or all keys and tensors
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, min(header, len(raw)) - 8))
        width = data.draw(st.sampled_from([1, 4, 8]))
        raw[place : place + width] = (data.draw(NUMBER) % 256**width).to_bytes(width, "little")
    path = tmp_path / "x.gguf"
    path.write_bytes(raw)
    examine(path)


@EXAMPLES
@given(data=st.data())
def test_cut_and_spliced_files(tmp_path, originals, data):
    raw = data.draw(st.sampled_from(originals))
    start, end = sorted(data.draw(st.tuples(st.integers(0, len(raw)), st.integers(0, len(raw)))))
    middle = data.draw(st.one_of(st.just(b""), st.binary(max_size=64), st.sampled_from(originals)))
    path = tmp_path / "x.gguf"
    path.write_bytes(raw[:start] + middle + raw[end:])
    examine(path)


@examples(60, derandomize=True, deadline=DEADLINE, database=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_random_weights_open_and_decode(tmp_path, originals, seed):
    """Random bytes make scales that are NaN or infinite: decoding them must not warn or fail."""
    raw = bytearray(originals[0])
    path = tmp_path / "x.gguf"
    path.write_bytes(raw)
    start = open_gguf(path).data_start
    raw[start:] = np.random.default_rng(seed).bytes(len(raw) - start)
    path.write_bytes(raw)
    assert examine(path)


STRING = st.one_of(st.binary(max_size=12).map(lambda raw: struct.pack("<Q", len(raw)) + raw),
                   NUMBER.map(lambda n: struct.pack("<Q", n)))
U32 = NUMBER.map(lambda n: struct.pack("<I", n % 2**32))
U64 = NUMBER.map(lambda n: struct.pack("<Q", n))
KIND = st.one_of(st.integers(0, 14).map(lambda n: struct.pack("<I", n)), U32)
GOOD_NAME = st.sampled_from([b"general.alignment", b"a", b"b"]).map(lambda n: struct.pack("<Q", len(n)) + n)
NAME = st.one_of(GOOD_NAME, STRING)
VALUE = st.one_of(STRING, U32, U64, st.tuples(KIND, U64, st.lists(STRING, max_size=3).map(b"".join)).map(b"".join))
KEY = st.tuples(NAME, KIND, VALUE).map(b"".join)
TENSOR = st.tuples(NAME, st.integers(0, 5), st.lists(U64, max_size=5).map(b"".join), KIND, U64).map(
    lambda t: t[0] + struct.pack("<I", t[1]) + t[2] + t[3] + t[4]
)


@EXAMPLES
@given(keys=st.lists(KEY, max_size=4), tensors=st.lists(TENSOR, max_size=3), tail=st.integers(0, 300),
       counts=st.one_of(st.none(), st.tuples(NUMBER, NUMBER)))
def test_headers_made_of_hostile_fields(tmp_path, keys, tensors, tail, counts):
    header = struct.pack("<4sIQQ", b"GGUF", 3, *(counts or (len(tensors), len(keys))))
    path = tmp_path / "x.gguf"
    path.write_bytes(header + b"".join(keys) + b"".join(tensors) + bytes(tail))
    examine(path)


def test_an_array_of_2_to_the_63_and_all_its_beginnings(tmp_path):
    """The header on which readers that trust the count spin for ever, for every element type."""
    path = tmp_path / "x.gguf"
    for kind in range(14):
        raw = struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 0, 1, 1, b"k", 9, kind, 2**63)
        for size in range(len(raw) + 1):
            path.write_bytes(raw[:size])
            assert not examine(path)
