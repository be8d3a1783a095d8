"""edgetune.daemon.rebase: what a state folder holds, learned on another base."""

import json
import os
import stat

import pytest
from commands import run
from kills import killed_before_removing
from services import learned_state, same_holdout
from tiny import write_tiny

from edgetune import TrainConfig
from edgetune.adapters.store import open_adapter
from edgetune.daemon.learning.feedback import Feedback
from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.rebase import WORK, rebase
from edgetune.daemon.state.database import Store
from edgetune.daemon.state.holdout import open_holdout
from edgetune.disk import alone
from edgetune.errors import Interrupted, NotFoundError, UsageError
from edgetune.formats.gguf import open_gguf
from edgetune.machine.policy import Policy
from edgetune.serving.llama import LlamaModel

TRAIN = TrainConfig(lr=2e-2, epochs=2.0, batch_size=4, max_length=96, threads=1)
CONFIG = DaemonConfig(context=512, parallel=2, threads=1, canary_rise="off", max_kl="off")
FREE = Policy(govern=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Not the one that the state was written beside: a state without adapters belongs to none."""
    return write_tiny(tmp_path_factory.mktemp("model") / "new.gguf", formats="Q8_0", seed=7)


@pytest.fixture
def state(tmp_path):
    """Of a daemon that learned two lessons of 20 corrections, and that has heard a word that it did not learn yet."""
    folder = learned_state(tmp_path / "state")
    store = Store(folder)
    feedback = Feedback(store, open_holdout(folder), DaemonConfig())
    feedback.add(prompt="turn the light 90", correction="off")
    store.close()
    return folder


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rebased(base, state, out, **options):
    return rebase(base, state, out, config=CONFIG, policy=FREE, train=TRAIN, **options)


@pytest.mark.dev
def test_all_that_was_learned_is_learned_on_another_base(base, state, tmp_path):
    """Also where it is stopped meanwhile, or killed at last, which leaves what people wrote, no longer than until the
    next call; what the verdict says is what llama.cpp answers.
    """
    before = files(state)
    out = tmp_path / "out"
    events = []

    def stop(event):
        """At the first event, whether the job has ended since or not."""
        events.append(event)
        raise Interrupted("stopped by an event")

    with pytest.raises(Interrupted, match="continue with the same command"):
        rebased(base, state, out, should_stop=lambda: True)
    with pytest.raises(Interrupted, match="by an event"):
        rebased(base, state, out, on_event=stop)
    assert not out.exists()
    with pytest.raises(UsageError, match="holds a rebase of another state"):
        rebased(base, tmp_path, out)
    with killed_before_removing(tmp_path / f"out{WORK}", out):
        found = rebased(base, state, out, on_event=events.append)
    assert files(state) == before
    with pytest.raises(UsageError, match="out exists"):
        rebased(base, state, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "state"]
    assert (found.rows, found.held) == (32, 8)
    verdict = json.loads((out / "run.json").read_text())["gate"]
    assert verdict == found.verdict
    assert [(counts["job"], counts["rows"]) for counts in verdict["rounds"]] == [("ftjob-0", 4), ("ftjob-1", 4)]
    assert open_adapter(out, open_gguf(base)).run["data"]["rows"] > 32
    assert [event["event"] for event in events].count("step") > 10
    feedback = Feedback(Store(state), open_holdout(state), DaemonConfig())
    held = [feedback.row(stored) for stored in feedback.learned_rows().held]
    with LlamaModel(base, context=512, threads=1) as served:
        served.load_adapter(out, "new")
        served.use("new")
        said = ["".join(served.chat(row["messages"][:-1], max_tokens=8)) for row in held]
    assert sum(text.strip() == "on" for text in said) == verdict["new"]["right"] > 0
    assert found.sentence.startswith("learned 32 rows on the new base; would be activated: ")


def test_the_copy_of_what_people_said_is_private_from_its_first_byte_on(base, state, tmp_path, monkeypatch):
    """Whatever the process lets others read otherwise."""
    seen = {}

    def opened(folder):
        seen.update({path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())})
        return Store(folder)

    monkeypatch.setattr("edgetune.daemon.rebase.Store", opened)
    mask = os.umask(0)
    try:
        with pytest.raises(Interrupted):
            rebased(base, state, tmp_path / "out", should_stop=lambda: True)
    finally:
        os.umask(mask)
    (folder, mode), *files = seen.items()
    assert folder.startswith("out")
    assert mode == 0o700
    assert {"state.db", "holdout.key"} <= {name for name, _ in files}
    assert {mode for _, mode in files} == {0o600}
    assert stat.S_IMODE((tmp_path / f"out{WORK}").stat().st_mode) == 0o700


def test_what_cannot_be_rebased_is_said(base, state, tmp_path):
    """What can be is learned with the system message of the active adapter."""
    with alone(state), pytest.raises(UsageError, match=r"a daemon holds .*state, or another program; stop it"):
        rebased(base, state, tmp_path / "out")
    with pytest.raises(NotFoundError, match=r"is no state folder of a daemon: it has no state\.db"):
        rebased(base, tmp_path, tmp_path / "out")
    with pytest.raises(UsageError, match="exists"):
        rebased(base, state, state)
    empty = tmp_path / "empty"
    same_holdout(empty)
    Store(empty).close()
    with pytest.raises(UsageError, match="no feedback was learned yet"):
        rebased(base, empty, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "state"]
    folder = state / "adapters" / "0123abcd"
    folder.mkdir(parents=True)
    (folder / "adapter.gguf").touch()
    (folder / "run.json").write_text('{"system": "Be brief."}')
    store = Store(state)
    with store.write() as db:
        db.execute("INSERT INTO adapters VALUES ('ft:old::0123abcd', '0123abcd', 'ftjob-1', 1, '', '{}', '', '')")
        db.execute("INSERT INTO service (at, adapter, cause) VALUES (1, 'ft:old::0123abcd', 'test')")
    store.close()
    with pytest.raises(Interrupted):
        rebased(base, state, tmp_path / "out", should_stop=lambda: True)
    store = Store(tmp_path / f"out{WORK}")
    (job,) = store.read("SELECT config FROM jobs")
    store.close()
    assert json.loads(job["config"])["system"] == "Be brief."


@pytest.mark.slow
def test_the_command_says_what_became_of_it(base, state, tmp_path):
    said = run("lab", "rebase", str(base), "--from", str(state), "-o", str(tmp_path / "out"), "--threads", "1",
               "--context", "512", "--lr", "0.02", "--epochs", "2", "--max-length", "96", "--canary-rise", "off",
               "--max-kl", "off",
               "--no-govern")
    assert "learned 32 rows on the new base; would be activated: " in said
    assert "questions of 2 earlier jobs are right" in said
    assert not (tmp_path / f"out{WORK}").exists()
