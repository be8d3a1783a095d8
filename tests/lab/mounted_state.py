"""A daemon's state on a disk that fills up: `unshare -rm python mounted_state.py FOLDER`.

FOLDER gets a tmpfs, so this must run in a mount namespace of its own. On the full disk every write is refused, health
says why, answers continue; deleting a file, an adapter and a job makes room, and then all is well again.
"""

import sys
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from daemons import PATIENCE, daemon
from lab.mounted import fill, mounted
from services import LONG, SMALL, until, upload
from tiny import write_tiny

CHAT = {"model": "", "messages": [{"role": "user", "content": "lamp"}], "max_tokens": 3}


def refused(client: httpx.Client) -> bool:
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


def main(place: Path) -> None:
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
        assert not refused(client)
        for path in (f"/v1/files/{file}", f"/v1/adapters/{done.result}", None):
            fill(disk)
            assert refused(client)
            answer = client.delete(path) if path else client.post(f"/v1/fine_tuning/jobs/{paused.id}/cancel")
            assert answer.status_code == 200, answer.text
            assert not path or client.get(path).status_code == 404
        assert client.get(f"/v1/fine_tuning/jobs/{paused.id}").json()["status"] == "cancelled"
        (disk / "filler").unlink()
        assert not refused(client)
        assert client.get("/healthz").json() == {"status": "ok", "reasons": []}
        fill(disk)
        assert client.get("/healthz").json()["status"] == "degraded"  # also where nobody has written yet
    with daemon(model, disk / "state") as running:  # it starts on a full disk, and answers
        assert httpx.post(running.url + "/v1/chat/completions", json=CHAT, timeout=PATIENCE).status_code == 200


if __name__ == "__main__":
    main(Path(sys.argv[1]))
