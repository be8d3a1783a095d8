"""Tasks of decisions: states, typed questions about them, and draws of rows.

A row is {"state": text, "questions": {id: question}, "expected": {id: answer}}. A question has a type: choice (its
criteria: key -> text or null), score (its criteria: texts of the levels) or noul (yes or no). All rows of a task have
the same questions. `make data` makes most tasks; two are made here of rows that are there.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from json_lines import read_lines
from lab.common import DEMO, Row, snips
from numpy.typing import NDArray

Answer = str | int | bool
Answers = NDArray[np.int64]
ASKED = 1000  # unseen rows of a task at most
HOME_ASKED = 40  # of the demonstration's rows for learning, beside those that it holds out
SWITCHES = ("on", "off", "start", "stop")


@dataclass(frozen=True)
class Task:
    """questions: by id. train: rows from which draws are made. test: others, the same for all draws."""

    name: str
    questions: dict[str, Row]
    train: list[Row]
    test: list[Row]

    @classmethod
    def of(cls, name: str, train: list[Row], test: list[Row]) -> Task:
        return cls(name, train[0]["questions"], train, test)

    def targets(self, name: str, rows: Sequence[Row]) -> Answers:
        """The places [n] of the right answers among the options of a question."""
        places = {option: place for place, option in enumerate(answers_of(self.questions[name]))}
        return np.array([places[row["expected"][name]] for row in rows], np.int64)


def answers_of(question: Row) -> list[Answer]:
    """The answers that a question has, in order."""
    if question["type"] == "noul":
        return [False, True]
    return list(question["criteria"] if question["type"] == "choice" else range(len(question["criteria"])))


def words_of(question: Row) -> list[str]:
    """The same in words, each another."""
    if question["type"] == "noul":
        return ["no", "yes"]
    if question["type"] == "score":
        return [str(text) for text in question["criteria"]]
    return [f"{key}: {text}" if text else key for key, text in question["criteria"].items()]


def draw(task: Task, size: int, seed: int) -> list[Row]:
    """The first rows of an order that the seed decides. The options of a choice, which is the first question, take
    turns; otherwise one row of each option comes first.
    """
    rows = list(task.train)
    random.Random(seed).shuffle(rows)
    name, question = next(iter(task.questions.items()))
    most = len(rows) if question["type"] == "choice" else 1
    turn = np.zeros(len(answers_of(question)), np.int64)
    turns = []
    for target in task.targets(name, rows):
        turns.append(min(int(turn[target]), most))
        turn[target] += 1
    return [rows[place] for place in sorted(range(len(rows)), key=lambda place: turns[place])][:size]


# ---- those that are made here ----------------------------------------------------------------------------------------


def intents(shared: Path) -> Task:
    """Commands of Snips, whose kinds are as they come."""
    pairs = {row["prompt"]: json.loads(row["completion"])["intent"]
             for part in ("train", "dev") for row in snips(shared, part)}
    question = {"type": "choice", "instructions": "What is to be done?", "criteria": dict.fromkeys(sorted({
        *pairs.values()}))}
    rows = [{"state": text, "questions": {"intent": question}, "expected": {"intent": intent}}
            for text, intent in pairs.items()]
    random.Random(0).shuffle(rows)
    return Task.of("snips", rows[ASKED:], rows[:ASKED])


def home() -> Task:
    """Three questions about each command of the demonstration, answered by its completion."""
    learned, held = (read_lines(DEMO / f"home_{part}.jsonl") for part in ("train", "heldout"))
    deeds = [(row["prompt"], json.loads(row["completion"])) for row in learned + held]
    devices = sorted({deed["device"] for _, deed in deeds})
    rooms = ["none", *sorted({deed["room"] for _, deed in deeds if "room" in deed})]
    questions = {
        "device": {"type": "choice", "instructions": "Which kind of device is meant?",
                   "criteria": dict.fromkeys(devices)},
        "switch": {"type": "noul", "instructions": "Is something to be turned on or off, started or stopped?"},
        "room": {"type": "choice", "instructions": "In which room?", "criteria": dict.fromkeys(rooms)}}
    rows = [{"state": text, "questions": questions,
             "expected": {"device": deed["device"], "switch": deed["action"] in SWITCHES,
                          "room": deed.get("room", "none")}} for text, deed in deeds]
    known = rows[:len(learned)]
    random.Random(0).shuffle(known)
    return Task.of("home", known[HOME_ASKED:], known[:HOME_ASKED] + rows[len(learned):])


def made(name: str, folder: Path) -> Task:
    """That of files of `make data`."""
    train, test = (read_lines(folder / f"decisions_{name}_{part}.jsonl") for part in ("train", "test"))
    return Task.of(name, train, test[:ASKED])


MADE = ("banking77", "banking20", "news", "offensive", "irony", "alert", "sentiment", "film")
NAMES = (*MADE, "snips", "home")


def opened(name: str, shared: Path, folder: Path) -> Task:
    return {"snips": lambda: intents(shared), "home": home}.get(name, lambda: made(name, folder))()
