"""Distillation on the student's own answers: what the teacher says of them is llama.cpp's, the gradient autograd's, a
stopped run resumes to the same bytes, and the teacher is in the plan.
"""

import json
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch
from distilled import divergence, resumes_with_its_teacher, with_rest
from json_lines import write_lines
from tiny import write_tiny

import edgetune
from edgetune.adapters import store
from edgetune.data.packing import Example, collate
from edgetune.data.prompts import check_learnable
from edgetune.errors import BudgetError, DataError, Interrupted, MismatchError, UsageError
from edgetune.objectives.base import make_objective
from edgetune.objectives.gkd import Gkd
from edgetune.serving.llama import LlamaModel
from edgetune.training.callbacks import RunCallbacks
from edgetune.training.config import TrainConfig
from edgetune.training.teachers import OnPolicy
from edgetune.training.trainer import Trainer

K = 6
ROWS = [{"prompt": f"turn the light {i}", "completion": "on" if i % 2 else "off"} for i in range(16)]
OPTIONS = {"steps": 12, "batch_size": 4, "lr": 3e-3, "rank": 8, "threads": 1, "precision": "exact"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    write_tiny(folder / "teacher.gguf", formats="F32", seed=1, d_model=96)
    write_tiny(folder / "student.gguf", formats="F32")
    write_lines(folder / "rows.jsonl", ROWS)
    return folder


def objective(place, **options):
    return make_objective("gkd", {"teacher_model": str(place / "teacher.gguf"), "distillation_topk": K,
                                  "max_completion_length": 6, **options})


def learn(place, out, **options):
    calls = options.pop("callbacks", None)
    return edgetune.train(place / "student.gguf", place / "rows.jsonl", out, answers=False, callbacks=calls,
                          objective=objective(place, **options.pop("method", {})), **{**OPTIONS, **options})


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_what_the_teacher_says_is_llama_cpps(place, share):
    """Of the rows' answers, which end as the template has it, and of the student's, of six tokens at most."""
    trainer = Trainer(place / "student.gguf", TrainConfig(**OPTIONS), objective=objective(place, student_share=share))
    trainer.add([row for row in ROWS if check_learnable(row)])
    source = trainer.source
    assert isinstance(source, OnPolicy)
    learned = source.of_step(1, trainer._batches)
    assert len(learned.examples) == 4
    assert learned.n == sum(one.supervised for one in learned.examples)
    assert learned.metrics["student_step"] == share
    batch = source.add_to(collate(learned.examples))
    with LlamaModel(place / "teacher.gguf") as teacher:
        rows = {row["completion"] for row in ROWS}
        for one, part in batch.parts():
            at = np.flatnonzero(one.weights[1:])
            assert at.size <= 6
            text = teacher.tokenizer.decode(one.tokens[at + 1].tolist())
            assert share or text.split("<")[0].strip() in rows
            values, ids = torch.log_softmax(torch.from_numpy(teacher.logits(one.tokens.tolist())[at]).double(),
                                            -1).topk(K, -1)
            assert (batch.choices[part] == ids.numpy()).mean() > 0.9  # those as likely as others may be exchanged
            np.testing.assert_allclose(batch.choices_reference[part], values, atol=5e-3)  # float16 keys
    trainer.tokenizer.close()


@pytest.mark.parametrize("options", [{}, {"divergence": "reverse"}, {"divergence": "jsd", "distillation_alpha": 0.3}],
                         ids=str)
def test_weights_equal_autograd(place, options):
    rng = np.random.default_rng(0)
    q, p = torch.log_softmax(torch.from_numpy(rng.normal(0, 1, (2, 7, K + 1))), -1)
    batch = replace(collate([Example(np.arange(8, dtype=np.int32), np.r_[0, np.ones(7)].astype(np.float32))]),
                    choices=np.zeros((7, K), np.int32), choices_reference=q[:, :K].numpy().astype(np.float32))
    made = objective(place, **options)
    now = p[:, :K].clone().requires_grad_()
    wanted = divergence(made, with_rest(q[:, :K]), with_rest(now)).sum()
    signal = made.weights(np.concatenate([np.zeros((7, 1)), p[:, :K].numpy()], 1).astype(np.float32), batch)
    assert signal.loss == pytest.approx(wanted.item(), rel=1e-4)
    (slope,) = torch.autograd.grad(wanted, now)
    np.testing.assert_allclose(signal.a[:, 1:], -slope, rtol=1e-3, atol=2e-5)
    assert not signal.a[:, 0].any()


@pytest.mark.dev
@pytest.mark.parametrize("method", [{}, {"student_share": 1.0, "divergence": "reverse"}], ids=str)
def test_a_student_comes_nearer_to_its_teacher(place, tmp_path, method):
    found = learn(place, tmp_path / "out", method=method, steps=60, eval_every=30)
    assert found.loss_after < 0.8 * found.loss_before
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    drawn = [line["metrics"]["student_step"] for line in lines if line["event"] == "step"]
    assert np.mean(drawn) == 1 if method else 0.2 < np.mean(drawn) < 0.8


@pytest.mark.dev
def test_stopped_it_resumes_to_the_same_bytes(place, tmp_path):
    learn(place, tmp_path / "one", eval="none")
    asked = count()
    with pytest.raises(Interrupted):
        learn(place, tmp_path / "two", eval="none", callbacks=RunCallbacks(should_stop=lambda: next(asked) > 150))
    stopped = store.read_run(tmp_path / "two")["steps"]
    assert 0 < stopped < 12
    other = write_tiny(tmp_path / "other.gguf", formats="F32", seed=5, d_model=96)
    resumes_with_its_teacher(tmp_path / "two", tmp_path / "one", place / "teacher.gguf", other.read_bytes(),
                             "was started with --teacher")


def test_the_teacher_is_in_the_plan(place, tmp_path):
    """A larger teacher takes more of the same memory, and one that does not fit is refused."""
    write_tiny(tmp_path / "large.gguf", formats="F32", d_model=256, n_blocks=8, d_ff=1024)
    config = TrainConfig(**OPTIONS)
    small, large = (Trainer(place / "student.gguf", config, objective=objective(place, teacher_model=str(path))).plan
                    for path in (place / "teacher.gguf", tmp_path / "large.gguf"))
    size = sum((tmp_path / "large.gguf").stat().st_size - path.stat().st_size for path in [place / "teacher.gguf"])
    assert large.limits.process - small.limits.process > 0.7 * size
    tight = replace(config, memory=f"{small.peak_bytes // 2**20 + 2}M")
    with pytest.raises(BudgetError, match="this does not fit"):
        Trainer(place / "student.gguf", tight, objective=objective(place, teacher_model=str(tmp_path / "large.gguf")))


def test_what_does_not_fit_is_refused_in_a_sentence(place, tmp_path):
    with pytest.raises(UsageError, match=r"the method gkd needs a teacher on this device; name a model"):
        edgetune.train(place / "student.gguf", place / "rows.jsonl", tmp_path / "o", objective=Gkd())
    write_tiny(tmp_path / "other.gguf", formats="F32", n_vocab=400)
    with pytest.raises(MismatchError, match="has another tokenizer than the student"):
        learn(place, tmp_path / "o", method={"teacher_model": str(tmp_path / "other.gguf")})
    write_lines(tmp_path / "asking.jsonl", [{"prompt": "one"}, {"prompt": "two"}])
    with pytest.raises(DataError, match=r"a row has no completion, and some steps"):
        edgetune.train(place / "student.gguf", tmp_path / "asking.jsonl", tmp_path / "o", eval="none",
                       objective=objective(place, student_share=0.0), **OPTIONS)
    with pytest.raises(UsageError, match=r"distillation-alpha is 0\.2"):
        objective(place, distillation_alpha=0.2)
