"""Rows of an answer with a reference and a judgment: their tokens as serving has them, other prompts that begin alike,
every refusal, what max_length cuts, and the way through the process that tokenises.
"""

import numpy as np
import pytest
import templates
from json_lines import write_lines

from edgetune.data import loader, privileged, tutored
from edgetune.data import rows as supervised_rows
from edgetune.data.dataset import load, load_rows
from edgetune.data.facts import TokenizeOptions, inspect
from edgetune.data.forest import shared
from edgetune.data.lengths import lengths_of
from edgetune.errors import DataError
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.training.config import TrainConfig
from edgetune.training.reference import documents

USER = {"role": "user", "content": "set the light"}
ON = {"role": "assistant", "content": "the light on"}
ROW = {"prompt": "set the light", "completion": "the light on", "reference": "light off", "judgment": "it is the turn"}
REFERENCE = ("set the light\n\nAn expert has answered this as follows:\nlight off\n\nAnswer it as the expert would.")
JUDGMENT = ("set the light\n\nA weak answer to this was judged as follows:\nit is the turn\n\n"
            "Give the weak answer that was judged.")
TEMPLATE = templates.QWEN


def made_of(row, tokenizer, system=None):
    assert tutored.check_learnable(row) == "tutored"
    (made,) = tutored.examples_of(row, "tutored", tokenizer, system, 512)
    return made


def served(tokenizer, prompt, system=None):
    """The tokens of an answer behind this prompt, as training by answers has them."""
    row = {"prompt": prompt, "completion": "the light on"}
    (made,) = supervised_rows.examples_of(row, "prompt", tokenizer, system, 512)
    return made.tokens.tolist()


@pytest.mark.parametrize("row", [ROW, {**ROW, "prompt": [USER]}, {**ROW, "prompt": [USER], "completion": [ON]},
                                 {**{k: v for k, v in ROW.items() if k != "prompt"}, "messages": [USER]}],
                         ids=["text", "messages and text", "messages", "OpenAI's key"])
def test_the_answer_is_read_behind_three_prompts(tokenizer, row):
    made = made_of(row, tokenizer, "the turn")
    texts = [str(ROW["prompt"]), REFERENCE, JUDGMENT]
    for one, text in zip([made, *documents(made)], texts, strict=True):
        assert one.tokens.tolist() == served(tokenizer, text, "the turn")
        assert np.flatnonzero(one.weights).tolist() == list(range(one.begin, one.tokens.size))
        assert one.tokens[one.begin:].tolist() == made.tokens[made.begin:].tolist()
    alike = made.prompts[0][:shared(made.prompts[0], made.prompts[1])]
    assert "set the light" in tokenizer.decode(alike.tolist())
    assert made.longest == max(one.tokens.size for one in documents(made)) > made.tokens.size


def test_a_right_answer_has_no_judgment(tokenizer):
    for judgment in (None, "", " "):
        made = made_of({**ROW, "judgment": judgment, "score": 9}, tokenizer)
        assert [prompt.size > 0 for prompt in made.prompts] == [True, False]
        assert made.reward == 9
    made = made_of({"prompt": "set", "completion": "on", "reference": "on"}, tokenizer)
    assert (len(documents(made)), made.reward, made.group) == (1, 0.0, 0)


def test_parts_of_a_message_and_a_model_without_a_template(tokenizer, tiny_llama):
    """A note is a part more of the user's last message; or before the prompt, whose text the answer continues."""
    asked = [{"role": "user", "content": [{"type": "text", "text": "set the light"}]}, ON, USER]
    made = made_of({**ROW, "prompt": asked}, tokenizer)
    assert tokenizer.decode(made.prompts[0].tolist()).count("An expert has answered") == 1
    plain = Tokenizer(tiny_llama)
    plain.chat_template = None
    made = made_of(ROW, plain)
    note = REFERENCE.split("\n\n", 1)[1]
    assert plain.decode(made.prompts[0].tolist()) == f"{note}\n\nset the light"
    assert documents(made)[0].tokens.tolist() == served(plain, f"{note}\n\nset the light")


REFUSED = [
    (3, "the row is a JSON number, not an object; expected is prompt with completion and reference"),
    ({"prompt": "a", "completion": "b"}, r"the row is no answer with a reference \(its keys: prompt, completion\)"),
    ({"completion": "b", "reference": "c"}, r"the row asks nothing \(its keys: completion, reference\)"),
    ({**ROW, "messages": [USER]}, "the row asks in two ways"),
    ({**ROW, "completion": " "}, "the completion is empty; write the model's answer"),
    ({**ROW, "completion": 3}, "completion is a JSON number"),
    ({**ROW, "prompt": []}, "prompt is empty"),
    ({**ROW, "prompt": [ON]}, "the prompt ends with an assistant message"),
    ({**ROW, "reference": ""}, "the reference is empty; write the right answer"),
    ({**ROW, "reference": ["on"]}, "reference is a JSON list; write text"),
    ({**ROW, "judgment": True}, "judgment is a JSON boolean; write text"),
    ({**ROW, "score": "good"}, "score is 'good'; write a finite number"),
    ({**ROW, "score": float("inf")}, "score is inf"),
]


# ---- what a teacher knows beside the question ------------------------------------------------------------------------

KNOWN = {"prompt": "set the light", "completion": "the light on", "privileged_context": "off is 0"}


def test_a_teacher_sees_the_context(tokenizer):
    noted = "set the light\n\nThis is known about it:\noff is 0\n\nAnswer with this in mind, without referring to it."
    for row in (KNOWN, {**KNOWN, "prompt": [USER], "completion": [ON]}):
        assert privileged.check_learnable(row) == "privileged"
        (made,) = privileged.examples_of(row, "privileged", tokenizer, None, 512)
        assert made.tokens.tolist() == served(tokenizer, "set the light")
        (taught,) = documents(made)
        assert taught.tokens.tolist() == served(tokenizer, noted)
    known = lengths_of([made], top=16)
    assert (known.aside, known.known) == (made.longest, 8 * 2 * 16 * made.supervised)


REFUSED_WITH_CONTEXT = [
    ({"prompt": "a", "completion": "b"}, r"the row has no answer with a privileged_context \(its keys: prompt, comp"),
    ({"prompt": "a", "privileged_context": "b"}, "the row has no answer with a privileged_context"),
    ({**KNOWN, "completion": ""}, "the completion is empty; write an answer, such as the model's own"),
    ({**KNOWN, "privileged_context": " "}, "the privileged_context is empty; write what the teacher knows"),
    ({**KNOWN, "privileged_context": ["b"]}, "privileged_context is a JSON list; write text"),
    ({**KNOWN, "messages": [USER]}, "the row asks in two ways"),
    ("text", "the row is plain text; expected is prompt with completion and privileged_context"),
]


@pytest.mark.parametrize(("parser", "row", "says"), [
    *((tutored, *one) for one in REFUSED), *((privileged, *one) for one in REFUSED_WITH_CONTEXT)])
def test_what_cannot_be_learned_is_refused(parser, row, says):
    with pytest.raises(DataError, match=says):
        parser.check_learnable(row)


# ---- files and limits ------------------------------------------------------------------------------------------------


def test_a_file_with_a_wrong_row_names_its_line(tokenizer, tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [ROW, {**ROW, "reference": None}])
    with pytest.raises(DataError, match=r"line 2 of rows\.jsonl: the reference is empty"):
        load(path, tokenizer, max_length=64, parser=tutored, learnable=True)
    found = inspect("rows.jsonl", [(1, ROW), (2, {**ROW, "judgment": 1})], TokenizeOptions(tokenizer, 512), tutored)
    assert found.rows[0].tokens == (made_of(ROW, tokenizer).longest,)
    assert [line for line, _ in found.empty] == [2]


def test_what_max_length_cuts_is_cut_in_all_views(tokenizer):
    made = made_of(ROW, tokenizer)
    answer = made.tokens.size - made.begin
    cut = load_rows([ROW], tokenizer, max_length=made.longest - 2, parser=tutored)
    (one,) = cut.examples
    assert cut.truncated == 1
    assert [each.tokens.size - each.begin for each in (one, *documents(one))] == [answer - 2] * 3
    assert one.longest == made.longest - 2
    lost = load_rows([ROW, {**ROW, "reference": "on", "judgment": ""}], tokenizer, max_length=made.longest - answer,
                     parser=tutored)
    assert (len(lost.examples), lost.skipped) == (1, 1)
    assert load_rows([ROW] * 2, tokenizer, max_length=made.longest, overflow="skip", parser=tutored).skipped == 0


def test_a_plan_knows_the_longest_view(tokenizer):
    made = made_of(ROW, tokenizer)
    known = lengths_of([made])
    assert (known.longest, known.longest_group) == (made.longest, made.longest)
    assert known.units[0].longest == made.tokens.size
    assert known.cut(made.longest).aside == made.longest


def test_the_other_prompts_come_through_the_process(tiny_llama, tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [ROW, {**ROW, "judgment": None, "score": 2}]
    write_lines(path, rows)
    there, = loader.load(tiny_llama, (path,), TrainConfig(max_length=512), tutored)
    here = load(path, Tokenizer(tiny_llama), max_length=512, parser=tutored)
    assert there
    for a, b in zip(there.examples, here.examples, strict=True):
        assert [part.tolist() for part in a.prompts] == [part.tolist() for part in b.prompts]
        assert {part.dtype for part in a.prompts} == {np.dtype(np.int32)}
        assert (a.tokens.tolist(), a.reward) == (b.tokens.tolist(), b.reward)
