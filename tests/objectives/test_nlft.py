"""NLFT: weights of tokens and gradients of the adapter as autograd has them on the formulas, with what transformers
says of the same answers behind the other prompts; and what its limits do.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from decoder_cases import adapted, distance, logp_by_peft, make_case
from examples import examples
from gradients import autograd, our_gradient
from hypothesis import given
from hypothesis import strategies as st

from edgetune.data.packing import Example, collate
from edgetune.errors import UsageError
from edgetune.objectives.base import make_objective
from edgetune.objectives.nlft import Nlft, near_to
from edgetune.training.passes import measure
from edgetune.training.reference import Reference

Tensors = list[torch.Tensor]
FREE = Nlft(clamp=0.0, push_cap=0.0)  # autograd knows no limits
OTHER = Nlft(clamp=0.0, push_cap=0.0, core=0.6, core_power=2.0, near_power=0.5, far_power=1.5, radius=1, ratio=1.1,
             least=0.2, threshold=0.7, push=1.2, most_bad=1.0, wrong_weight=0.7, nll=0.5, scale=2.0)
EVERY = [FREE, OTHER, Nlft(nlft_compat=True)]
IDS = ["cleaned", "all others", "compat"]


def truth(o, now, b, c, w):
    """The loss of an answer, token by token, as the specification has it; w: None of a right answer."""
    weight, nll, scale = (1.0, 1.0, 10.0) if o.nlft_compat else (o.wrong_weight, o.nll, o.scale)
    t = now.numel()
    found = [bool(c[i] > o.core) if w is None else
             bool(w[i] > o.ratio * b[i] and w[i] > o.ratio * c[i] and w[i] > o.least) for i in range(t)]
    loss = torch.zeros((), dtype=torch.float64)
    for i in range(t):
        near = any(found[max(0, i - o.radius):i + o.radius + 1])
        if w is None:
            kept = 1 + ((c[i] - o.core) / (1 - o.core)) ** o.core_power if found[i] else \
                (c[i] / o.core) ** (o.near_power if near else o.far_power)
            loss = loss - (kept + nll) * now[i]
        elif found[i]:
            s = o.push * torch.sigmoid(w[i] / b[i] - o.threshold)
            loss = loss - s * torch.log1p(-now[i].exp().clamp(max=1 - 1e-4))
        elif not near and sum(found) <= o.most_bad * t:
            loss = loss - weight * torch.sqrt(c[i]) * now[i]
    return scale * loss / t


@st.composite
def answers(draw):
    """(log p now, reference's, with the reference, with the judgment) of tokens of two to five answers."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from([0.1, 1.0, 5.0]))
    sizes = draw(st.lists(st.integers(1, 30), min_size=2, max_size=5))
    return [tuple(-rng.random(n).astype(np.float32) * spread * rng.integers(1, 3) - 1e-3 for _ in range(4))
            for n in sizes]


def batch_of(found, judged, score=0.0):
    """A prompt of one token, and what was read of the answers; those that are judged are wrong."""
    examples = [Example(np.r_[0, 10 * i + np.arange(of[0].size)].astype(np.int32),
                        np.r_[0, np.ones(of[0].size)].astype(np.float32), reward=score)
                for i, of in enumerate(found)]
    views = np.array([np.concatenate([of[2] for of in found]),
                      np.concatenate([of[3] if wrong else of[3] * np.nan
                                      for of, wrong in zip(found, judged, strict=True)])], np.float32)
    return replace(collate(examples), reference=np.concatenate([of[1] for of in found]), views=views)


@pytest.mark.parametrize("objective", EVERY, ids=IDS)
@given(found=answers(), seed=st.integers(0, 99))
@examples(25)
def test_weights_equal_autograd(objective, found, seed):
    judged = (np.random.default_rng(seed).random(len(found)) > 0.4).tolist()
    batch = batch_of(found, judged)
    now = [torch.from_numpy(of[0].astype(np.float64)).requires_grad_() for of in found]
    losses = [truth(objective, of_now, *(torch.from_numpy(part.astype(np.float64)).exp() for part in of[1:3]),
                    torch.from_numpy(of[3].astype(np.float64)).exp() if wrong else None)
              for of_now, of, wrong in zip(now, found, judged, strict=True)]
    loss = torch.stack(losses).mean()
    wanted = -np.concatenate([part.numpy() for part in torch.autograd.grad(loss, now, materialize_grads=True)])
    signal = objective.weights(np.concatenate([of[0] for of in found]), batch)
    n = objective.count(batch.examples)
    assert n == len(found)
    assert signal.loss / n == pytest.approx(loss.item(), rel=1e-6, abs=1e-9)
    np.testing.assert_allclose(signal.a / n, wanted, rtol=1e-4, atol=1e-7)


def test_the_specification_by_hand():
    """Six tokens of which the third is sure beside the reference; and a wrong answer whose last token is bad."""
    c = np.array([0.5, 0.9, 0.99, 0.5, 0.1, 0.1])
    right = (np.full(6, -1.0), np.full(6, -1.0), np.log(c), np.zeros(6))
    signal = Nlft(radius=1).weights(np.full(6, -1.0, np.float32), batch_of([right], [False]))
    near = (c / 0.95) ** 0.3
    far = (c / 0.95) ** 0.6
    wanted = [far[0], near[1], 1 + 0.8**5, near[3], far[4], far[5]]
    np.testing.assert_allclose(signal.a * 6, wanted, rtol=1e-5)
    assert signal.metrics == {"core": (1.0, 6.0), "bad": (0.0, 0.0)}
    b = np.full(20, 0.2)
    w = np.where(np.arange(20) == 19, 0.8, 0.2)
    wrong = (np.log(b), np.log(b), np.log(b), np.log(w))
    signal = Nlft(radius=2).weights(np.log(b).astype(np.float32), batch_of([wrong], [True]))
    pushed = 2 / (1 + np.exp(-(4 - 1.5))) * 0.2 / 0.8
    np.testing.assert_allclose(signal.a * 20, [*[0.25 * np.sqrt(0.2)] * 17, 0, 0, -pushed], rtol=1e-5)
    assert signal.metrics["bad"] == (1.0, 20.0)
    signal = Nlft(most_bad=0.04).weights(np.log(b).astype(np.float32), batch_of([wrong], [True]))
    assert np.flatnonzero(signal.a).tolist() == [19]
    of_right = Nlft().weights(np.log(b).astype(np.float32), batch_of([wrong], [False])).a
    scored = Nlft().weights(np.log(b).astype(np.float32), batch_of([wrong], [True], score=7.0)).a
    assert np.array_equal(scored, of_right)


def test_sure_tokens_push_within_the_limits():
    now = np.full(8, -1e-6, np.float32)
    bad = (now, np.full(8, np.log(0.1)), np.full(8, np.log(0.1)), np.full(8, np.log(0.9)))
    batch = batch_of([bad], [True])
    free = FREE.weights(now, batch).a * 8
    assert (free < -1000).all()
    np.testing.assert_allclose(Nlft(push_cap=0.0).weights(now, batch).a * 8, -4, rtol=1e-6)
    both = Nlft().weights(now, batch)
    assert both.a.sum() == pytest.approx(-1, rel=1e-6)
    assert np.isfinite(both.loss)
    assert Nlft(push_cap=0.5).weights(now, batch).a.sum() == pytest.approx(-0.5, rel=1e-6)


def test_what_is_near():
    found = np.array([0, 0, 0, 1, 0, 0, 0, 0, 0, 1], bool)
    assert np.flatnonzero(near_to(found, 2)).tolist() == [1, 2, 3, 4, 5, 7, 8, 9]
    assert np.array_equal(near_to(found, 0), found)
    assert near_to(found, 50).all()


def test_options_that_compat_sets_are_refused():
    with pytest.raises(UsageError, match=r"wrong-weight is 0.5, and nlft-compat has another"):
        make_objective("nlft", {"nlft_compat": True, "wrong_weight": 0.5})
    assert make_objective("nlft", {"nlft_compat": True, "core": 0.9}).options()["core"] == 0.9


# ---- gradients of the adapter ----------------------------------------------------------------------------------------


def with_prompts(case, sizes):
    """Answers of these sizes to a question of 10 tokens; each second one has a judgment beside the question too. What
    the other prompts begin with is the question.
    """
    rng = np.random.default_rng(11)
    n_vocab = case.decoder.shape.n_vocab

    def some(n):
        return rng.integers(0, n_vocab, n).astype(np.int32)

    case.examples[:] = []
    for i, size in enumerate(sizes):
        question = some(10)
        prompts = (np.r_[question, some(4)], np.r_[question, some(5)] if i % 2 else some(0))
        case.examples.append(Example(np.r_[question, some(size)], np.r_[np.zeros(10), np.ones(size)].astype(np.float32),
                                     prompts=prompts))


def read_by_peft(peft, example, prompt):
    """log p by the base of the example's answer behind a prompt."""
    with torch.no_grad(), peft.disable_adapter():
        return logp_by_peft(peft, np.r_[prompt, example.tokens[10:]])[prompt.size - 1:].double()


LOOSE = Nlft(clamp=0.0, push_cap=0.0, core=0.0024, ratio=1.0, least=0.0, most_bad=1.0)  # of a model that knows nothing


@pytest.mark.dev
@pytest.mark.parametrize("max_tokens", [1 << 30, 25], ids=["together", "one by one"])
def test_gradients_equal_autograd(max_tokens, tmp_path):
    """The evidence is the base's, behind three prompts, which it reads at once or one after another."""
    case = make_case("llama", tmp_path)
    with_prompts(case, (6, 9, 4, 8, 7, 3))
    peft = adapted(case)
    reads = [[read_by_peft(peft, one, prompt) for prompt in (one.tokens[:10], *one.prompts) if prompt.size]
             for one in case.examples]

    def loss_of(logps, _weights):
        return torch.stack([truth(LOOSE, logp.double(), *(part.exp() for part in read), *[None] * (3 - len(read)))
                            for logp, read in zip(logps, reads, strict=True)]).mean()

    wanted, by_autograd = autograd(case, loss_of, peft)
    reference = Reference(case.decoder, max_tokens)
    loss, gradient = our_gradient(case, LOOSE, 2, reference)
    assert loss == pytest.approx(wanted, rel=1e-4)
    assert np.linalg.norm(by_autograd) > 1e-4
    assert distance(gradient, by_autograd) < 1e-4
    measured = measure(case.decoder, LOOSE, [case.batch], reference)
    assert measured.loss == pytest.approx(wanted, rel=1e-4)
    assert np.mean(measured.rows) == pytest.approx(wanted, rel=1e-4)
    assert 0 < measured.metrics["bad"] < 1
    assert 0 < measured.metrics["core"] < 1


def test_a_batch_has_what_was_read_behind_each_prompt(tmp_path):
    """Also of a right and a wrong answer side by side; and what begins alike is computed once."""
    case = make_case("llama", tmp_path)
    with_prompts(case, (5, 6))
    peft = adapted(case)
    computed: list[int] = []
    score = case.decoder.score

    def spy(batch, best=None):
        computed.append(batch.computed)
        return score(batch, best)

    case.decoder.score = spy
    batch = Reference(case.decoder).add_to(case.batch)
    assert computed == [10 + 4 + 2 * 5, 10 + 4 + 5 + 3 * 6]
    assert batch.views is not None
    assert batch.views.shape == (2, 11)
    assert np.isnan(batch.views[1, :5]).all()
    wrong = case.examples[1]
    for row, prompt in enumerate(wrong.prompts):
        np.testing.assert_allclose(batch.views[row, 5:], read_by_peft(peft, wrong, prompt).numpy(), atol=2e-5)


def test_without_a_reference_an_answer_is_imitated_by_its_weight():
    """Beside others that have one, and alone; weights of rows count for those as well."""
    rng = np.random.default_rng(2)
    found = [tuple(-rng.random(n).astype(np.float32) - 1e-3 for _ in range(4)) for n in (4, 6)]
    batch = batch_of(found, [True, False])
    logp = np.concatenate([of[0] for of in found])
    whole = FREE.weights(logp, batch)
    halves = [replace(one, weights=one.weights * np.float32(0.5)) for one in batch.examples]
    read = {"reference": batch.reference, "views": batch.views}
    half = FREE.weights(logp, replace(collate(halves), **read))
    np.testing.assert_allclose(half.a, whole.a / 2, rtol=1e-6)
    assert half.loss == pytest.approx(whole.loss / 2, rel=1e-6)
    assert batch.views is not None
    views = batch.views.copy()
    views[:, 4:] = np.nan
    for lacking in (replace(collate(halves), reference=batch.reference, views=views),
                    replace(collate(halves), reference=batch.reference)):
        signal = FREE.weights(logp, lacking)
        np.testing.assert_allclose(signal.a[4:], 0.5 / 6, rtol=1e-6)
    assert signal.loss == pytest.approx(-0.5 * sum(of[0].mean() for of in found), rel=1e-5)
