"""Models by name: pulled by huggingface-hub from a hub of this machine, checked, put into place, and opened by name."""

import hashlib
import json
import sys
from pathlib import Path

import pytest
from commands import run
from encoders import WORDS, tiny_bert, write_checkpoint
from hubs import COMMIT, REPO, Hub, serving
from huggingface_hub import constants
from tiny import write_tiny

import edgetune
from edgetune.errors import EdgetuneError, FormatError, NotFoundError, UnsupportedError, UsageError
from edgetune.formats import named
from edgetune.formats.bert import write_bert
from edgetune.formats.named import find_model, name_of
from edgetune.hub import pull

NAME = f"hf:{REPO}:sub/tiny.Q8_0.gguf"
CHUNK = 1 << 14


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)  # what arrives whole is kept
    content = write_tiny(tmp_path / "tiny.gguf", formats="Q8_0").read_bytes()
    assert len(content) > 4 * CHUNK
    with serving(Hub({"README.md": b"# hi", "sub/tiny.Q8_0.gguf": content})) as made:
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        yield made


def cached():
    """The files of the cache, but for those of the library."""
    folder = named.cache_folder()
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_model_is_pulled_once_and_opened_by_its_name(hub):
    with pytest.raises(NotFoundError, match=f"edgetune pull {NAME}"):
        edgetune.open_bundle(NAME)
    told = []
    found = pull(NAME, lambda *done: told.append(done))
    content = hub.files["sub/tiny.Q8_0.gguf"]
    assert {(what, total) for what, _, total in told} == {("downloading", len(content))}
    assert 0 <= told[0][1] <= told[-1][1] <= len(content)
    assert found.downloaded
    assert name_of(Path(found.path)) == NAME
    assert (found.bytes, found.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert (found.licence, found.revision) == ("mit", COMMIT)
    assert Path(found.path).read_bytes() == content
    assert cached() == {f"{REPO}/sub/tiny.Q8_0.gguf", f"{REPO}/sub/tiny.Q8_0.gguf.json"}
    assert edgetune.open_bundle(NAME).path == Path(found.path)
    gets = len(hub.gets)
    again = pull(NAME)
    assert (again.downloaded, again.sha256, again.licence) == (False, found.sha256, "mit")
    assert len(hub.gets) == gets
    with edgetune.Served(NAME, threads=1) as served:
        assert "".join(served.generate("the", max_tokens=2))


def test_the_only_gguf_need_not_be_named(hub):
    assert pull(f"hf:{REPO}").name == NAME
    hub.files["other.gguf"] = b""
    with pytest.raises(UsageError, match=r"2 GGUF files.*sub/tiny\.Q8_0\.gguf, other\.gguf"):
        pull(f"hf:{REPO}")


def test_a_download_that_broke_off_continues(hub):
    hub.breaks = 3 * CHUNK + 5
    with pytest.raises(EdgetuneError, match="the same command continues"):
        pull(NAME)
    with pytest.raises(NotFoundError):
        find_model(NAME)
    found = pull(NAME)
    assert hub.gets == [("sub/tiny.Q8_0.gguf", None), ("sub/tiny.Q8_0.gguf", f"bytes={3 * CHUNK}-")]
    assert found.sha256 == hashlib.sha256(hub.files["sub/tiny.Q8_0.gguf"]).hexdigest()
    assert not (named.cache_folder() / ".partial").exists() or not any((named.cache_folder() / ".partial").iterdir())


@pytest.mark.parametrize("damage", ["hash", "no gguf", "cut"])
def test_what_is_not_as_it_should_be_leaves_nothing(hub, damage):
    content = hub.files["sub/tiny.Q8_0.gguf"]
    if damage == "hash":
        hub.digest = "0" * 64
    else:
        hub.files["sub/tiny.Q8_0.gguf"] = content[:-100] if damage == "cut" else b"#!/bin/sh\n" * 99
    with pytest.raises(FormatError, match="nothing of it is kept") as refused:
        pull(NAME)
    assert str(named.cache_folder()) not in str(refused.value)
    assert cached() == set()


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """The hub with an encoder's checkpoint in the place of multilingual-e5-small's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
    folder = write_checkpoint(tmp_path / "m", tiny_bert(), WORDS)
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with serving(Hub({**files, "onnx/model.onnx": b"not wanted"}, repo="intfloat/multilingual-e5-small")) as made:
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        yield made, folder


def test_a_checkpoint_becomes_a_file_also_after_a_break(checkpoint, tmp_path):
    hub, folder = checkpoint
    hub.breaks = 10
    with pytest.raises(EdgetuneError, match="is not downloaded"):
        pull("multilingual-e5-small")
    told = []
    found = pull("multilingual-e5-small", lambda *done: told.append(done))
    assert [done for what, done, _ in told if what == "converting"] == [0, 1]
    write_bert(tmp_path / "m.gguf", folder, "Q8_0", {"general.name": "multilingual-e5-small", "general.license": "mit"})
    assert Path(found.path).read_bytes() == (tmp_path / "m.gguf").read_bytes()
    assert find_model("multilingual-e5-small") == Path(found.path)
    assert found.sha256 == hashlib.sha256((tmp_path / "m.gguf").read_bytes()).hexdigest()
    assert (found.licence, found.revision, found.name) == ("mit", COMMIT, "multilingual-e5-small")
    assert {name for name, _ in hub.gets} == {"config.json", "modules.json", "1_Pooling/config.json", "tokenizer.json",
                                              "tokenizer_config.json", "model.safetensors"}
    assert cached() == {f"{hub.repo}/multilingual-e5-small-Q8_0.gguf",
                        f"{hub.repo}/multilingual-e5-small-Q8_0.gguf.json"}
    assert not pull("multilingual-e5-small").downloaded


@pytest.mark.parametrize("damage", ["hash", "model_type"])
def test_a_checkpoint_that_is_not_as_it_should_be_leaves_nothing(checkpoint, damage):
    hub, _ = checkpoint
    if damage == "hash":
        hub.digest = "0" * 64
    else:
        hub.files["config.json"] = json.dumps({"model_type": "deberta"}).encode()
    with pytest.raises((FormatError, UnsupportedError), match="nothing of it is kept") as refused:
        pull("multilingual-e5-small")
    assert str(named.cache_folder()) not in str(refused.value)
    assert cached() == set()


@pytest.mark.parametrize("name", ["hf:some/none:a.gguf", f"hf:{REPO}:none.gguf", "nosuch"])
@pytest.mark.usefixtures("hub")
def test_what_does_not_exist_is_said(name):
    with pytest.raises(NotFoundError, match=r"none|nosuch"):
        pull(name)
    assert cached() == set()


@pytest.mark.parametrize("name", ["hf:", "hf:a", "hf:a/b:../c.gguf", "hf:a/b:/etc/x.gguf", "hf:../b:c.gguf",
                                  "hf:a/b:c.bin", "hf:a/..:c.gguf"])
def test_names_stay_within_the_cache(name):
    with pytest.raises(UsageError, match="name it hf:ORG/REPO:FILE"):
        find_model(name)


@pytest.mark.usefixtures("hub")
def test_without_its_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(EdgetuneError, match=r"install the extra hub"):
        pull(NAME)


def test_the_demonstrations_model_needs_no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    found = pull("smollm2")
    assert (found.licence, found.downloaded) == ("apache-2.0", False)
    assert find_model("SmolLM2") == Path(found.path)
    assert (name_of(Path(found.path)), name_of(tmp_path)) == ("smollm2", str(tmp_path))
    (tmp_path / "smollm2").touch()
    assert find_model("smollm2") == Path("smollm2")  # a file of that name comes first


@pytest.mark.usefixtures("hub")
def test_terms_that_limit_a_models_use_are_said(monkeypatch):
    assert "LFM Open License" in named.terms_of("lfm2-350m")
    assert named.terms_of("hf:LiquidAI/LFM2-350M-GGUF:LFM2-350M-Q4_K_M.gguf") == named.LFM
    assert named.terms_of("qwen3-0.6b") == named.terms_of("smollm2") == ""
    tiny = named.HubFile(REPO, "sub/tiny.Q8_0.gguf", "on Sundays alone")
    monkeypatch.setattr(named, "KNOWN", {**named.KNOWN, "tiny": tiny})
    assert "terms, as far as edgetune knows: on Sundays alone" in run("pull", "tiny")
    assert name_of(Path(pull("tiny").path)) == "tiny"


@pytest.mark.usefixtures("hub")
def test_the_commands(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "on", "completion": "off"}\n' * 3)
    assert f"edgetune pull {NAME}" in run("plan", NAME, code=1)
    assert json.loads(run("pull", NAME, "--json"))["sha256"] in run("pull", NAME)
    listed = json.loads(run("models", "--json"))["models"]
    assert [model["name"] for model in listed if model["licence"] == "mit"] == [NAME]
    run("train", NAME, rows, "-o", tmp_path / "out", "--steps", 1, "--eval", "none", "--max-length", 32, "--threads", 1)
    assert json.loads((tmp_path / "out/run.json").read_text())["base"]["path"] == str(find_model(NAME))
    assert "compress" in run("train", "some/checkpoint", rows, "-o", tmp_path / "no", code=1)
