"""GGUF files in and out, against the gguf package and llama.cpp; one row for every way in which a file can be wrong."""

import ctypes
import hashlib
import os
import struct
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from formats_of_ggml import dequantize
from full_disks import full_disk
from tiny import write_tiny

from edgetune.errors import EdgetuneError, FormatError, UnsupportedError
from edgetune.formats.gguf import FORMATS, Tensor, check_model, fingerprint, open_gguf, write_gguf
from edgetune.formats.gguf.read import TYPES

U8 = 0
U32 = 4
F32 = 6
BOOL = 7
STR = 8
ARR = 9
U64 = 10


def string(text):
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def key(name, kind, value):
    return string(name) + struct.pack("<I", kind) + value


def array(kind, count, values=b""):
    return struct.pack("<IQ", kind, count) + values


def tensor(name, sizes=(32,), kind=0, offset=0):
    return string(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


def header(keys, tensors, version=3, counts=None):
    n_tensors, n_keys = counts or (len(tensors), len(keys))
    return struct.pack("<4sIQQ", b"GGUF", version, n_tensors, n_keys) + b"".join(keys) + b"".join(tensors)


def whole(keys, tensors, data=128, **options: Any):
    raw = header(keys, tensors, **options)
    return raw + bytes(-len(raw) % 32) + bytes(data)


NAME = key("general.name", STR, string("x"))
ONE = tensor("w")

# name, file, what the message must say
BROKEN: list[tuple[str, bytes, tuple[str, ...]]] = [
    ("empty file", b"", ("0 bytes", "24")),
    ("another kind of file", b"PK\3\4" + bytes(40), (r"b'PK\x03\x04'", "b'GGUF'")),
    ("a short text", b"hi", ("b'hi'", "b'GGUF'")),
    ("header cut", b"GGUF\3\0\0\0" + bytes(8), ("byte 24", "16 bytes")),
    ("version 1", header([], [], version=1), ("version 1", "2 and 3")),
    ("version 0", header([], [], version=0), ("version 0", "2 and 3")),
    ("version 4", header([], [], version=4), ("version 4", "2 and 3")),
    ("big endian", struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), ("big-endian", "version 3", "little endian")),
    ("count of keys", header([], [], counts=(0, 2**63)), (f"{2**63} keys", "65536")),
    ("count of tensors", header([], [], counts=(2**64 - 1, 0)), (f"{2**64 - 1} tensors", "65536")),
    ("more keys than there are", header([NAME], [], counts=(0, 2)), ("name of key 1", "57 bytes")),
    ("more tensors than there are", header([], [ONE], counts=(2, 0)), ("file has 57 bytes",)),
    ("key name too long for the file", header([struct.pack("<Q", 2**60)], []), (str(2**60 + 32), "32 bytes")),
    ("key name too long", header([key("k" * 65_536, U8, b"\0")], []), ("65536 bytes", "1 to 65535")),
    ("key name empty", header([key("", U8, b"\0")], []), ("0 bytes", "1 to 65535")),
    ("key name not UTF-8", header([key(b"\xff\xfe", U8, b"\0")], []), (r"b'\xff\xfe'", "UTF-8")),
    ("key name with a zero", header([key("general.type\0x", STR, string("x"))], []), (r"'general.type\x00x'",)),
    ("key twice", header([NAME, NAME], []), ("'general.name'", "twice", "once")),
    ("unknown value type", header([key("k", 13, b"\0" * 8)], []), ("'k'", "value type 13", "0 to 12")),
    ("unknown element type", header([key("k", ARR, array(99, 1, bytes(8)))], []), ("value type 99", "0 to 12")),
    ("nested array", header([key("k", ARR, array(ARR, 2, array(U8, 0) * 2))], []), ("array of 2 arrays",)),
    ("number cut", header([key("k", U64, b"\0" * 7)], []), ("'k'", "byte 45", "44 bytes")),
    ("array of 2^63", header([key("k", ARR, array(U8, 2**63))], []), (str(2**63 + 49), "49 bytes")),
    ("array of 2^61 u64", header([key("k", ARR, array(U64, 2**61))], []), (str(2**64 + 49), "49 bytes")),
    ("string array of 2^63", header([key("k", ARR, array(STR, 2**63))], []), (str(2**66 + 49), "49 bytes")),
    ("string in an array too long", whole([key("k", ARR, array(STR, 2, struct.pack("<QQ", 2**62, 0)))], []),
     ("string 1 of 2", str(2**62 + 57))),
    ("last string in an array too long", header([key("k", ARR, array(STR, 1, struct.pack("<Q", 2**62)))], []),
     (str(2**62 + 57), "57 bytes")),
    ("string too long", header([key("k", STR, struct.pack("<Q", 2**64 - 1))], []), (str(2**64 - 1 + 45), "45 bytes")),
    ("string not UTF-8", header([key("k", STR, string(b"\xc3("))], []), ("'k'", "UTF-8", r"b'\xc3('")),
    ("truth value", header([key("k", BOOL, b"\2")], []), ("truth value 2", "0 and 1")),
    ("truth value in an array", header([key("k", ARR, array(BOOL, 2, b"\1\7"))], []), ("truth value 7",)),
    ("alignment 3", whole([key("general.alignment", U32, struct.pack("<I", 3))], [ONE]), ("is 3", "8 to 65536")),
    ("alignment 48", whole([key("general.alignment", U32, struct.pack("<I", 48))], [ONE]), ("is 48", "powers of two")),
    ("alignment 0", whole([key("general.alignment", U32, bytes(4))], [ONE]), ("is 0", "8 to 65536")),
    ("alignment 2^31", whole([key("general.alignment", U32, struct.pack("<I", 2**31))], [ONE]), (str(2**31), "65536")),
    ("alignment of another type", whole([key("general.alignment", STR, string("32"))], [ONE]), ("type str", "u32")),
    ("alignment as u64", whole([key("general.alignment", U64, struct.pack("<Q", 32))], [ONE]), ("type u64", "u32")),
    ("tensor name too long", whole([], [tensor("w" * 64)]), ("64 bytes", "1 to 63")),
    ("tensor name unprintable", whole([], [tensor("w\n")]), (r"'w\n'",)),
    ("tensor twice", whole([], [ONE, tensor("w", offset=128)], 256), ("'w'", "twice")),
    ("no dimensions", whole([], [tensor("w", ())]), ("0 dimensions", "1 to 4")),
    ("five dimensions", whole([], [tensor("w", (1,) * 5)]), ("5 dimensions", "1 to 4")),
    ("2^32 - 1 dimensions", whole([], [string("w") + b"\xff" * 4]), (f"{2**32 - 1} dimensions",)),
    ("zero dimension", whole([], [tensor("w", (32, 0))]), ("[0, 32]", "at least 1")),
    ("type that was removed", whole([], [tensor("w", kind=31)]), ("type 31", "Q4_0")),
    ("unknown type", whole([], [tensor("w", kind=2**32 - 1)]), (f"type {2**32 - 1}", "Q4_0")),
    ("row not in blocks", whole([], [tensor("w", (48,), kind=2)]), ("48 weights", "Q4_0", "multiple of 32")),
    ("product over 2^64", whole([], [tensor("w", (2**40, 2**40))]), (str(2**82 + 96), "224 bytes")),
    ("offset outside", whole([], [tensor("w", offset=2**40)]), (f"offset {2**40}", "end at 0")),
    ("offset not aligned", whole([], [ONE, tensor("v", offset=129)], 512), ("offset 129", "end at 128")),
    ("tensors overlap", whole([], [ONE, tensor("v", offset=0)], 512), ("'v'", "offset 0", "end at 128")),
    ("hole between tensors", whole([], [ONE, tensor("v", offset=160)], 512), ("offset 160", "end at 128")),
    ("data cut", whole([], [ONE], 127), ("end at byte 192", "191 bytes")),
    ("padding before the data cut", header([], [ONE]), ("end at byte 192", "57 bytes")),
]


@pytest.mark.parametrize(("raw", "parts"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_a_broken_file_is_refused_with_value_and_limit(tmp_path, raw, parts):
    path = tmp_path / "x.gguf"
    path.write_bytes(raw)
    start = time.process_time()
    with pytest.raises((FormatError, UnsupportedError)) as caught:
        open_gguf(path)
    assert time.process_time() - start < 0.5
    message = str(caught.value)
    assert [part for part in (*parts, str(path)) if part not in message] == []
    assert "\n" not in message
    assert caught.value.hint


def test_a_sound_minimal_file_opens(tmp_path):
    """The table above tests nothing if what it starts from is refused too."""
    path = tmp_path / "x.gguf"
    for version in (2, 3):
        path.write_bytes(whole([NAME], [ONE, tensor("v", (32,), kind=2, offset=128)], 146, version=version))
        opened = open_gguf(path)
        assert opened.version == version
        assert dict(opened.metadata) == {"general.name": "x"}
        assert {n: (t.shape, t.format, t.data.size) for n, t in opened.tensors.items()} == {
            "w": ((32,), "F32", 128), "v": ((32,), "Q4_0", 18)
        }


def test_what_is_not_a_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    refused = {tmp_path: "regular", tmp_path / "pipe.gguf": "regular", tmp_path / "no.gguf": "No such file",
               Path("a\0b.gguf"): "null"}
    for path, part in refused.items():
        with pytest.raises(FormatError, match=part):
            open_gguf(path)


def test_a_truncated_model_says_both_sizes(tmp_path, tiny_llama):
    raw = tiny_llama.read_bytes()
    path = tmp_path / "cut.gguf"
    for size in (len(raw) - 1, len(raw) // 2, 5000, 300, 40):
        path.write_bytes(raw[:size])
        with pytest.raises(FormatError, match=f"the file has {size} bytes"):
            open_gguf(path)
    path.write_bytes(raw[:-1])
    with pytest.raises(FormatError, match=f"end at byte {len(raw)},"):
        open_gguf(path)


def test_types_are_those_of_llama_cpp_and_gguf():
    from llama_cpp import llama_cpp

    llama_cpp._lib.ggml_type_name.restype = ctypes.c_char_p
    for number, row in TYPES.items():
        assert row.size == llama_cpp._lib.ggml_type_size(number)
        assert row.block == llama_cpp._lib.ggml_blck_size(number)
        assert row.name.lower() == llama_cpp._lib.ggml_type_name(number).decode().lower()
    for name, row in FORMATS.items():
        if name != "Q2_0":  # the gguf package lags
            assert gguf.GGMLQuantizationType[name] == row.id
            assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(row.id)] == (row.block, row.size)


VALUES = {
    "U8": 255, "I8": -128, "U16": 65_535, "I16": -32_768, "U32": 2**32 - 1, "I32": -(2**31), "F32": 0.5, "BOOL": True,
    "STRING": "ü✓", "U64": 2**64 - 1, "I64": -(2**63), "F64": 0.1,
}


def test_reads_what_the_gguf_package_writes(tmp_path):
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    kinds = {"U": "UINT", "I": "INT", "F": "FLOAT"}
    for name, value in VALUES.items():
        kind = gguf.GGUFValueType[kinds.get(name[0], "") + name[1:] if name[1:].isdigit() else name]
        writer.add_key_value(f"one.{name}", value, kind)
        writer.add_key_value(f"many.{name}", [value] * 3, gguf.GGUFValueType.ARRAY, kind)
    writer.add_key_value("odd", [b"\xff", b""], gguf.GGUFValueType.ARRAY)
    stored = {}
    for name, row in FORMATS.items():
        stored[name] = rng.integers(0, 256, (3, 512 // row.block * row.size), np.uint8)
        writer.add_tensor_info(f"{name}.weight", (3, 512), np.dtype(np.float32), stored[name].nbytes, row.id)
        writer.tensors[0][f"{name}.weight"].tensor = stored[name]
    writer.add_tensor("four", np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    opened = open_gguf(tmp_path / "x.gguf")
    assert opened.architecture == "llama"
    for name, value in VALUES.items():
        assert opened.metadata[f"one.{name}"] == value
        assert opened.metadata[f"many.{name}"] == [value] * 3
        assert type(opened.metadata[f"one.{name}"]) is type(value)
        assert opened.metadata.type(f"many.{name}") == f"[{opened.metadata.type(f'one.{name}')}]"
        assert opened.metadata.count(f"many.{name}") == 3
    assert opened.metadata["odd"] == ["\udcff", ""]
    for name, raw in stored.items():
        found = opened.tensors[f"{name}.weight"]
        assert (found.shape, found.format) == ((3, 512), name)
        np.testing.assert_array_equal(found.data, raw.ravel())
        np.testing.assert_array_equal(found.f32(), dequantize(raw, name))
        assert found.f32().dtype == np.float32
        assert not found.data.flags.writeable
    np.testing.assert_array_equal(opened.tensors["four"].f32(), np.arange(24).reshape(1, 2, 3, 4))


def test_other_formats_open_and_are_named(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(whole([], [tensor("w", (256, 2), kind=22)], 164))
    found = open_gguf(path).tensors["w"]
    assert found.format == "IQ2_S"
    with pytest.raises(UnsupportedError, match=r"'w' is IQ2_S.*Q4_K"):
        found.f32()


@pytest.mark.slow
def test_smollm2_opens_fast_and_as_the_gguf_package_reads_it(smollm2):
    start = time.process_time()
    opened = open_gguf(smollm2)
    assert time.process_time() - start < 0.5
    check_model(opened)
    reader = gguf.GGUFReader(smollm2)
    assert set(opened.metadata) == {name for name in reader.fields if not name.startswith("GGUF.")}
    for name, value in opened.metadata.items():
        assert value == reader.fields[name].contents()
    assert len(opened.tensors) == len(reader.tensors) == 272
    for theirs in reader.tensors:
        ours = opened.tensors[theirs.name]
        assert ours.shape == tuple(reversed(theirs.shape.tolist()))
        assert ours.format == theirs.tensor_type.name
        assert ours.data.ctypes.data - opened.data.ctypes.data == theirs.data_offset


@pytest.mark.dev
def test_a_vocabulary_of_260k_opens_fast(tmp_path):
    tokens = b"".join(string(f"token {i}") for i in range(260_000))
    path = tmp_path / "x.gguf"
    path.write_bytes(header([key(k, ARR, array(STR, 260_000, tokens)) for k in ("tokens", "merges")], []))
    start = time.process_time()  # of the CPU, for machines are shared; a walk that is quadratic takes minutes
    opened = open_gguf(path)
    assert time.process_time() - start < 2
    assert opened.metadata.count("tokens") == 260_000
    assert opened.metadata["merges"][-1] == "token 259999"


@pytest.mark.dev
@pytest.mark.parametrize("file_type", ["Q4_K_M", "Q2_K", "Q5_1", "IQ4_NL", "BF16", "IQ4_XS", "Q2_0"])
def test_reads_what_llama_cpp_quantizes(tmp_path, file_type):
    from llama_cpp import llama_cpp

    source = write_tiny(tmp_path / "f32.gguf", d_model=256, d_ff=512, head_width=64)
    path = tmp_path / "q.gguf"
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{file_type}")
    options.nthread = 1
    assert llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(path), options) == 0
    opened = open_gguf(path)
    truth = open_gguf(source)
    check_model(opened)
    assert opened.tensors.keys() == truth.tensors.keys()
    assert any(t.format != "F32" for t in opened.tensors.values())
    for name, t in opened.tensors.items():
        want = truth.tensors[name].f32()
        error = np.linalg.norm(t.f32() - want) / np.linalg.norm(want)
        assert error < {"Q2_0": 0.75, "Q2_K": 0.4, "Q3_K": 0.2}.get(t.format, 0.1)


def test_fingerprint_sees_header_and_both_ends_of_every_tensor(tmp_path, tiny_llama):
    raw = tiny_llama.read_bytes()
    opened = open_gguf(tiny_llama)
    path = tmp_path / "x.gguf"

    def of(changed):
        path.write_bytes(changed)
        return fingerprint(open_gguf(path))

    first = of(raw)
    assert first == fingerprint(opened)
    assert len(first) == len("sha256:") + 64
    places = [t.data.ctypes.data - opened.data.ctypes.data for t in opened.tensors.values()]
    ends = [start + t.data.size - 1 for start, t in zip(places, opened.tensors.values(), strict=True)]
    for place in (raw.index(b"rope.freq_base") + 20, *places, *ends):
        flipped = bytearray(raw)
        flipped[place] ^= 1
        assert of(bytes(flipped)) != first
    assert of(raw + b"\0") != first


@pytest.mark.dev
def test_a_copy_is_the_same_file(tmp_path, smollm2):
    opened = open_gguf(smollm2)
    write_gguf(tmp_path / "copy.gguf", opened.architecture, opened.metadata, opened.tensors, opened.types)
    digests = [hashlib.sha256(path.read_bytes()).digest() for path in (smollm2, tmp_path / "copy.gguf")]
    assert digests[0] == digests[1]
    assert [path.name for path in tmp_path.iterdir()] == ["copy.gguf"]


def test_written_types_are_those_asked_for(tmp_path):
    values = {"i": 7, "f": 0.5, "b": True, "s": "é", "is": [1, -2], "fs": [1.0], "ss": ["a", "\udcff"], "bs": [True],
              "big": 2**40, "small": [1, 2], "none": [], "general.alignment": 64}
    weights = {"half": np.ones((2, 4), np.float16), "w": np.ones((3, 2), np.float32).T, "v": np.ones(3, np.float32),
               "q": Tensor("q", (2, 2, 32), "Q4_0", np.arange(72, dtype=np.uint8))}
    write_gguf(tmp_path / "x.gguf", "qwen2", values, weights, {"big": "u64", "small": "[u16]"})
    opened = open_gguf(tmp_path / "x.gguf")
    assert opened.types == {
        "general.architecture": "str", "i": "u32", "f": "f32", "b": "bool", "s": "str", "is": "[i32]", "fs": "[f32]",
        "ss": "[str]", "bs": "[bool]", "big": "u64", "small": "[u16]", "general.alignment": "u32",
    }
    assert {k: v for k, v in values.items() if v != []} == {k: opened.metadata[k] for k in values if k != "none"}
    assert {n: (t.shape, t.format) for n, t in opened.tensors.items()} == {
        "half": ((2, 4), "F16"), "w": ((2, 3), "F32"), "v": ((3,), "F32"), "q": ((2, 2, 32), "Q4_0")
    }
    np.testing.assert_array_equal(opened.tensors["q"].data, np.arange(72))
    for name, t in opened.tensors.items():
        assert (t.data.ctypes.data - opened.data.ctypes.data) % 64 == 0, name
    with pytest.raises(TypeError, match="None"):
        write_gguf(tmp_path / "y.gguf", "llama", {"k": None}, {})


def test_a_full_disk_leaves_what_was_there(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"old")
    for room, size in ((65_536, 10**6), (65_536, 16_384), (300, 60)):  # the last fail in what was buffered
        with full_disk(room), pytest.raises(EdgetuneError, match=f"cannot write {path}.*iB are free"):
            write_gguf(path, "llama", {}, {"w": np.ones(size, np.float32)})
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(EdgetuneError, match="No such file"):
        write_gguf(tmp_path / "nowhere" / "x.gguf", "llama", {}, {})
