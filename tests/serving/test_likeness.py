"""edgetune.serving.likeness: cosines to mean vectors by plain loops; what trained encoders keep of theirs."""

import json
from dataclasses import replace

import numpy as np
import pytest
from encoders import WORDS, tiny_bert, vectors, write_encoder

from edgetune.adapters.store import read_artifact, save_artifact
from edgetune.errors import FormatError
from edgetune.formats.gguf import open_gguf
from edgetune.runs.train import train
from edgetune.serving.classifier import Classifier
from edgetune.serving.encoder import Encoder
from edgetune.serving.likeness import Likeness
from edgetune.serving.neighbours import UNLIKE

QUESTIONS = [f"{a} {b} {c}" for a in ("turn", "light", "kitchen") for b in ("on", "off") for c in "abcdefghij"]
ROWS = [{"prompt": question, "completion": "on" if " on " in question else "off"} for question in QUESTIONS]
OPTIONS = {"rank": 4, "precision": "exact", "threads": 1, "lr": 3e-3, "answers": False}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder") / "tiny.gguf", tiny_bert(), WORDS)


def random_vectors(n, rng):
    found = rng.standard_normal((n, 8)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def compared(vector, vectors, fields, without=None):
    """The likeness of a vector by plain loops. without: the number of a learned question that does not count."""
    found = []
    for own in fields:
        cosines = []
        for label in range(max(own) + 1):
            rows = [i for i in range(len(vectors)) if own[i] == label and i != without]
            mean = np.mean(vectors[rows], axis=0, dtype=np.float64) if rows else np.zeros(8)
            cosines.append(vector @ mean / max(np.linalg.norm(mean), 1e-12))
        found.append(max(cosines))
    return np.mean(found)


@pytest.mark.parametrize("sizes", [(4,), (3, 2), ()], ids=["labels", "fields", "none"])
def test_the_limit_is_the_least_likeness_but_for_two_in_a_hundred(sizes):
    rng = np.random.default_rng(len(sizes))
    learned = random_vectors(50, rng)
    others = random_vectors(120, rng)
    fields = [rng.integers(0, size, len(learned)).astype(np.int32) for size in sizes]
    plain = fields or [np.zeros(50, np.int32)]
    found = Likeness.of_json(json.loads(json.dumps(Likeness.of(learned, fields, others).to_json())))
    expected = [compared(vector, learned, plain) for vector in others]
    assert found.likeness(others) == pytest.approx(expected, abs=2e-3)
    assert found.limit == pytest.approx(sorted(expected)[int(120 * UNLIKE)], abs=1e-6)
    alone = sorted(compared(vector, learned, plain, i) for i, vector in enumerate(learned))
    assert Likeness.of(learned, fields, others[:0]).limit == pytest.approx(alone[int(50 * UNLIKE)], abs=1e-6)


@pytest.mark.dev
@pytest.mark.parametrize("steps", [1, 30])
def test_trained_encoders_know_what_is_like_their_questions(encoder, tmp_path, steps):
    """By llama.cpp's vectors of the encoder without its adapter."""
    learned, held = ROWS[::2], ROWS[1::2]
    train(encoder, learned, tmp_path / "out", held, steps=steps, **OPTIONS)
    classes = [np.array([row["completion"] == "on" for row in learned], np.int32)]
    expected = Likeness.of(*(vectors(encoder, [row["prompt"] for row in learned]), classes,
                             vectors(encoder, [row["prompt"] for row in held])))
    opened = Encoder(open_gguf(encoder), 1)
    reader = opened.adapter(tmp_path / "out")
    assert reader.known.likeness.limit == pytest.approx(expected.limit, abs=5e-3)
    likeness = expected.likeness(vectors(encoder, [row["prompt"] for row in ROWS]))
    assert np.mean(likeness >= expected.limit) > 0.9
    clear = np.abs(likeness - expected.limit) > 5e-3  # of a random encoder some lie within 1e-3 of the limit
    like = np.array([reader.is_like(opened.read(row["prompt"])) for row in ROWS])
    assert np.mean(clear) > 0.8
    assert (like == (likeness >= expected.limit))[clear].all()
    with Classifier(encoder, tmp_path / "out", threads=1) as served:
        before = served.classify([ROWS[0]["prompt"]])[0].probability
    assert reader.classify([opened.read(ROWS[0]["prompt"])])[0].probability == pytest.approx(before, abs=1e-6)


@pytest.mark.dev
def test_what_is_unlike_is_told_apart_and_damage_is_refused(encoder, tmp_path):
    train(encoder, ROWS, tmp_path / "out", "none", steps=1, **OPTIONS)
    base = open_gguf(encoder)
    found = read_artifact(tmp_path / "out", base)
    written = found.facts["likeness"]
    for limit, expected in ((-1.0, True), (1.1, False)):
        save_artifact(tmp_path / "other.gguf", replace(found, facts={"likeness": {**written, "limit": limit}}), base)
        opened = Encoder(base, 1)
        assert opened.adapter(tmp_path / "other.gguf").is_like(opened.read("turn on a")) is expected
    for damage in ({"limit": 0}, {**written, "labels": []}, {**written, "labels": ["!"]}, {**written, "width": 7}):
        save_artifact(tmp_path / "broken.gguf", replace(found, facts={"likeness": damage}), base)
        with pytest.raises(FormatError, match="its likeness is not readable"):
            Classifier(encoder, tmp_path / "broken.gguf")
