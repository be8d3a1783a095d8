"""A stopped run resumes to the bytes of one that nobody disturbed; what has changed is refused or named."""

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from counting import dataset
from durable import CONFIG, STEPS, check_metrics, go, metrics, refused, stop, stop_after
from tiny import write_tiny

from edgetune import disk
from edgetune.errors import FormatError, Interrupted, MismatchError, NumericsError, UsageError
from edgetune.formats.bundle import open_bundle
from edgetune.training import checkpoint
from edgetune.training.callbacks import RunCallbacks
from edgetune.training.run import disk_writes, run
from edgetune.training.trainer import Trainer


@pytest.mark.dev
@pytest.mark.parametrize("answers", [0, 3, 5, 8, 21, 33, 47, 60])
def test_stopped_anywhere_it_resumes_to_the_same_bytes(bundle, tmp_path, wanted, answers):
    stop(bundle, tmp_path / "out", answers)
    stopped = json.loads((tmp_path / "out" / "run.json").read_text())
    assert stopped["status"] == "paused"
    stop(bundle, tmp_path / "out", answers // 3, resume=True)
    assert go(bundle, tmp_path / "out", resume=True) == wanted
    check_metrics(tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["adapter.gguf", "metrics.jsonl", "run.json"]


def test_with_moments_in_8_bits_it_resumes_to_the_same_bytes(bundle, tmp_path, wanted):
    config = replace(CONFIG, optimizer_state="8bit")
    undisturbed = go(bundle, tmp_path / "undisturbed", config)
    assert undisturbed != wanted
    assert json.loads((tmp_path / "undisturbed" / "run.json").read_text())["plan"]["optimizer_state"] == "8bit"
    stop(bundle, tmp_path / "out", 33, config)
    found, _ = checkpoint.newest(tmp_path / "out")
    assert [name for name, _ in found.arrays[:2]] == ["lora", "adam_8bit"]
    assert go(bundle, tmp_path / "out", config, resume=True) == undisturbed


def test_a_stop_is_heard_in_every_block_of_a_pass(bundle, tmp_path):
    """Between two calls is at most a block or the head: both ways through two blocks, before and between steps."""
    asked = [0]
    at = []
    config = replace(CONFIG, steps=2, micro_batch=1024, eval_every=0)
    run(bundle, dataset(24), tmp_path / "out", config,
        callbacks=RunCallbacks(lambda _: at.append(asked[0]), lambda: asked.__setitem__(0, asked[0] + 1)))
    assert at[1:3] == [1 + 1 + 5, 2 * (1 + 1 + 5)]


def test_a_step_in_flight_is_undone(bundle):
    trainer, other = (Trainer(bundle, CONFIG) for _ in range(2))
    for t in (trainer, other):
        t.add_examples(dataset(24).examples)
    asked = iter([False] * 3)
    with pytest.raises(Interrupted):
        trainer.step(lambda: next(asked, True))
    assert trainer.steps_done == 0
    assert trainer.step().loss == other.step().loss
    assert np.array_equal(trainer.arena.flat("lora"), other.arena.flat("lora"))


def test_a_run_killed_before_its_first_checkpoint_restarts(bundle, tmp_path, wanted):
    out = tmp_path / "out"
    out.mkdir()
    (out / "metrics.jsonl").write_text('{"event": "step", "step": 1}\n{"event": "st')
    (out / "checkpoint-1.tmp").write_text("half")
    assert go(bundle, out, resume=True) == wanted
    check_metrics(out)
    with pytest.raises(UsageError, match="is finished, after step 8; name how many epochs to add"):
        go(bundle, out, resume=True)
    with pytest.raises(FormatError, match="is no folder of a run"):
        go(bundle, tmp_path / "none", resume=True, more=1.0)
    assert not (tmp_path / "none").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(FormatError, match="or it is no run"):
        go(bundle, tmp_path / "other", resume=True)
    assert (tmp_path / "other" / "notes.txt").read_text() == "mine"


def test_two_runs_do_not_share_a_folder(bundle, tmp_path):
    stop(bundle, tmp_path / "out", 30)
    with disk.alone(tmp_path / "out"), pytest.raises(UsageError, match="another process"):
        go(bundle, tmp_path / "out", resume=True)


# ---- changed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "words"), [
    ({"lr": 1.0}, "--lr 0.02, not 1.0"),
    ({"dropout": 0.2}, "--dropout 0.1, not 0.2"),
    ({"micro_batch": 1024}, "--micro-batch 64, not "),
    ({"precision": "exact"}, "--precision fast, not exact"),
    ({"rank": 8}, "--rank 4, not 8"),
    ({"optimizer_state": "8bit"}, "--optimizer-state float, not 8bit; give what it was started with"),
])
def test_a_changed_option_is_refused_by_name(bundle, paused, change, words):
    refused(bundle, paused, words, config=replace(CONFIG, **change), resume=True)


def test_another_base_data_or_held_out_is_refused(bundle, paused, tmp_path):
    other = open_bundle(write_tiny(tmp_path / "other.gguf", formats="Q8_0", seed=5))
    data = dataset(24)
    held_out = dataset(6, 1)
    for inputs, words in (((other, data, held_out), "the base"), ((bundle, data, None), "held-out data .*, not none"),
                          ((bundle, dataset(23), held_out), "the data sha256:24-0, not sha256:23-0")):
        with pytest.raises(MismatchError, match=words):
            run(*inputs[:2], paused, CONFIG, held_out=inputs[2], resume=True)
    assert len(checkpoint.found(paused)) == 2


@pytest.mark.parametrize("change", [{"threads": 1}, {"checkpoint_every": "never"}, {"memory": "90%"},
                                    {"weights": "streamed"}])
def test_what_may_change_without_changing_the_result(bundle, paused, wanted, change):
    assert go(bundle, paused, replace(CONFIG, **change), resume=True) == wanted


def test_a_change_that_is_allowed_by_name(bundle, paused, wanted):
    """The steps done stay, the rest is done with what is given now, and run.json says so; once allowed, it is known."""
    config = replace(CONFIG, lr=5e-3, steps=10)
    refused(bundle, paused, "--steps 8, not 10", config=config, resume=True, allow_changed=["lr"])
    stop(bundle, paused, 12, config, resume=True, allow_changed=["lr", "steps"])
    assert go(bundle, paused, config, resume=True) != wanted
    record = json.loads((paused / "run.json").read_text())
    assert record["changed"] == [{"name": "lr", "was": 0.02, "now": 0.005, "after_step": 5},
                                 {"name": "steps", "was": 8, "now": 10, "after_step": 5}]
    assert [line["step"] for line in metrics(paused) if line["event"] == "step"] == list(range(1, 11))
    lrs = {line["step"]: line["lr"] for line in metrics(paused) if line["event"] == "step"}
    assert lrs[5] > 4 * lrs[6] > 0


def test_other_data_allowed_by_name(bundle, paused):
    """Other held-out rows: the best so far was measured on others and is forgotten."""
    record = run(bundle, dataset(12), paused, CONFIG, held_out=dataset(4, 3), resume=True,
                       allow_changed=["data", "held-out"])
    assert record["steps"] == STEPS
    assert record["held_out"]["loss_before"] is None
    assert record["held_out"]["best_step"] in (6, 8)
    assert [change["name"] for change in record["changed"]] == ["data", "held-out"]


def test_fewer_steps_than_are_done_end_at_once(bundle, paused):
    record = run(bundle, dataset(24), paused, replace(CONFIG, steps=3), held_out=dataset(6, 1),
                       resume=True, allow_changed=["steps"])
    assert record["steps"] == 5


@pytest.mark.parametrize("name", ["rank", "targets", "optimizer-state", "learning-rate"])
def test_what_cannot_be_allowed(bundle, paused, tmp_path, name):
    refused(bundle, paused, f"{name} cannot be allowed to change; what can: .*data.*lr", resume=True,
            allow_changed=[name])
    refused(bundle, tmp_path / "new", "resume a run", allow_changed=["lr"])


def test_a_run_that_fails_right_after_resume_keeps_its_checkpoints(bundle, tmp_path, monkeypatch):
    """No step of this process has shown that the adapter is good, so none is written over the paused one."""
    out = tmp_path / "out"
    done = []
    config = replace(CONFIG, eval_every=0)
    with pytest.raises(Interrupted):
        run(bundle, dataset(24), out, config,
            callbacks=RunCallbacks(should_stop=lambda: 2 in done, on_event=lambda e: done.append(e.get("step"))))
    paused = (out / "adapter.gguf").read_bytes()
    real = Trainer.step

    def poisoned(self, should_stop=None):
        self.arena.flat("lora")[0] = np.inf
        return real(self, should_stop)

    monkeypatch.setattr(Trainer, "step", poisoned)
    with pytest.raises(NumericsError, match="step 3"):
        run(bundle, dataset(24), out, config, resume=True)
    assert (out / "adapter.gguf").read_bytes() == paused
    assert [path.name for path in checkpoint.found(out)] == ["checkpoint-1", "checkpoint-2"]


# ---- small and in place ----------------------------------------------------------------------------------------------


def test_a_checkpoint_holds_what_cannot_be_derived(bundle, tmp_path):
    """A and B, Adam's two moments; the best adapter only where it is another; nothing before the first step."""
    state = ["lora", "adam_m", "adam_v"]
    for step, names in ((0, []), (2, state), (3, state), (4, [*state, "best"])):
        stop_after(step, bundle, tmp_path / f"at-{step}")
        found, _ = checkpoint.newest(tmp_path / f"at-{step}")
        assert [name for name, _ in found.arrays] == names
        assert found.path.stat().st_size < sum(nbytes for _, nbytes in found.arrays) + 2000


def test_nothing_new_is_not_written_again(bundle, paused):
    before = [path.stat().st_mtime_ns for path in checkpoint.found(paused)]
    stop(bundle, paused, 0, resume=True)
    assert [path.stat().st_mtime_ns for path in checkpoint.found(paused)] == before


def test_saving_and_reading_need_a_small_buffer_only(tmp_path):
    arrays = {name: np.arange(2**21, dtype=np.float32) for name in ("lora", "adam_m")}  # 8 MiB each
    back = {name: np.empty_like(array) for name, array in arrays.items()}
    tracemalloc.start()
    try:
        checkpoint.save(tmp_path, 7, arrays, {"step": 7})
        found, _ = checkpoint.newest(tmp_path)
        found.read(back.__getitem__)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert all(np.array_equal(back[name], arrays[name]) for name in arrays)
    assert peak < 2.5 * 2**20


def test_the_adapter_is_written_without_a_copy(tmp_path):
    """A wide model, so that a copy of its adapter would be seen: 64 ranks of 7 projections."""
    bundle = open_bundle(write_tiny(tmp_path / "wide.gguf", n_blocks=20))
    trainer = Trainer(bundle, rank=64, max_length=16, batch_size=1)
    trainer.save(tmp_path / "first")
    tracemalloc.start()
    try:
        trainer.save(tmp_path / "second")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert trainer.arena.flat("lora").nbytes > 4 * 2**20
    assert peak < 2**20


def test_what_a_day_writes(bundle, tmp_path):
    events = []
    config = replace(CONFIG, checkpoint_every="5m")
    go(bundle, tmp_path / "out", config, callbacks=RunCallbacks(on_event=events.append))
    said = events[0]["disk"]
    lora = Trainer(bundle, config).arena.flat("lora").nbytes
    assert 4 * lora < said["checkpoint_bytes"] < 4 * lora + 5000
    assert said == disk_writes(Trainer(bundle, config).plan, config, True, tmp_path)  # as edgetune plan says
    assert said["bytes_per_day"] == said["checkpoint_bytes"] * 288 + 4096 * 2880
    record = json.loads((tmp_path / "out" / "run.json").read_text())["disk"]
    assert record["written_bytes"] == (tmp_path / "out" / "metrics.jsonl").stat().st_size  # no checkpoint was due
