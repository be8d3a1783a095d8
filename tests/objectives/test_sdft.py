"""Self-distillation on the model's own answers: what is learned from them is what self-distill learns from the same
tokens, the teacher is what training starts from or what learns, and runs resume to the same bytes.
"""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from commands import run as command
from decoder_cases import distance
from durable import check_resumes, metrics
from json_lines import write_lines
from policy_cases import LETTERS

from edgetune.data.dataset import load_rows
from edgetune.data.packing import collate
from edgetune.data.privileged import NOTE
from edgetune.errors import DataError
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.objectives import base
from edgetune.objectives.sdft import Sdft
from edgetune.objectives.self_distill import SelfDistill
from edgetune.training.answers import AnswerExamples
from edgetune.training.config import TrainConfig
from edgetune.training.gradient import Gradient
from edgetune.training.reference import Reference
from edgetune.training.run import run
from edgetune.training.trainer import Trainer

ROWS = [{"prompt": f"set the light {i}", "privileged_context": f"the light {i} is {'on' if i % 2 else 'off'}"}
        for i in range(8)]
LENGTH = 192  # the tiny vocabulary parts the note into letters
OPTIONS = {**LETTERS, "max_length": LENGTH}
OWN = Sdft(max_completion_length=9, distillation_topk=5, num_generations=2)


def data(bundle, rows=ROWS):
    return load_rows(rows, Tokenizer(bundle.gguf.path), max_length=LENGTH, parser=OWN.rows)


def trainer(bundle, objective):
    made = Trainer(bundle, **OPTIONS, objective=objective)
    made.add(ROWS)
    return made


def test_the_teacher_reads_the_question_with_its_context(bundle):
    """The same tokens as those of a conversation whose question has the note behind it; a completion is ignored."""
    tokenizer = Tokenizer(bundle.gguf.path)
    row = ROWS[3]
    (found,) = data(bundle, [{**row, "completion": "never"}]).examples
    for tokens, asked in ((found.tokens, row["prompt"]),
                          (found.prompts[0], f"{row['prompt']}\n\n{NOTE.format(row['privileged_context'])}")):
        text = tokenizer.render([{"role": "user", "content": asked}], None, add_generation_prompt=True)
        assert tokens.tolist() == tokenizer.encode(text, bos=True)
    assert not found.supervised
    for wrong, what in (({"prompt": "a"}, "the row has no privileged_context"),
                        ({**row, "privileged_context": " "}, "the privileged_context is empty"),
                        ({**row, "prompt": ""}, "the prompt is empty")):
        with pytest.raises(DataError, match=what):
            data(bundle, [wrong])


@pytest.mark.parametrize("kind", ["base", "live"])
def test_a_step_is_that_of_self_distill_on_the_same_tokens(bundle, kind):
    """After steps that moved the adapter. Of teachers the base is read with the adapter off, what learns with it."""
    made = trainer(bundle, replace(OWN, teacher_model_kind=kind))
    for _ in range(3):
        made.step()
    assert isinstance(made.source, AnswerExamples)
    drawn, _ = made.source.roller.of_step(4, made.batch, made.examples, made.steps_per_epoch)
    assert len(drawn) == 4
    assert all(one.prompts and 1 <= one.supervised <= 9 for one in drawn)
    given = SelfDistill(distillation_topk=5)
    reference = Reference(made.decoder, top=5)
    reference.is_base = kind == "base"
    for one in drawn:
        reference.add(one)
    gradient = made.arena.flat("dlora")
    gradient.fill(0.0)
    n = given.count(drawn)
    wanted = Gradient(made.decoder, given, n, reference).add(collate(drawn)).loss / n
    by_hand = gradient.copy()
    result = made.step()
    assert result.loss == pytest.approx(wanted, rel=1e-5)
    assert distance(gradient * max(1.0, result.grad_norm), by_hand) < 1e-4  # it was clipped to a norm of 1
    assert set(result.metrics) >= {"divergence", "teacher_agreement", "completions/mean_length", "entropy"}
    assert "reward" not in result.metrics


@pytest.mark.parametrize("objective", [replace(OWN, num_iterations=2, steps_per_generation=2),
                                       replace(OWN, teacher_model_kind="live")], ids=["again", "live"])
def test_stopped_anywhere_it_resumes_to_the_same_bytes(bundle, objective, tmp_path):
    check_resumes(partial(run, bundle, data(bundle), config=TrainConfig(**OPTIONS), objective=objective), tmp_path,
                  40, 120)


@pytest.mark.learning
def test_the_student_comes_nearer_to_the_teacher(bundle, tmp_path):
    """As a user types it; held-out questions are answered as they are measured."""
    rows = write_lines(tmp_path / "rows.jsonl", ROWS * 3)
    made = json.loads(command("train", bundle.path, rows, "-o", tmp_path / "out", "--method", "sdft", "--threads", 1,
                              "--max-length", LENGTH, "--max-completion-length", 9, "--distillation-topk", 5, "--rank",
                              4, "--lr", 0.02, "--steps", 30, "--batch-size", 4, "--seed", 1, "--json"))
    assert made["measure"] == "loss"
    assert made["held_out"]["loss_after"] < 0.9 * made["held_out"]["loss_before"]
    events = metrics(tmp_path / "out")
    assert not [event for event in events if event["event"] == "expect"]
    assert base.read_objective(made["objective"]) == Sdft(max_completion_length=9, distillation_topk=5)


def test_what_the_teacher_reads_is_planned(bundle):
    """The note is longer than the question, and the answer follows both."""
    found = data(bundle).examples
    lengths = OWN.lengths(found, max_length=LENGTH, share=True)
    assert lengths.aside == max(one.prompts[0].size for one in found) + 9
    assert lengths.prompt == max(one.prompts[0].size for one in found)
    assert lengths.known > 0
    with pytest.raises(DataError, match=r"a prompt of \d+ tokens leaves no room for an answer within"):
        OWN.lengths(found, max_length=found[0].prompts[0].size, share=True)
    assert np.isfinite(lengths.computed_share(2, 512))
