"""Training with a prompt file: what is learned, asked before and after, saved with the adapter, and resumed."""

import re
import shutil

import numpy as np
import pytest
from encoders import WORDS, tiny_bert, write_encoder
from json_lines import read_lines, write_lines

from edgetune.adapters.store import PROMPT
from edgetune.data import rows as supervised
from edgetune.data.dataset import load
from edgetune.data.loader import load_run
from edgetune.errors import Interrupted, MismatchError, UsageError
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.runs.train import resume, train
from edgetune.serving.llama import LlamaModel
from edgetune.serving.prompt_file import NearestExamples, Prompt, open_prompt, write_prompt
from edgetune.training.callbacks import RunCallbacks
from edgetune.training.config import TrainConfig

ROWS = [{"prompt": f"turn on light {i}", "completion": "on" if i % 2 else "off"} for i in range(12)]
HELD = [{"prompt": f"set light {i}", "completion": "on"} for i in range(4)]
OPTIONS = {"rank": 4, "lr": 1e-2, "steps": 6, "batch_size": 4, "threads": 1}


@pytest.fixture
def prompt(tmp_path):
    """One example for all questions, and one that is near."""
    write_encoder(tmp_path / "encoder.gguf", tiny_bert(), WORDS)
    write_lines(tmp_path / "near.jsonl", ROWS)
    write_prompt(tmp_path / "prompt.json", Prompt("set the light", [{"prompt": "the light", "completion": "on"}],
                                                  NearestExamples("near.jsonl", 1, "encoder.gguf")))
    return tmp_path / "prompt.json"


def test_rows_are_read_with_it_and_its_examples_are_not_learned(model, tmp_path, prompt):
    path = write_lines(tmp_path / "rows.jsonl", ROWS)
    tokenizer = Tokenizer(model)
    rows, _ = load_run(model, path, "none", TrainConfig(prompt=str(prompt)), supervised)
    here = load(path, tokenizer, max_length=512, system=open_prompt(prompt))
    for ours, theirs in zip(rows.examples, here.examples, strict=True):
        assert ours.tokens.tolist() == theirs.tokens.tolist()
        assert ours.weights.tolist() == theirs.weights.tolist()
    learned = [tokenizer.decode(example.tokens[np.flatnonzero(example.weights)].tolist()) for example in here.examples]
    assert learned == [f"{row['completion']}<|im_end|>" for row in ROWS]


@pytest.mark.dev
def test_the_adapter_is_saved_with_it_and_asked_with_it(model, tmp_path, prompt):
    found = train(model, ROWS, tmp_path / "out", HELD, prompt=str(prompt), **OPTIONS)
    assert read_lines(tmp_path / "out" / PROMPT[1]) == ROWS
    asked = open_prompt(prompt).put([{"role": "user", "content": HELD[0]["prompt"]}])
    assert len(asked) == 6
    for path in (prompt, tmp_path / "near.jsonl"):
        path.unlink()  # the adapter's own copies are read
    with LlamaModel(model, threads=1) as served:
        before = "".join(served.chat(asked, max_tokens=20))
        served.load_adapter(tmp_path / "out", "a")
        served.use("a")
        after = "".join(served.chat(asked, max_tokens=20))
        assert "".join(served.chat(asked[-1:], max_tokens=20)) == after
        assert served.render(asked[-1:], None, "a") == served.tokenizer.render(asked, None, add_generation_prompt=True)
    [pair] = [pair for pair in found.pairs if pair["prompt"] == HELD[0]["prompt"]]
    assert (pair["before"], pair["after"]) == (before.strip(), after.strip())
    assert re.search(r"\d of 4 held-out answers right \(\d with the prompt alone\)", " ".join(found.headline))
    assert re.search(r"\d of 4 held-out rows .* \d with the prompt alone", found.verdict)
    again = train(model, ROWS, tmp_path / "again", HELD, start=tmp_path / "out",
                  prompt=str(tmp_path / "out" / PROMPT[0]), **OPTIONS)
    assert re.search(r"held-out answers right \(\d before\)", " ".join(again.headline))


@pytest.mark.dev
@pytest.mark.usefixtures("prompt")
def test_a_run_resumes_with_it_from_any_folder_and_not_with_another(model, tmp_path, monkeypatch):
    path = write_lines(tmp_path / "rows.jsonl", ROWS)
    write_lines(tmp_path / "held.jsonl", HELD)
    monkeypatch.chdir(tmp_path)
    steps = iter([False] * 3)
    calls = RunCallbacks(should_stop=lambda: next(steps, True))
    with pytest.raises(Interrupted):
        train(model, path, "out", "held.jsonl", prompt="prompt.json", callbacks=calls, **OPTIONS)
    shutil.copytree("out", "again")
    monkeypatch.chdir("/")
    assert resume(tmp_path / "out").steps == 6
    write_lines(tmp_path / "near.jsonl", ROWS[1:])
    with pytest.raises(MismatchError, match="--prompt"):
        resume(tmp_path / "again")


def test_what_cannot_be_is_a_sentence(model, tmp_path, prompt):
    with pytest.raises(UsageError, match="system is given with prompt"):
        train(model, ROWS, tmp_path / "out", HELD, prompt=str(prompt), system="a", **OPTIONS)
    with pytest.raises(UsageError, match="an encoder reads a question alone"):
        train(tmp_path / "encoder.gguf", ROWS, tmp_path / "out", HELD, prompt=str(prompt), threads=1)
