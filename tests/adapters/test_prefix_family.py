"""The family prefix by the commands: trained, resumed, answered with llama.cpp, trained on from a compiled prompt."""

import json
import re

import numpy as np
import pytest
from commands import run as command
from json_lines import write_lines

from edgetune import Result
from edgetune.adapters.prefix import Prefix
from edgetune.adapters.store import read_artifact, read_run
from edgetune.errors import MismatchError, UnsupportedError, UsageError
from edgetune.training.trainer import Trainer

OPTIONS = ("--family", "prefix", "--lr", 0.1, "--threads", 1, "--anchors", 0, "--precision", "exact", "--no-answers")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_lines(tmp_path_factory.mktemp("rows") / "rows.jsonl", [{"prompt": "on", "completion": "off"}] * 4)


@pytest.fixture(scope="module")
def trained(bundle, rows, tmp_path_factory):
    out = tmp_path_factory.mktemp("prefix") / "out"
    said = command("train", bundle.path, rows, "-o", out, *OPTIONS, "--prefix-tokens", 3, "--steps", 12, "--eval", rows)
    assert said.endswith(f"try: edgetune chat {bundle.path} --adapter {out}\n")
    return out


def loss(bundle, rows, *more):
    return json.loads(command("eval", bundle.path, rows, *more, "--no-answers", "--json"))["loss"]


def test_llama_cpp_serves_it(bundle, rows, trained):
    """With the loss that our engine measured; a Modelfile or a merged file cannot hold it."""
    found = loss(bundle, rows, "--adapter", trained)
    assert found == pytest.approx(Result(trained, read_run(trained)).loss_after, rel=5e-3)
    assert found == pytest.approx(loss(bundle, rows, "--adapter", trained, "--engine", "native"), rel=5e-3)
    assert found < loss(bundle, rows) - 1
    assert command("generate", bundle.path, "on", "--adapter", trained, "--max-tokens", 3)
    assert "prefix" in command("models", "info", trained)
    for refused in (("merge", bundle.path, trained, "-o", "merged.gguf"),
                    ("export", trained, "--to", "ollama", "-o", "ollama")):
        said = command(*refused, code=UnsupportedError.exit_code)
        assert re.search("family prefix, which is no LoRA", said)


def test_training_begins_with_a_compiled_prompt(bundle, rows, tmp_path):
    """Its keys are a start as good as the prompt itself. Fewer tokens are its first ones; more are refused."""
    (tmp_path / "system.txt").write_text("off off off")
    tokens = json.loads(command("lab", "compile-prompt", bundle.path, tmp_path / "system.txt", "-o",
                                tmp_path / "system",
                                "--json"))["tokens"]
    begun = ("train", bundle.path, rows, *OPTIONS, "--steps", 12, "--eval", rows, "--start", tmp_path / "system")
    command(*begun, "-o", tmp_path / "out")
    assert read_run(tmp_path / "out")["options"]["prefix_tokens"] == tokens
    assert loss(bundle, rows, "--adapter", tmp_path / "out") < loss(bundle, rows) / 2
    said = command(*begun, "-o", tmp_path / "other", "--prefix-tokens", tokens + 1, code=MismatchError.exit_code)
    assert "--prefix-tokens" in said
    trainer = Trainer(bundle, family=Prefix(prefix_tokens=2), max_length=24, threads=1)
    trainer.load(tmp_path / "system")
    whole = read_artifact(tmp_path / "system", bundle.gguf).tensors
    for name, array in trainer.artifact().tensors.items():
        np.testing.assert_array_equal(array, whole[name][:, :2])


def test_options_out_of_range_are_refused(bundle, rows, tmp_path):
    for option, value in (("--prefix-tokens", 0), ("--blocks", "last:1")):
        command("train", bundle.path, rows, "-o", tmp_path / "out", *OPTIONS, option, value, code=UsageError.exit_code)
    assert not (tmp_path / "out").exists()
