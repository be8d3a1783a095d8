"""PPO with a value head on the trunk: loss and gradients against autograd, advantages against a plain loop, resume."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from decoder_cases import distance, gradients_by_peft, in_parts, make_decoder
from durable import check_resumes, stopping
from gradients import Known, flat, gradient_over
from policy_cases import PROMPT, answers, go, log_probabilities

import edgetune
from edgetune.adapters.base import Artifact
from edgetune.adapters.heads import VALUE, VOCABULARY
from edgetune.adapters.low_rank import LoraFamily
from edgetune.data.trees import Tree, micro_batches
from edgetune.errors import Interrupted
from edgetune.objectives.ppo import Ppo, whitened
from edgetune.training import checkpoint
from edgetune.training.rewards import Reward

PPO = Ppo(kl_coef=0.1, beta=0.02, vf_coef=0.3, gamma=0.97, lam=0.9)
PLAIN = replace(PPO, whiten_advantages=False)


def with_value(case):
    """The case with a value head, which is not 0."""
    run = case.decoder.run
    width = case.decoder.shape.d_model
    decoder = make_decoder(case.decoder.model, replace(run, heads=(VOCABULARY, VALUE)))
    decoder.adapter.load(Artifact(case.pairs), "pairs")
    decoder.arena.flat("lora")[-width - 1:] = np.random.default_rng(4).normal(0, 0.1, width + 1)
    return replace(case, decoder=decoder)


def plain_gae(rewards, values, gamma, lam):
    """Backwards, as in every textbook."""
    found = []
    later = 0.0
    following = 0.0
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        later = reward + gamma * following - value + gamma * lam * later
        following = value
        found.append(later)
    return found[::-1]


def test_advantages_are_a_plain_gae():
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=9)
    values = rng.normal(size=9)
    found = PPO.generalized(rewards, values)
    assert found.tolist() == pytest.approx(plain_gae(rewards.tolist(), values.tolist(), 0.97, 0.9))
    assert replace(PPO, lam=1.0, gamma=1.0).generalized(rewards, values)[0] == pytest.approx(rewards.sum() - values[0])


def masked_whiten(parts, shift_mean=True):
    """TRL's, of values that it has padded: with the unbiased variance, and 1e-8 beside it."""
    values = torch.cat(parts)
    variance, mean = torch.var_mean(values, correction=1)
    found = (values - mean) * torch.rsqrt(variance + 1e-8)
    return list((found if shift_mean else found + mean).split([len(part) for part in parts]))


def formula(objective, examples, logps, values, reference):
    """The papers' loss, in the order in which TRL whitens: rewards, then advantages, of which returns know nothing."""
    olds = [torch.from_numpy(example.logp) if example.logp.size else new.detach()
            for example, new in zip(examples, logps, strict=True)]
    befores = [torch.from_numpy(example.values) if example.values.size else value.detach()
               for example, value in zip(examples, values, strict=True)]
    rewards = [-PPO.kl_coef * (old - ref) for old, ref in zip(olds, reference, strict=True)]
    for example, of_tokens in zip(examples, rewards, strict=True):
        of_tokens[-1] += example.reward
    if objective.whiten_rewards:
        rewards = masked_whiten(rewards, shift_mean=False)
    advantages_of = [torch.tensor(plain_gae(of_tokens.tolist(), before.tolist(), PPO.gamma, PPO.lam))
                     for of_tokens, before in zip(rewards, befores, strict=True)]
    returns_of = [advantages + before for advantages, before in zip(advantages_of, befores, strict=True)]
    if objective.whiten_advantages:
        advantages_of = masked_whiten(advantages_of)
    losses = []
    for new, old, value, before, ref, advantages, returns in zip(logps, olds, values, befores, reference, advantages_of,
                                                                 returns_of, strict=True):
        ratio = (new - old).exp()
        policy = -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
        held = torch.max(torch.min(value, before + PPO.cliprange_value), before - PPO.cliprange_value)
        of_value = torch.max((value - returns) ** 2, (held - returns) ** 2) / 2
        u = ref - new
        losses.append(policy + PPO.vf_coef * of_value + PPO.beta * (u.exp() - u - 1))
    return torch.cat(losses).mean()


OBJECTIVES = [PLAIN, PPO, replace(PPO, whiten_rewards=True)]


@pytest.mark.dev
@pytest.mark.parametrize("parted", [False, True], ids=["one forest", "behind prefixes"])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=["plain", "advantages whitened", "rewards too"])
@pytest.mark.parametrize("again", [False, True], ids=["first update", "later update"])
def test_gradients_equal_autograd(again, objective, parted, alike):
    """Of the adapter, through the value too, and of the value head; over several micro-batches."""
    case, peft = alike
    peft.zero_grad()
    case = with_value(in_parts(case, 24, PROMPT - 1, 2) if parted else case)
    width = case.decoder.shape.d_model
    head = torch.from_numpy(case.decoder.arena.flat("lora")[-width - 1:].copy()).requires_grad_()
    examples = [one if parted else replace(one, group=0) for one in answers(case, with_old=False)]
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
    loss = formula(objective, examples, logps, values, base)
    loss.backward()
    micros = micro_batches(examples, 24, prefix=PROMPT - 1) if parted else [
        *micro_batches(examples[:4], 64), *micro_batches(examples[4:], 64)]
    assert len(micros) > 1
    assert any(isinstance(micro, Tree) for micro in micros) == parted
    found, gradient = gradient_over(case.decoder, objective, examples, micros, Known(examples, base))
    assert found == pytest.approx(loss.item(), rel=1e-5)
    assert distance(gradient, flat(gradients_by_peft(case, peft))) < 1e-4
    assert head.grad is not None
    assert distance(case.decoder.arena.flat("dlora")[-width - 1:], head.grad.numpy()) < 1e-4


@pytest.mark.dev
def test_stopped_between_updates_it_resumes_to_the_same_bytes(bundle, tmp_path):
    objective = Ppo(max_completion_length=9, num_generations=2, num_iterations=3)
    check_resumes(partial(go, bundle, objective=objective), tmp_path, 40, 90)


def test_the_value_head_continues_after_the_end(bundle, tmp_path):
    """More epochs begin with it, as with the adapter; where it was not kept, with a new one."""
    objective = Ppo(max_completion_length=9, num_iterations=2)
    out = tmp_path / "out"
    go(bundle, out, objective, steps=4)
    kept = np.load(out / "beside.npz")["value"]
    assert np.abs(kept).max() > 1e-3

    def at_the_beginning(more):
        with pytest.raises(Interrupted):
            go(bundle, out, objective, steps=4, resume=True, more=more, callbacks=stopping(0))
        found, _ = checkpoint.newest(out)
        arrays = {name: np.zeros(nbytes // 4, np.float32) for name, nbytes in found.arrays}
        found.read(arrays.__getitem__)
        return arrays["lora"][-kept.size:]

    assert at_the_beginning(1.0).tobytes() == kept.tobytes()
    go(bundle, out, objective, steps=4, resume=True, more=1.0)
    assert not np.array_equal(np.load(out / "beside.npz")["value"], kept)
    (out / "beside.npz").unlink()
    assert not at_the_beginning(2.0).any()


def test_whitening_takes_the_scale_of_rewards_away():
    values = np.random.default_rng(0).normal(3, 5, 40)
    assert whitened(values).mean() == pytest.approx(0, abs=1e-9)
    assert whitened(7 * values) == pytest.approx(whitened(values))
    assert whitened(values, keeps_mean=True).mean() == pytest.approx(values.mean())
    assert whitened(np.full(5, 2.0)).tolist() == [0.0] * 5
    assert whitened(np.array([2.0])).tolist() == [2.0]


def test_it_trains_with_a_family_of_the_callers(bundle):
    """The value head is a head of the network, whatever is trained beside its weights."""
    trainer = edgetune.Trainer(bundle, family=LoraFamily(rank=2), objective=Ppo(max_completion_length=9),
                               rewards=lambda answers: [Reward(float(len(one.text))) for one in answers],
                               max_length=48, batch_size=2, threads=1, lr=1e-2)
    trainer.add([{"prompt": "set the light"}] * 2)
    assert "loss/value" in trainer.step().metrics
    assert trainer.unexported["value"].any()
    assert {pair.rank for pair in trainer.pairs.values()} == {2}
