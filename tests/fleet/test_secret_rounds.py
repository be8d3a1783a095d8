"""Rounds of tiny models that are summed in secret, through the commands: the sum is that of open updates."""

import json
import stat

import numpy as np
import pytest
from commands import run
from json_lines import write_lines
from safetensors.numpy import load_file, save_file

pytest.importorskip("cryptography")

from edgetune.adapters.store import open_adapter
from edgetune.disk import sha256
from edgetune.errors import EdgetuneError, UsageError
from edgetune.fleet.rounds.task import open_task
from edgetune.fleet.secret.round import gather, reveal, write_next_of_sum
from edgetune.formats.bundle import open_bundle

TRAINING = ("--rank", 4, "--lr", "1e-2", "--batch-size", 4, "--max-length", 64, "--precision", "exact")
OWN = ("--threads", 1, "--eval", "none")


@pytest.fixture(scope="module")
def place(tiny_llama, tmp_path_factory):
    """Four devices with keys and rows, an open task and a secret one that begin alike, and the answers of three."""
    folder = tmp_path_factory.mktemp("secret")
    keys = [json.loads(run("fleet", "key", "-o", folder / f"key{i}", "--json"))["public_key"] for i in range(4)]
    (folder / "keys.txt").write_text("# the house\n" + "".join(f"{key}  # device {i}\n" for i, key in enumerate(keys)))
    for i in range(3):
        write_lines(folder / f"rows{i}.jsonl", [{"prompt": f"say {j}", "completion": "abc"[i] * 2}
                                                for j in range(8 + 4 * i)])
    task = ("fleet", "task", tiny_llama, "--aggregation", "frozen-a", *TRAINING, "-o")
    run(*task, folder / "open", "--clip", 0, "--refuse", 0)
    run(*task, folder / "task", "--secret", folder / "keys.txt", "--threshold", 3)
    for i in range(3):
        learn = ("fleet", "train-round", folder / "open", folder / f"rows{i}.jsonl", "--model", tiny_llama, *OWN)
        run(*learn, "--device", f"d{i}", "-o", folder / f"open-answer{i}")
        run("fleet", "train-round", folder / "task", *learn[3:], "--secret", folder / f"key{i}", "-o",
            folder / f"answer{i}")
    return folder


def answers(place, name="answer"):
    return [place / f"{name}{i}" for i in range(3)]


@pytest.fixture
def task(place, tiny_llama):
    return open_task(place / "task", open_bundle(tiny_llama))


def test_the_sum_is_that_of_open_answers(place, tiny_llama, tmp_path):
    model = ("--model", tiny_llama)
    run("fleet", "aggregate", place / "open", *answers(place, "open-answer"), *model, "-o", tmp_path / "open-2")
    asked = json.loads(run("fleet", "request", place / "task", *answers(place), *model, "-o", tmp_path / "request",
                           "--json"))
    assert len(asked["answered"]) == 3
    for i in range(3):
        run("fleet", "reveal", place / "task", tmp_path / "request", "--secret", place / f"key{i}", *model, "-o",
            tmp_path / f"revealed{i}")
    revealed = [part for i in range(3) for part in ("--revealed", tmp_path / f"revealed{i}")]
    found = json.loads(run("fleet", "sum", place / "task", *answers(place), "--request", tmp_path / "request",
                           *revealed, *model, "-o", tmp_path / "task-2", "--json"))
    facts = [json.loads((folder / "answer.json").read_text()) for folder in answers(place, "open-answer")]
    assert found["tokens"] == sum(one["tokens"] for one in facts)
    gguf = open_bundle(tiny_llama).gguf
    ours, theirs = (open_adapter(tmp_path / name / "adapter", gguf).pairs for name in ("task-2", "open-2"))
    for name, pair in ours.items():
        assert np.abs(pair.b).max() > 0
        np.testing.assert_allclose(pair.b, theirs[name].b, atol=2e-5)  # both stored as float16
    following = open_task(tmp_path / "task-2", open_bundle(tiny_llama))
    assert (following.number, following.secret) == (2, open_task(place / "task", open_bundle(tiny_llama)).secret)


def test_an_answer_says_nothing_of_its_device(place):
    """Nor does a device send its update in another way, its losses, or how much it learned."""
    for folder in answers(place):
        assert sorted(path.name for path in folder.iterdir()) == ["masked.json", "masked.safetensors"]
        assert set(json.loads((folder / "masked.json").read_text())) == {
            "version", "task", "base", "number", "file", "edgetune"}
        words = load_file(folder / "masked.safetensors")["words"]
        counts = np.bincount(words.view(np.uint8), minlength=256)
        expected = counts.sum() / 256
        assert ((counts - expected) ** 2 / expected).sum() < 360  # 255 degrees of freedom: 1 in 50,000 is above
    assert stat.S_IMODE((place / "key0").stat().st_mode) == 0o600


def test_a_device_reveals_for_one_request_alone(place, task, tmp_path):
    """The same request again is no harm."""
    gather(task, answers(place), tmp_path / "request")
    for name in "first", "again":
        assert reveal(task, tmp_path / "request", place / "key2", tmp_path / name) == 0
    asked = load_file(tmp_path / "request" / "request.safetensors")
    facts = json.loads((tmp_path / "request" / "request.json").read_text())
    (tmp_path / "other").mkdir()
    asked["sealed"][0, 0, 0] ^= 1
    save_file(asked, tmp_path / "other" / "request.safetensors")
    facts["file"] = sha256(tmp_path / "other" / "request.safetensors")
    (tmp_path / "other" / "request.json").write_text(json.dumps(facts))
    with pytest.raises(UsageError, match=r"has revealed its shares of the round .* for another request"):
        reveal(task, tmp_path / "other", place / "key2", tmp_path / "second")


def test_too_few_and_missing_ones(place, task, tiny_llama, tmp_path):
    with pytest.raises(EdgetuneError, match="2 devices have answered, and 3 must"):
        gather(task, answers(place)[:2], tmp_path / "request")
    gather(task, answers(place), tmp_path / "request")
    bundle = open_bundle(tiny_llama)
    with pytest.raises(EdgetuneError, match=r"the answer of device \d is missing"):
        write_next_of_sum(task, bundle, answers(place)[1:], tmp_path / "request", [], tmp_path / "next")
    with pytest.raises(EdgetuneError, match=r"0 devices have revealed right shares of device \d, and 3 must"):
        write_next_of_sum(task, bundle, answers(place), tmp_path / "request", [], tmp_path / "next")
    assert not (tmp_path / "next").exists()


def test_answers_that_cannot_count_are_named(place, task, tmp_path):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "masked.json").write_bytes((place / "answer1" / "masked.json").read_bytes())
    (damaged / "masked.safetensors").write_bytes(b"x" * 100)
    answered, left_out = gather(task, [*answers(place), damaged, place / "open-answer0"], tmp_path / "request")
    assert len(answered) == 3
    assert [one.device for one in left_out] == ["open-answer0", "damaged"]


@pytest.mark.parametrize(("flags", "says"), [
    (["--aggregation", "svd"], "whose products cannot be summed in secret"),
    (["--average", "median"], "which needs the value of each device"),
    (["--clip", 1], "--clip is given with --secret"), (["--threshold", 2], "the threshold is 2 of 4 devices")])
def test_tasks_that_cannot_be_summed_in_secret(place, tiny_llama, tmp_path, flags, says):
    given = {"--aggregation": "frozen-a"} | dict([flags])
    flags = [part for pair in given.items() for part in pair]
    text = run("fleet", "task", tiny_llama, "-o", tmp_path / "t", "--secret", place / "keys.txt", *flags, code=2)
    assert says in text


def test_devices_that_are_not_in_the_round(place, tiny_llama, tmp_path):
    run("fleet", "key", "-o", tmp_path / "stranger")
    learn = ("fleet", "train-round", place / "task", place / "rows0.jsonl", "--model", tiny_llama, *OWN, "-o",
             tmp_path / "answer")
    assert "is summed in secret" in run(*learn, code=2)
    assert "this device is not among those of the round" in run(*learn, "--secret", tmp_path / "stranger", code=1)
    assert "holds no key of a device" in run(*learn, "--secret", place / "keys.txt", code=2)
    text = run("fleet", "aggregate", place / "task", *answers(place), "--model", tiny_llama, "-o", tmp_path / "x",
               code=2)
    assert "is summed in secret" in text
    assert not (tmp_path / "answer.work").exists()
