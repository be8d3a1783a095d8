"""What `data check` finds in rows that answer typed questions: each flaw by itself, and nothing in flawless rows."""

from itertools import cycle

import numpy as np
import pytest

from edgetune.data.check import findings
from edgetune.data.facts import TokenizeOptions, inspect

TEAM = {"type": "choice", "instructions": "Who repairs it?", "criteria": {"plumber": None, "roofer": "leaks above"}}
SOON = {"type": "noul", "instructions": "Must it be today?"}
DAMAGE = {"type": "score", "instructions": "How bad is it?", "criteria": ["none", "some", "much"]}
ANSWERS = cycle([{"team": "plumber", "soon": True, "damage": 1}, {"team": "roofer", "soon": False, "damage": 0},
                 {"team": "roofer", "soon": False, "damage": 2}, {"team": "plumber", "soon": True, "damage": 0}])


def row(number, questions=None, **expected):
    return {"state": f"house {number}", "questions": questions or {"team": TEAM, "soon": SOON, "damage": DAMAGE},
            "expected": expected or next(ANSWERS)}


def rows(count=60, **answers):
    """`answers` in place of those of the questions."""
    return [{**each, "expected": each["expected"] | answers} for each in (row(number) for number in range(count))]


class Letters:
    """A tokenizer whose tokens are letters, for vectors that are counts of them."""

    def encode(self, text):
        return [ord(letter) % 32 for letter in text.casefold()]


def counts(texts):
    found = np.array([np.bincount(text, minlength=32) for text in texts], np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def flaws(given, vectors=None):
    """(kind, sentence) of the findings about typed questions."""
    tokens = TokenizeOptions(Letters(), 64) if vectors else None
    found = findings(inspect("rows.jsonl", enumerate(given, start=1)), tokens=tokens, vectors=vectors)
    return [(finding.kind, str(finding)) for finding in found]


def test_flawless_rows_are_left_alone():
    assert flaws(rows()) == []
    assert flaws(rows(), counts) == []
    apart = [{**each, "expected": {name: label}} for each in rows() for name, label in each["expected"].items()]
    assert flaws(apart) == []


@pytest.mark.parametrize(("given", "kind", "sentence"), [
    (rows(team="roofer"), "one-label", "all 60 answers to the question 'Who repairs it?' are 'roofer'; "
     "add rows with other answers, or it is not learned"),
    (rows(damage=0), "one-label", "all 60 answers to the question 'How bad is it?' are 'none'; "
     "add rows with other answers, or it is not learned"),
    ([*rows(), row(99, {"wet": {"type": "noul"}}, wet=True)], "one-label",
     "the only answer to the question 'wet' is 'true'; add rows with other answers, or it is not learned"),
    ([*rows(), row(99, {"team": TEAM, "wet": {"type": "noul"}}, team="roofer")], "unanswered",
     "no row answers the question 'wet'; add answers, or it is not learned"),
    ([*rows(), row(99, {"team": TEAM | {"criteria": {"roofer": None, "painter": None}}}, team="roofer")], "options",
     "no row has the option 'painter' of the question 'Who repairs it?'; add rows, or a question that offers it is "
     "refused"),
    ([*rows(), row(99, {"team": TEAM | {"criteria": dict.fromkeys("abcdefghij")}}, team="a")], "options",
     "no row has 9 options of the question 'Who repairs it?': b, c, d, e, f, g, h, i and 1 more; add rows, or a "
     "question that offers it is refused"),
    ([each for each in rows() if each["expected"]["damage"] != 1], "options",
     "no row has the option 'some' of the question 'How bad is it?'; add rows, or it is never answered"),
    ([*rows(), {**row(0), "expected": {"team": "roofer"}}, {**row(0), "expected": {"damage": 1, "soon": True}}],
     "contradictory", "1 state has several answers to the question 'Who repairs it?' (lines 1, 61); keep the right "
     "one, or give probabilities as gold")])
def test_each_flaw_is_named(given, kind, sentence):
    assert flaws(given) == [(kind, sentence)]
    assert flaws(given, counts) == [(kind, sentence)]


def test_a_state_may_answer_one_question_in_each_of_several_rows():
    given = [{**each, "expected": {name: each["expected"][name]}} for each in rows() for name in ("team", "soon")]
    assert [kind for kind, _ in flaws(given)] == ["unanswered"]  # the damage


def test_probabilities_are_answers_of_their_labels():
    given = [{**row(number), "gold": {"team": {"plumber": 0.6, "roofer": 0.4}, "soon": 0.5, "damage": [0.2, 0, 0.8]}}
             for number in range(40)]
    for each in given:
        del each["expected"]
    assert [sentence for _, sentence in flaws(given)] == [
        "no row has the option 'some' of the question 'How bad is it?'; add rows, or it is never answered"]


ONCE_MORE = "ask in one wording if they are one question: each wording learns by itself"


def with_others(type, *instructions):
    """Rows that ask questions of a type one by one, in different words."""
    options = {"choice": TEAM["criteria"], "score": DAMAGE["criteria"], "noul": None}[type]
    labels = cycle({"choice": ["plumber", "roofer"], "score": [0, 1, 2], "noul": [True, False]}[type])
    return [row(f"{number} {words}", {"it": {"type": type, "instructions": words, "criteria": options}},
                it=next(labels)) for words in instructions for number in range(30)]


@pytest.mark.parametrize("type", ["choice", "score", "noul"])
def test_one_question_in_two_wordings(type):
    given = with_others(type, "Who repairs it?", "Who has repaired it?", "xyz")
    assert flaws(given, counts) == [
        ("wordings", "two questions have the same options, nearly in the same words: 'Who repairs it?' and 'Who has "
         f"repaired it?' (lines 1, 31); {ONCE_MORE}")]
    without = [sentence.partition(";")[0] for _, sentence in flaws(given)]
    assert len(without) == (0 if type == "noul" else 3)  # yes and no are the options of every such question
    assert all(sentence.startswith("two questions have the same options: ") for sentence in without)


def test_questions_of_one_row_are_different_ones():
    both = {"a": SOON, "b": SOON | {"instructions": "Must it be today ?!"}}
    given = [row(number, both, a=number % 2 == 0, b=number % 3 == 0) for number in range(60)]
    assert flaws(given, counts) == []


def test_corrections_are_checked_likewise():
    """Feedback is exported as conversations whose system message is the question."""
    from edgetune.data.decisions import read_question
    key = read_question("soon", SOON).key
    given = [{"messages": [{"role": "system", "content": key}, {"role": "user", "content": f"house {number}"},
                           {"role": "assistant", "content": "true"}]} for number in range(30)]
    assert [kind for kind, _ in flaws(given)] == ["one-label"]
