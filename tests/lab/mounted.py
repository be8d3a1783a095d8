"""A disk that fills up under a run and under a daemon: `unshare -rm python mounted.py run|state FOLDER`.

FOLDER gets a tmpfs, so this must run in a mount namespace of its own. A run on a disk of 1 MiB that is full, or becomes
read-only, must end in one sentence, keep its checkpoints, leave no half file, and go on to the bytes of an undisturbed
run once the disk is well again. A daemon on a full disk refuses every write, health says why, and answers continue;
deleting a file, an adapter and a job makes room, and then all is well again.
"""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx
from daemons import PATIENCE, daemon
from durable import check_metrics, go, refused
from services import LONG, SMALL, until, upload
from tiny import write_tiny

from edgetune.formats.bundle import open_bundle
from edgetune.training import checkpoint
from edgetune.training.callbacks import RunCallbacks

CHAT = {"model": "", "messages": [{"role": "user", "content": "lamp"}], "max_tokens": 3}


def fill(place):
    """Take all room, to the last page."""
    with suppress(OSError), (place / "filler").open("ab", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def mounted(place, size):
    """A new disk of this size in the folder `place`."""
    disk = place / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=True)
    return disk


def disturb_run(place):
    bundle = open_bundle(write_tiny(place / "tiny.gguf", formats="Q8_0"))
    wanted = go(bundle, place / "whole")
    disk = mounted(place, "1M")
    ills = {"full": (lambda: fill(disk), (disk / "filler").unlink),
            "read-only": (lambda: subprocess.run(["mount", "-o", "remount,ro", disk], check=True),
                          lambda: subprocess.run(["mount", "-o", "remount,rw", disk], check=True))}
    for ill, (befall, heal) in ills.items():
        out = disk / ill
        print(refused(bundle, out, "cannot write", callbacks=RunCallbacks(
            lambda e, befall=befall: befall() if e.get("step") == 4 else None)))
        names = sorted(path.name for path in out.iterdir())
        assert names == ["checkpoint-2", "checkpoint-3", "metrics.jsonl", "run.json"], names
        assert checkpoint.newest(out)[1] == []
        heal()
        assert go(bundle, out, resume=True) == wanted
        check_metrics(out)


def is_full(client):
    """Whether the disk takes nothing, told by a status and by health."""
    answer = client.post("/v1/feedback", json={"prompt": "a" * 100_000, "answer": "b", "rating": "up"})
    health = client.get("/healthz").json()
    full = answer.status_code == 507
    if full:
        assert "make room" in answer.json()["error"]["message"]
        assert health["status"] == "degraded"
        assert "full" in " ".join(health["reasons"]), health
    else:
        assert answer.status_code == 200, answer.text
    assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
    return full


def disturb_state(place):
    model = write_tiny(place / "tiny.gguf", formats="Q8_0")
    disk = mounted(place, "160M")
    with daemon(model, disk / "state") as running, httpx.Client(base_url=running.url, timeout=PATIENCE) as client:
        service = running.service
        done = service.jobs.wait(service.jobs.create("tiny", upload(service), hyperparameters=SMALL).id, 60)
        service.adapters.promote(None, "to delete it")
        paused = service.jobs.create("tiny", upload(service), hyperparameters=LONG)
        until(lambda: any((service.jobs.folder / paused.id / "run").glob("checkpoint-*")))
        service.jobs.pause(paused.id)
        until(lambda: service.jobs.running is None)
        rows = [{"text": f"{number} " + "the light on " * 50} for number in range(2000)]
        file = upload(service, rows)
        assert not is_full(client)
        for path in (f"/v1/files/{file}", f"/v1/adapters/{done.result}", None):
            fill(disk)
            assert is_full(client)
            answer = client.delete(path) if path else client.post(f"/v1/fine_tuning/jobs/{paused.id}/cancel")
            assert answer.status_code == 200, answer.text
            assert not path or client.get(path).status_code == 404
        assert client.get(f"/v1/fine_tuning/jobs/{paused.id}").json()["status"] == "cancelled"
        (disk / "filler").unlink()
        assert not is_full(client)
        assert client.get("/healthz").json() == {"status": "ok", "reasons": []}
        fill(disk)
        assert client.get("/healthz").json()["status"] == "degraded"  # also where nobody has written yet
    with daemon(model, disk / "state") as running:  # it starts on a full disk, and answers
        assert httpx.post(running.url + "/v1/chat/completions", json=CHAT, timeout=PATIENCE).status_code == 200


if __name__ == "__main__":
    {"run": disturb_run, "state": disturb_state}[sys.argv[1]](Path(sys.argv[2]))
