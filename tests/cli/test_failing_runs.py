"""Trainings that come to nothing, as users start them: each is refused, or named by `data check` or by the verdict."""

import json
import random

import pytest
from commands import run
from json_lines import write_lines
from sometimes import mostly_slow

Row = dict[str, str]
LAMPS = ["red", "green", "blue", "black", "white", "grey", "pink", "old", "new", "tall", "small", "round", "square",
         "long", "thin", "first", "second", "third", "left", "right"]
ANSWERS = {"light": "on", "darken": "off", "dim": "low"}
ROWS = [{"prompt": f"{verb} the {lamp} lamp", "completion": answer} for verb, answer in ANSWERS.items()
        for lamp in LAMPS]
OPTIONS = ["--rank", 4, "--batch-size", 8, "--lr", 2e-2, "--max-length", 64, "--threads", 1, "--precision", "exact"]


@pytest.fixture(scope="module")
def learned(model, tmp_path_factory):
    """An adapter that knows the rows: there is something to ruin."""
    folder = tmp_path_factory.mktemp("learned")
    said = run("train", model, file(folder, ROWS), "-o", folder / "learned", *OPTIONS)
    assert "Learned: the held-out loss fell from" in said
    assert "6 of 6 held-out rows are answered exactly, 0 before" in said
    return folder / "learned"


def file(folder, rows, name="rows.jsonl"):
    return write_lines(folder / name, rows)


def shuffled(rows, seed):
    answers = [row["completion"] for row in rows]
    random.Random(seed).shuffle(answers)
    return [row | {"completion": answer} for row, answer in zip(rows, answers, strict=True)]


def long(rows):
    return [row | {"prompt": "very " * 80 + row["prompt"]} for row in rows]


# ---- what the verdict names ----


@pytest.mark.dev
@pytest.mark.parametrize("rate", mostly_slow([0.5, 50.0], [0.5]))
def test_a_rate_that_is_too_high(model, learned, tmp_path, rate):
    out = tmp_path / "out"
    rows = file(tmp_path, ROWS)
    said = run("train", model, rows, "-o", out, "--start", learned, *OPTIONS, "--lr", rate, code=3)
    assert "Worse than before" in said
    assert f"lower --lr, now {rate:g}" in said
    assert "try: edgetune chat" not in said
    assert json.loads((out / "run.json").read_text())["verdict"]["kind"] == "worse"


@pytest.mark.dev
@pytest.mark.parametrize("seed", mostly_slow([0, 2], [0]))
def test_labels_that_are_shuffled(model, tmp_path, seed):
    """The loss falls to a fifth, since the form of answers is learned."""
    out = tmp_path / "out"
    said = run("train", model, file(tmp_path, shuffled(ROWS, seed)), "-o", out, *OPTIONS)
    record = json.loads((out / "run.json").read_text())
    assert record["held_out"]["loss_after"] < record["held_out"]["loss_before"] / 5
    assert record["verdict"]["kind"] in ("unmeasured", "overfitted")
    assert "see whether the rows' answers fit their questions" in said


def test_one_row(model, tmp_path):
    said = run("train", model, file(tmp_path, ROWS[:1]), "-o", tmp_path / "out", *OPTIONS)
    assert "Not tested" in said
    assert "name some with --eval" in said


# ---- what is refused, and leaves nothing behind ----


@pytest.mark.parametrize(("rows", "said"), [
    ([*ROWS[:10], ROWS[10] | {"completion": " "}], "line 11 of rows.jsonl: the completion is empty"),
    (long(ROWS), "rows.jsonl leaves nothing to learn: no row has a supervised token within 64 tokens; raise"),
    ([{"question": "the lamp", "reply": "on"}], "line 1 of rows.jsonl: the row has an unknown shape (its keys: "),
    ([], "rows.jsonl holds no rows"),
], ids=["empty answer", "all too long", "unknown shape", "no rows"])
def test_rows_that_cannot_be_learned(model, tmp_path, rows, said):
    path = file(tmp_path, rows)
    refused(said, "train", model, path, "-o", tmp_path / "out", *OPTIONS)
    assert not (tmp_path / "out").exists()
    assert "error: " in run("data", "check", path, model, "--max-length", 64, code=1)


def test_lines_that_are_no_json(model, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("light the lamp -> on\n")
    for command in (("train", model, rows, "-o", tmp_path / "out"), ("data", "check", rows)):
        refused("line 1 of rows.jsonl is not JSON ('light the lamp -> on'); write one JSON object a line", *command)
    assert not (tmp_path / "out").exists()


def refused(said, *command: object):
    """In one sentence on a line."""
    output = run(*command, code=1)
    assert output.startswith(f"edgetune: {said}"), output
    assert output.count("\n") == 1


# ---- what `data check` names ----


AS_JSON = [row | {"completion": json.dumps({"light": row["completion"]})} for row in ROWS]
BROKEN = [row | {"completion": "broken"} for row in ROWS[:3]]
CHATTY = {"prompt": "say it", "completion": "on and " * 20}


@pytest.mark.parametrize(("rows", "said"), [
    (ROWS[:1], "1 row is few to learn from"),
    (ROWS[:1], "no row can be held out, so nothing will tell whether training helps"),
    (ROWS + ROWS[:20], "20 rows repeat earlier ones (lines 61, 62, 63, 64, 65 and 15 more)"),
    (ROWS + BROKEN, "3 questions have several different answers (lines 1, 2, 3, 61, 62 and 1 more)"),
    (ROWS + long(ROWS[:2]), "2 rows are left out: nothing to learn within 64 tokens (lines 61, 62)"),
    ([*ROWS, CHATTY], "1 row is cut after 64 tokens, and the rest not learned (line 61)"),
    ([*AS_JSON, ROWS[0] | {"prompt": "lamp"}], "1 answer is not JSON, as the other 60 are (line 61)"),
    ([row | {"completion": "on"} for row in ROWS], "all 60 answers are the same"),
], ids=["one row", "none held out", "repeats", "contradictions", "too long", "cut", "no JSON", "one answer"])
def test_rows_that_are_learned_and_should_not_be(model, tmp_path, rows, said):
    checked = run("data", "check", file(tmp_path, rows), model, "--max-length", 64)
    assert f"note: {said}" in " ".join(checked.split())


def test_held_out_rows_that_are_learned(tmp_path):
    rows = file(tmp_path, ROWS)
    held = file(tmp_path, ROWS[-3:], "held.jsonl")
    checked = " ".join(run("data", "check", rows, "--eval", held, code=1).split())
    assert "error: 3 rows of held.jsonl ask what rows.jsonl teaches (lines 1, 2, 3)" in checked


def test_rows_without_a_flaw(model, tmp_path):
    checked = run("data", "check", file(tmp_path, ROWS), model, "--max-length", 64)
    assert checked.startswith("ready to train  ")
