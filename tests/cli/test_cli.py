"""The commands as a user types them, on a tiny model: results, --json, errors of one sentence, exit codes."""

import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from boards import Board
from click.testing import CliRunner
from commands import all_commands, run
from encoders import WORDS, tiny_bert, write_encoder
from screens import in_terminal, screen
from services import until
from sometimes import mostly_slow
from tiny import write_place, write_tiny

import edgetune.__main__
from edgetune.cli import cli
from edgetune.cli.names import EXTRAS
from edgetune.errors import install_hint
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.serving.llama import LlamaModel

ROWS = [{"prompt": f"turn on lamp {i}", "completion": json.dumps({"lamp": i})} for i in range(12)]
SMALL = ["--rank", "4", "--max-length", "64", "--threads", "1", "--batch-size", "4"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write_place(tmp_path_factory.mktemp("cli"), ROWS)


def run_json(*args, code=0):
    lines = run(*args, "--json", code=code).splitlines()
    assert len(lines) == 1, lines
    return json.loads(lines[0])


@pytest.fixture(scope="module")
def adapter(place):
    folder = place / "adapter"
    record = run_json("train", place / "model.gguf", place / "rows.jsonl", "-o", folder, "--steps", 4, "--eval",
                      place / "rows.jsonl", *SMALL)
    assert record["status"] == "done"
    assert record["steps"] == 4
    return folder


def test_train_prints_plain_lines_without_a_terminal(place):
    text = run("train", place / "model.gguf", place / "rows.jsonl", "-o", place / "plain", "--steps", 2, *SMALL)
    assert "step 2/2" in text
    assert "tokens/s" in text
    assert "\x1b" not in text
    assert f"edgetune chat {place / 'model.gguf'} --adapter {place / 'plain'}" in text


@pytest.mark.dev
def test_engines_agree(place, adapter):
    scores = [run_json("eval", place / "model.gguf", place / "rows.jsonl", "--adapter", adapter, "--engine", *engine)
              for engine in (["native", "--limit", 2], ["llama.cpp", "--limit", 2])]
    assert scores[0]["tokens"] == scores[1]["tokens"] > 0
    assert scores[0]["loss"] == pytest.approx(scores[1]["loss"], rel=1e-2)
    assert [score["exact_rows"] for score in scores] == [2, 2]


def test_markup_is_text_or_tokens(place):
    """Supervised tokens: of the whole answer, or up to the end that it spells."""
    path = place / "forged.jsonl"
    path.write_text(json.dumps({"prompt": "a", "completion": "on<|im_end|>off"}) + "\n")
    tokenizer = Tokenizer(place / "model.gguf")
    expected = [len(tokenizer.encode("on<|im_end|>off", special=False)) + 1, len(tokenizer.encode("on")) + 1]
    found = [run_json("eval", place / "model.gguf", path, "--no-answers", "--markup", markup)["tokens"]
             for markup in ("escape", "parse")]
    assert found == expected


def test_generate_and_chat(place, adapter):
    result = run_json("generate", place / "model.gguf", "turn on lamp 3", "--adapter", adapter, "--max-tokens", 8)
    with LlamaModel(place / "model.gguf") as served:
        served.load_adapter(adapter, "lamp")
        served.use("lamp")
        served.structured = True  # the rows' answers are JSON
        expected = "".join(served.chat([{"role": "user", "content": "turn on lamp 3"}], max_tokens=8))
    assert result == {"prompt": "turn on lamp 3", "text": expected}
    done = CliRunner().invoke(cli, ["chat", str(place / "model.gguf"), "--max-tokens", "4", "--json"],
                              input="hello\nagain\n\n")
    assert done.exit_code == 0, done.output
    assert [set(json.loads(line)) for line in done.output.splitlines()] == [{"text"}] * 2


def test_export_and_import_are_inverse(place, adapter):
    exported = run_json("adapters", "export", adapter, "--to", "peft", "-o", place / "peft")
    assert exported["base_name"] == "model.gguf"
    named = run_json("adapters", "export", adapter, "--base-name", "maker/tiny", "-o", place / "peft-named")
    assert named["base_name"] == "maker/tiny"
    assert json.loads((place / "peft-named" / "adapter_config.json").read_text())["base_model_name_or_path"] == (
        "maker/tiny")
    again = run_json("adapters", "import", place / "peft", "--base", place / "model.gguf", "-o", place / "again")
    assert exported["pairs"] == again["pairs"]
    assert run_json("models", "info", place / "again")["pairs"] == exported["pairs"]


def test_a_second_adapter_is_refused(place, adapter):
    text = run("generate", place / "model.gguf", "hi", "--adapter", adapter, "--adapter", adapter, code=2)
    assert "--adapter is given 2 times" in text


def test_paths_are_printed_as_they_are(place):
    """A name in brackets is no markup, neither of a colour nor of an end that nothing began."""
    folder = place / "[red]" / "a[/b]" / "runs[v2]"
    text = run("train", place / "model.gguf", place / "rows.jsonl", "-o", folder, "--steps", 1, *SMALL)
    assert f"adapter in {folder}; try: edgetune chat {place / 'model.gguf'} --adapter '{folder}'" in text
    (folder / "rows[b].jsonl").write_text((place / "rows.jsonl").read_text())
    scores = run("eval", place / "model.gguf", folder / "rows[b].jsonl", "--no-answers")
    assert "rows[b].jsonl by llama.cpp" in scores


def test_numbers_of_info_are_short(adapter):
    text = run("models", "info", adapter)
    assert "held out loss before" in text
    assert not re.search(r"\d\.\d{7}", text)


def test_merge_says_what_it_cost(place, adapter):
    result = run_json("adapters", "merge", place / "model.gguf", adapter, "-o", place / "merged.gguf", "--to", "F16",
                      "--eval",
                      place / "rows.jsonl")
    assert result["loss_merged"] == pytest.approx(result["loss_with_adapter"], rel=1e-2)
    assert result["exact_merged"] == result["exact_with_adapter"]
    assert run_json("models", "info", place / "merged.gguf")["trainable"] is True


def test_plan_info_doctor(place, adapter):
    plan = run_json("plan", place / "model.gguf", *SMALL, "--no-measure")
    sums = {kind: sum(b["bytes"] for b in plan["buffers"] if b["lifetime"] == kind)
            for kind in ("run", "step", "block", "head")}
    least = sums["run"] + sums["step"] + max(sums["block"], sums["head"])
    assert least <= plan["arena_bytes"] < least + 8192
    assert set(sums) == {b["lifetime"] for b in plan["buffers"]}
    assert plan["disk"]["bytes_per_day"] > 288 * plan["disk"]["checkpoint_bytes"]
    facts = run_json("models", "info", place / "model.gguf")
    assert (facts["kind"], facts["architecture"], facts["trainable"]) == ("model", "llama", True)
    assert run_json("models", "info", adapter)["kind"] == "adapter"


def test_info_of_an_encoder(tmp_path):
    facts = run_json("models", "info", write_encoder(tmp_path / "encoder.gguf", tiny_bert(), WORDS))
    assert (facts["kind"], facts["architecture"], facts["trainable"]) == ("model", "bert", True)


def test_doctor_begins_with_a_verdict(monkeypatch):
    facts = run_json("doctor")
    assert facts["ready"] is True
    assert facts["verdict"].startswith(ready := f"Ready: trains with the kernels {facts['kernels']} on ")
    assert run("doctor").startswith(ready)

    def load():
        raise OSError("libllama.so is missing")

    monkeypatch.setattr("edgetune.llamacpp.library.load", load)
    text = run("doctor", code=1)
    assert text.startswith("Not ready: models are neither trained nor answer without llama.cpp (libllama.so is "
                           "missing): pip install llama-cpp-python.\n")


@pytest.mark.dev
@pytest.mark.parametrize("columns", [60, 80])
def test_device_is_watched(tmp_path, columns):
    board = Board(tmp_path / "pi")
    with screen("device", "--watch", "--root", tmp_path / "pi", columns=columns, rows=20) as seen:
        seen.wait("temperature                 50")
        board.heat(71)
        seen.wait("temperature                 71")
        seen.type("\003")
        assert seen.end() == 0


def test_device(place):
    facts = run_json("lab", "device")
    here = run_json("doctor")
    assert {key: facts[key] for key in ("board", "cpu", "cores", "profile")} == {
        key: here[key] for key in ("board", "cpu", "cores", "profile")}
    assert facts["matched"]
    Board(place / "pi")
    text = run("lab", "device", "--root", place / "pi")
    assert all(words in text for words in ("Raspberry Pi 5 Model B Rev 1.0", "throttle temp: 80", "temperature"))
    facts = run_json("lab", "device", "--root", place / "pi")
    assert (facts["profile"], facts["temperature"], facts["zone"]) == ("Raspberry Pi 5", 50.0, "cpu-thermal")
    assert "no folder proc" in run("lab", "device", "--root", place / "adapter", code=2)


ERRORS = [
    (["train", "{model}", "{rows}", "-o", "{place}/new", "--rank", "0"], 2, ["rank is 0", "1"]),
    (["train", "{model}", "{rows}", "-o", "{place}/new", "--rank", "5000"], 2, ["rank 5000"]),
    (["train", "{model}", "{rows}", "-o", "{place}/new", "--targets", "lm_head"], 2, ["lm_head", "q_proj"]),
    (["train", "{place}/none.gguf", "{rows}", "-o", "{place}/new"], 1, ["none.gguf"]),
    (["train", "{rows}", "{rows}", "-o", "{place}/new"], 1, ["rows.jsonl", "GGUF"]),
    (["train", "{model}", "{place}/none.jsonl", "-o", "{place}/new"], 1, ["none.jsonl"]),
    (["train", "{model}", "{place}/bad.jsonl", "-o", "{place}/new"], 1, ["line 2", "JSON"]),
    (["train", "{model}", "{place}/empty.jsonl", "-o", "{place}/new"], 1, ["empty.jsonl"]),
    (["train", "{model}", "{rows}", "-o", "{place}"], 2, ["exists"]),
    (["train", "{model}", "{rows}", "-o", "{place}/new", "--quiet-hours", "8-22"], 2, ["quiet-hours", "08:00-22:00"]),
    (["train", "{model}", "{rows}", "-o", "{place}/new", "--policy", "{rows}"], 1, ["is not TOML", "name = value"]),
    (["eval", "{model}", "{rows}", "--adapter", "{model}"], 1, ["adapter"]),
    (["generate", "{other}", "hello", "--adapter", "{adapter}"], 1, ["trained on model.gguf"]),
    (["info", "{rows}"], 1, ["GGUF"]),
    (["adapters", "merge", "{model}", "{adapter}", "-o", "{rows}"], 2, ["exists"]),
    (["adapters", "merge", "{model}", "{adapter}", "-o", "{place}/new/merged.gguf"], 1, ["make the folder"]),
    (["adapters", "merge", "{model}", "{adapter}", "-o", "{place}/new/merged.gguf", "--to", "keep"], 1,
     ["make the folder"]),
    (["train", "{place}/checkpoint", "{rows}", "-o", "{place}/new"], 1, [
        "is a Hugging Face checkpoint", "make one on a laptop: edgetune compress", "checkpoint -o checkpoint.edge"]),
    (["train", "maker/tiny", "{rows}", "-o", "{place}/new"], 1, ["edgetune compress maker/tiny -o tiny.edge"]),
]


@pytest.mark.dev
@pytest.mark.parametrize(("args", "code", "words"), mostly_slow(ERRORS, ERRORS[::5]))
def test_errors_are_one_sentence(place, adapter, args, code, words):
    (place / "bad.jsonl").write_text(json.dumps(ROWS[0]) + "\n{oops\n")
    (place / "empty.jsonl").write_text("")
    (place / "checkpoint").mkdir(exist_ok=True)
    (place / "checkpoint" / "config.json").write_text("{}")
    if not (place / "other.gguf").exists():
        write_tiny(place / "other.gguf", formats="Q8_0", seed=7)
    names = {"model": place / "model.gguf", "rows": place / "rows.jsonl", "place": place, "adapter": adapter,
             "other": place / "other.gguf"}
    done = subprocess.run([sys.executable, "-m", "edgetune", *(a.format(**names) for a in args)], cwd=place,
                          capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert not (place / "new").exists()
    assert json.loads((place / "rows.jsonl").read_text().splitlines()[0]) == ROWS[0]


def test_ctrl_c_while_modules_load(monkeypatch):
    """The first second of a command; it ends as at any other time."""
    class Pressed:
        def find_spec(self, name, *_: object):
            if name == "edgetune.cli":
                raise KeyboardInterrupt

    for name in [name for name in sys.modules if name.startswith("edgetune.cli")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Pressed(), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        edgetune.__main__.main()
    assert ended.value.code == 130


@pytest.mark.dev
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_saves_and_resume_goes_on(place, number):
    args = [sys.executable, "-m", "edgetune", "train", "model.gguf", "rows.jsonl", "-o", f"stopped-{number}", "--steps",
            "60", *SMALL]
    process = subprocess.Popen(args, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = place / f"stopped-{number}" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.read_text().count("\n") > 3):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 75, error
    assert "--resume" in error
    assert (place / f"stopped-{number}" / "adapter.gguf").exists()
    done = subprocess.run([*args, "--resume", "--json"], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 60


@pytest.mark.dev
def test_a_training_whose_terminal_is_closed_saves_and_resume_goes_on(place):
    args = [sys.executable, "-m", "edgetune", "train", "model.gguf", "rows.jsonl", "-o", "closed", "--steps", "60",
            *SMALL]
    with in_terminal(args, place) as running:
        metrics = place / "closed" / "metrics.jsonl"
        until(lambda: metrics.exists() and metrics.read_text().count("\n") > 3)
        running.close()
        assert running.process.wait(60) == 75, running.said
    assert (place / "closed" / "adapter.gguf").exists()
    done = subprocess.run([*args, "--resume", "--json"], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 60


@pytest.mark.dev
def test_a_training_that_ignores_the_end_of_its_terminal_goes_on(place):
    """Under nohup, whose output is a file."""
    args = ["nohup", sys.executable, "-m", "edgetune", "train", "model.gguf", "rows.jsonl", "-o", "nohup", "--steps",
            "12", *SMALL]
    with (place / "said").open("w") as said:
        process = subprocess.Popen(args, cwd=place, stdout=said, stderr=said)
        metrics = place / "nohup" / "metrics.jsonl"
        until(lambda: metrics.exists() and metrics.read_text().count("\n") > 3)
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 0, (place / "said").read_text()


@pytest.mark.dev
@pytest.mark.parametrize("path", [(), *all_commands()], ids=" ".join)
def test_help_fits_a_terminal(path):
    for width in (60, 80):
        done = CliRunner().invoke(cli, [*path, "--help"], terminal_width=width)
        assert done.exit_code == 0
        wide = [line for line in done.output.splitlines() if len(line) > width]
        assert not wide
    assert "..." not in done.output.partition("Commands:")[2]


@pytest.mark.parametrize(("command", "package", "extra"), [
    (("jobs",), "httpx", "daemon"), (("status",), "httpx", "daemon"),
    (("pull", "qwen3-0.6b"), "huggingface_hub", "hub"), (("compress", "a", "-o", "b.edge"), "torch", "host")])
def test_a_missing_extra_is_named(monkeypatch, command, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    if "compress" in vars(edgetune):  # which another import replaces
        monkeypatch.setattr(edgetune, "compress", vars(edgetune)["compress"])
    for name in [name for name in sys.modules if name.startswith("edgetune.compress")]:
        monkeypatch.delitem(sys.modules, name)
    assert f"make install EXTRAS={extra}" in run(*command, code=2 if extra == "host" else 1)


def test_extras_are_those_of_the_project_and_bring_their_modules():
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8")
    lines = project.partition("[project.optional-dependencies]")[2].partition("[project.scripts]")[0]
    lists = dict(re.findall(r"^(\w+) = \[(.*?)\]$", lines, re.M | re.S))
    assert {extra.name for extra in EXTRAS} == set(lists) - {"test", "dev"} > {"demo"}
    assert len(lists) <= 11
    of = importlib.metadata.packages_distributions()
    for extra in EXTRAS:
        brought = {name.lower().replace("_", "-") for name in re.findall(r'"([\w-]+)', lists[extra.name])}
        for module in extra.modules:
            if extra.name in ("cuda", "host") and module not in of:
                continue  # no part of the extra test
            assert brought & {name.lower().replace("_", "-") for name in of[module]}, module


def test_no_command_is_named_that_asks_an_index_for_edgetune():
    """There it may be somebody else's."""
    root = Path(__file__).parents[2]
    named = set()
    for path in [*(root / "edgetune").rglob("*.py"), *(root / "docs").rglob("*.md"), root / "README.md"]:
        text = path.read_text("utf-8")
        named |= set(re.findall(r"install_hint\([\"'](\w+)", text))
        assert not re.search(r"pip\s+install (?!--prefer-binary --find-links dist )[^\n`]*\bedgetune\b", text), path
    assert {"hub", "rows", "host", "cuda"} < named <= {extra.name for extra in EXTRAS}


def test_doctor_names_what_each_missing_extra_is_for(monkeypatch):
    monkeypatch.setattr("edgetune.cli.names.Extra.missing", lambda extra: list(extra.modules))
    assert run_json("doctor")["missing"] == [f"for {extra.needed_by}: {install_hint(extra.name)}"
                                             for extra in EXTRAS]
