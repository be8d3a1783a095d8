"""A daemon's state that has been in use, for tests that damage it or continue it; services; daemons of a module."""

import shutil

import pytest
from daemon_fixtures import client, http, model, running  # noqa: F401 (fixtures)
from fake_workers import FakeWorkers
from learners import opened
from services import make_state
from thread_workers import ThreadWorker
from tiny import write_tiny

from edgetune.daemon.state.database import Store


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Read only: copy it."""
    return make_state(tmp_path_factory.mktemp("made"), ThreadWorker)


@pytest.fixture
def folder(made, tmp_path):
    """A copy to damage."""
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture(scope="session")
def tiny_q8(tmp_path_factory):
    """A tiny llama in Q8_0. Read only."""
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", formats="Q8_0")


@pytest.fixture(autouse=True)
def stores_are_closed(monkeypatch):
    """Those that a test opens: since Python 3.13 a connection that nobody closed is a warning."""
    opened = []

    def begin(store, folder):
        opened.append(store)
        make(store, folder)

    make = Store.__init__
    monkeypatch.setattr(Store, "__init__", begin)
    yield
    for store in opened:
        store.close()


@pytest.fixture
def workers():
    """The processes of `service`."""
    return FakeWorkers()


@pytest.fixture
def service(tiny_q8, tmp_path, workers):
    """Learns when it is told to, and trains nothing: of tests that open no service themselves."""
    with opened(tiny_q8, tmp_path, start_process=workers, learn_rows=10) as service:
        yield service


@pytest.fixture
def trains(tiny_q8, tmp_path):
    """The same in earnest."""
    with opened(tiny_q8, tmp_path, start_process=ThreadWorker, learn_rows=10,
                canary_rise="off") as service:  # kernels differ in the canary's rise
        yield service
