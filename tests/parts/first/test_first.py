"""edgetune.parts.first.encoder: an encoder answers what it is sure of, and the model the rest."""

import json
import shutil
import time
from dataclasses import replace

import pytest
from encoders import WORDS, tiny_bert, write_encoder
from services import open_service, until

from edgetune.adapters.store import FILE, read_artifact, save_artifact
from edgetune.daemon import threads
from edgetune.daemon.learning.recall import Recall
from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.service import Service
from edgetune.errors import EdgetuneError, FormatError, NotFoundError, UsageError
from edgetune.formats.bundle import open_bundle
from edgetune.formats.gguf import open_gguf
from edgetune.parts.first import running as contest
from edgetune.parts.first.encoder import First, FirstEncoder
from edgetune.parts.first.options import FirstOptions
from edgetune.runs.train import train
from edgetune.serving.classifier import Classifier
from edgetune.serving.completion import MODEL
from edgetune.serving.encoder import encoder_of

LETTERS = "abcdefghijklmnopqrstuvwxyz"
QUESTIONS = [f"{a} {b} {c}" for a in ("turn", "light", "kitchen") for b in ("on", "off") for c in LETTERS]
ROWS = [{"prompt": question, "completion": "lit" if " on " in question else "dark"} for question in QUESTIONS]
SHARE = 0.6
COMMANDS = [{"prompt": f"turn {word} the {letter} light", "completion": json.dumps({"do": does, "place": letter})}
            for word, does in (("on", "start"), ("off", "stop")) for letter in LETTERS]


@pytest.fixture(scope="module")
def intents(tmp_path_factory):
    """The folder of an adapter: heads alone, on all rows."""
    folder = tmp_path_factory.mktemp("first")
    encoder = write_encoder(folder / "encoder.gguf", tiny_bert(), WORDS)
    train(encoder, ROWS, folder / "intents", "none", steps=1, rank=4, threads=1)
    return folder / "intents"


@pytest.fixture(scope="module")
def known(intents):
    """(a sure question, its answer, a question that is not sure)"""
    with Classifier(encoder_of(intents), intents, threads=1) as served:
        found = served.classify(QUESTIONS)
        threshold = served.sureness.threshold(SHARE)
    by_probability = sorted(zip(found, QUESTIONS, strict=True), key=lambda pair: pair[0].probability)
    assert by_probability[0][0].probability < threshold < by_probability[-1][0].probability
    return by_probability[-1][1], by_probability[-1][0].label, by_probability[0][1]


@pytest.fixture
def service(tmp_path, intents):
    with open_service(tmp_path, context=512, first=str(intents), first_share=SHARE) as service:
        yield service


def asked(text):
    return [{"role": "user", "content": text}]


def source(service, messages, **options):
    answer = service.chat(messages, **{"max_tokens": 8, **options})
    answer.text()
    return answer.source


@pytest.mark.dev
def test_sure_answers_are_the_encoders_and_others_the_models(service, known):
    sure, label, unsure = known
    answer = service.chat(asked(f" {sure} "))
    assert (answer.text(), answer.source, answer.finish) == (label, First.name, "stop")
    assert answer.completion_tokens == len(service.served.tokenizer.encode(label, continues=True))
    assert answer.details["probability"] >= service.running["first"].encoder.threshold
    other = service.chat(asked(unsure), max_tokens=8)
    assert (other.text(), other.source) == (service.chat(asked(unsure), model=service.name, max_tokens=8).text(), MODEL)
    assert service.device()["answered"] == {First.name: 1, MODEL: 2}


def test_only_plain_questions_are_its_own(service, known):
    sure = known[0]
    tools = [{"type": "function", "function": {"name": "lamp"}}]
    assert source(service, asked(sure), model=f"{service.name}:latest", temperature=0.7) == First.name
    for messages, options in (
            ([{"role": "system", "content": "answer in French"}, *asked(sure)], {}),
            ([*asked("light"), {"role": "assistant", "content": "on"}, *asked(sure)], {}),
            ([*asked("light"), *asked(sure)], {}), (asked(sure), {"tools": tools}),
            (asked(sure), {"grammar": 'root ::= "x"'}),
            (asked(sure), {"logprobs": 0}), (asked(sure), {"model": service.name}), (asked(sure), {"max_tokens": 1}),
            (asked(sure), {"stop": known[1][1]})):
        assert source(service, messages, **options) == MODEL
    assert service.generate(sure, max_tokens=2).source == MODEL
    with pytest.raises(EdgetuneError):
        service.chat(asked(sure), top_p=-1)


def test_feedback_counts_more_than_what_it_learned(tmp_path, intents, known):
    sure, label, _ = known
    with open_service(tmp_path, context=512, first=str(intents), first_share=SHARE, recall=False) as service:
        others = [row["prompt"] for row in ROWS if row["prompt"] != sure]
        other = next(text for text in others if source(service, asked(text)) == First.name)
        service.feedback.add(messages=asked(sure), answer=label, rating="up")
        assert source(service, asked(sure)) == First.name
        service.feedback.add(messages=asked(sure), answer=label, correction="another")
        assert source(service, asked(sure)) == MODEL
        service.feedback.add(messages=asked(other), answer=service.chat(asked(other)).text(), rating="down")
        assert source(service, asked(other)) == MODEL
    with open_service(tmp_path, context=512, first=str(intents), first_share=SHARE) as service:
        assert source(service, asked(sure)) == Recall.name


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """The folder of an adapter of JSON whose kinds are all sure, and whose values are not."""
    folder = tmp_path_factory.mktemp("commands")
    encoder = write_encoder(folder / "encoder.gguf", tiny_bert(), WORDS)
    for name, rows in (("rows", COMMANDS[::2]), ("held", COMMANDS[1::2])):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    train(encoder, folder / "rows.jsonl", folder / "out", folder / "held.jsonl", rank=4, threads=1, epochs=6, lr=3e-3)
    base = open_gguf(encoder)
    found = read_artifact(folder / "out", base)
    known = {"sureness": {"rows": 26, "levels": [[1.1, 1.0, 0.0]], "certainty": 0.95},
             "kinds": {"rows": 26, "levels": [[0.0, 1.0, 1.0]], "certainty": 0.95}}
    likeness = {**found.facts["likeness"], "limit": -1.0}
    save_artifact(folder / "out" / FILE, replace(found, facts={**known, "likeness": likeness}), base)
    return folder / "out"


def compared(service):
    """What the contest of a service says once it is over."""
    for _ in range(600):
        if (facts := service.device()["first"])["compared"]:
            return facts
        time.sleep(0.05)
    raise AssertionError("nothing was compared")


@pytest.mark.dev
def test_where_values_are_not_sure_the_better_one_answers(tmp_path, commands, monkeypatch):
    """The model's random answers are wrong; then what is no JSON is taken for right."""
    monkeypatch.setattr(contest, "CHECK_SECONDS", 0.01)
    held = [row["prompt"] for row in COMMANDS[1::2]]
    with open_service(tmp_path, context=512, first=str(commands)) as service:
        encoder = service.running["first"].encoder
        assert [question for question, _ in contest.unsure(encoder)] == held
        facts = compared(service)
        right = sum(encoder.answer(row["prompt"]).text == row["completion"] for row in COMMANDS[1::2])
        assert facts == {"compared": len(held), "encoder": right, "model": 0, "unsure": First.name}
        assert right
        assert source(service, asked(held[0]), max_tokens=64) == First.name
    monkeypatch.setattr(contest, "same", lambda _, answer: not answer.startswith("{"))
    with open_service(tmp_path, context=512, first=str(commands)) as service:
        assert compared(service) == {"compared": len(held), "encoder": 0, "model": len(held), "unsure": MODEL}
        assert source(service, asked(held[0]), max_tokens=64) == MODEL


@pytest.mark.dev
def test_an_error_in_the_comparison_is_said_and_it_is_tried_again(tmp_path, commands, monkeypatch):
    monkeypatch.setattr(contest, "CHECK_SECONDS", 0.01)
    monkeypatch.setattr(threads, "RETRY_SECONDS", 0.1)
    errors = [ValueError("a bug")] * 2
    unsure = contest.unsure
    monkeypatch.setattr(contest, "unsure", lambda encoder: unsure(encoder) if not errors else raises(errors.pop()))
    with open_service(tmp_path, context=512, first=str(commands)) as service:
        until(lambda: "ValueError: a bug" in " ".join(service.health()["reasons"]))
        assert {thread.name for thread in service.running["first"].contest.threads() if thread.is_alive()} == {"first"}
        compared(service)
        until(lambda: service.health()["status"] == "ok")


def raises(error):
    raise error


def test_rows_that_are_gone_or_changed_are_not_compared(tmp_path, commands):
    folder = tmp_path / "commands"
    shutil.copytree(commands.parent, folder)
    run = json.loads((folder / "out/run.json").read_text().replace(str(commands.parent), str(folder)))
    (folder / "out/run.json").write_text(json.dumps(run))
    bundle = open_bundle(encoder_of(folder / "out"))
    assert len(contest.held_out(folder / "out", bundle)) == 26
    assert contest.held_out(folder / "out" / FILE, bundle) == contest.held_out(folder / "out", bundle)
    (folder / "held.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in COMMANDS[1:-1:2]))
    assert contest.held_out(folder / "out", bundle) == []
    (folder / "held.jsonl").unlink()
    assert contest.held_out(folder / "out", bundle) == []


def test_adapters_that_cannot_be_first_are_refused(tmp_path, intents):
    base = open_gguf(encoder_of(intents))
    found = read_artifact(intents, base)
    old = tmp_path / "old"
    old.mkdir()
    (old / "run.json").write_text((intents / "run.json").read_text())
    save_artifact(old / FILE, replace(found, facts={}), base)
    never = tmp_path / "never"
    never.mkdir()
    (never / "run.json").write_text((intents / "run.json").read_text())
    few = {"rows": 30, "levels": [[0.9, 0.8, 0.1]], "certainty": 0.95}
    save_artifact(never / FILE, replace(found, facts={"sureness": few}), base)
    plain = tmp_path / "plain.gguf"
    save_artifact(plain, replace(found, tensors={}, facts={}, objective={}, family="", served_by="llama.cpp"), base)
    for adapter, share, error, said in (
            (old, SHARE, UsageError, "does not say when it is sure"),
            (never, 0.9, UsageError, "30 held-out rows, at least 31 needed for 0.9; give a first-share of at most 0.8"),
            (plain, SHARE, FormatError, "has no labels"), (tmp_path / "none", SHARE, EdgetuneError, "none"),
            (intents, 0.3, UsageError, "first.share")):
        with pytest.raises(error, match=said), open_service(tmp_path, first=str(adapter), first_share=share):
            pass
    config = DaemonConfig(state=str(tmp_path / "state"), first=str(intents), first_share=SHARE)
    with pytest.raises(UsageError, match="is an encoder itself"), Service(encoder_of(intents), config):
        pass


def test_the_encoder_is_where_it_was_or_among_pulled_models(tmp_path, intents, monkeypatch):
    run = json.loads((intents / "run.json").read_text())
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / FILE).write_bytes((intents / FILE).read_bytes())
    (moved / "run.json").write_text(json.dumps({**run, "base": {**run["base"], "path": "/nowhere/encoder.gguf"}}))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(NotFoundError, match=r"/nowhere/encoder\.gguf, which does not exist"):
        encoder_of(moved)
    pulled = tmp_path / "cache/edgetune/models/some/one/encoder.gguf"
    pulled.parent.mkdir(parents=True)
    pulled.write_bytes(encoder_of(intents).read_bytes())
    assert encoder_of(moved) == pulled


def test_clients_are_told_that_it_answered(running, http, intents, known):
    service = running.service
    encoder = FirstEncoder(str(intents), SHARE, 1)
    service.sources.insert(0, First(encoder, service.served, service.adapters, ("",), service.recall.is_disputed,
                                    lambda: False))
    response = http.post("/v1/chat/completions", json={"messages": asked(known[0])})
    said = response.json()
    assert said["choices"][0]["message"]["content"] == known[1]
    assert said["edgetune"]["source"] == response.headers["x-edgetune-source"] == First.name
    assert 0.5 < said["edgetune"]["probability"] <= 1
    assert 'edgetune_answers_total{source="encoder"}' in http.get("/metrics").text
    given = http.post("/v1/feedback", json={"completion_id": said["id"], "rating": "up"})
    assert given.status_code == 200


def test_a_service_reads_the_encoder_too(intents):
    assert [*FirstOptions(first=str(intents)).files()] == [encoder_of(intents)]
    assert [*FirstOptions().files()] == []
