"""edgetune.data.thoughts: thoughts in rows are learned, left out, or read without being learned."""

import json

import pytest
from commands import run
from json_lines import write_lines
from thinkers import END_ID, write_thinker

from edgetune.data.dataset import load_rows
from edgetune.data.packing import is_supervised
from edgetune.data.rows import prompt_of
from edgetune.data.thoughts import answer_alone, has_thoughts, without_thoughts
from edgetune.llamacpp.tokenizers import open_tokenizer

ANSWER = "<think>\nthe light is on\n</think>\n\nturn off"
CHAT = {"messages": [{"role": "user", "content": "the light"}, {"role": "assistant", "content": ANSWER}]}
PAIR = {"prompt": "the light", "completion": ANSWER}
PLAIN = {"prompt": "the light", "completion": "turn off"}


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    return write_thinker(tmp_path_factory.mktemp("thinker") / "thinker.gguf")


def learned(model, row, thoughts):
    """(the text of all, the text of what is learned)"""
    tokenizer = open_tokenizer(model, thoughts=thoughts)
    [example] = load_rows([row], tokenizer, max_length=256).examples
    return (tokenizer.decode(example.tokens.tolist()),
            tokenizer.decode(example.tokens[is_supervised(example.weights)].tolist()))


@pytest.mark.parametrize("row", [CHAT, PAIR], ids=["chat", "pair"])
def test_each_mode_learns_what_it_says(thinker, row):
    whole, text = learned(thinker, row, "keep")
    assert text == f"{ANSWER}<|im_end|>"
    assert whole.endswith(text)
    masked, text = learned(thinker, row, "mask")
    assert masked == whole, "the model reads them"
    assert text == "\n\nturn off<|im_end|>"
    dropped, text = learned(thinker, row, "drop")
    assert text == "turn off<|im_end|>"
    assert "think>" not in dropped
    assert dropped == learned(thinker, PLAIN, "keep")[0]
    assert learned(thinker, PLAIN, "mask") == learned(thinker, PLAIN, "keep")
    assert prompt_of(row, open_tokenizer(thinker, thoughts="drop"))[1] == "turn off"


def test_a_model_without_a_template_has_them_too(thinker):
    tokenizer = open_tokenizer(thinker, thoughts="mask")
    tokenizer.chat_template = None
    [example] = load_rows([PAIR], tokenizer, max_length=256).examples
    weights = example.weights.tolist()
    end = example.tokens.tolist().index(END_ID)
    assert not any(weights[: end + 1])
    assert all(weights[end + 1:])
    tokenizer.thoughts = "drop"
    [example] = load_rows([PAIR], tokenizer, max_length=256).examples
    assert tokenizer.decode(example.tokens.tolist()).startswith("the lightturn off")


def test_thoughts_are_known_by_their_marks_or_their_key():
    apart = {"messages": [CHAT["messages"][0], {"role": "assistant", "content": "off", "reasoning_content": "on?"}]}
    assert all(map(has_thoughts, (CHAT, PAIR, apart)))
    user = {"messages": [{"role": "user", "content": ANSWER}, {"role": "assistant", "content": "off"}]}
    assert not any(map(has_thoughts, (PLAIN, user, "a text </think>", {"text": ANSWER})))
    assert without_thoughts(apart["messages"][1]) == {"role": "assistant", "content": "off"}
    assert answer_alone("on\n</think>\noff") == "off", "the prompt may have begun them"
    assert answer_alone("write <think> and </think>") == "write <think> and </think>"


def test_data_check_says_how_many_rows_have_them_and_what_becomes_of_them(thinker, tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [PAIR, PLAIN, *({**PAIR, "prompt": f"the {i}"} for i in range(3))])
    for mode, says in (("keep", "learned"), ("drop", "left out"), ("mask", "read and not learned")):
        found = json.loads(run("data", "check", path, thinker, "--thinking", mode, "--json"))
        assert found["data"]["thinking"] == 4
        [finding] = [each for each in found["findings"] if each["kind"] == "thinking"]
        assert finding["what"] == f"4 rows have thoughts, which are {says} (--thinking {mode}), and 1 have none"
        assert finding["lines"] == [1, 3, 4, 5]
    write_lines(path, [PLAIN])
    assert "thoughts" not in run("data", "check", path, thinker)
