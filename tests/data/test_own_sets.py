"""The lab's own data sets: held-out rows ask in other words for answers that train covers."""

import json
import re

import pytest
from own_sets import SETS

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
def test_held_out_wording_is_new(own):
    """With its values masked, no held-out sentence is one of train, nor shares a run of words with one."""
    train = masked(own, "train")
    seen = set().union(*map(runs, train.values()))
    assert len(train) == 60
    for prompt, pattern in masked(own, "heldout").items():
        assert pattern not in train.values(), prompt
        assert not runs(pattern) & seen, prompt


@each
def test_train_covers_the_answers(own):
    """Every word of a held-out answer is in several answers of train: a tenth of those rows may be held out in turn."""
    counts: dict[str, int] = {}
    for row in own.rows("train"):
        for word in set(re.findall(r"\w+", row["completion"])):
            counts[word] = counts.get(word, 0) + 1
    for row in own.rows("heldout"):
        assert all(counts.get(word, 0) >= 3 for word in re.findall(r"\w+", row["completion"])), row
