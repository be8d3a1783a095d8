"""Epsilon of noise: by Google's dp-accounting, by the definition of the mechanism, and as rounds say it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from commands import run
from json_lines import write_lines
from safetensors.numpy import load_file

from edgetune.errors import UsageError
from edgetune.parts.fleet.privacy import delta_of, epsilon_of, multiplier_for, sampled_epsilon, spent, total
from edgetune.parts.fleet.rounds.member import noisy
from edgetune.parts.fleet.rounds.options import Noise
from edgetune.parts.fleet.rounds.task import RoundRecord

OWN = ("--threads", 1, "--no-govern", "--eval", "none")
TRAINING = ("--aggregation", "frozen-a", "--rank", 2, "--max-length", 64, "--precision", "exact")


def own_tail(x):
    """P(Z > x) of a standard normal Z, by the sum of its density."""
    step = 1e-4
    at = np.arange(x, x + 12.0, step) + step / 2
    return float(np.sum(np.exp(-at * at / 2.0)) * step / math.sqrt(2.0 * math.pi))


@pytest.mark.parametrize(("multiplier", "rounds", "delta", "epsilon"), [
    (1.0, 1, 1e-5, 4.37717810002493), (1.0, 10, 1e-5, 17.85658683146691), (4.0, 10, 1e-5, 3.341409471859205),
    (0.5, 1, 1e-5, 9.99725615024243), (10.0, 100, 1e-6, 4.886554124377032)])
def test_epsilon_is_that_of_dp_accounting(multiplier, rounds, delta, epsilon):
    """The values are those of PLDAccountant of dp-accounting 0.6.0 with intervals of 1e-4, its tightest bound."""
    assert epsilon_of(math.sqrt(rounds) / multiplier, delta) == pytest.approx(epsilon, rel=1e-7)


@pytest.mark.parametrize(("multiplier", "share", "rounds", "delta", "epsilon", "least"), [
    (1.0, 0.01, 1000, 1e-5, 2.1077530754515745, 1.8282436455855091),
    (0.8, 0.1, 50, 1e-5, 9.554618433850539, 8.062456566153791),
    (2.0, 0.2, 10, 1e-6, 2.1313879422898703, 1.9023162423812945),
    (1.1, 0.05, 100, 1e-5, 3.3601478328592913, 2.886821941473764),
    (5.0, 0.5, 100, 1e-7, 5.856087025481135, 5.509753815377871)])
def test_the_bound_for_samples_is_that_of_dp_accounting(multiplier, share, rounds, delta, epsilon, least):
    """epsilon: of its RdpAccountant with the same orders; least: of its PLDAccountant, which is tighter."""
    found = sampled_epsilon(multiplier, share, rounds, delta)
    assert found == pytest.approx(epsilon, rel=1e-9)
    assert least < found < sampled_epsilon(multiplier, 1.0, rounds, delta)


def test_delta_by_the_definition():
    """By the mass that one Gaussian has above e^epsilon times another, added up."""
    for mu, epsilon in ((0.5, 0.3), (1.0, 2.0), (2.0, 0.5), (3.0, 9.0)):
        expected = own_tail(epsilon / mu - mu / 2) - math.exp(epsilon) * own_tail(epsilon / mu + mu / 2)
        assert delta_of(epsilon, mu) == pytest.approx(expected, rel=1e-4)


def test_far_losses_are_finite_and_grow():
    """No tail is lost where numbers are small or large."""
    losses = [10.0**k for k in range(-6, 5)]
    found = [epsilon_of(mu, 1e-9) for mu in losses]
    assert all(math.isfinite(epsilon) for epsilon in found)
    assert sorted(found) == found
    assert found[-1] == pytest.approx(losses[-1]**2 / 2, rel=0.01)
    assert epsilon_of(math.inf) == math.inf
    assert epsilon_of(0.0) == 0.0


def test_the_multiplier_for_an_epsilon_has_it():
    for share in (1.0, 0.1):
        multiplier = multiplier_for(8.0, share, 10)
        assert sampled_epsilon(multiplier, share, 10) == pytest.approx(8.0, rel=1e-9)
    for wrong in (lambda: multiplier_for(0.0, 1.0, 10), lambda: sampled_epsilon(1.0, 0.0, 1), lambda: epsilon_of(1, 1)):
        with pytest.raises(UsageError):
            wrong()


def test_noise_has_its_deviation_and_the_norm_is_kept():
    arrays = {"a": np.full((200, 300), 0.5, np.float16)}
    found = noisy(arrays, Noise(2.0, 0.05), seed=1)["a"].astype(np.float64)
    scaled = 0.5 * 2.0 / math.sqrt(200 * 300 * 0.25)
    assert found.std() == pytest.approx(0.1, rel=0.01)
    assert found.mean() == pytest.approx(scaled, abs=4 * 0.1 / math.sqrt(found.size))


def record(number, answer, summed):
    return RoundRecord(number, 3, 0, 3, None, None, 0.0, 0.0, 1, 1, answer, summed)


def test_rounds_add_up():
    found = spent([record(1, 1.0, 0.5), record(2, 1.0, 0.5)])
    assert found.answer.last == epsilon_of(1.0)
    assert found.answer.total == epsilon_of(total([1.0, 1.0]))
    assert found.sum.total == epsilon_of(math.sqrt(0.5))
    broken = spent([record(1, None, None), record(2, 1.0, None)])
    assert (broken.answer.last, broken.answer.total) == (epsilon_of(1.0), None)
    assert broken.sum.last is None
    assert spent([record(1, None, None)]) is None


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    return [write_lines(folder / f"{letter}.jsonl",
                        [{"prompt": f"say {letter} {i}", "completion": letter * 2} for i in range(4 + number)])
            for number, letter in enumerate("abc")]


def test_a_round_with_noise_says_its_epsilon(tiny_llama, rows, tmp_path):
    """And an answer says nothing of its rows but its noisy values: no losses, no counts, no norm of its own, and not
    how long or how large the training was.
    """
    model = ("--model", tiny_llama)
    run("fleet", "task", tiny_llama, *TRAINING, "--noise", 2, "--noise-norm", 0.5, "-o", tmp_path / "one")
    for number, file in enumerate(rows):
        learn = ("fleet", "train-round", tmp_path / "one", file, *model, *OWN, "-o", tmp_path / f"answer{number}")
        text = run(*learn, "--device", f"device{number}")
        assert "epsilon 1.99 at delta 1e-05 against whoever sees it" in text
    facts = json.loads((tmp_path / "answer1" / "answer.json").read_text())
    assert (facts["rows"], facts["tokens"], facts["held_rows"], facts["loss_before"]) == (1, 1, 0, None)
    assert (facts["noise"], facts["noise_norm"]) == (1.0, 0.5)
    assert (facts["seconds"], facts["peak_mib"]) == (0.0, 0.0)
    other = json.loads((tmp_path / "answer2" / "answer.json").read_text())  # of a device with more rows
    assert {name for name in facts if facts[name] != other[name]} == {"device", "update", "norm"}
    sent = load_file(tmp_path / "answer1" / "update.safetensors")
    values = np.concatenate([array.reshape(-1) for array in sent.values()]).astype(np.float64)
    assert values.std() == pytest.approx(1.0, rel=5 / math.sqrt(2 * values.size))
    answers = [tmp_path / f"answer{number}" for number in range(3)]
    found = json.loads(run("fleet", "aggregate", tmp_path / "one", *answers, *model, "-o", tmp_path / "two", "--json"))
    assert [one["share"] for one in found["counted"]] == [pytest.approx(1 / 3, abs=1e-4)] * 3
    assert found["privacy"]["answer"]["total"] == pytest.approx(epsilon_of(0.5))
    assert found["privacy"]["sum"]["total"] == pytest.approx(epsilon_of(0.5 / math.sqrt(3)))
    status = run("fleet", "status", tmp_path / "two", "--delta", 1e-6)
    assert f"epsilon {epsilon_of(0.5, 1e-6):.3g} in the last round" in status
    assert "against whoever sees the sums alone" in status


@pytest.mark.dev
@pytest.mark.parametrize(("facts", "reason"), [
    ({"noise": 0.5}, "has noise of 0.5 with the norm 0.5, the task asks for 1 with 0.5"),
    ({"noise_norm": 0.6}, "with the norm 0.6"), ({"tokens": 50}, "weighs 50 tokens")])
def test_less_noise_than_the_task_asks_for_is_left_out(tiny_llama, rows, tmp_path, facts, reason):
    model = ("--model", tiny_llama)
    run("fleet", "task", tiny_llama, *TRAINING, "--noise", 2, "--noise-norm", 0.5, "-o", tmp_path / "one")
    run("fleet", "train-round", tmp_path / "one", rows[0], *model, *OWN, "-o", tmp_path / "answer")
    written = json.loads((tmp_path / "answer" / "answer.json").read_text())
    (tmp_path / "answer" / "answer.json").write_text(json.dumps({**written, **facts}))
    assert reason in run("fleet", "aggregate", tmp_path / "one", tmp_path / "answer", *model, "-o", tmp_path / "two",
                         code=1)


def test_noise_that_cannot_be(tiny_llama, rows, tmp_path):
    task = ("fleet", "task", tiny_llama, "-o", tmp_path / "one")
    assert "in whose products it would multiply" in run(*task, "--noise", 1, code=2)
    run(*task, *TRAINING, "--noise", 1)
    assert "the task says how much: 1 times 1" in run(
        "fleet", "train-round", tmp_path / "one", rows[0], "--model", tiny_llama, *OWN, "--noise", 2, "-o",
        tmp_path / "answer", code=2)
    assert "are both given, or neither is" in run("fleet", "privacy", "--devices", 10, code=2)


def test_the_noise_for_an_epsilon_is_found():
    found = json.loads(run("fleet", "privacy", "--epsilon", 8, "--devices", 100, "--json"))
    assert found["sum"]["total"] == pytest.approx(8.0)
    assert found["answer"]["total"] == pytest.approx(epsilon_of(math.sqrt(10) / found["noise"]))
    assert "epsilon 4.38 a round" in run("fleet", "privacy", "--noise", 1, "--devices", 3)
