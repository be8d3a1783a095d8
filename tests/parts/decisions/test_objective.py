"""The objective decide: a head for each typed question, of which a row answers some, or several labels a little."""

import json

import numpy as np
import pytest
from encoder_daemon import labelled
from labelled import close, set_random
from typed_rows import KEYS, KITCHEN, LAMP, PLACE, QUESTIONS, answers_of, typed_rows

from edgetune.adapters.store import read_artifact
from edgetune.data import decisions
from edgetune.data.decisions import conversation, prompt_of
from edgetune.data.labelled import Read, example_of
from edgetune.data.packing import collate
from edgetune.data.rows import as_messages
from edgetune.errors import DataError, Interrupted, NotFoundError
from edgetune.evaluation.encoders import LEAST, grade_labels
from edgetune.formats.gguf import open_gguf
from edgetune.llamacpp.wordpiece import Encoded
from edgetune.objectives.base import read_objective
from edgetune.objectives.decide import Decide
from edgetune.runs.train import train
from edgetune.serving.classifier import Classifier
from edgetune.serving.encoder import Encoder
from edgetune.training.callbacks import RunCallbacks
from edgetune.training.trainer import Trainer

OPTIONS = {"rank": 4, "precision": "exact", "threads": 1, "lr": 3e-3, "max_length": 48}
LABELS = {KITCHEN: ("false", "true"), LAMP: ("goes off", "goes on", "stays"), PLACE: ("0", "1", "2")}
LEARNED = [*sorted(LABELS.items())]


@pytest.fixture(scope="module")
def encoder(model):
    return model


@pytest.fixture(scope="module")
def learned(encoder, tmp_path_factory):
    """(the adapter's folder, what training returned) of rows that answer every other question. Read only."""
    out = tmp_path_factory.mktemp("learned") / "out"
    return out, train(encoder, typed_rows(every=2), out, "none", steps=1, answers=False, **OPTIONS)


def rows_of(*answers, field="expected"):
    """A row for each answer, with its own state."""
    return [conversation({"state": f"turn on the light {'abcdef'[i]}", "questions": QUESTIONS, field: answer})
            for i, answer in enumerate(answers)]


# ---- the loss --------------------------------------------------------------------------------------------------------

ANSWERS = [{"lamp": "stays", "kitchen": 0.75, "place": [0.2, 0.3, 0.5]}, {"kitchen": 0}, {"place": 2},
           {"lamp": {"goes on": 0.6, "goes off": 0.4}, "place": 1}]


def test_the_loss_is_soft_cross_entropy_of_what_rows_answer(encoder):
    """Loss and gradients of all parameters, of adapter and heads, beside torch's by the vectors of the engine."""
    torch = pytest.importorskip("torch")
    objective = Decide(tuple(LEARNED))
    trainer = Trainer(encoder, objective=objective, **OPTIONS)
    set_random(trainer)
    examples = trainer.add(rows_of(*ANSWERS, field="gold")).examples
    assert len(examples) == 3 + 1 + 1 + 2  # each head reads one label of an example
    assert objective.count(examples) == pytest.approx(7)  # of seven answers
    batch = collate(examples, share=False)
    vectors = torch.tensor(trainer.decoder.pooled(batch))
    first = np.unique([example.tokens.tobytes() for example in examples], return_index=True)[1]
    states = [vectors[i] for i in sorted(first)]
    heads = trainer.decoder.label_heads()
    parts = [[torch.tensor(part.copy(), requires_grad=True) for part in head] for head in heads]
    loss = torch.zeros(())
    for state, answer in zip(states, ANSWERS, strict=True):
        for name, given in answer.items():
            number = [key for key, _ in LEARNED].index(KEYS[name])
            weight, bias = parts[number]
            label = decisions.read_answer(name, decisions.read_questions(QUESTIONS)[name], given)
            shares = {label: 1.0} if isinstance(label, str) else label
            wanted = torch.tensor([shares.get(each, 0.0) for each in LEARNED[number][1]])
            loss = loss - (wanted * torch.log_softmax(weight @ state + bias, 0)).sum()
    loss.backward()
    trainer.decoder.forward(batch, keep=True)
    signal = objective.weights(trainer.decoder.head_forward(batch).copy(), batch)
    assert signal.loss == pytest.approx(loss.item(), rel=1e-5)
    flat, gradient = trainer.arena.flat("lora"), trainer.arena.flat("dlora")
    gradient.fill(0)
    trainer.decoder.backward(batch, signal.a)
    begins = []
    for head, part in zip(heads, parts, strict=True):
        for ours, theirs in zip(head, part, strict=True):
            begin = (ours.ctypes.data - flat.ctypes.data) // flat.itemsize
            begins.append(begin)
            close(gradient[begin:begin + ours.size].reshape(ours.shape), theirs.grad)
    by_adapter = gradient[:min(begins)].copy()
    step = 1e-3
    for i in np.argsort(-np.abs(by_adapter))[:3]:
        found = []
        for sign in (step, -step):
            flat[i] += sign
            found.append(objective.weights(trainer.decoder.score(batch), batch).loss)
            flat[i] -= sign
        assert by_adapter[i] == pytest.approx((found[0] - found[1]) / (2 * step), rel=0.03)


def plain_rows(count):
    """Label rows as conversations."""
    return [{"messages": as_messages(row["prompt"], row["completion"])} for row in labelled(count)]


# ---- what is learned -------------------------------------------------------------------------------------------------


def test_questions_and_their_labels_are_those_of_the_rows(encoder, learned):
    out, result = learned
    written = {"name": "decide", "questions": [[key, [*labels]] for key, labels in LEARNED]}
    assert result.record["objective"] == written
    assert json.loads((out / "run.json").read_text())["objective"] == written
    found = read_objective(written)
    assert found == Decide(tuple(LEARNED))
    assert read_objective({"name": "decide", **found.options()}) == found
    assert read_objective(read_artifact(out, open_gguf(encoder)).objective) == found


def test_each_row_is_answered(encoder, learned):
    reader = Encoder(open_gguf(encoder), threads=1, precision="exact").adapter(learned[0])
    rows = typed_rows()
    asked = [(row, name) for row in rows for name in QUESTIONS]
    reads = [reader.encoder.read(prompt_of(KEYS[name], row["state"])) for row, name in asked]
    found = [one.label == answers_of(row)[name] for (row, name), one in zip(asked, reader.classify(reads), strict=True)]
    assert np.mean(found) >= 0.9


def test_all_heads_in_one_pass_are_each_alone(encoder, learned):
    """One state's questions, asked together, alone and without a name; and among those of other states."""
    reader = Encoder(open_gguf(encoder), threads=1, precision="exact").adapter(learned[0])
    for state in ("the light", "turn on the light, z z z z q"):
        reads = [reader.encoder.read(prompt_of(key, state)) for key in LABELS]
        together = reader.classify(reads)
        many = reader.classify([*reads, *(reader.encoder.read(text) for text in ("turn off", "a b c"))])
        [all_at_once] = reader.classify([reader.encoder.read(state)])
        assert decisions.labels_in(all_at_once.label) == {
            key: one.label for key, one in zip(LABELS, together, strict=True)}
        for key, read, one, among in zip(LABELS, reads, together, many, strict=False):
            options = reader.learned.options_of(key)
            own = slice(options.first, options.first + len(options.labels))
            [alone] = reader.classify([read])
            assert alone.label == one.label
            np.testing.assert_array_equal(alone.probabilities[own], one.probabilities[own])
            np.testing.assert_array_equal(all_at_once.probabilities[own], one.probabilities[own])
            np.testing.assert_allclose(among.probabilities[own], one.probabilities[own], atol=1e-5)
            assert one.probabilities[own].sum() == pytest.approx(1, abs=1e-5)
            assert alone.probabilities.sum() == pytest.approx(1, abs=1e-5)  # other heads have 0
    with pytest.raises(NotFoundError, match="was not learned"):
        reader.classify([reader.encoder.read(prompt_of(decisions.key_of("noul", "Is it?"), "the light"))])


def test_what_a_row_does_not_answer_counts_for_nothing(encoder, learned):
    """In eval, compare and the gate: exact answers and losses are of the questions that a row answers."""
    rows = typed_rows(30, every=2)
    with Classifier(encoder, learned[0], threads=1) as served:
        graded = grade_labels(served, [conversation(row) for row in rows])
        reader = served._opened
        for row, answer, loss in zip(rows, graded.answers, graded.losses, strict=True):
            wanted = answers_of(row)
            found = {name: reader.classify([reader.encoder.read(prompt_of(KEYS[name], row["state"]))])[0]
                     for name in wanted}
            assert answer.correct == all(found[name].label == label for name, label in wanted.items())
            nats = [-np.log(found[name].probabilities[options.first + options.labels.index(label)])
                    for name, label in wanted.items() for options in [reader.learned.options_of(KEYS[name])]]
            assert loss.mean == pytest.approx(np.mean(nats), rel=1e-2, abs=1e-4)
        assert np.mean([answer.correct for answer in graded.answers]) > 0.7
        soft = conversation({"state": "turn on the light", "questions": QUESTIONS, "gold": {"kitchen": 0.75}})
        [found] = grade_labels(served, [soft]).losses
        [one] = reader.classify([reader.encoder.read(prompt_of(KITCHEN, "turn on the light"))])
        p = one.probabilities[reader.learned.options_of(KITCHEN).first:][:2]
        assert found.mean == pytest.approx(-0.25 * np.log(p[0]) - 0.75 * np.log(p[1]), rel=1e-3)
        boat = {"state": "turn on the light", "questions": {"boat": {"type": "noul", "instructions": "Is it a boat?"}},
                "expected": {"boat": True}}
        other = conversation(boat)
        typed = {"messages": [{"role": "system", "content": decisions.key_of("noul", "Is it a boat?")},
                              *as_messages("turn on the light", "true")]}
        graded = grade_labels(served, [other, typed])  # of a question that it did not learn
        assert [answer.correct for answer in graded.answers] == [False, False]
        assert [loss.mean for loss in graded.losses] == [pytest.approx(-np.log(LEAST))] * 2


@pytest.mark.parametrize("rows", [typed_rows(every=2), rows_of(*ANSWERS, *ANSWERS[:2], field="gold")],
                         ids=["labels", "soft"])
def test_a_stopped_run_ends_with_the_same_bytes(encoder, tmp_path, rows):
    steps = []
    stopping = RunCallbacks(lambda event: steps.append(event["event"] == "step"), lambda: sum(steps) == 2)
    options = {**OPTIONS, "steps": 4, "answers": False}
    train(encoder, rows, tmp_path / "whole", "none", **options)
    with pytest.raises(Interrupted):
        train(encoder, rows, tmp_path / "stopped", "none", callbacks=stopping, **options)
    train(encoder, rows, tmp_path / "stopped", "none", resume=True, **options)
    assert (tmp_path / "whole" / "adapter.gguf").read_bytes() == (tmp_path / "stopped" / "adapter.gguf").read_bytes()


def test_label_rows_beside_typed_ones_are_a_question_without_a_name(encoder, tmp_path):
    rows = [*typed_rows(24), *plain_rows(24)]
    result = train(encoder, rows, tmp_path / "out", "none", steps=1, answers=False, **OPTIONS)
    assert [key for key, _ in result.record["objective"]["questions"]] == sorted(["", *LABELS])
    reader = Encoder(open_gguf(encoder), threads=1).adapter(tmp_path / "out")
    assert reader.learned.options_of("").labels == reader.learned.labels == ("lamp_off", "lamp_on")
    [plain] = reader.classify([reader.encoder.read("turn on the light a a")])
    assert plain.label in reader.learned.labels  # and not an object of all
    typed = conversation({"state": "turn on the light", "questions": QUESTIONS, "expected": {"lamp": "goes on"}})
    with Classifier(encoder, tmp_path / "out", threads=1) as served:
        graded = grade_labels(served, [*plain_rows(24), typed])
    assert np.mean([answer.correct for answer in graded.answers]) > 0.7


def test_a_question_with_one_label_is_not_learned(encoder, tmp_path):
    rows = rows_of({"lamp": "stays", "kitchen": True}, {"lamp": "goes on", "kitchen": True}) * 3
    result = train(encoder, rows, tmp_path / "out", "none", steps=1, answers=False, **OPTIONS)
    assert [key for key, _ in result.record["objective"]["questions"]] == [LAMP]
    with pytest.raises(DataError, match="all rows have the label 'true'; add rows with other labels"):
        train(encoder, rows_of({"kitchen": True}) * 3, tmp_path / "one", "none", **OPTIONS)


def test_more_labels_than_a_head_has_are_refused():
    key = decisions.key_of("choice", "Which?")
    rows = [example_of(Read("on", Encoded([5], [(0, 2)]), key), f"label {i}") for i in range(1001)]
    assert len(Decide().fitted(rows[1:]).questions[0].labels) == 1000
    with pytest.raises(DataError, match="a question has 1001 labels, at most 1000 are learned"):
        Decide().fitted(rows)
