"""train --method and eval on rows of pairs, as a user types them."""

import json
import math
import re

import numpy as np
import pytest
from commands import run
from json_lines import write_lines
from tiny import write_tiny

from edgetune.data import preferences
from edgetune.data.dataset import load_rows
from edgetune.errors import DataError, UsageError
from edgetune.serving.llama import LlamaModel

ROWS = [{"prompt": f"set the light {i}", "chosen": f'{{"on":"{i % 3}"}}', "rejected": f"the turn {i}"}
        for i in range(12)]
OTHERS = [{"prompt": f"light {i}", "completion": "on"} for i in range(8)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, rows, and an adapter that learned the pairs."""
    folder = tmp_path_factory.mktemp("pairs")
    write_tiny(folder / "model.gguf", formats="Q8_0")
    for name, rows in (("pairs", ROWS), ("rows", OTHERS)):
        write_lines(folder / f"{name}.jsonl", rows)
    made = train(folder, "adapter", "--method", "dpo", "--beta", "1", "--lr", "0.02", "--steps", "12",
                 "--precision", "exact")  # else on AMX few tokens are rounded otherwise than many
    assert made["objective"] == {"name": "dpo", "beta": 1.0, "loss_type": "sigmoid", "label_smoothing": 0.0,
                                 "sft_weight": 0.0}
    assert made["held_out"]["loss_after"] < made["held_out"]["loss_before"] == pytest.approx(math.log(2), rel=1e-4)
    return folder


def train(place, out, *options: str):
    return json.loads(run("train", place / "model.gguf", place / "pairs.jsonl", "-o", place / out, "--threads", 1,
                          "--max-length", 64, "--json", *options))


def logp(served, tokenizer):
    """[pairs, 2], by llama.cpp alone."""
    data = load_rows(ROWS, tokenizer, max_length=64, parser=preferences)
    sums = [served.logprobs(e.tokens.tolist(), e.weights != 0).sum() for e in data.examples]
    return np.array(sums).reshape(-1, 2)


@pytest.mark.dev
@pytest.mark.parametrize("engine", ["llama.cpp", "native"])
def test_eval_says_what_llama_cpp_prefers(place, engine):
    args = ["eval", place / "model.gguf", place / "pairs.jsonl", "--threads", 1, "--engine", engine]
    plain = json.loads(run(*args, "--json"))
    found = json.loads(run(*args, "--adapter", place / "adapter", "--method", "dpo", "--beta", 1, "--json"))
    with LlamaModel(place / "model.gguf", threads=1) as served:
        base = logp(served, served.tokenizer)
        served.load_adapter(place / "adapter", "it")
        served.use("it")
        now = logp(served, served.tokenizer)
    close = {"rel": 0.03, "abs": 0.03}  # llama.cpp rounds activations
    assert plain["margin"] == pytest.approx(float((base[:, 0] - base[:, 1]).mean()), **close)
    assert plain["preference_accuracy"] == pytest.approx((base[:, 0] > base[:, 1]).mean(), abs=0.1)
    assert plain["reward_margin"] is plain["objective_loss"] is None
    margins = (now - base)[:, 0] - (now - base)[:, 1]
    assert found["reward_margin"] == pytest.approx(margins.mean(), **close)
    assert found["reward_accuracy"] == (margins > 0).mean() == 1
    assert found["margin"] == pytest.approx(float((now[:, 0] - now[:, 1]).mean()), **close)
    assert found["objective_loss"] == pytest.approx(np.logaddexp(0, -margins).mean(), **close)
    assert (found["pairs"], found["engine"]) == (12, engine)
    shown = run(*args, "--adapter", place / "adapter")
    assert "preference accuracy" in shown
    assert "margin relative to the base" in shown


def test_the_default_rate_is_the_methods(place):
    made = train(place, "default", "--method", "dpo", "--steps", "1", "--no-answers")
    assert made["options"]["lr"] == 2e-4
    assert train(place, "named", "--method", "orpo", "--steps", "1", "--lr", "1e-4")["options"]["lr"] == 1e-4
    planned = json.loads(run("plan", place / "model.gguf", place / "pairs.jsonl", "--method", "dpo", "--no-measure",
                             "--json"))
    assert planned["rows"] == 18  # both answers of the pairs that are learned


@pytest.mark.dev
def test_a_sweep_and_a_resume_know_the_method(place):
    train(place, "sweep", "--method", "dpo", "--steps", "2", "--lr", "1e-3,1e-2")
    runs = json.loads((place / "sweep" / "sweep.json").read_text())["runs"]
    assert [json.loads((place / "sweep" / one["folder"] / "run.json").read_text())["objective"]["name"]
            for one in runs] == ["dpo", "dpo"]
    made = json.loads(run("resume", place / "adapter", "--epochs", "+1", "--json"))
    assert made["objective"]["name"] == "dpo"
    assert len(made["legs"]) == 1


@pytest.mark.parametrize(("args", "says"), [
    (["eval", "pairs", "--limit", 3], "--limit is given, and to rows of pairs no answers are made"),
    (["eval", "pairs", "--method", "kto"], "--method is kto, which learns from other rows than pairs"),
    (["eval", "rows", "--method", "dpo"], "--method dpo is given, and the rows are no pairs"),
    (["train", "pairs", "-o", "NEW"], "line 1 of pairs.jsonl: the row is a pair of answers.*; learn pairs by the"),
    (["train", "rows", "-o", "NEW", "--method", "dpo"], "the row is no pair of answers"),
    (["train", "pairs", "-o", "NEW", "--method", "dpo", "--desirable-weight", "1"],
     "--desirable-weight is no option of the method dpo; leave it out, or add --method kto"),
    (["data check", "pairs", "--loss-type", "ipo"], "--loss-type is no option of the method sft"),
])
def test_what_does_not_fit_is_refused(place, args, says, tmp_path):
    command, data, *options = args
    named = [tmp_path / "new" if option == "NEW" else option for option in options]
    model = [] if command == "data check" else [place / "model.gguf"]
    said = run(*str(command).split(), *model, place / f"{data}.jsonl", *named,
               code=DataError.exit_code if "the row is" in says else UsageError.exit_code)
    assert re.search(says, " ".join(said.split())), said
