"""Models with states beside keys, answered by the trainer's engine: as llama.cpp answers with the same adapter, and as
its own training sees the same tokens; the memory that states take.
"""

import numpy as np
import pytest
from durable import metrics
from policy_cases import go
from random_adapters import is_decided, random_updates, tokens_of
from tiny import write_tiny

from edgetune.adapters.store import read_artifact, save_gguf
from edgetune.formats.bundle import open_bundle
from edgetune.formats.gguf import open_gguf
from edgetune.formats.shape import read_shape
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.models.structure import DecoderStructure
from edgetune.objectives.grpo import Grpo
from edgetune.serving.llama import LlamaModel
from edgetune.serving.rollouts.plan import AnswerPlan
from edgetune.serving.rollouts.texts import Engine, TokenPrompts, answers

NAMES = ("lfm2", "lfm2moe", "qwen35", "granitehybrid", "granitehybrid with experts")
EXPERTS = {"experts": (5, 2), "d_ff": 64, "d_shared": 96}
ANSWER = 12


@pytest.fixture(params=NAMES)
def model(request, tmp_path):
    name, _, is_mixture = request.param.partition(" with ")
    return write_tiny(tmp_path / "tiny.gguf", name, **(EXPERTS if is_mixture else {}))


@pytest.fixture
def adapter(model, tmp_path):
    base = open_gguf(model)
    names = [f"blk.{i}.{name}" for i in range(3) for name in read_shape(base).linear_shapes(i)]
    save_gguf(tmp_path / "a.gguf", random_updates(base, names, size=0.3), base)
    return tmp_path / "a.gguf"


def prompts_of(served):
    """Prompts with no near choice; some begin others, some begin alike, one comes twice, one is a single token."""
    found = []
    for seed in range(3):
        stem = tokens_of(140, seed)
        begun = [stem, stem[:64], stem[:128], [*stem[:64], *tokens_of(9, 2)], stem, [*stem, *tokens_of(5, 3)], stem[:1]]
        found += [prompt for prompt in begun if is_decided(served, prompt, ANSWER, 0.01)]
    return found


@pytest.mark.dev
def test_greedy_answers_and_their_probabilities_are_those_of_llama_cpp(model, adapter):
    gguf = open_gguf(model)
    with LlamaModel(model, context=512, threads=1) as served:
        served.load_adapter(adapter, "a")
        served.use("a")
        prompts = prompts_of(served)
        assert len(prompts) > 3
        for parallel in (len(prompts), 2):
            engine = Engine(2**40, "all", parallel=parallel, precision="exact", threads=1, backend="cpu")
            asked = TokenPrompts(prompts, [ANSWER] * len(prompts), ends=False)
            found = {one.rollout.prompt: one.rollout
                     for one in answers(gguf, Tokenizer(gguf), read_artifact(adapter, gguf), asked, engine)}
            for number, prompt in enumerate(prompts):
                rollout = found[number]
                logits = served.logits([*prompt, *rollout.tokens.tolist()])[len(prompt) - 1:-1].astype(np.float64)
                assert rollout.tokens.tolist() == logits.argmax(-1).tolist()
                logp = logits.max(-1) - np.log(np.exp(logits).sum(-1))
                np.testing.assert_allclose(rollout.logp, logp, atol=2e-3)


def test_grpo_learns_from_its_own_answers(tmp_path):
    bundle = open_bundle(write_tiny(tmp_path / "tiny.gguf", "lfm2"))
    record = go(bundle, tmp_path / "out", Grpo(num_generations=3, max_completion_length=8), steps=4)
    assert record["steps"] == 4
    assert metrics(tmp_path / "out")[-1]["metrics"].keys() >= {"reward", "rewards/letters/mean"}


def test_a_plan_has_a_state_of_each_answer_and_of_each_prompt_that_waits(tmp_path):
    bundle = open_bundle(write_tiny(tmp_path / "tiny.gguf", "lfm2"))
    cache = DecoderStructure(read_shape(bundle.gguf)).cache
    assert cache
    assert cache.state_bytes == 2 * (2 * 2 * read_shape(bundle.gguf).d_model) * 4  # two blocks, b and x of two tokens
    plan = AnswerPlan(live=6, samples=4, prompt_tokens=100, answer_tokens=50)
    found = {buffer.name: buffer for buffer in plan.buffers(cache, "float32")}
    assert found["cache_conv"].nbytes == (6 + 2) * cache.state_bytes
    assert found["cache_keys"].shape[0] == 1  # of three blocks
