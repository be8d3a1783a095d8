"""Objectives of preferences: losses, weights of tokens and LoRA gradients as TRL computes them, or autograd on the
paper's formula where TRL has none; and the reference model, which is asked once.
"""

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from counting import OPTIONS, sequences
from decoder_cases import adapted, distance, make_case, random_example
from examples import examples
from gradients import autograd, our_gradient, supervised_logps
from hypothesis import given
from hypothesis import strategies as st

from edgetune.data.packing import Example, collate
from edgetune.errors import UsageError
from edgetune.objectives.base import make_objective
from edgetune.objectives.dpo import Dpo
from edgetune.objectives.kto import Kto
from edgetune.objectives.orpo import Orpo
from edgetune.objectives.rrhf import Rrhf
from edgetune.training.passes import measure
from edgetune.training.trainer import Trainer

Tensors = list[torch.Tensor]  # log p of each document's supervised tokens

DPOS = [Dpo(), Dpo(beta=0.5, label_smoothing=0.2), Dpo(loss_type="hinge", beta=0.3), Dpo(loss_type="ipo"),
        Dpo(loss_type="robust", label_smoothing=0.1), Dpo(loss_type="sigmoid_norm", beta=2.0),
        Dpo(sft_weight=0.2)]
NAMES = [f"{o.loss_type} {o.label_smoothing:g} {o.sft_weight:g}" for o in DPOS]


# ---- losses as others compute them -----------------------------------------------------------------------------------


def padded(parts):
    return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)


def trl_self(**fields: Any):
    """What a loss function of TRL asks its trainer for."""
    accelerator = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    return SimpleNamespace(model=SimpleNamespace(training=True), accelerator=accelerator, aux_loss_enabled=False,
                           precompute_ref_logps=True, _metrics={"train": defaultdict(list)}, _total_train_tokens=0,
                           _tp_size=1, **fields)


def outputs(log_probs):
    """A model's output, whatever it is asked."""
    zeros = torch.zeros_like(log_probs)
    found = SimpleNamespace(log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
    return lambda **_: found


def masks(parts):
    """A prompt of one token before each answer."""
    return torch.nn.functional.pad(padded([torch.ones_like(part) for part in parts]).long(), (1, 0))


def trl_dpo(objective, logps, refs):
    """DPOTrainer's loss of [chosen, rejected, chosen, ...]; its formula has no sft term and no smoothed sigmoid."""
    trainer = pytest.importorskip("trl.trainer.dpo_trainer").DPOTrainer
    order = [*range(0, len(logps), 2), *range(1, len(logps), 2)]
    logps = [logps[i] for i in order]
    sums = torch.stack([refs[i].sum() for i in order])
    mask = masks(logps)
    self = trl_self(ld_alpha=None, f_divergence_type="reverse_kl", loss_types=[objective.loss_type], loss_weights=[1.0],
                    beta=objective.beta, label_smoothing=objective.label_smoothing, use_weighting=False)
    half = len(order) // 2
    inputs = {"input_ids": mask, "attention_mask": mask, "completion_mask": mask, "ref_chosen_logps": sums[:half],
              "ref_rejected_logps": sums[half:]}
    loss = trainer._compute_loss(self, outputs(padded(logps)), inputs, False)
    return loss, {name: values[-1] for name, values in self._metrics["train"].items() if values}


def dpo(objective, logps, refs):
    if objective.loss_type == "sigmoid" and objective.label_smoothing:  # Mitchell 2023, equation 3
        e = objective.label_smoothing
        kept, _ = trl_dpo(replace(objective, label_smoothing=0.0), logps, refs)
        turned, _ = trl_dpo(replace(objective, label_smoothing=0.0), turned_round(logps), turned_round(refs))
        return (1 - e) * kept + e * turned
    loss, _ = trl_dpo(objective, logps, refs)
    chosen = torch.stack([-logp.mean() for logp in logps[::2]])
    return loss + objective.sft_weight * chosen.mean()


def turned_round(parts):
    return [part for chosen, rejected in zip(parts[::2], parts[1::2], strict=True) for part in (rejected, chosen)]


def trl_kto(objective, logps, refs, labels):
    """KTOTrainer's loss, where its mismatched answers are as likely as these ones."""
    trainer = pytest.importorskip("trl.trainer.kto_trainer").KTOTrainer
    sums = torch.stack([part.sum() for part in refs])
    now = torch.stack([part.sum() for part in logps]).detach()
    mask = masks(logps)
    self = trl_self(calculate_KL=True, loss_type="kto", beta=objective.beta, _compute_kl_logps=lambda *_: now,
                    desirable_weight=objective.desirable_weight, undesirable_weight=objective.undesirable_weight)
    inputs = {"input_ids": mask, "attention_mask": mask, "completion_mask": mask, "label": torch.tensor(labels),
              "ref_logps": sums, "ref_KL_logps": sums}
    loss = trainer._compute_loss(self, outputs(padded(logps)), inputs, False)
    return loss, {name: values[-1] for name, values in self._metrics["train"].items() if values}


def orpo(objective, logps):
    """The paper's first term, and ORPOTrainer's odds ratio."""
    trainer = pytest.importorskip("trl.experimental.orpo.orpo_trainer").ORPOTrainer
    chosen, rejected = (torch.stack([part.mean() for part in logps[i::2]]) for i in (0, 1))
    self = SimpleNamespace(beta=objective.beta, accelerator=SimpleNamespace(device="cpu"))
    losses, *_ = trainer.odds_ratio_loss(self, chosen, rejected)
    return -chosen.mean() - losses.mean()


def rrhf(objective, logps, rewards, sizes):
    """Equations 2 to 5 of the paper, one pair after another."""
    total = torch.zeros(())
    begin = 0
    for size in sizes:
        group = list(zip(logps[begin:begin + size], rewards[begin:begin + size], strict=True))
        scores = [logp.sum() / logp.numel()**objective.length_penalty for logp, _ in group]
        for score, (_, reward) in zip(scores, group, strict=True):
            for other, (_, better) in zip(scores, group, strict=True):
                if reward < better:
                    total = total + torch.relu(score - other)
        best, _ = max(group, key=lambda member: member[1])
        total = total - objective.sft_weight * best.sum()
        begin += size
    return total / len(sizes)


# ---- weights of tokens -----------------------------------------------------------------------------------------------


def batch_of(sizes, rewards=(), groups=()):
    """A prompt of one token, and answers of these numbers of tokens; pairs, unless groups are named."""
    examples = [Example(np.r_[0, 10 * i + np.arange(n)].astype(np.int32), np.r_[0, np.ones(n)].astype(np.float32),
                        groups[i] if groups else 1 + i // 2, rewards[i] if rewards else 0.0)
                for i, n in enumerate(sizes)]
    return collate(examples)


def compare(objective, signal, batch, logps, loss):
    """A signal's loss and weights, and those of a truth over the same log-probabilities, which are its leaves."""
    n = objective.count(batch.examples)
    wanted = -flat_parts(list(torch.autograd.grad(loss, logps, materialize_grads=True)))
    assert signal.loss / n == pytest.approx(loss.item(), rel=1e-5, abs=1e-6)
    np.testing.assert_allclose(signal.a / n, wanted, rtol=1e-4, atol=1e-6)


@st.composite
def answers(draw):
    """Sizes, log p and the reference's, of two to four pairs."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=4, max_size=8).filter(lambda found: len(found) % 2 == 0))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from([0.1, 2.0, 20.0]))
    made = [[torch.from_numpy(-rng.random(n).astype(np.float32) * spread) for n in sizes] for _ in range(2)]
    return sizes, [part.requires_grad_() for part in made[0]], made[1]


def flat_parts(parts):
    return np.concatenate([part.detach().numpy() for part in parts])


@pytest.mark.parametrize("objective", DPOS, ids=NAMES)
@given(found=answers())
@examples(15)
def test_weights_of_dpo_equal_trl(objective, found):
    sizes, logps, refs = found
    batch = replace(batch_of(sizes), reference=flat_parts(refs))
    signal = objective.weights(flat_parts(logps), batch)
    compare(objective, signal, batch, logps, dpo(objective, logps, refs))
    _, metrics = trl_dpo(replace(objective, label_smoothing=0.0), logps, refs)
    for name, (total, count) in signal.metrics.items():
        assert total / count == pytest.approx(metrics[name], rel=1e-4, abs=1e-5), name


@given(found=answers(), seed=st.integers(0, 99))
@examples(25)
def test_weights_of_kto_equal_trl(found, seed):
    sizes, logps, refs = found
    objective = Kto(beta=0.3, desirable_weight=1.5, undesirable_weight=0.5)
    labels = (np.random.default_rng(seed).random(len(sizes)) > 0.4).tolist()
    batch = replace(batch_of(sizes, [float(label) for label in labels], [0] * len(sizes)), reference=flat_parts(refs))
    signal = objective.weights(flat_parts(logps), batch)
    loss, metrics = trl_kto(objective, logps, refs, labels)
    compare(objective, signal, batch, logps, loss)
    for name, (total, count) in signal.metrics.items():
        if count:
            assert total / count == pytest.approx(metrics[name], rel=1e-4, abs=1e-5), name


@given(found=answers())
@examples(25)
def test_weights_of_orpo_equal_trl(found):
    sizes, logps, _ = found
    objective = Orpo(beta=0.4)
    batch = batch_of(sizes)
    compare(objective, objective.weights(flat_parts(logps), batch), batch, logps, orpo(objective, logps))


def test_orpo_survives_an_answer_that_is_sure():
    signal = Orpo().weights(np.zeros(7, np.float32), batch_of([3, 4]))
    assert np.isfinite(signal.a).all()
    assert np.isfinite(signal.loss)


@given(found=answers(), penalty=st.sampled_from([0.0, 1.0, 1.5]), seed=st.integers(0, 99))
@examples(25)
def test_weights_of_rrhf_equal_the_papers(found, penalty, seed):
    """A group of three and one of the others; rewards of which some are equal."""
    sizes, logps, _ = found
    objective = Rrhf(length_penalty=penalty, sft_weight=0.5)
    rewards = np.random.default_rng(seed).integers(0, 3, len(sizes)).tolist()
    groups = [1 if i < 3 else 2 for i in range(len(sizes))]
    batch = batch_of(sizes, rewards, groups)
    signal = objective.weights(flat_parts(logps), batch)
    compare(objective, signal, batch, logps, rrhf(objective, logps, rewards, [3, len(sizes) - 3]))


def test_options_that_a_loss_does_not_have_are_refused():
    with pytest.raises(UsageError, match=r"label-smoothing is 0.1, and the loss hinge has none"):
        make_objective("dpo", {"loss_type": "hinge", "label_smoothing": 0.1})
    with pytest.raises(UsageError, match=r"label-smoothing is 0.5, the most is 0.499"):
        make_objective("dpo", {"loss_type": "robust", "label_smoothing": 0.5})
    with pytest.raises(UsageError, match="loss-type is 'simpo'"):
        make_objective("dpo", {"loss_type": "simpo"})


# ---- gradients of the adapter ----------------------------------------------------------------------------------------


def answered(case, sizes, groups, rewards):
    """The case with answers of these numbers of tokens; those of a group share 15, of which the last is theirs."""
    rng = np.random.default_rng(11)
    n_vocab = case.decoder.shape.n_vocab
    prompts = {group: random_example(rng, 15, n_vocab).tokens for group in groups}
    case.examples[:] = []
    for size, group, reward in zip(sizes, groups, rewards, strict=True):
        tokens = np.r_[prompts[group], random_example(rng, size - 1, n_vocab).tokens].astype(np.int32)
        weights = np.r_[np.zeros(14), np.ones(size)].astype(np.float32)
        case.examples.append(Example(tokens, weights, group, reward))


REWARDS = [2.0, 0.0, 1.0, 1.0, 0.0, 3.0]
LABELS = [True, False, False, True, True, False]
EVERY = [DPOS[0], Kto(beta=0.5, undesirable_weight=2.0), Orpo(), Rrhf()]


@pytest.mark.dev
@pytest.mark.parametrize("objective", EVERY, ids=[NAMES[0], "kto", "orpo", "rrhf"])
def test_gradients_equal_autograd(objective, tmp_path):
    """With prefixes that are shared, and relative to the base with the adapter off."""
    case = make_case("gemma3" if objective.name == "rrhf" else "llama", tmp_path)
    groups = [1, 1, 1, 2, 2, 2] if objective.name == "rrhf" else [1, 1, 2, 2, 3, 3]
    rewards = [float(label) for label in LABELS] if objective.name == "kto" else REWARDS
    answered(case, (9, 5, 7, 7, 3, 8), groups, rewards)
    assert case.batch.computed < sum(example.tokens.size for example in case.examples)
    peft = adapted(case)
    with torch.no_grad(), peft.disable_adapter():
        refs = supervised_logps(peft, case.examples)

    def loss_of(logps, _weights):
        if isinstance(objective, Dpo):
            return dpo(objective, logps, refs)
        if isinstance(objective, Kto):
            return trl_kto(objective, logps, refs, LABELS)[0]
        if isinstance(objective, Orpo):
            return orpo(objective, logps)
        assert isinstance(objective, Rrhf)
        return rrhf(objective, logps, REWARDS, [3, 3])

    wanted, truth = autograd(case, loss_of, peft)
    loss, gradient = our_gradient(case, objective, 1)
    assert loss == pytest.approx(wanted, rel=1e-4)
    assert np.linalg.norm(truth) > 1e-4
    assert distance(gradient, truth) < 1e-4
    assert measure(case.decoder, objective, [case.batch]).loss == pytest.approx(wanted, rel=1e-4)
    if objective.sees_step:
        loss, gradient = our_gradient(case, objective, 3)
        assert loss == pytest.approx(wanted, rel=1e-4)
        assert distance(gradient, truth) < 1e-4
        measured = measure(case.decoder, objective, [collate(case.examples[i:i + 2]) for i in (0, 2, 4)])
        assert measured.loss == pytest.approx(wanted, rel=1e-4)
        assert np.mean(measured.rows) == pytest.approx(wanted, rel=1e-4)


def test_how_a_step_is_cut_changes_nothing_that_kto_learns(bundle):
    """Its point of reference is of the step, not of a micro-batch."""
    examples = [replace(example, reward=float(i % 3 > 0)) for i, example in enumerate(sequences(8))]
    adapters = []
    for micro_batch in (1024, 48):
        trainer = Trainer(bundle, **{**OPTIONS, "batch_size": 4, "micro_batch": micro_batch, "steps": 4,
                                     "precision": "exact"}, objective=Kto(beta=1.0),
                          lengths=[example.tokens.size for example in examples])
        trainer.add_examples(examples)
        results = trainer.train()
        adapters.append(trainer.arena.flat("lora").copy())
    assert all(len(trainer.micros.cut(trainer.batch(step))) > 1 for step in (1, 2))
    assert results[-1].metrics["kl"] > 0
    assert distance(adapters[1], adapters[0]) < 1e-4


