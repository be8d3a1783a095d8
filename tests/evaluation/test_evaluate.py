"""edgetune.evaluation.served: losses against log-probabilities computed here, answers against what the model says."""

import math
from dataclasses import replace

import numpy as np
import pytest

from edgetune.data.dataset import load_rows
from edgetune.data.packing import Example
from edgetune.data.rows import as_messages
from edgetune.errors import DataError
from edgetune.evaluation.served import SHOWN_TOKENS, Scores, asked_match, exact_match, grade, served_loss
from edgetune.serving.llama import LlamaModel

QUESTIONS = ["turn the light on", "set the light to 10", "turn off the light", "system off", "tool to set"]


@pytest.fixture(scope="module")
def served(tiny_llama):
    with LlamaModel(tiny_llama, threads=1) as served:
        yield served


def dataset(served, answers):
    rows = [{"prompt": question, "completion": answer} for question, answer in zip(QUESTIONS, answers, strict=True)]
    return load_rows(rows, served.tokenizer, max_length=200, system="set the light")


def says(served, question, n):
    messages = [{"role": "system", "content": "set the light"}, {"role": "user", "content": question}]
    return "".join(served.chat(messages, max_tokens=n))


def test_loss_is_the_weighted_mean(served):
    data = dataset(served, ["on", '{"set":"10"}', "off", "off", "10"])
    weights = [example.weights * np.float32(i + 1) / 2 for i, example in enumerate(data.examples)]
    examples = [Example(example.tokens, w) for example, w in zip(data.examples, weights, strict=True)]
    total = 0.0
    count = 0
    for example in examples:
        served.reset()
        z = served.logits(example.tokens.tolist()).astype(np.float64)
        logp = z - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True)) - z.max(1, keepdims=True)
        for t in np.flatnonzero(example.weights):
            total -= float(example.weights[t]) * logp[t - 1, example.tokens[t]]
            count += 1
    loss, tokens = served_loss(served, replace(data, examples=examples))
    assert tokens == count > 10
    assert loss == pytest.approx(total / sum(float(w.sum()) for w in weights), rel=1e-4)
    assert served_loss(served, replace(data, examples=examples)) == (loss, tokens)
    unweighted = [Example(example.tokens, np.zeros_like(example.weights)) for example in examples]
    with pytest.raises(DataError, match="no token to evaluate by"):
        served_loss(served, replace(data, examples=unweighted))


def test_loss_does_not_depend_on_what_came_before(served):
    data = dataset(served, ["on", "off", "off", "on", "10"])
    first = served_loss(served, data)
    tokens = data.examples[0].tokens.tolist()
    served.logits(tokens[::-1])
    served.cache.cached[:] = tokens  # a cache of other values than its tokens have
    assert served_loss(served, data) == first


def test_exact_match_asks_the_served_model(served):
    expected = [says(served, question, 6) for question in QUESTIONS]
    expected[1] = "wrong"
    expected[3] = '{"a": 1}'
    data = dataset(served, expected)
    answers = exact_match(served, data, system="set the light", max_tokens=6)
    assert [answer.correct for answer in answers] == [True, False, True, False, True]
    assert [answer.expected for answer in answers] == [text.strip() for text in expected]
    assert all(question in answer.prompt for question, answer in zip(QUESTIONS, answers, strict=True))
    assert exact_match(served, data, system="set the light", max_tokens=6, limit=2) == answers[:2]
    longer = exact_match(served, data, system="set the light", limit=1)[0].answer
    assert longer.startswith(answers[0].answer)
    assert len(longer) > len(answers[0].answer)  # a model that does not stop is wrong, and is cut off


def test_an_answer_that_cannot_become_json_ends_early(served):
    data = dataset(served, ['{"a": "a long value, so that the answer may be long"}', "off", *["on"] * 3])
    whole = exact_match(served, data, system="set the light")
    short = exact_match(served, data, system="set the light", shortens=True)
    assert short[1:] == whole[1:]  # of other answers people see all
    assert whole[0].answer.startswith(short[0].answer)
    assert (len(short[0].tokens), short[0].ended) == (SHOWN_TOKENS, False)
    assert len(whole[0].tokens) > SHOWN_TOKENS


def test_answers_that_obey_a_grammar_are_not_computed_again(served, monkeypatch):
    data = dataset(served, ["on", "off", "on", "off", "on"])
    options = {"system": "set the light", "max_tokens": 6}
    form = "root ::= [a-z ]{1,9}"
    free = exact_match(served, data, **options)
    held = exact_match(served, data, **options, grammar=form)
    asked = []
    complete = served.complete_tokens
    monkeypatch.setattr(served, "complete_tokens", lambda *a: asked.append(len(a[0])) or complete(*a))
    assert exact_match(served, data, **options, grammar=form, free=held) == held
    assert exact_match(served, data, **options, grammar=form, free=free) == held
    assert asked == [sum(not answer.ended for answer in held), 5]


def test_evaluate_sums_up(served):
    expected = [says(served, question, 6) for question in QUESTIONS]
    expected[3] = '{"a": 1}'
    data = dataset(served, expected)
    graded = grade(served, data, system="set the light", max_tokens=6)
    scores = graded.scores
    loss, tokens = served_loss(served, data)
    assert scores == Scores("llama.cpp", 5, tokens, loss, 0.8, 5, 0.0)
    assert scores.to_json()["perplexity"] == scores.perplexity == pytest.approx(math.exp(loss))
    assert [answer.question for answer in graded.answers] == QUESTIONS
    alone = [served_loss(served, replace(data, examples=[example])) for example in data.examples]
    assert [(each.mean, each.tokens) for each in graded.losses] == alone
    assert grade(served, data, answers=False).scores == Scores("llama.cpp", 5, tokens, loss)


def test_plain_text_has_no_answers(served):
    data = load_rows([{"text": "turn the light on"}], served.tokenizer, max_length=50)
    assert exact_match(served, data) == []
    assert grade(served, data).scores.exact is None


def test_a_row_is_asked_with_its_tools_in_both_shapes():
    tools = [{"type": "function", "function": {"name": "light", "parameters": {"type": "object"}}}]
    pair = {"prompt": "on", "completion": "done", "tools": tools}
    chat = {"messages": as_messages("on", "done"), "tools": tools}
    seen = []
    found = asked_match([pair, chat], lambda messages, given, _most: seen.append((messages, given)) or "done")
    assert seen == [([{"role": "user", "content": "on"}], tools)] * 2
    assert all(answer.correct for answer in found)
