"""Rounds that learn by token evidence: which rows are read with the right answer and the judgment, how many wrong ones
there may be, and that such rounds are continued to the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from asked import question

from edgetune.adapters.store import read_run
from edgetune.data import tutored
from edgetune.data.dataset import load_rows
from edgetune.errors import Interrupted
from edgetune.formats.bundle import Bundle
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.training.config import TrainConfig
from edgetune.tutor.files import rounds_of
from edgetune.tutor.lesson import AGREED, ANSWERED, LABELLED, REVISED, WRONG, dataset_of, lesson, taught
from edgetune.tutor.loop import Standing
from edgetune.tutor.options import TutorOptions
from edgetune.tutor.questions import pool_of
from edgetune.tutor.setting import Setting
from edgetune.tutor.teach import teach

JUDGMENT = "It has the wrong letter."
OPTIONS = TutorOptions(objective="nlft", rounds=1, per_round=12, samples=4, max_tokens=6, questions=12, min_rows=1,
                       corrections=3, canary_rise=1e3, max_kl=1e3, max_change=1e3)
CONFIG = TrainConfig(rank=4, lr=2e-2, epochs=2.0, batch_size=4, max_length=256, threads=1, precision="exact", seed=3)


@pytest.fixture
def setting(bundle: Bundle, tmp_path: Path) -> Iterator[Setting]:
    asked = [question(f"q {i}", "ab") for i in range(20)]
    with closing(Tokenizer(bundle.gguf)) as tokenizer:
        yield Setting(bundle, tokenizer, pool_of(asked, [], has_grader=False), None, OPTIONS, CONFIG, tmp_path)


def test_evidence_is_read_where_the_right_answer_is_known(setting: Setting) -> None:
    """Of the model's own answers, right and wrong; labelled rows and revisions are imitated, weighted as ever."""
    first, second, third, fourth, fifth = setting.pool.learn[:5]
    rows = [taught(setting, first, "ab", 1.0, ANSWERED), taught(setting, second, "ac", 1.0, WRONG, JUDGMENT),
            taught(setting, third, "ab", 1.0, LABELLED), taught(setting, fourth, "ab", 1.0, REVISED),
            taught(setting, fifth, "ab", 0.5, AGREED)]
    found = dataset_of(setting, rows, 1, seed=1)
    with_notes = [one for one in found.examples if one.prompts]
    by_hand = [{"prompt": first.text, "completion": "ab", "reference": "ab"},
               {"prompt": second.text, "completion": "ac", "reference": "ab", "judgment": JUDGMENT}]
    wanted = load_rows(by_hand, setting.tokenizer, max_length=CONFIG.max_length, parser=tutored).examples
    assert sorted(one.tokens.tolist() for one in with_notes) == sorted(one.tokens.tolist() for one in wanted)
    assert sorted(prompt.tolist() for one in with_notes for prompt in one.prompts) == sorted(
        prompt.tolist() for one in wanted for prompt in one.prompts)
    assert {float(one.weights.max()) for one in found.examples} == {1.0, 0.5}
    imitated = dataset_of(replace(setting, options=replace(OPTIONS, objective="sft")), rows[:1], 1, seed=1)
    assert not any(one.prompts for one in imitated.examples)


def test_what_has_no_room_for_its_evidence(setting: Setting) -> None:
    """Is imitated if it is right, and left out if it is wrong."""
    first, second = setting.pool.learn[:2]
    (read,) = load_rows([first.with_evidence("ab", "")], setting.tokenizer, max_length=CONFIG.max_length,
                        parser=tutored).examples
    narrow = replace(setting, config=replace(CONFIG, max_length=read.longest - 1))
    right = taught(setting, first, "ab", 1.0, ANSWERED)
    wrong = taught(setting, second, "ac", 1.0, WRONG, JUDGMENT)
    both = dataset_of(narrow, [right, wrong], 1, seed=1).examples
    alone = dataset_of(narrow, [right], 1, seed=1).examples
    assert [one.tokens.tolist() for one in both] == [one.tokens.tolist() for one in alone]
    assert not any(one.prompts for one in alone)


def test_wrong_answers_are_few(setting: Setting) -> None:
    """At most three tenths of the tokens that are imitated."""
    learned = setting.pool.learn
    new = [taught(setting, question, "ab", 1.0, ANSWERED) for question in learned[:4]]
    new += [taught(setting, question, "ac", 1.0, WRONG, JUDGMENT) for question in learned[4:]]
    rows = lesson(setting, 1, new, [])
    wrong = sum(one.tokens for one in rows if one.source == WRONG)
    assert 0 < wrong <= 0.3 * sum(one.tokens for one in rows if one.source != WRONG)


def go(bundle: Bundle, folder: Path, out: Path, options: TutorOptions = OPTIONS, until: str = "") -> Standing:
    return teach(bundle, folder / "prompts.jsonl", out, labelled=folder / "labelled.jsonl", keep=folder / "keep.jsonl",
                 options=options, config=CONFIG, until=until)


@pytest.mark.slow
def test_rounds_are_continued_to_the_same_bytes(bundle: Bundle, tmp_path: Path) -> None:
    """Their evidence is by the adapter that a round begins from, and is kept beside its training."""
    for name, text, count in (("prompts", "say", 30), ("labelled", "tell", 40)):
        (tmp_path / f"{name}.jsonl").write_text("".join(
            json.dumps({"prompt": f"{text} {i}", "completion": "aa"}) + "\n" for i in range(count)))
    (tmp_path / "keep.jsonl").write_text('{"text": "Cats sleep for most of the day."}\n')
    go(bundle, tmp_path, tmp_path / "whole")
    for step in ("generate", "train"):
        with pytest.raises(Interrupted):
            go(bundle, tmp_path, tmp_path / "again", until=step)
    of = rounds_of(tmp_path / "again")[1]
    record = read_run(of.trained)
    assert record["objective"]["name"] == "nlft"
    assert (of.trained / "reference.npz").exists()
    assert (of.read("train") or {})["facts"]["trained"] == record["data"]["tokens"]
    go(bundle, tmp_path, tmp_path / "again")
    paths = [tmp_path / name / "rounds" / "001" / "gate.json" for name in ("whole", "again")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert (tmp_path / "whole" / "adapter.gguf").read_bytes() == (tmp_path / "again" / "adapter.gguf").read_bytes()
