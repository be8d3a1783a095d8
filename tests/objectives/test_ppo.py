"""PPO with a value head on the trunk: loss and gradients against autograd, advantages against a plain loop, resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from decoder_cases import Case, adapted, distance, hf_projection, lora_parameters, make_case, make_decoder, row_order
from policy_cases import PROMPT, answers, go, log_probabilities

import edgetune
from edgetune.adapters.valued import ValuedLora
from edgetune.data.packing import Example
from edgetune.data.trees import micro_batches
from edgetune.errors import Interrupted
from edgetune.objectives.ppo import Ppo
from edgetune.training.passes import learn

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # by peft
PPO = Ppo(kl_coef=0.1, beta=0.02, vf_coef=0.3, gamma=0.97, lam=0.9)


def with_value(case: Case) -> Case:
    """The case with a value head, which is not 0."""
    run = case.decoder.run
    width = case.decoder.shape.d_model
    family = ValuedLora(**run.family.options(), width=width)
    decoder = make_decoder(case.decoder.model, replace(run, family=family))
    decoder.adapter.load(case.pairs, "pairs")
    decoder.arena.flat("lora")[-width - 1:] = np.random.default_rng(4).normal(0, 0.1, width + 1)
    return replace(case, decoder=decoder)


def plain_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Backwards, as in every textbook."""
    found = []
    later = 0.0
    following = 0.0
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        later = reward + gamma * following - value + gamma * lam * later
        following = value
        found.append(later)
    return found[::-1]


def test_advantages_are_a_plain_gae() -> None:
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=9)
    values = rng.normal(size=9)
    found = PPO.generalized(rewards, values)
    assert found.tolist() == pytest.approx(plain_gae(rewards.tolist(), values.tolist(), 0.97, 0.9))
    assert replace(PPO, lam=1.0, gamma=1.0).generalized(rewards, values)[0] == pytest.approx(rewards.sum() - values[0])


def formula(examples: list[Example], logps: list[torch.Tensor], values: list[torch.Tensor],
            reference: list[torch.Tensor]) -> torch.Tensor:
    losses = []
    for example, new, value, ref in zip(examples, logps, values, reference, strict=True):
        old = torch.from_numpy(example.logp) if example.logp.size else new.detach()
        before = torch.from_numpy(example.values) if example.values.size else value.detach()
        rewards = -PPO.kl_coef * (old - ref)
        rewards[-1] += example.reward
        advantages = torch.tensor(plain_gae(rewards.tolist(), before.tolist(), PPO.gamma, PPO.lam))
        returns = advantages + before
        ratio = (new - old).exp()
        policy = -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
        held = torch.max(torch.min(value, before + PPO.cliprange_value), before - PPO.cliprange_value)
        of_value = torch.max((value - returns) ** 2, (held - returns) ** 2) / 2
        u = ref - new
        losses.append(policy + PPO.vf_coef * of_value + PPO.beta * (u.exp() - u - 1))
    return torch.cat(losses).mean()


@pytest.mark.parametrize("again", [False, True], ids=["first update", "later update"])
def test_gradients_equal_autograd(again: bool, tmp_path: Path) -> None:
    """Of the adapter, through the value too, and of the value head."""
    case = with_value(make_case("qwen3", tmp_path, kept=2))
    peft = adapted(case)
    width = case.decoder.shape.d_model
    head = torch.from_numpy(case.decoder.arena.flat("lora")[-width - 1:].copy()).requires_grad_()
    examples = [replace(one, group=0) for one in answers(case, with_old=False)]
    with torch.no_grad(), peft.disable_adapter():
        base = log_probabilities(peft, examples)
    logps = log_probabilities(peft, examples)
    values = []
    for example in examples:
        out = peft(torch.from_numpy(example.tokens).long()[None], use_cache=False, output_hidden_states=True)
        values.append(out.hidden_states[-1][0, PROMPT - 1:-1] @ head[:-1] + head[-1])
    if again:
        rng = np.random.default_rng(6)
        examples = [replace(one, logp=(logp.detach().numpy() + rng.normal(0, 0.2, len(logp))).astype(np.float32),
                            values=(value.detach().numpy() + rng.normal(0, 0.3, len(logp))).astype(np.float32))
                    for one, logp, value in zip(examples, logps, values, strict=True)]
    loss = formula(examples, logps, values, base)
    loss.backward()
    wanted = []
    for key in sorted(case.pairs):
        a, b = (p.grad.numpy() for p in lora_parameters(peft, key))
        order = row_order(hf_projection(key), b.shape[0], case.model)
        wanted += [a.ravel(), (b if order is None else b[order]).ravel()]
    decoder = case.decoder
    decoder.arena.flat("dlora").fill(0.0)
    micros = [*micro_batches(examples[:4], 64), *micro_batches(examples[4:], 64)]
    n = PPO.count(examples)
    reference = Known(examples, base)
    found = sum(learn(decoder, PPO, micro, n, reference).loss for micro in micros) / n
    assert found == pytest.approx(loss.item(), rel=1e-5)
    pairs = decoder.adapter.adapted
    flat = np.concatenate([part.ravel() for key in sorted(pairs) for part in (pairs[key].da, pairs[key].db)])
    assert distance(flat, np.concatenate(wanted)) < 1e-4
    assert head.grad is not None
    assert distance(decoder.arena.flat("dlora")[-width - 1:], head.grad.numpy()) < 1e-4


class Known:
    """log p by the base, as transformers has it, by the answer's tokens."""

    def __init__(self, examples: list[Example], base: list[torch.Tensor]) -> None:
        self.known = {one.tokens.tobytes(): logp.numpy() for one, logp in zip(examples, base, strict=True)}

    def add_to(self, batch):  # type: ignore[no-untyped-def]
        return replace(batch, reference=np.concatenate([self.known[one.tokens.tobytes()] for one in batch.examples]))


@pytest.mark.parametrize("stops", [40, 90])
def test_stopped_between_updates_it_resumes_to_the_same_bytes(bundle: edgetune.Bundle, stops: int,
                                                              tmp_path: Path) -> None:
    objective = Ppo(max_completion_length=9, num_generations=2, num_iterations=3)
    go(bundle, tmp_path / "whole", objective)
    asked = iter([False] * stops)
    with pytest.raises(Interrupted):
        go(bundle, tmp_path / "out", objective, should_stop=lambda: next(asked, True))
    go(bundle, tmp_path / "out", objective, resume=True)
    files = [tmp_path / name / "adapter.gguf" for name in ("whole", "out")]
    assert files[0].read_bytes() == files[1].read_bytes()
