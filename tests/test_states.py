"""What edgetune 0.1.0 wrote still opens: a bundle, an adapter, a stopped run, a daemon's state."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from durable import CONFIG, check_metrics, go, metrics
from services import open_service, until

from edgetune.adapters.store import open_adapter
from edgetune.backends import cpu
from edgetune.daemon.learning.file_rows import rows_of_active
from edgetune.data import rows as supervised_rows
from edgetune.formats.bundle import open_bundle
from edgetune.serving.llama import LlamaModel

ARCHIVE = Path(__file__).parent / "fixtures" / "states-0.1.0.tar.xz"


ISA = "avx512bf16"  # where it was written: no other kernels continue a run


@pytest.fixture
def states(tmp_path, monkeypatch):
    """A copy of what the old version wrote."""
    if cpu.usable(ISA):
        monkeypatch.setenv("EDGETUNE_ISA", ISA)
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_bundle_opens_and_is_the_base_of_the_adapter(states):
    bundle = open_bundle(states / "small.edge")
    pairs = open_adapter(states / "adapter", bundle.gguf).pairs
    assert len(pairs) == 14
    assert all(pair.a.shape[0] == CONFIG.family.rank for pair in pairs.values())


def test_adapter_answers_through_llama_cpp(states):
    with LlamaModel(states / "tiny.gguf", threads=1) as served:
        before = served.logits([3, 4, 5])[-1].copy()
        served.load_adapter(states / "adapter", "old")
        served.use("old")
        after = served.logits([3, 4, 5])[-1]
    assert np.abs(after - before).max() > 1e-3


def test_stopped_run_ends_in_the_adapter_of_the_old_version(states):
    """Other machines sum in another order, so values are compared, not bytes."""
    bundle = open_bundle(states / "tiny.gguf")
    go(bundle, states / "stopped", resume=True, allow_changed=() if cpu.usable(ISA) else ("isa",))
    check_metrics(states / "stopped")
    wanted = open_adapter(states / "adapter", bundle.gguf).pairs
    found = open_adapter(states / "stopped", bundle.gguf).pairs
    for name, pair in wanted.items():
        scale = max(np.abs(pair.b).max(), 1e-6)
        assert np.abs(found[name].a - pair.a).max() < 0.02 * np.abs(pair.a).max(), name
        assert np.abs(found[name].b - pair.b).max() < 0.02 * scale, name


@pytest.mark.slow
def test_daemon_continues_where_the_old_version_was_killed(states):
    with open_service(states / "daemon") as service:
        adapter = service.adapters.serving
        assert adapter is not None
        assert "first" in adapter
        assert rows_of_active(service.jobs, supervised_rows, set(), "").learned
        jobs = {job.suffix: job.id for job in service.jobs.list()}
        assert jobs.keys() == {"first", "second", "third"}
        assert service.feedback.counts()["new"] + service.feedback.counts()["held"] == 6
        assert "".join(service.chat([{"role": "user", "content": "turn on lamp 3"}], max_tokens=8))
        until(lambda: service.jobs.get(jobs["third"]).finished_at, 120)
        assert {service.jobs.get(id).status for id in jobs.values()} == {"succeeded"}
        second = service.jobs.get(jobs["second"]).result
        assert second in service.adapters.ids()
    lines = metrics(states / "daemon/state/adapters" / second.split(":")[-1])
    assert [line["step"] for line in lines if line["event"] == "step"] == list(range(1, 401))
    assert any(line["event"] == "resume" for line in lines) == cpu.usable(ISA)
