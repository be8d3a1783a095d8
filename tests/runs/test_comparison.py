"""Several runs on one page: losses over one another, options that differ, what makes them incomparable."""

from dataclasses import replace

import pytest
from durable import metrics
from report_pages import assert_drawn, figures, measured, parsed, step, write

from edgetune.errors import UsageError
from edgetune.runs import comparison
from edgetune.runs.chart import STYLES
from edgetune.runs.history import read_history
from edgetune.runs.sweep import sweep


def test_several_runs_over_one_another(tmp_path):
    folders = [write(tmp_path / str(lr), *(line for n in range(1, 6) for line in (step(n, loss=lr / n),
                                                                                  measured(n, 2 * lr / n))),
                     options={"lr": lr, "rank": 8}, held_out={"digest": "a", "rows": 4, "loss_before": 3.0,
                                                             "loss_after": lr}, base={"fingerprint": "m"})
               for lr in (1.0, 2.0, 3.0)]
    runs = [read_history(folder) for folder in folders]
    comparison.write_comparison(tmp_path / "all.html", runs)
    root, text = parsed(tmp_path / "all.html")
    found = figures(root)
    for at, lr in enumerate((1.0, 2.0, 3.0)):
        assert_drawn(found["Loss of the rows that are learned"], at, [(n, lr / n) for n in range(1, 6)])
        assert_drawn(found["Loss of held-out rows"], at, [(n, 2 * lr / n) for n in range(1, 6)])
    assert comparison.differing(runs) == ["lr"]
    assert "Options that differrunlr1.012.023.03" in text
    assert "They have different" not in text
    assert comparison.lines(runs)[1] == ["2.0", "running", "3.000 → 2.000", "–", "5", "0:02", "–"]


def test_runs_that_cannot_be_compared_are_told(tmp_path):
    runs = [read_history(write(tmp_path / name, step(1), base={"fingerprint": name}, data={"digest": name},
                               held_out={"digest": name})) for name in ("a/out", "b/out")]
    comparison.write_comparison(tmp_path / "all.html", runs)
    _, text = parsed(tmp_path / "all.html")
    assert "different models. They have different rows to learn. They have different held-out rows." in text
    assert "None: they share all options." in text
    assert str(tmp_path / "a/out") in text  # as their names are the same


def test_a_ruined_run_does_not_flatten_the_others(tmp_path):
    runs = [read_history(write(tmp_path / str(end), step(1, loss=4.0), step(2, loss=end))) for end in (1.0, 50.0)]
    comparison.write_comparison(tmp_path / "all.html", runs)
    root, _ = parsed(tmp_path / "all.html")
    drawn = figures(root)["Loss of the rows that are learned (higher values are cut)"]
    assert_drawn(drawn, 0, [(1, 4.0), (2, 1.0)])
    assert max(float(text.text) for text in drawn.iter("text") if text.get("class") == "y") < 10


def test_a_page_of_many_long_runs_stays_small(tmp_path):
    one = read_history(write(tmp_path / "out", *(step(n) for n in range(1, 1200))))
    runs = [replace(one, folder=tmp_path / str(n)) for n in range(len(STYLES))]
    comparison.write_comparison(tmp_path / "all.html", runs)
    parsed(tmp_path / "all.html")
    with pytest.raises(UsageError, match="33 runs are named, 32 can be told apart"):
        comparison.write_comparison(tmp_path / "more.html", [*runs, runs[0]])


def test_a_sweep_ends_in_a_comparison(bundle, tmp_path):
    rows = [{"prompt": f"turn on lamp {number}", "completion": "on"} for number in range(40)]
    sweep(bundle, rows, tmp_path / "out", grid={"lr": [1e-3, 1e-2]}, answers=False, rank=4, steps=2, threads=1)
    root, text = parsed(tmp_path / "out" / "report.html")
    assert "2 runs compared" in text
    assert "Options that differrunlrlr-1e-30.001lr-0.010.01" in text
    steps = [line for line in metrics(tmp_path / "out" / "lr-0.01") if line["event"] == "step"]
    drawn = figures(root)["Loss of the rows that are learned"]
    assert_drawn(drawn, 1, [(line["step"], line["loss"]) for line in steps])
