"""Encoders that learn labels and JSON: the head alone, then all; resumed, evaluated and served."""

import gc
import json
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import run
from encoder_daemon import labelled
from encoders import WORDS, tiny_bert, write_encoder
from json_lines import write_lines
from labelled import close, set_random

from edgetune.adapters.base import OWN_ENGINE, Artifact
from edgetune.adapters.store import read_artifact, save_artifact
from edgetune.data.labelled import question_and_answer
from edgetune.data.packing import collate
from edgetune.errors import DataError, FormatError, Interrupted, MismatchError, UsageError
from edgetune.evaluation.encoders import LEAST, grade_labels
from edgetune.formats.gguf import open_gguf
from edgetune.objectives.classify import Classify
from edgetune.objectives.labelling import HeadTargets
from edgetune.objectives.multilabel import Multilabel
from edgetune.objectives.tag import Tag
from edgetune.runs.train import train
from edgetune.serving.calibration import calibrations_of
from edgetune.serving.classifier import Classifier
from edgetune.serving.embedding import EncoderFile
from edgetune.training import logistic
from edgetune.training.callbacks import RunCallbacks
from edgetune.training.trainer import Trainer

QUESTIONS = {"on": ["turn the light on", "light on", "kitchen light on", "turn on the kitchen light", "the light on"],
             "off": ["turn the light off", "light off", "kitchen light off", "turn off the light", "off the light"]}
LABELLED = [{"prompt": question, "completion": label} for label, each in QUESTIONS.items() for question in each * 3]
SLOTS = [{"prompt": f"turn {word} the {letter} light",
          "completion": json.dumps({"do": word, "slots": {"place": letter}})}
         for word in ("on", "off") for letter in "abcdefghijklm"]
FIELDS = [{"prompt": word, "completion": json.dumps({"a": word < "m", "b": word < "f", "c": word < "t", "d": word})}
          for word in "abcdefghijklmnopqrstuvwxyz"] * 2  # more labels than tokens
OPTIONS = {"rank": 4, "precision": "exact", "threads": 1, "lr": 3e-3}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder") / "tiny.gguf", tiny_bert(), WORDS)


@pytest.fixture(scope="module")
def fitted(encoder, tmp_path_factory):
    """An adapter that learned LABELLED by its head alone. Read only."""
    out = tmp_path_factory.mktemp("fitted") / "out"
    train(encoder, LABELLED, out, "none", steps=1, **OPTIONS)
    return out


@pytest.fixture(scope="module", params=[LABELLED, SLOTS, FIELDS], ids=["labels", "json", "fields"])
def learned(encoder, request, tmp_path_factory):
    """(rows, the adapter's folder, what training returned), of head and LoRA. Read only."""
    out = tmp_path_factory.mktemp("learned") / "out"
    return request.param, out, train(encoder, request.param, out, request.param, epochs=12, **OPTIONS)


def right(encoder, adapter, rows):
    with Classifier(encoder, adapter, threads=1) as served:
        found = served.classify([row["prompt"] for row in rows])
    return [json.loads(one.label) == json.loads(row["completion"]) if one.label[0] == "{" else
            one.label == row["completion"] for one, row in zip(found, rows, strict=True)]


def test_the_fit_is_that_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 8)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = np.argmax(x[:, :3] + 0.2 * rng.standard_normal((60, 3)), 1).astype(np.int32)
    weights, bias = logistic.fit(x, HeadTargets.of_all(y), 3)
    truth = linear_model.LogisticRegression(C=logistic.C, max_iter=1000, tol=1e-8).fit(x, y)
    expected = truth.predict_proba(x)
    z = x @ weights.T + bias
    p = np.exp(z - z.max(1, keepdims=True))
    assert np.abs(p / p.sum(1, keepdims=True) - expected).max() < 1e-3


@pytest.mark.dev
def test_it_learns_and_is_served(encoder, learned):
    rows, out, result = learned
    assert result.record["objective"]["name"] == ("classify" if rows is LABELLED else "tag")
    assert result.loss_after < 0.6 * result.loss_before
    assert result.exact_before == 0
    assert "(the heads alone: " in result.verdict or result.record["verdict"]["step"] == 1
    assert np.mean(right(encoder, out, rows)) >= 0.8


def test_the_head_alone_is_one_step(encoder, fitted):
    """Its probabilities are those of a logistic regression on the encoder's vectors, which llama.cpp computes here, by
    the temperature of its calibration.
    """
    with Classifier(encoder, fitted, threads=1) as served:
        assert served.labels == ("off", "on")
        questions = [row["prompt"] for row in LABELLED]
        with closing(EncoderFile(encoder, 1)) as file:
            vectors = np.empty((len(questions), file.embedder.width), np.float32)
            for _ in file.embedder.embed(vectors, [file.embedder.encode(question) for question in questions]):
                pass
        targets = HeadTargets.of_all(np.array([row["completion"] == "on" for row in LABELLED], np.int32))
        weights, bias = logistic.fit(vectors, targets, 2, logistic.best_c(vectors, targets, 2))
        z = vectors @ weights.T + bias
        [known] = calibrations_of(read_artifact(fitted, open_gguf(encoder)), "")
        expected = 1 / (1 + np.exp((z[:, 0] - z[:, 1]) / known.temperature))
        found = [one.probabilities[1] for one in served.classify(questions)]
    assert np.abs(found - expected).max() < 0.02  # llama.cpp's GELU is approximated


def test_a_closed_classifier_has_freed_everything(encoder, fitted, tmp_path):
    """The mapped file, its descriptor and the threads, without the garbage collector."""
    own = Path(shutil.copy(encoder, tmp_path / "own.gguf"))
    gc.collect()
    gc.disable()
    try:
        before = held(own)
        with Classifier(own, fitted, threads=2) as served:
            served.classify(["turn the light on"])
            during = held(own)
        assert held(own) == before < during
    finally:
        gc.enable()
    with pytest.raises(UsageError, match="this Classifier is closed"):
        served.classify(["turn the light on"])
    with pytest.raises(UsageError, match="this Classifier is closed"):
        next(served.generate("turn the light on"))


def held(path):
    """(parts of a file that this process maps, its descriptors of the file, its threads)"""
    here = Path("/proc/self")
    opened = [link for link in (here / "fd").iterdir() if link.exists() and link.resolve() == path]
    return ((here / "maps").read_text().count(str(path)), len(opened), len(list((here / "task").iterdir())))


def test_a_stopped_run_ends_with_the_same_bytes(encoder, tmp_path):
    steps = []
    stopping = RunCallbacks(lambda event: steps.append(event["event"] == "step"), lambda: sum(steps) == 3)
    options = {**OPTIONS, "steps": 6, "answers": False}
    train(encoder, LABELLED, tmp_path / "whole", **options)
    with pytest.raises(Interrupted):
        train(encoder, LABELLED, tmp_path / "stopped", callbacks=stopping, **options)
    train(encoder, LABELLED, tmp_path / "stopped", resume=True, **options)
    whole, stopped = ((tmp_path / name / "adapter.gguf").read_bytes() for name in ("whole", "stopped"))
    assert whole == stopped


def test_commands_take_an_encoder(encoder, tmp_path):
    rows = write_lines(tmp_path / "rows.jsonl", LABELLED)
    out = tmp_path / "out"
    assert json.loads(run("plan", encoder, rows, "--no-measure", "--json"))["fits"]
    said = json.loads(run("train", encoder, rows, "-o", out, "--eval", "none", "--steps", 20, "--threads", 1, "--json"))
    assert said["objective"] == {"name": "classify", "labels": ["off", "on"]}
    found = json.loads(run("eval", encoder, rows, "--adapter", out, "--show-wrong", 1, "--json"))
    assert (found["exact"] >= 0.8, found["exact_rows"]) == (True, len(LABELLED))
    assert run("generate", encoder, "turn the light on", "--adapter", out).strip() in ("on", "off")
    assert json.loads(run("models", "info", out, "--json"))
    said = run("generate", encoder, "turn the light on", code=2)
    assert "answers with a head that was trained" in said


@pytest.mark.dev
def test_adapters_are_compared(encoder, tmp_path, learned):
    """The loss is that of training, but for the calibration of labels; rows that one of two adapters alone answers
    right decide between them.
    """
    rows, good, trained = learned
    data = write_lines(tmp_path / "rows.jsonl", rows)
    poor = tmp_path / "poor"
    train(encoder, rows, poor, "none", steps=1, **OPTIONS)
    found = json.loads(run("compare", encoder, data, "--adapter", poor, "--adapter", good, "--threads", 1, "--json"))
    far = 0.05 if rows is LABELLED else 1e-3  # of products in another precision
    assert found["second"]["loss"] == pytest.approx(trained.loss_after, abs=far)
    alone = [sum(b and not a for a, b in zip(*pair, strict=True)) for pair in (
        (right(encoder, adapter, rows) for adapter in adapters) for adapters in ((good, poor), (poor, good)))]
    assert [found["right"]["first_alone"], found["right"]["second_alone"]] == alone
    said = run("compare", encoder, data, "--adapter", good, code=2)
    assert "answers with a head that was trained" in said


def test_an_answer_that_was_never_learned_costs_most(encoder, fitted):
    with Classifier(encoder, fitted, threads=1) as served:
        graded = grade_labels(served, [{"prompt": "light on", "completion": "dim"}, LABELLED[0]])
    assert graded.losses[0].mean == pytest.approx(-np.log(LEAST))
    assert 0 < graded.losses[1].mean < 3


def test_what_llama_cpp_and_peft_cannot_hold_is_refused(encoder, fitted, tmp_path):
    for command, why, code in ((["adapters", "merge", encoder, fitted, "-o", tmp_path / "new.gguf"],
                                "has a head of labels", 1),
                               (["adapters", "export", fitted, "-o", tmp_path / "new"], "is an encoder", 2)):
        said = run(*command, code=code)
        assert why in said
        assert "--to onnx" in said
    assert not [*tmp_path.glob("new*")]


def test_an_adapter_with_other_labels_is_no_start(encoder, fitted, tmp_path):
    more = [*LABELLED, *({"prompt": "a light", "completion": "dim"},) * 3]
    with pytest.raises(MismatchError, match="other labels than the rows"):
        train(encoder, more, tmp_path / "new", "none", start=fitted, steps=1, **OPTIONS)
    train(encoder, LABELLED, tmp_path / "again", "none", start=fitted, steps=1, **OPTIONS)


def test_a_grader_scores_its_answers(encoder, fitted, tmp_path):
    data = write_lines(tmp_path / "rows.jsonl", LABELLED)
    grader = tmp_path / "same.json"
    grader.write_text(json.dumps({"type": "string_check", "name": "same", "operation": "eq",
                                  "input": "{{sample.output_text}}", "reference": "{{item.completion}}"}))
    found = json.loads(run("grade", grader, data, "--model", encoder, "--adapter", fitted, "--threads", 1, "--json"))
    assert found["mean"] == pytest.approx(np.mean(right(encoder, fitted, LABELLED)))
    said = run("grade", grader, data, "--model", encoder, "--adapter", fitted, "--samples", 2, code=2)
    assert "--samples" in said


@pytest.mark.parametrize(("rows", "said"), [
    ([{"prompt": f"light {i}", "completion": f"text {i}"} for i in range(8)], "most answers occur once"),
    ([{"prompt": "light", "completion": "on"}] * 4, "all rows have the label 'on'"),
    ([{"text": "light"}], "without a question"),
    ([{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2}], "4 messages"),
    ([{"prompt": "light", "completion": "x" * 3000}], "3000 characters"),
])
def test_other_rows_are_refused(encoder, tmp_path, rows, said):
    with pytest.raises(DataError, match=said):
        train(encoder, rows, tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "out").exists()


def test_an_objective_without_labels_is_refused(encoder):
    for objective in (Classify(), Tag()):
        with pytest.raises(UsageError, match=r"labels that .* learns are not known"):
            Trainer(encoder, objective=objective)


def test_an_adapter_without_labels_is_refused(encoder, fitted, tmp_path):
    base = open_gguf(encoder)
    found = read_artifact(fitted, base)
    save_artifact(tmp_path / "bare.gguf", Artifact(found.pairs), base)
    save_artifact(tmp_path / "less.gguf", replace(found, tensors={}, served_by=OWN_ENGINE), base)
    for name, said in (("bare", "has no labels"), ("less", "has no head for 2 classes")):
        with pytest.raises(FormatError, match=said):
            Classifier(encoder, tmp_path / f"{name}.gguf")


def test_the_question_is_the_users_message_alone():
    row = {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": " light on "},
                        {"role": "assistant", "content": "on\n"}]}
    assert question_and_answer(row) == ("light on", "on")


# ---- several labels a row ------------------------------------------------------------------------------------------

SEVERAL = [{"prompt": f"{place} {word}", "completion": json.dumps(answer)}
           for place, first in (("kitchen", ["place"]), ("a", []), ("turn", ["verb"]))
           for word, second in (("light", ["thing"]), ("off", []), ("light on", ["thing", "state"]), ("on", ["state"]))
           for answer in [second + first]] * 2  # not in the order of the head's outputs


def test_each_label_is_fitted_as_scikit_learn_fits_it():
    linear_model = pytest.importorskip("sklearn.linear_model")
    multiclass = pytest.importorskip("sklearn.multiclass")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 8)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = (x[:, :3] + 0.2 * rng.standard_normal((60, 3)) > 0.1).astype(np.float32)
    weights, bias = logistic.fit(x, HeadTargets.of_all(y), y.shape[1])
    one = linear_model.LogisticRegression(C=logistic.C, max_iter=1000, tol=1e-8)
    expected = multiclass.OneVsRestClassifier(one).fit(x, y).predict_proba(x)
    assert np.abs(1 / (1 + np.exp(-(x @ weights.T + bias))) - expected).max() < 1e-3


def test_the_loss_of_several_labels_is_binary_cross_entropy(encoder):
    """Loss and gradients of all parameters, of adapter and head, beside torch's by the vectors of the engine."""
    torch = pytest.importorskip("torch")
    objective = Multilabel(("a", "b", "c"))
    trainer = Trainer(encoder, objective=objective, max_length=16, **OPTIONS)
    set_random(trainer)
    examples = trainer.add([{"prompt": "light on", "completion": '["c", "a"]'},
                            {"prompt": "off", "completion": "[]"}]).examples
    batch = collate(examples, share=False)
    vectors = torch.tensor(trainer.decoder.pooled(batch), requires_grad=True)
    [(weight, bias)] = [[torch.tensor(part.copy(), requires_grad=True) for part in head]
                        for head in trainer.decoder.label_heads()]
    present = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    loss = entropy(vectors @ weight.T + bias, present, reduction="none").mean(1).sum()
    loss.backward()
    trainer.decoder.forward(batch, keep=True)
    signal = objective.weights(trainer.decoder.head_forward(batch).copy(), batch)
    assert signal.loss == pytest.approx(loss.item(), rel=1e-5)
    gradient = trainer.arena.flat("dlora")
    gradient.fill(0)
    trainer.decoder.backward(batch, signal.a)
    close(gradient[-bias.numel():], bias.grad)
    close(gradient[-bias.numel() - weight.numel():-bias.numel()].reshape(weight.shape), weight.grad)
    by_heads = gradient.copy()
    step = 1e-3
    flat = trainer.arena.flat("lora")
    for i in np.argsort(-np.abs(by_heads[:-bias.numel() - weight.numel()]))[:3]:  # of the adapter
        found = []
        for sign in (step, -step):
            flat[i] += sign
            found.append(objective.weights(trainer.decoder.score(batch), batch).loss)
            flat[i] -= sign
        assert by_heads[i] == pytest.approx((found[0] - found[1]) / (2 * step), rel=0.03)


@pytest.mark.dev
def test_several_labels_are_learned_and_served(encoder, tmp_path):
    result = train(encoder, SEVERAL, tmp_path / "out", SEVERAL, epochs=20, **OPTIONS)
    assert result.record["objective"] == {"name": "multilabel", "labels": ["place", "state", "thing", "verb"]}
    assert result.exact_after >= 0.9  # whatever the order in which rows write their labels
    with Classifier(encoder, tmp_path / "out", threads=1) as served:
        found = served.classify([row["prompt"] for row in SEVERAL])
        graded = grade_labels(served, SEVERAL)
    assert graded.scores.loss == pytest.approx(result.loss_after, abs=1e-3)
    for one in found:
        assert json.loads(one.label) == [label for label, p in zip(served.labels, one.probabilities, strict=True)
                                         if p >= 0.5]
        assert one.probability == pytest.approx(np.maximum(one.probabilities, 1 - one.probabilities).prod())


def test_several_labels_by_the_head_alone_resume_too(encoder, tmp_path):
    steps = []
    stopping = RunCallbacks(lambda event: steps.append(event["event"] == "step"), lambda: sum(steps) == 2)
    options = {**OPTIONS, "steps": 4, "answers": False}
    train(encoder, SEVERAL, tmp_path / "whole", "none", **options)
    with pytest.raises(Interrupted):
        train(encoder, SEVERAL, tmp_path / "stopped", "none", callbacks=stopping, **options)
    train(encoder, SEVERAL, tmp_path / "stopped", "none", resume=True, **options)
    assert (tmp_path / "whole" / "adapter.gguf").read_bytes() == (tmp_path / "stopped" / "adapter.gguf").read_bytes()


def test_lists_beside_other_answers_are_refused(encoder, tmp_path):
    rows = [*SEVERAL, {"prompt": "off", "completion": '{"state": "off"}'}]
    with pytest.raises(DataError, match="is no JSON list of labels, as others are"):
        train(encoder, rows, tmp_path / "out", objective=Multilabel(), **OPTIONS)


def test_a_held_out_label_that_no_row_has_is_not_measured(encoder, tmp_path):
    """One such row has a loss that outweighs what was learned, and the untrained head would be kept."""
    unknown = {"prompt": "the kitchen", "completion": "other"}
    options = {"steps": 1, "threads": 1, "max_length": 48, "answers": False}
    result = train(encoder, labelled(40), tmp_path / "out", eval=[*labelled(10, first=60), *[unknown] * 10], **options)
    assert result.record["verdict"]["step"] == 1
    assert result.record["held_out"]["loss_after"] < result.record["held_out"]["loss_before"]
    with Classifier(encoder, tmp_path / "out", threads=1) as served:
        assert served.labels == ("lamp_off", "lamp_on")
    with pytest.raises(DataError, match="the label 'other' is none of the 2 that are learned"):
        train(encoder, labelled(40), tmp_path / "none", eval=[unknown], **options)
