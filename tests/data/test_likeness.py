"""Likeness of texts, against the formula written by means of numpy."""

import numpy as np
import pytest

from edgetune.data.likeness import Likeness

TEXTS = ("Play the song", "play a song, a long SONG", "turn the lamp off", "")


def vectors(texts: tuple[str, ...], asked: str) -> tuple[np.ndarray, np.ndarray]:
    words = sorted({word for text in (*texts, asked) for word in text.casefold().replace(",", "").split()})
    counts = np.array([[text.casefold().replace(",", "").split().count(word) for word in words]
                       for text in (*texts, asked)], np.float64)
    spread = (counts[:-1] > 0).sum(0)
    weighted = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0) * np.log((len(texts) + 1) / (spread + 0.5))
    return weighted[:-1], weighted[-1]


@pytest.mark.parametrize("asked", ["play a song", "Turn off the lamp, the lamp", "nothing of this"])
def test_it_is_the_cosine_of_weighted_counts(asked):
    known, wanted = vectors(TEXTS, asked)
    expected = [of @ wanted / max(np.linalg.norm(of) * np.linalg.norm(wanted), 1e-9) for of in known]
    assert Likeness(TEXTS).to(asked) == pytest.approx(expected)


def test_the_same_words_are_alike_and_others_are_not():
    of = Likeness(TEXTS)
    assert of.to(TEXTS[2].upper())[2] == pytest.approx(1)
    assert of.to("quite another")[:3] == [0, 0, 0]
    assert of.to("") == [0, 0, 0, 0]
