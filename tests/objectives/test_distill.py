"""Distillation from a teacher's file: loss and gradient as autograd has them on the whole formula, over all tokens of
the student's vocabulary at both temperatures; and a student that learns its teacher.
"""

import json
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch
from commands import run
from decoder_cases import adapted, distance, in_parts, make_case
from distilled import by_peft, divergence, resumes_with_its_teacher, taught, with_rest
from gradients import autograd, gradient_over, our_gradient
from json_lines import write_lines
from tiny import write_tiny

import edgetune
from edgetune.data.packing import example_key
from edgetune.data.teacher_file import FORMAT, VERSION, Header, TeacherFile, new_teacher, read_header
from edgetune.data.trees import micro_batches
from edgetune.errors import DataError, FormatError, Interrupted, MismatchError, UsageError
from edgetune.objectives.base import make_objective
from edgetune.objectives.distill import Distill
from edgetune.runs.teaching import expected, likeliest
from edgetune.serving.llama import LlamaModel
from edgetune.training.callbacks import RunCallbacks
from edgetune.training.teachers import Records

K = 5
KINDS = [{}, {"divergence": "reverse"}, {"divergence": "jsd"}, {"divergence": "jsd", "distillation_alpha": 0.2},
         {"label_share": 0.3}, {"label_share": 1.0}]


def header(top=K, temperature=1.0, n_vocab=300):
    return Header(FORMAT, VERSION, top, temperature, n_vocab, "t", "c", "r", "none")


def write_by_torch(path, case, peft, temperature):
    """The file of the model without its adapter, made of softmax by torch."""
    with torch.no_grad(), peft.disable_adapter():
        known = [by_peft(peft, one, one.tokens[:10]) for one in case.examples]
    with new_teacher(path, header(temperature=temperature, n_vocab=known[0].shape[1])) as file:
        for one, logp in zip(case.examples, known, strict=True):
            values, ids = torch.log_softmax(logp.double() / temperature, -1).topk(K, -1)
            file.add(example_key(one), ids.numpy(), values.float().numpy(),
                     torch.log1p(-values.exp().sum(1)).float().numpy())
        file.finish()
    return path


def truth(case, objective, file, peft):
    """Loss and gradient of the whole formula, by autograd over the student's whole vocabulary."""
    tau = file.header.temperature
    plain = replace(objective, teacher="")

    def loss_of(_logps, _weights):
        total = torch.zeros((), dtype=torch.float64)
        for one in case.examples:
            ids, logq = file.read(example_key(one))
            logp = by_peft(peft, one, one.tokens[:10]).double()
            cooled = torch.log_softmax(logp / tau, -1).gather(1, torch.from_numpy(ids).long())
            each = divergence(plain, with_rest(torch.from_numpy(logq).double()), with_rest(cooled))
            labels = logp.gather(1, torch.from_numpy(one.tokens[10:]).long()[:, None])[:, 0]
            w = torch.from_numpy(one.weights[10:]).double()
            total = total + (w * ((1 - objective.label_share) * tau ** 2 * each - objective.label_share * labels)).sum()
        return total / sum(float(np.abs(one.weights).sum()) for one in case.examples)

    return autograd(case, loss_of, peft)


@pytest.mark.dev
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("options", KINDS, ids=str)
def test_gradients_equal_autograd(options, temperature, tmp_path):
    case = make_case("llama", tmp_path)
    taught(case, (6, 9, 4, 8, 7, 3))
    rng = np.random.default_rng(2)
    case.examples[:] = [replace(one, prompts=(), weights=(one.weights * rng.uniform(0.5, 2)).astype(np.float32))
                        for one in case.examples]
    peft = adapted(case)
    path = write_by_torch(tmp_path / "t", case, peft, temperature)
    objective = make_objective("distill", {"teacher": str(path), **options})
    file = TeacherFile(path)
    wanted, gradient = truth(case, objective, file, peft)
    case.decoder.temperature = temperature
    loss, ours = our_gradient(case, objective, 2, Records(file))
    assert loss == pytest.approx(wanted, rel=1e-4)
    assert np.linalg.norm(gradient) > 1e-4
    assert distance(ours, gradient) < 1e-4


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_behind_a_prefix_they_are_the_same(temperature, tmp_path):
    case = make_case("llama", tmp_path)
    taught(case, (12, 12, 12, 12))
    first = case.examples[0]
    case.examples[:] = [replace(one, prompts=(), tokens=np.r_[first.tokens[:16], one.tokens[16:]])
                        for one in case.examples]
    path = write_by_torch(tmp_path / "t", case, adapted(case), temperature)
    objective = Distill(teacher=str(path), label_share=0.2)
    case.decoder.temperature = temperature
    records = Records(TeacherFile(path))
    loss, gradient = our_gradient(case, objective, 1, records)
    parts = in_parts(case, 26, 15, 1)
    parts.decoder.temperature = temperature
    found, theirs = gradient_over(parts.decoder, objective, case.examples, micro_batches(case.examples, 26, prefix=15),
                                  records)
    assert found == pytest.approx(loss, rel=1e-5)
    assert distance(theirs, gradient) < 1e-4


# ---- the file --------------------------------------------------------------------------------------------------------


def test_the_likeliest_are_those_of_a_sort():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (7, 50)).astype(np.float32)
    logits[:, 10:20] = logits[:, 9:10]  # equally likely ones: the first counts
    for temperature in (1.0, 3.0):
        tokens, logp, rest = likeliest(logits, 8, temperature)
        z = logits.astype(np.float64) / temperature
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        order = np.argsort(-p, axis=1, kind="stable")[:, :8]
        np.testing.assert_array_equal(tokens, order)
        np.testing.assert_allclose(np.exp(logp), np.take_along_axis(p, order, 1), rtol=1e-5)
        np.testing.assert_allclose(np.exp(rest), 1 - np.take_along_axis(p, order, 1).sum(1), rtol=1e-4)
    _, logp, rest = likeliest(logits, 50, 1.0)
    assert np.exp(logp).sum(1) == pytest.approx(np.ones(7))
    assert (rest < -60000).all()


def test_what_is_written_is_read(tmp_path):
    rng = np.random.default_rng(0)
    written = {}
    with new_teacher(tmp_path / "t", header()) as file:
        for i in range(40):
            n = int(rng.integers(1, 9))
            key = (b"same8byt" if i < 3 else bytes([255] * 8) if i < 5 else rng.bytes(8)) + rng.bytes(8)
            logq = np.log(rng.dirichlet(np.ones(K + 1), n)).astype(np.float32)
            written[key] = rng.integers(0, 300, (n, K)), logq
            file.add(key, written[key][0], logq[:, :K], logq[:, K])
        file.finish()
    found = TeacherFile(tmp_path / "t")
    for key, (ids, logq) in written.items():
        assert key in found
        read, log_of = found.read(key)
        np.testing.assert_array_equal(read, ids)
        np.testing.assert_allclose(log_of, logq[:, :K], atol=6e-3)
    assert found.missing([b"x" * 16, *written]) == 1
    with pytest.raises(KeyError):
        found.read(b"x" * 16)


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "t"
    with new_teacher(path, header()) as file:
        file.add(b"k" * 16, np.zeros((3, K), int), np.full((3, K), -2, np.float32), np.full(3, -1, np.float32))
        file.finish()
    whole = path.read_bytes()
    for at in range(4096, len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
        with pytest.raises(FormatError, match=r"damaged"):
            TeacherFile(path)
    rng = np.random.default_rng(0)
    text = json.loads(whole[:4096])
    for _ in range(300):  # headers with other values: refused, or read as they say
        name = list(text)[rng.integers(len(text))]
        value = [0, -1, 1 << 40, 1.5, "x", None, [], {}, True][rng.integers(9)]
        changed = json.dumps({**text, name: value}).encode().ljust(4095) + b"\n"
        path.write_bytes(changed + whole[4096:])
        try:
            TeacherFile(path)
        except FormatError:
            assert name not in ("teacher", "rows", "tokenizer", "template") or not isinstance(value, str)
    for end in (0, 10, 4095, 4096, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(FormatError):
            TeacherFile(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_header(tmp_path / "none")


# ---- the run ---------------------------------------------------------------------------------------------------------


ROWS = [{"prompt": f"turn the light {i}", "completion": f'{{"on": "{i % 3}"}}'} for i in range(30)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A teacher, a student of other weights with its tokenizer, rows, and the teacher's file."""
    folder = tmp_path_factory.mktemp("place")
    write_tiny(folder / "teacher.gguf", formats="Q8_0", seed=1, d_model=96)
    write_tiny(folder / "student.gguf", formats="Q8_0")
    write_lines(folder / "rows.jsonl", ROWS)
    said = json.loads(run("data", "teach", folder / "teacher.gguf", folder / "rows.jsonl", "-o", folder / "t",
                          "--top", 8, "--json"))
    assert said["examples"] == 30
    assert said["bytes"] == (folder / "t").stat().st_size
    return folder


def test_the_file_has_what_llama_cpp_says(place):
    file = TeacherFile(place / "t")
    with LlamaModel(place / "teacher.gguf") as model:
        rows = edgetune.load(place / "rows.jsonl", model.tokenizer, max_length=512)
        assert file.header.positions == rows.supervised
        for one in rows.examples[:3]:
            at = np.flatnonzero(one.weights[1:])
            logits = torch.from_numpy(model.logits(one.tokens.tolist())[at]).double()
            logp = torch.log_softmax(logits, -1)
            values = logp.topk(8, -1).values
            tokens, logq = file.read(example_key(one))
            np.testing.assert_allclose(logq, values, atol=4e-3)
            # by their values: two that are equally likely may change places where other rows are computed at once
            np.testing.assert_allclose(logp.gather(1, torch.from_numpy(tokens).long()), values, atol=4e-3)
            np.testing.assert_array_equal(expected(model, one, 8, 1.0)[0], tokens)


OPTIONS = {"steps": 30, "batch_size": 4, "lr": 3e-3, "rank": 8, "threads": 1, "eval_every": 10}


def learn(place, out, **options):
    calls = options.pop("callbacks", None)
    objective = make_objective("distill", {"teacher": str(place / "t"), **options.pop("method", {})})
    return edgetune.train(place / "student.gguf", place / "rows.jsonl", out, answers=False, objective=objective,
                          callbacks=calls, **{**OPTIONS, **options})


@pytest.mark.dev
@pytest.mark.parametrize("method", [{}, {"divergence": "reverse"}, {"divergence": "jsd"}], ids=str)
def test_a_student_comes_nearer_to_its_teacher(place, tmp_path, method):
    found = learn(place, tmp_path / "out", method=method)
    assert found.loss_after < 0.8 * found.loss_before
    events = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert {"divergence", "label_loss", "teacher_agreement"} <= set(events[-1]["metrics"])


@pytest.mark.dev
def test_stopped_it_resumes_to_the_same_bytes(place, tmp_path):
    learn(place, tmp_path / "one")
    asked = count()
    calls = RunCallbacks(should_stop=lambda: next(asked) > 60)
    with pytest.raises(Interrupted):
        learn(place, tmp_path / "two", callbacks=calls)
    other = tmp_path / "other.teacher"
    edgetune.teach(place / "teacher.gguf", place / "rows.jsonl", other, top=9)
    resumes_with_its_teacher(tmp_path / "two", tmp_path / "one", place / "t", other.read_bytes(), "teacher-file")


def test_what_the_file_is_not_for_is_refused_in_a_sentence(place, tmp_path):
    with pytest.raises(UsageError, match=r"needs a teacher's file"):
        edgetune.train(place / "student.gguf", place / "rows.jsonl", tmp_path / "o", objective=Distill())
    write_lines(tmp_path / "more.jsonl", [*ROWS[:20], {"prompt": "another", "completion": "one"}])
    with pytest.raises(DataError, match=r"1 of 21 rows are not in .*t as this training reads them"):
        edgetune.train(place / "student.gguf", tmp_path / "more.jsonl", tmp_path / "o", eval="none",
                       objective=Distill(teacher=str(place / "t")))
    with pytest.raises(DataError, match=r"\d+ of \d+ rows are not in"):
        edgetune.train(place / "student.gguf", place / "rows.jsonl", tmp_path / "o", system="Be short.",
                       objective=Distill(teacher=str(place / "t")))
    for name, changed in (("tokenizer", {"n_vocab": 400}), ("chat template", {"metadata": {
            "tokenizer.chat_template": "{{ messages[0].content }}"}})):
        write_tiny(tmp_path / "other.gguf", formats="Q8_0", **changed)
        with pytest.raises(MismatchError, match=f"has another {name} than other.gguf"):
            edgetune.train(tmp_path / "other.gguf", place / "rows.jsonl", tmp_path / "o",
                           objective=Distill(teacher=str(place / "t")))
    with pytest.raises(UsageError, match=r"distillation-alpha is 0.2"):
        make_objective("distill", {"distillation_alpha": 0.2})
    with pytest.raises(UsageError, match="top is 9999"):
        edgetune.teach(place / "teacher.gguf", place / "rows.jsonl", tmp_path / "x", top=9999)
    assert not list(tmp_path.glob("x*"))
    assert "exists" in run("data", "teach", place / "teacher.gguf", place / "rows.jsonl", "-o", place / "t", code=2)


def test_a_stopped_teacher_leaves_nothing(place, tmp_path):
    asked = count()
    with pytest.raises(Interrupted, match="stopped after row 5 of 30"):
        edgetune.teach(place / "teacher.gguf", place / "rows.jsonl", tmp_path / "x",
              should_stop=lambda: next(asked) >= 5)
    assert not list(tmp_path.iterdir())


def test_the_command_trains(place, tmp_path):
    found = json.loads(run("train", place / "student.gguf", place / "rows.jsonl", "-o", tmp_path / "out", "--method",
                           "distill", "--teacher", place / "t", "--divergence", "jsd", "--label-share", "30%",
                           "--steps", 2, "--no-answers", "--no-govern", "--json"))
    assert found["origin"]["objective"]["teacher"] == str((place / "t").absolute())
    assert found["origin"]["objective"]["label_share"] == 0.3
