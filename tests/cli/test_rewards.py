"""train --method grpo: from prompts and a grader to an adapter, its report and more steps; what is refused."""

import json
import re
from typing import Any

import pytest
from click.testing import CliRunner
from commands import run
from durable import metrics
from json_lines import write_lines
from tiny import write_tiny

from edgetune import train
from edgetune.cli import cli
from edgetune.errors import UsageError
from edgetune.evaluation.graders.base import read_grader
from edgetune.evaluation.graders.sample import Sample
from edgetune.objectives.grpo import Grpo
from edgetune.parts.tutor.rounds import teach
from edgetune.training.callbacks import Event, RunCallbacks

LETTER = {"type": "python", "name": "letter",
          "source": "def grade(sample, item):\n    return sample['output_text'].count(item['wanted']) / 9"}
NEAR = {"type": "text_similarity", "name": "near", "input": "{{ sample.output_text }}",
        "reference": "{{ item.wanted }}", "evaluation_metric": "fuzzy_match"}
BOTH = {"type": "multi", "name": "both", "graders": {"letter": LETTER, "near": NEAR},
        "calculate_output": "letter + near / 10"}
JUDGE = {"type": "score_model", "name": "judge", "model": "self", "range": [0, 1],
         "input": [{"role": "user", "content": "good? {{ sample.output_text }}"}]}
ROWS = [{"prompt": f"turn on lamp {i}", "wanted": "eiou"[i % 4]} for i in range(12)]
SMALL = ("--method", "grpo", "--max-length", 48, "--max-completion-length", 9, "--batch-size", 3, "--threads", 1,
         "--rank", 2, "--lr", 0.01)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("rewards") / "model.gguf")


def written(path, what):
    lines = what if isinstance(what, list) else [what]
    write_lines(path, lines)
    return path


def said(*args: Any):
    """What a command prints, whatever its exit code."""
    result = CliRunner().invoke(cli, [str(a) for a in args])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return " ".join(result.output.split())


def test_from_prompts_and_a_grader_to_an_adapter(model, tmp_path):
    rows = written(tmp_path / "rows.jsonl", ROWS)
    grader = written(tmp_path / "grader.json", BOTH)
    out = tmp_path / "out"
    shown = said("train", model, rows, "-o", out, "--grader", grader, "--steps", 4, *SMALL)  # it may not learn
    assert "training on answers to 9 prompts" in shown
    assert "before training, of 4 answers each to 9 prompts" in shown
    assert "held-out reward" in shown
    record = json.loads((out / "run.json").read_text())
    assert json.loads(record["objective"]["grader"])["graders"].keys() == {"letter", "near"}
    assert (record["measure"], record["options"]["lr"], record["options"]["schedule"]) == ("reward", 0.01, "constant")
    steps = metrics(out)
    assert {"rewards/letter/mean", "rewards/near/mean"} <= steps[-2]["metrics"].keys()
    grader.unlink()  # what the run needs is in its folder
    said("resume", out, "--epochs", "+1", "--no-answers")
    assert json.loads((out / "run.json").read_text())["steps"] == 7
    run("report", out)
    page = (out / "report.html").read_text()
    assert "answers that are learned from" in page
    assert "held-out reward" in page


def test_a_reward_function(model, tmp_path):
    (tmp_path / "rewards.py").write_text("def vowels(completions, wanted, **_):\n"
                                         "    return [len(c) + c.count(w) for c, w in zip(completions, wanted)]\n")
    rows = written(tmp_path / "rows.jsonl", ROWS)
    record = json.loads(run("train", model, rows, "-o", tmp_path / "out", "--reward", f"{tmp_path}/rewards.py:vowels",
                            "--eval", "none", "--steps", 2, "--json", *SMALL))
    assert record["objective"]["reward"].endswith("rewards.py:vowels")


def test_a_model_that_judges_itself(model, tmp_path):
    """The probabilities of labels are those of llama.cpp; training has them by its own engine, without the adapter."""
    rows = written(tmp_path / "rows.jsonl", ROWS)
    grader = written(tmp_path / "grader.json", JUDGE)
    said("train", model, rows, "-o", tmp_path / "out", "--grader", grader, "--eval", "none", "--steps", 2, *SMALL[:2],
         "--max-length", 96, *SMALL[4:], "--precision", "exact")
    steps = metrics(tmp_path / "out")
    assert 0 < steps[-1]["metrics"]["rewards/judge/mean"] < 1
    answered = written(tmp_path / "answers.jsonl", [{**row, "completion": "on"} for row in ROWS[:3]])
    judged = json.loads(run("grade", grader, answered, "--model", model, "--samples", 1, "--max-tokens", 4, "--json"))
    assert len(judged["scores"]) == 3


def test_the_plan_counts_the_answers(model, tmp_path):
    rows = written(tmp_path / "rows.jsonl", ROWS)
    found = json.loads(run("plan", model, rows, *SMALL, "--json"))
    assert {"cache_keys", "cache_values"} <= {buffer["name"] for buffer in found["buffers"]}
    assert found["live"] == 12
    assert found["predicted"] is None


def roomy(model, rows):
    """A budget of 1,300 MiB more than this process has, in which other tests ran before."""
    found = json.loads(run("plan", model, rows, "--grader", json.dumps(NEAR), *SMALL, "--memory", "16G", "--json"))
    return f"{(found['process_bytes'] >> 20) + 1300}M"


@pytest.mark.dev
def test_processes_of_a_python_grader_are_planned_and_bounded(model, tmp_path):
    rows = written(tmp_path / "rows.jsonl", ROWS)
    budget = roomy(model, rows)
    source = """def grade(sample, item):
        try:
            bytearray(1 << 30)
        except MemoryError:
            return 1 + len(sample['output_text'])
        return 0"""
    hungry = json.dumps({"type": "python", "name": "hungry", "source": source, "memory": 2048})
    common = (*SMALL, "--memory", budget, "--json")
    planned = [json.loads(run("plan", model, rows, "--grader", grader, *common))["process_bytes"]
               for grader in (json.dumps(NEAR), hungry)]
    events: list[Event] = []
    train(model, rows, tmp_path / "out", "none", objective=Grpo(grader=hungry, max_completion_length=9), memory=budget,
          steps=1, max_length=48, batch_size=3, threads=1, rank=2, callbacks=RunCallbacks(events.append))
    trained = next(event for event in events if event["event"] == "start")["plan"]["process_bytes"]
    assert min(planned[1], trained) - planned[0] > 200 << 20
    assert metrics(tmp_path / "out")[-1]["metrics"]["reward"] >= 1
    afterwards, = read_grader(json.loads(hungry)).grade([Sample("a")], [{}])
    assert afterwards.reward == 0  # the limit of a run ends with it: 1 GiB is within the grader's own


def test_the_tutor_leaves_memory_to_processes_of_its_grader(model, tmp_path, monkeypatch):
    budgets = []

    def refused(*_, config, **__):
        budgets.append(config.memory_bytes(0))
        raise UsageError("enough", "")

    budget = roomy(model, written(tmp_path / "rows.jsonl", ROWS))
    monkeypatch.setattr(teach, "teach", refused)
    for grader in (NEAR, LETTER):
        path = written(tmp_path / "grader.json", grader)
        said("tutor", model, written(tmp_path / "rows.jsonl", ROWS), "-o", tmp_path / "out", "--grader", path,
             "--memory", budget)
    assert 200 << 20 < budgets[0] - budgets[1] <= 513 << 20


@pytest.mark.parametrize(("options", "rows", "what"), [
    ((), ROWS, "grpo needs something that rewards answers"),
    (("--grader", json.dumps({**NEAR, "reference": "{{ item.right }}"})), ROWS, "row 1: .*right"),
    (("--grader", json.dumps({**NEAR, "reference": "{{ item.right }}", "pass": 1})), ROWS, "has no field 'pass'"),
    (("--grader", "nowhere.json"), ROWS, "the grader nowhere.json cannot be read"),
    (("--grader", "{"), ROWS, "is no JSON"),
    (("--reward", "os:nothing"), ROWS, "there is no function nothing in os"),
    (("--reward", "os:getcwd", "--grader", json.dumps(NEAR)), ROWS, "grader and reward are both given"),
    (("--grader", json.dumps(NEAR), "--max-completion-length", 48), [{"prompt": "a " * 60, "wanted": "e"}],
     "leaves nothing to learn"),
])
def test_what_is_refused_before_a_single_step(model, tmp_path, options, rows, what):
    out = tmp_path / "out"
    shown = said("train", model, written(tmp_path / "rows.jsonl", rows), "-o", out, *SMALL, *options)
    assert re.match(f"edgetune: .*{what}", shown), shown
    assert not out.exists()


@pytest.mark.dev
@pytest.mark.learning
def test_what_most_answers_say_is_learned(model, tmp_path):
    """From an adapter that says on, and now and then something else: it says on more often then."""
    rows = written(tmp_path / "rows.jsonl", [{"prompt": f"turn on lamp {i}"} for i in range(12)])
    said_of = [{"prompt": f"turn on lamp {i}", "completion": "on" if i % 4 else "off"} for i in range(12)]
    learned = written(tmp_path / "learned.jsonl", said_of)
    common = ("--threads", 1, "--rank", 4, "--max-length", 48, "--batch-size", 12)
    said("train", model, learned, "-o", tmp_path / "start", "--steps", 40, "--lr", 0.03, "--eval", "none", *common)
    agreeing = ("train", model, rows, "-o", tmp_path / "out", "--method", "agreement", "--start", tmp_path / "start",
                "--max-completion-length", 6, "--steps", 4, "--temperature", 0.4, "--lr", 0.001, *common)
    shown = said(*agreeing)
    assert "agreement compares the answers to a prompt, and held-out prompts are answered once; learn all rows" in shown
    assert not (tmp_path / "out").exists()
    said(*agreeing, "--eval", "none")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (record["objective"]["name"], record["objective"]["num_generations"]) == ("agreement", 8)
    steps = metrics(tmp_path / "out")
    rewards = [step["metrics"]["reward"] for step in steps if step["event"] == "step"]
    assert rewards[-1] > max(rewards[0] - 0.05, 0.9)
    grader = written(tmp_path / "grader.json", {"type": "agreement"})
    answered = json.loads(run("grade", grader, rows, "--model", model, "--adapter", tmp_path / "out", "--samples", 8,
                              "--max-tokens", 6, "--temperature", 0.4, "--json"))
    assert answered["mean"] > 0.9
