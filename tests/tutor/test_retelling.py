"""What a round tells again: values of labelled rows, and of prompts what their answers agree on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from asked import question

from edgetune.data.retold import Value, values_of
from edgetune.formats.bundle import Bundle
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.training.config import TrainConfig
from edgetune.tutor.answering import Said
from edgetune.tutor.files import rounds_of
from edgetune.tutor.inspect import told
from edgetune.tutor.lesson import AGREED, LABELLED, RETOLD, dataset_of
from edgetune.tutor.options import TutorOptions
from edgetune.tutor.questions import Question, key_of, pool_of
from edgetune.tutor.retelling import judging, known_values, retold
from edgetune.tutor.setting import Setting
from edgetune.tutor.teach import teach

BARE = question("feed the goat")
PLACE = ("what",)


def fed(animal: str) -> str:
    return json.dumps({"what": animal})


def labelled() -> list[Question]:
    """Prompts, and messages that another one follows."""
    asked = [question(f"feed the {animal}", fed(animal)) for animal in ("cow", "pig")]
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes?"},
             {"role": "user", "content": "feed the hen"}]
    return [*asked, question(turns, fed("hen"))]


@pytest.fixture
def setting(bundle: Bundle, tmp_path: Path) -> Iterator[Setting]:
    pool = pool_of(labelled(), [BARE], False, held=[question("held", "x")])
    with closing(Tokenizer(bundle.gguf)) as tokenizer:
        yield Setting(bundle, tokenizer, pool, None, TutorOptions(retold=20), TrainConfig(), tmp_path)


def said(*texts: str) -> list[Said]:
    return [Said(text, True, 1) for text in texts]


@pytest.mark.parametrize(("texts", "is_known"), [
    ([fed("goat"), fed("goat"), fed("cow")], True),
    ([fed("goat"), fed("cow"), "goat"], False),  # a third of them
    ([fed("goats")] * 3, False),  # nobody said so
    ([json.dumps({"who": "goat"})] * 3, False)])  # no labelled row has this field
def test_a_value_that_answers_agree_on_is_one(setting: Setting, texts: list[str], is_known: bool) -> None:
    of_rows = [Value(animal, animal) for animal in ("cow", "pig", "hen")]
    found = known_values(setting, [(BARE, said(*texts))])
    assert found == {PLACE: [*of_rows, Value("goat", "goat")] if is_known else of_rows}
    assert known_values(setting, [(question("feed the goat", fed("cow")), said(*texts))]) == {PLACE: of_rows}


def test_labelled_rows_are_told_with_them(setting: Setting) -> None:
    values = known_values(setting, [(BARE, said(*[fed("goat")] * 3))])
    rows = retold(setting, 1, values)
    assert rows == retold(setting, 1, values)  # after a stop, too
    assert rows != retold(setting, 2, values)
    for one in rows:
        assert one.source == RETOLD
        assert one.asked == f"feed the {json.loads(one.text)['what']}"
        assert one.asked != setting.pool[one.key].last
    assert {json.loads(one.text)["what"] for one in rows} == {"cow", "pig", "hen", "goat"}
    learned = dataset_of(setting, rows, 1, 0)
    messages = next(row for row in learned.rows if isinstance(row, dict) and "messages" in row)["messages"]
    assert [message["content"] for message in messages[:2]] == ["hello", "yes?"]
    assert {"prompt": "feed the goat", "completion": fed("goat")} in learned.rows
    assert retold(setting, 1, {}) == []


def test_questions_that_judge_are_told_again() -> None:
    """None where they are too few to say anything; never as they are, and with the answer that is right then."""
    asked = [question(f"feed the {animal}", fed(animal)) for animal in ("cow", "pig", "hen", "cat", "dog")]
    values = values_of((one.last, one.reference) for one in asked)
    found = judging(asked, values, 0)
    assert found == judging(asked, values, 0)
    assert {one.of for one in found} == {one.key for one in asked}
    for one in found:
        assert one.last == f"feed the {json.loads(one.reference)['what']}"
        assert key_of(one.item) != one.of
    assert len({(one.of, one.last) for one in found}) == len(found) == 5 * 4
    assert judging(asked[:4], values, 0) == []
    assert judging([*asked[:4], question("no answer")], values, 0) == []
    assert judging(asked, {}, 0) == []


def test_a_round_learns_them_in_the_place_of_what_nobody_verified(bundle: Bundle, tmp_path: Path) -> None:
    """All answers to a prompt agree at the temperature 0; so few labelled rows have no form that they could break."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"eat {i}"}) + "\n" for i in range(30)))
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps({"prompt": f"eat n{i}", "completion": json.dumps({"a": f"n{i}"})}) + "\n"
                           for i in range(8)))
    config = TrainConfig(rank=4, lr=1e-3, epochs=1.0, batch_size=4, max_length=128, threads=1, seed=3)
    options = TutorOptions(rounds=1, per_round=4, unseen=1.0, samples=4, shown=0, temperature=0.0, max_tokens=6,
                           questions=8, min_rows=1, min_auc=1.01)
    sources = {}
    for times in (0, 2):
        out = tmp_path / f"{times}"
        teach(bundle, prompts, out, labelled=few, config=config, options=replace(options, retold=times))
        of = rounds_of(out)[-1]
        assert (of.read("evaluate") or {})["facts"]["by"]["agreement"]
        rows = (of.read("rows") or {})["rows"]
        sources[times] = {row["source"] for row in rows}
        asked, again = told(out, None, 3)
        assert [one.asked for one in again] == [row["asked"] for row in rows if row["asked"]][:3]
        assert len(again) == (3 if times else 0)
        assert any(one.label for one in asked if one.by == "agreement") == (not times)  # "learned" is what was
    assert sources == {0: {AGREED, LABELLED}, 2: {RETOLD, LABELLED}}
