"""What is opened, from where: folders, the hub (one that this test serves), GGUFs and bundles, with their facts."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from checkpoints import byte_level, edit, write_folder
from families import make_family
from huggingface_hub import constants
from huggingface_hub.utils import reset_sessions
from tiny import write_tiny

from edgetune.compress.source import convert, floats
from edgetune.compress.source.source import open_source
from edgetune.errors import FormatError, UnsupportedError, UsageError
from edgetune.formats.gguf import fingerprint, open_gguf

COMMIT = "0123456789abcdef0123456789abcdef01234567"
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


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download asks for; `files` by name, `refusal` (status, code) instead."""

    files: dict
    refusal = None
    asked: list

    def do_GET(self):
        if self.refusal:
            return self.answer(b"{}", self.refusal[0], {"X-Error-Code": self.refusal[1]})
        if self.path.startswith("/api/models/maker/tiny/revision/"):
            listing = {"id": "maker/tiny", "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.files]}
            return self.answer(json.dumps(listing).encode(), 200, {"Content-Type": "application/json"})
        name = self.path.partition(f"/maker/tiny/resolve/{COMMIT}/")[2]
        self.asked.append(name)
        content = self.files[name]
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        return self.answer(content, 200, {"ETag": etag, "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    def answer(self, content, status, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    """The class whose server the library takes for the hub, with an empty cache."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()} | EXTRA
    served = type("Served", (Hub,), {"files": files, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), served)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    reset_sessions()
    yield served
    reset_sessions()
    server.shutdown()
    thread.join()
    server.server_close()


def go_offline(monkeypatch):
    """As HF_HUB_OFFLINE=1 does at the start."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    reset_sessions()


def test_a_hub_id_and_then_its_local_copy(hub, folder, monkeypatch):
    source = open_source("maker/tiny")
    assert (source.kind, source.name, source.revision, source.licence) == ("hub", "maker/tiny", COMMIT, "mit")
    assert source.floats.metadata["general.name"] == "tiny"
    assert same(source.floats.tensors, convert.convert(folder).tensors)
    assert set(hub.asked) == set(hub.files) - set(EXTRA)  # and nothing else
    hub.asked.clear()
    go_offline(monkeypatch)
    assert open_source("maker/tiny").fingerprint == source.fingerprint
    assert open_source(str(source.path)).revision == COMMIT  # the cache's folder, named as such
    assert not hub.asked


def test_offline_says_what_to_do(hub, monkeypatch):
    go_offline(monkeypatch)
    with pytest.raises(UsageError, match=r"hub cannot be reached for maker/tiny, and its local cache has no copy; "
                                         r"download https://huggingface.co/maker/tiny where it can be had and name"):
        open_source("maker/tiny")
    assert not hub.asked


def test_without_a_network_too(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(UsageError, match="cannot be reached for maker/tiny"):
        open_source("maker/tiny")
    assert not hub.asked


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
