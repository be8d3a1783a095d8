"""packaging/mender/edgetune-adapter, called with each state of Mender's protocol, in front of a real daemon."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rollouts import on_device, write_adapters

ROOT = Path(__file__).parents[1]
MODULE = ROOT / "packaging" / "mender" / "edgetune-adapter"


pytestmark = pytest.mark.skipif(shutil.which("sh") is None, reason="there is no sh")


@pytest.fixture(scope="module")
def made(tiny_llama, tmp_path_factory):
    return write_adapters(tiny_llama, tmp_path_factory.mktemp("adapters"))


@pytest.fixture
def running(tiny_llama, tmp_path):
    with on_device(tiny_llama, tmp_path / "device", "on") as running:
        yield running


@pytest.fixture
def call(running, tmp_path):
    """Calls the module as Mender does: with a state and a folder, in that folder."""
    environment = {**os.environ, "EDGETUNE": f"{sys.executable} -m edgetune", "EDGETUNE_URL": running.url,
                   "EDGETUNE_KEY": ""}

    def called(state, folder=tmp_path, code=0, url=running.url):
        done = subprocess.run(["sh", str(MODULE), state, str(folder)], cwd=folder, text=True, capture_output=True,
                              env={**environment, "EDGETUNE_URL": url}, timeout=120)
        assert done.returncode == code, done.stderr
        return done.stdout

    return called


def artifact(folder, adapter, **options):
    """The folder that Mender gives the module: version 3's tree of files."""
    for name in ("files", "header", "tmp"):
        (folder / name).mkdir(parents=True)
    (folder / "version").write_text("3")
    for name in ("adapter.gguf", "run.json"):
        shutil.copyfile(adapter / name, folder / "files" / name)
    if options:
        (folder / "header" / "meta-data").write_text(json.dumps(options))
    return folder


def states(running):
    return sorted(found.state for found in running.service.adapters.list())


@pytest.mark.dev
def test_an_update_that_passes_and_its_rollback(running, call, made, tmp_path):
    assert (call("SupportsRollback"), call("NeedsArtifactReboot")) == ("Yes\n", "No\n")
    assert call("ProvidePayloadFileSizes") == call("SomethingNew") == ""
    folder = artifact(tmp_path / "update", made / "on", probation="2h")
    call("Download", folder)
    assert states(running) == []
    call("ArtifactInstall", folder)
    assert states(running) == ["candidate"]  # nothing changes for users before it is committed
    call("ArtifactInstall", folder)  # it was broken off, and is tried again
    assert states(running) == ["candidate"]
    call("ArtifactCommit", folder)
    assert states(running) == ["serving"]
    [found] = running.service.adapters.list()
    probation = running.service.probations.facts(found)
    assert probation["until"] - probation["since"] == 7200
    call("ArtifactCommit", folder)  # again: it is active
    call("Cleanup", folder)
    call("ArtifactRollback", folder)
    assert states(running) == ["retired"]
    call("ArtifactRollback", folder)
    call("ArtifactFailure", folder)
    assert states(running) == []


@pytest.mark.dev
def test_an_update_that_the_gate_refuses(running, call, made, tmp_path):
    before = running.service.add_adapter(made / "on").id
    running.service.adapters.promote(before, "for the test")
    folder = artifact(tmp_path / "update", made / "off", required="not-worse")
    call("ArtifactInstall", folder)
    call("ArtifactCommit", folder, code=3)
    call("ArtifactRollback", folder)
    call("ArtifactFailure", folder)
    call("Cleanup", folder)
    assert running.service.adapters.serving == before
    assert states(running) == ["serving"]


def test_what_cannot_be_installed(running, call, made, tmp_path):
    folder = artifact(tmp_path / "update", made / "on")
    call("ArtifactInstall", folder, code=1, url="http://127.0.0.1:9")  # no daemon
    (folder / "files" / "adapter.gguf").write_bytes(b"damaged")
    call("ArtifactInstall", folder, code=1)
    call("ArtifactCommit", folder, code=1)
    for state in ("ArtifactRollback", "ArtifactFailure", "Cleanup"):
        call(state, folder)
    assert states(running) == []


def test_the_compose_file_of_balena_is_the_other_one():
    """But for where it is built from, which is the folder that it is copied to."""
    yaml = pytest.importorskip("yaml")
    folder = ROOT / "packaging" / "container"
    one, other = (yaml.safe_load((folder / name).read_text()) for name in ("compose.yaml", "balena.yaml"))
    service = one["services"]["edgetune"]
    del service["image"]
    service["build"]["context"] = "."
    assert other == {"version": "2.1", **one}
    assert (ROOT / service["build"]["dockerfile"]).is_file()
