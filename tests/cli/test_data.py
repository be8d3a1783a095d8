"""edgetune data check, as a user types it."""

import json

import pytest
from commands import run
from encoders import WORDS, tiny_bert, write_encoder
from json_lines import write_lines

ROWS = [{"question": f"turn on lamp {i}", "answer": json.dumps({"lamp": i})} for i in range(30)]


@pytest.fixture
def rows(tmp_path):
    return write_lines(tmp_path / "rows.jsonl", ROWS)


def test_good_rows(rows, tiny_llama):
    printed = run("data", "check", rows, tiny_llama)
    assert printed.startswith("ready to train  ")
    assert "\nrows.jsonl: 30 rows of prompt and completion\nheld out by default: 4 of them\n" in printed
    assert 'assistant\n[{"lamp": 0}<|im_end|>]\n' in printed
    assert all(len(line) <= 80 for line in printed.splitlines())


def test_rows_that_training_refuses(rows, tmp_path, tiny_llama):
    bad = write_lines(tmp_path / "bad.jsonl", [*ROWS, {"question": "lamp", "answer": ""}])
    printed = run("data", "check", bad, code=1)
    assert printed.startswith("not ready  1 error\n")
    assert ("error: 1 row of bad.jsonl cannot be used: the completion is empty (line 31); write it, or remove the row"
            in printed)
    found = json.loads(run("data", "check", bad, tiny_llama, "--eval", rows, "--json", code=1))
    assert [finding["kind"] for finding in found["findings"]] == ["empty", "overlap"]
    assert (found["data"]["rows"], found["data"]["usable"], found["held_out"]["rows"]) == (31, 30, 30)
    assert found["data"]["tokens"]["min"] <= found["data"]["tokens"]["median"] <= found["data"]["tokens"]["max"]
    assert [part["text"] for part in found["sample"] if part["learned"]] == ['{"lamp": 0}<|im_end|>']


def test_what_only_a_person_can_judge_is_a_note(tmp_path):
    printed = run("data", "check", write_lines(tmp_path / "rows.jsonl", [*ROWS, ROWS[0]]))
    assert "note: 1 row repeats an earlier one (line 31)" in printed


def test_an_encoder_finds_labels_that_differ_where_questions_are_nearly_the_same(tmp_path):
    """A question with other spaces and marks has the same tokens, and so the same vector."""
    encoder = write_encoder(tmp_path / "tiny.gguf", tiny_bert(), WORDS)
    rows = [{"prompt": f"{letter} {letter} {word}", "completion": word} for letter in "abcdefghijklmnop"
            for word in ("kitchen", "light")]
    path = write_lines(tmp_path / "rows.jsonl", [*rows, {"prompt": "c  C\tlight", "completion": "kitchen"}])
    found = json.loads(run("data", "check", path, encoder, "--json"))["findings"]
    lines, = (finding["lines"] for finding in found if finding["kind"] == "nearly-contradictory")
    assert {6, 33} <= set(lines)


def test_a_terminal_is_not_obeyed(tmp_path, tiny_llama):
    rows = [{"prompt": f"\x1b[31m {i}", "completion": "\x07on"} for i in range(30)]
    printed = run("data", "check", write_lines(tmp_path / "rows.jsonl", rows), tiny_llama)
    assert "\\x1b[31m 0" in printed
    assert not {"\x1b", "\x07"} & set(printed)


def test_columns_of_a_table(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("Frage;Antwort\n" + "".join(f"Lampe {i};an {i}\n" for i in range(30)))
    assert "error: 30 rows of rows.csv cannot be used" in run("data", "check", path, code=1)
    assert "30 rows of prompt" in run("data", "check", path, "--prompt-column", "Frage", "--completion-column",
                                      "Antwort")


@pytest.mark.slow
def test_every_command_reads_named_columns(tmp_path, tiny_llama):
    """The same rows, by their own keys and by ours, end in the same bytes and the same measurements."""
    ours = [{"prompt": f"turn on lamp {i}", "completion": f"lamp {i}"} for i in range(12)]
    theirs = [{"Frage": row["prompt"], "Antwort": row["completion"]} for row in ours]
    named = ["--prompt-column", "Frage", "--completion-column", "Antwort"]
    training = ["--steps", 1, "--rank", 2, "--max-length", 64]
    said = []
    for name, rows, flags in (("ours", ours, []), ("theirs", theirs, named)):
        path = write_lines(tmp_path / f"{name}.jsonl", rows)
        one = write_lines(tmp_path / f"one-{name}.jsonl", rows[:1])
        run("train", tiny_llama, path, "-o", tmp_path / name, *training, *flags)
        adapter = ["--adapter", tmp_path / name]
        measured = [json.loads(run(*args, *flags, "--json")) for args in (
            ["eval", tiny_llama, path, *adapter, "--no-answers"], ["compare", tiny_llama, one, *adapter],
            ["plan", tiny_llama, path])]
        said.append([(tmp_path / name / "adapter.gguf").read_bytes(), measured[0], measured[1]["second"]["loss"],
                     measured[2]["buffers"]])
    assert said[0] == said[1]
    merged = ["merge", tiny_llama, tmp_path / "ours", "-o", tmp_path / "x.gguf"]
    assert "--prompt-column is given without --eval" in run(*merged, *named, code=2)


def test_options_without_a_model_are_refused(rows):
    said = run("data", "check", rows, "--max-length", 9, code=2)
    assert "--max-length is given without MODEL, and no row is tokenized; name the model too, or leave it out" in said


REFUSED_TOGETHER = {
    "one label": ([{"prompt": f"a b {i}", "completion": "on"} for i in range(30)], "classify"),
    "no labels": ([{"prompt": f"a b {i}", "completion": f"answer {i}"} for i in range(30)], "classify"),
    "one list": ([{"prompt": f"a b {i}", "completion": '["on"]'} for i in range(30)], "classify"),
    "one pair": ([{"anchor": "a", "positive": "b"}], "embed"),
}


@pytest.mark.parametrize("kind", REFUSED_TOGETHER)
def test_it_says_of_all_rows_together_what_training_refuses(tmp_path, kind):
    encoder = write_encoder(tmp_path / "tiny.gguf", tiny_bert(), WORDS)
    rows, method = REFUSED_TOGETHER[kind]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    refused = run("train", encoder, path, "-o", tmp_path / "out", "--method", method, "--eval", "none", code=1)
    checked = run("data", "check", path, encoder, "--method", method, code=1)
    assert checked.startswith("not ready")
    assert refused.removeprefix("edgetune: ").strip() in checked
    assert not (tmp_path / "out").exists()


def test_a_line_of_10_mb_is_refused_by_check_as_by_training(tmp_path, tiny_llama):
    path = write_lines(tmp_path / "rows.jsonl", [{"prompt": "q", "completion": "x" * 10_000_000}])
    for command in (["data", "check", path], ["data", "check", path, tiny_llama],
                    ["train", tiny_llama, path, "-o", tmp_path / "out"]):
        printed = run(*command, code=1)
        assert "line 1 of rows.jsonl has 9.5 MiB, the limit is 1 MiB; divide it into several rows" in printed
