"""Models that think: their marks, the budget of their thoughts, and thoughts apart from answers. No real one is here:
the tiny one is random, with Qwen3's marks and switch.
"""

from itertools import pairwise

import pytest
from thinkers import BEGIN_ID, END_ID, write_thinker

from edgetune.llamacpp.thinking import ANY, Thinking, ThinkingBudget, thinking_of
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.serving.draws import Draws
from edgetune.serving.llama import LlamaModel
from edgetune.serving.thoughts import ThoughtReader

MARKS = Thinking(1, 2, has_switch=True)
ASK = [{"role": "user", "content": "turn the light"}]


@pytest.fixture(scope="module")
def opener(tmp_path_factory):
    return write_thinker(tmp_path_factory.mktemp("opener") / "opener.gguf", opens=True)


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    return write_thinker(tmp_path_factory.mktemp("thinker") / "thinker.gguf")


def test_marks_are_found_in_template_and_vocabulary(thinker, tiny_llama):
    assert thinking_of(Tokenizer(thinker)) == Thinking(BEGIN_ID, END_ID, has_switch=True)
    assert thinking_of(Tokenizer(tiny_llama)) is None
    without = Tokenizer(thinker)
    without.chat_template = "{{ messages[0]['content'] }}"
    assert thinking_of(without) is None
    words = Tokenizer(tiny_llama)  # a template alone does not make the marks tokens
    words.chat_template = "<think></think>"
    assert thinking_of(words) is None


@pytest.mark.parametrize(("prompt", "expected"), [
    ([5, 1], True), ([1, 5, 5], True), ([1, 5, 2, 5], False), ([1, 5, 5, 5, 5], False), ([5], False), ([], False)])
def test_a_prompt_opens_the_thinking_at_its_end(prompt, expected):
    assert MARKS.opened_by(prompt) is expected


def forced(budget, inside, tokens):
    """What is forced before each of these tokens, and after them."""
    state = ThinkingBudget(MARKS, budget, inside)
    found = [state.forced]
    for token in tokens:
        state.take(token)
        found.append(state.forced)
    return found


def test_the_end_is_forced_when_the_budget_is_spent():
    assert forced(2, True, [7, 7]) == [None, None, 2]
    assert forced(2, True, [7, 2, 7, 7]) == [None] * 5
    assert forced(0, True, []) == [2]
    assert forced(1, False, [1, 7]) == [None, None, 2]
    assert forced(1, False, [7, 1, 7, 7]) == [None] * 5, "a mark within an answer begins nothing"
    assert forced(ANY, True, [7] * 50) == [None] * 51


def test_the_template_leaves_thinking_out(thinker):
    with LlamaModel(thinker, threads=1) as served:
        assert served.thinks
        assert served.render(ASK, None, None, False).endswith("assistant\n<think>\n\n</think>\n\n")
        assert served.render(ASK, None, None).endswith("assistant\n")
        assert served.render(ASK, None, None, True).endswith("assistant\n")


@pytest.mark.parametrize("budget", [0, 1, 5])
def test_thoughts_have_at_most_the_tokens_of_the_budget(opener, budget):
    with LlamaModel(opener, threads=1) as served:
        prompt = served.tokenizer.encode(served.render(ASK, None, None), bos=True)
        bias = ((END_ID, -100.0), *((token, -100.0) for token in range(3)))  # the model itself never ends them
        request = served.prepare(prompt, 12, (), seed=0, temperature=1.0, logit_bias=bias, thinking_budget=budget)
        assert len([*served._stream(request)])
        answer = request.tokens[len(prompt):]
        assert answer.index(END_ID) == budget
        assert answer.count(END_ID) == 1
        text = "".join(served.generate(prompt, max_tokens=12, temperature=1.0, logit_bias=bias,
                                       thinking_budget=budget))
        thoughts, said = ThoughtReader(inside=True).push(text, last=True)
        assert "</think>" not in thoughts + said
        assert len(said) > 0
        assert "</think>" not in "".join(served.generate(prompt, max_tokens=12, temperature=1.0, logit_bias=bias))
        for drawn in Draws(served, prompt, 3, temperature=1.0, max_tokens=12, logit_bias=bias, thinking_budget=budget):
            assert drawn.text.count("</think>") == 1


def test_a_grammar_holds_for_the_answer_and_not_for_thoughts(opener):
    with LlamaModel(opener, threads=1) as served:
        prompt = served.tokenizer.encode(served.render(ASK, None, None), bos=True)
        bias = ((END_ID, -100.0), *((token, -100.0) for token in range(3)))
        text = "".join(served.generate(prompt, max_tokens=24, temperature=1.0, logit_bias=bias, thinking_budget=6,
                                       grammar='root ::= "yes" | "no"'))
        thoughts, said = ThoughtReader(inside=True).push(text, last=True)
        assert said in ("yes", "no")
        assert thoughts


WHOLE = "<think>\n one two \n</think>\n\nthree </think> four"


@pytest.mark.parametrize(("text", "inside", "expected"), [
    (WHOLE, False, ("one two", "three </think> four")),
    (WHOLE[len("<think>"):], True, ("one two", "three </think> four")),
    ("plain <think> text", False, ("", "plain <think> text")), ("  plain", False, ("", "  plain")),
    ("<think>never ends", False, ("never ends", "")), ("<thi", False, ("", "<thi")),
    ("never ends </thi", True, ("never ends </thi", "")), ("", False, ("", "")),
    ("<think>\n\n</think>\n\nsaid", False, ("", "said"))])
def test_thoughts_and_answer_are_told_apart_however_the_text_is_cut(text, inside, expected):
    for cut in range(len(text) + 1):
        for second in {cut, (cut + len(text)) // 2}:
            reader = ThoughtReader(inside)
            parts = [reader.push(text[a:b], last=b == len(text) and i == 2)
                     for i, (a, b) in enumerate(pairwise([0, cut, second, len(text)]))]
            assert tuple("".join(part) for part in zip(*parts, strict=True)) == expected, (cut, second)
