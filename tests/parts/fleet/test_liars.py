"""Answers of devices that lie: updates that no training can make, and updates that are a neighbour's."""

from __future__ import annotations

import json
import shutil
from functools import partial

import numpy as np
import pytest
from fleets import signing_key
from json_lines import write_lines
from safetensors.numpy import load_file, save_file
from sometimes import mostly_slow

from edgetune.disk import sha256
from edgetune.errors import EdgetuneError
from edgetune.formats.signature import private_key, sign
from edgetune.parts.fleet.membership import members
from edgetune.parts.fleet.rounds.answer import open_answer
from edgetune.parts.fleet.rounds.lead import RoundLead, gathered, make_task, write_next
from edgetune.parts.fleet.rounds.member import train_round
from edgetune.parts.fleet.rounds.options import RoundOptions
from edgetune.parts.fleet.rounds.reach import reach_of, usual_norm
from edgetune.parts.fleet.rounds.task import open_task, read_outcome
from edgetune.training.config import TrainConfig

WAYS = {"svd": {}, "frozen-a": {}, "rolora": {}, "median": {"aggregation": "frozen-a", "average": "median"},
        "trimmed-mean": {"aggregation": "rolora", "average": "trimmed-mean"}}
BY_DEFAULT = {"rank": 2, "epochs": 1.0, "batch_size": 1, "schedule": "constant", "anchors": 0, "max_length": 64}


def rows_of(folder, letter, count):
    return write_lines(folder / f"{letter}{count}.jsonl", [{"prompt": f"say {letter} {i}", "completion": letter * 2}
                                                           for i in range(count)])


def begin(bundle, folder, config=BY_DEFAULT, **options):
    make_task(bundle, folder, TrainConfig(**config), RoundOptions(**{"clip": 0.0, "refuse": 0.0, **options}))
    return open_task(folder, bundle)


def answer(task, bundle, folder, letter, count, **more):
    out = folder / "answers" / letter
    out.parent.mkdir(exist_ok=True)
    train_round(task, bundle, rows_of(folder, letter, count), out, letter, held_out="none", threads=1, **more)
    return out


@pytest.fixture(scope="module", params=WAYS)
def honest(request, bundle, tmp_path_factory):
    """(a task of the defaults, the answers of the devices m and n): nothing is compared with the median."""
    folder = tmp_path_factory.mktemp("honest")
    task = begin(bundle, folder / "task", **{"aggregation": request.param, **WAYS[request.param]})
    return task, [answer(task, bundle, folder, letter, 8) for letter in "mn"]


def lie(true, folder, name, change=lambda array: array, key=None, **facts):
    """A copy of an answer in the folder of a device, with a changed update and facts that fit it."""
    out = folder / name
    shutil.copytree(true, out)
    save_file({name: change(array) for name, array in load_file(out / "update.safetensors").items()},
              out / "update.safetensors")
    written = json.loads((out / "answer.json").read_text())
    (out / "answer.json").write_text(json.dumps({**written, "device": name, **facts,
                                                 "update": sha256(out / "update.safetensors")}))
    if key:
        sign(out / "answer.json", private_key(key))
    return out


def adapter(folder):
    return (folder / "adapter" / "adapter.gguf").read_bytes()


@pytest.mark.dev
@pytest.mark.parametrize("facts", [{}, {"rows": 10**12, "tokens": 10**12}])
@pytest.mark.parametrize("most", [60_000.0, 100.0])
def test_an_update_that_no_training_makes_is_left_out(bundle, honest, tmp_path, most, facts):
    """Also if there is only one other, and if the liar says that it learned more than anybody can."""
    task, answers = honest
    liar = lie(answers[0], tmp_path, "liar", lambda array: np.clip(array.astype(np.float32) * most, -6e4, 6e4), **facts)
    for others in (answers, answers[1:]):
        count = str(len(others))
        ended = write_next(task, bundle, [*others, liar], tmp_path / f"next{count}")
        assert [one.device for one in ended.left_out] == ["liar"]
        assert "further than a training of" in ended.left_out[0].reason
        assert ended.record.devices == len(others)
        write_next(task, bundle, others, tmp_path / f"without{count}")
        assert adapter(tmp_path / f"next{count}") == adapter(tmp_path / f"without{count}")
    with pytest.raises(EdgetuneError, match=r"0 answers count, .*further than a training"):
        write_next(task, bundle, [liar], tmp_path / "alone")


def test_one_large_value_is_enough(honest, tmp_path):
    task, answers = honest

    def spike(array):
        array = array.astype(np.float32)
        array.flat[3] = 50.0
        return array

    liar = lie(answers[0], tmp_path, "liar", spike)
    assert [one.device for one in gathered(task, [*answers, liar])[1]] == ["liar"]


@pytest.mark.dev
@pytest.mark.parametrize("aggregation", mostly_slow(["svd", "frozen-a"], ["frozen-a"]))
@pytest.mark.parametrize(("config", "count"), [
    ({}, 1), ({}, 48), ({"epochs": 40.0}, 1), ({"epochs": 30.0, "batch_size": 16}, 16), ({"lr": 5e-2}, 24),
    ({"lr": 1e-4, "epochs": 12.0}, 4), ({"epochs": "auto", "batch_size": "auto", "schedule": "linear"}, 6),
    ({"steps": 25}, 4), ({"beta1": 0.0, "beta2": 0.5}, 16), ({"beta1": 0.5, "weight_decay": 0.1}, 16),
    ({"optimizer_state": "8bit"}, 16), ({"packing": True, "rank": 1}, 24)])
def test_no_honest_answer_is_left_out(bundle, tmp_path, aggregation, config, count):
    """Few steps and many, one row by heart, high and low rates, and all that decides how long AdamW runs."""
    task = begin(bundle, tmp_path / "task", {**BY_DEFAULT, **config}, aggregation=aggregation)
    first = answer(task, bundle, tmp_path, "a", count)
    assert gathered(task, [first])[1] == []


@pytest.mark.dev
@pytest.mark.parametrize("options", [{"aggregation": "svd"}, {"aggregation": "rolora"}, {
    "aggregation": "frozen-a", "noise": 2.0, "noise_norm": 0.5}, {"aggregation": "rolora", "server": "adam"}])
def test_no_honest_answer_is_left_out_later(bundle, tmp_path, options):
    """In the last of the planned rounds, whose steps are small, from an adapter that all began with."""
    task = begin(bundle, tmp_path / "task", planned_rounds=3, **options)
    for number in (1, 2, 3):
        folder = tmp_path / str(number)
        folder.mkdir()
        more = {"rank": 1} if (number, options["aggregation"]) == (3, "svd") else {}
        answers = [answer(task, bundle, folder, letter, 8, **more) for letter in "ab"]
        ended = write_next(task, bundle, answers, tmp_path / f"next{number}")
        assert ended.left_out == []
        task = open_task(tmp_path / f"next{number}", bundle)


@pytest.mark.dev
@pytest.mark.parametrize("rows", [8, 10**4])
@pytest.mark.parametrize("aggregation", ["svd", "frozen-a", "rolora"])
def test_a_large_update_that_a_training_could_make_is_scaled_down(bundle, tmp_path, aggregation, rows):
    """By default, also if it is one of two: to twice the norm of the other, or of what is usual."""
    task = begin(bundle, tmp_path / "task", aggregation=aggregation, clip=2.0, refuse=10.0)
    own = answer(task, bundle, tmp_path, "m", 8)
    sent = np.concatenate([array.ravel() for array in load_file(own / "update.safetensors").values()])
    most = 0.7 * reach_of(task, rows, sent.size)[0] / np.sqrt(np.mean(sent.astype(np.float64) ** 2))
    large = lie(own, tmp_path, "large", lambda array: array * np.float16(most), rows=rows)
    ended = write_next(task, bundle, [own, large], tmp_path / "two")
    found = {one.update.device: one for one in ended.aggregate.counted}
    assert found["m"].scale == 1.0
    assert found["large"].norm * found["large"].scale <= 2.001 * max(found["m"].norm, usual_norm(task, 80))
    if aggregation != "svd":
        nothing = lie(own, tmp_path, "nothing", lambda array: array * 0)  # which is the lower of the two
        ended = write_next(task, bundle, [own, nothing], tmp_path / "silent")
        found = {one.update.device: one for one in ended.aggregate.counted}
        assert found["m"].scale * found["m"].norm >= min(found["m"].norm, usual_norm(task, 8))


def test_the_reach_ends_whatever_a_device_says(bundle, tmp_path):
    task = begin(bundle, tmp_path / "task")
    found = [reach_of(task, rows, 1000)[0] for rows in (1, 8, 100, 10**4, 10**6, 10**12)]
    assert found == sorted(found)
    assert found[-1] < 0.5


# ---- the update of another -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 10**4])
def test_a_copy_takes_nothing_from_the_original(bundle, honest, tmp_path, tokens):
    """Under a name that sorts before it, and however much the copy says that it weighs."""
    task, answers = honest
    answers = [shutil.copytree(one, tmp_path / one.name) for one in answers]
    alone = write_next(task, bundle, answers, tmp_path / "alone")
    for name in ("0", "zz"):
        copy = lie(answers[0], tmp_path, name, tokens=tokens)
        ended = write_next(task, bundle, [*answers, copy], tmp_path / f"next{name}")
        assert ended.record.devices == 2
        said = ("0", "m") if tokens == 1 else ("m", "0")
        left_out = [(one.device, one.reason) for one in ended.left_out]
        mine, other = (one.replace("0", name) for one in said)
        assert left_out == [(mine, f"its update is that of {other}, too, and counts once for both")]
        assert read_outcome(tmp_path / f"next{name}").left_out == [vars(one) for one in ended.left_out]
        share = {one.update.device: one.share for one in ended.aggregate.counted}
        before = {one.update.device: one.share for one in alone.aggregate.counted}
        assert share[other] == before["m"] if tokens == 1 else share[other] > before["m"]
        if tokens == 1:
            assert adapter(tmp_path / f"next{name}") == adapter(tmp_path / "alone")


def test_another_answer_in_a_devices_name_does_not_take_its_place(bundle, honest, tmp_path):
    task, answers = honest
    answers = [shutil.copytree(one, tmp_path / one.name) for one in answers]
    other = lie(answers[1], tmp_path, "0", lambda array: array * np.float16(0.9), device="m")
    ended = write_next(task, bundle, [*answers, other], tmp_path / "next")
    assert [(one.device, one.reason) for one in ended.left_out] == [("0", "the device m has another answer")]
    write_next(task, bundle, answers, tmp_path / "without")
    assert adapter(tmp_path / "next") == adapter(tmp_path / "without")


@pytest.mark.dev
def test_a_signature_is_of_one_device_task_and_round(bundle, tmp_path):
    """What a device that joined copies, signs again or makes up neither counts nor takes the place of another's."""
    pytest.importorskip("cryptography")
    task = begin(bundle, tmp_path / "round-0001" / "task", aggregation="frozen-a")
    members.begin(tmp_path)
    keys = {name: signing_key(tmp_path / f"{name}.key") for name in "amz"}
    for name, key in keys.items():
        members.ask(tmp_path, name, private_key(key).public_key().public_bytes_raw().hex(), 1)
        members.approve(tmp_path, name, 2)
    place = tmp_path / "round-0001"
    for name in "mz":
        answer(task, bundle, place, name, 8, key=keys[name])
    there = place / "answers"

    def ended(*others):
        checks = partial(members.check_of, tmp_path, number=1)
        return gathered(task, [there / "m", there / "z", *others], checks)

    weighed = {one.device: one.tokens for one in ended()[0]}
    assert weighed.keys() == {"m", "z"}
    shutil.copytree(there / "m", there / "a")  # whole, in another folder
    counted, left_out = ended(there / "a")
    assert {one.device: one.tokens for one in counted} == weighed
    assert "had to sign" in left_out[0].reason
    shutil.rmtree(there / "a")
    lie(there / "m", there, "a", device="m", key=keys["a"])  # signed again, as it is
    assert "the answer is of 'm'" in ended(there / "a")[1][0].reason
    shutil.rmtree(there / "a")
    lie(there / "m", there, "a", tokens=1, key=keys["a"])  # signed again, in its own name
    counted, left_out = ended(there / "a")
    assert {one.device: one.tokens for one in counted} == weighed
    assert left_out[0].reason == "its update is that of m, too, and counts once for both"
    shutil.rmtree(there / "a")
    lie(there / "m", there, "a", lambda array: array * np.float16(1000), key=keys["a"])
    leader = RoundLead(tmp_path, bundle, devices=2, seconds=1e9, key=None)
    found = leader.end_round()
    assert found.record.devices == 2
    assert "further than a training of" in found.left_out[0].reason
    shutil.copytree(there / "m", tmp_path / "round-0002" / "answers" / "m")  # of the round before
    after = open_task(tmp_path / "round-0002" / "task", bundle)
    with pytest.raises(EdgetuneError, match="answers the task"):
        open_answer(tmp_path / "round-0002" / "answers" / "m", after, members.check_of(tmp_path, "m", 2))
