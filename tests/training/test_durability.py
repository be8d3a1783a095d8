"""Runs that are killed, damaged or out of disk resume to the bytes of a run that nobody disturbed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from durable import STEPS, check_metrics, go, metrics, refused, stop
from examples import examples
from full_disks import full_disk
from hypothesis import given
from hypothesis import strategies as st
from lab.kill import prove
from sometimes import mostly_slow

from edgetune.adapters import store
from edgetune.errors import EdgetuneError, FormatError
from edgetune.training import checkpoint
from edgetune.training.callbacks import RunCallbacks
from edgetune.training.metrics import MetricsFile


class Disk:
    """What Python does to the files of one folder, told by audit events; `on` is called before each with its name."""

    def __init__(self):
        self.folder = None
        self.on = None
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
        DISK.folder = str(tmp_path / "out")
        DISK.on = on
    yield watch
    DISK.on = None


# ---- stopped and killed ----------------------------------------------------------------------------------------------


class PowerOff(BaseException):
    """From here on the disk takes nothing."""


@pytest.mark.dev
@pytest.mark.parametrize("first", mostly_slow(range(5), [0]))
def test_dead_between_any_two_changes_of_the_disk(bundle, tmp_path, watched, wanted, first):
    """As kill -9 there, at every fifth place: `make durability` runs all five."""
    out = tmp_path / "out"
    count = [0]
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


@pytest.mark.slow
def test_a_power_cut_may_take_all_that_was_not_flushed(bundle, tmp_path, watched, wanted, monkeypatch):
    """The worst that a disk can make of it: contents and names since their last fsync are lost, removals are not."""
    out = tmp_path / "out"
    contents = {}
    names = {}
    states = []

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
    out = tmp_path / "out"
    log = []
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
    assert len(saved) == STEPS + 3  # run.json twice
    for i in saved:
        assert log[i - 1] == ("fsync", log[i][1])
        assert log[i + 1] == ("fsync", "out")
        if log[i][2].startswith("checkpoint"):
            assert log[i - 2] == ("fsync", "metrics.jsonl")
    last = [entry[2] for entry in log if entry[0] == "os.rename"][-2:]
    assert last == ["adapter.gguf", "run.json"]
    assert [entry[1] for entry in log[saved[-1] + 2:]] == ["checkpoint-7", "checkpoint-8"]  # removed after all


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    """The short form of what `make durability` does 200 times."""
    assert sum(prove(tmp_path, kills=1, seed=1, steps=80).values()) == 1


# ---- damaged ---------------------------------------------------------------------------------------------------------


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
@examples(60)
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
def test_a_damaged_checkpoint_falls_back_to_the_older_one(bundle, paused, wanted, how, where):
    damage(paused / "checkpoint-5", how, where)
    events = []
    assert go(bundle, paused, resume=True, callbacks=RunCallbacks(on_event=events.append)) == wanted
    assert events[0]["event"] == "resume"
    assert events[0]["step"] == 4
    assert events[0]["damaged"] == ["checkpoint-5 is damaged: its checksum is wrong"]
    assert events[0] in metrics(paused)
    check_metrics(paused)


def test_a_damaged_one_is_not_kept_in_place_of_a_whole_one(bundle, paused):
    (paused / "checkpoint-5").rename(paused / "checkpoint-7")
    damage(paused / "checkpoint-7", "flip", 0.3)
    stop(bundle, paused, 16, resume=True)  # within step 6
    assert [path.name for path in checkpoint.found(paused)] == ["checkpoint-4", "checkpoint-5"]


def test_both_damaged_is_one_clear_error(bundle, paused):
    for path in checkpoint.found(paused):
        damage(path, "flip", 0.5)
    before = sorted(path.name for path in paused.iterdir())
    with pytest.raises(FormatError, match=r"no checkpoint that is whole, checkpoint-5 .*, checkpoint-4 ") as caught:
        go(bundle, paused, resume=True)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in paused.iterdir()) == before


# ---- the disk refuses ------------------------------------------------------------------------------------------------


def full_at(monkeypatch, module, name, nbytes, call=1):
    """Let the call-th call of module.name find room for nbytes() in a file; the kernel refuses the next byte."""
    real = getattr(module, name)
    calls = [0]

    def limited(*args, **options):
        calls[0] += 1
        if calls[0] != call:
            return real(*args, **options)
        with full_disk(nbytes()):
            return real(*args, **options)

    monkeypatch.setattr(module, name, limited)


@pytest.mark.parametrize("place", mostly_slow(range(50), [*range(0, 50, 10), 5, 25, 49]))
def test_disk_full_while_a_checkpoint_is_written(bundle, paused, wanted, monkeypatch, place):
    """The older ones survive, and with free space the run resumes. Only every tenth case is trained to the end."""
    size = (paused / "checkpoint-5").stat().st_size
    room = place * (size - 200) // 49  # the sizes of two heads differ a little
    full_at(monkeypatch, checkpoint, "save", lambda: room)
    refused(bundle, paused, "cannot write .*checkpoint-6.*; make room, then continue it with resume=True", resume=True)
    assert [path.name for path in checkpoint.found(paused)] == ["checkpoint-4", "checkpoint-5"]
    assert checkpoint.newest(paused)[1] == []
    if place % 10 == 0:
        assert go(bundle, paused, resume=True) == wanted
        check_metrics(paused)


@pytest.mark.dev
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_disk_full_while_the_adapter_is_written(bundle, tmp_path, wanted, monkeypatch, share):
    out = tmp_path / "out"
    full_at(monkeypatch, store, "save_run", lambda: int(share * len(wanted)))
    refused(bundle, out, r"cannot write .*adapter\.gguf")
    assert not (out / "adapter.gguf").exists()
    assert go(bundle, out, resume=True) == wanted


@pytest.mark.parametrize("line", [0, 1, 9])
def test_disk_full_while_metrics_are_written(bundle, tmp_path, wanted, monkeypatch, line):
    """In the first lines nothing was saved, and nothing is left; later a torn line is forgiven. Resumed it goes on, or
    begins.
    """
    out = tmp_path / "out"
    full_at(monkeypatch, MetricsFile, "write", lambda: sum(p.stat().st_size for p in out.glob("metrics*")) + 20,
            line + 1)
    refused(bundle, out, r"cannot write .*metrics\.jsonl")
    assert out.exists() == (line > 1)
    if out.exists():
        assert (out / "metrics.jsonl").read_bytes()[-1:] != b"\n"
    assert go(bundle, out, resume=True) == wanted
    check_metrics(out)


def test_a_disk_too_small_is_refused_before_training(bundle, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    refused(bundle, tmp_path / "out", "98 KiB free, at times .* are needed")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder(bundle, paused):
    paused.chmod(0o555)
    (paused / "metrics.jsonl").chmod(0o444)
    refused(bundle, paused, "cannot write .*metrics.jsonl", resume=True)
    with pytest.raises(EdgetuneError, match="cannot be made"):
        go(bundle, paused / "new")
    paused.chmod(0o755)


@pytest.mark.dev
def test_a_disk_that_is_full_or_read_only_in_earnest(tmp_path):
    """See lab/mounted.py."""
    apart = ["unshare", "-rm"]
    if shutil.which("unshare") is None or subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("needs unshare and user namespaces")
    script = Path(__file__).parents[1] / "lab" / "mounted.py"
    done = subprocess.run([*apart, sys.executable, script, "run", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    full, read_only = done.stdout.splitlines()
    assert "No space left on device" in full
    assert "Read-only file system" in read_only
