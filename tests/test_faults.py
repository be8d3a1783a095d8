"""What edgetune does if the system refuses: the n-th open, write, sync, rename, mapping, thread or allocation of an
action fails, once or from then on, for n = 1, 2, ... until the action makes fewer of them.

After each: the error is one sentence, nothing is half written, and the same action succeeds once nothing fails.
"""

import json
import shutil

import commands
import pytest

pytest.importorskip("edgetune.parts.documents")

from fake_workers import FakeWorkers
from fault_scenarios import (
    Prompt,
    compressing,
    ids,
    indexing,
    is_well,
    learning,
    promoting,
    starting,
    training,
    updating,
    uploading,
)
from faults import fault, intercepted
from houses import write_house
from indexes import needs_retrieval, small_encoder
from learners import give, opened
from services import ROWS, make_state, open_service, until, upload
from sweeps import cases, sweep
from thread_workers import ThreadWorker
from tiny import write_tiny

from edgetune.daemon import threads
from edgetune.daemon.jobs import queue
from edgetune.daemon.learning import learner
from edgetune.daemon.state import database
from edgetune.errors import DiskError, TooMuchError
from edgetune.parts.documents import vector_stores

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


# ---- the sweep -------------------------------------------------------------------------------------------------------

NAMES = ("start", "promotion", "upload", "job", "train", "index", "update", "compress")
QUICK = {("start", "thread"), ("promotion", "sync"), ("upload", "rename"), ("train", "mmap")}  # once


@pytest.fixture
def scenario(request):
    def of(name):
        return request.getfixturevalue(name)

    makers = {"start": lambda: starting(of("made")), "promotion": lambda: promoting(of("made")),
              "upload": lambda: uploading(of("made")), "job": lambda: learning(of("model"), Prompt),
              "train": lambda: training(of("bundle")), "index": lambda: indexing(of("made"), of("encoder")),
              "update": lambda: updating(of("house")),
              "compress": lambda: compressing(of("source"))}
    return makers[request.param]()


@pytest.mark.parametrize(("scenario", "kind", "lasting"), [*cases(NAMES, QUICK)], indirect=["scenario"])
def test_nothing_is_lost_where_the_system_refuses(tmp_path, scenario, kind, lasting):
    calls, wrong = sweep(tmp_path, kind, lasting, scenario)
    print(f"{calls} calls")
    assert not wrong, "\n".join(f"{n}: {error}" for n, error in wrong.items())


# ---- what it found ---------------------------------------------------------------------------------------------------


def test_an_adapter_stays_active_where_no_further_file_can_be_opened(made, tmp_path):
    """That start fails, the next one has it."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    with fault("open", path="/adapters/"), pytest.raises(TooMuchError, match=r"adapter.gguf: Too many open files"):
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
            assert "Too many open files" in service.health()["reasons"][0]
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
