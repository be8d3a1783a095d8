"""What is read of a run's folder is what its files say, whatever version, state or damage; tables say the same."""

import csv
import json
import math
import shutil
import tarfile
from pathlib import Path

import pytest
from durable import go, metrics, stop_after
from report_pages import measured, step, write

from edgetune.errors import EdgetuneError, FormatError
from edgetune.runs import tables
from edgetune.runs.history import DECISIONS, SHOWN, read_history
from edgetune.runs.tables import COLUMNS, LONGEST, OPENAI_COLUMNS, GovernorDecision, write_metrics, write_step_metrics

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "states-0.1.0.tar.xz"


def of_kind(lines, kind):
    return [line for line in lines if line["event"] == kind]


def test_a_finished_run(finished):
    lines = metrics(finished)
    run = json.loads((finished / "run.json").read_text())
    history = read_history(finished)
    for name in ("step", "loss", "lr", "grad_norm", "tokens", "tokens_per_s", "seconds", "rss_mib"):
        assert [getattr(found, name) for found in history.steps] == [line[name] for line in of_kind(lines, "step")]
    assert [(found.step, found.loss) for found in history.measurements] == [
        (line["step"], line["loss"]) for line in of_kind(lines, "eval")]
    assert (history.step_count, history.every, history.damaged, history.name) == (8, 1, 0, "out")
    assert history.record.status == "done"
    assert history.record.options == run["options"]
    assert history.seconds == run["seconds"]
    assert history.held_out.loss_before == run["held_out"]["loss_before"]
    assert history.held_out.loss_after == run["held_out"]["loss_after"]


def test_a_paused_run_is_resumed(bundle, tmp_path):
    out = tmp_path / "out"
    stop_after(4, bundle, out)
    assert read_history(out).record.status == "paused"
    write_metrics(out)
    go(bundle, out, resume=True)
    history = read_history(out)
    assert [found.step for found in history.steps] == list(range(1, 9))
    assert [found.step for found in history.resumes] == [4]


def test_a_report_of_a_run_that_was_killed_before_its_first_checkpoint_is_no_hindrance(bundle, tmp_path):
    out = write(tmp_path / "out", step(1))
    write_metrics(out)
    (out / "report.html").write_text("")
    go(bundle, out, resume=True)
    assert read_history(out).step_count == 8


def test_what_0_1_0_wrote(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    for name, status in (("adapter", "done"), ("stopped", "paused")):
        history = read_history(tmp_path / name)
        lines = metrics(tmp_path / name)
        assert [found.loss for found in history.steps] == [line["loss"] for line in of_kind(lines, "step")]
        assert history.record.status == status
        assert (history.record.edgetune, history.verdict, history.answers) == ("0.1.0", None, None)


def test_a_run_that_still_writes(tmp_path):
    """There is no run.json yet, and the last line has not ended."""
    out = write(tmp_path / "out", measured(0, 2.0), step(1))
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"event": "step", "st')
    history = read_history(out)
    assert (history.step_count, history.damaged, history.record.status) == (1, 0, "running")
    assert history.seconds == 0.5


DAMAGED = ["", "{", "[]", "null", '"step"', "{}", "[" * 10_000, "\0", '{"event": "step"}', step(3, step="3"),
           step(3, step=True), step(3, loss=None), step(3, loss="1"), step(3, tokens=-1), step(3, step=2),
           step(3, step=10**30), {"event": "eval", "step": 2}, {"event": "governor", "step": 2, "action": 1},
           {"event": "resume", "step": 2, "changed": [{}]}, step(3, more="x" * LONGEST)]


@pytest.mark.parametrize("line", DAMAGED, ids=lambda line: str(line)[:30])
def test_a_damaged_line_is_counted_and_left_out(tmp_path, line):
    history = read_history(write(tmp_path / "out", step(1), step(2), line, step(4)))
    assert ([found.step for found in history.steps], history.damaged) == ([1, 2, 4], 1)


def test_other_events_and_numbers_that_are_none(tmp_path):
    later = {"event": "of a later version"}
    history = read_history(write(tmp_path / "out", later, step(1, loss=math.nan), step(2, more=1)))
    assert (history.step_count, history.damaged) == (2, 0)
    assert math.isnan(history.steps[0].loss)


def test_after_a_resumption_the_same_step_may_be_measured_on_other_rows(tmp_path):
    first = measured(1, 2.0)
    resumed = {"event": "resume", "step": 1, "changed": [{"name": "held-out"}]}
    history = read_history(write(tmp_path / "out", step(1), first, resumed, {**first, "loss": 3.0}, step(2)))
    assert [(found.step, found.loss) for found in history.measurements] == [(1, 2.0), (1, 3.0)]
    assert (history.damaged, history.resumes[0].changed) == (0, ("held-out",))


@pytest.mark.dev
@pytest.mark.parametrize("count", [1, SHOWN - 1, SHOWN, SHOWN + 1, 2 * SHOWN, 20_000])
def test_of_many_steps_a_part_is_kept(tmp_path, count):
    history = read_history(write(tmp_path / "out", *(step(number) for number in range(1, count + 1))))
    kept = [found.step for found in history.steps]
    whole = sorted({*range(1, count + 1, history.every), count})
    assert kept == whole
    assert SHOWN // 2 <= len(kept) <= SHOWN or count < SHOWN
    assert (history.step_count, history.seconds) == (count, count / 2)


def test_the_latest_decisions_are_kept(tmp_path):
    lines = [{"event": "governor", "step": n, "action": "slower", "cause": f"{n}"} for n in range(DECISIONS + 5)]
    history = read_history(write(tmp_path / "out", *lines))
    assert history.decision_count == DECISIONS + 5
    assert history.decisions[-1] == GovernorDecision(DECISIONS + 4, "slower", f"{DECISIONS + 4}")
    assert len(history.decisions) == DECISIONS


@pytest.mark.parametrize(("content", "match"), [
    ("{", "is damaged"), ("[]", "is not a JSON object"), ("\0", "is damaged"), ("[" * 10_000, "is damaged"),
    ('{"status": 3}', "status is 3, text is expected"), ('{"held_out": []}', "no JSON object"),
    ('{"options": null}', "options is null, an object is expected"),
    ('{"held_out": {"loss_before": "low"}}', "loss_before is .low., a number")])
def test_a_record_that_is_none_is_refused_in_a_sentence(tmp_path, content, match):
    (write(tmp_path / "out", step(1)) / "run.json").write_text(content)
    with pytest.raises(EdgetuneError, match=match) as caught:
        read_history(tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_a_record_of_a_later_version_has_more(tmp_path):
    out = write(tmp_path / "out", step(1))
    (out / "run.json").write_text('{"status": "done", "later": 1, "verdict": {"kind": "learned", "later": 2}}')
    assert read_history(out).verdict.kind == "learned"


@pytest.mark.parametrize("made", ["nothing", "empty"])
def test_a_folder_without_a_run(tmp_path, made):
    if made == "empty":
        (tmp_path / made).mkdir()
    with pytest.raises(FormatError, match=r"holds no run: there is neither run\.json nor metrics\.jsonl"):
        read_history(tmp_path / made)


# ---- tables ---------------------------------------------------------------------------------------------------------


def test_metrics_csv_says_what_metrics_jsonl_says(finished, tmp_path):
    done = shutil.copytree(finished, tmp_path / "out")
    write_metrics(done)
    raw = (done / "metrics.csv").read_bytes()
    assert raw.count(b"\r\n") == raw.count(b"\n")
    with (done / "metrics.csv").open(newline="") as file:
        reader = csv.DictReader(file, strict=True)
        rows = list(reader)
    assert tuple(reader.fieldnames) == COLUMNS
    assert [int(row["step"]) for row in rows] == list(range(9))
    evals = {line["step"]: line["loss"] for line in of_kind(metrics(done), "eval")}
    steps = {line["step"]: line for line in of_kind(metrics(done), "step")}
    names = {"train_loss": "loss", "learning_rate": "lr", "grad_norm": "grad_norm", "tokens": "tokens",
             "tokens_per_s": "tokens_per_s", "memory_mib": "rss_mib"}
    for row in rows:
        number = int(row["step"])
        assert row["valid_loss"] == (repr(evals[number]) if number in evals else "")
        for column, name in names.items():
            assert row[column] == (repr(steps[number][name]) if number else "")
    assert sorted(path.name for path in done.iterdir()) == ["adapter.gguf", "metrics.csv", "metrics.jsonl", "run.json"]


def test_step_metrics_as_openai_has_them(finished, tmp_path):
    assert write_step_metrics(finished, tmp_path / "a.csv") == 9
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines[0] == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    before = of_kind(metrics(finished), "eval")[0]["loss"]
    assert lines[1] == f"0,,,{before!r},"
    assert lines[2] == f"1,{of_kind(metrics(finished), 'step')[0]['loss']!r},,,"


def test_step_metrics_have_the_metrics_of_the_objective(tmp_path):
    """By TRL's names, of held-out rows with TRL's prefix; rewards by OpenAI's names too."""
    def line(event, number, **metrics):
        return {**(step(number) if event == "step" else {"event": "eval", "step": number, "loss": -0.5}),
                "metrics": {name.replace("__", "/"): value for name, value in metrics.items()}}

    rewards = [line("eval", 0, reward=0.5), line("step", 1, reward=0.25, kl=0.125), line("step", 2),
               line("eval", 2, reward=0.75)]
    write_step_metrics(write(tmp_path / "rewards", *rewards), tmp_path / "a.csv")
    lines = [line.split(",") for line in (tmp_path / "a.csv").read_text().splitlines()]
    assert lines[0] == [*OPENAI_COLUMNS, "train_mean_reward", "full_valid_mean_reward", "eval_reward", "reward", "kl"]
    assert [found[3:] for found in lines[1:]] == [["", "", "", "0.5", "0.5", "", ""],
                                                  ["", "", "0.25", "", "", "0.25", "0.125"],
                                                  ["", "", "", "0.75", "0.75", "", ""]]
    pairs = [line("step", 1, rewards__accuracies=0.5), line("eval", 1, rewards__accuracies=1.0)]
    write_step_metrics(write(tmp_path / "pairs", *pairs), tmp_path / "b.csv")
    lines = [line.split(",") for line in (tmp_path / "b.csv").read_text().splitlines()]
    assert lines[0] == [*OPENAI_COLUMNS, "rewards/accuracies", "eval_rewards/accuracies"]
    assert lines[1][3:] == ["-0.5", "", "0.5", "1.0"]


@pytest.mark.parametrize("count", [9, 10, 11, 25])
def test_step_metrics_are_bounded(tmp_path, monkeypatch, count):
    monkeypatch.setattr(tables, "MOST", 10)
    out = write(tmp_path / "out", *(step(number) for number in range(1, count + 1)))
    write_step_metrics(out, tmp_path / "a.csv")
    steps = [int(line.split(",")[0]) for line in (tmp_path / "a.csv").read_text().splitlines()[1:]]
    every = {9: 1, 10: 1, 11: 2, 25: 3}[count]
    assert steps == sorted({*range(1, count + 1, every), count})
