"""Adapters of the daemon: kept, promoted, rolled back, deleted, while answers go on and after a restart."""

import threading
from contextlib import contextmanager

import pytest
from counting import OPTIONS, dataset
from services import until
from tiny import write_tiny

from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.state.adapters import Adapters
from edgetune.daemon.state.database import Store
from edgetune.errors import MismatchError, NotFoundError, UsageError
from edgetune.formats.bundle import open_bundle, sha256
from edgetune.serving.batcher import Batcher
from edgetune.serving.llama import LlamaModel
from edgetune.training import run as train
from edgetune.training.config import TrainConfig

PASSED = {"passed": True, "reason": "it is better"}


@pytest.fixture(scope="module")
def runs(model, tmp_path_factory):
    """Folders of finished runs, all different."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(6):
        train.run(open_bundle(model), dataset(8, seed), folder / f"{seed}", TrainConfig(**{**OPTIONS, "steps": 3}))
    return [folder / f"{seed}" for seed in range(6)]


@contextmanager
def opened(folder, model, **options):
    store = Store(folder)
    with LlamaModel(model, threads=1, sequences=4) as served:
        batcher = Batcher(served, parallel=2, queue=4)
        adapters = Adapters(store, folder, batcher, DaemonConfig(**options), "tiny", lambda: 1 << 30,
                            open_bundle(model).fingerprint)
        batcher.start()
        try:
            adapters.start()
            yield adapters
        finally:
            batcher.stop(now=True)
            store.close()


def add(adapters, runs, *numbers):
    return [adapters.add(f"ftjob-{number}", runs[number], "home", PASSED).id for number in numbers]


def states(adapters):
    return {found.id: found.state for found in adapters.list()}


def test_from_candidate_to_service_and_back(tmp_path, model, runs):
    with opened(tmp_path, model) as adapters:
        assert adapters.serving is None
        with pytest.raises(UsageError, match="no adapter was active before"):
            adapters.rollback("try")
        first, second, third = add(adapters, runs, 0, 1, 2)
        assert first.startswith("ft:tiny:home:")
        assert adapters.get(first).sha256 == sha256(runs[0] / "adapter.gguf")
        assert adapters.get(first).verdict == PASSED
        assert states(adapters) == {third: "candidate", second: "candidate", first: "candidate"}
        adapters.promote(first, "a")
        adapters.promote(second, "b")
        adapters.promote(second, "again")  # nothing changes
        assert states(adapters) == {third: "candidate", second: "serving", first: "retired"}
        assert adapters.rollback("c").id == first
        assert adapters.rollback("d") is None  # not to the second, which was rolled back
        assert adapters.serving is None
        assert [(line["adapter"], line["cause"]) for line in adapters.history()] == [
            (None, "d"), (first, "c"), (second, "b"), (first, "a")]
        adapters.promote(third, "e")
        adapters.promote(first, "f")
        assert adapters.rollback("g").id == third
        adapters.promote(first, "h")
        adapters.delete(third)
        assert adapters.rollback("i") is None  # what was deleted is passed over
        assert len(adapters.history(limit=2)) == 2


def test_a_job_has_one_adapter_and_deletion_takes_it_away(tmp_path, model, runs):
    """Also if the job is finished twice, because a kill came between. Another model refuses what is there."""
    with opened(tmp_path, model) as adapters:
        assert add(adapters, runs, 0) == add(adapters, runs, 0)
        first, second = add(adapters, runs, 0, 1)
        assert len(adapters.list()) == 2
        adapters.promote(first, "a")
        with pytest.raises(UsageError, match="is active"):
            adapters.delete(first)
        folder = adapters.path(second)
        adapters.delete(second)
        assert not folder.exists()
        for ask in (adapters.get, adapters.path, adapters.delete, lambda id: adapters.promote(id, "x")):
            with pytest.raises(NotFoundError, match="there is no adapter"):
                ask(second)
        assert adapters.batcher.served.adapters() == [first]
    other = write_tiny(tmp_path / "other.gguf", formats="Q8_0", seed=1)
    with pytest.raises(MismatchError, match="was trained on"), opened(tmp_path, other):
        pass


def test_pruning_keeps_the_way_back_and_the_newest(tmp_path, model, runs):
    """What a client added stays, too."""
    with opened(tmp_path, model, keep=3) as adapters:
        foreign = adapters.add_foreign(runs[0], "").id
        ids = add(adapters, runs, 0, 1, 2, 3, 4, 5)
        adapters.promote(ids[0], "a")
        adapters.promote(ids[1], "b")
        adapters.prune()
        assert states(adapters) == {ids[5]: "candidate", ids[4]: "candidate", ids[1]: "serving", ids[0]: "retired",
                                    foreign: "candidate"}
        assert len(list(adapters.folder.iterdir())) == 5
        assert adapters.rollback("c").id == ids[0]


def test_after_a_restart(tmp_path, model, runs):
    with opened(tmp_path, model) as adapters:
        first, second = add(adapters, runs, 0, 1)
        adapters.promote(second, "a")
        before = adapters.list()
        history = adapters.history()
    for name in ("00000000", "12345678.77.tmp"):  # what a kill within `add` leaves
        (tmp_path / "adapters" / name).mkdir()
    with opened(tmp_path, model) as adapters:
        assert (adapters.list(), adapters.history(), adapters.serving) == (before, history, second)
        assert {path.name for path in adapters.folder.iterdir()} == {found.folder for found in before}
        assert set(adapters.batcher.served.adapters()) == {first, second}


def test_a_damaged_adapter_gives_way_to_the_one_before(tmp_path, model, runs):
    with opened(tmp_path, model) as adapters:
        first, second = add(adapters, runs, 0, 1)
        adapters.promote(first, "a")
        adapters.promote(second, "b")
        file = adapters.path(second) / "adapter.gguf"
    file.write_bytes(file.read_bytes()[:1000])
    with opened(tmp_path, model) as adapters:
        assert adapters.serving == first
        assert adapters.history()[0]["cause"].startswith(f"{second} cannot be loaded: ")
        assert list(adapters.damaged) == [second]
        assert states(adapters) == {first: "serving"}
        adapters.delete(second)
        assert not adapters.damaged
    with opened(tmp_path, model) as adapters:
        assert not adapters.damaged


def test_an_answer_ends_on_the_adapter_that_it_began_with(tmp_path, model, runs):
    prompt = list(range(10, 30))
    with opened(tmp_path, model) as adapters:
        first, second = add(adapters, runs, 0, 1)
        alone = adapters.batcher.submit(prompt, adapter=first, max_tokens=100).text()
        adapters.promote(first, "a")
        began = threading.Event()
        go_on = threading.Event()

        def hold(_ticket, _piece):
            began.set()
            assert go_on.wait(30)

        ticket = adapters.batcher.submit(prompt, adapter=adapters.serving, max_tokens=100, on_piece=hold)
        assert began.wait(30)
        adapters.promote(second, "b")
        deletion = threading.Thread(target=adapters.delete, args=(first,))
        deletion.start()
        until(lambda: first not in states(adapters))
        assert adapters.serving == second  # nothing waits for the answer
        go_on.set()
        assert ticket.text() == alone
        assert (ticket.adapter, ticket.finish) == (first, "length")
        deletion.join(30)
        assert adapters.batcher.served.adapters() == [second]
