"""A run that yields: pauses, fewer threads, rests and smaller micro-batches, and what it must not change."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from boards import MIB, Board
from counting import OPTIONS, dataset
from durable import metrics
from json_lines import write_lines
from tiny import write_tiny

from edgetune.adapters.store import open_adapter
from edgetune.backends.arena import Arena
from edgetune.data.packing import Example
from edgetune.formats.bundle import open_bundle
from edgetune.machine.device import read_device
from edgetune.machine.governor import Governor
from edgetune.machine.policy import Policy
from edgetune.training import throttle
from edgetune.training.callbacks import RunCallbacks
from edgetune.training.config import TrainConfig
from edgetune.training.run import run
from edgetune.training.throttle import AnswerPriority, MemoryPressure, Throttle
from edgetune.training.trainer import Trainer

CONFIG = TrainConfig(**{**OPTIONS, "micro_batch": 64, "eval_every": 4, "dropout": 0.1})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return open_bundle(write_tiny(tmp_path_factory.mktemp("pace") / "tiny.gguf", formats="Q8_0"))


class Script:
    """should_stop of a run on a made-up board: each time it is asked, a second passes, and the board may change.

    changes: second -> what happens to the board. Notes the seconds at which it was asked while the run was paused.
    """

    def __init__(self, root, changes, **policy: object):
        self.board = Board(root)
        self.seconds = 0
        self.changes = changes
        self.governor = Governor(Policy(**policy), read_device(root).profile, root, clock=lambda: float(self.seconds))

    def __call__(self):
        self.seconds += 1
        self.board.tick()
        if self.seconds in self.changes:
            what, value = self.changes[self.seconds]
            getattr(self.board, what)(value)
        return False


def governor_lines(out):
    return [line for line in metrics(out) if line["event"] == "governor"]


def run_governed(bundle, out, script, config=CONFIG):
    return run(bundle, dataset(24), out, config, held_out=dataset(6, 1),
               callbacks=RunCallbacks(should_stop=script, governor=script.governor))


def test_a_run_that_pauses_ends_in_the_same_bytes(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(throttle, "POLL_SECONDS", 0.001)
    run(bundle, dataset(24), tmp_path / "free", CONFIG, held_out=dataset(6, 1))
    script = Script(tmp_path / "root", {5: ("heat", 77), 20: ("heat", 82), 60: ("heat", 55), 75: ("throttle", 4)})
    saved = []
    script.board.heat = lambda degrees, heat=script.board.heat: (
        saved.append(len(list((tmp_path / "out").glob("checkpoint*")))), heat(degrees))
    run_governed(bundle, tmp_path / "out", script)
    assert (tmp_path / "out" / "adapter.gguf").read_bytes() == (tmp_path / "free" / "adapter.gguf").read_bytes()
    lines = governor_lines(tmp_path / "out")
    assert [(e["action"], e["rule"], e["threads"]) for e in lines] == [
        ("slower", "heat", 1), ("pause", "heat", 1), ("go", "", 2), ("slower", "throttling", 1)]
    assert [e["cause"] for e in lines] == [
        "cpu-thermal is at 77 °C, the limit is 80", "cpu-thermal is at 82 °C, the limit is 80", "cooled down to 55 °C",
        "the firmware throttles the cores"]
    assert {e["micro_batch"] for e in lines} == {64}
    assert saved == [0, 0, 1]  # a checkpoint was written before the pause was over


@pytest.mark.dev
def test_lack_of_memory_makes_micro_batches_smaller_and_then_large_again(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(throttle, "POLL_SECONDS", 0.001)
    config = TrainConfig(**{**OPTIONS, "micro_batch": 192, "steps": 30})
    run(bundle, dataset(24), tmp_path / "free", config, held_out=dataset(6, 1))
    script = Script(tmp_path / "root", {4: ("memory", 200), 20: ("memory", 100), 40: ("memory", 6000)})
    released = []
    release = Arena.release
    monkeypatch.setattr(Arena, "release", lambda arena: (released.append(script.seconds), release(arena)))
    run_governed(bundle, tmp_path / "out", script, config)
    lines = governor_lines(tmp_path / "out")
    whole = lines[-1]["micro_batch"]  # the plan's
    assert whole > 100
    assert [(e["action"], e["rule"], e["threads"], e["micro_batch"]) for e in lines] == [
        ("slower", "memory", 1, whole // 2), ("pause", "memory", 1, whole // 2), ("go", "", 2, whole)]
    assert sum(4 <= second <= 41 for second in released) > 3
    free, out = (open_adapter(tmp_path / name).pairs for name in ("free", "out"))
    for name, pair in free.items():
        assert np.abs(pair.b - out[name].b).max() < 1e-3 * np.abs(pair.b).max(), name


@pytest.mark.dev
def test_a_step_that_was_given_up_for_memory_is_done_again(bundle, tmp_path, monkeypatch):
    """Pauses, but no smaller micro-batch: one row is all that a micro-batch has, so every byte must be the same."""
    monkeypatch.setattr(throttle, "POLL_SECONDS", 0.001)
    config = replace(CONFIG, micro_batch=1)
    run(bundle, dataset(24), tmp_path / "free", config, held_out=dataset(6, 1))
    short = ("memory", 60)
    enough = ("memory", 6000)
    script = Script(tmp_path / "root", {50: short, 70: enough, 101: short, 130: enough})
    given_up: list[int] = []
    call = Throttle.__call__

    def ask(self):
        try:
            return call(self)
        except MemoryPressure:
            given_up.append(self.trainer.steps_done)
            raise

    monkeypatch.setattr(Throttle, "__call__", ask)
    run_governed(bundle, tmp_path / "out", script, config)
    assert [e["action"] for e in governor_lines(tmp_path / "out")] == ["pause", "go"] * 2
    assert given_up
    assert (tmp_path / "out" / "adapter.gguf").read_bytes() == (tmp_path / "free" / "adapter.gguf").read_bytes()


def test_released_memory_is_gone_and_changes_nothing(on_disk):
    bundle = open_bundle(write_tiny(on_disk / "released.gguf", formats="Q8_0"))
    options = {**OPTIONS, "max_length": 512, "micro_batch": 2048, "recompute": "none"}
    rows = [Example(np.arange(n, n + 400, dtype=np.int32) % 400, np.ones(400, np.float32)) for n in range(8)]

    def rss(kind):
        return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines()
                    if line.startswith(kind))

    losses = []
    for releases in (False, True):
        trainer = Trainer(bundle, **options)
        trainer.add_examples(rows)
        losses.append([])
        for _ in range(3):
            losses[-1].append(trainer.step().loss)
            if releases:
                anonymous = rss("RssAnon")
                file = rss("RssFile")
                trainer.arena.release()
                passing = sum(b.nbytes for b in trainer.arena.buffers.values() if b.lifetime != "run")
                assert passing > 16 * MIB
                assert anonymous - rss("RssAnon") > 0.5 * passing
                bundle.gguf.release()
                assert file - rss("RssFile") > 0.5 * bundle.gguf.path.stat().st_size
    assert losses[0] == losses[1]


def test_one_thread_rests_as_long_as_it_works(bundle, tmp_path):
    now = [0.0]
    board = Board(tmp_path)
    governor = Governor(Policy(), read_device(tmp_path).profile, tmp_path, clock=lambda: now[0])
    trainer = Trainer(bundle, **{**OPTIONS, "threads": 1})

    def sleep(seconds):
        now[0] += seconds

    events: list[dict[str, object]] = []
    ask = Throttle(governor, trainer, lambda: False, lambda: None, events.append, sleep)
    for work in (0.5, 2.0):
        now[0] += work
        assert not ask()
    assert now[0] == 2.5  # cool: no rest
    board.heat(78)
    now[0] += 7.0
    ask()
    assert now[0] == pytest.approx(2.5 + 14.0)
    assert [e["action"] for e in events] == ["slower"]
    now[0] += 3.0
    board.heat(50)  # seen during the rest: no need to end it
    ask()
    assert now[0] < 2.5 + 14.0 + 6.0
    assert [e["action"] for e in events] == ["slower", "go"]


class Clock:
    """Seconds that pass as a test says, and in sleep."""

    def __init__(self):
        self.now = 0.0
        self.slept = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.slept += seconds


def test_a_tenth_of_the_time_is_kept_from_answers():
    clock = Clock()
    busy = [True]
    give_way = AnswerPriority(lambda: busy[0], clock, clock.sleep)
    for work in (0.5, 2.0, 0.25):
        clock.now += work
        assert give_way()
    assert clock.slept == pytest.approx(9 * 2.75)
    clock.now += 1.0
    assert give_way(lambda: clock.slept > 9 * 2.75 + 3)  # called off
    assert clock.slept == pytest.approx(9 * 2.75 + 3, abs=0.02)
    before = clock.slept
    busy[0] = False
    clock.now += 1.0
    assert not give_way()
    assert clock.slept == before


def test_a_run_yields_to_answers_and_says_so_now_and_then(bundle, tmp_path):
    clock = Clock()
    board = Board(tmp_path)
    events = []
    governor = Governor(Policy(), read_device(tmp_path).profile, tmp_path, clock=clock)
    trainer = Trainer(bundle, **OPTIONS)
    trainer.micros.computing = True  # also within a step
    answered = [True]
    ask = Throttle(governor, trainer, lambda: False, lambda: pytest.fail("nothing to save"), events.append, clock.sleep,
               lambda: answered[0])
    for _ in range(100):
        clock.now += 0.1
        board.tick()
        assert not ask()
    assert clock.now == pytest.approx(100.0)
    assert {(e["event"], e["action"], e["rule"]) for e in events} == {("governor", "yield", "foreground")}
    assert 9 <= len(events) <= 10
    answered[0] = False
    clock.now += 0.1
    assert not ask()
    assert clock.now == pytest.approx(100.1)


def test_answers_change_no_bit_of_what_is_learned(bundle, tmp_path):
    asked = [0]

    def busy():
        asked[0] += 1
        return asked[0] % 3 == 0

    governor = Governor(Policy(), read_device(tmp_path).profile, Board(tmp_path / "root").root)
    for name, calls in (("free", RunCallbacks()), ("out", RunCallbacks(governor=governor, busy=busy))):
        run(bundle, dataset(24), tmp_path / name, CONFIG, held_out=dataset(6, 1), callbacks=calls)
    assert asked[0] > 100
    assert (tmp_path / "out" / "adapter.gguf").read_bytes() == (tmp_path / "free" / "adapter.gguf").read_bytes()


def test_activations_are_never_released_while_they_are_needed(bundle, tmp_path):
    """Asked within a micro-batch, a pause waits for its end and takes one thread; for lack of memory it is given up."""
    board = Board(tmp_path)
    board.heat(90)
    now = [0.0]
    governor = Governor(Policy(), read_device(tmp_path).profile, tmp_path, clock=lambda: now[0])
    trainer = Trainer(bundle, **OPTIONS)
    trainer.arena.flat("x").fill(7.0)
    trainer.micros.computing = True
    calls: list[str] = []
    ask = Throttle(governor, trainer, lambda: False, lambda: calls.append("save"),
                   lambda e: calls.append(str(e["action"])),
               lambda _: pytest.fail("it must not sleep"))
    assert not ask()
    assert (calls, trainer.ops.working) == (["pause"], 1)
    assert (trainer.arena.flat("x") == 7.0).all()
    board.memory(10)
    now[0] += 10
    with pytest.raises(MemoryPressure):
        ask()
    assert (trainer.arena.flat("x") == 7.0).all()
    assert calls == ["pause", "pause"]


ROWS = [{"prompt": f"turn on lamp {i}", "completion": json.dumps({"lamp": i})} for i in range(12)]
SMALL = ["--rank", "4", "--max-length", "64", "--threads", "2", "--batch-size", "4", "--steps", "20"]


def train_command(*args: str):
    return [sys.executable, "-m", "edgetune", "train", "model.gguf", "rows.jsonl", *SMALL, *args]


@pytest.mark.slow
def test_the_command_pauses_stops_and_resumes(tmp_path):
    """A busy file pauses it, all threads are nice, SIGTERM ends the pause, and --resume gives the same bytes."""
    write_tiny(tmp_path / "model.gguf", formats="Q8_0")
    write_lines(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "policy.toml").write_text(f'busy-file = "{tmp_path}/busy"\nnice = 7\n')
    (tmp_path / "busy").touch()
    process = subprocess.Popen(train_command("-o", "out", "--policy", "policy.toml"), cwd=tmp_path,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "out" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and '"pause"' in metrics.read_text()):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    tasks = [path.read_text().rpartition(")")[2].split() for path in Path(f"/proc/{process.pid}/task").glob("*/stat")]
    nice = max(7, os.getpriority(os.PRIO_PROCESS, 0))
    assert [int(fields[16]) for fields in tasks].count(nice) >= 2  # the caller and its worker
    os.kill(process.pid, signal.SIGTERM)
    began = time.monotonic()
    out, error = process.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert process.returncode == 75, error
    assert "paused: someone is being answered" in out
    (tmp_path / "busy").unlink()
    for args in (["-o", "out", "--policy", "policy.toml", "--resume"], ["-o", "free", "--no-govern"]):
        subprocess.run(train_command(*args), cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "out" / "adapter.gguf").read_bytes() == (tmp_path / "free" / "adapter.gguf").read_bytes()


HOG = """
import sys, time
held = bytearray(int(sys.argv[1]) << 20)
held[::4096] = b"1" * (len(held) // 4096)
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def cgroup():
    """A memory cgroup below this process's own, where the kernel and our rights allow one."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = next((line.split(":")[2] for line in lines if ":memory:" in line), None)
    folder = Path(f"/sys/fs/cgroup/memory{own}") / f"edgetune-test-{os.getpid()}"
    try:
        if own is None:
            raise OSError("no memory controller of version 1")
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"needs a memory cgroup that a test may divide: {error}")
    yield folder
    deadline = time.monotonic() + 10
    while folder.exists() and time.monotonic() < deadline:
        try:
            folder.rmdir()
        except OSError:
            time.sleep(0.1)


@pytest.mark.slow
def test_another_process_takes_all_but_100_mib_of_a_cgroup(cgroup, tmp_path):
    """Real memory of a real cgroup: training shrinks while it is taken, and recovers when it is free again."""
    write_tiny(tmp_path / "model.gguf", formats="Q8_0")
    write_lines(tmp_path / "rows.jsonl", ROWS)
    (cgroup / "memory.limit_in_bytes").write_text(str(600 * MIB))
    inside = ["sh", "-c", f'echo $$ > {cgroup}/cgroup.procs && exec "$@"', "sh"]
    process = subprocess.Popen([*inside, *train_command("-o", "out", "--steps", "1000000")], cwd=tmp_path,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    hog = None

    def wait_until_memory(short):
        """Other programs of this machine may be a reason to be slower before and after."""
        deadline = time.monotonic() + 60
        while not (lines := governor_lines(tmp_path / "out")) or (lines[-1]["rule"] == "memory") != short:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline, lines
            time.sleep(0.2)
        assert lines[-1]["available_mib"] < 150 if short else lines[-1]["available_mib"] > 250

    try:
        while not (tmp_path / "out" / "metrics.jsonl").exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        used = int((cgroup / "memory.usage_in_bytes").read_text()) // MIB
        hog = subprocess.Popen([*inside, sys.executable, "-c", HOG, str(600 - used - 100)], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
        assert hog.stdout.readline() == "held\n"
        wait_until_memory(True)
        hog.communicate("\n")
        wait_until_memory(False)
    finally:
        for started in (process, hog):
            if started is not None and started.poll() is None:
                started.kill()
                started.communicate()
