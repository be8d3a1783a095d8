"""Learning from rewards: losses and gradients against TRL's formulas, runs that resume to the same bytes in the midst
of their answers, and what is refused.
"""

import itertools
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from decoder_cases import distance, gradients_by_peft, in_parts
from durable import metrics, stopping
from gradients import Known, flat, gradient_over
from policy_cases import LETTERS, PROMPT, ROWS, answers, go, letters, log_probabilities, near, prompts
from sometimes import mostly_slow

from edgetune.data.packing import Example, collate
from edgetune.data.trees import Tree, micro_batches
from edgetune.errors import DataError, EdgetuneError, Interrupted, MismatchError, UsageError
from edgetune.objectives.agreement import Agreement
from edgetune.objectives.drawn import Rewarded
from edgetune.objectives.grpo import Grpo
from edgetune.objectives.p3o import P3o
from edgetune.objectives.policy import PolicyGradient
from edgetune.objectives.ppo import Ppo
from edgetune.objectives.reft import Reft
from edgetune.objectives.rest import Rest
from edgetune.objectives.rloo import Rloo
from edgetune.objectives.sft import Sft
from edgetune.training.answers import AnswerExamples
from edgetune.training.callbacks import RunCallbacks
from edgetune.training.config import TrainConfig
from edgetune.training.rewards import Reward
from edgetune.training.run import run
from edgetune.training.trainer import Trainer


@pytest.fixture(scope="module")
def whole(bundle, tmp_path_factory):
    """The folder of an objective's run that nobody stopped, which is made once. Read only."""
    made: dict[Rewarded, Path] = {}

    def folder(objective):
        if objective not in made:
            made[objective] = tmp_path_factory.mktemp("whole") / "out"
            go(bundle, made[objective], objective)
        return made[objective]

    return folder


def padded(values):
    return torch.nn.utils.rnn.pad_sequence(list(values), batch_first=True)


def trl_loss(objective, examples, logps, reference):
    """By TRL's own function, which is given the log-probabilities."""
    trl = pytest.importorskip("trl.trainer.grpo_trainer", exc_type=ImportError)
    mask = padded([torch.ones(len(logp)) for logp in logps])
    old = [torch.from_numpy(example.logp) for example in examples]
    inputs = {"prompt_ids": torch.zeros(len(logps), 1), "prompt_mask": torch.ones(len(logps), 1),
              "completion_ids": mask, "completion_mask": mask, "num_items_in_batch": mask.sum(),
              "advantages": torch.tensor([example.reward for example in examples]),
              "old_per_token_logps": padded(old) if old[0].numel() else None}
    if reference:
        inputs["ref_per_token_logps"] = padded(reference)
    accelerator = SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x)  # noqa: ARG005
    itself = SimpleNamespace(
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False,
        importance_sampling_level="token", beta=objective.beta, loss_type=objective.loss_type,
        epsilon_low=objective.epsilon, epsilon_high=objective.epsilon_high or objective.epsilon,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        model=SimpleNamespace(training=True), current_gradient_accumulation_steps=1, accelerator=accelerator,
        max_completion_length=objective.max_completion_length, _entropy_bonus_enabled=False,
        _metrics={"train": __import__("collections").defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (padded(logps), torch.zeros(mask.shape), None))
    loss: torch.Tensor = trl.GRPOTrainer._compute_loss(itself, None, inputs)
    return loss


def formula(objective, examples, logps, reference):
    """The papers' losses, written with torch."""
    per_token = []
    for i, (example, logp) in enumerate(zip(examples, logps, strict=True)):
        old = torch.from_numpy(example.logp) if example.logp.size else logp.detach()
        log_ratio = logp - old
        ratio = (log_ratio.sum() if isinstance(objective, Rloo) else log_ratio).exp()
        high = 1 + (objective.epsilon_high or objective.epsilon)
        value = torch.min(ratio * example.reward, ratio.clamp(1 - objective.epsilon, high) * example.reward)
        if isinstance(objective, Rloo):
            value = value / len(logp)
        if reference:
            u = reference[i] - logp
            value = value - objective.beta * (u.exp() - u - 1)
        per_token.append(-value.expand(len(logp)))
    if isinstance(objective, Rloo):
        return torch.stack([value.sum() for value in per_token]).mean()
    if isinstance(objective, P3o):
        return torch.stack([value.sum() for value in per_token]).sum() / (len(examples) / 2)
    assert isinstance(objective, Grpo)
    if objective.loss_type == "grpo":
        return torch.stack([value.mean() for value in per_token]).mean()
    if objective.loss_type == "dapo":
        return torch.cat(per_token).mean()
    return torch.cat(per_token).sum() / (len(examples) * objective.max_completion_length)


OBJECTIVES = {"grpo": Grpo(loss_type="grpo"),
              "dapo, clipped": Grpo(loss_type="dapo", num_iterations=2, epsilon_high=0.28),
              "dr_grpo with KL": Grpo(loss_type="dr_grpo", beta=0.1),
              "grpo with all": Grpo(loss_type="grpo", num_iterations=2, beta=0.04),
              "rloo": Rloo(), "rloo with all": Rloo(num_iterations=2, beta=0.05), "p3o": P3o()}


@pytest.mark.dev
@pytest.mark.parametrize(("name", "parted"), mostly_slow(itertools.product(OBJECTIVES, (False, True)), [
    *((name, False) for name in OBJECTIVES), ("grpo with all", True), ("rloo with all", True), ("p3o", True)]))
def test_gradients_equal_the_papers_and_trls(name, parted, alike):
    """Answers to a prompt share it, in one forest or behind it; transformers and autograd have each by itself."""
    objective: PolicyGradient = OBJECTIVES[name]
    case, peft = alike
    peft.zero_grad()
    examples = near(peft, answers(case, with_old=objective.num_iterations > 1))
    with torch.no_grad(), peft.disable_adapter():
        base = log_probabilities(peft, examples) if objective.beta else None
    logps = log_probabilities(peft, examples)
    loss = formula(objective, examples, logps, base)
    if isinstance(objective, Grpo):
        assert trl_loss(objective, examples, logps, base).item() == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    ours = in_parts(case, 24, PROMPT - 1, 2) if parted else case
    micros = micro_batches(examples, 24, prefix=PROMPT - 1) if parted else micro_batches(examples, 64)
    assert all(isinstance(micro, Tree) for micro in micros) == parted
    found, gradient = gradient_over(ours.decoder, objective, examples, micros, Known(examples, base) if base else None)
    assert found == pytest.approx(loss.item(), rel=1e-5, abs=1e-6)
    assert distance(gradient, flat(gradients_by_peft(case, peft))) < 1e-4


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_of_grpo_are_trls(scale):
    rewards = np.random.default_rng(0).random((5, 4)).astype(np.float32)
    given = torch.from_numpy(rewards)
    wanted = given - given.mean(1, keepdim=True)
    if scale == "group":
        wanted = wanted / (given.std(1, keepdim=True) + 1e-4)
    if scale == "batch":
        wanted = wanted / (given.std() + 1e-4)
    found = Grpo(scale_rewards=scale).worth(rewards, np.zeros((5, 4), np.bool_), 0.0)
    assert np.allclose(found, wanted.numpy(), atol=1e-6)


@pytest.mark.parametrize("normalized", [False, True])
def test_advantages_of_rloo_leave_the_answer_out(normalized):
    rewards = np.random.default_rng(1).random((5, 4)).astype(np.float32)
    wanted = np.array([[row[i] - np.delete(row, i).mean() for i in range(4)] for row in rewards])
    if normalized:
        wanted = (wanted - wanted.mean()) / (wanted.std(ddof=1) + 1e-4)
    found = Rloo(normalize_advantages=normalized).worth(rewards, np.zeros((5, 4), np.bool_), 0.0)
    assert np.allclose(found, wanted, atol=1e-5)


def test_rest_keeps_the_best_different_answers():
    rewards = np.array([[1.0, 2.0, 2.0, 0.5], [0.1, 0.2, 0.3, 0.4]], np.float32)
    repeated = np.array([[False, False, True, False], [False] * 4])
    assert Rest(keep=2).worth(rewards, repeated, 0.0).tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]
    assert Rest(keep=1).worth(rewards, repeated, 0.0).tolist() == [[0, 1, 0, 0], [0, 0, 0, 0]]
    assert Rest(keep=1, min_reward=0.4).worth(rewards, repeated, 0.0).tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]
    assert Rest(keep=2, weigh=True).worth(rewards, repeated, 0.0).tolist() == [[1, 2, 0, 0], [0, 0, 0, 0]]
    shares = np.array([[0.75, 0, 0.75, 0.75], [0.5, 0, 0.5, 0]], np.float32)
    assert Agreement().worth(shares, repeated, 0.0).tolist() == [[0.75, 0, 0, 0], [0, 0, 0, 0]]


def test_unless_the_objective_says_otherwise_an_answer_is_worth_its_reward():
    """And is held to the reference by the objective alone."""
    rewards = np.random.default_rng(2).random((5, 4)).astype(np.float32)
    assert Ppo().worth(rewards, np.zeros((5, 4), np.bool_), 0.0).tolist() == rewards.tolist()
    assert Ppo().held((5, 4), 0.0).tolist() == np.zeros((5, 4)).tolist()


def test_what_is_kept_is_imitated_by_its_weight():
    """L = -(1/N) sum r log p over the N tokens that are kept."""
    rng = np.random.default_rng(4)
    examples = [Example(np.arange(n, dtype=np.int32), np.r_[0, np.ones(n - 1)].astype(np.float32), reward=reward)
                for n, reward in ((4, 0.75), (6, 0.0), (3, 1.0))]
    logp = rng.normal(-2, 1, 10).astype(np.float32)
    signal = Agreement().weights(logp, collate(examples))
    weights = np.repeat([0.75, 0, 1], [3, 5, 2])
    assert signal.a == pytest.approx(weights)
    assert signal.loss == pytest.approx(-(weights * logp).sum(), rel=1e-5)
    assert Agreement().count(examples) == 5


def test_long_answers_lose_what_dapo_takes_from_them():
    """Equation 13 of the paper, with answers of 100 tokens at most and a band of 20."""
    grpo = Grpo(max_completion_length=100, overlong_tokens=20)
    tokens = np.array([[50, 80, 90, 100]])
    assert grpo.penalized(np.ones((1, 4), np.float32), tokens).tolist() == [[1, 1, 0.5, 0]]
    with pytest.raises(UsageError, match="overlong-tokens is 200, and an answer has at most 100"):
        Grpo(max_completion_length=100, overlong_tokens=200).check()


# ---- runs ------------------------------------------------------------------------------------------------------------

RUNS = {"one update": Grpo(max_completion_length=9),
        "several": Grpo(max_completion_length=9, num_iterations=2, steps_per_generation=2),
        "with KL": Grpo(max_completion_length=9, beta=0.1, num_iterations=2),
        "rest": Rest(max_completion_length=9, min_reward=0.1),
        "dynamic": Grpo(max_completion_length=9, dynamic_sampling=True),
        "reft": Reft(max_completion_length=9, warmup_epochs=0.75, num_iterations=2)}


@pytest.mark.dev
@pytest.mark.parametrize(("name", "stops"), mostly_slow(itertools.product(RUNS, (7, 61, 130)), [
    *((name, 61) for name in RUNS), ("several", 7), ("several", 130)]))
def test_stopped_anywhere_it_resumes_to_the_same_bytes(bundle, name, stops, tmp_path, whole):
    """Also in the midst of answers, and between two updates with the same ones."""
    objective = RUNS[name]
    folders = (whole(objective), tmp_path / "out")
    try:
        go(bundle, tmp_path / "out", objective, callbacks=stopping(stops))
    except Interrupted:
        go(bundle, tmp_path / "out", objective, resume=True)
    adapters = [(folder / "adapter.gguf").read_bytes() for folder in folders]
    assert adapters[0] == adapters[1]
    runs = (metrics(folder) for folder in folders)
    told = [[e.get("metrics") for e in events if e["event"] == "step"] for events in runs]
    assert told[0] == told[1]


@pytest.mark.dev
def test_the_reference_is_what_training_starts_from(bundle, tmp_path, whole):
    """At the first step nothing is far from it; a resumed run reads it again, and refuses another in its place."""
    shutil.copytree(whole(Grpo(max_completion_length=9)), tmp_path / "start")
    objective = Grpo(max_completion_length=9, beta=0.1)
    go(bundle, tmp_path / "whole", objective, start=tmp_path / "start")
    with pytest.raises(Interrupted):
        go(bundle, tmp_path / "out", objective, start=tmp_path / "start", callbacks=stopping(100))
    adapter = tmp_path / "start" / "adapter.gguf"
    kept = adapter.read_bytes()
    adapter.write_bytes((tmp_path / "whole" / "adapter.gguf").read_bytes())
    with pytest.raises(MismatchError, match="is not the adapter any more that the run began from"):
        go(bundle, tmp_path / "out", objective, resume=True)
    adapter.write_bytes(kept)
    go(bundle, tmp_path / "out", objective, resume=True)
    files = [tmp_path / name / "adapter.gguf" for name in ("whole", "out")]
    assert files[0].read_bytes() == files[1].read_bytes()
    events = metrics(tmp_path / "whole")
    kl = [e["metrics"]["kl"] for e in events if e["event"] == "step"]
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert kl[-1] > 1e-4


@pytest.mark.dev
@pytest.mark.learning
def test_a_run_raises_the_reward(bundle, tmp_path):
    objective = Grpo(max_completion_length=9, num_generations=8, temperature=1.0)
    events: list[dict[str, Any]] = []
    config = TrainConfig(**{**LETTERS, "steps": 30, "batch_size": 8})
    record = run(bundle, prompts(bundle, objective), tmp_path / "out", config, objective=objective, rewards=letters,
                 callbacks=RunCallbacks(on_event=events.append), held_out=prompts(bundle, objective, ROWS[:4]))
    (expected,) = [e for e in events if e["event"] == "expect"]
    assert (expected["prompts"], expected["samples"]) == (8, 8)
    rewards = [e["metrics"]["reward"] for e in events if e["event"] == "step"]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.02
    assert record["objective"]["name"] == "grpo"
    assert "reward" in record["verdict"]["sentence"]
    metrics = next(e["metrics"] for e in events if e["event"] == "step")
    assert metrics["rewards/twice/mean"] == pytest.approx(2 * metrics["rewards/letters/mean"])
    assert set(metrics) >= {"reward", "reward_std", "frac_reward_zero_std", "completions/mean_length",
                            "completions/clipped_ratio", "entropy"}
    held = [e for e in events if e["event"] == "eval"]
    assert held[0]["loss"] == pytest.approx(-held[0]["metrics"]["reward"])


def test_reft_imitates_first(bundle):
    """The same step as SFT on the same rows, to the same adapter; a row without an answer is refused."""
    common = {**LETTERS, "steps": 1}
    adapters = []
    for objective in (Reft(max_completion_length=9), Sft()):
        trainer = Trainer(bundle, **common, objective=objective, rewards=letters)
        trainer.add([{name: row[name] for name in ("prompt", "completion")} for row in ROWS])
        loss = trainer.step().loss
        adapters.append((loss, trainer.arena.flat("lora").copy()))
    assert adapters[0][0] == pytest.approx(adapters[1][0], rel=1e-6)
    assert distance(adapters[0][1], adapters[1][1]) < 1e-5
    trainer = Trainer(bundle, **common, objective=Reft(), rewards=letters)
    trainer.add([{"prompt": "set the light"}])
    with pytest.raises(DataError, match="a row has no completion to imitate"):
        trainer.step()


def test_answers_do_not_depend_on_how_many_are_in_progress(bundle):
    """With a budget that leaves room for fewer of them."""
    found = []
    for live in (8, 3):
        trainer = Trainer(bundle, **LETTERS, objective=Grpo(max_completion_length=9), rewards=letters)
        trainer.add(ROWS)
        assert isinstance(trainer.source, AnswerExamples)
        trainer.source.roller.plan = replace(trainer.source.roller.plan, live=live)
        examples, _ = trainer.source.roller.of_step(1, trainer.batch, trainer.examples, trainer.steps_per_epoch)
        found.append([one.tokens.tolist() for one in examples])
    assert found[0] == found[1]


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "what"), [
    ("text", "the row is a JSON string, not an object"),
    ({"completion": "a"}, r"the row asks nothing \(its keys: completion\)"),
    ({"prompt": "a", "messages": []}, "fits two shapes"),
    ({"prompt": "  "}, "the prompt is empty"),
    ({"prompt": []}, "prompt is empty"),
    ({"prompt": 3}, "prompt is a JSON number"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
     "messages ends with a message of the assistant"),
    ({"messages": [{"role": "robot", "content": "a"}]}, r"messages\[0\] has the role 'robot'"),
])
def test_rows_that_do_not_ask(bundle, row, what):
    with pytest.raises(DataError, match=what):
        prompts(bundle, Grpo(), [row])


@pytest.mark.dev
def test_rewards_that_teach_nothing_are_refused_before_the_first_step(bundle, tmp_path):
    objective = Grpo(max_completion_length=9)
    for reward, what in ((0.0, "all answers to a prompt have the same reward, 0 in the mean"),
                         (1.0, "all right already")):
        with pytest.raises(UsageError, match=what):
            run(bundle, prompts(bundle, objective), tmp_path / "out", TrainConfig(**LETTERS), objective=objective,
                rewards=lambda found, reward=reward: [Reward(reward) for _ in found])
        assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="none is worth learning, with a mean reward of"):
        run(bundle, prompts(bundle, objective), tmp_path / "out", TrainConfig(**LETTERS),
            objective=Rest(max_completion_length=9), rewards=letters)


def test_rewards_that_are_none_end_the_run_in_a_sentence(bundle):
    with pytest.raises(UsageError, match="grpo needs something that rewards answers"):
        Trainer(bundle, **LETTERS, objective=Grpo())
    for rewards, what in ((lambda _: [], "8 answers were given 0 rewards"),
                          (lambda found: [Reward(float("nan"))] * len(found), "the reward of an answer is nan")):
        trainer = Trainer(bundle, **LETTERS, objective=Grpo(max_completion_length=9), rewards=rewards)
        trainer.add(ROWS)
        before = trainer.arena.flat("lora").copy()
        with pytest.raises(EdgetuneError, match=what):
            trainer.step()
        assert trainer.steps_done == 0
        assert np.array_equal(trainer.arena.flat("lora"), before)
