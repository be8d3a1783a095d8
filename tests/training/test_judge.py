"""The base as a judge within training: what llama.cpp says of the same conversations."""


import pytest

import edgetune
from edgetune.errors import UnsupportedError
from edgetune.evaluation.graders.llama_judge import LlamaJudge
from edgetune.objectives.grpo import Grpo
from edgetune.training.rewards import EngineJudge, Reward
from edgetune.training.trainer import Trainer

LABELS = ["0", "1", "2"]
ASKED = [[{"role": "user", "content": text}] for text in ("turn on lamp 1", "off", "turn on lamp 2 " * 40)]


@pytest.mark.parametrize("micro_batch", [1024, 128], ids=["whole", "behind a prefix"])
def test_probabilities_are_those_of_llama_cpp(tiny_llama, micro_batch):
    """Whatever the adapter has become; a conversation that does not fit has none."""
    trainer = Trainer(tiny_llama, objective=Grpo(max_completion_length=8), rewards=lambda a: [Reward(0.0)] * len(a),
                      max_length=96, precision="exact", micro_batch=micro_batch, threads=2)
    trainer.arena.flat("lora")[:] = 0.3
    judge = EngineJudge(trainer.decoder, trainer.plan.run, trainer.tokenizer)
    found = judge.label_probabilities(ASKED, LABELS)
    assert found[2] is None
    with edgetune.Served(tiny_llama, context=512) as served:
        wanted = LlamaJudge(served, "self").label_probabilities(ASKED[:2], LABELS)
    for ours, theirs in zip(found[:2], wanted, strict=True):
        assert ours is not None
        assert theirs is not None
        assert sum(ours) == pytest.approx(1)
        assert ours == pytest.approx(theirs, abs=2e-3)  # llama.cpp computes on int8 activations
    with pytest.raises(UnsupportedError, match="no token for each of a, a"):
        judge.label_probabilities(ASKED[:1], ["a", "a"])
