"""Several runs that differ in a number: their folders, the table, which is best, and what is done after a stop."""

import json

import pytest
from commands import run
from tiny import write_place

from edgetune.errors import Interrupted, MismatchError, UsageError
from edgetune.runs.sweep import folder_name, short, sweep
from edgetune.training.callbacks import RunCallbacks

ROWS = [{"prompt": f"turn on lamp {i}", "completion": "on"} for i in range(20)]
OPTIONS = {"rank": 4, "steps": 6, "batch_size": 4, "max_length": 64, "threads": 1, "answers": False}
FLAGS = ["--rank", 4, "--batch-size", 4, "--max-length", 64, "--threads", 1]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write_place(tmp_path_factory.mktemp("sweep"), ROWS)


def test_numbers_are_written_briefly():
    assert [short(value) for value in (1e-4, 5e-4, 0.05, 1.5e-3, 2.0, 8, "auto")] == [
        "1e-4", "5e-4", "0.05", "0.0015", "2", "8", "auto"]
    assert folder_name({"lr": 1e-4, "batch_size": 8}) == "lr-1e-4,batch-size-8"


@pytest.mark.dev
def test_the_command_makes_a_table_and_marks_the_best(place):
    out = place / "table"
    text = run("train", place / "model.gguf", place / "rows.jsonl", "-o", out, "--lr", "1e-5,2e-2", "--steps", 12,
               *FLAGS)
    assert "run 2 of 2: --lr 0.02" in text
    lines = [line.split() for line in text.splitlines()]
    found = {line[0]: line for line in lines if line and line[0] in ("1e-5", "0.02")}
    assert found["0.02"][-1] == "best"
    assert found["1e-5"][-1] != "best"
    assert f"edgetune chat {place / 'model.gguf'} --adapter {out / 'best'}" in text
    assert (out / "best").resolve() == out / "lr-0.02"
    written = json.loads((out / "sweep.json").read_text())
    assert written["best"] == "lr-0.02"
    for one in written["runs"]:
        record = json.loads((out / one["folder"] / "run.json").read_text())
        assert record["options"]["lr"] == one["options"]["lr"]
        assert (record["held_out"]["loss_after"], record["answers"]["after"]) == (one["loss"], one["exact"])
        assert (record["steps"], record["seconds"]) == (one["steps"], one["seconds"])


def test_several_seeds_have_means(place):
    out = place / "seeds"
    text = run("train", place / "model.gguf", place / "rows.jsonl", "-o", out, "--seed", "0,1", "--lr", "1e-3,2e-2",
               "--steps", 6, *FLAGS)
    written = json.loads((out / "sweep.json").read_text())
    runs = {(one["options"]["lr"], one["options"]["seed"]): one for one in written["runs"]}
    assert [mean["options"] for mean in written["means"]] == [{"lr": 1e-3}, {"lr": 2e-2}]
    for mean in written["means"]:
        for fact in ("loss", "exact"):
            first, second = (runs[mean["options"]["lr"], seed][fact] for seed in (0, 1))
            assert mean["runs"] == 2
            assert mean[fact] == [pytest.approx((first + second) / 2), min(first, second), max(first, second)]
        loss, least, most = (f"{value:.4f}" for value in mean["loss"])
        assert f"2 {loss} ({least} to {most})" in " ".join(text.split())


@pytest.mark.slow
def test_every_combination_and_one_that_fails(place, tmp_path):
    found = sweep(place / "model.gguf", ROWS, tmp_path / "out", grid={"lr": [2e-2, 1e30], "rank": [2, 4]},
                  **{name: value for name, value in OPTIONS.items() if name != "rank"})
    assert [(tried.point["lr"], tried.point["rank"]) for tried in found.tried] == [
        (2e-2, 2), (2e-2, 4), (1e30, 2), (1e30, 4)]
    assert [tried.result is None for tried in found.tried] == [False, False, True, True]
    assert found.best.point["lr"] == 2e-2
    assert [one["failed"] for one in json.loads((tmp_path / "out" / "sweep.json").read_text())["runs"]] == [
        False, False, True, True]
    assert found.means == []  # of one seed


@pytest.mark.slow
def test_after_a_stop_only_what_is_missing_is_done(place, tmp_path):
    grid = {"lr": [1e-3, 2e-3, 1e30]}
    out = tmp_path / "out"
    steps = []

    def event(e):
        steps.extend([e["step"]] if e["event"] == "step" else [])

    with pytest.raises(Interrupted):
        sweep(place / "model.gguf", ROWS, out, grid=grid, callbacks=RunCallbacks(event, lambda: len(steps) == 8),
              **OPTIONS)
    assert len(json.loads((out / "sweep.json").read_text())["runs"]) == 1
    found = sweep(place / "model.gguf", ROWS, out, grid=grid, callbacks=RunCallbacks(event), resume=True, **OPTIONS)
    assert steps[:12] == [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6]
    done = len(steps)
    again = sweep(place / "model.gguf", ROWS, out, grid=grid, callbacks=RunCallbacks(event), resume=True, **OPTIONS)
    assert len(steps) == done
    assert again.to_json() == found.to_json()
    with pytest.raises(MismatchError, match="were made from data"):
        sweep(place / "model.gguf", ROWS[1:], out, grid=grid, resume=True, **OPTIONS)
    with pytest.raises(MismatchError, match="was made with --batch-size 4, not 2"):
        sweep(place / "model.gguf", ROWS, out, grid=grid, resume=True, **{**OPTIONS, "batch_size": 2})


@pytest.mark.parametrize(("flags", "words"), [
    (["--lr", ",".join(["1e-4", "2e-4", "3e-4"] * 11)], "33 combinations of options are given, the most is 32"),
    (["--lr", "1e-4,0.0001"], "lr-1e-4 is given twice"),
    (["--lr", "1e-4,2e-4", "--eval", "none"], "nothing would tell which run is best"),
    (["--lr", "1e-4,-1"], "lr is -1"),
    (["--rank", "4,four"], "'four' is not a valid integer"),
])
def test_what_makes_no_sweep_is_a_sentence(place, tmp_path, flags, words):
    text = run("train", place / "model.gguf", place / "rows.jsonl", "-o", tmp_path / "out", *flags, code=2)
    assert words in text
    assert not (tmp_path / "out").exists()


def test_rows_from_standard_input_are_read_once(place, tmp_path):
    with pytest.raises(UsageError, match="can be read once"):
        sweep(place / "model.gguf", "-", tmp_path / "out", grid={"lr": [1e-4, 2e-4]})
