"""What a job is made of: hyperparameters of either kind, and rows that stay on their side."""

import json
import math
from dataclasses import replace

import pytest

from edgetune.daemon.jobs import recipe
from edgetune.daemon.jobs.recipe import (
    HELD,
    ROUNDS,
    TRAIN,
    divide,
    halve,
    held_rows,
    measured_file,
    method_of,
    options,
)
from edgetune.daemon.state.holdout import EDGE, MOST, Holdout
from edgetune.data import preferences
from edgetune.data import rows as supervised_rows
from edgetune.data.question import digest
from edgetune.errors import DataError, UnsupportedError, UsageError
from edgetune.training.config import TrainConfig

BASE = TrainConfig(lr=2e-3, steps=50, rank=16)
HOLDOUT = Holdout(b"one key" * 5)


def test_openai_names_and_ours():
    asked = {"n_epochs": 3, "batch_size": 2, "learning_rate_multiplier": 0.5, "alpha": 8, "packing": True}
    found = options(BASE, asked)
    assert (found.epochs, found.steps, found.batch_size, found.lr) == (3.0, 0, 2, 1e-3)
    assert (found.family.alpha, found.packing, found.family.rank) == (8.0, True, 16)
    assert options(BASE, {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}) == BASE
    by_data = replace(BASE, epochs="auto", steps=0)
    assert options(replace(BASE, epochs=2.0), {"epochs": "auto"}) == by_data
    assert options(TrainConfig(), {"n_epochs": "auto"}).epochs == "auto"
    assert options(BASE, {"patience": "auto"}).patience == "auto"
    assert options(BASE, {"optimizer_state": "auto"}).optimizer_state == "auto"
    whole = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "rank": 4}}}
    assert method_of({"type": "supervised", "supervised": {"hyperparameters": {"rank": 4}}}, {"n_epochs": 2}) == whole
    assert method_of(None, None) == {"type": "supervised", "supervised": {"hyperparameters": {}}}
    with pytest.raises(UnsupportedError, match="'poetry' does not exist here; choose from supervised, dpo, "):
        method_of({"type": "poetry"}, None)


@pytest.mark.parametrize(("asked", "match"), [
    ({"prompt_column": "a"}, "there is no hyperparameter 'prompt_column'"),
    ({"beta": 0.1}, "no hyperparameter 'beta'; there are n_epochs, batch_size, .*, gamma, rank, "),
    ({"rank": 2.5}, "rank is 2.5, not of type int"),
    ({"rank": True}, "rank is True, not of type int"),
    ({"packing": 1}, "packing is 1, not of type bool"),
    ({"lr": "fast"}, "lr is 'fast', not of type float"),
    ({"lr": math.inf}, "lr is inf, not a number"),
    ({"lr": 10**400}, "lr is 1000"),
    ({"n_epochs": 2, "epochs": 2.0}, "epochs and another"),
    ({"learning_rate_multiplier": -1}, "lr is -0.002, the least is 0"),
    ({"n_epochs": 0}, "epochs and steps are both 0"),
    ({"targets": "all,nothing"}, "'all'"),
    ({"memory": "much"}, "memory is 'much'"),
])
def test_what_is_no_option_is_refused_by_name(asked, match):
    with pytest.raises(UsageError, match=match) as caught:
        options(BASE, asked, ["gamma"])
    assert "\n" not in str(caught.value)


def test_a_row_stays_on_its_side():
    digests = [digest({"text": str(i)}) for i in range(1000)]
    all_held = HOLDOUT.divide(digests)
    assert all_held == {name for name in digests if HOLDOUT.rank(name) < EDGE}
    assert all_held != Holdout(b"another").divide(digests)
    assert 150 < len(all_held) < 250
    for n in (100, 300, 999):
        assert HOLDOUT.divide(digests[:n]) == all_held & set(digests[:n])
    for n in range(2, 40):
        held = HOLDOUT.divide(digests[:n])
        assert min(4, n // 2) <= len(held) <= max(n // 2, 1)
    with pytest.raises(DataError, match="fewer than 2 different rows"):
        HOLDOUT.divide([digests[0]] * 5)


def test_held_out_rows_are_never_learned_and_each_is_hashed_once(tmp_path, monkeypatch):
    rows = [{"prompt": str(i % 600), "completion": "x"} for i in range(1200)] * 2
    sides = divide(rows, None, tmp_path, HOLDOUT)
    train, held = ([json.loads(line) for line in (tmp_path / name).read_text().splitlines()] for name in (TRAIN, HELD))
    assert (sides["train"]["rows"], sides["held_out"]["rows"]) == (len(train), len(held))
    learned, asked = ({digest(row) for row in side} for side in (train, held))
    assert not learned & asked
    assert learned | asked == {digest(row) for row in rows}
    many = [{"text": str(i)} for i in range(3000)]
    assert divide(many, None, tmp_path, HOLDOUT)["held_out"]["rows"] == MOST
    apart = HOLDOUT.divide([digest(row) for row in many])
    assert divide(many, None, tmp_path, HOLDOUT)["train"]["rows"] == 3000 - len(apart)
    assert divide(many[:10], many[8:], tmp_path, HOLDOUT)["train"]["rows"] == 8
    with pytest.raises(DataError, match="no rows are left to learn"):
        divide(many[:5], many, tmp_path, HOLDOUT)
    with pytest.raises(DataError, match="no rows are left to hold out"):
        divide(many[:5], [], tmp_path, HOLDOUT)
    rows = [{"text": str(i)} for i in range(50)]
    for held in (None, [{"text": f"held {i}"} for i in range(10)]):
        hashed = []
        monkeypatch.setattr(recipe, "digest", lambda row, hashed=hashed: (hashed.append(row), digest(row))[1])
        divide(rows, held, tmp_path, HOLDOUT)
        assert sorted(row["text"] for row in hashed) == sorted(row["text"] for row in rows + (held or []))


def test_rows_that_choose_a_checkpoint_do_not_decide(tmp_path):
    """Of fewer than 16 all do both; so do rows that training cannot measure."""
    def held(count, row=lambda i: {"prompt": f"lamp {i}", "completion": "on"}):
        divide([{"text": "learned"}], [row(i) for i in range(count)] * 2, tmp_path, HOLDOUT)
        return [row(i) for i in range(count)]

    for count, parser in ((15, supervised_rows), (40, preferences)):
        held(count)
        assert (halve(tmp_path, parser), len(held_rows(tmp_path)[0])) == (0, 2 * count)
    assert measured_file(tmp_path, preferences) is None
    assert measured_file(tmp_path, supervised_rows) == tmp_path / HELD
    rows = held(41)
    assert halve(tmp_path, supervised_rows) == 40
    path = measured_file(tmp_path, supervised_rows)
    selecting = {digest(json.loads(line)) for line in path.read_text().splitlines()}
    deciding = {digest(row) for row in held_rows(tmp_path)[0]}
    assert (len(selecting), len(deciding)) == (20, 21)
    assert selecting | deciding == {digest(row) for row in rows}


def test_which_rows_are_of_earlier_rounds_is_told_beside_them(tmp_path):
    """Earlier versions told their number, or marked the rows."""
    held = [{"text": str(i), "fresh": True} for i in range(9)]  # a key of the user's own
    divide([{"text": "learned"}], held, tmp_path, HOLDOUT, rounds=["a", "a", "b", "b", "b"])
    assert held_rows(tmp_path) == (held, ["a", "a", "b", "b", "b"])
    (tmp_path / ROUNDS).write_text('{"established": 5}')
    assert held_rows(tmp_path) == (held, [""] * 5)
    (tmp_path / ROUNDS).unlink()
    rows = [{"text": str(i)} for i in range(9)]
    marked = [*rows[:5], *({**row, "fresh": True} for row in rows[5:])]
    for written, rounds in ((marked, [""] * 5), (rows, [])):  # the second of a job over a file
        (tmp_path / HELD).write_text("".join(json.dumps(row) + "\n" for row in written))
        assert held_rows(tmp_path) == (rows, rounds)
