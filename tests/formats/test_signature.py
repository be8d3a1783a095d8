"""Signed bundles: what ssh-keygen and openssl make is taken, and whatever was changed, left out or signed by another is
refused. The signature itself is compared with openssl's where openssl is there.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from tiny import write_tiny

from edgetune.cli.info import describe
from edgetune.errors import EdgetuneError, FormatError, MismatchError, UnsupportedError, UsageError
from edgetune.formats import bundle, signature
from edgetune.formats.bundle import open_bundle, open_folder, signer, write_manifest
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.serving.llama import LlamaModel
from edgetune.training.trainer import Trainer

pytest.importorskip("cryptography")

from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PEM = ser.PrivateFormat.PKCS8
SSH = ser.PrivateFormat.OpenSSH
FACTS = {"source": {"name": "tiny", "licence": "apache-2.0"}, "steps": [
    {"name": "quantize", "weights": 5, "cost": {"perplexity": 21.5, "kl": 0.012345, "tokens": 9}}]}


@pytest.fixture(autouse=True)
def config(tmp_path, monkeypatch):
    """The folder of trusted keys, still empty."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv(signature.TRUSTED, raising=False)
    folder = tmp_path / "config" / "edgetune" / "trusted"
    folder.mkdir(parents=True)
    return folder


def key(seed=1):
    return Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)


def write_key(path, made, form=PEM, passphrase=b""):
    lock = ser.BestAvailableEncryption(passphrase) if passphrase else ser.NoEncryption()
    path.write_bytes(made.private_bytes(ser.Encoding.PEM, form, lock))
    return path


def trust(folder, made, name="maker", ssh=True):
    form = ((ser.Encoding.OpenSSH, ser.PublicFormat.OpenSSH) if ssh
            else (ser.Encoding.PEM, ser.PublicFormat.SubjectPublicKeyInfo))
    (folder / f"{name}.pub").write_bytes(made.public_key().public_bytes(*form))


def make(folder, model, by=None):
    folder.mkdir(parents=True)
    shutil.copy(model, folder / "model.gguf")
    (folder / "report.html").write_text("<!doctype html>")
    write_manifest(folder, FACTS)
    if by is not None:
        signature.sign(folder / "manifest.json", by)
    return folder


@pytest.fixture
def signed(tmp_path, tiny_llama):
    return make(tmp_path / "signed.edge", tiny_llama, key())


# ---- making and believing ----


@pytest.mark.parametrize("form", [PEM, SSH], ids=["openssl", "ssh-keygen"])
def test_keys_as_common_tools_make_them(tmp_path, form):
    read = signature.private_key(write_key(tmp_path / "key", key(), form))
    assert read.private_bytes_raw() == key().private_bytes_raw()


def test_a_locked_key_takes_its_passphrase_from_the_environment(tmp_path, monkeypatch):
    path = write_key(tmp_path / "key", key(), PEM, b"open sesame")
    with pytest.raises(UsageError, match="the passphrase of a locked key is taken from EDGETUNE_PASSPHRASE"):
        signature.private_key(path)
    monkeypatch.setenv(signature.PASSPHRASE, "wrong")
    with pytest.raises(UsageError, match="no private key that can be used"):
        signature.private_key(path)
    monkeypatch.setenv(signature.PASSPHRASE, "open sesame")
    assert signature.private_key(path).private_bytes_raw() == key().private_bytes_raw()
    assert signature.private_key(write_key(tmp_path / "open", key(), SSH)).private_bytes_raw() == b"\1" * 32


def test_what_is_no_key_is_refused(tmp_path):
    (tmp_path / "text").write_text("not a key")
    (tmp_path / "long").write_bytes(b"-" * 20_000)
    write_key(tmp_path / "rsa", rsa.generate_private_key(65537, 2048))
    for name, words in (("text", "make one with ssh-keygen"), ("rsa", "another kind than Ed25519"),
                        ("none", "No such file"), ("long", "larger than 16 KiB")):
        with pytest.raises(UsageError, match=words):
            signature.private_key(tmp_path / name)


def test_openssl_takes_the_signature_for_one_of_the_manifest(signed, tmp_path):
    if not (openssl := shutil.which("openssl")):
        pytest.skip("needs openssl")
    said = json.loads((signed / "manifest.sig").read_bytes())
    (tmp_path / "raw").write_bytes(bytes.fromhex(said["signature"]))
    trust(tmp_path, key(), ssh=False)
    done = subprocess.run([openssl, "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", tmp_path / "maker.pub", "-in",
                           signed / "manifest.json", "-sigfile", tmp_path / "raw"], capture_output=True, text=True)
    assert "Verified Successfully" in done.stdout, done.stderr


@pytest.mark.parametrize("ssh", [True, False])
def test_signed_by_a_trusted_key(signed, config, ssh):
    public = key().public_key().public_bytes_raw().hex()
    assert signer(signed) == signature.Signer(public, "")
    trust(config, key(2), "other")
    trust(config, key(), "maker", ssh)
    assert open_bundle(signed).manifest == open_folder(signed)
    assert signer(signed) == signature.Signer(public, "maker")


def test_info_says_how_it_was_made_and_who_signed_it(signed, config):
    (signed / "notes.txt").write_text("mine")
    said = describe(signed)
    assert (said["kind"], said["format"], said["source"], said["licence"]) == ("bundle", "gguf", "tiny", "apache-2.0")
    assert said["steps"] == [{"name": "quantize", "weights": 5, "perplexity": 21.5, "kl": 0.0123}]
    assert said["files"] == ["model.gguf", "report.html"]
    assert said["not_in_manifest"] == ["notes.txt"]
    assert said["architecture"] == "llama"
    assert said["signature"].endswith("no key is trusted here")
    trust(config, key())
    assert said["signature"].split(",")[0] == f"by {key().public_key().public_bytes_raw().hex()}"
    assert describe(signed)["signature"].endswith("trusted here as maker")
    trust(config, key(2))
    with pytest.raises(MismatchError, match="which is no key in"):
        describe(signed)


@pytest.mark.parametrize("facts", [
    {"source": 5, "steps": "x", "cost": []}, {"steps": [1, {"name": ["x"], "weights": "many", "cost": {"kl": "low"}}]},
    {"source": {"name": "a\x1b[2Jb", "licence": None}, "edgetune": {}}], ids=["kinds", "steps", "words"])
def test_info_takes_a_strange_manifest(tmp_path, tiny_llama, facts):
    folder = make(tmp_path / "x.edge", tiny_llama)
    said = json.loads((folder / "manifest.json").read_bytes())
    (folder / "manifest.json").write_text(json.dumps(said | facts))
    shown = describe(folder)
    assert shown["signature"] == "not signed"
    assert "\x1b" not in json.dumps(shown, ensure_ascii=False)


def test_info_of_onnx(tmp_path, tiny_llama):
    folder = make(tmp_path / "x.edge", tiny_llama)
    (folder / "model.gguf").rename(folder / "tokenizer.gguf")
    (folder / "model.onnx").write_bytes(b"onnx")
    write_manifest(folder, FACTS)
    said = describe(folder)
    assert said["format"] == "onnx"
    assert said["bytes"] == sum(path.stat().st_size for path in folder.iterdir() if path.name != "manifest.json")


# ---- refused ----


@examples(60)
@given(data=st.data())
def test_one_flipped_bit_anywhere_is_refused(signed, data):
    """In the signature's file too, unless JSON reads the same signature still (a space that became another)."""
    path = data.draw(st.sampled_from(sorted(signed.iterdir())))
    raw = path.read_bytes()
    place = data.draw(st.integers(0, len(raw) - 1))
    bit = data.draw(st.integers(0, 7))
    changed = bytearray(raw)
    changed[place] ^= 1 << bit
    path.write_bytes(changed)
    try:
        open_bundle(signed)
        opened = True
    except EdgetuneError:
        opened = False
    finally:
        path.write_bytes(raw)
    assert not opened or (path.name == "manifest.sig" and json.loads(bytes(changed)) == json.loads(raw))


def test_a_changed_manifest_is_refused_before_it_is_read(signed):
    (signed / "manifest.json").write_text('{"files": ')
    with pytest.raises(FormatError, match=r"manifest.sig is not the signature of the manifest next to it; copy"):
        open_bundle(signed)


WRONG_SIGNATURES = [
    ("empty", b""), ("not JSON", b"ed25519"), ("a list", b"[]"), ("deep", b"[" * 10_000), ("nothing", b"{}"),
    ("another algorithm", {"algorithm": "none"}), ("no key", {"public_key": None}), ("short", {"signature": "00"}),
    ("numbers", {"public_key": 5}), ("capitals", {"signature": "A" * 128}), ("no text", b"\xff" * 9),
]


@pytest.mark.parametrize("change", [row[1] for row in WRONG_SIGNATURES], ids=[row[0] for row in WRONG_SIGNATURES])
def test_what_is_no_signature_is_refused(signed, change):
    file = signed / "manifest.sig"
    said = json.loads(file.read_bytes())
    file.write_bytes(change if isinstance(change, bytes) else json.dumps(said | change).encode())
    with pytest.raises(FormatError, match="is no Ed25519 signature"):
        open_bundle(signed)


def test_another_key_no_signature_or_a_bare_file_is_refused(signed, config, tiny_llama):
    trust(config, key(2))
    public = key().public_key().public_bytes_raw().hex()
    with pytest.raises(MismatchError, match=rf"signed by {public}, which is no key in {config}; put the signer's"):
        open_bundle(signed)
    (signed / "manifest.sig").unlink()
    with pytest.raises(MismatchError, match=r"signed.edge is not signed, and only .* --sign KEY"):
        open_bundle(signed)
    for path in (tiny_llama, signed / "model.gguf"):
        with pytest.raises(MismatchError, match=r"is no bundle's folder, and only bundles that a key in"):
            open_bundle(path)
    shutil.rmtree(signed)
    shutil.copy(tiny_llama, signed)  # a file in the folder's place
    with pytest.raises(MismatchError, match="is no bundle's folder"):
        open_bundle(signed)


def test_a_folder_of_keys_that_is_named_must_have_one(signed, tmp_path, monkeypatch):
    monkeypatch.setenv(signature.TRUSTED, str(tmp_path / "keys"))
    for make_folder in (False, True):
        if make_folder:
            (tmp_path / "keys").mkdir()
        with pytest.raises(MismatchError, match=f"which is no key in {tmp_path / 'keys'}"):
            open_bundle(signed)
    trust(tmp_path / "keys", key())
    assert signer(signed).name == "maker"


def test_keys_that_cannot_be_read_refuse_everything(signed, config, tiny_llama):
    for write, words in ((lambda p: p.write_text("ssh-ed25519 AAAA"), "holds no public key"),
                         (lambda p: p.write_text(""), "holds no public key"),
                         (lambda p: p.symlink_to("nowhere"), "cannot read .*x.pub"),
                         (lambda p: trust(p.parent, rsa.generate_private_key(65537, 2048), "x"), "another kind")):
        write(config / "x.pub")
        for path in (signed, tiny_llama):
            with pytest.raises(UsageError, match=words):
                open_bundle(path)
        (config / "x.pub").unlink()
    config.rmdir()
    config.write_text("a file")
    with pytest.raises(UsageError, match="cannot read the folder of trusted keys"):
        open_bundle(signed)


def test_without_cryptography(signed, config, tmp_path, tiny_llama, monkeypatch):
    plain = make(tmp_path / "plain.edge", tiny_llama)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    assert open_bundle(plain).manifest
    with pytest.raises(UnsupportedError, match=r"manifest.sig cannot be .*; install the extra hub"):
        open_bundle(signed)
    (config / "maker.pub").write_text("ssh-ed25519 AAAA")
    for path in (plain, tiny_llama):
        with pytest.raises(UnsupportedError, match=r"maker.pub cannot be used without"):
            open_bundle(path)


def test_a_pipe_in_place_of_a_file_does_not_hang(signed):
    for name in ("model.gguf", "manifest.sig", "manifest.json"):
        raw = (signed / name).read_bytes()
        (signed / name).unlink()
        os.mkfifo(signed / name)
        with pytest.raises(FormatError):
            open_bundle(signed)
        (signed / name).unlink()
        (signed / name).write_bytes(raw)
    assert open_bundle(signed)


def exchange(old, new):
    """As someone would who may write to the folder: another file of the same name, and of the same times."""
    kept = old.stat()
    os.utime(new, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    new.replace(old)


def test_a_model_exchanged_after_it_was_hashed_is_not_the_one_that_answers(tmp_path, config):
    """Whoever may write to the folder puts another model there between the hash and the open, its times set back; or
    writes into the file itself.
    """
    trust(config, key())
    good, evil = (write_tiny(tmp_path / f"{seed}.gguf", seed=seed) for seed in (1, 2))
    with LlamaModel(good) as alone:
        wanted = alone.logits([5, 6, 7])
    folder = make(tmp_path / "a.edge", good, key())
    opened = open_bundle(folder)
    exchange(folder / "model.gguf", Path(shutil.copy(evil, tmp_path / "copy.gguf")))
    with pytest.raises(FormatError, match="changed after it was opened"), LlamaModel(opened.gguf):
        pass  # its name went: noticed; the descriptor itself still has the signed model
    assert opened.gguf.file.sha256() == opened.manifest["files"]["model.gguf"]
    assert Tokenizer(opened.gguf).n_vocab == 416
    with pytest.raises(MismatchError, match="replaced or removed"):
        Trainer(opened)
    folder = make(tmp_path / "b.edge", good, key())
    opened = open_bundle(folder)
    with LlamaModel(opened.gguf) as served:
        assert np.array_equal(served.logits([5, 6, 7]), wanted)
    raw = evil.read_bytes()
    kept = (folder / "model.gguf").stat()
    with (folder / "model.gguf").open("r+b") as file:
        file.seek(len(raw) // 2)
        file.write(raw[len(raw) // 2:])
    os.utime(folder / "model.gguf", ns=(kept.st_atime_ns, kept.st_mtime_ns))
    with pytest.raises(FormatError, match="changed after it was opened"):
        LlamaModel(opened.gguf)


def test_a_file_that_changes_while_it_is_hashed_is_refused(tmp_path, config, monkeypatch):
    trust(config, key())
    folder = make(tmp_path / "a.edge", write_tiny(tmp_path / "m.gguf"), key())
    hashed = bundle.OpenFile.sha256

    def written_meanwhile(self):
        digest = hashed(self)
        (folder / "model.gguf").write_bytes((folder / "model.gguf").read_bytes())
        return digest

    monkeypatch.setattr(bundle.OpenFile, "sha256", written_meanwhile)
    with pytest.raises(FormatError, match="changed after it was opened"):
        open_bundle(folder)
