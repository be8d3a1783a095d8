"""Rows with answers to three typed questions about a state that a tiny random encoder tells apart."""

from typing import Any

from edgetune.data.decisions import CHOICE, NOUL, SCORE, key_of

LETTERS = "abcdefghijklmnopqrstuvwxyz"
QUESTIONS: dict[str, Any] = {
    "lamp": {"type": "choice", "instructions": "What happens to the lamp?", "criteria": {
        "goes on": "there is light", "goes off": None, "stays": None}},
    "kitchen": {"type": "noul", "instructions": "Is it the kitchen?"},
    "place": {"type": "score", "instructions": "How far is it?", "criteria": ["near", "there", "far"]}}
LAMP, KITCHEN, PLACE = (key_of(CHOICE, "What happens to the lamp?"), key_of(NOUL, "Is it the kitchen?"),
                        key_of(SCORE, "How far is it?", ["near", "there", "far"]))
KEYS = {"lamp": LAMP, "kitchen": KITCHEN, "place": PLACE}
STATES = (("turn on the light", "goes on"), ("turn the light off", "goes off"), ("the light", "stays"))
PLACES = ("here", "the kitchen", "z z z z")


def typed_rows(count: int = 54, first: int = 0, every: int = 1) -> list[dict[str, Any]]:
    """Rows that differ by two letters. every: each question is answered by each so many'th row."""
    found = []
    for i in range(first, first + count):
        state, lamp = STATES[i % 3]
        place = i // 3 % 3
        answers = {"lamp": lamp, "kitchen": place == 1, "place": place}
        said = {name: answer for j, (name, answer) in enumerate(answers.items()) if (i // 3 + j) % every == 0}
        found.append({"state": f"{state}, {PLACES[place]} {LETTERS[i % 26]} {LETTERS[i // 26 % 26]}",
                      "questions": QUESTIONS, "expected": said or {"lamp": lamp}})
    return found


def answers_of(row: dict[str, Any]) -> dict[str, str]:
    """The labels of a row by the names of its questions."""
    return {name: answer if isinstance(answer, str) else str(answer).lower()
            for name, answer in row["expected"].items()}
