"""Merged files: the weights by numpy and the gguf package, the whole by llama.cpp."""

import shutil

import gguf
import numpy as np
import pytest
import tiny
from families import logits_of
from formats_of_ggml import dequantize, quantize
from full_disks import full_disk
from random_adapters import distance, random_updates
from sometimes import SOME_FORMATS, mostly_slow

from edgetune.adapters import merge as module
from edgetune.adapters.lora import Pair
from edgetune.adapters.merge import disk_needed, merge
from edgetune.adapters.store import save_gguf
from edgetune.errors import (
    DiskFullError,
    EdgetuneError,
    MismatchError,
    NumericsError,
    UnsupportedError,
    UsageError,
    size_text,
)
from edgetune.formats.gguf import FORMATS, check_model, open_gguf

TOKENS = np.random.default_rng(3).integers(0, 400, size=40).tolist()
NEVER = ("gate_inp", ".conv", *(name.removesuffix(".weight") for name in tiny.PLAIN))  # adapted
WIDE = {"d_model": 256, "d_ff": 256, "head_width": 64, "n_kv_heads": 4}  # rows that K-quants can hold


def pairs_for(base, blocks=(0, 1)):
    matrices = [name.removesuffix(".weight") for name, tensor in base.tensors.items() if len(tensor.shape) == 2]
    names = [name for i in blocks for name in matrices
             if name.startswith(f"blk.{i}.") and not name.endswith(NEVER)]
    return random_updates(base, names, size=0.3)


def stored(path):
    """Name -> format and bytes of every tensor, in file order."""
    return {name: (t.format, t.data.tobytes()) for name, t in open_gguf(path).tensors.items()}


def weights(path):
    tensors = open_gguf(path).tensors.items()
    return {name: dequantize(t.data, t.format).reshape(t.shape) for name, t in tensors}


def fields(path):
    return {name: (field.types, field.contents()) for name, field in gguf.GGUFReader(path).fields.items()}


@pytest.fixture(scope="module")
def base(tiny_llama):
    return open_gguf(tiny_llama)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    path = tmp_path_factory.mktemp("quantized") / "q.gguf"
    return open_gguf(tiny.write_tiny(path, formats={"token_embd": "Q8_0", "blk": "Q4_1"}))


# ---- what is written -------------------------------------------------------------------------------------------------


@pytest.mark.dev
@pytest.mark.parametrize("architecture", tiny.SHAPES)
def test_float_logits_are_those_of_base_and_adapter(architecture, tiny_models, tmp_path):
    base = open_gguf(tiny_models[architecture])
    pairs = pairs_for(base)
    out = tmp_path / "m.gguf"
    assert merge(base, pairs, out, "F32") == module.Merged(out, "F32", len(pairs), out.stat().st_size)
    save_gguf(tmp_path / "a.gguf", pairs, base)
    truth = logits_of(base.path, TOKENS, tmp_path / "a.gguf")
    limit = 3e-4 if architecture == "gemma4" else 1e-4  # in six blocks twelve GELUs, looked up in 16 bits
    assert distance(logits_of(out, TOKENS), truth) < limit
    least = 0.02 if tiny.SHAPES[architecture].scales else 0.1  # granite adds a fifth of it to its residual stream
    assert distance(logits_of(base.path, TOKENS), truth) > least, "an adapter that changes nothing proves nothing"
    check_model(open_gguf(out))


@pytest.mark.parametrize(("to", "number"), [("F32", 0), ("F16", 1), ("BF16", 32)])
def test_floats_of_a_quantized_base(to, number, tmp_path):
    base = open_gguf(tiny.write_tiny(tmp_path / "q.gguf", formats="Q4_1", metadata={"general.file_type": 3}))
    pairs = pairs_for(base, blocks=(1,))
    merge(base, pairs, tmp_path / "m.gguf", to.lower())
    before = weights(base.path)
    after = weights(tmp_path / "m.gguf")
    for name, values in after.items():
        pair = pairs.get(name.removesuffix(".weight"))
        truth = before[name] + (pair.scale * pair.b @ pair.a if pair else 0)
        assert np.abs(values - truth).max() <= {"F32": 1e-6, "F16": 2e-3, "BF16": 1e-2}[to]
    formats = {name: format for name, (format, _) in stored(tmp_path / "m.gguf").items()}
    assert formats == {name: "F32" if before[name].ndim == 1 else to for name in before}
    old = fields(base.path)
    new = fields(tmp_path / "m.gguf")
    assert new.pop("general.file_type") == ([gguf.GGUFValueType.UINT32], number)
    assert old.pop("general.file_type") == ([gguf.GGUFValueType.UINT32], 3)
    assert new == old
    assert logits_of(tmp_path / "m.gguf", TOKENS).std() > 0.1


@pytest.mark.parametrize("format", mostly_slow([format for format in FORMATS if format != "Q2_0"], SOME_FORMATS))
def test_keep_writes_each_tensor_as_it_was(format, tmp_path):
    base = open_gguf(tiny.write_tiny(tmp_path / "q.gguf", formats={"token_embd": "Q8_0", "blk": format}, **WIDE))
    pairs = pairs_for(base, blocks=(1,))
    merge(base, pairs, tmp_path / "m.gguf", "keep")
    before = stored(base.path)
    after = stored(tmp_path / "m.gguf")
    changed = {name for name in before if before[name] != after[name]}
    assert list(before) == list(after)
    assert changed == {f"{name}.weight" for name in pairs}
    assert dict(base.metadata) == dict(open_gguf(tmp_path / "m.gguf").metadata)
    old = weights(base.path)
    new = weights(tmp_path / "m.gguf")
    for name, pair in pairs.items():
        truth = old[f"{name}.weight"] + pair.scale * pair.b @ pair.a
        assert after[f"{name}.weight"][1] == quantize(truth.astype(np.float32), format).tobytes()
        assert distance(new[f"{name}.weight"], truth) < {"Q2_K": 0.4}.get(format, 0.2)


def test_a_format_that_would_lose_most_of_the_weights_is_not_kept(tmp_path):
    base = open_gguf(tiny.write_tiny(tmp_path / "q.gguf", formats={"blk": "Q2_0"}, **WIDE))
    with pytest.raises(UsageError, match=r"Q2_0, which cannot be written again .* Q8_0"):
        merge(base, pairs_for(base), tmp_path / "m.gguf", "keep")
    assert not (tmp_path / "m.gguf").exists()


def test_large_tensors_go_through_in_slices(base, tmp_path, monkeypatch):
    pairs = pairs_for(base)
    merge(base, pairs, tmp_path / "whole.gguf", "F16")
    monkeypatch.setattr(module, "_SLICE", 7 * 64 + 5)
    merge(base, pairs, tmp_path / "slices.gguf", "F16")
    whole = weights(tmp_path / "whole.gguf")
    slices = weights(tmp_path / "slices.gguf")
    assert all(np.abs(whole[name] - slices[name]).max() < 2e-3 for name in whole)
    monkeypatch.setattr(module, "_SLICE", 1)
    merge(base, {}, tmp_path / "rows.gguf", "F32")
    assert (tmp_path / "rows.gguf").read_bytes() == base.path.read_bytes()


def test_alignment_and_odd_sizes(tmp_path):
    base = open_gguf(tiny.write_tiny(tmp_path / "b.gguf", d_ff=99))
    merge(base, pairs_for(base), tmp_path / "m.gguf", "F16")
    opened = open_gguf(tmp_path / "m.gguf")
    assert all(t.data.ctypes.data % 32 == opened.data.ctypes.data % 32 for t in opened.tensors.values())
    assert logits_of(tmp_path / "m.gguf", TOKENS).std() > 0.1


@pytest.mark.parametrize(
    ("to", "formats", "number", "error"),
    [
        ("Q8_0", {"Q8_0"}, 7, 0.01), ("q4_1", {"Q4_1", "Q6_K", "Q8_0"}, 3, 0.1),
        ("Q5_0", {"Q5_0", "Q6_K", "Q8_0"}, 8, 0.06), ("Q4_K_M", {"Q4_K", "Q6_K"}, 15, 0.1),
        ("Q6_K", {"Q6_K", "Q8_0"}, 18, 0.02), ("IQ4_NL", {"IQ4_NL", "Q5_K", "Q6_K"}, 25, 0.1)],
)
def test_llama_cpps_types(to, formats, number, error, tmp_path):
    base = open_gguf(tiny.write_tiny(tmp_path / "q.gguf", formats="Q8_0", **WIDE))
    pairs = pairs_for(base)
    merged = merge(base, pairs, tmp_path / "m.gguf", to, threads=2)
    assert (merged.to, merged.bytes) == (to.upper(), (tmp_path / "m.gguf").stat().st_size)
    assert {format for format, _ in stored(tmp_path / "m.gguf").values()} <= formats | {"F32"}
    assert fields(tmp_path / "m.gguf")["general.file_type"][1] == number
    before = weights(base.path)
    after = weights(tmp_path / "m.gguf")
    for name, pair in pairs.items():
        truth = before[f"{name}.weight"] + pair.scale * pair.b @ pair.a
        assert distance(after[f"{name}.weight"], truth) < error < 0.2 < distance(before[f"{name}.weight"], truth)
    assert logits_of(tmp_path / "m.gguf", TOKENS).std() > 0.1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.gguf", "q.gguf"]


def test_tensors_already_of_the_type_keep_their_bytes(quantized, tmp_path):
    merge(quantized, pairs_for(quantized, blocks=(0,)), tmp_path / "m.gguf", "Q4_1")
    before = stored(quantized.path)
    after = stored(tmp_path / "m.gguf")
    assert all(before[name] == after[name] for name in before if name.startswith("blk.1."))


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_refusals_leave_nothing(base, tmp_path):
    out = tmp_path / "m.gguf"
    pairs = pairs_for(base)
    with pytest.raises(UsageError, match="the type Q9_9 is unknown; choose from keep, F32"):
        merge(base, pairs, out, "Q9_9")
    with pytest.raises(MismatchError, match=r"changes blk\.7\.attn_q"):
        merge(base, {"blk.7.attn_q": pairs["blk.0.attn_q"]}, out, "F32")
    for to in ("F32", "F16", "Q8_0"):
        with pytest.raises(NumericsError, match=r"blk\.1\.ffn_down\.weight holds merged weights over"):
            merge(base, pairs | {"blk.1.ffn_down": Pair(np.full((1, 128), np.nan), np.ones((64, 1)), 1.0)}, out, to)
    with pytest.raises(NumericsError, match=r"over 65504, the most in F16; merge to F32"):
        merge(base, pairs | {"blk.1.ffn_down": Pair(np.full((1, 128), 1e3), np.ones((64, 1)), 1e3)}, out, "F16")
    assert list(tmp_path.iterdir()) == []
    out.write_text("mine")
    for to in ("keep", "Q8_0"):
        with pytest.raises(UsageError, match=r"m\.gguf exists"):
            merge(base, pairs, out, to)
    assert (out.read_text(), len(list(tmp_path.iterdir()))) == ("mine", 1)


def test_a_changed_tensor_in_a_foreign_format(tmp_path):
    path = tiny.write_tiny(tmp_path / "b.gguf", formats={"blk.0.attn_v": "TQ2_0"}, **WIDE)
    base = open_gguf(path)
    with pytest.raises(UnsupportedError, match="TQ2_0"):
        merge(base, pairs_for(base), tmp_path / "m.gguf", "keep")
    merge(base, pairs_for(base, blocks=(1,)), tmp_path / "m.gguf", "keep")
    assert stored(tmp_path / "m.gguf")["blk.0.attn_v.weight"] == stored(path)["blk.0.attn_v.weight"]


@pytest.mark.parametrize("to", ["keep", "F32", "Q8_0"])
@pytest.mark.parametrize("limit", [4_000, 60_000, 118_000])
def test_a_full_disk_leaves_nothing(to, limit, base, quantized, tmp_path):
    """No file may grow beyond `limit` bytes: full in the header, in the weights, and (Q8_0) in llama.cpp's hands."""
    of = quantized if limit == 118_000 and to == "Q8_0" else base
    pairs = {name: pair for name, pair in pairs_for(of).items() if name == "blk.0.attn_k" or of is base}
    with full_disk(limit), pytest.raises(EdgetuneError, match=r"cannot write .*m\.gguf") as caught:
        merge(of, pairs, tmp_path / "m.gguf", to)
    assert ("llama.cpp" in caught.value.what) == (of is quantized)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ["keep", "F16", "Q8_0"])
def test_room_is_asked_for_before_anything_is_written(to, base, quantized, tmp_path, monkeypatch):
    """The bytes that are needed are said, and are enough."""
    model = quantized if to == "keep" else base
    pairs = pairs_for(model)
    merge(model, pairs, tmp_path / "enough.gguf", to)
    needed = disk_needed(model, pairs, to)
    assert needed >= (tmp_path / "enough.gguf").stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, needed - 1))
    with pytest.raises(DiskFullError, match=f"{size_text(needed)} are needed"):
        merge(model, pairs, tmp_path / "full.gguf", to)
    assert [path.name for path in tmp_path.iterdir()] == ["enough.gguf"]
