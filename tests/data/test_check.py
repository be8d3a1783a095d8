"""What `data check` finds: each flaw is named with its lines, flawless rows are left alone, numbers are numpy's."""

import json
from itertools import pairwise

import numpy as np
import pair_rows
import pytest
from encoders import WORDS, tiny_bert, write_encoder

from edgetune.data import check, labelled
from edgetune.data.check import findings, quantile
from edgetune.data.dataset import load_rows
from edgetune.data.facts import TokenizeOptions, inspect
from edgetune.data.formats import Columns
from edgetune.llamacpp.wordpiece import WordPiece

GOOD = [{"prompt": f"turn on lamp {i}", "completion": json.dumps({"lamp": i})} for i in range(1, 41)]
CHAT = {"messages": [{"role": "user", "content": "lamp"}, {"role": "assistant", "content": '{"lamp": 0}'}]}


def inspected(rows, name="rows.jsonl", **options):
    return inspect(name, enumerate(rows, start=1), **options)


def found(rows, held=None, tokens=None, **options):
    held_out = None if held is None else inspected(held, "held.jsonl", tokens=tokens, **options)
    return findings(inspected(rows, tokens=tokens, **options), held_out, tokens)


@pytest.fixture(scope="module")
def encoder_tokens(tmp_path_factory):
    model = write_encoder(tmp_path_factory.mktemp("encoder") / "tiny.gguf", tiny_bert(), WORDS)
    return TokenizeOptions(WordPiece(model), 64)


def changed(number, **values):
    return [row | values if i == number else row for i, row in enumerate(GOOD, start=1)]


def test_flawless_rows_are_left_alone(tokenizer):
    assert found(GOOD) == []
    assert found(GOOD, tokens=TokenizeOptions(tokenizer, 128)) == []
    assert found(GOOD, [{"prompt": "another lamp", "completion": "{}"}]) == []
    assert found(["the light is on " * 9]) == []
    assert found([{"text": f"the light is {i}"} for i in range(5)]) == []
    rows = [{"Frage": row["prompt"], "Antwort": row["completion"]} for row in GOOD]
    assert found(rows, columns=Columns("Frage", "Antwort")) == []


@pytest.mark.parametrize(("rows", "kind", "lines", "fatal", "sentence"), [
    ([], "no-rows", [], True, "rows.jsonl holds no rows; write a row a line"),
    (changed(3, completion=" "), "empty", [3], True,
     "1 row of rows.jsonl cannot be used: the completion is empty (line 3); write it, or remove the row"),
    ([*GOOD, {"a": 1}, {"a": 2}], "refused", [41, 42], True,
     "2 rows of rows.jsonl cannot be used: the row has an unknown shape (its keys: a) (lines 41, 42); expected is "
     "messages, prompt with completion, or text, or name its keys: --prompt-column KEY --completion-column KEY"),
    ([*GOOD, CHAT], "shapes", [41], True,
     "1 row of rows.jsonl is not of prompt and completion, as the others are (line 41); keep one shape in a file"),
    (GOOD[:19], "few", [], False, "19 rows are few to learn from; expect that they are memorised, and add rows"),
    ([*GOOD, GOOD[0], GOOD[0]], "repeated", [41, 42], False,
     "2 rows repeat earlier ones (lines 41, 42); remove them, unless they are to count more"),
    ([*GOOD, GOOD[0] | {"completion": "[]"}], "contradictory", [1, 41], False,
     "1 question has several different answers (lines 1, 41); keep the right one, unless any of them will do"),
    ([row | {"completion": "{}"} for row in GOOD], "alike", [], False,
     "all 40 answers are the same; add rows with other answers, or the model learns to give this one to every "
     "question"),
    (changed(7, completion="lamp 7 on"), "not-json", [7], False,
     "1 answer is not JSON, as the other 39 are (line 7); mend them, or the model learns to answer both ways"),
    (changed(7, completion=json.dumps(["lamp"] * 100)), "long", [7], False,
     "1 answer has more than 10 times the usual 12 letters (line 7); see whether they are whole and right"),
    ([{"prompt": f"lamp {i}", "completion": "ok" if i == 9 else "on and off " * 9} for i in range(1, 41)], "short",
     [9], False,
     "1 answer has less than a 10th of the usual 99 letters (line 9); see whether they are whole and right"),
])
def test_each_flaw_is_named(rows, kind, lines, fatal, sentence):
    one = next(finding for finding in found(rows) if finding.kind == kind)
    assert (one.lines, one.fatal, str(one)) == (lines, fatal, sentence)
    assert {finding.kind for finding in found(rows)} <= {kind, "contradictory"}, "and nothing else"


def test_flaws_of_the_held_out_file():
    one, = found(GOOD, [{"prompt": "else", "completion": "{}"}, GOOD[4], GOOD[5] | {"completion": "[]"}])
    assert one.fatal
    assert str(one).startswith("2 rows of held.jsonl ask what rows.jsonl teaches (lines 2, 3); keep them in one file")
    one, = found(GOOD, [{"prompt": "else", "completion": ""}])
    assert one.fatal
    assert str(one).startswith("1 row of held.jsonl cannot be used: the completion is empty (line 1)")


def test_rows_of_which_none_can_be_held_out():
    kinds = {finding.kind for finding in found([{"prompt": "say", "completion": f"{i}"} for i in range(30)])}
    assert kinds == {"none-held-out", "contradictory"}
    assert {finding.kind for finding in found(GOOD[:3])} == {"few", "none-held-out"}
    assert inspected(GOOD).held_out() == 4


def test_many_lines_and_many_reasons_are_cut_short():
    assert "(lines 1, 2, 3, 4, 5 and 35 more)" in str(found([row | {"completion": ""} for row in GOOD])[0])
    reasons = [finding for finding in found([{f"key {i}": 1} for i in range(9)]) if finding.kind == "refused"]
    assert [finding.lines for finding in reasons] == [[1], [2], [3], [4, 5, 6, 7, 8, 9]]


def test_rows_of_an_objective():
    pairs = [{"prompt": f"lamp {i}", "better": "on", "worse": "off"} for i in range(30)]
    assert found(pairs, parser=pair_rows) == []
    one, = found([*pairs, {"prompt": "lamp", "better": "", "worse": "off"}], parser=pair_rows)
    assert (one.kind, one.lines) == ("empty", [31])


# ---- by an encoder's vectors ----------------------------------------------------------------------------------------


def test_pairs_that_are_near_are_those_of_all_cosines(monkeypatch):
    """Compared block by block, as numpy computes them all at once."""
    monkeypatch.setattr(check, "TOGETHER", 7)
    rng = np.random.default_rng(0)
    x = np.repeat(rng.standard_normal((12, 16)), 4, 0) + 0.2 * rng.standard_normal((48, 16))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    expected = {(i, j): float(x[i] @ x[j]) for i in range(48) for j in range(i + 1, 48) if x[i] @ x[j] >= check.NEAR}
    pairs = check.near_pairs(x)
    assert set(pairs) == set(expected)
    assert 12 < len(pairs) < 12 * 6 + 1
    assert [expected[pair] for pair in pairs] == sorted(expected.values(), reverse=True)


def test_nearly_one_question_with_two_labels(encoder_tokens):
    """Vectors here: of the letters of a question, so that the order of words does not count."""
    def vectors(texts):
        found = np.zeros((len(texts), len(WORDS)), np.float32)
        for row, ids in zip(found, texts, strict=True):
            np.add.at(row, list(ids), 1)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    letters = "abcdefghijklmnopqrst"
    rows = [{"prompt": f"{a} {b} the light", "completion": "on"} for a, b in pairwise(letters)]
    rows += [{"prompt": f"{a} kitchen off", "completion": "off"} for a in letters]
    data = inspected([*rows, {"prompt": "the light b a", "completion": "off"}], tokens=encoder_tokens, parser=labelled)
    one, = findings(data, None, encoder_tokens, vectors)
    assert (one.kind, one.lines, one.fatal) == ("nearly-contradictory", [1, 40], False)
    assert "2 rows ask nearly what another asks and have another label" in str(one)
    assert "lines 1 and 40" in str(one)
    assert findings(inspected(rows, tokens=encoder_tokens, parser=labelled), None, encoder_tokens, vectors) == []
    as_json = [{**row, "completion": json.dumps({"do": row["completion"]})} for row in
               [*rows, {"prompt": "the light b a", "completion": "off"}]]
    assert findings(inspected(as_json, tokens=encoder_tokens, parser=labelled), None, encoder_tokens, vectors) == []


# ---- tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overflow", ["truncate", "skip"])
def test_what_is_cut_is_what_loading_cuts(tokenizer, overflow):
    rows = [*GOOD, GOOD[0] | {"completion": "[" + "1, " * 99 + "1]"}, {"prompt": "lamp " * 99, "completion": "{}"}]
    tokens = TokenizeOptions(tokenizer, 64, overflow=overflow)
    data = load_rows(rows, tokenizer, max_length=64, overflow=overflow)
    facts = inspected(rows, tokens=tokens)
    assert sum(row.is_cut for row in facts.rows) == data.truncated
    assert sum(row.is_lost for row in facts.rows) == data.skipped
    whole = load_rows(rows, tokenizer, max_length=4096).examples
    assert facts.lengths == sorted(example.tokens.size for example in whole)
    kinds = {finding.kind: finding.lines for finding in findings(facts, None, tokens)}
    assert kinds.get("lost") == ([42] if overflow == "truncate" else [41, 42])
    assert kinds.get("cut") == ([41] if overflow == "truncate" else None)


def test_where_nothing_is_left_training_would_fail(tokenizer):
    one = found(GOOD, tokens=TokenizeOptions(tokenizer, 4))[0]
    assert one.fatal
    assert str(one).startswith("no row has anything to learn within 4 tokens (lines 1, 2, 3, 4, 5 and 35 more); raise")


def test_a_row_as_the_model_sees_it(tokenizer):
    facts = inspected(GOOD, tokens=TokenizeOptions(tokenizer, 128))
    example = load_rows(GOOD[:1], tokenizer, max_length=128).examples[0]
    assert "".join(part.text for part in facts.sample) == tokenizer.decode(example.tokens.tolist())
    assert [part.text for part in facts.sample if part.learned] == ['{"lamp": 1}<|im_end|>']
    assert facts.sample_line == 1


def test_quantiles_are_numpys():
    rng = np.random.default_rng(3)
    for n in (1, 2, 3, 19, 20, 21, 100):
        values = sorted(rng.integers(0, 50, n).tolist())
        for share in (0.0, 0.5, 0.95, 1.0):
            assert quantile(values, share) == np.quantile(values, share, method="inverted_cdf")


def test_labels_are_named():
    rows = [{"prompt": f"question {i}", "completion": ("yes", "no", "later")[i % 3]} for i in range(30)]
    (named,) = [finding for finding in found(rows) if finding.kind == "labels"]
    assert "3 short texts" in named.what
    assert not named.fatal
    free = [{**row, "completion": f"text {i}"} for i, row in enumerate(rows)]
    assert "labels" not in [finding.kind for finding in found(free)]
