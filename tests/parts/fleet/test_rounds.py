"""Rounds of tiny models on several devices, through the commands and from programs; and what a round refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from json_lines import write_lines
from safetensors.numpy import load_file, save_file

from edgetune.adapters.store import open_adapter
from edgetune.cli.app import cli
from edgetune.errors import EdgetuneError, FormatError, Interrupted, MismatchError, UsageError
from edgetune.formats.bundle import open_bundle
from edgetune.machine.device import read_device
from edgetune.parts.fleet.rounds.answer import open_answer
from edgetune.parts.fleet.rounds.lead import make_task, write_next
from edgetune.parts.fleet.rounds.member import train_round
from edgetune.parts.fleet.rounds.options import Noise, RoundOptions
from edgetune.parts.fleet.rounds.task import Outcome, losses_by_kind, open_task
from edgetune.parts.fleet.status import history_of
from edgetune.training.callbacks import RunCallbacks
from edgetune.training.config import TrainConfig

CONFIG = TrainConfig(rank=4, lr=1e-2, epochs=2.0, batch_size=4, max_length=64, precision="exact", anchors=0)
OWN = {"threads": 1, "memory": ""}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Of three devices: each answers with its own letter."""
    folder = tmp_path_factory.mktemp("rows")
    return [write_lines(folder / f"{letter}.jsonl",
                        [{"prompt": f"say {letter} {i}", "completion": letter * 2} for i in range(16)])
            for letter in "abc"]


def begin(bundle, folder, aggregation="frozen-a", **options):
    make_task(bundle, folder, CONFIG, RoundOptions(aggregation=aggregation, **options))
    return open_task(folder, bundle)


def answered(task, bundle, rows, folder, **more):
    """The folders of the devices' answers."""
    found = []
    folder.mkdir(exist_ok=True)
    for i, file in enumerate(rows):
        out = folder / f"answer-{task.number}-{i}"
        train_round(task, bundle, file, out, f"device{i} of {folder.name}", **more, **OWN)
        found.append(out)
    return found


@pytest.fixture(scope="module")
def round_one(bundle, rows, tmp_path_factory):
    """(task, answers) of a round with frozen A."""
    folder = tmp_path_factory.mktemp("round")
    task = begin(bundle, folder / "task")
    return task, answered(task, bundle, rows, folder)


@pytest.mark.dev
@pytest.mark.parametrize("aggregation", ["frozen-a", "rolora", "svd"])
def test_two_rounds_learn_what_each_device_knows(bundle, rows, tmp_path, aggregation):
    task = begin(bundle, tmp_path / "task-1", aggregation)
    for number in (1, 2):
        folders = answered(task, bundle, rows, tmp_path)
        ended = write_next(task, bundle, folders, tmp_path / f"task-{number + 1}")
        task = open_task(tmp_path / f"task-{number + 1}", bundle)
        assert ended.record.devices == 3
        assert ended.record.loss_after < ended.record.loss_before
        assert (ended.record.missed == 0.0) == (aggregation != "svd")
    assert task.number == 3
    assert [one["round"] for one in task.facts.history] == [1, 2]
    assert task.facts.history[1]["loss_after"] < task.facts.history[0]["loss_before"]
    adapter = open_adapter(tmp_path / "task-3" / "adapter", bundle.gguf)
    assert all(np.abs(pair.b).max() > 0 for pair in adapter.pairs.values())


@pytest.mark.dev
def test_the_aggregate_is_the_weighted_sum_of_what_was_sent(bundle, round_one, tmp_path):
    """By the files alone: numpy reads them here by another library's reader."""
    task, folders = round_one
    write_next(task, bundle, folders, tmp_path / "next")
    facts = [json.loads((folder / "answer.json").read_text()) for folder in folders]
    arrays = [load_file(folder / "update.safetensors") for folder in folders]
    after = open_adapter(tmp_path / "next" / "adapter", bundle.gguf).pairs
    total = sum(one["tokens"] for one in facts)
    for name, pair in task.pairs.items():
        sent = sum(one["tokens"] / total * array[f"{name}.b"].astype(np.float64)
                   for one, array in zip(facts, arrays, strict=True))
        assert set(arrays[0]) == {f"{each}.b" for each in task.pairs}
        np.testing.assert_array_equal(after[name].a, pair.a)
        np.testing.assert_allclose(after[name].b, pair.b + sent, rtol=1e-3, atol=1e-6)  # stored as float16


def test_a_task_of_an_earlier_edgetune(bundle, tmp_path):
    """It said with which keys its updates are summed in secret, or that they are open."""
    task = begin(bundle, tmp_path / "round-0001" / "task")
    written = json.loads((task.folder / "task.json").read_text())
    (task.folder / "task.json").write_text(json.dumps({**written, "secret": {}}))
    assert open_task(task.folder, bundle).options == task.options
    secret = {"keys": ["1" * 64, "2" * 64], "threshold": 2, "cards": []}
    (task.folder / "task.json").write_text(json.dumps({**written, "secret": secret}))
    with pytest.raises(UsageError, match="asks for a sum in secret, which this edgetune no longer has"):
        open_task(task.folder, bundle)
    result = CliRunner().invoke(cli, ["fleet", "status", str(tmp_path)])
    assert result.exit_code == 0
    assert "no longer has" in " ".join(result.output.split())


def test_no_row_is_in_an_answer(round_one):
    _, folders = round_one
    for folder in folders:
        written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
        assert b"say" not in written
        assert str(folder).encode() not in written
        assert not folder.with_name(f"{folder.name}.work").exists()


def test_a_stopped_round_continues_to_the_same_bytes(bundle, rows, round_one, tmp_path):
    task, folders = round_one
    out = tmp_path / "answer-1-0"
    steps: list[object] = []
    calls = RunCallbacks(lambda event: steps.append(event) if event["event"] == "step" else None,
                         lambda: len(steps) == 3)
    with pytest.raises(Interrupted, match="continue with the same command"):
        train_round(task, bundle, rows[0], out, "device0", callbacks=calls, **OWN)
    assert not out.exists()
    train_round(task, bundle, rows[0], out, "device0", **OWN)
    assert (out / "update.safetensors").read_bytes() == (folders[0] / "update.safetensors").read_bytes()


@pytest.mark.dev
def test_a_device_of_a_smaller_rank_takes_part(bundle, rows, tmp_path):
    task = begin(bundle, tmp_path / "one", "svd")
    folders = answered(task, bundle, rows, tmp_path)
    write_next(task, bundle, folders, tmp_path / "two")
    task = open_task(tmp_path / "two", bundle)
    small = answered(task, bundle, rows[:1], tmp_path, rank=2)
    full = answered(task, bundle, rows[1:2], tmp_path / "full")
    ended = write_next(task, bundle, [*small, *full], tmp_path / "three")
    assert open_answer(small[0], task).facts.rank == 2
    assert [one.share > 0 for one in ended.aggregate.counted] == [True, True]
    assert ended.record.missed is None
    assert {pair.rank for pair in open_task(tmp_path / "three", bundle).pairs.values()} == {4}
    with pytest.raises(UsageError, match="rank is 8, above the task's 4"):
        train_round(task, bundle, rows[0], tmp_path / "no", "x", rank=8, **OWN)


def test_a_smaller_rank_is_refused_where_one_half_is_summed(bundle, rows, round_one, tmp_path):
    with pytest.raises(UsageError, match="rank is 2, and the task sums one half"):
        train_round(round_one[0], bundle, rows[0], tmp_path / "no", "x", rank=2, **OWN)


def test_noise_is_said_and_only_where_one_half_is_trained(bundle, rows, round_one, tmp_path):
    facts = train_round(round_one[0], bundle, rows[0], tmp_path / "answer", "x", noise=Noise(1.0, 0.01), **OWN)
    assert facts.noise == 0.01
    assert (facts.seconds, facts.peak_mib) == (0.0, 0.0)
    assert open_answer(tmp_path / "answer", round_one[0]).facts == facts
    task = begin(bundle, tmp_path / "svd", "svd")
    with pytest.raises(UsageError, match="noise is given, and the task trains A and B"):
        train_round(task, bundle, rows[0], tmp_path / "other", "x", noise=Noise(1.0, 0.01), **OWN)


@pytest.mark.dev
def test_fedadam_keeps_its_moments_in_the_task(bundle, rows, tmp_path):
    task = begin(bundle, tmp_path / "one", server="adam", server_rate=1e-3)
    write_next(task, bundle, answered(task, bundle, rows[:2], tmp_path), tmp_path / "two")
    task = open_task(tmp_path / "two", bundle)
    moments = task.moments()
    assert {name.rpartition(".")[2] for name in moments} == {"first", "second"}
    write_next(task, bundle, answered(task, bundle, rows[:2], tmp_path), tmp_path / "three")
    after = open_task(tmp_path / "three", bundle).moments()
    assert any((after[name] != array).any() for name, array in moments.items())
    (tmp_path / "two" / "server.safetensors").write_bytes(b"")
    with pytest.raises(EdgetuneError, match="SHA-256"):
        task.moments()


# ---- what is left out, and what is refused ---------------------------------------------------------------------------


def copied(folder, to, **facts):
    """A copy of an answer with other facts."""
    shutil.copytree(folder, to)
    found = json.loads((to / "answer.json").read_text())
    (to / "answer.json").write_text(json.dumps({**found, **facts}))
    return to


@pytest.mark.dev
@pytest.mark.parametrize(("facts", "reason"), [
    ({"device": "liar"}, "its update is that of device0 of round, too, and counts once for both"),
    ({}, "the device device0 of round"),
    ({"task": "0" * 64}, "answers the task 000000000000, not"),
    ({"base": "sha256:other"}, "was trained on sha256:other, the task is of"),
    ({"half": "ab"}, "the task asks for 'b' of rank 4"),
    ({"rank": 2}, "has 'b' of rank 2, the task asks for 'b' of rank 4"),
    ({"rank": 10**9}, "the task asks for 'b' of rank 4"),
    ({"rows": 0}, "learned 0 rows of"),
    ({"rows": 10**400}, "the task asks for 1 rows"),
    ({"tokens": 10**13}, "the task asks for 1 rows"),
    ({"tokens": "many"}, 'is "many", a whole number is expected'),
    ({"loss_after": -1.0}, "has a number below 0"),
    ({"norm": float("nan")}, "has a number below 0, or one that is none"),
    ({"version": 2}, "is of version 2, this edgetune reads 1"),
    ({"more": 1}, "has the field 'more', which this edgetune does not know"),
    ({"update": "0" * 64}, "000000000000... is written next to it")])
def test_what_cannot_count_is_left_out_and_named(bundle, round_one, tmp_path, facts, reason):
    task, folders = round_one
    bad = copied(folders[0], tmp_path / "zz-bad", **facts)
    named = [shutil.copytree(folder, tmp_path / folder.name) for folder in folders]
    ended = write_next(task, bundle, [bad, *named], tmp_path / "next")
    assert ended.record.devices == 3
    assert ended.record.left_out == 1
    assert [one.device for one in ended.left_out] == ["zz-bad"]
    assert reason in ended.left_out[0].reason
    write_next(task, bundle, named, tmp_path / "without")
    one, other = (tmp_path / name / "adapter" / "adapter.gguf" for name in ("next", "without"))
    assert one.read_bytes() == other.read_bytes()


def test_what_became_of_a_round_is_kept_for_people(bundle, round_one, tmp_path):
    """The losses by kind are those of the answers, by their held-out rows; no path of the server is written."""
    task, folders = round_one
    kinds = ["Raspberry Pi 5, aarch64", "x86_64", "x86_64"]
    named = [copied(folder, tmp_path / folder.name, kind=kind) for folder, kind in zip(folders, kinds, strict=True)]
    bad = copied(folders[0], tmp_path / "zz-bad", task="0" * 64)
    write_next(task, bundle, [*named, bad], tmp_path / "next")
    found = history_of(tmp_path / "next").outcomes[0]
    assert [one["device"] for one in found.left_out] == ["zz-bad"]
    assert found.left_out[0]["reason"].startswith("answer.json answers the task 000000000000")
    assert str(tmp_path) not in (tmp_path / "next" / "round.json").read_text()
    facts = [open_answer(folder, task).facts for folder in named]
    pi, pc = losses_by_kind(found)
    assert (pi["kind"], pi["devices"], pi["loss_after"]) == (kinds[0], 1, facts[0].loss_after)
    assert (pc["kind"], pc["devices"]) == ("x86_64", 2)
    assert pc["loss_before"] == pytest.approx(np.average([one.loss_before for one in facts[1:]],
                                                      weights=[one.held_rows for one in facts[1:]]))
    assert losses_by_kind(Outcome(1, 1, [{"device": "a", "kind": "x", "loss_before": None, "held_rows": 0}])) == [
        {"kind": "x", "devices": 1, "loss_before": None, "loss_after": None}]
    assert open_answer(folders[0], task).facts.kind == read_device().kind
    open_task(tmp_path / "next", bundle)  # which has one more file
    (tmp_path / "next" / "round.json").write_text("{")
    with pytest.raises(FormatError, match=r"cannot read .*round.json"):
        history_of(tmp_path / "next")


def with_update(folder, to, change):
    """A copy of an answer with another update, whose digest fits."""
    import hashlib
    shutil.copytree(folder, to)
    arrays = load_file(to / "update.safetensors")
    save_file(change(arrays), to / "update.safetensors")
    digest = hashlib.sha256((to / "update.safetensors").read_bytes()).hexdigest()
    facts = json.loads((to / "answer.json").read_text())
    (to / "answer.json").write_text(json.dumps({**facts, "update": digest, "device": "zz"}))
    return to


@pytest.mark.parametrize(("change", "reason"), [
    (lambda a: {name: array * np.float16(np.nan) for name, array in a.items()}, "its update is not finite"),
    (lambda a: {name: array * np.float16(100) for name, array in a.items()}, "further than a training"),
    (lambda a: dict(list(a.items())[1:]), "other projections or shapes"),
    (lambda a: {**a, "more": np.zeros(2, np.float16)}, "other projections or shapes"),
    (lambda a: {name: array.T.copy() for name, array in a.items()}, "other projections or shapes"),
    (lambda a: {name: array.astype(np.int16) for name, array in a.items()}, "values of the type I16, not F16"),
    (lambda a: {**a, "more": np.zeros(2**20, np.float32)}, "the most is")])
def test_an_update_that_does_not_fit_is_left_out(bundle, round_one, tmp_path, change, reason):
    task, folders = round_one
    bad = with_update(folders[0], tmp_path / "zz-bad", change)
    ended = write_next(task, bundle, [*folders, bad], tmp_path / "next")
    assert ended.record.devices == 3
    assert len(ended.left_out) == 1
    assert reason in ended.left_out[0].reason


def test_a_folder_that_is_not_copied_whole_yet_is_left_out(bundle, round_one, tmp_path):
    task, folders = round_one
    half = shutil.copytree(folders[0], tmp_path / "half")
    update = half / "update.safetensors"
    update.write_bytes(update.read_bytes()[:1000])
    ended = write_next(task, bundle, [half, tmp_path / "nothing", *folders[1:]], tmp_path / "next")
    assert ["SHA-256" in ended.left_out[0].reason, "cannot read" in ended.left_out[1].reason] == [True, True]


def test_a_round_needs_its_quorum_and_a_new_folder(bundle, rows, round_one, tmp_path):
    task = begin(bundle, tmp_path / "task", quorum=3)
    folders = answered(task, bundle, rows[:2], tmp_path)
    with pytest.raises(EdgetuneError, match=r"2 answers count, the quorum .* 3 \(left out: answer-1-0: .* answers the"):
        write_next(task, bundle, [*folders, round_one[1][0]], tmp_path / "next")
    assert not (tmp_path / "next").exists()
    with pytest.raises(UsageError, match="exists"):
        write_next(task, bundle, folders, tmp_path / "task")


def test_a_task_is_refused_where_anything_does_not_fit(bundle, round_one, tmp_path):
    task, _ = round_one

    def changed(**facts):
        shutil.rmtree(tmp_path / "task", ignore_errors=True)
        shutil.copytree(task.folder, tmp_path / "task")
        found = json.loads((tmp_path / "task" / "task.json").read_text())
        (tmp_path / "task" / "task.json").write_text(json.dumps({**found, **facts}))
        return tmp_path / "task"

    facts = json.loads((task.folder / "task.json").read_text())
    for change, said in (
            ({"base": {**facts["base"], "tokenizer": "sha256:x"}}, "with the tokenizer sha256:x, .* here has sha256:"),
            ({"base": {**facts["base"], "template": "sha256:x"}}, "with the chat template sha256:x"),
            ({"base": {**facts["base"], "fingerprint": "sha256:x"}}, "with the model sha256:x"),
            ({"files": {}}, "lists no adapter/adapter.gguf"),
            ({"files": {**facts["files"], "adapter/run.json": "0"}}, "run.json has the SHA-256"),
            ({"fleet": {"aggregation": "fedavg"}}, "aggregation is 'fedavg'"),
            ({"fleet": {"more": 1}}, "'more' is no option"),
            ({"training": {**facts["training"], "prompt": "/etc/passwd"}}, "sets prompt, which a device decides"),
            ({"training": {**facts["training"], "memory": "1G"}}, "sets memory, which a device decides"),
            ({"training": {**facts["training"], "rank": "eight"}}, 'rank is "eight"'),
            ({"round": 0}, "has round 0"), ({"version": "1"}, "is of version '1'")):
        with pytest.raises(EdgetuneError, match=said):
            open_task(changed(**change), bundle)
    assert open_task(changed(), bundle).name != task.name  # written otherwise, so another task
    with pytest.raises(EdgetuneError, match="cannot read"):
        open_task(tmp_path / "nothing", bundle)


def test_too_few_rows_are_refused(bundle, rows, tmp_path):
    make_task(bundle, tmp_path / "task", CONFIG, RoundOptions(aggregation="frozen-a"), least_rows=100)
    task = open_task(tmp_path / "task", bundle)
    with pytest.raises(MismatchError, match="12 rows are left to learn, the task asks for 100"):
        train_round(task, bundle, rows[0], tmp_path / "answer", "x", **OWN)


def test_an_adapter_is_begun_from(bundle, round_one, tmp_path):
    """At another scale, which the task's B takes up; of another rank it is refused."""
    task, folders = round_one
    write_next(task, bundle, folders, tmp_path / "next")
    start = tmp_path / "next" / "adapter"
    pairs = make_task(bundle, tmp_path / "one", replace(CONFIG, family=TrainConfig(rank=4, alpha=4.0).family),
                      RoundOptions(), start=start)
    for name, pair in open_adapter(start, bundle.gguf).pairs.items():
        np.testing.assert_allclose(pairs[name].scale * pairs[name].b, pair.scale * pair.b, rtol=1e-3)
    with pytest.raises(MismatchError, match=r"of rank 4, the task has .* of rank 8"):
        make_task(bundle, tmp_path / "two", TrainConfig(rank=8), RoundOptions(), start=start)


# ---- commands --------------------------------------------------------------------------------------------------------


def run(*words):
    return CliRunner().invoke(cli, ["fleet", *map(str, words)])


def test_the_commands(bundle, rows, tmp_path, monkeypatch):
    tiny_path = bundle.path
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    made = run("task", tiny_path, "-o", tmp_path / "one", "--rank", "4", "--aggregation", "frozen-a", "--lr", "1e-2",
               "--max-length", "64")
    assert made.exit_code == 0, made.output
    assert "is the task of round 1: frozen-a" in made.output
    for name, more in (("a", ["--device", "kitchen"]), ("b", ["--json"])):
        done = run("train-round", tmp_path / "one", rows["ab".index(name)], "-o", tmp_path / name, "--model",
                   tiny_path, "--threads", "1", "--no-govern", *more)
        assert done.exit_code == 0, done.output
    assert "round 1" in run("aggregate", tmp_path / "one", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "two",
                            "--model", tiny_path).output
    device = json.loads((tmp_path / "b" / "answer.json").read_text())["device"]
    assert device == (tmp_path / "state" / "edgetune" / "fleet-device").read_text().strip()
    again = run("aggregate", tmp_path / "one", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "three", "--model",
                tiny_path, "--json")
    found = json.loads(again.output)
    assert {one["device"] for one in found["counted"]} == {"kitchen", device}
    assert found["missed"] == 0.0
    bundle = open_bundle(tiny_path)
    assert open_task(tmp_path / "two", bundle).config.epochs == 1.0
    assert run("train-round", tmp_path / "one", rows[0], "-o", tmp_path / "a", "--model", tiny_path).exit_code == 2
    wrong = run("train-round", tmp_path / "one", rows[0], "-o", tmp_path / "c", "--model", tiny_path, "--noise-norm",
                "2")
    assert wrong.exit_code == 2


@pytest.mark.parametrize("name", ["x/adapter", "a"])
def test_a_folder_without_a_task_is_refused_in_a_sentence(bundle, rows, tmp_path, name):
    done = run("train-round", tmp_path / name, rows[0], "-o", tmp_path / "answer", "--model", bundle.path)
    assert done.exit_code == 1
    assert not Path(tmp_path / "answer.work").exists()


def test_a_task_says_how_many_rounds_it_needs(tiny_llama, tmp_path):
    for number, (options, said) in enumerate((
            ((), "about 10 rounds: devices train briefly in each, and an average takes little from what only one"),
            (("--planned-rounds", 3), "3 rounds are planned, and about 10 are needed: devices train briefly in each"),
            (("--planned-rounds", 20), "20 rounds are planned"))):
        shown = run("task", tiny_llama, *options, "-o", tmp_path / str(number)).output
        assert said in " ".join(shown.split())
    assert json.loads(run("task", tiny_llama, "-o", tmp_path / "last", "--json").stdout)["rounds"] == 10
