"""The proofs' data sets: their sizes, and that held-out rows ask in other words for answers that train covers."""

import json
import re

import pytest
from own_sets import SETS, wilson

COMPONENTS = {"backup", "mailer", "printer", "camera", "router", "database"}
RUN = 5  # words in a row
LITERAL = 3  # of them not masked, so that the run is wording and not values

each = pytest.mark.parametrize("own", SETS.values(), ids=list(SETS))


def words(text):
    return re.findall(r"[a-z0-9]+", text.lower().replace("'s", "").replace("'", ""))


def values_of(own):
    """Words that may stand in any sentence of the set, and what they are masked by."""
    if own.name == "log_lines":
        return dict.fromkeys(COMPONENTS, "COMPONENT")
    found = {}
    for row in own.rows("train"):
        if row["completion"].startswith("{"):
            fields = json.loads(row["completion"])
            fields.pop("action", None)
            found |= {word: key.upper() for key, value in fields.items() for word in words(str(value))}
    return found | {f"{word}s": mask for word, mask in found.items()}


def masked(own, part):
    values = values_of(own)
    return {row["prompt"]: tuple(values.get(word, word) for word in words(row["prompt"])) for row in own.rows(part)}


def runs(pattern):
    found = (pattern[i : i + RUN] for i in range(len(pattern) - RUN + 1))
    return {run for run in found if sum(word.islower() for word in run) >= LITERAL}


@each
def test_sizes(own):
    for part, count in (("train", 60), ("heldout", 40)):
        rows = own.rows(part)
        assert len(rows) == count
        assert own.path(part).stat().st_size < 30 * 1024
        for row in rows:
            assert list(row) == ["prompt", "completion"]
            assert row["prompt"] == row["prompt"].strip()
            assert 2 <= len(words(row["prompt"])) <= 20, row["prompt"]


@each
def test_held_out_wording_is_new(own):
    """With its values masked, no held-out sentence is one of train, nor shares a run of words with one."""
    train = masked(own, "train")
    seen = set().union(*map(runs, train.values()))
    assert len(train) == 60
    for prompt, pattern in masked(own, "heldout").items():
        assert pattern not in train.values(), prompt
        assert not runs(pattern) & seen, prompt


@each
def test_no_sentence_twice(own):
    sentences = [tuple(words(row["prompt"])) for part in ("train", "heldout") for row in own.rows(part)]
    assert len(set(sentences)) == len(sentences)


@each
def test_train_covers_the_answers(own):
    """Every word of a held-out answer is in several answers of train: a tenth of those rows may be held out in turn."""
    counts: dict[str, int] = {}
    for row in own.rows("train"):
        for word in set(re.findall(r"\w+", row["completion"])):
            counts[word] = counts.get(word, 0) + 1
    for row in own.rows("heldout"):
        assert all(counts.get(word, 0) >= 3 for word in re.findall(r"\w+", row["completion"])), row


@each
def test_each_answer_is_right_for_itself_only(own):
    answers = sorted({row["completion"] for part in ("train", "heldout") for row in own.rows(part)})
    for expected in answers:
        assert [answer for answer in answers if own.right(expected, answer)] == [expected]
        assert not own.right(expected, "")
        assert not own.right(expected, " ".join(answers))


def test_log_lines_follow_the_rules():
    """An event has one level, and the line's component is the sentence's."""
    levels: dict[str, str] = {}
    for part in ("train", "heldout"):
        for row in SETS["log_lines"].rows(part):
            line = re.fullmatch(r"\[(INFO|WARN|ERROR)\] (\w+): (.+)", row["completion"])
            assert line, row
            level, component, event = line.groups()
            assert levels.setdefault(event, level) == level
            assert COMPONENTS & set(words(row["prompt"])) == {component}
    assert len(levels) == 12


@pytest.mark.parametrize("name", ["irrigation", "orders"])
def test_json_agrees_with_the_sentence(name):
    """Each value of an answer, but for the action, stands in the sentence, and no other value of its kind does."""
    own = SETS[name]
    values = values_of(own)
    for part in ("train", "heldout"):
        for row in own.rows(part):
            fields = json.loads(row["completion"])
            fields.pop("action", None)
            found = {word.removesuffix("s") for word in words(row["prompt"]) if word in values}
            assert found == {str(value).lower().removesuffix("s") for value in fields.values()}, row


@pytest.mark.parametrize(("right", "of"), [(36, 40), (1, 3), (17, 20)])
def test_wilson_interval(right, of):
    """Each end is a share of which the one measured is z standard errors away."""
    for end in wilson(right, of):
        assert abs(right / of - end) == pytest.approx(1.96 * (end * (1 - end) / of) ** 0.5)
    assert wilson(0, of)[0] == pytest.approx(0, abs=1e-12)
    assert wilson(of, of)[1] == pytest.approx(1)
