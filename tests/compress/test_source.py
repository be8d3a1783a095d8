"""What is opened, from where: folders, the hub (one that this test serves), GGUFs and bundles, with their facts."""

import hashlib
import json

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from checkpoints import byte_level, edit, write_folder
from families import make_family
from hubs import COMMIT, Hub, serving
from huggingface_hub import constants
from huggingface_hub.utils import reset_sessions
from tiny import write_tiny

from edgetune.compress.source import convert, floats
from edgetune.compress.source.source import open_source
from edgetune.errors import FormatError, UnsupportedError, UsageError
from edgetune.formats.gguf import fingerprint, open_gguf

EXTRA = {"pytorch_model.bin": b"never", "onnx/model.onnx": b"read", "modeling.py": b"raise SystemExit",
         "original/model.safetensors": b"x"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    parent = tmp_path_factory.mktemp("source")
    return write_folder(parent / "tiny", make_family("llama", parent)[1], byte_level(), "---\nlicense: mit\n---\n")


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_a_folder(folder, tmp_path):
    source = open_source(str(folder))
    assert (source.kind, source.name, source.revision, source.licence) == ("folder", "tiny", "", "mit")
    assert source.sha256 == {"model.safetensors": sha256(folder / "model.safetensors")}
    assert not source.quantized
    assert same(source.floats.tensors, convert.convert(folder).tensors)
    assert json.loads(json.dumps(source.to_json()))["fingerprint"] == source.fingerprint
    other = write_folder(tmp_path / "other", make_family("llama", tmp_path)[1], byte_level())
    assert open_source(str(other)).fingerprint == source.fingerprint  # the same model, whatever its folder's name
    changes = {"config.json": {"rms_norm_eps": 1e-6}, "tokenizer_config.json": {"eos_token": "<|endoftext|>"}}
    for file, change in changes.items():
        edit(other / file, change)
        assert open_source(str(other)).fingerprint != source.fingerprint
        edit(other / file, json.loads((folder / file).read_text()))
    assert open_source(str(other)).fingerprint == source.fingerprint


@pytest.mark.parametrize(("formats", "quantized"), [("F32", False), ("F16", False), ({"ffn": "Q4_1"}, True)])
def test_a_gguf(formats, quantized, tmp_path):
    path = write_tiny(tmp_path / "a.gguf", formats=formats, metadata={"general.license": "apache-2.0"})
    source = open_source(str(path))
    assert (source.kind, source.name, source.licence, source.quantized) == ("gguf", "a.gguf", "apache-2.0", quantized)
    assert source.sha256 == {"a.gguf": sha256(path)}
    assert source.fingerprint == fingerprint(open_gguf(path))
    assert same(source.floats.tensors, floats.read(open_gguf(path)).tensors)


def test_a_bundle(tmp_path):
    bundle = tmp_path / "a.edge"
    bundle.mkdir()
    path = write_tiny(bundle / "model.gguf", formats="Q8_0")
    (bundle / "manifest.json").write_text(json.dumps({"files": {"model.gguf": sha256(path)}}))
    source = open_source(str(bundle))
    assert (source.kind, source.name, source.quantized) == ("bundle", "a.edge", True)
    assert source.sha256 == {"model.gguf": sha256(path)}


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    """What the library takes for the hub, with an empty cache."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()} | EXTRA
    with serving(Hub(files, "maker/tiny")) as made:
        monkeypatch.setattr(constants, "ENDPOINT", made.url)
        template = made.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        reset_sessions()
        yield made
        reset_sessions()


def go_offline(monkeypatch):
    """As HF_HUB_OFFLINE=1 does at the start."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    reset_sessions()


def test_a_hub_id_and_then_its_local_copy(hub, folder, monkeypatch):
    source = open_source("maker/tiny")
    assert (source.kind, source.name, source.revision, source.licence) == ("hub", "maker/tiny", COMMIT, "mit")
    assert source.floats.metadata["general.name"] == "tiny"
    assert same(source.floats.tensors, convert.convert(folder).tensors)
    assert {name for name, _ in hub.gets} == set(hub.files) - set(EXTRA)  # and nothing else
    hub.gets.clear()
    go_offline(monkeypatch)
    assert open_source("maker/tiny").fingerprint == source.fingerprint
    assert open_source(str(source.path)).revision == COMMIT  # the cache's folder, named as such
    assert not hub.gets


def test_where_the_hub_cannot_be_reached_it_says_what_to_do(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(UsageError, match="cannot be reached for maker/tiny"):
        open_source("maker/tiny")
    assert not hub.gets
    go_offline(monkeypatch)
    with pytest.raises(UsageError, match=r"hub cannot be reached for maker/tiny, and its local cache has no copy; "
                                         r"download https://huggingface.co/maker/tiny where it can be had and name"):
        open_source("maker/tiny")
    assert not hub.gets


@pytest.mark.parametrize(("refusal", "sentence"), [
    ((401, "RepoNotFound"), "there is no maker/tiny here, and none on the hub that may be read; check the name"),
    ((403, "GatedRepo"), "the hub gives maker/tiny only to those who accepted its terms; accept them there and log in"),
    ((500, ""), "cannot be reached for maker/tiny"),
])
def test_what_the_hub_refuses(refusal, sentence, hub):
    hub.refusal = refusal
    with pytest.raises(UsageError, match=sentence):
        open_source("maker/tiny")


def test_wrong_names(folder, tmp_path):
    with pytest.raises(UsageError, match=r"there is no .*nothing; name a folder, a .gguf file, a bundle, or OWNER"):
        open_source(str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match=r"there is no models/a.gguf"):
        open_source("models/a.gguf")
    with pytest.raises(FormatError, match=r"has neither config.json nor manifest.json; name a checkpoint's folder"):
        open_source(str(tmp_path))
    write_tiny(tmp_path / "a.gguf")
    with pytest.raises(FormatError, match=r"has neither config.json nor manifest.json; name .*a.gguf"):
        open_source(str(tmp_path))
    with pytest.raises(FormatError, match=r"config.json is not a GGUF"):
        open_source(str(folder / "config.json"))


def test_a_gguf_that_edgetune_does_not_compute_is_refused(tmp_path):
    path = write_tiny(tmp_path / "a.gguf", metadata={"llama.attn_logit_softcapping": 30.0})
    with pytest.raises(UnsupportedError, match="attn_logit_softcapping"):
        open_source(str(path))
