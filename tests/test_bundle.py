"""Bundles: a folder with a manifest, or a bare GGUF; a file that is not what the manifest says is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from edgetune.bundle import open_bundle
from edgetune.errors import FormatError, UnsupportedError
from edgetune.gguf import fingerprint, open_gguf, write_gguf


@pytest.fixture
def folder(tmp_path: Path, tiny_llama: Path) -> Path:
    folder = tmp_path / "tiny.edge"
    folder.mkdir()
    shutil.copy(tiny_llama, folder / "model.gguf")
    (folder / "notes.txt").write_text("made for a test")
    write_manifest(folder, {name: digest(folder / name) for name in ("model.gguf", "notes.txt")})
    return folder


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_manifest(folder: Path, files: object) -> None:
    (folder / "manifest.json").write_text(json.dumps({"files": files, "source": "tiny"}))


def test_a_bare_file_is_a_bundle(tiny_llama: Path) -> None:
    bundle = open_bundle(tiny_llama)
    assert bundle.path == bundle.gguf.path == tiny_llama
    assert bundle.manifest is None
    assert bundle.fingerprint == fingerprint(open_gguf(tiny_llama))


def test_a_folder_is_a_bundle_of_the_same_model(folder: Path, tiny_llama: Path) -> None:
    bundle = open_bundle(str(folder))
    assert bundle.path == folder
    assert bundle.gguf.path == folder / "model.gguf"
    assert bundle.manifest is not None
    assert bundle.manifest["source"] == "tiny"
    assert bundle.fingerprint == open_bundle(tiny_llama).fingerprint


@pytest.mark.parametrize("name", ["model.gguf", "notes.txt"])
def test_one_changed_bit_in_any_file_is_refused(folder: Path, name: str) -> None:
    raw = bytearray((folder / name).read_bytes())
    wanted = digest(folder / name)
    raw[len(raw) // 2] ^= 1
    (folder / name).write_bytes(raw)
    found = digest(folder / name)
    with pytest.raises(FormatError, match=f"{name} has the SHA-256 {found}, the manifest says {wanted}"):
        open_bundle(folder)


def test_a_missing_file_is_refused(folder: Path) -> None:
    (folder / "notes.txt").unlink()
    with pytest.raises(FormatError, match=r"notes.txt is missing, but the manifest lists it; copy"):
        open_bundle(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(FormatError, match=r"manifest.json: No such file.*a bundle has model.gguf and manifest.json"):
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
    ("too long", b" " * (2**20 + 1), "has 1048577 bytes, allowed are 1048576"),
]


@pytest.mark.parametrize(("raw", "message"), [r[1:] for r in WRONG_MANIFESTS], ids=[r[0] for r in WRONG_MANIFESTS])
def test_a_wrong_manifest_is_refused(folder: Path, raw: bytes, message: str) -> None:
    (folder / "manifest.json").write_bytes(raw)
    with pytest.raises(FormatError, match=message):
        open_bundle(folder)


def test_what_is_not_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="No such file"):
        open_bundle(tmp_path / "nowhere.gguf")
    write_gguf(tmp_path / "lora.gguf", "llama", {"general.type": "adapter"}, {})
    with pytest.raises(UnsupportedError, match=r"general.type 'adapter'"):
        open_bundle(tmp_path / "lora.gguf")
