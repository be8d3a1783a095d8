"""Actions of edgetune that meet a refusal of the system: what each does, and what must hold after it.

Each is a generator function of a folder. Its value is the action; sent the error that this raised, or None, it checks
what is left, and that the same action succeeds now.
"""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from queue import Queue

import pytest
from durable import CONFIG, go
from fake_workers import FakeProcess
from learners import give, opened
from services import ROWS, open_service, until, upload

from edgetune import disk
from edgetune.formats.bundle import open_bundle
from edgetune.parts.documents import vector_stores
from edgetune.parts.home.house import House
from edgetune.parts.home.updating import update_house


def is_well(service):
    end = time.monotonic() + 10
    while (health := service.health())["status"] != "ok":
        assert time.monotonic() < end, health["reasons"]
        time.sleep(0.01)


def ids(folder):
    """Adapters of the state, the newest first, which a start loads, and the active one."""
    with open_service(folder) as service:
        assert service.health() == {"status": "ok", "reasons": []}
        assert "".join(service.generate("lamp", max_tokens=2)) is not None
        return [*service.adapters.ids()], service.adapters.serving


def no_halves(folder):
    """Nothing in the state is half written."""
    return not [*folder.rglob("*.tmp")]


def starting(made):
    def scenario(folder):
        shutil.copytree(made, folder, dirs_exist_ok=True)
        service = open_service(folder)
        error = yield service.start
        if error is None:
            is_well(service)
            assert len(service.adapters.ids()) == 2
        service.stop()
        with open_service(folder) as service:
            assert service.health() == {"status": "ok", "reasons": []}
            assert len(service.adapters.ids()) == 2
            assert service.adapters.serving == service.adapters.ids()[0]
            assert len(service.feedback.list()) == 3
            assert len(service.files.list(purpose="fine-tune")) == 3
            assert "".join(service.generate("lamp", max_tokens=2)) is not None

    return scenario


def promoting(made):
    def scenario(folder):
        shutil.copytree(made, folder, dirs_exist_ok=True)
        with open_service(folder) as service:
            new, old = service.adapters.ids()
            error = yield lambda: service.adapters.promote(old, "for the test")
            assert service.adapters.serving == (new if error else old)
            is_well(service)
            service.adapters.promote(old, "again")
            assert service.adapters.serving == old
        assert ids(folder) == ([new, old], old)

    return scenario


def uploading(made):
    def scenario(folder):
        shutil.copytree(made, folder, dirs_exist_ok=True)
        with open_service(folder) as service:
            before = {file.id for file in service.files.list()}
            error = yield lambda: upload(service)
            is_well(service)
            now = {file.id for file in service.files.list()}
            assert len(now) == len(before) + (error is None)
            id = upload(service)
            assert len([*service.files.rows(id)]) == len(ROWS)
            for id in {file.id for file in service.files.list()}:
                assert service.files.content(id).is_file()
        with open_service(folder) as service:
            assert service.health() == {"status": "ok", "reasons": []}
            assert len(service.files.list()) == len(now) + 1
            assert no_halves(folder / "state")

    return scenario


class Prompt(FakeProcess):
    """A process that has learned all at once."""

    def __init__(self):
        super().__init__(1, Queue())

    def begin(self, task):
        super().begin(task)
        self.train()
        self.judge()


def settled(service):
    """Waits for it; a daemon that learns by itself looks every few seconds."""
    until(lambda: service.learner.tick() or not service.feedback.unsettled(), 10)


def learning(model, start_process):
    def scenario(folder):
        with opened(model, folder, start_process=start_process, learn_rows=10, canary_rise="off") as service:
            give(service, range(20))
            held = service.feedback.counts()["held"]

            def act():
                job = service.learner.begin()
                until(lambda: service.jobs.table.get(job.id).finished_at or service.jobs.paused_reason, 20)

            yield act
            until(lambda: not service.learner._unfinished(), 30, f"the job does not end: {service.jobs.list()}")
            settled(service)
            is_well(service)
            if not any(job.status == "succeeded" for job in service.jobs.list()):
                job = service.learner.begin()
                job = service.jobs.wait(job.id, 30)
                assert job.status == "succeeded", job.error
                settled(service)
            [done] = [job for job in service.jobs.list() if job.status == "succeeded"]
            assert service.adapters.of_job(done.id).id == service.adapters.serving
            counts = service.feedback.counts()
            assert (counts["used"], counts["held"], counts["new"]) == (20 - held, held, 0), counts
            assert {note.job for note in service.feedback.list() if note.state == "used"} == {done.id}
            adapter = service.adapters.serving
        with opened(model, folder) as service:
            assert [*service.jobs.folder.iterdir()] == []
            assert service.adapters.serving == adapter
            assert service.health() == {"status": "ok", "reasons": []}

    return scenario


def training(bundle):
    def scenario(folder):
        out = folder / "out"
        config = replace(CONFIG, steps=2)
        error = yield lambda: go(bundle, out, config)
        if error is None:
            assert (out / "adapter.gguf").exists()
        elif out.exists():
            if not (out / "adapter.gguf").exists() or "done" not in (out / "run.json").read_text():
                go(bundle, out, config, resume=True)
        else:
            go(bundle, out, config)
        go(bundle, folder / "whole", config)
        assert (out / "adapter.gguf").read_bytes() == (folder / "whole" / "adapter.gguf").read_bytes()
        assert not [*out.glob("*.tmp")]

    return scenario


def indexing(made, encoder):
    """An upload of a document into a vector store, which is read in the background."""
    def scenario(folder):
        shutil.copytree(made, folder, dirs_exist_ok=True)
        with pytest.MonkeyPatch.context() as patch, open_service(folder) as service:
            patch.setattr(vector_stores, "ENCODER", str(encoder))
            stores = service.running["documents"].stores

            def is_read():
                return all(store.status == "completed" for store in stores.list())

            def act():
                text = b"# Lamp\n\nThe lamp in the hall is red.\n"
                file = service.files.add("lamp.md", vector_stores.PURPOSE, [text]).id
                stores.create("home", {}, [file])
                until(lambda: is_read() or stores.reasons(), 20)

            error = yield act
            if not stores.list():
                assert error
                act()
            until(is_read, 20, str(stores.reasons()))
            is_well(service)
            [store] = stores.list()
            assert [file.status for file in store.files] == ["completed"], store.files
            stores.search([store.id], "lamp", 1)
            stores._indexes[store.id].least = 0.0
            assert "red" in stores.search([store.id], "lamp", 1).passages[0].text
        with open_service(folder) as service:
            assert service.health() == {"status": "ok", "reasons": []}

    return scenario


def updating(house):
    """A home's update with a person's own sentence."""
    def scenario(folder):
        shutil.copytree(house, folder / "house")
        own = {"sentence": "good night", "calls": [{"name": "HassTurnOff", "arguments": {"name": "Hall Lamp"}}]}
        (folder / "own.jsonl").write_text(json.dumps(own))

        def act():
            with disk.refusals():  # as a command
                return update_house(folder / "house", own=folder / "own.jsonl", threads=1)

        yield act
        House.open(folder / "house")
        act()
        assert "good night" in Path(House.open(folder / "house").own).read_text()
        assert {path.name for path in folder.iterdir()} <= {"house", "house.before", "house.new", "own.jsonl"}

    return scenario


def compressing(source):
    from edgetune.compress.options import CompressConfig  # here: PyTorch need not be installed
    from edgetune.compress.pipeline import compress

    def scenario(folder):
        def act():
            with disk.refusals():
                compress(str(source), folder / "made.edge", CompressConfig(
                    vocab=340, vocab_from=rows, measure_tokens=512, threads=1, calibrate_tokens=1024, calibrate=rows))

        rows = str(source.with_name("rows.jsonl"))
        yield act
        if not (folder / "made.edge").exists():
            act()
        assert {path.name for path in folder.iterdir()} == {"made.edge"}
        assert open_bundle(folder / "made.edge").gguf.metadata["llama.vocab_size"] == 340

    return scenario
