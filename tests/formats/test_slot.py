"""A slot: what opens a model opens its base, and a side is whole or not there."""

from __future__ import annotations

import pytest
from slot_folders import write_slot
from tiny import write_tiny

from edgetune.errors import FormatError, MismatchError
from edgetune.formats.bundle import open_bundle, write_copy
from edgetune.formats.signature import TRUSTED
from edgetune.formats.slot import Slot, slot_of


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
