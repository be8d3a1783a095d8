"""Self-correction by rewards of two turns: gradients as autograd has them on the paper's formula in both stages, second
prompts as a conversation has them, and runs that resume to the same bytes in the midst of their answers.
"""

import json
from functools import partial

import numpy as np
import pytest
import torch
from decoder_cases import adapted, distance, make_case, random_example
from durable import check_resumes, metrics
from gradients import autograd, gradient_over, supervised_logps
from policy_cases import LETTERS, letters

from edgetune.data import again
from edgetune.data.attempts import REQUEST
from edgetune.data.dataset import load_rows
from edgetune.data.packing import Example
from edgetune.data.trees import micro_batches
from edgetune.errors import UsageError
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.objectives.score import Score
from edgetune.training.answers import AnswerExamples
from edgetune.training.config import TrainConfig
from edgetune.training.reference import Reference
from edgetune.training.rewards import Reward
from edgetune.training.run import run
from edgetune.training.trainer import Trainer

LENGTH = 256  # the tiny vocabulary parts the request into letters
G = 3
ROWS = [{"prompt": f"set {i}", "wanted": "eiou"[i % 4]} for i in range(8)]
OPTIONS = {**LETTERS, "max_length": LENGTH}
OWN = Score(max_completion_length=9, num_generations=2, first_stage_epochs=0.5)


# ---- the formula -----------------------------------------------------------------------------------------------------


def conversations(n_vocab):
    """Of two prompts, each with G first answers and as many second ones, all of other lengths: documents."""
    rng = np.random.default_rng(5)

    def document(prompt, size):
        tokens = np.r_[prompt, random_example(rng, size, n_vocab).tokens].astype(np.int32)
        return Example(tokens, np.r_[np.zeros(prompt.size), np.ones(size)].astype(np.float32))

    found = []
    for _ in range(2):
        prompt = random_example(rng, 10, n_vocab).tokens
        first = [document(prompt, n) for n in (5, 3, 6)]
        request = random_example(rng, 4, n_vocab).tokens
        second = [document(np.r_[one.tokens, request], n) for one, n in zip(first, (4, 7, 2), strict=True)]
        found.append([*first, *second])
    return found


def formula(score, is_first_stage, rewards, logps, of_start):
    """SCoRe's equations 3 and 4 with the mean of the other answers as the baseline, by torch; [P, 2, G] rewards."""
    losses = []
    for p, of_prompt in enumerate(rewards.tolist()):
        r1, r2 = of_prompt
        for turn in range(2):
            for i in range(G):
                at = (p * 2 + turn) * G + i
                if is_first_stage:
                    worth = [0.0] * G if turn == 0 else r2
                    beta = score.beta + (score.first_turn_beta if turn == 0 else 0.0)
                else:
                    worth = r1 if turn == 0 else [b + score.progress_weight * (b - a) for a, b in
                                                  zip(r1, r2, strict=True)]
                    beta = score.beta
                advantage = worth[i] - sum(worth[:i] + worth[i + 1:]) / (G - 1)
                u = of_start[at] - logps[at]
                ratio = (logps[at] - logps[at].detach()).exp()
                losses.append(-(ratio * advantage - beta * (u.exp() - u - 1)).sum())
    return torch.stack(losses).mean()


@pytest.mark.dev
@pytest.mark.parametrize("is_first_stage", [True, False], ids=["first stage", "second stage"])
def test_gradients_equal_autograd(is_first_stage, tmp_path):
    score = Score(num_generations=G, beta=0.05, first_turn_beta=0.4, progress_weight=3.0)
    case = make_case("llama", tmp_path)
    documents = conversations(case.decoder.shape.n_vocab)
    rewards = np.random.default_rng(6).random((2, 2, G)).astype(np.float32)
    epochs = 0.9 if is_first_stage else 1.0
    worth = score.worth(rewards.reshape(2, 2 * G), np.zeros((2, 2 * G), np.bool_), epochs)
    held = score.held((2, 2 * G), epochs)
    case.examples[:] = [Example(one.tokens, one.weights, reward=float(a), held=float(h))
                        for of, worths, helds in zip(documents, worth, held, strict=True)
                        for one, a, h in zip(of, worths, helds, strict=True)]
    peft = adapted(case)
    with torch.no_grad(), peft.disable_adapter():
        of_start = supervised_logps(peft, case.examples)
    wanted, truth = autograd(case, lambda logps, _: formula(score, is_first_stage, rewards, logps, of_start), peft)
    micros = micro_batches(case.examples, 64)
    assert len(micros) > 1
    loss, ours = gradient_over(case.decoder, score, case.examples, micros, Reference(case.decoder))
    assert loss == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    assert np.linalg.norm(truth) > 1e-3
    assert distance(ours, truth) < 1e-4


# ---- two turns -------------------------------------------------------------------------------------------------------


def data(bundle, rows=ROWS):
    return load_rows(rows, Tokenizer(bundle.gguf.path), max_length=LENGTH, parser=OWN.rows)


@pytest.mark.parametrize("asked", [{"prompt": "set it"}, {"messages": [{"role": "system", "content": "be short"},
                                                                       {"role": "user", "content": "set it"}]}])
def test_the_second_prompt_is_that_of_the_conversation(bundle, asked):
    tokenizer = Tokenizer(bundle.gguf.path)
    before = asked.get("messages") or [{"role": "user", "content": "set it"}]
    text = tokenizer.render([*before, {"role": "assistant", "content": "on 1"}, {"role": "user", "content": REQUEST}],
                            None, add_generation_prompt=True)
    found = again.second_prompt(json.dumps({**asked, "answer": 7}), "on 1", tokenizer, None)
    assert found.tolist() == tokenizer.encode(text, bos=True)


def test_both_turns_are_drawn_and_rewarded(bundle):
    """Each second answer follows its own first one, and everything fits into what was planned."""
    trainer = Trainer(bundle, **OPTIONS, objective=OWN, rewards=letters)
    trainer.add(ROWS)
    assert isinstance(trainer.source, AnswerExamples)
    tokenizer = trainer.tokenizer
    answered = trainer.source.roller.answer(trainer.batch(1), OWN.num_generations, 0, 0)
    assert answered.penalized.shape == (2, 4)
    for row, asked, answers in zip(trainer.batch(1), answered.asked, answered.answers, strict=True):
        assert [one.tokens.tolist() for one in asked[:2]] == [row.tokens.tolist()] * 2
        for first, second in zip(answers[:2], asked[2:], strict=True):
            said = tokenizer.decode(first.tokens[:first.tokens.size - int(first.ended)].tolist())
            wanted = again.second_prompt(row.item, said, tokenizer, None)
            if wanted.size <= row.longest + 9:  # else its end was left out
                assert second.tokens.tolist() == wanted.tolist()
            assert second.tokens.size <= row.longest + 9
    metrics = answered.metrics()
    assert metrics["reward"] == pytest.approx(answered.penalized[:, 2:].mean(), rel=1e-6)
    assert metrics["reward/first"] == pytest.approx(answered.penalized[:, :2].mean(), rel=1e-6)
    result = trainer.step()
    assert set(result.metrics) >= {"reward", "reward/first", "corrected", "spoiled", "kl"}


@pytest.mark.slow
def test_stopped_anywhere_it_resumes_to_the_same_bytes(bundle, tmp_path):
    """In both stages, between two updates with the same answers, and in their midst."""
    objective = Score(max_completion_length=9, num_generations=2, first_stage_epochs=0.5, num_iterations=2,
                      steps_per_generation=2)
    check_resumes(partial(run, bundle, data(bundle), config=TrainConfig(**OPTIONS), objective=objective,
                          rewards=letters), tmp_path, 60, 130, 190)


def test_rewards_that_teach_nothing_are_refused(bundle, tmp_path):
    """Also where the model would be held to what it started from."""
    with pytest.raises(UsageError, match=r"all answers to a prompt have the same reward, 0\.5 in the mean"):
        run(bundle, data(bundle), tmp_path / "out", TrainConfig(**OPTIONS), objective=OWN,
            rewards=lambda found: [Reward(0.5) for _ in found])


def common(found):
    """The share of an answer that is common letters: some of most answers, so that there is something to raise."""
    return [Reward(sum(letter in "etaoinsr" for letter in one.text) / max(len(one.text), 1)) for one in found]


@pytest.mark.dev
@pytest.mark.learning
def test_a_run_raises_the_reward_of_second_answers(bundle, tmp_path):
    """And is measured by it."""
    objective = Score(max_completion_length=9, num_generations=8, first_stage_epochs=10.0)
    config = TrainConfig(**{**OPTIONS, "steps": 12, "batch_size": 4, "lr": 2e-2})
    rows = data(bundle, ROWS[:4])
    record = run(bundle, rows, tmp_path / "out", config, objective=objective, rewards=common, held_out=rows)
    events = metrics(tmp_path / "out")
    steps = [event["metrics"] for event in events if event["event"] == "step"]
    measured = [event for event in events if event["event"] == "eval"]
    assert np.mean([one["reward"] for one in steps[-5:]]) > np.mean([one["reward"] for one in steps[:5]]) + 0.02
    assert record["measure"] == "reward"
    assert measured[0]["loss"] == pytest.approx(-measured[0]["metrics"]["reward"])
