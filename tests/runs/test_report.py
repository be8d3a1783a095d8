"""Reports are well-formed pages that ask for nothing outside, run nothing that rows say, and draw what was measured."""

import json
import math
import re
import shutil
import xml.etree.ElementTree as ET
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from durable import go, metrics, stop_after
from hypothesis import given, settings
from hypothesis import strategies as st
from run_folders import measured, step, write

from edgetune.errors import FormatError, Interrupted, NumericsError, UsageError
from edgetune.runs import chart, comparison
from edgetune.runs.chart import STYLES, Chart, Line, Mark, Style
from edgetune.runs.elements import element
from edgetune.runs.history import read_history
from edgetune.runs.report import write_html, write_report
from edgetune.runs.reported import reported
from edgetune.runs.sweep import sweep
from edgetune.runs.train import train
from edgetune.training.config import TrainConfig

SVG = "svg"
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>'\"&amp;\x1b[31m\x00\u202e\ud800\n]]>--></style>"
VOID = {"meta", "path", "line", "circle"}


class Tags(HTMLParser):
    """Elements of a page in order, with what they are in; an end that does not fit is an error."""

    def __init__(self):
        super().__init__()
        self.open = []
        self.found = []
        self.text = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in VOID
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text.append(data)


def parsed(path):
    """The page, checked: well-formed as HTML and as XML, of known elements, without script or anything from outside."""
    page = path.read_text("utf-8")
    assert len(page) < 200_000
    tags = Tags()
    tags.feed(page)
    tags.close()
    assert tags.open == []
    names = {tag for tag, _ in tags.found}
    assert names <= {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "b", "small", "dl", "div", "dt",
                     "dd", "figure", "figcaption", "ul", "li", "table", "tr", "th", "td", "details", "summary", "svg",
                     "g", "path", "line", "circle", "text"}
    attributes = {name for _, given in tags.found for name in given}
    assert not attributes & {"src", "href", "style", "srcset", "action"}
    assert not [name for name in attributes if name.startswith("on")]
    policy = next(given["content"] for tag, given in tags.found if given.get("http-equiv"))
    style = re.search("<style>(.*?)</style>", page, re.S)[1]
    assert f"style-src 'sha256-{b64encode(sha256(style.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none';")
    assert "url(" not in style
    assert "@import" not in style
    return ET.fromstring(page.removeprefix("<!doctype html>\n")), "".join(tags.text)


@pytest.fixture(scope="module")
def done(bundle, tmp_path_factory):
    """The folder of a finished run. Read only."""
    out = tmp_path_factory.mktemp("done") / "out"
    go(bundle, out)
    return out


@pytest.fixture
def out(done, tmp_path):
    """A copy of it."""
    return shutil.copytree(done, tmp_path / "out")


def change(folder, **parts):
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**run, **parts}))


def figures(root):
    return {found.find("figcaption").text: found for found in root.iter("figure")}


def read_back(found, number=0):
    """Points of a chart's line, by inverting the scales that its ticks give."""
    root = found.find(SVG)
    ticks = {"x": [], "y": []}
    for label in root.iter("text"):
        if label.get("class") in ticks:
            at = float(label.get(label.get("class"))) - (4 if label.get("class") == "y" else 0)
            ticks[label.get("class")].append((at, float(label.text.replace(",", ""))))
    invert = {axis: np.polyfit(*zip(*known, strict=True), 1) for axis, known in ticks.items()}
    line = [group for group in root.iter("g") if group.get("class", "").startswith("line")][number]
    places = [tuple(map(float, pair.split())) for pair in re.split("[ML]", line.find("path").get("d"))[1:]]
    return [(float(np.polyval(invert["x"], x)), float(np.polyval(invert["y"], y))) for x, y in places]


def assert_drawn(found, number, wanted):
    points = read_back(found, number)
    assert len(points) == len(wanted)
    span = max(abs(y) for _, y in wanted)
    for (x, y), (wanted_x, wanted_y) in zip(points, wanted, strict=True):
        assert abs(x - wanted_x) < 0.02 * max(1, len(wanted) / 10)
        assert abs(y - wanted_y) < 2e-3 * span


# ---- a run ----------------------------------------------------------------------------------------------------------


def test_charts_draw_what_was_measured(out):
    lines = metrics(out)
    root, _ = parsed(write_report(out))
    found = figures(root)
    steps = [line for line in lines if line["event"] == "step"]
    for title, name in (("Loss", "loss"), ("Learning rate", "lr"), ("Memory", "rss_mib"), ("Speed", "tokens_per_s")):
        assert_drawn(found[title], 0, [(line["step"], line[name]) for line in steps])
    held = [(line["step"], line["loss"]) for line in lines if line["event"] == "eval"]
    assert_drawn(found["Loss"], 1, held)
    kept = json.loads((out / "run.json").read_text())["verdict"]["step"]
    shown = [title.text for title in found["Loss"].iter("title")]
    assert shown == [f"step {kept}: this adapter is kept",
                     *(f"held-out rows, step {number}: {loss:.4g}" for number, loss in held)]
    names = {figure: [text.text for text in group.iter("text") if text.get("class") == "name"]
             for figure, group in found.items()}
    assert names == {"Loss": ["nats a token", "step"], "Learning rate": ["rate of AdamW", "step"],
                     "Memory": ["MiB", "step"], "Speed": ["tokens/s", "step"]}
    assert (out / "metrics.csv").exists()


def test_a_real_run_with_all_that_it_says(out):
    run = json.loads((out / "run.json").read_text())
    pairs = [{"prompt": "lamp on?", "expected": "on", "before": "lamp?", "after": "on"}]
    change(out, answers={"rows": 12, "before": 0.0, "after": 0.75, "pairs": pairs},
           origin={"data": "rows.jsonl", "command": ["edgetune", "train", "my rows.jsonl"],
                   "started": "2026-01-02T03:04:05+00:00", "policy": {"govern": True, "max_temp": 75.0, "nice": 0}},
           start={"path": "an-earlier-adapter", "fingerprint": "f"})
    _, text = parsed(write_report(out))
    held = run["held_out"]
    for said in (f"{held['loss_before']:.3f} → {held['loss_after']:.3f}", run["verdict"]["sentence"], "0% → 75%",
                 "lamp on?", "lamp?", "edgetune train 'my rows.jsonl'", "max-temp 75", "an-earlier-adapter",
                 "started 2026-01-02 03:04", "24 rows, 511 tokens", f"of {run['plan']['budget_mib']:,.0f} MiB",
                 run["isa"], "exact answers"):
        assert said in text, said
    chosen = re.search(r"optionheredefault(.*?)\d+ options at their defaults", text)[1]
    assert chosen.startswith(f"rank4{TrainConfig.rank}dropout0.10lr0.02{TrainConfig.lr:g}")  # option, here, default
    assert "schedule" not in chosen


def test_memory_beside_the_budget(out):
    change(out, plan={"budget_mib": 100.0, "peak_mib": 90.0, "traded": ["2 of 4 blocks are computed again"]})
    root, text = parsed(write_report(out))
    memory = figures(root)["Memory"]
    assert [line.get("class") for line in memory.find(SVG).iter("line")].count("limit") == 1
    assert "budget: 100 MiB" in text
    assert "2 of 4 blocks are computed again" in text
    change(out, plan={"budget_mib": 50_000.0})
    root, text = parsed(write_report(out))
    assert "budget: 50,000 MiB, above this chart" in text
    assert [line.get("class") for line in figures(root)["Memory"].find(SVG).iter("line")].count("limit") == 0


def test_the_governors_decisions_are_marked(tmp_path):
    slower = {"event": "governor", "step": 2, "action": "slower", "cause": "it is hot"}
    out = write(tmp_path / "out", step(1), step(2), slower, {**slower, "action": "pause", "cause": "<b>"}, step(3))
    root, text = parsed(write_report(out))
    for title in ("Memory", "Speed"):
        marks = [group for group in figures(root)[title].iter("g") if group.get("class", "").startswith("mark")
                 and group.find("title") is not None]
        assert [mark.find("title").text for mark in marks] == ["step 2: it is hot", "step 2: <b>"]
    assert "2slowerit is hot" in text
    assert "2paused<b>" in text


def test_a_training_leaves_its_report(bundle, tmp_path):
    """With answers that were compared after it; also where it is stopped, or its loss is no number."""
    rows = [{"prompt": f"turn on lamp {number}", "completion": "on"} for number in range(40)]
    options = {"rank": 4, "steps": 6, "batch_size": 4, "max_length": 64, "threads": 1}
    result = train(bundle, rows, tmp_path / "out", **options)
    _, text = parsed(tmp_path / "out" / "report.html")
    assert result.verdict in text
    assert f"{result.exact_before:.0%} → {result.exact_after:.0%}" in text
    assert all(pair["prompt"] in text for pair in result.pairs)
    done = []
    with pytest.raises(Interrupted):
        train(bundle, rows, tmp_path / "stopped", on_event=done.append, **options,
              should_stop=lambda: any(event.get("step") == 3 for event in done))
    assert "Paused: step 3 of 6." in parsed(tmp_path / "stopped" / "report.html")[1]
    with pytest.raises(NumericsError):
        train(bundle, rows, tmp_path / "failed", **options, lr=1e30, warmup=0.0)
    assert "no longer a number" in parsed(tmp_path / "failed" / "report.html")[1]
    assert (tmp_path / "failed" / "metrics.csv").exists()


def test_a_training_that_could_not_begin_leaves_no_report(tmp_path):
    out = write(tmp_path / "out", step(1))
    with pytest.raises(UsageError), reported(out):
        raise UsageError("the output folder exists")
    assert not (out / "report.html").exists()


def test_a_run_in_progress(bundle, tmp_path):
    """It is read while it trains, and is none the worse for it."""
    out = tmp_path / "out"
    said = []

    def look(event):
        if event["event"] == "step" and event["step"] == 5:
            said.append(parsed(write_report(out))[1])

    go(bundle, out, on_event=look)
    assert "Running: step 5 of 8." in said[0]
    assert json.loads((out / "run.json").read_text())["verdict"]["sentence"] in parsed(write_report(out))[1]


@pytest.mark.parametrize("stopped", [1, 4])
def test_a_paused_run(bundle, tmp_path, stopped):
    out = tmp_path / "out"
    stop_after(stopped, bundle, out)
    _, text = parsed(write_report(out))
    assert f"Paused: step {stopped} of 8." in text
    go(bundle, out, resume=True)
    assert "Resumed" in parsed(write_report(out))[1]
    assert not list(out.glob("*.tmp"))


@pytest.mark.parametrize("lines", [[], [step(1)], [measured(0, 1.0)], [step(1, loss=math.nan)],
                                   [step(1, loss=math.inf, lr=0.0), step(2, loss=-3.0, lr=0.0)],
                                   [step(n, loss=5.0) for n in (1, 2, 3)], ["{"], [measured(0, math.nan), step(1)]])
def test_runs_of_which_little_is_known(tmp_path, lines):
    parsed(write_report(write(tmp_path / "out", *lines)))


def test_a_long_run_is_a_small_page(tmp_path):
    lines = [line for n in range(1, 5001) for line in (step(n, loss=math.sin(n) + 2), measured(n, 1.5))]
    _, text = parsed(write_report(write(tmp_path / "out", *lines)))
    assert "Of 5,000 steps every 16th is drawn." in text


def test_what_rows_say_is_text(tmp_path):
    pairs = [{"prompt": HOSTILE, "expected": HOSTILE, "before": "x" * 10_000, "after": [{"role": HOSTILE}]},
             HOSTILE, {"prompt": None}]
    out = write(tmp_path / "</title><script>", step(1), {"event": "governor", "step": 1, "action": HOSTILE,
                                                         "cause": HOSTILE},
                status=HOSTILE, base={"name": HOSTILE, "architecture": HOSTILE}, options={HOSTILE: HOSTILE},
                verdict={"kind": HOSTILE, "sentence": HOSTILE}, origin={"command": [HOSTILE], "started": HOSTILE},
                plan={"traded": [HOSTILE], "peak_mib": HOSTILE}, data={"rows": HOSTILE}, changed=[HOSTILE, {}],
                answers={"rows": 1, "pairs": pairs})
    _, text = parsed(write_report(out))
    assert "<script>alert(1)</script><img src=x onerror=alert(2)>'\"&amp;\\x1b[31m\\x00" in text
    assert "\x1b" not in text
    assert "(10,000 characters)" in text


@given(st.text())
@settings(max_examples=200)
def test_any_text_is_well_formed_and_stays_what_it_says(said):
    found = ET.fromstring(element("p", said, title=said))
    plain = "".join(letter for letter in said if letter.isprintable())
    if plain == said:
        assert found.text == (said or None)
        assert found.get("title") == said


def test_a_report_is_replaced_whole_or_not_at_all(out, monkeypatch):
    write_report(out)
    before = (out / "report.html").read_bytes()
    change(out, status="failed", verdict=None)
    monkeypatch.setattr("edgetune.runs.page.page", lambda *_: "\ud800")
    with pytest.raises(UnicodeEncodeError):
        write_report(out)
    assert (out / "report.html").read_bytes() == before
    assert not list(out.glob("*.tmp"))


def test_the_same_run_gives_the_same_bytes(out, tmp_path):
    write_html(tmp_path / "a.html", read_history(out))
    write_html(tmp_path / "b.html", read_history(out))
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_no_run_no_report(tmp_path):
    with pytest.raises(FormatError, match="holds no run"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---- axes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high", "ticks"), [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (3, 3, None), (0, 0, None),
                                                    (0, 3.38, [0, 1, 2, 3, 4]), (0.5, 0.7, [0.5, 0.55, 0.6, 0.65, 0.7]),
                                                    (-2, 7, [-2, 0, 2, 4, 6, 8])])
def test_an_axis_has_round_ticks_that_hold_all_values(low, high, ticks):
    found = chart.scale(low, high, 100, 0)
    assert found.low <= low
    assert found.high >= high
    assert found(found.low) == 100
    assert found(found.high) == 0
    assert len(found.ticks) <= 8
    if ticks:
        assert found.ticks == pytest.approx(ticks)


@pytest.mark.parametrize(("ticks", "said"), [([0, 500, 1000, 1500], ["0", "500", "1,000", "1,500"]),
                                             ([0, 0.05, 0.1], ["0.00", "0.05", "0.10"]), ([0, 2e-4, 4e-4], ["0", "2e-4",
                                                                                                            "4e-4"])])
def test_labels_of_ticks(ticks, said):
    assert chart.labels(ticks) == said


def test_lines_break_at_what_is_no_number():
    line = Line("a", [(0, 1.0), (1, math.nan), (2, 2.0), (3, 1.0)], Style(0))
    drawn = ET.fromstring(chart.figure(Chart("t", "x", "y", [line])))
    group = next(g for g in drawn.iter("g") if g.get("class") == "line c0 d0")
    assert [piece.count("L") for piece in group.find("path").get("d").split("M")[1:]] == [0, 1]
    assert len(list(group.iter("circle"))) == 1  # the first point is alone
    assert chart.figure(Chart("t", "x", "y", [Line("a", [(0, math.nan)], Style(0))])) is None


def test_styles_differ():
    assert len({(style.colour, style.dash) for style in STYLES}) == len(STYLES) == 32
    assert all(a.colour != b.colour and a.dash != b.dash for a, b in pairwise(STYLES))


def test_marks_outside_the_steps_are_not_drawn():
    line = Line("a", [(1, 1.0), (2, 2.0)], Style(0))
    drawn = chart.figure(Chart("t", "x", "y", [line], marks=[Mark(0, "go", "n", "cause")]))
    assert "cause" not in drawn


# ---- several runs ---------------------------------------------------------------------------------------------------


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


# ---- the command ----------------------------------------------------------------------------------------------------


def run_command(*words):
    from click.testing import CliRunner

    from edgetune.cli import cli
    return CliRunner().invoke(cli, ["report", *map(str, words)])


def test_the_command_for_one_run(out, tmp_path):
    said = run_command(out)
    assert said.exit_code == 0, said.output
    assert f"report in {out / 'report.html'}" in said.output
    assert json.loads((out / "run.json").read_text())["verdict"]["sentence"] in said.output
    parsed(out / "report.html")
    run_command(out, "-o", tmp_path / "other.html")
    assert (tmp_path / "other.html").read_bytes() == (out / "report.html").read_bytes()


def test_the_command_for_several(out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = shutil.copytree(out, tmp_path / "other")
    change(other, options={"lr": 1.0}, held_out={"loss_before": math.nan})
    facts = json.loads(run_command(out, other, "--json").output, parse_constant=pytest.fail)
    assert facts["report"] == "runs.html"
    parsed(tmp_path / "runs.html")
    assert [run["steps"] for run in facts["runs"]] == [8, 8]
    assert "lr" in facts["differing"]
    assert facts["runs"][1]["held_out"]["loss_before"] is None


def test_what_the_command_refuses(out, tmp_path):
    for words, match in (((out, "-o", tmp_path / "model.gguf"), "name one that ends in .html"),
                         ((out, out), "a run is named twice"), ((tmp_path,), "holds no run"),
                         ((out, "-o", tmp_path / "no" / "a.html"), "make the folder")):
        before = sorted(tmp_path.rglob("*"))
        said = run_command(*words)
        assert said.exit_code in (1, 2)
        assert match in said.output
        assert said.output.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
