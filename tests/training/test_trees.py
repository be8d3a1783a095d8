"""Training on trees in parts: what it learns is what the rows teach one by one, it resumes to the same bytes, and the
process takes no more memory than was planned.
"""

import json
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from durable import check_resumes
from tiny import write_tiny

from edgetune.data.dataset import Dataset
from edgetune.data.lengths import lengths_of
from edgetune.data.packing import Example
from edgetune.training.config import TrainConfig
from edgetune.training.run import run
from edgetune.training.trainer import Trainer

CONFIG = TrainConfig(rank=4, lr=2e-2, batch_size=8, max_length=64, threads=2, steps=4, micro_batch=64, dropout=0.1,
                     checkpoint_every="0.000001")


def behind_an_instruction(count, group=0):
    """Rows of 12 tokens, which count upwards and are learned, behind the same 40."""
    weights = np.r_[np.zeros(40), np.ones(12)].astype(np.float32)
    return [Example(np.r_[np.arange(40), np.arange(i, i + 12)].astype(np.int32), weights, i // 4 * group)
            for i in range(4, count + 4)]


@pytest.mark.parametrize("group", [0, 1], ids=["rows", "groups of four rows"])
def test_the_loss_is_that_of_rows_alone(bundle, group):
    config = replace(CONFIG, dropout=0.0, precision="exact")
    rows = behind_an_instruction(16, group)
    apart = replace(config, share_prefixes="off", micro_batch=512)
    trainers = [Trainer(bundle, config, lengths=lengths_of(rows)),
                Trainer(bundle, apart, lengths=lengths_of(rows, share=False))]
    losses = []
    for trainer in trainers:
        trainer.add_examples(rows)
        losses.append([*(step.loss for step in trainer.train()), *trainer.measure(rows).rows, trainer.loss(rows)[0]])
    assert trainers[0].plan.run.prefix == 39
    assert trainers[1].plan.run.prefix == 0
    assert trainers[0].computed_share() < 0.5
    assert losses[0][:4] == pytest.approx(losses[1][:4], rel=1e-4)
    assert losses[0][-1] == pytest.approx(losses[1][-1], rel=1e-3)
    assert losses[1][3] < losses[1][0]


@pytest.mark.dev
@pytest.mark.parametrize("recompute", ["auto", "block"])
def test_it_resumes_to_the_same_bytes(bundle, tmp_path, recompute):
    """Stopped within a tree, and between two steps; with a mask for each part. Where blocks are computed again, the
    inputs of those of the prefix are kept, as there is room.
    """
    config = replace(CONFIG, recompute=recompute)
    rows = Dataset(behind_an_instruction(16), [""] * 16, "text", 0, 0, "sha256:rows")
    held_out = replace(rows, digest="sha256:other")
    whole = check_resumes(partial(run, bundle, rows, config=config, held_out=held_out), tmp_path, 33, 60)
    plan = json.loads((whole / "run.json").read_text())["plan"]
    assert (plan["prefix"], plan["prefix_inputs"]) == (39, recompute == "block")


IN_A_PROCESS = """
import json, sys
import numpy as np
from edgetune.data.lengths import lengths_of
from edgetune.data.packing import Example
from edgetune.machine.device import peak_rss
from edgetune.training.trainer import Trainer
path, budget = sys.argv[1:]
dice = np.random.default_rng(0)
prompt = dice.integers(0, 400, 150)
weights = np.r_[np.zeros(150), np.ones(70)].astype(np.float32)
rows = [Example(np.r_[prompt, dice.integers(0, 400, 70)].astype(np.int32), weights, 1) for _ in range(8)]
trainer = Trainer(path, lengths=lengths_of(rows), batch_size=1, steps=2, threads=2, memory=budget)
trainer.add_examples(rows)
trainer.train()
trainer.loss(rows)
print(json.dumps([trainer.plan.peak_bytes, peak_rss(), trainer.plan.run.prefix, trainer.plan.run.max_tokens]))
"""


@pytest.mark.dev
def test_a_process_takes_what_was_planned(tmp_path):
    """Eight answers to a prompt in the least memory, which is that of the prompt and the longest answer."""
    path = write_tiny(tmp_path / "model.gguf", formats="Q8_0", d_model=256, d_ff=1024, n_blocks=4)

    def train(budget):
        return subprocess.run([sys.executable, "-c", IN_A_PROCESS, str(path), budget], text=True, capture_output=True)

    least = re.search(r"give it --memory (\d+M)", train("1M").stderr)
    assert least
    planned, measured, prefix, max_tokens = json.loads(train(least[1]).stdout)
    assert measured <= planned
    assert (prefix, max_tokens) == (149, 220)
