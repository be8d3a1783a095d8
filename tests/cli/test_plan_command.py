"""plan as a user types it, on a tiny model: the answer first, steps as a run makes them, time by measured steps."""

import json
import re
import subprocess
import sys
import weakref
from io import StringIO
from typing import Any

import pytest
from click.testing import CliRunner
from commands import run
from json_lines import write_lines
from rich.console import Console
from sometimes import mostly_slow
from tiny import write_tiny

from edgetune.backends.cpu import Cpu
from edgetune.bench.train import two_steps
from edgetune.cli import app, cli
from edgetune.console import about
from edgetune.data import loader
from edgetune.data.lengths import lengths_of
from edgetune.formats.bundle import open_bundle
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.models.networks import open_network
from edgetune.objectives.sft import Sft
from edgetune.training.callbacks import RunCallbacks
from edgetune.training.config import TrainConfig
from edgetune.training.cost import forecast
from edgetune.training.run import run as train
from edgetune.training.sizing import make_plan
from edgetune.training.trainer import Trainer

SMALL = ["--rank", "4", "--max-length", "64", "--threads", "1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    write_tiny(folder / "model.gguf", formats="Q8_0")
    rows = [{"prompt": f"turn on lamp {i}", "completion": json.dumps({"lamp": i, "on": i > 9})} for i in range(24)]
    write_lines(folder / "rows.jsonl", rows)
    write_lines(folder / "held-out.jsonl", rows[:3])
    return folder


@pytest.fixture(autouse=True)
def nothing_was_saved(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def plan(place, *args: object):
    return ["plan", place / "model.gguf", *SMALL, *args]


def run_json(*args: object):
    return json.loads(run(*args, "--json"))


def test_the_answer_is_the_first_line(place):
    done = CliRunner().invoke(cli, [str(arg) for arg in plan(place, place / "rows.jsonl")])
    lines = done.stdout.splitlines()
    time = r"about (a second|\d+ seconds) here"
    assert re.fullmatch(rf"fits: [\d.]+ [MG]iB of [\d.]+ [MG]iB; at most 75 steps, {time}", lines[0])
    assert lines[1].startswith("rows: 20 to learn, 4 held out, a tenth of the data, measured 16 times; training")
    assert re.fullmatch(r"to learn in a pass: \d+ tokens in rows, about \d+ computed", lines[2])
    assert re.match(r"speed: \d+ tokens/s in the second of two steps \(\w+, fast, 1 threads\)", lines[3])
    assert len(lines) == 4
    assert "measuring two steps" in done.stderr
    long = run(*plan(place, place / "rows.jsonl", "--checkpoint-every", "0.001s"))
    assert "\na checkpoint every 0.001s: " in long
    assert "checkpoint every" not in run(*plan(place, place / "rows.jsonl", "--checkpoint-every", "never"))
    everything = run(*plan(place, "--buffers", "--no-measure"))
    assert "scratch" in everything
    assert "whole process" in everything


def test_what_does_not_fit_says_what_to_do(place):
    text = run(*plan(place, "--memory", "1M"), code=2)
    assert re.search(r"this does not fit: training needs [\d.]+ [MG]iB at least, the budget is 1 MiB \(--memory 1M\); "
                     r"give it --memory \d+M", text)


def test_without_rows_steps_are_those_of_the_option(place):
    assert run_json(*plan(place, "--no-measure"))["steps"] is None
    assert re.search(r"fits: [\d.]+ [MG]iB of [\d.]+ [MG]iB; \d+ tokens/s here\n", run(*plan(place)))
    found = run_json(*plan(place, "--steps", 10))
    assert found["steps"] == 10
    assert found["predicted"]["seconds"] == pytest.approx(10 * 8 * 64 / found["predicted"]["tokens_per_s"])
    assert re.search("fits: .*; 10 steps, about .* here\n", run(*plan(place, "--steps", 10)))
    assert "--eval is given without rows to train on" in run(*plan(place, "--eval", "none"), code=2)


def test_rows_may_still_be_named_by_data(place):
    rows = place / "rows.jsonl"
    now, before = (run_json(*plan(place, "--no-measure", *given)) for given in ([rows], ["--data", rows]))
    assert now["steps"] == before["steps"] == 75
    assert "give one of them" in run(*plan(place, rows, "--data", rows), code=2)


def test_tokens_are_counted_as_a_run_counts_them(place, tmp_path):
    """In rows and as computed, with and without what rows begin with alike; and a speed is of tokens in rows."""
    speed = tmp_path / "speed.json"
    run("lab", "bench", "train", place / "model.gguf", "--save", speed, "--threads", 1, "--steps", 1, "--batch-size", 1,
        "--length", 16)
    rows = place / "rows.jsonl"
    found = {share: run_json(*plan(place, rows, "--speed", speed, "--share-prefixes", share))
             for share in ("auto", "off")}
    assert found["off"]["computed"] == found["off"]["tokens"] == found["auto"]["tokens"]
    assert found["auto"]["computed"] < 0.9 * found["auto"]["tokens"]
    assert found["auto"]["predicted"]["tokens_per_s"] > found["off"]["predicted"]["tokens_per_s"]
    done = CliRunner().invoke(cli, ["train", str(place / "model.gguf"), str(rows), "-o", str(tmp_path / "run"), *SMALL,
                                    "--steps", "1", "--json", "--no-answers"])
    start = next(event for event in map(json.loads, done.stderr.splitlines()) if event.get("event") == "start")
    assert (start["tokens"], start["computed"]) == (found["auto"]["tokens"], found["auto"]["computed"])


HELD_OUT = {"tenth": [], "none": ["--eval", "none"], "file": ["--eval", "held-out.jsonl"]}


@pytest.fixture(scope="module")
def divided(place):
    """What a run over these rows would learn and hold out, by the kind of --eval."""
    model = place / "model.gguf"
    config = TrainConfig(max_length=64)
    paths = {kind: (place / "rows.jsonl", place / "held-out.jsonl" if kind == "file" else None) for kind in HELD_OUT}
    return {kind: loader.load(model, paths[kind], config, hold_out=int(kind != "none")) for kind in HELD_OUT}


@pytest.mark.dev
@pytest.mark.parametrize(("held_out", "options"), mostly_slow([
    ("tenth", {}), ("none", {"epochs": 2.5}),
    ("tenth", {"steps": 7, "eval_every": 3}), ("tenth", {"epochs": 2.0, "packing": True}),
    ("file", {"eval_every": 4, "batch_size": 3, "patience": 0})],
    [("tenth", {}), ("file", {"eval_every": 4, "batch_size": 3, "patience": 0})]), ids=str)
def test_steps_and_measurements_are_those_of_a_run(place, tmp_path, divided, held_out, options, monkeypatch):
    monkeypatch.chdir(place)
    flags = [f"--{name.replace('_', '-')}{'' if value is True else f'={value}'}" for name, value in options.items()]
    found = run_json(*plan(place, "rows.jsonl", "--no-measure", *HELD_OUT[held_out], *flags))
    rows, held = divided[held_out]
    assert rows
    events: list[dict[str, Any]] = []
    fixed = {"patience": 0, "anchors": 0}  # it is not ended early, and what the base would say is not known before
    whole = TrainConfig(**{"rank": 1, "max_length": 64, "threads": 1, **options, **fixed})
    record = train(open_bundle(place / "model.gguf"), rows, tmp_path / "run", whole, held_out=held,
                   callbacks=RunCallbacks(on_event=events.append))
    assert found["steps"] == record["steps"]
    assert (found["rows"], found["held_out_rows"]) == (len(rows.examples), len(held.examples) if held else 0)
    assert found["measurements"] == [event["event"] for event in events].count("eval")
    work = forecast(whole, rows, held, 64)
    learned = sum(event["tokens"] for event in events if event["event"] == "step")
    assert work.tokens == pytest.approx(learned, rel=0.01)  # of a part of a pass, rows are not all as long
    assert forecast(whole, rows, held, 64, rows_per_anchor=5).tokens > 1.1 * work.tokens
    assert work.measured_tokens == (found["measurements"] * held.tokens if held else 0)


def test_time_is_steps_and_measurements_at_the_speed(place, divided):
    """Two passes over 20 rows, three measurements of 4, of which each token takes forward's share of a step's FLOP."""
    found = run_json(*plan(place, place / "rows.jsonl", "--epochs", 2))
    assert (found["steps"], found["measurements"]) == (10, 3)
    assert found["predicted"]["source"] == "two steps"
    config = TrainConfig(rank=4, max_length=64, threads=1)
    bundle = open_bundle(place / "model.gguf")
    rows, held = divided["tenth"]
    assert rows
    assert held
    longest = max(example.tokens.size for example in rows.examples + held.examples)
    network = open_network(bundle.gguf)
    flops = network.structure.flops(make_plan(network, config).run, [longest])
    tokens = 2 * rows.tokens + 3 * held.tokens * flops.forward / (flops.forward + flops.backward)
    assert found["predicted"]["seconds"] == pytest.approx(tokens / found["predicted"]["tokens_per_s"])


def test_two_steps_are_those_of_a_trainer(place, divided):
    """Of the batches that a run takes first, as far as they fill a micro-batch."""
    bundle = open_bundle(place / "model.gguf")
    config = TrainConfig(rank=4, max_length=64, threads=1)
    rows, _ = divided["none"]
    assert rows
    made = make_plan(open_network(bundle.gguf), config, lengths=lengths_of(rows.examples))
    done: list[int] = []
    rate, speed = two_steps(bundle, config, made, Sft(), rows.examples, done.append)
    assert done == [0, 1, 2]
    trainer = Trainer(bundle, config)
    trainer.add_examples(rows.examples)
    sizes = [example.tokens.size for example in trainer.batch(2)]
    flops = trainer.model.structure.flops(made.run, sizes).total
    assert rate / speed.flops_per_s == pytest.approx(sum(sizes) / flops)
    assert (speed.threads, speed.micro_batch, speed.kept) == (1, made.run.max_tokens, made.run.kept)


def test_plan_and_measured_steps_compute_on_one_backend(place, monkeypatch):
    """A GPU is opened once; and where nothing else needs its memory, it is given back."""
    opened: list[weakref.ref[Cpu]] = []
    held: list[list[Cpu | None]] = []

    def open_cpu(threads):
        made = Cpu(threads)
        opened.append(weakref.ref(made))
        return made

    monkeypatch.setattr("edgetune.backends.opening.Cpu", open_cpu)
    monkeypatch.setattr(Tokenizer, "close", lambda _self: held.append([ops() for ops in opened]))
    assert run_json(*plan(place))["predicted"]["source"] == "two steps"
    assert held == [[None]]


ALONE = """
import sys
from edgetune.cli import cli
from edgetune.machine.device import peak_rss
cli(sys.argv[1:], standalone_mode=False)
print(peak_rss() / 2**20)
"""


def in_a_process(place, memory):
    """What plan says within this memory and, unless that is an error, the peak of its process in MiB."""
    asked = plan(place, place / "rows.jsonl", "--memory", memory, "--json")
    args = [sys.executable, "-c", ALONE, *map(str, asked)]
    done = subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.dev
def test_measuring_keeps_to_the_budget(place):
    refused, = in_a_process(place, "1M")
    least = re.search(r"--memory (\d+)M", refused["hint"])
    assert least
    budget = int(least[1]) + 1  # where nothing else fits
    said, peak = in_a_process(place, f"{budget}M")
    assert said["predicted"]["source"] == "two steps"
    assert peak <= budget


@pytest.mark.parametrize(("seconds", "said"), [
    (0.2, "a second"), (1.6, "2 seconds"), (89, "89 seconds"), (91, "2 minutes"), (130, "2 minutes"),
    (89 * 60, "89 minutes"), (100 * 60, "2 hours"), (3 * 86400, "3 days")])
def test_about(seconds, said):
    assert about(seconds) == said


@pytest.mark.parametrize("flags", [(), ("--buffers",), ("--device", "pi 5")])
def test_fits_80_columns(place, flags, monkeypatch):
    shown = StringIO()
    monkeypatch.setattr(app, "out", Console(file=shown, force_terminal=True, width=80, color_system=None))
    run(*plan(place, place / "rows.jsonl", *flags))
    assert shown.getvalue().startswith("fits: ")
    assert all(len(line) <= 80 for line in shown.getvalue().splitlines())
