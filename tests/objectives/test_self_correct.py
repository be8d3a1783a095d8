"""Self-correction learns what direct preference optimization learns from two-turn pairs that are written by hand."""

import json

import numpy as np
import pytest
from commands import run
from counting import OPTIONS
from json_lines import write_lines
from tiny import write_tiny

from edgetune.data.attempts import REQUEST
from edgetune.objectives.base import make_objective
from edgetune.training.trainer import Trainer

LENGTH = 256  # the tiny vocabulary parts the request into letters
ROWS = [{"prompt": f"set the light {i}", "completion": f"light on {i}", "attempts": [f"the turn {i}", f"on {i}"],
         "labels": [False, True]} for i in range(8)]


def by_hand(row):
    wrong, right = row["attempts"]
    return [{"prompt": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": first},
                        {"role": "user", "content": REQUEST}],
             "chosen": [{"role": "assistant", "content": chosen}],
             "rejected": [{"role": "assistant", "content": wrong}]}
            for first, chosen in ((wrong, row["completion"]), (right, right))]


PAIRS = [pair for row in ROWS for pair in by_hand(row)]


def trained(bundle, objective, rows):
    trainer = Trainer(bundle, **{**OPTIONS, "max_length": LENGTH, "steps": 3}, objective=objective)
    trainer.add(rows)
    results = trainer.train()
    return [result.loss for result in results], results[-1].metrics, trainer.arena.flat("lora").copy()


@pytest.mark.dev
@pytest.mark.parametrize("options", [{}, {"loss_type": "ipo", "beta": 0.5, "sft_weight": 0.2}], ids=["default", "ipo"])
def test_it_is_dpo_on_two_turns(bundle, options):
    losses, metrics, adapter = trained(bundle, make_objective("self-correct", options), ROWS)
    wanted, same_metrics, same_adapter = trained(bundle, make_objective("dpo", options), PAIRS)
    assert losses == wanted
    assert metrics == same_metrics
    assert np.abs(adapter).max() > 0
    assert np.array_equal(adapter, same_adapter)


@pytest.mark.dev
@pytest.mark.learning
def test_train_learns_to_correct_and_to_keep(tmp_path):
    """As a user types it; the pairs of questions that were held out are preferred more than before."""
    model = write_tiny(tmp_path / "model.gguf", formats="Q8_0")
    for name, rows in (("attempts", ROWS * 2), ("bad", [*ROWS, {**ROWS[0], "labels": [True, True]}])):
        write_lines(tmp_path / f"{name}.jsonl", rows)
    write_lines(tmp_path / "pairs.jsonl", PAIRS)
    command = ["train", model, tmp_path / "attempts.jsonl", "-o", tmp_path / "adapter", "--method", "self-correct",
               "--threads", 1, "--max-length", LENGTH]
    made = json.loads(run(*command, "--beta", 1, "--lr", 0.02, "--steps", 12, "--precision", "exact", "--json"))
    assert made["objective"]["name"] == "self-correct"
    before = made["held_out"]["loss_before"]
    assert before == pytest.approx(np.log(2), rel=1e-4)
    assert made["held_out"]["loss_after"] < before
    judged = json.loads(run("eval", model, tmp_path / "pairs.jsonl", "--adapter", tmp_path / "adapter", "--threads", 1,
                            "--engine", "native", "--max-length", LENGTH, "--json"))
    assert (judged["pairs"], judged["reward_accuracy"]) == (16, 1.0)
    refused = run("train", model, tmp_path / "bad.jsonl", "-o", tmp_path / "none", "--method", "self-correct", code=1)
    assert "line 9 of bad.jsonl: no attempt is wrong" in " ".join(refused.split())
