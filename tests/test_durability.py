"""Runs that are stopped, killed, damaged or out of disk go on to the bytes of a run that nobody disturbed."""

import json
import os
import resource
import shutil
import sys
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proofs.kill import prove
from test_train import dataset
from tiny import write_tiny

from edgetune import adapter, checkpoint, disk, train
from edgetune.bundle import open_bundle
from edgetune.config import TrainConfig
from edgetune.errors import EdgetuneError, FormatError, Interrupted, MismatchError, NumericsError, UsageError
from edgetune.trainer import Trainer

STEPS = 8
CONFIG = TrainConfig(rank=4, lr=2e-2, batch_size=4, max_length=48, threads=2, warmup=2, steps=STEPS, dropout=0.1,
                     micro_batch=64, eval_every=3, checkpoint_every="0.000001")  # after every step


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return open_bundle(write_tiny(tmp_path_factory.mktemp("durable") / "tiny.gguf", formats="Q8_0"))


@pytest.fixture(scope="module")
def wanted(bundle, tmp_path_factory):
    """adapter.gguf of the undisturbed run."""
    return go(bundle, tmp_path_factory.mktemp("whole") / "out")


def go(bundle, out, config=CONFIG, **options):
    train.run(bundle, dataset(24), out, config, held_out=dataset(6, 1), **options)
    return (out / "adapter.gguf").read_bytes()


def stop(bundle, out, answers, config=CONFIG, **options):
    """Start it, and stop it when it has asked so many times; the model's blocks ask."""
    asked = iter([False] * answers)
    with pytest.raises(Interrupted, match="--resume"):
        go(bundle, out, config, should_stop=lambda: next(asked, True), **options)


def refused(bundle, out, match, **options):
    with pytest.raises(EdgetuneError, match=match) as caught:
        go(bundle, out, **options)
    assert "\n" not in str(caught.value)
    assert not list(out.glob("*.tmp"))


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def check_metrics(out):
    """No step twice, none missing, and the same for measurements."""
    lines = metrics(out)
    assert [line["step"] for line in lines if line["event"] == "step"] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if line["event"] == "eval"] == [0, 3, 6, 8]


class Disk:
    """What Python does to the files of one folder, told by audit events; `on` is called before each with its name."""

    def __init__(self):
        self.folder, self.on = None, None
        sys.addaudithook(self._hook)

    def _hook(self, event, args):
        if self.on and event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"):
            paths = [str(a) for a in args[:2 if event == "os.rename" else 1]]
            if paths[0].startswith(self.folder):
                self.on(event, [os.path.basename(path) for path in paths])  # noqa: PTH119


DISK = Disk()


@pytest.fixture
def watched(tmp_path):
    """watched(function): have it called at each event in the folder tmp_path / "out"."""
    def watch(on):
        DISK.folder, DISK.on = str(tmp_path / "out"), on
    yield watch
    DISK.on = None


# ---- stopped and killed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answers", [0, 3, 5, 8, 21, 33, 47, 60])
def test_stopped_anywhere_it_goes_on_to_the_same_bytes(bundle, tmp_path, wanted, answers):
    stop(bundle, tmp_path / "out", answers)
    stopped = json.loads((tmp_path / "out" / "run.json").read_text())
    assert stopped["status"] == "paused"
    stop(bundle, tmp_path / "out", answers // 3, resume=True)
    assert go(bundle, tmp_path / "out", resume=True) == wanted
    check_metrics(tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["adapter.gguf", "metrics.jsonl", "run.json"]


def test_a_stop_is_heard_in_every_block_of_a_pass(bundle, tmp_path):
    """Between two answers lies one block at most: a step of this model with two blocks asks at each, both ways."""
    asked, at = [0], []
    config = replace(CONFIG, steps=2, micro_batch=1024, eval_every=100)
    train.run(bundle, dataset(24), tmp_path / "out", config, on_event=lambda _: at.append(asked[0]),
              should_stop=lambda: asked.__setitem__(0, asked[0] + 1))
    assert at[1:3] == [1 + 4, 2 * (1 + 4)]


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


class PowerOff(BaseException):
    """From here on the disk takes nothing."""


@pytest.mark.parametrize("first", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 5))])
def test_dead_between_any_two_changes_of_the_disk(bundle, tmp_path, watched, wanted, first):
    """As kill -9 there, at every fifth place: `make durability` runs all five."""
    out, count = tmp_path / "out", [0]
    watched(lambda *_: count.__setitem__(0, count[0] + 1))
    go(bundle, out)
    places = count[0] - 1  # the last one is go's own
    for place in range(1 + first, places + 1, 5):
        watched(None)
        shutil.rmtree(out, ignore_errors=True)
        count[0] = 0

        def die(*_, place=place):
            count[0] += 1
            if count[0] >= place:
                raise PowerOff

        watched(die)
        with pytest.raises(PowerOff):
            go(bundle, out)
        watched(None)
        if out.exists():
            assert go(bundle, out, resume=True) == wanted, place
            check_metrics(out)
            assert not list(out.glob("*.tmp"))
        else:
            assert place == 1


def test_a_power_cut_may_take_all_that_was_not_flushed(bundle, tmp_path, watched, wanted, monkeypatch):
    """The worst that a disk can make of it: contents and names since their last fsync are lost, removals are not."""
    out, contents, names, states = tmp_path / "out", {}, {}, []

    def flushed(handle):
        path = os.readlink(f"/proc/self/fd/{handle}")  # noqa: PTH115
        if path == str(out):
            names.clear()
            names.update({p.name: p.stat().st_ino for p in out.iterdir()})
        elif path.startswith(str(out)):
            contents[os.fstat(handle).st_ino] = os.pread(handle, 2**24, 0)
        keep()

    def removed(event, paths):
        if event == "os.remove":
            names.pop(paths[0], None)
            keep()

    def keep():
        state = {name: contents.get(inode, b"") for name, inode in names.items()}
        if state not in states:
            states.append(state)

    monkeypatch.setattr(os, "fsync", flushed)
    watched(removed)
    go(bundle, out)
    watched(None)
    monkeypatch.undo()
    assert len(states) > STEPS
    for i, state in enumerate(states[:-1]):
        cut = tmp_path / f"cut-{i}"
        cut.mkdir()
        for name, content in state.items():
            (cut / name).write_bytes(content)
        assert go(bundle, cut, resume=True) == wanted, sorted(state)
        check_metrics(cut)
    assert sorted(states[-1]) == ["adapter.gguf", "metrics.jsonl", "run.json"]
    assert states[-1]["adapter.gguf"] == wanted


def test_flushed_before_named_and_named_before_the_old_goes(bundle, tmp_path, watched, monkeypatch):
    out, log = tmp_path / "out", []
    real = os.fsync

    def flush(handle):
        log.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))))  # noqa: PTH115, PTH119
        real(handle)

    monkeypatch.setattr(os, "fsync", flush)
    watched(lambda event, paths: log.append((event, *paths)) if event != "open" else None)
    go(bundle, out)
    watched(None)
    log = [entry for entry in log if entry != ("os.remove", f"{entry[1].removesuffix('.tmp')}.tmp")]  # none is there
    saved = [i for i, entry in enumerate(log) if entry[0] == "os.rename"]
    assert len(saved) == STEPS + 2
    for i in saved:
        assert log[i - 1] == ("fsync", log[i][1])
        assert log[i + 1] == ("fsync", "out")
        if log[i][2].startswith("checkpoint"):
            assert log[i - 2] == ("fsync", "metrics.jsonl")
    last = [entry[2] for entry in log if entry[0] == "os.rename"][-2:]
    assert last == ["adapter.gguf", "run.json"]
    assert [entry[1] for entry in log[saved[-1] + 2:]] == ["checkpoint-7", "checkpoint-8"]  # removed after all


def test_killed_at_random_moments(tmp_path):
    """The short form of what `make durability` does 200 times."""
    assert sum(prove(tmp_path, kills=4, seed=1).values()) == 4


def test_a_run_killed_before_its_first_checkpoint_begins_again(bundle, tmp_path, wanted):
    out = tmp_path / "out"
    out.mkdir()
    (out / "metrics.jsonl").write_text('{"event": "step", "step": 1}\n{"event": "st')
    (out / "checkpoint-1.tmp").write_text("half")
    assert go(bundle, out, resume=True) == wanted
    check_metrics(out)
    with pytest.raises(FormatError, match="finished"):
        go(bundle, out, resume=True)
    with pytest.raises(FormatError, match="without --resume"):
        go(bundle, tmp_path / "none", resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(FormatError, match="or no run"):
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
])
def test_a_changed_option_is_refused_by_name(bundle, stopped, tmp_path, change, words):
    shutil.copytree(stopped, tmp_path / "out")
    refused(bundle, tmp_path / "out", words, config=replace(CONFIG, **change), resume=True)


def test_another_base_data_or_held_out_is_refused(bundle, stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "out")
    other = open_bundle(write_tiny(tmp_path / "other.gguf", formats="Q8_0", seed=5))
    data, held_out = dataset(24), dataset(6, 1)
    for inputs, words in (((other, data, held_out), "the base"), ((bundle, data, None), "held-out data .*, not none"),
                          ((bundle, dataset(23), held_out), "the data sha256:24-0, not sha256:23-0")):
        with pytest.raises(MismatchError, match=words):
            train.run(*inputs[:2], tmp_path / "out", CONFIG, held_out=inputs[2], resume=True)
    assert len(checkpoint.found(tmp_path / "out")) == 2


@pytest.mark.parametrize("change", [{"threads": 1}, {"checkpoint_every": "never"}])
def test_what_may_change_without_changing_the_result(bundle, stopped, tmp_path, wanted, change):
    shutil.copytree(stopped, tmp_path / "out")
    assert go(bundle, tmp_path / "out", replace(CONFIG, **change), resume=True) == wanted


def test_a_change_that_is_allowed_by_name(bundle, stopped, tmp_path, wanted):
    """The steps done stay, the rest is done with what is given now, and run.json says so; once allowed, it is known."""
    out, config = tmp_path / "out", replace(CONFIG, lr=5e-3, steps=10)
    shutil.copytree(stopped, out)
    refused(bundle, out, "--steps 8, not 10", config=config, resume=True, allow_changed=["lr"])
    stop(bundle, out, 12, config, resume=True, allow_changed=["lr", "steps"])
    assert go(bundle, out, config, resume=True) != wanted
    record = json.loads((out / "run.json").read_text())
    assert record["changed"] == [{"name": "lr", "was": 0.02, "now": 0.005, "after_step": 5},
                                 {"name": "steps", "was": 8, "now": 10, "after_step": 5}]
    assert [line["step"] for line in metrics(out) if line["event"] == "step"] == list(range(1, 11))
    lrs = {line["step"]: line["lr"] for line in metrics(out) if line["event"] == "step"}
    assert lrs[5] > 4 * lrs[6] > 0


def test_other_data_allowed_by_name(bundle, stopped, tmp_path):
    """Other held-out rows: the best so far was measured on others and is forgotten."""
    out = tmp_path / "out"
    shutil.copytree(stopped, out)
    record = train.run(bundle, dataset(12), out, CONFIG, held_out=dataset(4, 3), resume=True,
                       allow_changed=["data", "held-out"])
    assert record["steps"] == STEPS
    assert record["held_out"]["loss_before"] is None
    assert record["held_out"]["best_step"] in (6, 8)
    assert [change["name"] for change in record["changed"]] == ["data", "held-out"]


def test_fewer_steps_than_are_done_end_at_once(bundle, stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "out")
    record = train.run(bundle, dataset(24), tmp_path / "out", replace(CONFIG, steps=3), held_out=dataset(6, 1),
                       resume=True, allow_changed=["steps"])
    assert record["steps"] == 5


@pytest.mark.parametrize("name", ["rank", "targets", "learning-rate"])
def test_what_cannot_be_allowed(bundle, stopped, tmp_path, name):
    shutil.copytree(stopped, tmp_path / "out")
    refused(bundle, tmp_path / "out", f"{name} cannot be allowed to change; what can: .*data.*lr", resume=True,
            allow_changed=[name])
    refused(bundle, tmp_path / "new", "add --resume", allow_changed=["lr"])


def test_a_run_that_fails_right_after_resume_keeps_its_checkpoints(bundle, tmp_path, monkeypatch):
    """No step of this process has shown that the adapter is good, so none is written over the paused one."""
    out, config, steps = tmp_path / "out", replace(CONFIG, eval_every=100), []
    with pytest.raises(Interrupted):
        train.run(bundle, dataset(24), out, config, should_stop=lambda: 2 in steps,
                  on_event=lambda e: steps.extend([e["step"]] if e["event"] == "step" else []))
    paused = (out / "adapter.gguf").read_bytes()
    real = Trainer.step

    def poisoned(self, should_stop=None):
        self.arena.flat("lora")[0] = np.inf
        return real(self, should_stop)

    monkeypatch.setattr(Trainer, "step", poisoned)
    with pytest.raises(NumericsError, match="step 3"):
        train.run(bundle, dataset(24), out, config, resume=True)
    assert (out / "adapter.gguf").read_bytes() == paused
    assert [path.name for path in checkpoint.found(out)] == ["checkpoint-1", "checkpoint-2"]


# ---- small and in place ----------------------------------------------------------------------------------------------


def test_a_checkpoint_holds_what_cannot_be_derived(bundle, tmp_path):
    """A and B, Adam's two moments; the best adapter only where it is another; nothing before the first step."""
    def held(step):
        found = checkpoint.newest(tmp_path / f"at-{step}")[0]
        assert found.path.stat().st_size < sum(nbytes for _, nbytes in found.arrays) + 2000
        return [name for name, _ in found.arrays]

    state = ["lora", "adam_m", "adam_v"]
    for step, names in ((0, []), (2, state), (3, state), (4, [*state, "best"])):
        steps = [0]
        with pytest.raises(Interrupted):
            go(bundle, tmp_path / f"at-{step}", on_event=lambda e, steps=steps: steps.append(e.get("step", 0)),
               should_stop=lambda steps=steps, step=step: step in steps[1:])
        assert held(step) == names


def test_nothing_new_is_not_written_again(bundle, stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "out")
    before = [path.stat().st_mtime_ns for path in checkpoint.found(tmp_path / "out")]
    stop(bundle, tmp_path / "out", 0, resume=True)
    assert [path.stat().st_mtime_ns for path in checkpoint.found(tmp_path / "out")] == before


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


def test_the_adapter_is_written_from_where_it_lies(tmp_path):
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
    go(bundle, tmp_path / "out", config, on_event=events.append)
    said = events[0]["disk"]
    lora = Trainer(bundle, config).arena.flat("lora").nbytes
    assert 4 * lora < said["checkpoint_bytes"] < 4 * lora + 5000
    assert said["bytes_per_day"] == said["checkpoint_bytes"] * 288 + 4096 * 2880
    record = json.loads((tmp_path / "out" / "run.json").read_text())["disk"]
    assert record["written_bytes"] == (tmp_path / "out" / "metrics.jsonl").stat().st_size  # no checkpoint was due


# ---- damaged ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(bundle, tmp_path_factory):
    """A run with two checkpoints, after steps 4 and 5."""
    out, steps = tmp_path_factory.mktemp("stopped") / "out", []
    with pytest.raises(Interrupted):
        go(bundle, out, on_event=lambda e: steps.extend([e["step"]] if e["event"] == "step" else []),
           should_stop=lambda: 5 in steps)
    assert [path.name for path in checkpoint.found(out)] == ["checkpoint-4", "checkpoint-5"]
    return out


def damage(path, how, where):
    content = bytearray(path.read_bytes())
    if how == "cut":
        del content[int(where * len(content)):]
    elif how == "flip":
        bit = int(where * len(content) * 8)
        content[bit // 8] ^= 1 << bit % 8
    else:
        at = int(where * len(content))
        content[at:at + 512] = bytes(len(content[at:at + 512]))
        content += b"\0"
    path.write_bytes(content)


@given(how=st.sampled_from(["cut", "flip", "zeros"]), where=st.floats(0, 1, exclude_max=True))
@settings(max_examples=150, deadline=None)
def test_any_damage_is_found(stopped, tmp_path_factory, how, where):
    folder = tmp_path_factory.mktemp("damaged")
    for path in checkpoint.found(stopped):
        shutil.copy(path, folder)
    damage(folder / "checkpoint-5", how, where)
    older, wrong = checkpoint.newest(folder)
    assert older.path.name == "checkpoint-4"
    assert wrong == ["checkpoint-5 is damaged: its checksum is wrong"]
    shutil.rmtree(folder)


@pytest.mark.parametrize(("how", "where"), [("cut", 0.0), ("cut", 0.5), ("flip", 0.0), ("flip", 0.7), ("flip", 0.9999)])
def test_a_damaged_checkpoint_falls_back_to_the_older_one(bundle, stopped, tmp_path, wanted, how, where):
    out = tmp_path / "out"
    shutil.copytree(stopped, out)
    damage(out / "checkpoint-5", how, where)
    events = []
    assert go(bundle, out, resume=True, on_event=events.append) == wanted
    assert events[0]["event"] == "resume"
    assert events[0]["step"] == 4
    assert events[0]["damaged"] == ["checkpoint-5 is damaged: its checksum is wrong"]
    assert events[0] in metrics(out)
    check_metrics(out)


def test_a_damaged_one_is_not_kept_in_place_of_a_whole_one(bundle, stopped, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(stopped, out)
    (out / "checkpoint-5").rename(out / "checkpoint-7")
    damage(out / "checkpoint-7", "flip", 0.3)
    stop(bundle, out, 16, resume=True)  # within step 6
    assert [path.name for path in checkpoint.found(out)] == ["checkpoint-4", "checkpoint-5"]


def test_both_damaged_is_one_clear_error(bundle, stopped, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(stopped, out)
    for path in checkpoint.found(out):
        damage(path, "flip", 0.5)
    before = sorted(path.name for path in out.iterdir())
    with pytest.raises(FormatError, match=r"no checkpoint that is whole, checkpoint-5 .*, checkpoint-4 ") as caught:
        go(bundle, out, resume=True)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in out.iterdir()) == before


# ---- the disk refuses ------------------------------------------------------------------------------------------------


def full_at(monkeypatch, module, name, nbytes, call=1):
    """Let the call-th call of module.name find room for nbytes in a file; the kernel refuses the next byte."""
    real, calls = getattr(module, name), [0]

    def limited(*args, **options):
        calls[0] += 1
        if calls[0] != call:
            return real(*args, **options)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
        try:
            return real(*args, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(module, name, limited)


@pytest.mark.parametrize("place", range(50))
def test_disk_full_while_a_checkpoint_is_written(bundle, stopped, tmp_path, wanted, monkeypatch, place):
    """The older ones survive, and with room again the run goes on. Only every tenth place is trained to the end."""
    out = tmp_path / "out"
    shutil.copytree(stopped, out)
    size = (out / "checkpoint-5").stat().st_size
    full_at(monkeypatch, checkpoint, "save", place * (size - 1) // 49)
    refused(bundle, out, "cannot write .*checkpoint-6", resume=True)
    assert [path.name for path in checkpoint.found(out)] == ["checkpoint-4", "checkpoint-5"]
    assert checkpoint.newest(out)[1] == []
    if place % 10 == 0:
        assert go(bundle, out, resume=True) == wanted
        check_metrics(out)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_disk_full_while_the_adapter_is_written(bundle, tmp_path, wanted, monkeypatch, share):
    out = tmp_path / "out"
    full_at(monkeypatch, adapter, "save_run", int(share * len(wanted)))
    refused(bundle, out, r"cannot write .*adapter\.gguf")
    assert not (out / "adapter.gguf").exists()
    assert go(bundle, out, resume=True) == wanted


@pytest.mark.parametrize("line", [0, 1, 9])
def test_disk_full_while_metrics_are_written(bundle, tmp_path, wanted, monkeypatch, line):
    """In the first lines nothing was saved, and nothing is left; later a torn line is forgiven."""
    out, size = tmp_path / "out", [0]

    def tear(self, event, real=train.metrics.Metrics.write):
        size[0] += 1
        if size[0] != line + 1:
            return real(self, event)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (sum(p.stat().st_size for p in out.glob("metrics*")) + 20, before[1]))
        try:
            return real(self, event)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(train.metrics.Metrics, "write", tear)
    refused(bundle, out, r"cannot write .*metrics\.jsonl")
    assert out.exists() == (line > 1)
    if out.exists():
        assert (out / "metrics.jsonl").read_bytes()[-1:] != b"\n"
        assert go(bundle, out, resume=True) == wanted
        check_metrics(out)


def test_a_disk_too_small_is_refused_before_training(bundle, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    refused(bundle, tmp_path / "out", "0 MiB free, at times 1 MiB are needed")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder(bundle, stopped, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(stopped, out)
    out.chmod(0o555)
    (out / "metrics.jsonl").chmod(0o444)
    refused(bundle, out, "cannot write .*metrics.jsonl", resume=True)
    with pytest.raises(EdgetuneError, match="cannot be made"):
        go(bundle, out / "new")
    out.chmod(0o755)
