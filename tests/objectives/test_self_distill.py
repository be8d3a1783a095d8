"""Self-distillation: divergences as TRL has them over the teacher's likeliest tokens and the rest, gradients of the
adapter as autograd has them on the whole vocabulary's softmax, and the tokens that the engine finds likeliest.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from decoder_cases import adapted, distance, in_parts, make_case
from distilled import by_peft, divergence, taught, with_rest
from examples import examples
from gradients import autograd, gradient_over, our_gradient
from hypothesis import given
from hypothesis import strategies as st

from edgetune.data.packing import Example, collate
from edgetune.data.trees import Tree, micro_batches
from edgetune.errors import UsageError
from edgetune.objectives.base import make_objective
from edgetune.objectives.self_distill import SelfDistill
from edgetune.training.passes import measure
from edgetune.training.reference import Reference

K = 5
EVERY = [SelfDistill(distillation_topk=K), SelfDistill(distillation_topk=K, divergence="reverse"),
         SelfDistill(distillation_topk=K, divergence="jsd"),
         SelfDistill(distillation_topk=K, divergence="jsd", distillation_alpha=0.2)]
IDS = ["forward", "reverse", "jsd", "jsd 0.2"]


@st.composite
def distributions(draw):
    """(sizes of answers, log q, log p [S, K + 1] over the outcomes)."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    spread = draw(st.sampled_from([0.1, 0.5, 1.0]))
    logits = torch.from_numpy(rng.normal(0, spread, (2, sum(sizes), K + 1)).clip(-1.5, 1.5))
    q, p = torch.log_softmax(logits, -1).numpy()
    return sizes, q, p


def batch_of(sizes, q):
    examples = [Example(np.r_[0, 10 * i + np.arange(n)].astype(np.int32), np.r_[0, np.ones(n)].astype(np.float32))
                for i, n in enumerate(sizes)]
    return replace(collate(examples), choices=np.zeros((len(q), K), np.int32),
                   choices_reference=q[:, :K].astype(np.float32))


def signal_of(objective, sizes, q, p):
    logp = np.concatenate([np.zeros((len(p), 1)), p[:, :K]], axis=1).astype(np.float32)
    return objective.weights(logp, batch_of(sizes, q))


@pytest.mark.parametrize("objective", EVERY, ids=IDS)
@given(found=distributions(), skip=st.integers(0, 3))
@examples(25)
def test_weights_equal_autograd(objective, found, skip):
    sizes, q, p = found
    objective = replace(objective, num_loss_tokens_to_skip=skip)
    now = torch.from_numpy(p[:, :K]).requires_grad_()
    learned = np.concatenate([np.arange(n) >= skip for n in sizes])
    each = divergence(objective, with_rest(torch.from_numpy(q[:, :K])), with_rest(now))[torch.from_numpy(learned)]
    signal = signal_of(objective, sizes, q, p)
    assert objective.count(batch_of(sizes, q).examples) == learned.sum()
    assert signal.loss == pytest.approx(each.sum().item(), rel=1e-4, abs=1e-5)
    (wanted,) = torch.autograd.grad(each.sum(), now)
    assert not signal.a[:, 0].any()
    np.testing.assert_allclose(signal.a[:, 1:], -wanted.numpy(), rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("objective", EVERY, ids=IDS)
@given(found=distributions())
@examples(10)
def test_losses_and_weights_equal_trls(objective, found):
    """Those of its SDFT with distillation_add_tail: its alpha is 0 for forward KL and 1 for reverse."""
    trl = pytest.importorskip("trl.experimental.sdft.loss_utils")
    sizes, q, p = found
    alpha = {"forward": 0.0, "reverse": 1.0}.get(objective.divergence, objective.distillation_alpha)
    now = torch.from_numpy(p[:, :K]).requires_grad_()
    teacher = trl.add_tail_bucket(torch.from_numpy(q[:, :K]))
    loss = trl.compute_divergence(trl.add_tail_bucket(now), teacher, alpha).sum()
    (wanted,) = torch.autograd.grad(loss, now)
    signal = signal_of(objective, sizes, q, p)
    assert signal.loss == pytest.approx(loss.item(), rel=1e-4, abs=1e-5)
    np.testing.assert_allclose(signal.a[:, 1:], -wanted.numpy(), rtol=1e-3, atol=2e-5)


def test_a_token_far_from_the_teacher_teaches_nothing():
    q = np.log(np.array([[0.9, 0.02, 0.02, 0.02, 0.02, 0.02], [0.3, 0.2, 0.2, 0.1, 0.1, 0.1]]))
    p = np.log(np.array([[0.02, 0.9, 0.02, 0.02, 0.02, 0.02], [0.2, 0.3, 0.2, 0.1, 0.1, 0.1]]))
    free = signal_of(EVERY[0], [2], q, p)
    clipped = signal_of(replace(EVERY[0], token_clip=0.5), [2], q, p)
    assert clipped.a[1].tolist() == free.a[1].tolist()
    assert not clipped.a[0].any()
    assert clipped.loss == pytest.approx(0.5 + free.loss - free.metrics["divergence"][0] + 0.1 * np.log(1.5), rel=1e-5)
    assert clipped.metrics["clip_ratio"] == (1.0, 2.0)
    assert clipped.metrics["teacher_agreement"] == (0.0, 2.0)


def test_nothing_is_infinite_where_all_is_among_the_likeliest():
    q = np.log(np.array([[1 - 4e-9, 1e-9, 1e-9, 1e-9, 1e-9, 1e-30]]))
    for objective in EVERY:
        signal = signal_of(objective, [1], q, q[:, ::-1].copy())
        assert np.isfinite(signal.a).all()
        assert np.isfinite(signal.loss)


def test_an_option_of_another_divergence_is_refused():
    with pytest.raises(UsageError, match=r"distillation-alpha is 0.2, and the divergence forward has none"):
        make_objective("self-distill", {"distillation_alpha": 0.2})
    assert make_objective("self-distill", {"distillation_alpha": 0.2, "divergence": "jsd"}).needs_top == 16


# ---- the engine ------------------------------------------------------------------------------------------------------


def teachers(case, peft):
    with torch.no_grad(), peft.disable_adapter():
        return [by_peft(peft, one, one.prompts[0]) for one in case.examples]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_likeliest_tokens_are_transformers(family, tmp_path):
    case = make_case(family, tmp_path)
    taught(case, (6, 9))
    batch = Reference(case.decoder, top=K).add_to(case.batch)
    assert batch.choices is not None
    assert batch.choices_reference is not None
    values, tokens = torch.cat(teachers(case, adapted(case))).topk(K, -1)
    np.testing.assert_allclose(batch.choices_reference, values.numpy(), atol=2e-5)
    assert (batch.choices == tokens.numpy()).mean() > 0.99  # those as likely as others may be exchanged


@pytest.mark.dev
@pytest.mark.parametrize("objective", EVERY, ids=IDS)
def test_gradients_equal_autograd(objective, tmp_path):
    """Of the softmax over all tokens, by autograd, with the teacher's likeliest tokens and the rest."""
    case = make_case("llama", tmp_path)
    taught(case, (6, 9, 4, 8, 7, 3))
    peft = adapted(case)
    of_teacher = [known.double().topk(K, -1) for known in teachers(case, peft)]

    def loss_of(_logps, _weights):
        found = [divergence(objective, with_rest(known.values),
                            with_rest(by_peft(peft, one, one.tokens[:10]).double().gather(1, known.indices)))
                 for one, known in zip(case.examples, of_teacher, strict=True)]
        return torch.cat(found).mean()

    wanted, truth = autograd(case, loss_of, peft)
    reference = Reference(case.decoder, top=K)
    loss, gradient = our_gradient(case, objective, 2, reference)
    assert loss == pytest.approx(wanted, rel=1e-4)
    assert np.linalg.norm(truth) > 1e-4
    assert distance(gradient, truth) < 1e-4
    measured = measure(case.decoder, objective, [case.batch], reference)
    assert measured.loss == pytest.approx(wanted, rel=1e-4)
    sizes = [one.supervised for one in case.examples]
    assert np.average(measured.rows, weights=sizes) == pytest.approx(wanted, rel=1e-4)


def test_behind_a_prefix_they_are_the_same(tmp_path):
    """Rows that begin alike, up to within their answers, in parts: the head of each part has its choices."""
    objective = EVERY[2]
    case = make_case("llama", tmp_path)
    taught(case, (12, 12, 12, 12))
    first = case.examples[0]
    case.examples[:] = [replace(one, tokens=np.r_[first.tokens[:16], one.tokens[16:]]) for one in case.examples]
    loss, gradient = our_gradient(case, objective, 1, Reference(case.decoder, top=K))
    parts = in_parts(case, 26, 15, 1)
    trees = micro_batches(case.examples, 26, prefix=15)
    assert any(isinstance(tree, Tree) and not tree.is_divisible for tree in trees)
    reference = Reference(parts.decoder, top=K)
    found, theirs = gradient_over(parts.decoder, objective, case.examples, trees, reference)
    assert found == pytest.approx(loss, rel=1e-5)
    assert distance(theirs, gradient) < 1e-4
    assert measure(parts.decoder, objective, trees, reference).loss == pytest.approx(loss, rel=1e-5)
