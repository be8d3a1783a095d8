"""Roll-outs of bases through the commands, to a real daemon in a process that serves a slot."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
from commands import run
from rollouts import write_adapters
from slots import slot_device
from tiny import write_tiny

from edgetune.formats.bundle import open_bundle
from edgetune.formats.slot import Slot
from edgetune.parts.fleet.bases.slot import read_trial
from edgetune.parts.fleet.rollout import artifact
from edgetune.parts.fleet.rollout.reports import read_device


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Bases: `old`; `on` and `off`, which answer so whatever light is turned; `other` of other weights. Adapters in
    old-on and old-off, and other-on.
    """
    folder = tmp_path_factory.mktemp("bases")
    write_tiny(folder / "old.gguf", seed=0)
    write_tiny(folder / "other.gguf", seed=1)
    for base in ("old", "other"):
        write_adapters(folder / f"{base}.gguf", folder / base)
    for answer in ("on", "off"):
        run("adapters", "merge", folder / "old.gguf", folder / "old" / answer, "-o", folder / f"{answer}.gguf",
            "--to", "F32", "--threads", "1")
    return folder


def fingerprint(path):
    return open_bundle(path).fingerprint


def advance(folder, *options):
    return json.loads(run("fleet", "advance", folder, *options, "--json"))


def begin(device, folder, base, *options):
    assert device.look(folder)["execution"] == "none"
    run("fleet", "rollout", base, folder, "--rings", "all", *options)


@pytest.mark.dev
def test_a_base_is_evaluated_switched_and_undone(made, tmp_path):
    fleet = tmp_path / "fleet"
    with slot_device(made / "old.gguf", tmp_path / "device") as device:
        old = device.model()
        with device.client() as client:
            adapter = client.add_adapter(made / "old" / "off", "before")["id"]
            client.post(f"/v1/adapters/{adapter}/promote")
        assert device.answer() == "off"
        begin(device, fleet, made / "on.gguf", "--probation", "0s")
        found = device.look(fleet)
        assert (found["execution"], found["finished"]) == ("closed", "success"), found["reason"]
        assert (found["verdict"]["wins"], found["verdict"]["losses"]) == (6, 0)
        assert "6 of 6 validation examples are answered exactly, 0 before" in found["reason"]
        assert (found["base"], found["active"]) == ("home", "")
        assert found["model"] == device.model() == fingerprint(made / "on.gguf") != old
        assert device.answer() == "on"
        with device.client() as client:
            assert client.get("/v1/adapters")["data"] == []  # of the base before: kept, and not listed
        assert device.look(fleet)["execution"] == "closed"  # a second look does nothing
        assert advance(fleet)["status"] == "finished"
        assert advance(fleet, "--undo")["status"] == "undoing"
        found = device.look(fleet)
        assert (found["execution"], found["reason"]) == ("canceled", "the base before is active again")
        assert (found["model"], found["active"]) == (old, adapter)
        assert device.answer() == "off"
        assert advance(fleet)["status"] == "undone"
        assert sorted(path.name for path in device.slot.iterdir()) == ["a", "current"]


@pytest.mark.slow
def test_a_base_comes_with_its_adapter(made, tmp_path):
    """Both are judged together; what else the base had is not what was judged."""
    fleet = tmp_path / "fleet"
    with slot_device(made / "old.gguf", tmp_path / "device") as device:
        device.look(fleet)
        assert "was trained on" in run("fleet", "rollout", made / "other.gguf", fleet, "--adapter", made / "old" / "on",
                                       code=1)
        run("fleet", "rollout", made / "other.gguf", fleet, "--adapter", made / "other" / "on", "--rings", "all")
        found = device.look(fleet)
        assert (found["execution"], found["finished"]) == ("proceeding", "none"), found["reason"]
        assert found["active"].startswith("ft:home:fleet:")
        assert device.answer() == "on"
        with device.client() as client:
            (kept,) = client.get("/v1/adapters")["data"]
            assert (kept["state"], kept["base"]) == ("serving", device.model())
            assert kept["verdict"]["reason"] == "the gate let it pass together with its base"
        subprocess.run([*device.restart.split()], check=True)
        assert device.model() == fingerprint(made / "other.gguf")
        with device.client() as client:  # a restart adds no second one
            assert [one["id"] for one in client.get("/v1/adapters")["data"]] == [found["active"]]
            for i in range(3):
                client.post("/v1/feedback", {"messages": [{"role": "user", "content": f"fan {i}"}], "answer": "on",
                                             "rating": "down", "model": found["active"]})
        found = device.look(fleet)
        assert (found["execution"], found["finished"], found["reason"]) == (
            "closed", "failure", "it was rolled back, with 3 bad ratings")
        assert device.model() == found["model"] == fingerprint(made / "old.gguf")
        assert advance(fleet)["status"] == "stopped"
        assert device.look(fleet)["execution"] == "closed"


@pytest.mark.slow
def test_what_is_refused_is_said_in_a_sentence(made, tmp_path, monkeypatch):
    """By the gate, by the owner, and by memory. What was refused leaves nothing."""
    fleet = tmp_path / "fleet"
    with slot_device(made / "on.gguf", tmp_path / "device") as device:
        present = device.model()

        def refused(base, *options, look=device.look):
            if (fleet / "rollouts").exists():
                run("fleet", "advance", fleet, "--stop")
            run("fleet", "rollout", base, fleet, "--rings", "all", *options)
            found = look(fleet)
            assert found["execution"] == "rejected", found
            assert device.model() == present
            assert sorted(path.name for path in device.slot.iterdir()) == ["a", "current"]
            return found["reason"]

        device.look(fleet)
        assert refused(made / "off.gguf").startswith("not surely better: 0 better, 6 worse")
        assert refused(made / "off.gguf", "--required", "not-worse").startswith("worse on held-out questions")
        with monkeypatch.context() as later:
            later.setattr(artifact, "__version__", "9.0")
            run("fleet", "advance", fleet, "--stop")
            run("fleet", "rollout", made / "old.gguf", fleet, "--rings", "all", "--least", "9.0")
        found = device.look(fleet)
        assert found["execution"] == "rejected"
        assert found["reason"].endswith("needs edgetune 9.0, this is 0.1.0")

        def bare(fleet):
            return json.loads(run("fleet", "apply", fleet, "--device", "kitchen", "--url", device.url, "--json"))

        assert refused(made / "old.gguf", look=bare) == "this device has no slot for a base"
        run("fleet", "advance", fleet, "--stop")
        run("fleet", "rollout", made / "on.gguf", fleet, "--rings", "all")
        found = device.look(fleet)
        assert (found["finished"], found["reason"]) == ("success", "this base is here already")
        assert "is an encoder" not in run("fleet", "rollout", made / "on.gguf", fleet, code=2)
        for wrong in (["--base-slot", fleet, "--restart", "true"], ["--base-slot", device.slot], ["--restart", "true"]):
            run("fleet", "apply", fleet, "--url", device.url, *wrong, code=2)


@pytest.mark.slow
def test_a_failed_start_goes_back_at_once(made, tmp_path):
    """The new base is damaged between its check and the start: a real daemon refuses it."""
    fleet = tmp_path / "fleet"
    with slot_device(made / "old.gguf", tmp_path / "device") as device:
        old = device.model()
        begin(device, fleet, made / "on.gguf")
        script = device.folder / "restart.py"
        whole = script.read_text()
        link, model = (str(device.slot / name) for name in ("current", "b/model.gguf"))
        script.write_text(f"from pathlib import Path\nif Path({link!r}).readlink().name == 'b':\n"
                          f"    Path({model!r}).open('r+b').write(b'no')\n{whole}")
        found = device.look(fleet)
        assert (found["execution"], found["finished"]) == ("closed", "failure")
        assert found["reason"].startswith("the daemon did not start with it: ")
        assert "ended with the code 3" in found["reason"]
        assert device.model() == found["model"] == old
        assert "has the SHA-256" in (device.folder / "log").read_text()
        assert device.look(fleet)["execution"] == "closed"
        assert sorted(path.name for path in device.slot.iterdir()) == ["a", "current"]


def applied(device, fleet, restart):
    """`fleet apply` in a process of its own."""
    options = [str(word) for word in device.options()]
    options[options.index("--restart") + 1] = restart
    return subprocess.Popen([sys.executable, "-m", "edgetune", "fleet", "apply", str(fleet), "--device", "kitchen",
                             *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_a_look_that_is_killed_is_continued(made, tmp_path):
    """SIGKILL while the gate evaluates; between switch and restart; while the daemon restarts."""
    fleet = tmp_path / "fleet"
    with slot_device(made / "old.gguf", tmp_path / "device") as device:
        begin(device, fleet, made / "on.gguf")
        slot = Slot(device.slot)
        look = applied(device, fleet, device.restart)
        end = time.monotonic() + 60
        while read_device(fleet, "kitchen").execution != "downloaded":
            assert time.monotonic() < end
            time.sleep(0.05)
        look.kill()
        look.wait()
        assert (slot.side, read_trial(slot)) == ("a", None)
        look = applied(device, fleet, "sh -c 'kill -9 $PPID'")  # by the command that was to restart the daemon
        assert look.wait(120) == -signal.SIGKILL
        assert (slot.side, read_trial(slot).state) == ("b", "switched")
        assert open_bundle(device.slot).fingerprint == fingerprint(made / "on.gguf") != device.model()
        device.kill()  # a power cut: the daemon starts by itself, with what the slot opens
        subprocess.run(device.restart.split(), check=True)
        found = device.look(fleet)
        assert (found["execution"], found["model"]) == ("proceeding", fingerprint(made / "on.gguf"))
        run("fleet", "advance", fleet, "--undo")
        look = applied(device, fleet, "sh -c 'kill -9 $PPID'")
        assert look.wait(120) == -signal.SIGKILL
        assert (slot.side, read_trial(slot).state) == ("a", "back")
        assert device.look(fleet)["execution"] == "canceled"
        assert device.model() == fingerprint(made / "old.gguf")
        assert read_trial(slot) is None
