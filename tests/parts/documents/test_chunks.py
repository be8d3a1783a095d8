"""Chunks hold all of the text, stay within their tokens, repeat what they say they repeat, and know their place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.parts.documents.chunks import chunks
from edgetune.parts.documents.paragraphs import Paragraph


def count(text: str) -> int:
    """Words are tokens, and long ones several."""
    return sum(1 + len(word) // 10 for word in text.split())


SENTENCES = st.lists(st.lists(st.text("abc", min_size=1, max_size=40), min_size=1, max_size=12).map(" ".join),
                     min_size=1, max_size=6).map(lambda found: ". ".join(found) + ".")
PARAGRAPHS = st.lists(st.builds(Paragraph, SENTENCES, st.sampled_from(["", "One", "One > Two " * 9, "Three"])),
                      max_size=12)


@given(PARAGRAPHS, st.integers(12, 60), st.sampled_from([0.0, 0.15, 0.5]))
def test_nothing_is_lost_and_none_is_too_long(found, size, overlap):
    made = list(chunks(found, count, size, overlap))
    assert all(count(chunk.whole) <= chunk.tokens <= size for chunk in made)
    whole = "".join("".join(chunk.text.split()) for chunk in made)
    wanted = [letter for paragraph in found for letter in "".join(paragraph.text.split())]
    at = iter(whole)
    assert all(letter in at for letter in wanted)  # in this order, with repetitions and headings between


def test_sentences_stay_whole_and_the_last_ones_are_repeated():
    text = " ".join(f"Sentence {number} has five words." for number in range(9))
    made = list(chunks([Paragraph(text, line=4)], count, 20, 0.25))
    assert [chunk.text for chunk in made[:2]] == [
        "Sentence 0 has five words. Sentence 1 has five words. Sentence 2 has five words. Sentence 3 has five words.",
        "Sentence 3 has five words. Sentence 4 has five words. Sentence 5 has five words. Sentence 6 has five words."]
    assert {chunk.line for chunk in made} == {4}


def test_short_sections_share_a_chunk_and_long_ones_do_not():
    short = [Paragraph("a a a", "A", 0, 2), Paragraph("b b b", "A > B", 0, 5)]
    [one] = chunks(short, count, 40, 0.15)
    assert (one.text, one.heading, one.line) == ("a a a\n\nB\nb b b", "A", 2)
    long = [Paragraph("a " * 20, "A", 0, 2), Paragraph("b b b", "B", 3, 5)]
    assert [(chunk.heading, chunk.page, chunk.line) for chunk in chunks(long, count, 40, 0.5)] == [
        ("A", 0, 2), ("B", 3, 5)]


def test_a_heading_within_a_chunk_counts():
    found = [Paragraph("b b b b", "One", 0, 2), Paragraph("a a a a a a", "One > Two Two Two", 0, 5)]
    assert [chunk.tokens for chunk in chunks(found, count, 14, 0)] == [14]  # 1 + 4, and 3 + 6
    assert [(chunk.heading, chunk.tokens) for chunk in chunks(found, count, 13, 0)] == [
        ("One", 5), ("Two Two Two", 9)]


def test_lines_within_a_long_paragraph():
    text = "\n".join(f"line {number} is here" for number in range(20))
    made = list(chunks([Paragraph(text, line=7)], count, 16, 0))
    assert [chunk.line for chunk in made] == [7, 11, 15, 19, 23]


class Counted(str):
    """A text that notes how many of its characters were looked through."""

    seen = 0

    def count(self, what, *places):
        begin, end, _ = slice(*places).indices(len(self)) if places else (0, len(self), 1)
        Counted.seen += end - begin
        return super().count(what, begin, end)


MOST_LETTERS = 32  # of a token
ENDLESS = {
    "a log": lambda n: Counted("\n".join(f"2026-12-02 05:00:00 kitchen {number % 37}" for number in range(n))),
    "one word": lambda n: Counted("x" * 50 * n),
    "signs": lambda n: Counted(".!)" * 17 * n),
    "words without an end": lambda n: Counted("one two three four " * 3 * n),
    "what no vocabulary has": lambda n: Counted("\u200b\u200b\n" * 17 * n),
}


@pytest.mark.dev
@pytest.mark.parametrize("kind", ENDLESS)
@pytest.mark.parametrize("unit", ["words", "letters", "both"])
def test_the_work_is_linear_in_any_text(kind, unit):
    tokens_of = {"words": lambda part: len(part.split()), "letters": len, "both": count}[unit]

    def work(n):
        given = []
        Counted.seen = 0
        text = ENDLESS[kind](n)
        made = list(chunks([Paragraph(text, "Log", 0, 1)], lambda part: given.append(len(part)) or tokens_of(part), 64,
                           0.15))
        assert max(len(chunk.text) for chunk in made) <= 64 * MOST_LETTERS
        assert max(given) <= 64 * MOST_LETTERS
        return len(given) / len(text), sum(given) / len(text), Counted.seen / len(text)

    small = work(100)
    assert all(of_large <= 1.5 * of_small + 0.1 for of_large, of_small in zip(work(1600), small, strict=True))
    assert max(small) <= 16


@pytest.mark.parametrize("heading", ["w " * 5000, "part > " * 5000, "x" * 10_000], ids=["words", "parts", "a word"])
def test_a_long_heading_is_shortened_once_and_in_few_steps(heading):
    given = []
    found = [Paragraph(f"Sentence {number}.", heading.strip()) for number in range(50)]
    made = list(chunks(found, lambda part: given.append(part) or count(part), 64, 0.15))
    assert all(count(chunk.heading) <= 64 // 4 for chunk in made)
    assert len(given) < 6 * len(found)
    assert "".join(chunk.text for chunk in made).count("Sentence") >= 50
