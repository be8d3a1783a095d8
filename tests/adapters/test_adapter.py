"""Adapters on disk: what llama.cpp makes of the file, what comes back, what is refused. llama.cpp is the judge."""


import gguf
import numpy as np
import pytest
import tiny
from families import logits_of
from full_disks import full_disk
from random_adapters import distance, random_updates

from edgetune.adapters import store as adapter
from edgetune.adapters.lora import Pair, init_pairs, scale_of
from edgetune.adapters.store import open_adapter, save_adapter, save_gguf, save_run
from edgetune.cli.info import describe
from edgetune.errors import EdgetuneError, FormatError, MismatchError, NumericsError, UnsupportedError, UsageError
from edgetune.formats.families import TARGETS
from edgetune.formats.gguf import fingerprint, open_gguf

TOKENS = np.random.default_rng(3).integers(0, 400, size=40).tolist()
NAMES = [f"blk.{i}.{name}" for i in range(2) for name in TARGETS.values()]


def added_by_hand(path, base, pairs):
    """The base with scale * B A added to its weights, by numpy and the gguf package."""
    tensors = {t.name: np.array(t.data) for t in gguf.GGUFReader(base.path).tensors}
    for name, pair in pairs.items():
        tensors[f"{name}.weight"] += pair.scale * pair.b.astype(np.float64) @ pair.a
    fields = {key: value for key, value in base.metadata.items() if key != "general.architecture"}
    return tiny.write_gguf(path, base.architecture, fields, tensors)


@pytest.fixture(scope="module")
def base(tiny_llama):
    return open_gguf(tiny_llama)


@pytest.fixture
def pairs(base):
    return random_updates(base, NAMES)


# ---- LoRA ------------------------------------------------------------------------------------------------------------


def test_init_is_as_pefts():
    from torch import nn

    pairs = init_pairs({"x": (48, 400), "y": (32, 200)}, 16, 0.5, seed=1)
    weight = nn.Linear(400, 16).weight.detach()
    nn.init.kaiming_uniform_(weight, a=5**0.5)
    a = pairs["x"].a
    b = pairs["x"].b
    assert (a.shape, b.shape, pairs["x"].scale, a.dtype) == ((16, 400), (48, 16), 0.5, np.float32)
    assert not b.any()
    assert 0.99 / 20 < abs(a).max() <= 1 / 20
    assert a.std() == pytest.approx(float(weight.std()), rel=0.03)


def test_init_depends_on_seed_and_name_alone():
    shapes = {"x": (8, 32), "y": (8, 32)}
    pairs, again, other = (init_pairs(s, 4, 1.0, seed) for s, seed in ((shapes, 7), ({"y": (8, 32)}, 7), (shapes, 8)))
    assert np.array_equal(pairs["y"].a, again["y"].a)
    assert not np.array_equal(pairs["x"].a, pairs["y"].a)
    assert not np.array_equal(pairs["x"].a, other["x"].a)


@pytest.mark.parametrize("rank", [0, 33, -1])
def test_rank_outside_the_width_is_refused(rank):
    with pytest.raises(UsageError, match=f"rank {rank} is not between 1 and 32, the width of y"):
        init_pairs({"x": (8, 64), "y": (8, 32)}, rank, 1.0, seed=0)


def test_scale_is_alpha_over_rank_or_its_root():
    assert scale_of(16, 8) == 2.0
    assert scale_of(16, 16, rslora=True) == 4.0


# ---- the scale that llama.cpp applies --------------------------------------------------------------------------------


@pytest.mark.parametrize(("ranks", "scales", "alpha"), [
    ([1], [16.0], 16.0),  # alpha / R
    ([8], [scale_of(10, 8)], 10.0),
    ([64], [scale_of(16, 64, rslora=True)], 128.0),  # rsLoRA
    ([2, 4, 8], [8.0, 4.0, 2.0], 16.0),  # one alpha, a rank for each tensor
    ([2, 4, 8], [2.0, 2.0, 2.0], 0.0),  # one scale: no alpha says so
    ([4, 4, 4], [0.5, 1.0, 3.0], 0.0),
    ([4], [-2.0], 0.0),
])
def test_llama_cpp_scales_every_rank_rightly(ranks, scales, alpha, base, tmp_path):
    pairs = random_updates(base, NAMES, ranks, scales)
    save_gguf(tmp_path / "a.gguf", pairs, base)
    served = logits_of(base.path, TOKENS, tmp_path / "a.gguf")
    truth = logits_of(added_by_hand(tmp_path / "m.gguf", base, pairs), TOKENS)
    assert distance(served, truth) < 1e-4
    assert distance(truth, logits_of(base.path, TOKENS)) > 0.5, "an adapter that changes nothing proves nothing"

    stored = gguf.GGUFReader(tmp_path / "a.gguf").fields["adapter.lora.alpha"]
    assert (stored.types, stored.contents()) == ([gguf.GGUFValueType.FLOAT32], pytest.approx(alpha))
    for name, pair in open_adapter(tmp_path / "a.gguf", base).pairs.items():
        wanted = pairs[name]
        np.testing.assert_allclose(pair.scale * pair.b, wanted.scale * wanted.b, rtol=1e-6)
        assert np.array_equal(pair.a, wanted.a)


def test_an_adapter_is_stored_in_f16(base, pairs, tmp_path):
    save_gguf(tmp_path / "a.gguf", pairs, base, format="F16")
    assert {t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors} == {"F16"}
    back = adapter.load_gguf(tmp_path / "a.gguf")
    assert all(np.array_equal(back[n].b, pairs[n].b.astype(np.float16)) for n in NAMES)
    assert logits_of(base.path, TOKENS, tmp_path / "a.gguf").std() > 0.1


def test_adapters_of_llama_cpps_converter(base, pairs, tmp_path):
    """Written as convert_lora_to_gguf.py does: alpha / rank, F16, nothing about the base but its architecture."""
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", base.architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 32.0)
    for name, pair in pairs.items():
        writer.add_tensor(f"{name}.weight.lora_a", pair.a.astype(np.float16))
        writer.add_tensor(f"{name}.weight.lora_b", pair.b.astype(np.float16))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    opened = open_adapter(tmp_path / "a.gguf", base)
    assert (opened.fingerprint, opened.base_name, opened.run) == ("", "", {})
    assert {pair.scale for pair in opened.pairs.values()} == {8.0}
    truth = logits_of(added_by_hand(tmp_path / "m.gguf", base, opened.pairs), TOKENS)
    served = logits_of(base.path, TOKENS, tmp_path / "a.gguf")
    assert distance(served, truth) < 0.03, "llama.cpp rounds activations to F16 before an F16 product"


# ---- the folder ------------------------------------------------------------------------------------------------------


def test_a_folder_is_written_whole_and_opened(base, pairs, tmp_path):
    save_adapter(tmp_path / "runs" / "first", pairs, base, {"options": {"rank": 4}})
    assert sorted(p.name for p in (tmp_path / "runs").rglob("*")) == ["adapter.gguf", "first", "run.json"]
    for path in (tmp_path / "runs" / "first", tmp_path / "runs" / "first" / "adapter.gguf"):
        opened = open_adapter(path, base)
        assert opened.path == tmp_path / "runs" / "first" / "adapter.gguf"
        assert (opened.architecture, opened.run) == ("llama", {"options": {"rank": 4}})
        assert (opened.fingerprint, opened.base_name) == (fingerprint(base), base.path.name)
        assert list(opened.pairs) == NAMES
    before = (tmp_path / "runs" / "first" / "adapter.gguf").read_bytes()
    with pytest.raises(UsageError, match="first exists"):
        save_adapter(tmp_path / "runs" / "first", pairs, base, {})
    pairs[NAMES[0]].a[:] = 0
    save_run(tmp_path / "runs" / "first", pairs, base, {"step": 2})
    assert open_adapter(tmp_path / "runs" / "first").run == {"step": 2}
    assert (tmp_path / "runs" / "first" / "adapter.gguf").read_bytes() != before
    assert len(list(tmp_path.rglob("*"))) == 4


def test_a_bundles_model_is_called_by_the_bundles_name(base, pairs, tmp_path):
    (tmp_path / "home.edge").mkdir()
    (tmp_path / "home.edge" / "model.gguf").write_bytes(base.path.read_bytes())
    save_gguf(tmp_path / "a.gguf", pairs, open_gguf(tmp_path / "home.edge" / "model.gguf"))
    assert open_adapter(tmp_path / "a.gguf").base_name == "home.edge"


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_an_adapter_of_another_base_is_refused(base, pairs, tmp_path):
    save_gguf(tmp_path / "a.gguf", pairs, base)
    other = open_gguf(tiny.write_tiny(tmp_path / "other.gguf", seed=5))
    with pytest.raises(MismatchError, match=r"was trained on llama.gguf \(sha256:.*\), not on .*other.gguf \(sha256:"):
        open_adapter(tmp_path / "a.gguf", other)


def test_a_base_that_does_not_fit(base, pairs, tiny_models, tmp_path):
    """Adapters that name no base are judged by architecture, names and shapes."""
    path = tmp_path / "a.gguf"
    save_gguf(path, pairs, base)
    fields = {k: v for k, v in open_gguf(path).metadata.items() if k not in ("general.architecture", adapter._BASE)}
    tiny.write_gguf(path, "llama", fields, {t.name: np.array(t.data) for t in gguf.GGUFReader(path).tensors})
    open_adapter(path, base)
    with pytest.raises(MismatchError, match=r"is for llama, .* is qwen2"):
        open_adapter(path, open_gguf(tiny_models["qwen2"]))
    for change, message in (({"n_blocks": 1}, "changes blk.1.attn_q .* has no such tensor"),
                            ({"d_ff": 96}, r"changes blk.0.ffn_gate of shape \[128, 64\], .* has \[96, 64\]")):
        with pytest.raises(MismatchError, match=message):
            open_adapter(path, open_gguf(tiny.write_tiny(tmp_path / "other.gguf", **change)))


def test_not_an_adapter(base, pairs, tmp_path):
    with pytest.raises(FormatError, match=r"nowhere.*No such file"):
        open_adapter(tmp_path / "nowhere")
    with pytest.raises(FormatError, match=r"holds no adapter.gguf; name an adapter folder"):
        open_adapter(tmp_path)
    with pytest.raises(FormatError, match=r"general.type"):
        open_adapter(base.path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(FormatError, match=r"adapter of PEFT.*edgetune adapters import"):
        open_adapter(tmp_path)
    save_gguf(tmp_path / "adapter.gguf", pairs, base)
    for text in ("{", "[]", "[" * 100_000, "\udcff"):
        (tmp_path / "run.json").write_text(text, errors="surrogateescape")
        with pytest.raises(FormatError, match=r"run.json is (damaged|not a JSON object)"):
            open_adapter(tmp_path)


@pytest.mark.parametrize(("change", "error"), [
    (lambda t: t.pop("blk.0.attn_q.weight.lora_b"), FormatError),
    (lambda t: t.update({"blk.0.attn_q.weight.lora_b": np.zeros((64, 3), np.float32)}), FormatError),
    (lambda t: t["blk.1.ffn_up.weight.lora_a"].fill(np.nan), FormatError),
    (lambda t: t.update({"blk.0.attn_norm.weight": np.ones(64, np.float32)}), UnsupportedError),
    (lambda t: t.update({f"blk.0.attn_q.bias.lora_{s}": np.ones((4, 4), np.float32) for s in "ab"}), UnsupportedError),
    (lambda t: t.clear(), FormatError),
])
def test_tensors_that_are_no_pairs_are_refused(change, error, base, pairs, tmp_path):
    save_gguf(tmp_path / "a.gguf", pairs, base)
    tensors = {t.name: np.array(t.data) for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    change(tensors)
    fields = {k: v for k, v in open_gguf(tmp_path / "a.gguf").metadata.items() if k != "general.architecture"}
    with pytest.raises(error, match=r"a\.gguf"):
        open_adapter(tiny.write_gguf(tmp_path / "a.gguf", "llama", fields, tensors))


def test_damaged_files_are_refused_never_crash(base, pairs, tmp_path):
    path = tmp_path / "a.gguf"
    save_gguf(path, {name: pairs[name] for name in NAMES[:2]}, base)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for length in range(0, len(whole) - 1, 97):
        path.write_bytes(whole[:length])
        with pytest.raises(EdgetuneError):
            open_adapter(path, base)
    for _ in range(400):
        broken = bytearray(whole)
        broken[rng.integers(0, 900)] = rng.integers(0, 256)
        path.write_bytes(broken)
        try:
            open_adapter(path, base)
        except EdgetuneError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_values_that_are_not_finite_are_not_written(value, base, pairs, tmp_path):
    save_gguf(tmp_path / "a.gguf", pairs, base)
    good = (tmp_path / "a.gguf").read_bytes()
    pairs[NAMES[3]].b[0, 0] = value
    with pytest.raises(NumericsError, match=r"blk.0.attn_output.lora_b holds values that are not finite in F16"):
        save_gguf(tmp_path / "a.gguf", pairs, base, format="F16")
    assert (tmp_path / "a.gguf").read_bytes() == good
    with pytest.raises(NumericsError):
        save_adapter(tmp_path / "b", {NAMES[0]: Pair(pairs[NAMES[0]].a * np.nan, pairs[NAMES[0]].b, 1.0)}, base, {})
    assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"]


def test_a_full_disk_leaves_what_was_there(base, pairs, tmp_path):
    save_adapter(tmp_path / "old", pairs, base, {"step": 1})
    with full_disk(5000), pytest.raises(EdgetuneError, match=r"cannot write .*adapter.gguf"):
        save_run(tmp_path / "old", pairs, base, {"step": 2})
    with full_disk(5000), pytest.raises(EdgetuneError, match="cannot write"):
        save_adapter(tmp_path / "new", pairs, base, {})
    with full_disk(80_000), pytest.raises(EdgetuneError, match=r"cannot write .*run.json"):
        save_run(tmp_path / "old", pairs, base, {"step": "x" * 100_000})
    opened = open_adapter(tmp_path / "old", base)
    assert (opened.run, list(opened.pairs)) == ({"step": 1}, NAMES)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["adapter.gguf", "old", "run.json"]


def test_an_adapter_of_embedding_and_head_is_described(base, tmp_path):
    """As llama.cpp's converter makes them; neither name has a block."""
    shape = base.tensors["token_embd.weight"].shape
    save_gguf(tmp_path / "a.gguf", init_pairs({"token_embd": shape, "output": shape}, 2, 1.0, 0), base)
    assert describe(tmp_path / "a.gguf")["targets"] == {"token_embd": 1, "output": 1}
