"""The programs of docs/how-to/manage-runs.md, with trackers that keep what they are told."""

import functools
import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import pytest
from test_docs import programs, write_rows
from tiny import write_tiny

import edgetune

PAGE = "how-to/manage-runs.md"


def trackers():
    """(modules by name, where each of them keeps (name, value, step))."""
    told = {"tensorboardX": [], "wandb": [], "mlflow": []}
    board = SimpleNamespace(add_scalar=lambda *point: told["tensorboardX"].append(point))
    bias = SimpleNamespace(log=lambda values, step: told["wandb"].extend((*one, step) for one in values.items()))
    modules = {name: ModuleType(name) for name in told}
    modules["tensorboardX"].SummaryWriter = lambda folder: nullcontext(board)  # noqa: ARG005
    modules["wandb"].init = lambda project: nullcontext(bias)  # noqa: ARG005
    modules["mlflow"].start_run = lambda run_name: nullcontext()  # noqa: ARG005
    modules["mlflow"].log_metric = lambda name, value, step: told["mlflow"].append((name, value, step))
    return modules, told


@pytest.fixture
def place(tmp_path, monkeypatch):
    write_tiny(tmp_path / "smollm2", formats="Q8_0", n_blocks=1, d_model=32, d_ff=64)
    write_rows(tmp_path)
    monkeypatch.chdir(tmp_path)
    short = functools.partial(edgetune.train, steps=2, answers=False, anchors=0, threads=1)
    monkeypatch.setattr(edgetune, "train", short, raising=False)
    return tmp_path


@pytest.mark.slow  # a training for each tracker
def test_each_tracker_is_told_every_loss(place, monkeypatch, capsys):
    modules, told = trackers()
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    *trained, read = programs(PAGE)
    assert len(trained) == len(told)
    for program in trained:
        exec(compile(program, PAGE, "exec"), {"__name__": "__main__"})
    exec(compile(read, PAGE, "exec"), {"__name__": "__main__"})
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    for points in told.values():
        assert [step for name, _, step in points if name == "step/loss"] == [1, 2]
        evals = [(step, loss) for name, loss, step in points if name == "eval/loss"]
        assert evals == [(int(step), float(loss)) for step, loss in printed]
    assert (place / "lamps" / "metrics.jsonl").exists()


def test_a_board_of_tensorboard_has_them(place):
    """With the package itself, where it is installed."""
    pytest.importorskip("tensorboardX")
    exec(compile(programs(PAGE)[0], PAGE, "exec"), {"__name__": "__main__"})
    assert list((place / "runs" / "lamps").glob("events.*"))
