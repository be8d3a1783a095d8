"""Bundles: a folder with a manifest, or a bare GGUF; a file that is not what the manifest says is refused."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
from slot_folders import write_slot
from tiny import write_tiny

import edgetune
from edgetune.errors import FormatError, MismatchError, UnsupportedError
from edgetune.formats import bundle as bundles
from edgetune.formats.bundle import open_bundle, write_copy
from edgetune.formats.gguf import fingerprint, open_gguf, write_gguf
from edgetune.formats.signature import TRUSTED
from edgetune.formats.slot import Slot, slot_of


@pytest.fixture
def folder(tmp_path, tiny_llama):
    folder = tmp_path / "tiny.edge"
    folder.mkdir()
    shutil.copy(tiny_llama, folder / "model.gguf")
    (folder / "notes.txt").write_text("made for a test")
    write_manifest(folder, {name: digest(folder / name) for name in ("model.gguf", "notes.txt")})
    return folder


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_manifest(folder, files):
    (folder / "manifest.json").write_text(json.dumps({"files": files, "source": "tiny"}))


def test_a_bare_file_is_a_bundle(tiny_llama):
    bundle = open_bundle(tiny_llama)
    assert bundle.path == bundle.gguf.path == tiny_llama
    assert bundle.manifest is None
    assert bundle.fingerprint == fingerprint(open_gguf(tiny_llama))


def test_a_folder_is_a_bundle_of_the_same_model(folder, tiny_llama):
    bundle = open_bundle(str(folder))
    assert bundle.path == folder
    assert bundle.gguf.path == folder / "model.gguf"
    assert bundle.manifest is not None
    assert bundle.manifest["source"] == "tiny"
    assert bundle.fingerprint == open_bundle(tiny_llama).fingerprint


@pytest.mark.parametrize("name", ["model.gguf", "notes.txt"])
def test_one_changed_bit_in_any_file_is_refused(folder, name):
    raw = bytearray((folder / name).read_bytes())
    wanted = digest(folder / name)
    raw[len(raw) // 2] ^= 1
    (folder / name).write_bytes(raw)
    found = digest(folder / name)
    with pytest.raises(FormatError, match=f"{name} has the SHA-256 {found}, the manifest says {wanted}"):
        open_bundle(folder)


def test_a_missing_file_is_refused(folder):
    (folder / "notes.txt").unlink()
    with pytest.raises(FormatError, match=r"notes.txt: No such file or directory; copy"):
        open_bundle(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(FormatError, match=r"manifest.json: No such file.*a bundle has manifest.json and model.gguf"):
        open_bundle(folder)


WRONG_MANIFESTS = [
    ("not JSON", b"{", "is not JSON"),
    ("not text", b"\xff\xfe\xfd", "is not JSON"),
    ("deep", b"[" * 200_000, "is not JSON"),
    ("a list", b"[]", "lists no model.gguf"),
    ("no files", b"{}", "lists no model.gguf"),
    ("files as a list", b'{"files": ["model.gguf"]}', "lists no model.gguf"),
    ("without the model", b'{"files": {"notes.txt": "00"}}', "lists no model.gguf"),
    ("a file outside", b'{"files": {"../x": "00", "model.gguf": "00"}}', "lists '../x'"),
    ("a short hash", b'{"files": {"model.gguf": "00"}}', "SHA-256 '00', it must be 64 hex digits"),
    ("a path", b'{"files": {"a/b": "00", "model.gguf": "00"}}', "lists 'a/b'"),
    ("a number for a hash", b'{"files": {"model.gguf": 5}}', "SHA-256 5, it must be 64 hex digits"),
    ("too long", b" " * (2**20 + 1), "manifest.json: it is larger than 1 MiB"),
]


@pytest.mark.parametrize(("raw", "message"), [r[1:] for r in WRONG_MANIFESTS], ids=[r[0] for r in WRONG_MANIFESTS])
def test_a_wrong_manifest_is_refused(folder, raw, message):
    (folder / "manifest.json").write_bytes(raw)
    with pytest.raises(FormatError, match=message):
        open_bundle(folder)


def test_what_is_not_a_model_is_refused(tmp_path):
    with pytest.raises(FormatError, match="No such file"):
        open_bundle(tmp_path / "nowhere.gguf")
    write_gguf(tmp_path / "lora.gguf", "llama", {"general.type": "adapter"}, {})
    with pytest.raises(UnsupportedError, match=r"general.type 'adapter'"):
        open_bundle(tmp_path / "lora.gguf")


def test_a_checkpoint_is_refused_with_the_command_that_makes_a_bundle(tmp_path, monkeypatch):
    checkpoint = tmp_path / "SmolLM2"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}")
    (checkpoint / "model.safetensors").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    way_out = "make one on a laptop: edgetune compress {} -o {}.edge"
    for given, source in ((checkpoint, checkpoint), (checkpoint / "model.safetensors", checkpoint),
                          ("SmolLM2", "SmolLM2")):
        with pytest.raises(UnsupportedError) as error:
            open_bundle(given)
        assert error.value.hint == way_out.format(source, "SmolLM2")
    with pytest.raises(UnsupportedError) as error:
        open_bundle("HuggingFaceTB/SmolLM2")
    assert error.value.hint.startswith("edgetune compress HuggingFaceTB/SmolLM2 -o SmolLM2.edge makes a model")
    with pytest.raises(UnsupportedError, match="edgetune compress"):
        bundles.open_folder(checkpoint)
    for name in ("models/a.gguf", "models/a.edge", "model.gguf"):
        with pytest.raises(FormatError, match="No such file"):
            open_bundle(name)


# ---- written ----


@pytest.fixture
def empty(tmp_path):
    (tmp_path / "new.edge").mkdir()
    return tmp_path / "new.edge"


def test_what_is_written_opens(empty, tiny_llama):
    shutil.copy(tiny_llama, empty / "model.gguf")
    (empty / "report.html").write_text("<p>")
    said = bundles.write_manifest(empty, {"source": {"name": "tiny"}})
    assert open_bundle(empty).manifest == said == bundles.open_folder(empty)
    assert said["format"] == "gguf"
    assert said["edgetune"] == edgetune.__version__
    assert said["files"] == {name: digest(empty / name) for name in ("model.gguf", "report.html")}
    assert said["sizes"] == {"model.gguf": tiny_llama.stat().st_size, "report.html": 3}


def test_the_same_facts_give_the_same_bytes_wherever_and_whenever(empty, tiny_llama):
    shutil.copy(tiny_llama, empty / "model.gguf")
    facts = {"b": 0.1, "a": {"y": np.float32(0.5), "x": np.int64(3)}, "options": {"calibrate": "/home/me/text.txt"}}
    same = {"options": {"calibrate": "/other/text.txt"}, "a": {"x": 3, "y": 0.5}, "b": np.float64(0.1)}
    written = []
    for given in (facts, same):
        bundles.write_manifest(empty, given)
        written.append((empty / "manifest.json").read_bytes())
    assert written[0] == written[1]
    assert written[0].endswith(b"}\n")
    assert b"home" not in written[0]
    assert str(empty.parent).encode() not in written[0]


def test_what_is_no_number_is_null(empty, tiny_llama):
    shutil.copy(tiny_llama, empty / "model.gguf")
    said = bundles.write_manifest(empty, {"cost": {"kl": float("nan"), "perplexity": np.float32("inf")}})
    assert said["cost"] == {"kl": None, "perplexity": None}
    assert json.loads((empty / "manifest.json").read_bytes()) == said
    with pytest.raises(ValueError, match="the limit is 1048576"):
        bundles.write_manifest(empty, {"much": "x" * 2**20})
    assert open_bundle(empty).manifest == said


def test_onnx_is_opened_as_a_folder_and_named_where_a_gguf_is_needed(empty, tiny_llama):
    shutil.copy(tiny_llama, empty / "tokenizer.gguf")
    (empty / "model.onnx").write_bytes(b"onnx")
    said = bundles.write_manifest(empty, {})
    assert said["format"] == "onnx"
    assert bundles.open_folder(empty) == said
    with pytest.raises(UnsupportedError, match=r"an ONNX model, here a GGUF is needed; .* edgetune generate .*edge"):
        open_bundle(empty)
    (empty / "model.onnx").write_bytes(b"onno")
    with pytest.raises(FormatError, match=r"model.onnx has the SHA-256"):
        bundles.open_folder(empty)


@pytest.mark.parametrize(("change", "message"), [
    ({"format": "pickle"}, "is of the format 'pickle'; edgetune opens gguf and onnx"),
    ({"format": ["gguf"]}, "is of the format"),
    ({"format": "onnx"}, "lists no model.onnx"),
])
def test_another_format_is_refused(empty, tiny_llama, change, message):
    shutil.copy(tiny_llama, empty / "model.gguf")
    said = bundles.write_manifest(empty, {})
    (empty / "manifest.json").write_text(json.dumps(said | change))
    with pytest.raises((UnsupportedError, FormatError), match=message):
        open_bundle(empty)


def test_other_files_in_the_folder_are_left_alone(folder):
    (folder / "unknown.txt").write_text("not in the manifest")
    (folder / "adapter").mkdir()
    assert "unknown.txt" not in open_bundle(folder).manifest["files"]


@pytest.mark.parametrize("name", ["..", ".", "", "../model.gguf", "/etc/passwd", "a\nb", "a\0b", "x" * 300])
def test_names_that_are_no_files_of_the_folder_are_refused(folder, name):
    write_manifest(folder, {"model.gguf": digest(folder / "model.gguf"), name: "0" * 64})
    with pytest.raises(FormatError):
        open_bundle(folder)


def test_a_link_is_taken_for_what_it_points_to(folder, tmp_path):
    shutil.move(folder / "notes.txt", tmp_path / "elsewhere.txt")
    (folder / "notes.txt").symlink_to(tmp_path / "elsewhere.txt")
    assert open_bundle(folder).manifest
    (tmp_path / "elsewhere.txt").write_text("changed")
    with pytest.raises(FormatError, match=r"notes.txt has the SHA-256"):
        open_bundle(folder)


@pytest.fixture
def slot(tmp_path):
    return write_slot(write_tiny(tmp_path / "one.gguf"), tmp_path / "home")


def test_the_side_of_the_link_is_opened(slot, tmp_path):
    other = write_tiny(tmp_path / "two.gguf", seed=1)
    assert open_bundle(slot.path).fingerprint == open_bundle(tmp_path / "one.gguf").fingerprint
    assert (slot.side, slot.other, slot_of(tmp_path), slot_of(slot.path)) == ("a", "b", None, slot)
    with slot.filled("b") as beside:
        write_copy(open_bundle(other), beside)
        assert not slot.folder("b").exists()
    slot.switch("b")
    assert open_bundle(slot.path).fingerprint == open_bundle(other).fingerprint
    assert (slot.side, slot.other) == ("b", "a")
    with pytest.raises(ValueError, match="opens its side b"):
        slot.clear("b")
    slot.clear("a")
    slot.clear("a")
    assert sorted(path.name for path in slot.path.iterdir()) == ["b", "current"]


def test_a_side_that_was_broken_off_is_none_and_is_made_again(slot):
    with pytest.raises(KeyboardInterrupt), slot.filled("b"):
        raise KeyboardInterrupt
    assert not slot.folder("b").exists()
    for left in ("b.1.tmp", "b.gone.tmp", "b"):  # of kills
        (slot.path / left).mkdir()
        (slot.path / left / "model.gguf").write_text("half")
    with slot.filled("b") as beside:
        (beside / "new").touch()
    assert sorted(path.name for path in slot.path.iterdir()) == ["a", "b", "current"]
    assert [path.name for path in slot.folder("b").iterdir()] == ["new"]


def test_what_is_no_slot_is_refused(slot, tmp_path):
    (slot.path / "current").unlink()
    (slot.path / "current").symlink_to("../elsewhere")
    with pytest.raises(FormatError, match="it must lead to a or b"):
        open_bundle(slot.path)
    with pytest.raises(FormatError, match="cannot be read"):
        _ = Slot(tmp_path).side


def test_a_bare_file_becomes_a_bundle_that_its_key_signs(tmp_path, monkeypatch):
    forms = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    key = Ed25519PrivateKey.generate()
    (tmp_path / "key").write_bytes(key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8,
                                                     forms.NoEncryption()))
    (tmp_path / "trusted").mkdir()
    (tmp_path / "trusted" / "key.pub").write_bytes(key.public_key().public_bytes(forms.Encoding.OpenSSH,
                                                                                 forms.PublicFormat.OpenSSH))
    bundle = open_bundle(write_tiny(tmp_path / "one.gguf"))
    for name, signed_by in (("signed", tmp_path / "key"), ("bare", None)):
        (tmp_path / name).mkdir()
        write_copy(bundle, tmp_path / name, signed_by)
    monkeypatch.setenv(TRUSTED, str(tmp_path / "trusted"))
    assert open_bundle(tmp_path / "signed").fingerprint == bundle.fingerprint
    (tmp_path / "again").mkdir()
    write_copy(open_bundle(tmp_path / "signed"), tmp_path / "again")
    assert open_bundle(tmp_path / "again").manifest == open_bundle(tmp_path / "signed").manifest
    with pytest.raises(MismatchError, match="is not signed"):
        open_bundle(tmp_path / "bare")
