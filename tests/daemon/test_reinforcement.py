"""Jobs that learn from rewards and from pairs, by OpenAI's client: from file to verdict."""

import csv
import json

import openai
import pytest
from daemons import PATIENCE
from random_adapters import random_pairs, write_adapter
from thread_workers import ThreadWorker

from edgetune.daemon.jobs.exam import AskedAdapter, GateExam
from edgetune.daemon.jobs.gate import evaluate
from edgetune.daemon.jobs.recipe import check_judgeable
from edgetune.daemon.jobs.rewards import Rewarding, with_rewards
from edgetune.daemon.options import AllowedPython
from edgetune.data.prompts import prompt_text
from edgetune.data.question import digest
from edgetune.errors import DataError
from edgetune.evaluation.acceptance import Paired
from edgetune.evaluation.graders.base import read_grader
from edgetune.evaluation.graders.llama_judge import LlamaJudge
from edgetune.evaluation.graders.sample import Sample
from edgetune.machine.policy import Policy
from edgetune.objectives.grpo import Grpo
from edgetune.serving.llama import LlamaModel
from edgetune.training.config import TrainConfig

WORDS = {"type": "string_check", "name": "said", "operation": "like", "input": "{{ sample.output_text }}",
         "reference": "{{ item.word }}"}
LIKE = {"type": "text_similarity", "name": "like", "evaluation_metric": "fuzzy_match",
        "input": "{{ sample.output_text }}", "reference": "{{ item.word }} light off"}
GRADER = {"type": "multi", "name": "both", "graders": {"said": WORDS, "like": LIKE},
          "calculate_output": "0.5 * said + 0.5 * like"}
PYTHON = {"type": "python", "name": "own", "source": "def grade(sample, item):\n    return 0.5"}
ROWS = [{"messages": [{"role": "user", "content": f"turn on lamp {i}"}], "word": "the"} for i in range(20)]
FREE = Policy(nice=19, govern=False)  # others on this machine do not make it wait
TRAIN = TrainConfig(rank=4, steps=4, batch_size=4, max_length=64, threads=1)
SHAPE = {"n_context": 128}
DAEMON = {"train": TRAIN, "policy": FREE, "start_process": ThreadWorker}
ASKED = {"eval_interval": 2, "eval_samples": 2, "compute_multiplier": 0.5, "learning_rate_multiplier": 100.0,
         "n_epochs": "auto", "batch_size": "auto", "reasoning_effort": "default"}
OURS = {"max_completion_length": 10, "temperature": 1.5}


def upload(client, rows=ROWS):
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    return client.files.create(file=("rows.jsonl", lines.encode()), purpose="fine-tune").id


def method(grader=GRADER, **hyperparameters):
    return {"type": "reinforcement", "reinforcement": {"grader": grader, "hyperparameters": hyperparameters}}


@pytest.fixture(scope="module")
def trained(running, client):
    job = client.fine_tuning.jobs.create(model="tiny", training_file=upload(client), seed=3,
                                         method=method(**ASKED, **OURS))
    running.service.jobs.wait(job.id, 3 * PATIENCE)
    return client.fine_tuning.jobs.retrieve(job.id)


@pytest.mark.dev
def test_job_events_and_table_have_openais_names_and_what_auto_became(trained, client):
    assert trained.status == "succeeded", trained.error
    found = trained.method.reinforcement
    assert (trained.method.type, found.grader.model_dump(exclude_none=True)) == ("reinforcement", GRADER)
    said = found.hyperparameters
    assert {name: getattr(said, name) for name in ASKED} == ASKED | {"batch_size": 4}
    assert (said.num_generations, said.eval_every, said.max_completion_length, said.lr) == (2, 2, 10, 0.01)
    assert not hasattr(said, "grader")
    events = [event for event in client.fine_tuning.jobs.list_events(trained.id, limit=100) if event.type == "metrics"]
    lines = [event.data for event in reversed(events)]
    steps = [line for line in lines if line["event"] == "step"]
    assert [(line["step"], line["total_steps"]) for line in steps] == [(i, 4) for i in range(1, 5)]
    for line in steps:
        assert line["train_mean_reward"] == line["metrics"]["reward"] == line["scores"]["train_reward_mean"]
        assert line["completion_tokens_mean"] == line["metrics"]["completions/mean_length"]
        by_name = {grader["name"]: grader["train_reward_mean"] for grader in line["scores"]["graders"]}
        assert by_name.keys() == {"said", "like"}
        assert sum(by_name.values()) / 2 == pytest.approx(line["train_mean_reward"], abs=1e-6)
    measured = [line for line in lines if line["event"] == "eval"]
    assert [line["step"] for line in measured] == [0, 2, 4]
    assert all(line["full_valid_mean_reward"] == pytest.approx(-line["loss"], abs=1e-6) for line in measured)
    assert any("before training: mean reward" in event.message for event in events)
    checkpoints = client.fine_tuning.jobs.checkpoints.list(trained.id).data
    assert [found.metrics.step for found in checkpoints] == [4, 2, 0]
    rewards = [found.metrics.full_valid_mean_reward for found in reversed(checkpoints)]
    assert rewards == [line["full_valid_mean_reward"] for line in measured]
    table = list(csv.DictReader(client.files.content(trained.result_files[0]).text.splitlines()))
    found = {row["step"]: float(row["full_valid_mean_reward"]) for row in table if row["full_valid_mean_reward"]}
    assert found == {str(line["step"]): line["full_valid_mean_reward"] for line in measured}
    assert all(row["train_mean_reward"] == row["reward"] for row in table)
    assert {"rewards/said/mean", "kl"} & table[0].keys()
    assert checkpoints[0].metrics.best == pytest.approx(max(checkpoints[0].metrics.best, rewards[0]), abs=1e-6)


def test_the_gate_compares_what_greedy_answers_earn(running, client, trained):
    """The mean rewards of the verdict are those of llama.cpp's answers, asked here beside the daemon."""
    service = running.service
    verdict = service.adapters.get(trained.fine_tuned_model).verdict
    apart = service.holdout.divide([digest(row) for row in ROWS])
    held = [row for row in ROWS if digest(row) in apart]
    assert verdict["old"]["rows"] == verdict["new"]["rows"] == len(held) == len(verdict["scores"])
    rewards = {}
    with LlamaModel(service.path, threads=1) as served:
        served.load_adapter(service.adapters.path(trained.fine_tuned_model), "it")
        for name, side in ((None, "old"), ("it", "new")):
            served.use(name)
            prompts = [prompt_text(row, "messages", served.tokenizer, None) for row in held]
            answers = dict(served.complete(prompts, 10))
            grades = read_grader(GRADER).grade([Sample(answers[i]) for i in range(len(held))], held)
            rewards[side] = [grade.reward for grade in grades]
            assert verdict[side]["reward"] == pytest.approx(sum(rewards[side]) / len(held), abs=1e-6)
    found = Paired.of(rewards["old"], rewards["new"])
    assert (verdict["wins"], verdict["losses"], verdict["p"]) == (found.wins, found.losses, found.p_better)
    assert verdict["passed"] is (found.p_better <= verdict["alpha"])
    events = client.fine_tuning.jobs.list_events(trained.id, limit=100)
    gap = next(event.data for event in events if event.type == "metrics" and event.data["event"] == "served")
    assert (gap["rows"], gap["gap"]) == (2, pytest.approx(gap["reward"] - gap["engine_reward"]))
    assert abs(gap["gap"]) < 0.3


@pytest.mark.parametrize(("grader", "says", "param"), [
    (None, "the method reinforcement needs a grader", "method.reinforcement.grader"),
    ({**WORDS, "colour": 1}, "has no field 'colour'", "method.reinforcement.grader"),
    ({**WORDS, "operation": "is"}, "operation", "method.reinforcement.grader"),
    ({"type": "score_model", "name": "judge", "model": "gpt-5", "input": [{"role": "user", "content": "how good?"}]},
     "model of the grader judge is 'gpt-5'; here the model grades itself", "method.reinforcement.grader"),
    (PYTHON, "a python grader is not allowed here", "method.reinforcement.grader"),
    ({**GRADER, "graders": {"said": PYTHON, "like": LIKE}}, "a python grader is not allowed here",
     "method.reinforcement.grader"),
    ({**WORDS, "reference": "{{ item.colour }}"}, "row 1: the row has no item.colour, which the grader names", None)])
def test_a_grader_that_cannot_train_is_refused_before_a_job_exists(client, grader, says, param):
    file = upload(client)
    before = [job.id for job in client.fine_tuning.jobs.list()]
    asked = method(grader) if grader else {"type": "reinforcement", "reinforcement": {"hyperparameters": {}}}
    with pytest.raises(openai.BadRequestError, match=says) as caught:
        client.fine_tuning.jobs.create(model="tiny", training_file=file, method=asked)
    assert caught.value.param == param
    assert [job.id for job in client.fine_tuning.jobs.list()] == before


@pytest.mark.parametrize(("wrong", "says"), [
    ({"reasoning_effort": "high"}, "reasoning_effort is 'high', and the model does not reason apart from its answer"),
    ({"compute_multiplier": 0}, "compute_multiplier"), ({"eval_samples": 0}, "eval_samples"),
    ({"compute_multiplier": 2.0, "num_generations": 3}, "compute_multiplier and num_generations"),
    ({"eval_interval": 2, "eval_every": 3}, "eval_interval and eval_every"),
    ({"reward": "os:getcwd"}, "the reward function 'os:getcwd' is refused"),
    ({"unsafe_python": True}, "there is no 'unsafe_python'"), ({"grader": "/etc/passwd"}, "there is no 'grader' in")])
def test_hyperparameters_that_cannot_be_are_refused_by_name(client, wrong, says):
    asked = method()
    asked["reinforcement"]["hyperparameters"] = wrong
    if "reward" in wrong or "grader" in wrong:
        del asked["reinforcement"]["grader"]
    with pytest.raises(openai.BadRequestError, match=says):
        client.fine_tuning.jobs.create(model="tiny", training_file=upload(client), method=asked)


def test_rows_with_answers_judge_as_ever(running, client):
    held = [{"prompt": f"lamp {i}", "completion": "the light off"} for i in range(4)]
    with pytest.raises(openai.BadRequestError, match=r"row 1: the row has no item\.word"):
        client.fine_tuning.jobs.create(model="tiny", training_file=upload(client), method=method(),
                                       validation_file=upload(client, held))
    objective, rewards = with_rewards(Grpo(grader=json.dumps(GRADER), max_completion_length=10), AllowedPython())
    assert isinstance(objective, Grpo)
    assert rewards
    exam = GateExam([*held, *ROWS[:2]], max_length=64, rewarding=Rewarding(objective, rewards))
    with LlamaModel(running.service.path, threads=1) as served:
        found = evaluate(served, exam, AskedAdapter(None), AskedAdapter(None))
    assert [score["reward"] is None for score in found.scores.values()] == [True] * 4 + [False] * 2
    assert [score["loss"] is None for score in found.scores.values()] == [False] * 4 + [True] * 2
    assert found.new["reward"] == pytest.approx(sum(score["reward"] or 0 for score in found.scores.values()) / 2)
    assert digest(held[0]) in found.scores
    assert digest(ROWS[0]) not in found.scores  # another grader would judge it otherwise


def test_the_base_judges_where_a_grader_asks_a_model(running, tmp_path):
    """The gate turns the adapter off for that, which would judge its own answers otherwise."""
    written = {"type": "score_model", "name": "good", "model": "self", "range": [0, 5],
               "input": [{"role": "user", "content": "{{ sample.output_text }}"}]}
    objective, rewards = with_rewards(Grpo(grader=json.dumps(written), max_completion_length=10), AllowedPython())
    assert isinstance(objective, Grpo)
    assert rewards
    adapter = write_adapter(tmp_path / "it.gguf", random_pairs(running.service.path, {"attn_q": 4}, 1), 8.0)
    with LlamaModel(running.service.path, threads=1) as served:
        served.load_adapter(adapter, "it")
        exam = GateExam(ROWS, max_length=64, rewarding=Rewarding(objective, rewards))
        found = evaluate(served, exam, AskedAdapter(None), AskedAdapter("it"))
        served.use("it")
        prompts = [prompt_text(row, "messages", served.tokenizer, None) for row in ROWS]
        answers = dict(served.complete(prompts, 10))
        grader = read_grader(written, model=LlamaJudge(served, "self"))
        means = {}
        for name in ("it", None):
            served.use(name)
            grades = grader.grade([Sample(answers[i]) for i in range(len(ROWS))], ROWS)
            means[name] = sum(grade.reward for grade in grades) / len(ROWS)
    assert means["it"] != means[None]
    assert abs(found.new["reward"] - means[None]) < 0.1 * abs(means["it"] - means[None])


def test_other_keys_and_auto_are_taken_and_the_gate_must_be_able_to_judge(client):
    """They are for graders alone in a job that learns from rewards."""
    rows = [{"prompt": f"lamp {i}", "response": "on"} for i in range(8)]
    job = client.fine_tuning.jobs.create(model="tiny", training_file=upload(client, rows))
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    job = dpo(client, **dict.fromkeys(("beta", "n_epochs", "batch_size", "learning_rate_multiplier"), "auto"))
    asked = job.method.dpo.hyperparameters
    assert (asked.beta, asked.learning_rate_multiplier, asked.lr) == (0.1, 1, 2e-4)
    client.fine_tuning.jobs.cancel(job.id)
    with pytest.raises(openai.BadRequestError, match="beta"):
        dpo(client, beta="much")
    check_judgeable(PAIRS[0])
    check_judgeable({"messages": [*PAIRS[0]["input"]["messages"], *PAIRS[0]["preferred_output"]]})
    with pytest.raises(DataError, match=r"label false.*; name a validation file"):
        check_judgeable({"prompt": "a", "completion": "b", "label": False})
    with pytest.raises(DataError, match=r"cannot be held out, chosen and rejected are the same"):
        check_judgeable({"prompt": "a", "chosen": "b", "rejected": "b"})


# ---- OpenAI's method dpo ---------------------------------------------------------------------------------------------

PAIRS = [{"input": {"messages": [{"role": "user", "content": f"set the light {i}"}], "tools": [],
                    "parallel_tool_calls": True},
          "preferred_output": [{"role": "assistant", "content": "on"}],
          "non_preferred_output": [{"role": "assistant", "content": "the turn"}]} for i in range(24)]


def dpo(client, **hyperparameters):
    """A job over PAIRS."""
    return client.fine_tuning.jobs.create(model="tiny", training_file=upload(client, PAIRS), method={
        "type": "dpo", "dpo": {"hyperparameters": hyperparameters}})


@pytest.mark.dev
def test_a_job_learns_pairs_and_is_judged_by_them(running, client):
    given = {"beta": 0.5, "n_epochs": 6, "batch_size": 4, "learning_rate_multiplier": 40}
    id = dpo(client, **given).id
    assert running.service.jobs.wait(id, PATIENCE).status == "succeeded"
    job = client.fine_tuning.jobs.retrieve(id)
    assert job.method.type == "dpo"
    assert {name: getattr(job.method.dpo.hyperparameters, name) for name in given} == given
    events = client.fine_tuning.jobs.list_events(id, limit=100).data
    metrics = [event.data for event in events if event.type == "metrics" and "metrics" in (event.data or {})]
    assert {"rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen",
            "logps/rejected"} == set(metrics[0]["metrics"])
    assert metrics[0]["metrics"]["rewards/accuracies"] == 1  # the newest
    assert any(" better, " in event.message for event in events), [event.message for event in events]
    assert client.fine_tuning.jobs.checkpoints.list(id).data  # the loss of the pairs that were held out
    columns = client.files.content(job.result_files[0]).text.splitlines()[0].split(",")
    assert {"valid_loss", "rewards/accuracies", "eval_rewards/margins"} < set(columns)
