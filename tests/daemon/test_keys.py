"""Keys are kept as hashes, in a file that nobody else can change."""

import hashlib
import re
import stat

import pytest

from edgetune.daemon.keys import ClientKey, KeyScope, add_key, default_file, read_keys
from edgetune.errors import DiskError, FormatError, UsageError


def test_keys_are_kept_as_hashes_alone_and_names_are_checked(tmp_path, monkeypatch):
    path = tmp_path / "new" / "keys"
    first = add_key(path, "phone")
    second = add_key(path, "laptop@home")
    assert re.fullmatch(r"et-[A-Za-z0-9_-]{43}", first)  # 32 bytes
    assert first != second
    text = path.read_text()
    assert first not in text
    assert text.splitlines() == [f"sha256:{hashlib.sha256(key.encode()).hexdigest()} {name}"
                                 for key, name in ((first, "phone"), (second, "laptop@home"))]
    assert list(read_keys(path).values()) == [ClientKey(name, KeyScope.ADMIN) for name in ("phone", "laptop@home")]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [p.name for p in path.parent.iterdir()] == ["keys"]
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    tmp_path.chmod(0o755)
    path = tmp_path / "keys"
    assert default_file() == tmp_path / "edgetune" / "keys"
    path.write_text("# who may ask")
    path.chmod(0o600)
    add_key(path, "phone")
    before = path.read_text()
    assert before.startswith("# who may ask\nsha256:")
    for name, words in (("phone", "has a key with the name"), ("a b", "the key's name"), ("", "the key's name"),
                        ("x\ny", "the key's name"), ("phone admin", "the key's name")):
        with pytest.raises(UsageError, match=words):
            add_key(path, name)
    assert path.read_text() == before
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755  # of a folder that is there
    with pytest.raises(DiskError, match="cannot write"):
        add_key(path / "below" / "a-file", "phone")


def test_a_key_has_its_scope_and_that_of_a_line_without_one_is_admin(tmp_path):
    path = tmp_path / "keys"
    for scope in (KeyScope.ANSWER, KeyScope.FEEDBACK, KeyScope.ADMIN):
        add_key(path, f"a-{scope.word}", scope)
    assert [line.split()[1:] for line in path.read_text().splitlines()] == [
        ["a-answer", "answer"], ["a-feedback", "feedback"], ["a-admin"]]
    assert [key.scope for key in read_keys(path).values()] == [KeyScope.ANSWER, KeyScope.FEEDBACK, KeyScope.ADMIN]


@pytest.mark.parametrize(("text", "mode", "kind", "words"), [
    (None, 0, UsageError, "cannot read the key file"),
    ("", 0o600, UsageError, "holds no key"), ("# who may ask", 0o600, UsageError, "holds no key"),
    ("et-secret phone\n", 0o600, FormatError, "line 1 of"),
    ("#\nsha256:12 phone\n", 0o600, FormatError, "line 2 of"),
    (f"sha256:{'a' * 64} phone open\n", 0o600, FormatError, "line 1 of"),
    (f"sha256:{'a' * 64} phone\n", 0o620, UsageError, "others may write"),
])
def test_a_key_file_that_cannot_be_trusted_is_refused(tmp_path, text, mode, kind, words):
    path = tmp_path / "keys"
    if text is not None:
        path.write_text(text)
        path.chmod(mode)
    with pytest.raises(kind, match=words) as caught:
        read_keys(path)
    assert "secret" not in str(caught.value)
