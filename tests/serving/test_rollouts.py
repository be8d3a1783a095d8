"""Answers by the trainer's engine, against transformers and its own log-probabilities, alone and in company."""

import gc
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from decoder_cases import adapted, distance, make_case, make_decoder
from families import ALL_FAMILIES

from edgetune.adapters.base import Artifact
from edgetune.adapters.lora import Pair
from edgetune.data.packing import Example, collate
from edgetune.errors import NumericsError, UsageError
from edgetune.llamacpp.sampling import Sampling
from edgetune.serving.rollouts.draws import candidates_of
from edgetune.serving.rollouts.engine import Rollouts, Wanted
from edgetune.serving.rollouts.plan import AnswerPlan, fitting

GREEDY = Sampling()
WARM = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=3)


def prompts_of(n_vocab):
    """Of one token, of more than a window; some that begin alike, before and after 64 tokens; one twice."""
    rng = np.random.default_rng(0)
    stem = rng.integers(0, n_vocab, 150)
    rows = [stem[:1], stem[:40], [*stem[:70], 5, 6], [*stem[:64], 7], [*stem[:130], 8], stem[:150], [*stem[:64], 7],
            rng.integers(0, n_vocab, 17)]
    return [np.array(row, np.int32) for row in rows]


def opened(case, plan, precision="exact"):
    """The case's decoder with room for the plan's answers."""
    run = replace(case.decoder.run, max_tokens=max(plan.live, plan.prompt_tokens, 200), precision=precision,
                  max_length=plan.prompt_tokens + plan.answer_tokens)
    model = case.decoder.model
    decoder = make_decoder(model, run, plan.buffers(model.structure.cache, run.activations))
    decoder.adapter.load(Artifact(case.pairs), "pairs")
    return decoder


def answer(case, prompts, sampling, tokens=12, *, live=64, samples=1, precision="exact", **wanted: Any):
    """In the order of prompts and samples."""
    budgets = [tokens] * len(prompts) if isinstance(tokens, int) else list(tokens)
    plan = AnswerPlan(live, samples, max(p.size for p in prompts), max(budgets),
                      candidates_of(sampling, case.decoder.shape.n_vocab))
    asked = Wanted(prompts, samples, budgets, sampling, **wanted)
    engine = Rollouts(opened(case, plan, precision), plan, asked)
    found = sorted(engine, key=lambda r: (r.prompt, r.sample))
    assert [(r.prompt, r.sample) for r in found] == [(i, j) for i in range(len(prompts)) for j in range(samples)]
    assert len(engine._blocks) == plan.blocks
    return found


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return make_case("llama", tmp_path_factory.mktemp("llama"))


@pytest.mark.dev
@pytest.mark.parametrize("name", ALL_FAMILIES)
def test_greedy_answers_equal_transformers(name, tmp_path):
    """With a LoRA, of every family: windows, norms of queries and keys, norms after projections."""
    case = make_case(name, tmp_path)
    prompts = prompts_of(case.decoder.shape.n_vocab)
    found = answer(case, prompts, GREEDY, 20, live=5)
    model = adapted(case)
    for prompt, ours in zip(prompts, found, strict=True):
        ids = torch.from_numpy(np.concatenate([prompt, ours.tokens])).long()[None]
        with torch.no_grad():
            theirs = model(ids, use_cache=False).logits[0, prompt.size - 1:-1].argmax(-1)  # after each token of ours
        assert ours.tokens.tolist() == theirs.tolist()
        assert ours.tokens.size == 20
        assert not ours.ended


@pytest.mark.dev
@pytest.mark.parametrize(("precision", "limit"), [("exact", 1e-5), ("fast", 0.01), ("int8", 0.05)])
@pytest.mark.parametrize("name", ["llama", "gemma3", "gemma4", "lfm2", "qwen35", "granitehybrid"])
def test_log_probabilities_are_those_of_the_trainer(name, precision, limit, tmp_path):
    case = make_case(name, tmp_path)
    prompts = prompts_of(case.decoder.shape.n_vocab)
    found = answer(case, prompts, WARM, samples=2, precision=precision)
    examples = []
    for r in found:
        weights = np.ones(prompts[r.prompt].size + r.tokens.size, np.float32)
        weights[:prompts[r.prompt].size] = 0
        examples.append(Example(np.concatenate([prompts[r.prompt], r.tokens]), weights))
    decoder = make_decoder(case.decoder.model, replace(case.decoder.run, max_tokens=2000, max_length=200,
                                                       precision=precision))
    decoder.adapter.load(Artifact(case.pairs), "pairs")
    logp = decoder.score(collate(examples))
    assert distance(np.concatenate([r.logp for r in found]), logp) < limit
    if precision == "exact":
        assert distance(np.concatenate([r.drawn for r in found]), logp) < limit  # at temperature 1, of all
        assert np.abs(np.concatenate([r.logp for r in found]) - logp).max() < 3e-5


@pytest.mark.dev
@pytest.mark.parametrize("sampling", [WARM, replace(WARM, temperature=0.8, top_k=20, top_p=0.9)],
                         ids=["all", "likeliest"])
@pytest.mark.parametrize("name", ["llama", "gemma4", "lfm2", "qwen35", "granitehybrid"])
def test_answers_do_not_depend_on_their_company(name, sampling, tmp_path):
    """To the bit: alone, in pairs, all at once, and where only some of them are asked for again."""
    case = make_case(name, tmp_path)
    prompts = prompts_of(case.decoder.shape.n_vocab)
    together = answer(case, prompts, sampling, samples=3)
    assert len({r.tokens.tobytes() for r in together}) == len(together)  # another number, other answers
    few = answer(case, prompts, sampling, samples=3, live=2)
    alone = [r for i, prompt in enumerate(prompts) for r in answer(case, [prompt], sampling, samples=3, numbers=[i])]
    for kind in ("tokens", "logp", "drawn"):
        expected = [getattr(r, kind).tobytes() for r in together]
        assert [getattr(r, kind).tobytes() for r in few] == expected, kind
        assert [getattr(r, kind).tobytes() for r in alone] == expected, kind
    other = answer(case, prompts, replace(sampling, seed=4), samples=3)
    assert [r.tokens.tobytes() for r in other] != [r.tokens.tobytes() for r in together]


def test_answers_end_by_token_by_watch_and_by_budget(llama):
    prompts = prompts_of(llama.decoder.shape.n_vocab)
    whole = answer(llama, prompts, WARM, 30)
    ends = set(whole[1].tokens[7:9].tolist())
    budgets = [3, 30, 1, 30, 30, 17, 30, 30]
    cut = answer(llama, prompts, WARM, budgets, is_end=lambda token: token in ends,
                 watch=lambda prompt, _sample, token: prompt == 4 and token == whole[4].tokens[5], live=3)
    for r, full, budget in zip(cut, whole, budgets, strict=True):
        n = r.tokens.size
        assert r.tokens.tolist() == full.tokens[:n].tolist()
        ending = [t in ends or (r.prompt == 4 and t == whole[4].tokens[5]) for t in r.tokens.tolist()]
        assert ending[:-1] == [False] * (n - 1)
        assert r.ended == ending[-1]
        assert r.ended or n == budget
    assert cut[1].tokens.size == 8
    assert cut[4].tokens.size <= 6


def test_drawn_is_the_probability_among_what_was_allowed(llama):
    """At temperature 1 it is log p of the token less that of all that top_k allows."""
    prompts = prompts_of(llama.decoder.shape.n_vocab)
    found = answer(llama, prompts[:3], replace(WARM, top_k=4), 6, samples=2)
    for r in found:
        tokens = np.concatenate([prompts[r.prompt], r.tokens])
        logits = llama_logits(llama, tokens)[prompts[r.prompt].size - 1:-1].astype(np.float64)
        for token, row, drawn in zip(r.tokens, logits, r.drawn, strict=True):
            allowed = np.sort(row)[-4:]
            assert row[token] >= allowed[0] - 1e-4
            assert abs(row[token] - np.log(np.exp(allowed).sum()) - drawn) < 1e-4


def llama_logits(case, tokens):
    decoder = make_decoder(case.decoder.model, replace(case.decoder.run, max_tokens=200, max_length=200))
    decoder.adapter.load(Artifact(case.pairs), "pairs")
    return decoder.logits(collate([Example(tokens.astype(np.int32), np.zeros(tokens.size, np.float32))]))


def test_a_budget_holds_as_many_answers_as_fit():
    plan = AnswerPlan(64, 8, 100, 50)
    assert (plan.prompts, plan.answer_blocks, plan.blocks) == (9, 4, 9 * 7 + 64 * 4)

    def needs(plan):
        return (100 + plan.blocks) << 20

    assert fitting(plan, needs, 419 << 20, "--memory 419M").live == 64
    assert fitting(plan, needs, 418 << 20, "--memory 418M").live == 63
    least = 100 + 7 + 4
    assert fitting(plan, needs, least << 20, "--memory").live == 1
    with pytest.raises(UsageError, match=rf"answer of 50 tokens to a prompt of 100 needs {least} MiB, the budget is "
                                         rf"{least - 1} MiB \(--memory 110M\); give it --memory {least}M"):
        fitting(plan, needs, (least - 1) << 20, "--memory 110M")


def test_a_decoder_goes_with_the_answers_that_it_made(llama):
    """No circle of references keeps its arena until it is looked for."""
    gc.disable()
    try:
        plan = AnswerPlan(4, 1, 10, 10)
        decoder = opened(llama, plan)
        gone = weakref.ref(decoder)
        assert len([*Rollouts(decoder, plan, Wanted([np.arange(5, dtype=np.int32)], 1, [3], GREEDY))]) == 1
        del decoder
        assert gone() is None
    finally:
        gc.enable()


def test_what_cannot_be_answered_is_refused(llama):
    plan = AnswerPlan(4, 1, 10, 10)
    decoder = opened(llama, plan)
    prompt = np.arange(5, dtype=np.int32)
    for asked, says in ((Wanted([prompt, prompt[:0]], 1, [3, 3], GREEDY), "prompt 1 has 0 tokens; choose from 1 to"),
                        (Wanted([np.arange(11, dtype=np.int32)], 1, [3], GREEDY), "prompt 0 has 11 tokens"),
                        (Wanted([prompt], 1, [11], GREEDY), "max_tokens is 11; choose from 1 to 10"),
                        (Wanted([prompt], 0, [3], GREEDY), "samples is 0; choose 1 or more"),
                        (Wanted([prompt], 1, [3], Sampling(frequency_penalty=1)), "frequency_penalty is 1")):
        with pytest.raises(UsageError, match=says):
            Rollouts(decoder, plan, asked)


def test_an_adapter_that_is_not_finite_is_told(llama):
    broken = {name: Pair(pair.a * np.float32("nan"), pair.b, pair.scale) for name, pair in llama.pairs.items()}
    with pytest.raises(NumericsError, match="not finite"):
        answer(replace(llama, pairs=broken), prompts_of(400)[:2], WARM)
