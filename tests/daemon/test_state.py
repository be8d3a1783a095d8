"""A state folder that was damaged: nothing of it is removed, each thing is told in a sentence, the rest serves."""

import json
import logging
import os
import random
import shutil
import sqlite3
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest
from daemons import PATIENCE, daemon
from services import ROWS, SMALL, contents, open_service, upload
from sometimes import mostly_slow

from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.service import Service
from edgetune.daemon.state.database import Store
from edgetune.daemon.state.holdout import KEY, KEY_BYTES
from edgetune.errors import DiskError, FormatError, NotFoundError

CHAT = [{"role": "user", "content": ROWS[3]["prompt"]}]
UPLOADED = "/v1/files?purpose=fine-tune"


def ask(service, model=""):
    return service.chat(CHAT, model=model, max_tokens=12).text()


@contextmanager
def asked(folder):
    """A client of a daemon."""
    with daemon(folder / "tiny.gguf", folder / "state") as running, \
            httpx.Client(base_url=running.url, timeout=PATIENCE) as client:
        yield client


def change(folder, sql, *values):
    """With the daemon's database while no daemon has it."""
    with closing(sqlite3.connect(folder / "state/state.db")) as db, db:
        assert db.execute(sql, values).rowcount


# ---- the database is lost -------------------------------------------------------------------------------------------


def remove(state):
    for path in state.glob("state.db*"):
        path.unlink()


def empty(state):
    remove(state)
    (state / "state.db").touch()


def restore(state):
    """A copy from before there was anything."""
    remove(state)
    shutil.copyfile(state / "earlier.db", state / "state.db")


@pytest.mark.dev
@pytest.mark.parametrize("lose", mostly_slow([remove, empty, restore], [remove, restore]))
def test_without_its_database_nothing_is_deleted(folder, caplog, lose):
    shutil.copytree(folder, folder / "other")
    shutil.rmtree(folder / "other/state")
    with open_service(folder / "other"):
        pass
    shutil.move(folder / "other/state/state.db", folder / "state/earlier.db")
    with open_service(folder) as service:
        service.adapters.rename(service.adapters.list()[0].id, "kitchen")
        adapters = {found.id: (found.name, found.sha256, found.verdict, ask(service, found.id))
                    for found in service.adapters.list()}
        files = [service.files.content(file.id) for file in service.files.list()]
    assert len(adapters) == 2
    before = contents(folder / "state")
    lose(folder / "state")
    with caplog.at_level(logging.WARNING), open_service(folder) as service:
        assert contents(folder / "state") >= before
        assert (service.files.list(), service.jobs.list(), service.adapters.list()) == ([], [], [])
        health = service.health()
        assert health["status"] == "degraded"
        assert "2 of adapters and 5 of files and 1 of runs: set aside in" in " ".join(health["reasons"])
        for path in files:
            assert f"{path} is named by no row of the database: set aside as" in caplog.text
        assert ask(service)
        found, refused = service.adapters.recover()
        assert refused == {}
        assert {made.id: (made.name, made.sha256, made.verdict, ask(service, made.id)) for made in found} == adapters
        assert {made.state for made in found} == {"candidate"}
        service.adapters.promote(found[0].id, "again")
    with open_service(folder) as service:
        assert service.adapters.serving == found[0].id
        shutil.rmtree(folder / "state/lost")
        assert service.health() == {"status": "ok", "reasons": []}


def test_adapters_of_an_earlier_edgetune_are_taken_back_by_their_run(folder):
    with open_service(folder) as service:
        names = {found.folder for found in service.adapters.list()}
    state = folder / "state"
    first, second = sorted(names)
    (folder / "state/adapters" / first / "daemon.json").unlink()  # it wrote none
    (folder / "state/adapters" / second / "adapter.gguf").write_bytes(b"GGUF")
    shutil.copyfile(state / "state.db", state / "state.db-wal")  # something to recognize
    wal = (state / "state.db-wal").read_bytes()
    (state / "state.db").unlink()
    with open_service(folder) as service:
        assert [path.read_bytes() for path in (state / "lost").glob("state.db-wal*")] == [wal]
        found, refused = service.adapters.recover()
        assert [made.id for made in found] == [f"ft:tiny::{first}"]
        assert "is not known" in found[0].verdict["reason"]
        (left,) = refused.items()
        assert left[0] == str(folder / "state/lost/adapters" / second)
        assert "\n" not in left[1]
        assert Path(left[0], "adapter.gguf").read_bytes() == b"GGUF"
        assert ask(service, found[0].id)


def replace(path):
    shutil.copyfile(path, path.with_name("copy"))
    path.with_name("copy").replace(path)


@pytest.mark.dev
@pytest.mark.parametrize("name", ["state.db", "state.db-wal"])
@pytest.mark.parametrize("happens", [Path.unlink, replace])
def test_a_database_that_is_removed_or_replaced_is_noticed(folder, name, happens):
    with asked(folder) as client:
        happens(folder / "state" / name)
        rows = "".join(json.dumps(row) + "\n" for row in ROWS)
        refused = [
            client.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a", rows)}),
            client.post("/v1/feedback", json={"prompt": "a", "answer": "b", "rating": "up"}),
            client.post("/v1/adapters/rollback"),
            client.post("/v1/fine_tuning/jobs", json={
                "model": "tiny", "training_file": client.get(UPLOADED).json()["data"][0]["id"]})]
        assert [answer.status_code for answer in refused] == [507] * 4
        assert "was removed or replaced while the daemon runs" in refused[0].json()["error"]["message"]
        health = client.get("/healthz").json()
        assert health["status"] == "degraded"
        assert name in health["reasons"][0]
        body = {"model": "tiny:latest", "messages": CHAT, "max_tokens": 3}
        assert client.post("/v1/chat/completions", json=body).status_code == 200
        assert len(client.get("/v1/files").json()["data"]) == 5  # what it knew
        assert client.get("/v1/fine_tuning/jobs").status_code == 200


# ---- things that are not ours, and things that are gone -------------------------------------------------------------


def test_what_is_not_ours_is_left_alone(folder, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "data").write_text("x")
    strays = []
    for kind in ("adapters", "files", "runs"):
        place = folder / "state" / kind
        (place / ".DS_Store").write_text("x")
        (place / "lost+found").mkdir()
        (place / "0badf00d").symlink_to(precious)  # called as an adapter is
        (place / "file-0.jsonl").symlink_to(precious / "data")
        (place / "ftjob-0").symlink_to(precious)
        (place / "gone").symlink_to(tmp_path / "nowhere")
        strays += [place / name for name in (".DS_Store", "lost+found", "0badf00d", "file-0.jsonl", "ftjob-0", "gone")]
    with open_service(folder) as service:
        assert service.health() == {"status": "ok", "reasons": []}
        assert len(service.adapters.list()) == 2
    assert all(os.path.lexists(path) for path in strays)
    assert (precious / "data").read_text() == "x"


def test_bytes_of_an_upload_that_are_gone(folder):
    with asked(folder) as client:
        gone, linked, kept = (file["id"] for file in client.get(UPLOADED).json()["data"])
        (folder / "state/files" / f"{gone}.jsonl").unlink()
        (folder / "state/files" / f"{linked}.jsonl").unlink()
        (folder / "state/files" / f"{linked}.jsonl").symlink_to("/etc/passwd")
        for id in (gone, linked):
            answer = client.get(f"/v1/files/{id}/content")
            assert answer.status_code == 404
            assert f"the bytes of the file {id} are gone" in answer.json()["error"]["message"]
            job = client.post("/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": id})
            assert job.status_code == 404
            assert client.delete(f"/v1/files/{id}").status_code == 200
        assert Path("/etc/passwd").exists()
        assert client.get(f"/v1/files/{kept}/content").status_code == 200
        assert [file["id"] for file in client.get(UPLOADED).json()["data"]] == [kept]


@pytest.mark.dev
@pytest.mark.parametrize("named", ["../../precious", "", ".", "..", "/tmp", "lost+found"])
def test_a_folder_outside_is_neither_followed_nor_removed(folder, named):
    precious = folder / "precious"
    with open_service(folder) as service:
        first = service.adapters.list()[-1]
    shutil.move(folder / "state/adapters" / first.folder, precious)
    change(folder, "UPDATE adapters SET folder = ? WHERE id = ?", named, first.id)
    before = contents(folder / "state")
    with open_service(folder) as service:
        assert [found.id for found in service.adapters.list()] == [service.adapters.serving]
        assert f"a row of adapters in state.db is damaged and left out ('{first.id}')" in service.health()["reasons"][0]
        with pytest.raises(NotFoundError):
            service.adapters.get(first.id)
        service.adapters.delete(first.id)
        assert service.health() == {"status": "ok", "reasons": []}
        assert ask(service)
    assert (precious / "adapter.gguf").exists()
    assert contents(folder / "state") == before


@pytest.mark.dev
@pytest.mark.parametrize("damage", [
    lambda folder, adapters: shutil.rmtree(folder / "state/adapters" / adapters[0].folder),
    lambda folder, adapters: change(folder, "DELETE FROM adapters WHERE id = ?", adapters[0].id),
    lambda folder, adapters: change(folder, "UPDATE adapters SET verdict = '{' WHERE id = ?", adapters[0].id)])
def test_the_adapter_before_answers_where_the_one_in_service_is_gone(folder, damage):
    with open_service(folder) as service:
        adapters = service.adapters.list()
        wanted = ask(service, adapters[1].id)
    damage(folder, adapters)
    with daemon(folder / "tiny.gguf", folder / "state") as running:
        service = running.service
        assert service.adapters.serving == adapters[1].id
        assert ask(service) == wanted
        health = httpx.get(running.url + "/healthz", timeout=PATIENCE).json()
        assert health["status"] == "degraded"
        told = f"{adapters[0].id}, which was active, cannot be loaded: {adapters[1].id} answers instead"
        assert told in " ".join(health["reasons"])


def flip(path):
    """One bit of the last byte."""
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def test_one_bit_that_fell_over_is_told_and_not_served(folder):
    with open_service(folder) as service:
        second, first = service.adapters.list()
        upload = service.files.list()[0]
        flip(service.adapters.path(second.id) / "adapter.gguf")
        flip(service.files.content(upload.id))
    before = contents(folder)
    with open_service(folder) as service:
        assert service.adapters.serving == first.id
        assert [found.id for found in service.adapters.list()] == [first.id]
        assert f"of {second.id} is damaged: its SHA-256 is not that of its row" in service.health()["reasons"][0]
        with pytest.raises(NotFoundError, match="are not those that were uploaded"):
            service.files.content(upload.id)
        with pytest.raises(NotFoundError, match="are not those that were uploaded"):
            service.jobs.create("tiny", upload.id)
        assert ask(service)
    assert contents(folder) >= before


def test_a_key_of_what_is_held_out_that_is_damaged_or_missing_is_said(folder, tmp_path):
    """A new state has a new one without a word."""
    state = folder / "state"
    key = state / KEY
    kept = state / f"{KEY}.damaged"
    for damage in (b"", b"x" * 31, b"x" * 33, None):
        key.unlink() if damage is None else key.write_bytes(damage)
        with Service(folder / "tiny.gguf", DaemonConfig(state=str(state), threads=1)) as service:
            reason, = service.health()["reasons"]
            assert KEY in reason
            assert str(kept) in reason
            assert kept.read_bytes() == (damage or b"")
            assert len(key.read_bytes()) == KEY_BYTES
            kept.unlink()
            assert service.health() == {"status": "ok", "reasons": []}
    with Service(folder / "tiny.gguf", DaemonConfig(state=str(tmp_path / "new"), threads=1)) as service:
        assert service.health()["status"] == "ok"


def test_noise_in_the_database_is_said_in_a_sentence(folder):
    """Wherever it is: SQLite quotes a damaged schema in its message, and that may be no text."""
    path = folder / "state" / "state.db"
    for log in path.parent.glob("state.db-*"):
        log.unlink()
    whole = path.read_bytes()
    rng = random.Random(0)
    refused = 0
    schema = [page for page in range(0, len(whole), 4096) if b"CREATE TABLE" in whole[page : page + 4096]]
    for _ in range(60):
        noisy = bytearray(whole)
        start = rng.choice(schema) + rng.randrange(4096)
        noisy[start : start + 64] = rng.randbytes(64)
        path.write_bytes(noisy)
        try:
            Store(path.parent).close()
        except (FormatError, DiskError) as error:
            refused += str(path) in str(error)
    assert refused > 10


# ---- a row that cannot be read --------------------------------------------------------------------------------------

BROKEN = ["files SET bytes = 'many'", "files SET created_at = 1.5", "files SET name = CAST(x'ff41' AS TEXT)",
          "jobs SET method = '{'", "jobs SET metadata = '{\"a\": 1}'", "jobs SET metadata = '[]'",
          "jobs SET config = '{\"colour\": \"red\"}'", "jobs SET config = '[' || config || ']'",
          "jobs SET status = 'lost'", "jobs SET seed = 'x'", "jobs SET error = '{}'", "jobs SET created_at = 'x'",
          "adapters SET verdict = 'true'", "adapters SET verdict = ''", "adapters SET created_at = 'x'",
          "adapters SET job = x'00'", "events SET data = '{'", "events SET level = 'loud'", "events SET data = '3'",
          "checkpoints SET metrics = '{'", "checkpoints SET step = 'x'", "service SET at = 'x'",
          "service SET cause = x'ff'", "feedback SET rating = 5", "feedback SET created_at = 'x'",
          "feedback SET state = 'lost'"]
LISTS = {"files": "/v1/files?limit=1", "jobs": "/v1/fine_tuning/jobs?limit=1", "adapters": "/v1/adapters?limit=1",
         "feedback": "/v1/feedback?limit=1"}


def one_a_table(every):
    """The first of each table at once, the others with the slow tests."""
    seen = set()
    marked = []
    for broken in every:
        table = broken.split()[0]
        marked.append(pytest.param(broken, marks=[pytest.mark.slow] if table in seen else []))
        seen.add(table)
    return marked


@pytest.mark.dev
@pytest.mark.parametrize("broken", one_a_table(BROKEN))
def test_one_row_that_cannot_be_read_is_left_out_alone(folder, broken):
    table = broken.split()[0]
    with closing(sqlite3.connect(folder / "state/state.db")) as db:
        (rowid,) = db.execute(f"SELECT rowid FROM {table} ORDER BY rowid LIMIT 1 OFFSET 1").fetchone()
        (job,) = db.execute("SELECT id FROM jobs ORDER BY rowid LIMIT 1").fetchone()
        ids = [row[0] for row in db.execute(f"SELECT {'job' if table in ('events', 'checkpoints') else 'rowid'} "
                                            f"FROM {table} ORDER BY rowid DESC").fetchall()]
    change(folder, f"UPDATE {broken} WHERE rowid = ?", rowid)
    lists = {**LISTS, "events": f"/v1/fine_tuning/jobs/{job}/events?limit=7",
             "checkpoints": f"/v1/fine_tuning/jobs/{job}/checkpoints?limit=7"}
    with asked(folder) as client:
        if table in lists:
            wanted = ids.count(job) - 1 if table in ("events", "checkpoints") else len(ids) - 1
            assert len(all_pages(client, lists[table])) == wanted
        for path in (*lists.values(), "/v1/models", "/v1/device", "/metrics"):
            answer = client.get(path)
            assert answer.status_code == 200 or (answer.status_code == 404 and table == "jobs"), (path, answer.text)
        health = client.get("/healthz").json()
        told = [reason for reason in health["reasons"] if f"a row of {table} in state.db is damaged" in reason]
        assert len(told) == 1
        assert client.post("/v1/chat/completions", json={"model": "", "messages": CHAT,
                                                         "max_tokens": 3}).status_code == 200


def all_pages(client, path):
    """Page by page, each beginning after the last one's end."""
    found = []
    while True:
        page = client.get(path, params={**httpx.URL(path).params, **({"after": found[-1]["id"]} if found else {})})
        assert page.status_code == 200, page.text
        found += page.json()["data"]
        if not page.json().get("has_more"):
            return found


def test_a_job_that_cannot_be_read_does_not_stop_the_line(folder, workers):
    change(folder, "UPDATE jobs SET status = 'queued', config = '{\"colour\": 1}' WHERE status = 'paused'")
    with open_service(folder, start_process=workers) as service:
        job = service.jobs.create("tiny", upload(service), hyperparameters=SMALL)
        workers.next().judge()
        assert service.jobs.wait(job.id, 60).status == "succeeded"


def test_options_that_another_edgetune_wrote_are_named(folder, workers):
    with open_service(folder, start_process=workers) as service:
        found = service.adapters.list()[0]
        run = service.adapters.path(found.id) / "run.json"
        record = json.loads(run.read_text())
        run.write_text(json.dumps({**record, "options": {**record["options"], "colour": "red"}}))
        with pytest.raises(FormatError, match=f"run.json of {found.id} has the field 'colour', which this edgetune "):
            service.jobs.create(found.id, upload(service))
        del record["options"]["rank"]
        run.write_text(json.dumps(record))
        job = service.jobs.create(found.id, upload(service), hyperparameters={"steps": 1})
        assert (job.config["rank"], job.config["lr"]) == (8, SMALL["lr"])
