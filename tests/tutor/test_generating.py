"""Answers with a labelled row before the question: which rows, where they stand, where there is no room for them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from asked import question

from edgetune.formats.bundle import Bundle
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.training.config import TrainConfig
from edgetune.tutor.answering import answers_to
from edgetune.tutor.generating import generate
from edgetune.tutor.nearest import Nearest
from edgetune.tutor.options import TutorOptions
from edgetune.tutor.questions import Question, key_of, pool_of
from edgetune.tutor.setting import Setting

TEXTS = ("turn on the lamp in the hall", "turn off the lamp", "play a song by miles davis", "what is the weather like",
         "play the weather song", "open the blinds in the hall")
OPTIONS = TutorOptions(samples=2, shown=3, max_tokens=5)
CONFIG = TrainConfig(threads=1, precision="exact")


LABELLED = [question(text, f"answer {i}") for i, text in enumerate(TEXTS)]


@pytest.fixture
def make(bundle: Bundle, tmp_path: Path) -> Iterator[Callable[..., Setting]]:
    with closing(Tokenizer(bundle.gguf)) as tokenizer:
        pool = pool_of(LABELLED, [], False, held=[question("held", "x")])
        yield lambda options=OPTIONS, config=CONFIG: Setting(bundle, tokenizer, pool, None, options, config, tmp_path)


def test_the_nearest_share_rare_words() -> None:
    found = Nearest(LABELLED).to(question("play the song"), 3)
    assert [one.text for one in found][:2] == ["play the weather song", "play a song by miles davis"]
    asked = Counter(["play", "the", "song"])
    spread = Counter(word for text in TEXTS for word in set(text.split()))

    def cosine(text: str) -> float:
        vectors = [{word: (1 + math.log(n)) * math.log(7 / (spread[word] + 0.5)) for word, n in counts.items()}
                   for counts in (asked, Counter(text.split()))]
        norms = [math.sqrt(sum(x * x for x in vector.values())) for vector in vectors]
        return sum(vectors[0][word] * vectors[1].get(word, 0.0) for word in asked) / (norms[0] * norms[1])
    assert [one.text for one in Nearest(LABELLED).to(question("play the song"), 6)] == \
        sorted(TEXTS, key=lambda text: -cosine(text))


def test_a_question_is_not_shown_before_itself() -> None:
    found = Nearest(LABELLED).to(question("Turn OFF the lamp!"), 10)
    assert len(found) == 5
    assert found[0].text == "turn on the lamp in the hall"
    assert Nearest([]).to(LABELLED[0], 3) == []


def test_rows_stand_before_the_question_behind_what_the_system_says(make: Callable[..., Setting]) -> None:
    setting = make()
    asked = question([{"role": "system", "content": "be brief"}, {"role": "user", "content": "turn on a lamp"}])
    said = generate(setting, 1, [asked], {})[0]
    assert [bool(one.shown) for one in said] == [False, False, True, True, True]
    shown = [setting.pool[one.shown] for one in said[2:]]
    assert shown == Nearest(setting.pool.labelled).to(asked, 3)
    prompts = [setting.tokenizer.encode(setting.tokenizer.render(
        [{"role": "system", "content": "be brief"}, {"role": "user", "content": one.text},
         {"role": "assistant", "content": one.reference}, {"role": "user", "content": "turn on a lamp"}],
        None, add_generation_prompt=True), bos=True) for one in shown]
    again = answers_to(setting, prompts, {}, temperature=OPTIONS.temperature, max_tokens=5,
                       seed=setting.seed(1, "shown"))
    assert [one.text for one in said[2:]] == [of[0].text for of in again]


def test_answers_without_rows_are_as_without_the_option(make: Callable[..., Setting]) -> None:
    alone = generate(make(replace(OPTIONS, shown=0)), 1, LABELLED[:2], {})
    assert [of[:2] for of in generate(make(), 1, LABELLED[:2], {})] == alone
    assert all(len(of) == 2 for of in alone)


def test_rows_that_leave_no_room_are_not_shown(make: Callable[..., Setting]) -> None:
    setting = make()
    lengths = [len(setting.tokenizer.encode(setting.tokenizer.render(
        [{"role": "user", "content": one.text}, {"role": "assistant", "content": one.reference},
         {"role": "user", "content": "lamp"}], None, add_generation_prompt=True), bos=True))
        for one in Nearest(LABELLED).to(question("lamp"), 3)]
    shortest = make(config=replace(CONFIG, max_length=min(lengths) + OPTIONS.max_tokens))
    assert len(generate(shortest, 1, [question("lamp")], {})[0]) == 2 + lengths.count(min(lengths))


def test_a_model_without_a_chat_template_answers_by_itself(make: Callable[..., Setting],
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    setting = make()
    monkeypatch.setattr(setting.tokenizer, "chat_template", None)
    assert [len(of) for of in generate(setting, 1, LABELLED[:2], {})] == [2, 2]


def test_what_may_be_called_is_part_of_the_question(make: Callable[..., Setting]) -> None:
    row = {"messages": [{"role": "user", "content": "lamp"}], "tools": [{"type": "function", "function": {
        "name": "switch", "parameters": {"type": "object", "properties": {}}}}]}
    setting = make()
    given = setting.tokenizer.render(row["messages"], row["tools"], add_generation_prompt=True)
    asked = Question(key_of(row), row)
    assert asked.prompt_tokens(setting.tokenizer, None) == setting.tokenizer.encode(given, bos=True)
    assert json.dumps(asked.with_answer("x")["tools"]) == json.dumps(row["tools"])
