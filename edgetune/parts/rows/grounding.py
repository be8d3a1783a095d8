"""Questions and answers about a chunk of a document: which are kept, and why others are not.

An answer must stand in its chunk, or nearly so, with every number and name that it has. The question must be
understood without the chunk, and must not tell its answer.
"""

from __future__ import annotations

import re

from ...data.answer_schema import normal, stands_in
from ...data.words import plain, words_of
from ...errors import EdgetuneError, install_hint

NEAR = 90  # of 100: the similarity of a longer answer to a passage of its chunk
AGREES = 80  # of 100: of two answers to one question
LONGEST_ANSWER = 80  # words
SHORTEST_QUESTION = 3  # words
UNGROUNDED = "the answer does not stand in its chunk"
NO_QUESTION = "it is no question with an answer"
POINTS = "the question speaks of the text, which nobody sees"
TELLS = "the question tells its answer"
DISAGREES = "a second answer from the chunk is another one"
_POINTING = re.compile(r"\b(?:this|the|given|above|following) (?:text|passage|document|chunk|paragraph|section|table|"
                       r"excerpt|example|question|answer)\b|\baccording to (?:the|this)\b|"
                       r"\b(?:diese[rmns]?|d(?:er|em|en|as)) (?:text|absatz|dokument|abschnitt)\b|"
                       r"\b(?:ce|le) (?:texte|passage|document|paragraphe)\b", re.IGNORECASE)
_EXACT = re.compile(r"[^\s,;!?\"'()]*[\d_/=$@\\-][^\s,;!?\"'()]*|[A-Z]{2,}\w*")  # numbers, options, paths, names


def flaw_of(question: str, answer: str, chunk: str) -> str:
    """Why a question with its answer is not kept; "" for one that is."""
    if len(words_of(question)) < SHORTEST_QUESTION or not plain(answer) or len(words_of(answer)) > LONGEST_ANSWER:
        return NO_QUESTION
    if _POINTING.search(question):
        return POINTS
    if not is_grounded(answer, chunk):
        return UNGROUNDED
    if f" {plain(answer)} " in f" {plain(question)} ":
        return TELLS
    return ""


def is_grounded(answer: str, chunk: str) -> bool:
    """Whether an answer stands in its chunk: to the letter, but for case, spaces and marks; or so nearly that RapidFuzz
    finds it there, with each number, option, path and name in it to the letter.
    """
    source = normal(chunk)
    if f" {plain(answer)} " in f" {plain(chunk)} ":
        return True
    if not all(stands_in(source, exact.strip(".:`*")) for exact in _EXACT.findall(answer) if exact.strip(".:`*-")):
        return False
    return len(words_of(answer)) > SHORTEST_QUESTION and _ratio(plain(answer), plain(chunk), partial=True) >= NEAR


def agree(one: str, other: str) -> bool:
    """Whether two answers say the same: one stands in the other, or most of their words are the same."""
    first, second = plain(one), plain(other)
    if not first or not second:
        return False
    if f" {first} " in f" {second} " or f" {second} " in f" {first} ":
        return True
    return _ratio(first, second, partial=False) >= AGREES


def _ratio(one: str, other: str, partial: bool) -> float:
    try:
        from rapidfuzz import fuzz
    except ModuleNotFoundError:
        raise EdgetuneError("answers are compared with their text by the package rapidfuzz, which is not installed",
                            install_hint("rows")) from None
    return float(fuzz.partial_ratio(one, other) if partial else fuzz.token_set_ratio(one, other))
