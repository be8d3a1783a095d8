"""Encoders as bundles: a folder or a GGUF in one of llama.cpp's types, whose vectors are compared with the source's."""

import json

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from commands import run
from encoders import WORDS, tiny_bert, vectors, write_checkpoint

from edgetune.compress.source.source import locate
from edgetune.formats.bert import write_bert
from edgetune.formats.bundle import open_bundle
from edgetune.formats.gguf import open_gguf
from edgetune.llamacpp.quantizer import quantize_file

TEXTS = ["turn the lights on", "kitchen", "the light off", "turning"]


def run_json(*args):
    return json.loads(run(*args, "--json"))


@pytest.fixture
def folder(tmp_path):
    made = write_checkpoint(tmp_path / "tiny", tiny_bert(), WORDS, "cls_token")
    (made / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return made


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join(TEXTS))
    return path


def test_a_folder_becomes_a_bundle(folder, texts, tmp_path):
    out = tmp_path / "tiny.edge"
    said = run("compress", folder, "-o", out, "--measure", texts)
    assert {path.name for path in out.iterdir()} == {"manifest.json", "model.gguf", "report.html"}
    bundle = open_bundle(out)
    write_bert(tmp_path / "f16.gguf", folder, "F16")
    quantize_file(tmp_path / "f16.gguf", tmp_path / "q8.gguf", "Q8_0")
    wanted = open_gguf(tmp_path / "q8.gguf")
    for name, tensor in bundle.gguf.tensors.items():
        np.testing.assert_array_equal(tensor.data, wanted.tensors[name].data, name)
    cosines = (vectors(tmp_path / "f16.gguf", TEXTS) * vectors(out / "model.gguf", TEXTS)).sum(1)
    cost = bundle.manifest["cost"]
    assert (cost["texts"], cost["cosine"], cost["least_cosine"]) == (
        4, pytest.approx(cosines.mean(), abs=1e-4), pytest.approx(cosines.min(), abs=1e-4))
    assert cost["least_cosine"] < 1
    assert f"cosine to the source: {cost['cosine']:.4f}" in said
    assert f"{cost['least_cosine']:.4f}" in (out / "report.html").read_text()
    assert [bundle.gguf.metadata[key] for key in ("general.name", "general.license", "bert.pooling_type")] == [
        "tiny", "apache-2.0", 2]
    assert [bundle.manifest["source"][key] for key in ("name", "kind", "licence", "quantized")] == [
        "tiny", "folder", "apache-2.0", False]
    assert run_json("models", "info", out)["cosine"] == pytest.approx(cost["cosine"], abs=1e-4)
    run("compress", folder, "-o", tmp_path / "again.edge", "--measure", texts)
    assert [(tmp_path / place / "manifest.json").read_bytes() for place in ("tiny.edge", "again.edge")].count(
        (out / "manifest.json").read_bytes()) == 2


@pytest.mark.parametrize("kind", ["Q4_K_M", "Q5_1", "F16"])
def test_a_gguf_or_a_bundle_is_stored_again(folder, tmp_path, kind):
    """Rows of 64 have no place in blocks of 256: llama.cpp stores them otherwise, and so does edgetune."""
    write_bert(tmp_path / "m.gguf", folder, "F32")
    run("compress", tmp_path / "m.gguf", "-o", tmp_path / "one.edge", "--type", kind)
    quantize_file(tmp_path / "m.gguf", tmp_path / "stock.gguf", kind)
    wanted = open_gguf(tmp_path / "stock.gguf").tensors
    found = open_bundle(tmp_path / "one.edge").gguf.tensors
    assert {name: tensor.format for name, tensor in found.items()} == {
        name: tensor.format for name, tensor in wanted.items()}
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor.data, wanted[name].data, name)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": text, "completion": "x"}) + "\n" for text in TEXTS))
    facts = run_json("compress", tmp_path / "one.edge", "-o", tmp_path / "two.edge", "--measure", rows)
    assert (facts["source"]["kind"], facts["source"]["quantized"]) == ("bundle", kind != "F16")
    assert facts["cost"]["texts"] == 4


def test_a_snapshot_of_the_hub_names_model_and_commit(tmp_path):
    snapshot = tmp_path / "models--org--small" / "snapshots" / ("a" * 40)
    snapshot.parent.mkdir(parents=True)
    write_checkpoint(snapshot, tiny_bert(), WORDS)
    assert (locate(str(snapshot)).name, locate(str(snapshot)).revision) == ("small", "a" * 40)
    facts = run_json("compress", snapshot, "-o", tmp_path / "m.edge")
    assert facts["source"]["revision"] == "a" * 40


@pytest.mark.parametrize("options", [
    ("--vocab", 40, "--vocab-from", "texts"), ("--calibrate", "texts", "--drop-blocks", 1), ("--width", 0.5),
    ("--distill", "texts"), ("--target-size", "1M"), ("--device", "raspberry-pi-5-2gb", "--type", "Q8_0"),
    ("--resume",), ("--format", "onnx", "--measure", "texts"),
])
def test_what_decoders_alone_can_is_refused(folder, texts, tmp_path, options):
    given = [texts if option == "texts" else option for option in options]
    if "--width" in given or "--target-size" in given:
        given += ["--calibrate", texts]
    said = run("compress", folder, "-o", tmp_path / "m.edge", *given, code=2)
    assert "the source is an encoder" in said
    assert any(f"{option} is given" in said or f"{option} onnx" in said for option in given if str(option)[:2] == "--")
    assert not (tmp_path / "m.edge").exists()


def test_text_to_measure_on_is_needed(folder, texts, tmp_path):
    texts.write_text("\n \n")
    said = run("compress", folder, "-o", tmp_path / "m.edge", "--measure", texts, code=2)
    assert "holds no text" in said
