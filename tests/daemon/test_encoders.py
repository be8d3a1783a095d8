"""A daemon whose model is an encoder: it answers with labels or JSON, makes vectors, and learns from corrections."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from encoder_daemon import OPTIONS, forms, labelled, write_adapter, write_tiny_encoder
from encoders import vectors, write_real_minilm
from json_lines import read_lines
from labelled import LLAMA_CPP
from services import same_holdout, until, upload
from thread_workers import ThreadWorker

from edgetune.daemon.jobs.decide import values
from edgetune.daemon.jobs.exam import AskedAdapter, GateExam
from edgetune.daemon.jobs.gate import opened as opened_examiner
from edgetune.daemon.jobs.process import WorkerProcess
from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.service import Service
from edgetune.errors import EdgetuneError, UnsupportedError, UsageError
from edgetune.evaluation.acceptance import Paired
from edgetune.evaluation.judge import same
from edgetune.formats.gguf import open_gguf
from edgetune.machine.policy import Policy
from edgetune.serving.classifier import Classifier
from edgetune.training.config import TrainConfig

TEACH = "enc has learned no answers yet; teach it: send corrections to /v1/feedback, or rows in a fine-tuning job"
PASSED = {"passed": True, "reason": "for a test"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_encoder(tmp_path_factory.mktemp("encoder") / "enc.gguf")


@pytest.fixture(scope="module")
def adapters(model, tmp_path_factory):
    """Adapters of labels, and of JSON, by name."""
    folder = tmp_path_factory.mktemp("adapters")
    return {"labels": write_adapter(model, folder / "labels", labelled()),
            "json": write_adapter(model, folder / "json", forms(), steps=40)}


def opened(model, folder, start_process=ThreadWorker, **options):
    (folder / "state").mkdir(exist_ok=True)
    same_holdout(folder / "state")
    config = DaemonConfig(**{"state": str(folder / "state"), "threads": 1, **options})
    return Service(model, config, Policy(nice=19, govern=False), TrainConfig(**OPTIONS), start_process)


@pytest.fixture(scope="module")
def service(model, adapters, tmp_path_factory):
    """One with both adapters, the one of labels active."""
    with opened(model, tmp_path_factory.mktemp("served")) as served:
        for name, folder in adapters.items():
            served.adapters.add(f"ftjob-{name}", folder, name, PASSED)
        served.adapters.promote(served.adapters.of_job("ftjob-labels").id, "for the test")
        yield served


def said(service, question, **options):
    return service.chat([{"role": "system", "content": "be kind"}, {"role": "user", "content": question}], **options)


# ---- answers --------------------------------------------------------------------------------------------------------


def test_the_encoder_alone_answers_nothing(model, tmp_path):
    with opened(model, tmp_path) as service:
        for model_name in ("", "enc", "enc:latest"):
            with pytest.raises(UsageError) as refused:
                said(service, "turn on the light", model=model_name)
            assert str(refused.value) == TEACH
        with pytest.raises(UsageError, match="teach it"):
            service.classify(["turn on"])
        assert service.health() == {"status": "ok", "reasons": []}


def test_answers_are_those_of_the_classifier(model, adapters, service):
    asked = [row["prompt"] for row in labelled(12, first=60)]
    with Classifier(model, adapters["labels"], threads=1) as served:
        expected = served.classify(asked)
    for question, wanted in zip(asked, expected, strict=True):
        found = said(service, question, logprobs=2)
        assert [*found] == [wanted.label]
        assert found.finish == "stop"
        token, = found.logprobs
        assert token.piece.decode() == wanted.label
        assert np.exp(token.logprob) == pytest.approx(wanted.probability, abs=1e-6)
        assert [piece.decode() for _, piece, _ in token.top] == sorted(
            ("lamp_off", "lamp_on"), key=lambda label: label != wanted.label)
        assert sum(np.exp(logprob) for _, _, logprob in token.top) == pytest.approx(1, abs=1e-5)
        assert found.prompt_tokens == len(service.served.tokenizer.encode(question))
        assert found.completion_tokens > 0


def test_a_prompt_may_be_tokens(service):
    question = labelled(2)[0]["prompt"]
    ids = service.served.tokenizer.encode(question)
    assert service.generate(ids).text() == service.generate(question).text()
    with pytest.raises(UsageError, match="a question is empty"):
        service.generate(ids[:1])


def test_several_adapters_answer_at_once(model, adapters, service):
    """Hundreds of requests, two adapters mixed: each answer is that of its adapter alone."""
    asked = [(name, row["prompt"]) for i in range(60) for name, rows in (("labels", labelled()), ("json", forms()))
             for row in rows[i % 20:i % 20 + 2]]
    expected = {}
    for name, folder in adapters.items():
        with Classifier(model, folder, threads=1) as served:
            mine = sorted({question for one, question in asked if one == name})
            expected |= {(name, question): found.label
                         for question, found in zip(mine, served.classify(mine), strict=True)}
    ids = {name: service.adapters.of_job(f"ftjob-{name}").id for name in adapters}
    found = [(key, said(service, key[1], model=ids[key[0]])) for key in asked]
    assert len(found) == 240
    assert all(completion.text() == expected[key] for key, completion in found)
    assert len({expected[key] for key in asked}) > 20


def test_adapters_come_and_go_while_others_answer(adapters, service):
    made = service.adapters.add("ftjob-third", adapters["labels"], "third", PASSED)
    stop = threading.Event()
    failed = []

    def ask():
        while not stop.is_set():
            if said(service, "turn on the light a a").text() not in ("lamp_on", "lamp_off"):
                failed.append("another answer")

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        assert said(service, "turn on the light", model=made.id).text() in ("lamp_on", "lamp_off")
        service.adapters.delete(made.id)
    finally:
        stop.set()
        asking.join()
    assert not failed
    with pytest.raises(EdgetuneError, match="there is no model"):
        said(service, "turn on the light", model=made.id)


def test_forms_that_an_encoder_cannot_have_are_refused(service):
    from edgetune.serving.question import Question
    tool = {"type": "function", "function": {"name": "lamp"}}
    messages = [{"role": "user", "content": "turn on"}]
    for question, what in ((Question(messages=messages, tools=[tool]), "calls no tools"),
                           (Question(messages=messages, schema={"type": "object"}), "in the form that it learned"),
                           (Question(prompt="turn on", echo=True), "continues no prompt")):
        with pytest.raises(UnsupportedError, match=f"enc is an encoder, which .*{what}"):
            service.ask(question)
    with pytest.raises(UsageError, match="temperature is -1"):
        said(service, "turn on", temperature=-1)


@pytest.mark.parametrize(("options", "what"), [
    ({"context": 512}, "context is 512, and enc is an encoder"),
    ({"learn_method": "dpo"}, "learn-method is dpo, by which this model cannot learn; choose classify")])
def test_options_that_an_encoder_cannot_follow_are_refused(model, tmp_path, options, what):
    with pytest.raises(UsageError, match=what):
        opened(model, tmp_path, **options).start()


def test_vectors_are_those_of_llama_cpp(model, service):
    texts = ["turn on the light", "kitchen", "a b c d e f, the kitchen light."]
    found = service.embed(texts)
    assert np.linalg.norm(found.vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert np.abs(found.vectors - vectors(model, texts)).max() <= LLAMA_CPP
    assert found.tokens == sum(len(service.served.tokenizer.encode(text)) for text in texts)


def test_labels_have_probabilities(model, adapters, service):
    texts = [row["prompt"] for row in labelled(8, first=60)]
    labels, found = service.classify(texts)
    assert labels == ("lamp_off", "lamp_on")
    with Classifier(model, adapters["labels"], threads=1) as served:
        for completion, wanted in zip(found, served.classify(texts), strict=True):
            assert completion.text() == wanted.label
            assert np.exp(completion.among) == pytest.approx(wanted.probabilities, abs=1e-6)
    labels, (one,) = service.classify(["turn on the light a"], service.adapters.of_job("ftjob-json").id)
    assert labels == ()
    assert set(json.loads(one.text())) == {"way", "lamp"}
    assert one.among.shape == (1,)


def test_neither_pytorch_nor_llama_cpp_is_imported(model, tmp_path):
    """By a daemon of an encoder, that answers."""
    program = ("import sys\nfrom edgetune.daemon.options import DaemonConfig\n"
               "from edgetune.daemon.service import Service\n"
               "with Service(sys.argv[1], DaemonConfig(state=sys.argv[2])) as service:\n    service.embed(['on'])\n"
               "print([name for name in ('torch', 'llama_cpp', 'transformers') if name in sys.modules])")
    found = subprocess.run([sys.executable, "-c", program, model, tmp_path / "state"], text=True, capture_output=True,
                           check=True)
    assert found.stdout == "[]\n"


# ---- learning -------------------------------------------------------------------------------------------------------


@pytest.mark.dev
def test_corrections_become_answers(model, tmp_path):
    """By the head and LoRA; a second lesson keeps the first one's label; a roll-back leads to the adapter before; a
    restart answers again.
    """
    rows = labelled(40)
    with opened(model, tmp_path) as service:
        for row in rows:
            service.feedback.add(prompt=row["prompt"], correction=row["completion"])
        recalled = service.generate(rows[0]["prompt"])
        assert (recalled.source, recalled.text()) == ("recall", rows[0]["completion"])
        job = service.jobs.wait(service.learner.begin().id, 120)
        assert job.verdict["passed"], job.verdict
        assert job.method["type"] == "classify"
        first = service.adapters.serving
        kept = job.verdict["corrected"]
        assert kept["kept"] >= 0.9 * kept["rows"] > 20
        assert job.verdict["old"]["right"] == 0
        assert job.verdict["canary"] is None
        assert said(service, rows[1]["prompt"], model=first).text() == rows[1]["completion"]
        for letter in "abcdefghijklmnopqrstuvwxyz":
            service.feedback.add(prompt=f"the kitchen, the kitchen {letter}", correction="kitchen")
        job = service.jobs.wait(service.learner.begin().id, 120)
        assert job.verdict["passed"], job.verdict
        second = service.adapters.serving
        assert second != first
        assert service.served.labels_of(second) == ("kitchen", "lamp_off", "lamp_on")
        assert job.verdict["rounds"][0]["rows"] > 0  # questions of the first lesson
        service.adapters.rollback("for the test")
        assert service.adapters.serving == first
        expected = [said(service, row["prompt"], model=first).text() for row in rows]
    with opened(model, tmp_path) as service:
        assert service.adapters.serving == first
        assert [said(service, row["prompt"], model=first).text() for row in rows] == expected


def test_a_further_label_makes_no_right_answer_worse(model, tmp_path):
    """A right answer has another probability then, by the soft-max over one label more and by the calibration."""
    rows = labelled(40)
    kitchen = [{"prompt": f"the kitchen, the kitchen {letter}", "completion": "kitchen"} for letter in "abcdefgh"]
    before = write_adapter(model, tmp_path / "before", rows)
    after = write_adapter(model, tmp_path / "after", [*rows, *kitchen])
    sure = [Classifier(model, path, 1).classify([rows[0]["prompt"]])[0].probability for path in (before, after)]
    assert sure[0] != sure[1]
    exam = GateExam([*rows, *kitchen])
    with opened_examiner(open_gguf(model), {"old": before, "new": after}, exam, 1 << 30, 1, int,
                         lambda _done, _of: None) as examiner:
        scores = [examiner.scores(AskedAdapter(name), exam.rows) for name in ("old", "new")]
    right = [pair for pair in zip(*scores, strict=True) if pair[0].right and pair[1].right]
    assert len(right) >= 20
    counts = Paired.of(*zip(*values(*zip(*right, strict=True)), strict=True))
    assert (counts.wins, counts.losses, counts.ties) == (0, 0, len(right))
    learned = Paired.of(*zip(*values(*(some[len(rows):] for some in scores)), strict=True))  # of the further label
    assert (learned.wins, learned.losses) == (sum(score.right for score in scores[1][len(rows):]), 0)


@pytest.mark.dev
def test_a_file_of_json_is_learned_field_by_field(model, tmp_path):
    """A process that is killed is followed by another, which resumes its work."""
    rows = forms(48)
    with opened(model, tmp_path, WorkerProcess) as service:
        job = service.jobs.create("enc", upload(service, rows), hyperparameters={"epochs": 12.0})
        pid = until(lambda: service.jobs.pid)
        until(lambda: (service.jobs.running or job).progress)
        os.kill(pid, signal.SIGKILL)
        job = service.jobs.wait(job.id, 120)
        assert job.status == "succeeded", job.error
        assert any("resumes from what was saved" in event["message"] for event in service.jobs.events(job.id, limit=99))
        right = sum(same(row["completion"], said(service, row["prompt"], model=job.result).text()) for row in rows)
        assert right >= 40
        with pytest.raises(UnsupportedError, match="cannot learn by the method dpo; choose from classify"):
            service.jobs.create("enc", upload(service, rows), method={"type": "dpo"})


def test_a_job_that_does_not_fit_says_which_memory_would_do(model, tmp_path):
    with opened(model, tmp_path, memory="1M") as service:
        job = service.jobs.wait(service.jobs.create("enc", upload(service, labelled(24))).id, 120)
        assert job.status == "failed"
        assert re.search(r"start the daemon with --memory \d+M$", job.error["message"])


@pytest.mark.dev
def test_minilm_learns_forty_corrections(tmp_path):
    """The real one, by its heads alone: it answers 38 of 40, with those that are recalled."""
    model = write_real_minilm(tmp_path / "minilm.gguf")
    rows = [{"prompt": row["prompt"], "completion": json.loads(row["completion"])["device"]}
            for row in read_lines(Path(__file__).parents[2] / "examples/home/rows.jsonl")][:40]
    with opened(model, tmp_path, learn_options="steps=1") as service:
        for row in rows:
            service.feedback.add(prompt=row["prompt"], correction=row["completion"])
        job = service.jobs.wait(service.learner.begin().id, 120)
        assert job.verdict["passed"], job.verdict
        kept = [said(service, row["prompt"], model=job.result).text() == row["completion"] for row in rows]
        assert sum(kept) >= 36
        assert sum(service.generate(row["prompt"]).text() == row["completion"] for row in rows) >= 38
