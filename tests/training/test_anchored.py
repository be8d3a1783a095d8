"""What the base says is a part of every step: how much, which, and that a run with it resumes to the same bytes."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from counting import sequences
from durable import CONFIG, STEPS, go, metrics, refused, stop
from tiny import write_tiny

from edgetune.data.anchors import BEGINNINGS, LONGEST, QUESTIONS, TOKENS
from edgetune.errors import Interrupted, MismatchError, UsageError
from edgetune.formats.bundle import open_bundle
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.objectives.dpo import Dpo
from edgetune.objectives.sft import Sft
from edgetune.runs.train import train
from edgetune.training import anchored
from edgetune.training.batches import Batches
from edgetune.training.callbacks import RunCallbacks
from edgetune.training.config import TrainConfig
from edgetune.training.trainer import Trainer

HELD = replace(CONFIG, anchors=5)
EVERY = 5
FEW = 40  # anchors of a run: a file of them
WHOLE = replace(HELD, max_length=LONGEST)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edgetune" / "anchors"


def prepared(bundle, config=WHOLE, number=FEW, events=None):
    told = [] if events is None else events
    return anchored.prepare(bundle, config, anchored.batches_of(number, {}, {}), lambda: False, told.append)


def same(some, others):
    return len(some) == len(others) and all(
        np.array_equal(a.tokens, b.tokens) and np.array_equal(a.weights, b.weights)
        for a, b in zip(some, others, strict=True))


# ---- which are learned -----------------------------------------------------------------------------------------------


def test_a_step_has_its_share_of_them_and_all_come_before_one_comes_again():
    rows = sequences(8)
    anchors = sequences(7, seed=1)
    batches = Batches(TrainConfig(batch_size=4), rows, anchors, EVERY)
    counts = [len(batches.anchors_of_step(step)) for step in range(1, 11)]
    assert counts == [0, 1, 1, 1, 1] * 2  # one for each five rows
    taken = [id(one) for step in range(1, 20) for one in batches.anchors_of_step(step)]
    assert len(set(taken[:7])) == 7
    assert taken[7:14] == taken[:7]
    assert taken != [id(one) for step in range(1, 20)
                     for one in replace(batches, config=TrainConfig(batch_size=4, seed=1)).anchors_of_step(step)]
    assert Batches(TrainConfig(batch_size=4), rows).anchors_of_step(1) == []


@pytest.mark.parametrize("objective", [Sft(), Dpo()], ids=lambda one: one.name)
def test_the_gradient_is_the_mean_of_theirs_and_of_the_rows(bundle, objective):
    """Weighted by tokens. The loss is of the rows alone."""
    rows = [replace(one, group=1 + i // 2 if objective.name == "dpo" else 0) for i, one in enumerate(sequences(4))]
    anchors = sequences(2, seed=1)
    found = []
    for by, examples, beside in ((objective, rows, anchors), (objective, rows, []), (Sft(), anchors, [])):
        trainer = Trainer(bundle, objective=by, batch_size=len(examples) // (1 + bool(examples[0].group)), rank=4,
                          max_length=48, threads=1, steps=1, precision="exact", max_grad_norm=0.0)
        trainer.arena.flat("lora")[:] = np.random.default_rng(0).standard_normal(trainer.arena.flat("lora").size) * 0.1
        trainer.add_examples(examples)
        trainer.add_anchors(beside, len(rows) // (2 * (1 + bool(rows[0].group))))
        found.append((trainer.step(), trainer.arena.flat("dlora").copy()))
    (held, both), (alone, of_rows), (imitated, of_anchors) = found
    assert held.loss == pytest.approx(alone.loss, rel=1e-6)
    assert held.metrics["anchor_loss"] == pytest.approx(imitated.loss, rel=1e-5)
    assert held.tokens == alone.tokens + imitated.tokens
    share = Sft().count(rows) / Sft().count([*rows, *anchors])
    np.testing.assert_allclose(both, share * of_rows + (1 - share) * of_anchors, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("options", "every"), [
    ({}, 5), ({"anchors": 3}, 3), ({"anchors": 0}, 0), ({"epochs": 2.0}, 0), ({"steps": 9}, 0),
    ({"steps": 9, "anchors": 4}, 4)])
def test_where_the_data_decides_how_long_a_run_is_they_are_learned(options, every):
    assert anchored.rows_per_anchor(TrainConfig(**options), Sft()) == every


def test_other_objectives_learn_them_where_a_number_is_given():
    assert anchored.rows_per_anchor(TrainConfig(), Dpo()) == 0
    assert anchored.rows_per_anchor(HELD, Dpo()) == EVERY


# ---- drawing them ----------------------------------------------------------------------------------------------------


@pytest.mark.dev
@pytest.mark.usefixtures("cache")
def test_they_are_the_bases_answers_to_questions(bundle):
    found = prepared(bundle)
    assert len(found) == anchored.BATCH
    tokenizer = Tokenizer(bundle.gguf)
    said = [tokenizer.decode(one.tokens[:one.begin]) for one in found]
    assert sum("tides rise" in text for text in said) == sum("In 1923" in text for text in said) == 2
    assert sum(text.endswith("assistant\n") for text in said) == anchored.BATCH / 2
    more = prepared(bundle, number=4 * anchored.BATCH)
    begun = [tokenizer.decode(one.tokens[:one.begin]) for one in more]
    assert len(set(begun)) == len(QUESTIONS) + len(BEGINNINGS)  # others in each batch
    assert set(begun[:anchored.BATCH]) == set(begun[3 * anchored.BATCH:]) == set(said)
    assert all(one.supervised <= TOKENS and one.tokens.size <= LONGEST for one in found)
    assert len({one.tokens[one.begin:].tobytes() for one in found}) > anchored.BATCH / 2  # no two draws are alike
    asked = prepared(bundle, replace(WHOLE, system="Count."))
    assert sum("Answer the question." in tokenizer.decode(one.tokens[:one.begin]) for one in asked) == 32


@pytest.mark.dev
def test_they_are_drawn_once_and_kept(bundle, cache, monkeypatch):
    events = []
    found = prepared(bundle, events=events)
    assert events == [{"event": "anchors", "done": 0, "of": anchored.BATCH}]
    assert same(prepared(bundle, events=events), found)
    assert len(events) == 1
    more = prepared(bundle, number=anchored.BATCH + 1, events=events)
    assert events[1:] == [{"event": "anchors", "done": anchored.BATCH, "of": 2 * anchored.BATCH}]
    assert same(more[:anchored.BATCH], found)
    assert len(more) == 2 * anchored.BATCH
    kept, _ = sorted(cache.iterdir())
    kept.write_bytes(kept.read_bytes()[:-9])  # damaged
    assert same(prepared(bundle), found)
    monkeypatch.setattr(anchored, "MOST", 3 * anchored.BATCH)
    assert len(prepared(bundle, number=10**6)) == 3 * anchored.BATCH


def test_where_they_cannot_be_kept_they_are_drawn_again(bundle, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert same(prepared(bundle), prepared(bundle))


def test_a_base_that_says_nothing_has_none(bundle, cache, monkeypatch):
    """All of its answers end at their first token."""
    questions = anchored._questions(bundle, WHOLE)
    monkeypatch.setattr(anchored, "_questions", lambda *_: replace(questions, ends=set(range(1 << 20))))
    assert prepared(bundle) == []
    assert not cache.exists()


@pytest.mark.usefixtures("cache")
def test_short_rows_leave_room_for_a_part_of_each(bundle):
    found = prepared(bundle, replace(HELD, max_length=40))
    assert found
    assert all(one.tokens.size <= 40 and one.supervised for one in found)


@pytest.mark.usefixtures("cache")
def test_where_memory_has_no_room_a_run_goes_without(bundle):
    events = []
    assert prepared(bundle, replace(HELD, memory="1M"), events=events) == []
    assert events[-1]["event"] == "anchors_missing"
    assert "--memory 1M" in events[-1]["reason"]


def test_a_training_that_does_not_fit_is_refused_before_they_are_drawn(bundle, cache, tmp_path):
    events = []
    with pytest.raises(UsageError, match="does not fit: training needs"):
        go(bundle, tmp_path / "out", replace(HELD, memory="30M"), callbacks=RunCallbacks(on_event=events.append))
    assert events == []
    assert not cache.exists()


def test_a_stop_is_heard_while_they_are_drawn(bundle, cache):
    asked = iter([False] * 3)
    with pytest.raises(Interrupted, match="before the first step"):
        anchored.prepare(bundle, HELD, range(1), lambda: next(asked, True), lambda _: None)
    assert not cache.exists()


@pytest.mark.usefixtures("cache")
def test_a_model_that_cannot_be_asked_continues_texts(tmp_path):
    refusing = {"tokenizer.chat_template": "{{ raise_exception('ask nothing') }}"}
    plain = open_bundle(write_tiny(tmp_path / "plain.gguf", metadata=refusing))
    tokenizer = Tokenizer(plain.gguf)
    found = prepared(plain)
    said = [tokenizer.decode(one.tokens[:one.begin]) for one in found]
    assert len(said) == anchored.BATCH
    assert sum("In 1923" in text for text in said) == anchored.BATCH / 16
    assert not any("assistant" in text for text in said)


# ---- a run with them -------------------------------------------------------------------------------------------------


@pytest.mark.dev
def test_a_run_with_them_resumes_to_the_same_bytes(bundle, tmp_path, cache):
    wanted = go(bundle, tmp_path / "undisturbed", HELD)
    assert wanted != go(bundle, tmp_path / "without")
    record = json.loads((tmp_path / "undisturbed" / "run.json").read_text())
    assert record["rows_per_anchor"] == EVERY
    assert 0 < record["anchors"] <= anchored.BATCH
    for answers in (0, 33):
        prepared(bundle, HELD)
        stop(bundle, tmp_path / f"out{answers}", answers, HELD)
        shutil.rmtree(cache)
        assert go(bundle, tmp_path / f"out{answers}", HELD, resume=True) == wanted
    prepared(bundle, HELD)
    stop(bundle, tmp_path / "lost", 33, HELD)
    (tmp_path / "lost" / anchored.FILE).unlink()
    assert go(bundle, tmp_path / "lost", HELD, resume=True) == wanted  # drawn again, as they were


@pytest.mark.usefixtures("cache")
def test_a_resumed_run_has_as_many_as_it_began_with(bundle, tmp_path):
    prepared(bundle, HELD)
    stop(bundle, tmp_path / "out", 33, HELD)
    refused(bundle, tmp_path / "out", "was started with --anchors 5, not 4", config=replace(HELD, anchors=4),
            resume=True)
    stop(bundle, tmp_path / "other", 33)
    with pytest.raises(MismatchError, match="was started with --anchors 0, not 5"):
        go(bundle, tmp_path / "other", HELD, resume=True)


@pytest.mark.usefixtures("cache")
def test_epochs_after_the_end_go_on_with_them(bundle, tmp_path):
    go(bundle, tmp_path / "out", HELD)
    go(bundle, tmp_path / "out", HELD, resume=True, more=1)
    steps = metrics(tmp_path / "out")
    later = [line for line in steps if line["event"] == "step" and line["step"] > STEPS]
    assert [("metrics" in line) for line in later] == [step * 4 // EVERY > (step - 1) * 4 // EVERY
                                                       for step in range(STEPS + 1, STEPS + 1 + len(later))]


@pytest.mark.dev
@pytest.mark.usefixtures("cache")
def test_a_run_from_an_adapter_has_others_than_those_that_it_has_learned(bundle, tmp_path):
    """Also where it is resumed, with its file or without."""
    go(bundle, tmp_path / "first", HELD)
    wanted = go(bundle, tmp_path / "second", HELD, start=tmp_path / "first")
    records = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("first", "second")]
    assert [record["anchor_batches"] for record in records] == [[0, 1], [1, 2]]
    for name in ("kept", "lost"):
        stop(bundle, tmp_path / name, 33, HELD, start=tmp_path / "first")
        learned = anchored.read(tmp_path / name / anchored.FILE)
        assert same(learned, anchored.prepare(bundle, HELD, range(1, 2), lambda: False, lambda _: None))
        assert not same(learned, prepared(bundle, HELD))
        if name == "lost":
            (tmp_path / name / anchored.FILE).unlink()
        assert go(bundle, tmp_path / name, HELD, resume=True, start=tmp_path / "first") == wanted


@pytest.mark.parametrize(("number", "record", "start", "batches"), [
    (1, {}, {}, [0, 1]), (64, {}, {}, [0, 1]), (65, {}, {}, [0, 2]), (10**6, {}, {}, [0, 16]),
    (130, {}, {"anchor_batches": [3, 5]}, [5, 8]),
    (130, {"anchor_batches": [2, 9]}, {"anchor_batches": [3, 5]}, [2, 5]),
    (64, {}, {"anchors": 193}, [4, 5])])  # of an earlier version, whose runs began with the first
def test_batches_follow_those_of_the_adapter_from_which_training_starts(number, record, start, batches):
    found = anchored.batches_of(number, record, start)
    assert [found.start, found.stop] == batches


@pytest.mark.usefixtures("cache")
def test_train_without_an_option_learns_them(tiny_llama, tmp_path):
    rows = [{"prompt": f"set the light {i}", "completion": "on"} for i in range(12)]
    told = []
    result = train(tiny_llama, rows, tmp_path / "out", max_length=64, batch_size=4, answers=False, threads=1,
                   callbacks=RunCallbacks(told.append))
    assert result.record["rows_per_anchor"] == EVERY
    steps = [event for event in told if event["event"] == "step"]
    assert sum("anchor_loss" in step.get("metrics", {}) for step in steps) > len(steps) / 2
    kept = anchored.read(tmp_path / "out" / anchored.FILE)
    assert kept
    assert all(anchor.supervised for anchor in kept)
