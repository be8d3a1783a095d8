"""The gate for another base in the daemon's slot: what it compares, and what it refuses before."""

from __future__ import annotations

import math
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from daemons import PATIENCE, daemon
from learners import TRAIN, give
from rollouts import write_adapters
from services import same_holdout
from thread_workers import ThreadWorker
from tiny import write_tiny

from edgetune.daemon.client import Client
from edgetune.daemon.jobs.exam import AskedAdapter, GateExam, RowScore
from edgetune.daemon.jobs.llama_examiner import LlamaExaminer
from edgetune.data.dataset import load_rows
from edgetune.errors import UsageError
from edgetune.evaluation.canary import Drift
from edgetune.formats.bundle import open_bundle, write_copy
from edgetune.parts.fleet.bases.job import MeasuredBase, comparable, measured, rise
from edgetune.parts.fleet.bases.slot import make_slot
from edgetune.parts.fleet.rollout.daemons import DaemonByHttp
from edgetune.serving.llama import LlamaModel

CANARY = "turn the light on, set the light to 10, turn the light off"
ROWS = [{"messages": [{"role": "user", "content": f"turn the light {i}"},
                      {"role": "assistant", "content": "on the light"}]} for i in range(3)]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """`one`, with adapters on and off; `other` of other weights; `plain` whose vocabulary has no word."""
    folder = tmp_path_factory.mktemp("bases")
    write_tiny(folder / "one.gguf", n_context=256)
    write_tiny(folder / "other.gguf", n_context=256, seed=1)
    write_adapters(folder / "one.gguf", folder / "one")
    return folder


@pytest.fixture
def running(bases, tmp_path):
    """A daemon on a slot with `one`, where "on" is right; its other side has `other`."""
    slot = make_slot(bases / "one.gguf", tmp_path / "home")
    with slot.filled("b") as beside:
        write_copy(open_bundle(bases / "other.gguf"), beside)
    same_holdout(tmp_path / "state")
    (tmp_path / "canary.txt").write_text(CANARY)
    with daemon(slot.path, tmp_path / "state", TRAIN, start_process=ThreadWorker, context=256,
                canary=str(tmp_path / "canary.txt")) as running:
        give(running.service, range(30))
        yield running


def ask(running, **options):
    with httpx.Client(base_url=running.url, timeout=PATIENCE) as http:
        said = http.post("/v1/base/evaluate", json=options)
        return said.status_code, said.json()["error"]["message"]


@pytest.mark.dev
def test_a_base_that_does_not_fit_is_refused_before_it_is_asked(running, bases):
    new = open_bundle(bases / "other.gguf").fingerprint
    status, said = ask(running, base="sha256:0")
    assert status == 400
    assert "holds the base" in said
    budget = running.service.budget
    running.service.budget = 50 << 20
    status, said = ask(running, base=new)
    assert (status, said[:15]) == (400, "the base needs ")
    assert "the daemon's budget is 50 MiB" in said
    running.service.bare = 0
    running.service.budget = running.service.memory() + (8 << 20)
    status, said = ask(running, base=new)
    assert status == 400
    assert "to evaluate the base next to the present one takes" in said
    running.service.budget = budget
    running.service.slot = None
    assert ask(running, base=new)[1].startswith("this daemon serves no slot")


def test_the_active_adapter_counts_for_the_present_base(running, bases):
    """It answers 6 of 6 exactly; the other base alone none."""
    new = open_bundle(bases / "other.gguf").fingerprint
    running.service.adapters.promote(running.service.adapters.add_foreign(bases / "one" / "on", "").id, "test")
    with Client(running.url) as client:
        found = DaemonByHttp(client).evaluate_base({"base": new, "required": "not-worse"})
        job = client.get("/v1/fine_tuning/jobs")["data"][0]
    assert (job["origin"], job["status"], job["fine_tuned_model"]) == ("base", "succeeded", None)
    assert (found["passed"], found["losses"], found["old"]["right"], found["new"]["right"]) == (False, 6, 6, 0)
    assert found["against"] == running.service.adapters.serving
    assert "scores" not in found
    assert running.service.adapters.serving == found["against"]


@pytest.mark.dev
def test_unrelated_text_limits_a_base_too(bases, tmp_path):
    """By the present base alone: here it answers nothing, so its adapter is what surprises less."""
    slot = make_slot(bases / "one.gguf", tmp_path / "home")
    with slot.filled("b") as beside:
        write_copy(open_bundle(write_tiny(tmp_path / "worse.gguf", n_context=256, seed=2)), beside)
    new = open_bundle(slot.folder("b")).fingerprint
    (tmp_path / "canary.txt").write_text(CANARY)
    with LlamaModel(bases / "one.gguf", threads=1) as one, LlamaModel(tmp_path / "worse.gguf", threads=1) as other:
        losses = [-np.mean(served.logprobs(tokens := served.tokenizer.encode(CANARY, bos=True),
                                           np.arange(len(tokens)) > 0)) for served in (one, other)]
    rises = math.expm1(losses[1] - losses[0])
    for limit, passed in ((rises + 0.01, True), (rises - 0.01, False)):
        with daemon(slot.path, tmp_path / f"state{passed}", TRAIN, start_process=ThreadWorker, context=256,
                    canary=str(tmp_path / "canary.txt"), canary_rise=f"{max(limit, 0) * 100:.2f}%") as running, \
                Client(running.url) as client:
            with pytest.raises(UsageError, match="0 questions are held out on this device, and 4 are needed to "
                               "evaluate a base"):
                DaemonByHttp(client).evaluate_base({"base": new})
            found = DaemonByHttp(client).evaluate_base({"base": new, "if_none": "canary"})
        assert found["canary"]["rise"] == pytest.approx(rises, abs=1e-3)
        assert found["passed"] is (passed or limit < 0)


def test_losses_of_other_tokenizers_are_those_of_whole_answers(bases, tmp_path):
    """A base whose tokenizer has no merges needs more tokens for the same answer."""
    plain = write_tiny(tmp_path / "plain.gguf", n_context=256, metadata={"tokenizer.ggml.merges": ["t h"]})
    exam = GateExam(ROWS, CANARY, max_length=128)
    found = {}
    totals = {}
    for name, path in (("old", bases / "one.gguf"), ("new", plain)):
        with LlamaModel(path, threads=1, context=256) as served:
            found[name] = measured(LlamaExaminer(served, exam), AskedAdapter(None), exam)
            data = load_rows(ROWS, served.tokenizer, max_length=128)
            totals[name] = [-float(np.sum(served.logprobs(one.tokens.tolist(), one.weights != 0)))
                            for one in data.examples]
    assert found["new"].tokens[0] > found["old"].tokens[0]
    assert found["new"].text > found["old"].text
    said = comparable(found["new"], found["old"])
    for i, score in enumerate(said):
        assert score.loss == pytest.approx(totals["new"][i] / found["old"].tokens[i], rel=1e-4)
        assert found["old"].scores[i].loss == pytest.approx(totals["old"][i] / found["old"].tokens[i], rel=1e-4)


def test_what_cannot_be_compared_is_left_out():
    old = MeasuredBase([RowScore(1.0), RowScore(1.0), RowScore(0.5, pair=True)], [4, 0, 0], Drift(0, 0, 9, math.e), 10)
    new = MeasuredBase([RowScore(1.0), RowScore(1.0), RowScore(0.7, pair=True)], [8, 8, 0],
                       Drift(math.e - 1, 0.2, 19, 1.0), 20)
    assert [score.loss for score in comparable(new, old)] == [2.0, None, 0.7]
    found = rise(new, old)
    assert (found.rise, found.kl) == (pytest.approx(math.e - 1), 0.2)  # 2 nats an old token, 1 before
    assert rise(new, SimpleNamespace(drift=None)) is None
