"""score_model: expected scores from the probabilities of digits, as llama.cpp gives them when asked directly."""


import numpy as np
import pytest

from edgetune.errors import UsageError
from edgetune.evaluation.graders.base import read_grader
from edgetune.evaluation.graders.llama_judge import LlamaJudge
from edgetune.evaluation.graders.sample import Sample
from edgetune.serving.llama import LlamaModel

WRITTEN = {"type": "score_model", "name": "judge", "model": "self", "input": [
    {"role": "system", "content": "You are an expert grader."},
    {"role": "user", "content": "Reference: {{ item.reference_answer }}. Model answer: {{ sample.output_text }}"}]}


class Fixed:
    """A judge that always says the same."""

    name = "fixed"

    def __init__(self, *probabilities):
        self.probabilities = probabilities
        self.asked = []

    def label_probabilities(self, conversations, labels):
        self.asked += [(conversation, labels) for conversation in conversations]
        return [list(self.probabilities) for _ in conversations]


@pytest.fixture(scope="module")
def judge(smollm2):
    with LlamaModel(smollm2, context=512) as served:
        yield LlamaJudge(served, "smollm2")


def graded(judge, said=("x",), **fields):
    grader = read_grader({**WRITTEN, **fields}, model=judge)
    return grader.grade([Sample(text) for text in said], [{"reference_answer": 1.0}] * len(said))


def test_the_reward_is_the_expected_digit_in_the_range():
    halves = Fixed(*[0] * 4, 0.5, 0, 0.5, *[0] * 3)
    assert graded(halves)[0].reward == pytest.approx((4 + 6) / 2 / 9)
    assert graded(halves, range=[-1, 1])[0].reward == pytest.approx(10 / 9 - 1)
    few = Fixed(0, 0.25, 0, 0, 0.75)
    assert graded(few, range=[1, 5])[0].reward == pytest.approx(0.25 * 2 + 0.75 * 5)
    assert few.asked[0][1] == ["1", "2", "3", "4", "5"]
    system, user = halves.asked[0][0]
    assert system == {"role": "system", "content": "You are an expert grader."}
    assert user["content"].startswith("Reference: 1.0. Model answer: x\n\nAnswer with one digit from 0 ")
    assert read_grader({**WRITTEN, "pass_threshold": 0.5}).passes_at == 0.5


def test_probabilities_are_llama_cpps(tiny_llama):
    """In float32: with quantized weights, how many tokens are computed together decides more than the last digit."""
    import llama_cpp
    labels = list("0123456789")
    messages = [{"role": "user", "content": "How good is it? Answer with one digit."}]
    with LlamaModel(tiny_llama, context=256) as served:
        found, = LlamaJudge(served, "tiny").label_probabilities([messages], labels)
        text = served.tokenizer.render(messages, add_generation_prompt=True)
    llama = llama_cpp.Llama(str(tiny_llama), n_ctx=256, logits_all=True, verbose=False, n_threads=1)
    llama.eval(llama.tokenize(text.encode(), add_bos=True, special=True))
    tokens = [llama.tokenize(label.encode(), add_bos=False)[-1] for label in labels]
    logits = llama.scores[llama.n_tokens - 1][tokens]
    llama.close()
    wanted = np.exp(logits - logits.max())
    assert found == pytest.approx(list(wanted / wanted.sum()), rel=5e-3)
    assert sum(found) == pytest.approx(1)


@pytest.mark.dev
def test_a_model_judges_many_answers(judge):
    first, second, long = graded(judge, ["good", "bad", "word " * 1000])
    assert 0 < first.reward < 1
    assert first.reward != second.reward
    assert (long.reward, long.errors) == (0, {"truncated_observation_error": True})
    again, = graded(judge, ["bad"], model="smollm2")
    assert again.reward == pytest.approx(second.reward, rel=1e-2)


def test_an_answer_that_is_no_json_is_not_asked_about():
    judge = Fixed(*[0.1] * 10)
    written = [{"role": "user", "content": [{"type": "input_text", "text": "{{ sample.output_json.a }}"}]}]
    right, wrong = graded(judge, ['{"a": 3}', "no"], input=written)
    assert (right.errors, wrong.errors) == ({}, {"sample_parse_error": True})
    assert len(judge.asked) == 1


@pytest.mark.parametrize(("fields", "says"), [
    ({"model": "gpt-4o"}, "model of the grader judge is 'gpt-4o'; here the model grades itself; write \"self\""),
    ({"sampling_params": {"temperature": 1}}, "sampling_params of the grader judge is given"),
    ({"range": [1, 0]}, "range of the grader judge is [1, 0]"), ({"range": [1]}, "give a list of 2 numbers"),
    ({"input": []}, "input of the grader judge is empty"), ({"input": "x"}, "give a list, each an object"),
    ({"input": [{"role": "tool", "content": "x"}]}, "input[0] of the grader judge has the role 'tool'"),
    ({"input": [{"role": "user", "content": ""}]}, "input[0] of the grader judge has no text"),
    ({"input": [{"role": "user", "content": "x", "name": "y"}]}, "input[0] of the grader judge has the key 'name'"),
    ({"input": [{"role": "user", "content": "{{ x }}"}]}, "input[0] of the grader judge names 'x'"),
])
def test_what_is_no_score_model(fields, says):
    with pytest.raises(UsageError) as error:
        read_grader({**WRITTEN, **fields}, model=Fixed())
    assert says in str(error.value)


def test_without_a_model_it_is_read_but_does_not_grade():
    grader = read_grader({**WRITTEN, "range": [0, 5]})
    assert grader.needs_model
    assert grader.to_json() == {**WRITTEN, "range": [0, 5]}
    with pytest.raises(UsageError, match="needs a model that grades"):
        grader.grade([Sample("x")], [{"reference_answer": 1}])
    multi = read_grader({"type": "multi", "graders": {"a": WRITTEN}, "calculate_output": "a"}, model=Fixed(*[0.1] * 10))
    assert multi.needs_model
    assert multi.grade([Sample("x")], [{"reference_answer": 1}])[0].reward == pytest.approx(0.5)


def test_answers_of_the_engine_with_calls_of_tools():
    from edgetune.evaluation.native import answered_sample
    from edgetune.serving.rollouts.engine import Rollout
    from edgetune.serving.rollouts.texts import TextAnswer
    from edgetune.serving.tool_calls import CallForm
    tokens = np.array([5, 7], np.int32)
    text = 'So:<tool_call>\n{"name": "lamp", "arguments": {"on": true}}\n</tool_call>'
    made = TextAnswer(text, Rollout(0, 0, tokens, np.zeros(2, np.float32), np.zeros(2, np.float32), ended=False))
    plain = answered_sample(made, None, CallForm())
    assert plain == Sample(text, [], "length", [5, 7])
    called = answered_sample(made, [{"type": "function", "function": {"name": "lamp"}}], CallForm())
    assert (called.text, called.finish_reason) == ("So:", "length")
    written = {"type": "string_check", "input": "{{ sample.output_tools[0].function.name }}", "reference": "lamp",
               "operation": "eq"}
    assert read_grader(written).grade([called], [{}])[0].reward == 1
    assert called.tool_calls[0]["function"]["arguments"] == '{"on": true}'
