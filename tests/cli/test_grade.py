"""grade: answers of a file, or of a model, rewarded by a grader."""

import json
from typing import Any

import pytest
from commands import run
from json_lines import read_lines, write_lines

EXACT = {"type": "string_check", "name": "exact", "operation": "eq", "input": "{{ sample.output_text }}",
         "reference": "{{ item.answer }}"}
LIKE = {**EXACT, "name": "like", "operation": "ilike"}
BOTH = {"type": "multi", "name": "both", "graders": {"exact": EXACT, "like": LIKE},
        "calculate_output": "0.5 * exact + 0.5 * like"}
ROWS: list[dict[str, Any]] = [
    {"prompt": "a", "completion": "yes", "answer": "yes"},
    {"prompt": "b", "completion": "it is NO", "answer": "no"},
    {"messages": [{"role": "user", "content": "c"}, {"role": "assistant", "content": "maybe"}], "answer": "no"},
    {"prompt": [{"role": "user", "content": "d"}], "completion": [{"role": "assistant", "content": "x"}],
     "answer": "x"},
]
ASKING = [{"prompt": "turn on lamp 3", "answer": "on"}, {"messages": [{"role": "user", "content": "off"}],
                                                         "answer": "off"}]


def grader(folder, written):
    path = folder / "grader.json"
    path.write_text(json.dumps(written))
    return path


def lines(folder, rows):
    return write_lines(folder / "rows.jsonl", rows)


def test_answers_of_a_file(tmp_path):
    asked = (grader(tmp_path, BOTH), lines(tmp_path, ROWS))
    found = json.loads(run("grade", *asked, "--json", "--show", 1))
    assert found["scores"] == [1, 0.5, 0, 1]
    assert found["mean"] == 2.5 / 4
    assert found["parts"] == {"exact": 0.5, "like": 0.75}
    assert found["pass_at_k"] == {"1": 0.5}
    assert found["errors"] == {}
    worst, = found["worst"]
    assert worst == {"prompt": [{"role": "user", "content": "c"}], "sample": 0, "text": "maybe", "reward": 0,
                     "parts": {"exact": 0, "like": 0}, "errors": {}}
    assert json.loads(run("grade", *asked, "--json", "--pass-at", 0.5))["pass_at_k"] == {"1": 0.75}
    table = run("grade", *asked, "--show", 2, "--save", tmp_path / "graded.jsonl")
    for text in ("mean reward    0.6250", "mean of like   0.7500", "pass@1         50.0%", "2 of the lowest reward",
                 "exact 0.0000; like 1.0000", "it is NO"):
        assert text in table
    saved = read_lines(tmp_path / "graded.jsonl")
    assert [row["reward"] for row in saved] == found["scores"]
    assert saved[2] == worst
    assert "exists" in run("grade", *asked, "--save", tmp_path / "graded.jsonl", code=2)


def test_errors_are_counted(tmp_path):
    written = {"type": "json_match", "reference": '{"a": "{{ item.answer }}"}'}
    found = json.loads(run("grade", grader(tmp_path, written), lines(tmp_path, ROWS), "--json"))
    assert found["errors"] == {"sample_parse_error": 4}
    assert "sample_parse_error  4" in run("grade", grader(tmp_path, written), lines(tmp_path, ROWS))


def test_a_model_answers(tiny_llama, tmp_path):
    written = {"type": "length", "min": 1, "max": 20, "unit": "characters"}
    asked = (grader(tmp_path, written), lines(tmp_path, ASKING), "--model", tiny_llama, "--threads", 1, "--max-tokens",
             9)
    found = json.loads(run("grade", *asked, "--samples", 4, "--json", "--save", tmp_path / "graded.jsonl"))
    assert len(found["scores"]) == 8
    assert found["pass_at_k"].keys() == {"1", "4"}
    assert found["pass_at_k"]["4"] >= found["pass_at_k"]["1"]
    saved = read_lines(tmp_path / "graded.jsonl")
    assert [(row["prompt"], row["sample"]) for row in saved] == [("turn on lamp 3", k) for k in range(4)] + [
        (ASKING[1]["messages"], k) for k in range(4)]
    assert len({row["text"] for row in saved}) > 4
    passed = [score >= 1 for score in found["scores"]]
    assert found["pass_at_k"]["1"] == sum(passed) / 8
    assert found["pass_at_k"]["4"] == (any(passed[:4]) + any(passed[4:])) / 2
    assert json.loads(run("grade", *asked, "--samples", 4, "--json"))["scores"] == found["scores"]
    greedy = run("grade", *asked, "--save", tmp_path / "greedy.jsonl", "--json")
    assert len(json.loads(greedy)["scores"]) == 2
    theirs = run("generate", tiny_llama, "turn on lamp 3", "--max-tokens", 9, "--json")
    first = json.loads((tmp_path / "greedy.jsonl").read_text().splitlines()[0])
    assert first["text"] == json.loads(theirs)["text"]
    run("grade", *asked, "--system", "Be brief.", "--save", tmp_path / "brief.jsonl")
    theirs = run("generate", tiny_llama, "turn on lamp 3", "--system", "Be brief.", "--max-tokens", 9, "--json")
    brief = json.loads((tmp_path / "brief.jsonl").read_text().splitlines()[0])
    assert brief["text"] == json.loads(theirs)["text"] != first["text"]
    assert "one answer of 9 tokens to a prompt of" in run("grade", *asked, "--memory", "20M", code=2)


def test_a_model_judges(tiny_llama, tmp_path):
    written = {"type": "score_model", "model": "self", "input": [{"role": "user", "content": "{{ item.answer }}?"}]}
    asked = (grader(tmp_path, written), lines(tmp_path, ASKING))
    found = json.loads(run("grade", *asked, "--model", tiny_llama, "--threads", 1, "--max-tokens", 3, "--json"))
    assert all(0 < score < 1 for score in found["scores"])
    text = run("grade", grader(tmp_path, written), lines(tmp_path, ROWS), code=2)
    assert "score_model needs a model" in text
    assert "name one with --model" in text


def test_a_reward_function(tmp_path, monkeypatch):
    (tmp_path / "own_rewards.py").write_text("def right(completions, answer, **columns):\n"
                                             "    return [float(c == a) if isinstance(c, str) else None "
                                             "for c, a in zip(completions, answer)]\n")
    monkeypatch.chdir(tmp_path)
    for named in ("own_rewards:right", "own_rewards.py:right"):
        found = json.loads(run("grade", named, lines(tmp_path, ROWS), "--json"))
        assert found["scores"] == [1, 0, None, None]
        assert (found["mean"], found["pass_at_k"]) == (0.5, {"1": 0.5})
    assert "does not apply to  2" in run("grade", "own_rewards:right", lines(tmp_path, ROWS))
    text = run("grade", "own_rewards:right", lines(tmp_path, ROWS[2:]), code=1)
    assert "the grader applies to none of the answers" in text


@pytest.mark.parametrize(("written", "rows", "flags", "code", "says"), [
    ({**EXACT, "x": 1}, ROWS, [], 2, "has no field 'x'"),
    (EXACT, [*ROWS, {"prompt": "e", "completion": "x"}], [], 1,
     "line 5 of rows.jsonl: the row has no item.answer, which the grader names; its columns are prompt, completion"),
    (EXACT, ASKING, [], 1, "line 1 of rows.jsonl: the row has no answer to grade"),
    (EXACT, [{"text": "x", "answer": 1}], ["--model", "nowhere.gguf"], 1, "line 1 of rows.jsonl: the row asks nothing"),
    (EXACT, [], [], 1, "rows.jsonl has no rows"),
    (EXACT, ROWS, ["--samples", 2], 2, "--samples is given without --model"),
    (EXACT, ASKING, ["--model", "nowhere.gguf"], 1, "nowhere.gguf"),
    ({"type": "python", "source": "def grade(s, i): return 1 / 0\ngrade()"}, ROWS, [], 2, "fails (TypeError"),
])
def test_what_cannot_be_graded(written, rows, flags, code, says, tmp_path):
    text = run("grade", grader(tmp_path, written), lines(tmp_path, rows), *flags, code=code)
    assert says in text
    assert len(text.splitlines()) == 1


def test_a_python_grader_that_cannot_be_confined(tmp_path, monkeypatch):
    from edgetune.evaluation.graders import confinement
    monkeypatch.setattr(confinement, "lacks", lambda: "the kernel has no seccomp")
    asked = (grader(tmp_path, {"type": "python", "source": "def grade(s, i): return 1"}), lines(tmp_path, ROWS))
    assert "and the kernel has no seccomp; run it without one with --unsafe-python" in run("grade", *asked, code=2)
    assert json.loads(run("grade", *asked, "--unsafe-python", "--json"))["mean"] == 1


def test_a_python_grader(tmp_path):
    written = {"type": "python", "source": "def grade(sample, item):\n    return 1 / (item['answer'] == 'no')"}
    found = json.loads(run("grade", grader(tmp_path, written), lines(tmp_path, ROWS), "--json", "--show", 1))
    assert found["scores"] == [0, 1, 1, 0]
    assert found["errors"] == {"python_grader_runtime_error": 2}
    assert "ZeroDivisionError" in found["worst"][0]["errors"]["python_grader_runtime_error_details"]
    assert "none.json cannot be read" in run("grade", "none.json", lines(tmp_path, ROWS), code=2)


def test_an_error_with_half_a_surrogate_pair_loses_nothing(tmp_path):
    """What a grader says of an answer may be any text that Python can hold; the file is JSON in UTF-8."""
    source = "def grade(sample, item):\n    raise ValueError('\\udc80 ' + sample['output_text'])\n"
    asked = (grader(tmp_path, {"type": "python", "name": "odd", "source": source}),
             lines(tmp_path, [{"prompt": "a \ud83d", "completion": "yes"}]))
    run("grade", *asked, "--save", tmp_path / "saved.jsonl", "--show", 1, "--unsafe-python")
    saved, = map(json.loads, (tmp_path / "saved.jsonl").read_text("utf-8").splitlines())
    assert saved["prompt"] == "a \ud83d"
    assert "\udc80 yes" in saved["errors"]["python_grader_runtime_error_details"]
