"""What edgetune does if the system refuses: the n-th open, write, sync, rename, mapping, thread or allocation of an
action fails, once or from then on, for n = 1, 2, ... until the action makes fewer of them.

After each: the error is one sentence, nothing is half written, and the same action succeeds once nothing fails.
"""

import json
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import Queue

import commands
import pytest

pytest.importorskip("edgetune.parts.documents")

from durable import CONFIG, go
from fake_workers import FakeProcess, FakeWorkers
from faults import cases, fault, intercepted, sweep
from houses import write_house
from indexes import needs_retrieval, small_encoder
from learners import give, opened
from services import ROWS, make_state, open_service, until, upload
from thread_workers import ThreadWorker
from tiny import write_tiny

from edgetune import disk
from edgetune.daemon import threads
from edgetune.daemon.jobs import queue
from edgetune.daemon.learning import learner
from edgetune.daemon.state import database
from edgetune.errors import DiskError, TooMuchError, UsageError
from edgetune.formats.bundle import open_bundle
from edgetune.parts.documents import vector_stores
from edgetune.parts.home.house import House
from edgetune.parts.home.updating import update_house

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture(autouse=True)
def soon(monkeypatch, made, bundle, model):  # noqa: ARG001 (they are made before anything is intercepted)
    """What failed is tried again at once. Health looks each time."""
    for module in (threads, queue, learner):
        monkeypatch.setattr(module, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(database, "PROBE_SECONDS", 0.0)
    monkeypatch.setattr(vector_stores, "RETRY_SECONDS", 0.02, raising=False)
    with intercepted():
        yield


# ---- what actions need ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A daemon's state that was in use: copy it."""
    return make_state(tmp_path_factory.mktemp("made"), ThreadWorker)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    needs_retrieval()
    return small_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def house(tmp_path_factory, encoder):
    folder = tmp_path_factory.mktemp("home")
    commands.run("home", "train", write_house(folder), "-o", folder / "house", "--count", 200, "--encoder", encoder,
                 "--threads", 1)
    return folder / "house"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("source")
    write_tiny(folder / "model.gguf", formats="F16", d_model=256, d_ff=256)
    words = ("the light on", "turn it off", "set to 10")
    (folder / "rows.jsonl").write_text("".join(json.dumps({
        "prompt": f"{words[i % 3]} {words[i * i % 3]}", "completion": words[i // 3 % 3]}) + "\n" for i in range(150)))
    return folder / "model.gguf"


# ---- what each action does, and what must hold after it --------------------------------------------------------------
#
# A scenario is a generator function. Its value is the action; sent the error that this raised, or None, it checks what
# is left, and that the same action succeeds now.


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


def starting(made, folder):
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


def promoting(made, folder):
    shutil.copytree(made, folder, dirs_exist_ok=True)
    with open_service(folder) as service:
        new, old = service.adapters.ids()
        error = yield lambda: service.adapters.promote(old, "for the test")
        assert service.adapters.serving == (new if error else old)
        is_well(service)
        service.adapters.promote(old, "again")
        assert service.adapters.serving == old
    assert ids(folder) == ([new, old], old)


def uploading(made, folder):
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
        assert not [*(folder / "state").rglob("*.tmp")]


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


def learning(model, folder):
    with opened(model, folder, start_process=Prompt, learn_rows=10, canary_rise="off") as service:
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


def training(bundle, folder):
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


def indexing(made, encoder, folder):
    """An upload of a document into a vector store, which is read in the background."""
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


def updating(house, folder):
    """A home's update with a person's own sentence."""
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


def compressing(source, folder):
    from edgetune.compress.options import CompressConfig  # here: PyTorch need not be installed
    from edgetune.compress.pipeline import compress

    def act():
        with disk.refusals():
            compress(str(source), folder / "made.edge", CompressConfig(
                vocab=340, vocab_from=rows, measure_tokens=512, threads=1, calibrate_tokens=1024, calibrate=rows))

    rows = str(source.with_name("rows.jsonl"))
    yield act
    if not (folder / "made.edge").exists():
        act()
    if (folder / "made.edge.work").exists():  # it could not be opened to be removed
        with pytest.raises(UsageError, match="exists"):
            act()
    assert {path.name for path in folder.iterdir()} == {"made.edge"}
    assert open_bundle(folder / "made.edge").gguf.metadata["llama.vocab_size"] == 340


# ---- the sweep -------------------------------------------------------------------------------------------------------

SCENARIOS = {"start": (starting, "made"), "promotion": (promoting, "made"), "upload": (uploading, "made"),
             "job": (learning, "model"), "train": (training, "bundle"), "index": (indexing, "made", "encoder"),
             "update": (updating, "house"), "compress": (compressing, "source")}  # with the fixtures that they need
QUICK = {("start", "thread"), ("promotion", "sync"), ("upload", "rename"), ("train", "mmap"),
         ("index", "mmap"), ("index", "thread")}  # once


@pytest.fixture
def scenario(request):
    run, *needs = SCENARIOS[request.param]
    return partial(run, *map(request.getfixturevalue, needs))


@pytest.mark.dev
@pytest.mark.parametrize(("scenario", "kind", "lasting"), [*cases(SCENARIOS, QUICK)], indirect=["scenario"])
def test_nothing_is_lost_where_the_system_refuses(tmp_path, scenario, kind, lasting):
    calls, wrong = sweep(tmp_path, kind, lasting, scenario)
    print(f"{calls} calls")
    assert not wrong, "\n".join(f"{n}: {error}" for n, error in wrong.items())


# ---- what it found ---------------------------------------------------------------------------------------------------


def test_an_adapter_stays_active_where_no_further_file_can_be_opened(made, tmp_path):
    """That start fails, the next one has it."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    with fault("open", path="/adapters/"), pytest.raises(TooMuchError, match="refuses another open file"):
        open_service(tmp_path).start()
    found, active = ids(tmp_path)
    assert (len(found), active) == (2, found[0])


def test_a_training_is_kept_where_no_further_file_can_be_opened(model, tmp_path):
    """Its job ends when one can be."""
    workers = FakeWorkers()
    with opened(model, tmp_path, start_process=workers, learn_rows=10, canary_rise="off") as service:
        give(service, range(20))
        job = service.learner.begin()
        process = workers.next()
        process.train()
        with fault("open", path=f"{process.folder}/run/"):
            process.judge()
            until(lambda: service.jobs.paused_reason or service.jobs.get(job.id).finished_at)
            assert "refuses another open file" in service.health()["reasons"][0]
        workers.next().judge()
        assert service.jobs.wait(job.id, 30).status == "succeeded"
        is_well(service)


def test_a_file_whose_name_the_disk_refuses_is_there(made, tmp_path):
    """Its row says so, and so do its bytes, before and after the next start."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    with open_service(tmp_path) as service:
        with fault("rename"):
            id = upload(service)
        assert [*service.files.rows(id)] == ROWS
    with open_service(tmp_path) as service:
        assert service.files.content(id).name == f"{id}.jsonl"
        assert [*service.files.rows(id)] == ROWS


def refused(*_args):
    raise DiskError("cannot write it: Input/output error", "try again")


def test_rows_of_a_job_are_settled_though_the_disk_refused_when_it_ended(model, tmp_path):
    with opened(model, tmp_path, start_process=Prompt, learn_rows=10, canary_rise="off") as service:
        give(service, range(20))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(service.feedback, "settle", refused)
            job = service.jobs.wait(service.learner.begin().id, 30)
            until(lambda: not [*service.jobs.folder.iterdir()])
        assert service.feedback.unsettled() == [job.id]
        service.learner.tick()
        assert {note.job for note in service.feedback.list() if note.state == "used"} == {job.id}


def test_a_command_says_in_a_sentence_that_the_system_has_no_room(model, tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    command = ["train", model, tmp_path / "rows.jsonl", "-o", tmp_path / "out", "--steps", 1, "--threads", 1]
    with fault("mmap"):
        said = commands.run(*command, code=1)
    assert "Cannot allocate memory" in said
    assert said.count("\n") <= 3
    assert not (tmp_path / "out").exists()
