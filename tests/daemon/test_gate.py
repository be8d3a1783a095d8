"""edgetune.daemon.jobs.gate: two real adapters evaluated through llama.cpp."""

import json

import numpy as np
import pytest

import edgetune
from edgetune.daemon.jobs.exam import AskedAdapter, GateExam, read_scores
from edgetune.daemon.jobs.gate import evaluate
from edgetune.daemon.options import Limits
from edgetune.errors import DataError
from edgetune.serving.llama import LlamaModel

ROWS = [{"prompt": f"turn the light {i}", "completion": '{"set":"10"}'} for i in range(12)]


@pytest.fixture(scope="module")
def served(tiny_llama, tmp_path_factory):
    """With two adapters: of right answers, and of wrong ones."""
    folder = tmp_path_factory.mktemp("adapters")
    with LlamaModel(tiny_llama, threads=1) as served:
        for name, answer in (("right", '{"set":"10"}'), ("wrong", "off the light off the light")):
            trainer = edgetune.Trainer(tiny_llama, lr=2e-2, rank=8, steps=60, max_length=96, threads=1, shuffle=False)
            trainer.add([{"prompt": f"turn the light {i}", "completion": answer} for i in range(12, 36)])
            trainer.train()
            trainer.save(folder / name)
            served.load_adapter(folder / name, name)
        yield served


def ask(served, exam, old, new, **options):
    return evaluate(served, exam, AskedAdapter(old), AskedAdapter(new), **options)


@pytest.mark.dev
def test_evaluate(served):
    """A key `fresh` in a user's rows means nothing to the gate: the first rows are of earlier jobs."""
    canary = "turn the light off, set the light to 10"
    first = ask(served, GateExam(ROWS, canary), None, "right", limits=Limits(rise=10.0))
    assert first.new["exact"] == first.new["parsed"] == first.new["ended"] == 1.0
    assert first.old["exact"] == 0.0
    assert first.new["loss"] < first.old["loss"]
    assert first.canary["new"] != first.canary["base"]
    assert len(first.scores) == len(ROWS)
    found = ask(served, GateExam(ROWS, canary), "right", "wrong")
    assert not found.passed
    assert found.canary is None  # there is no limit
    assert (found.wins, found.losses) == (0, 12)
    assert (found.old["right"], found.new["right"], found.waits) == (12, 0, False)
    assert ask(served, GateExam(ROWS), "wrong", "right").passed
    rows = [{**row, "fresh": number % 2 == 0} for number, row in enumerate(ROWS)]
    jobs = [*["a"] * 3, *["b"] * 5]
    found = ask(served, GateExam(rows, rounds=jobs), "right", "wrong")
    assert found.reason.startswith("worse on questions of earlier jobs: 8 worse, 0 better")
    assert found.rounds == [{"job": "a", "rows": 3, "right": 0, "before": 3},
                            {"job": "b", "rows": 5, "right": 0, "before": 5}]
    assert found.remembered == "0 of 8 questions of 2 earlier jobs are right, 8 before"
    assert found.tests == ask(served, GateExam(ROWS, rounds=jobs), "right", "wrong").tests
    alone = ask(served, GateExam(rows, tests_before=3), "right", "wrong")
    assert (alone.rounds, alone.remembered, alone.test) == ([], "", 4)
    assert "earlier" not in alone.reason


def test_unrelated_text_is_compared_with_the_base(served):
    """Whichever adapter is active; KL by its definition, of all tokens but the last."""
    text = "the river begins as a spring under a flat grey stone"
    alone = ask(served, GateExam(ROWS, text), None, "right", limits=Limits(rise=0.0))
    other = ask(served, GateExam(ROWS, text), "wrong", "right", limits=Limits(rise=0.0))
    assert other.canary == alone.canary
    assert alone.canary["rise"] > 0.0
    assert (alone.passed, alone.waits) == (False, True)
    assert ask(served, GateExam(ROWS, text), "wrong", "right", limits=Limits(rise=10.0)).passed
    found = ask(served, GateExam(ROWS, text), "wrong", "right", limits=Limits(kl=0.0)).canary
    tokens = served.tokenizer.encode(text, bos=True)
    of = {}
    for name in (None, "right"):
        served.use(name)
        logits = served.logits(tokens[:-1]).astype(np.float64)
        of[name] = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    kl = (np.exp(of[None]) * (of[None] - of["right"])).sum() / (len(tokens) - 1)
    assert found["kl"] == pytest.approx(kl, rel=1e-5)
    assert found["limit"] is None
    assert found["base"] == pytest.approx(np.exp(-of[None][np.arange(len(tokens) - 1), tokens[1:]].mean()), rel=1e-5)
    assert found["new"] == pytest.approx(np.exp(-of["right"][np.arange(len(tokens) - 1), tokens[1:]].mean()), rel=1e-5)


def test_it_asks_only_what_is_new(served, monkeypatch):
    known = ask(served, GateExam(ROWS[:8]), "wrong", "right").scores
    asked = []
    counted = []
    complete = served.complete_tokens
    monkeypatch.setattr(served, "complete_tokens", lambda prompts, budgets, *more: (
        asked.append((served.active, len(prompts))), complete(prompts, budgets, *more))[1])
    old = AskedAdapter("right", read_scores(json.loads(json.dumps(known))))
    new = AskedAdapter("wrong")
    exam = GateExam(ROWS, corrected=[*ROWS[:2], {"prompt": "turn the light 40", "completion": '{"set":"10"}'}])
    again = evaluate(served, exam, old, new, on_asked=lambda done, of: counted.append((done, of)))
    assert asked == [("right", 4), ("wrong", 12), ("wrong", 1)]
    assert counted == [(number, 17) for number in range(1, 18)]
    assert (again.wins, again.losses) == (0, 12)
    assert (again.old["exact"], again.corrected) == (1.0, {"rows": 3, "kept": 0})
    assert ask(served, GateExam(ROWS, corrected=exam.corrected), "wrong", "right").corrected == {"rows": 3, "kept": 3}


def test_rows_that_cannot_be_answered(served):
    """A row longer than max_length has a loss but no answer; one whose answer is cut off has neither."""
    long = {"prompt": "turn", "completion": " light" * 200}
    cut = {"prompt": " light" * 200, "completion": "on"}
    found = ask(served, GateExam([*ROWS[:2], long, cut], max_length=64), None, "right")
    assert [score["loss"] is None for score in found.scores.values()] == [False, False, False, True]
    assert [score["right"] is None for score in found.scores.values()] == [False, False, True, True]
    text = ask(served, GateExam([{"text": "turn the light off"}]), None, "right")
    assert text.new["exact"] is None
    mixed = ask(served, GateExam([{"text": "turn the light off"}, ROWS[0]]), "wrong", "right")
    assert [score["right"] for score in mixed.scores.values()] == [None, True]  # each answer is its own row's
    with pytest.raises(DataError, match=r"it cannot be held out, the row has an unknown shape .*; name a valid"):
        ask(served, GateExam([{"prompt": "a", "better": "b", "worse": "c"}]), None, "right")
    with pytest.raises(DataError, match="no rows"):
        ask(served, GateExam([]), None, "right")
    long = " ".join(["turn the light off"] * 8)
    found = ask(served, GateExam([{"prompt": "turn", "completion": long}, {"prompt": "turn", "completion": "off"},
                              {"prompt": "turn", "completion": json.dumps({"set": long})}]), None, "right")
    assert [score["prose"] for score in found.scores.values()] == [True, False, False]
