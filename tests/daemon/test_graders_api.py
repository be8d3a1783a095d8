"""Graders run and validated by OpenAI's client, against a daemon on a tiny model."""

import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from daemons import MIB, PATIENCE, daemon, openai_client

from edgetune.daemon import grading
from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.service import Service
from edgetune.errors import UsageError
from edgetune.evaluation.graders import confinement
from edgetune.evaluation.graders.base import read_grader
from edgetune.evaluation.graders.llama_judge import LlamaJudge
from edgetune.evaluation.graders.sample import Sample
from edgetune.serving.llama import LlamaModel

SHAPE = {"n_context": 256}
DAEMON = {"allow_python_graders": True}
EXACT = {"type": "string_check", "name": "exact", "operation": "eq", "input": "{{ sample.output_text }}",
         "reference": "{{ item.answer }}"}
JUDGE = {"type": "score_model", "name": "judge", "model": "self",
         "input": [{"role": "user", "content": "how good is {{ sample.output_text }}"}]}
BOTH = {"type": "multi", "name": "both", "graders": {"exact": EXACT, "judge": JUDGE},
        "calculate_output": "exact + judge"}
PYTHON = {"type": "python", "name": "own", "source": "def grade(sample, item):\n    return 1 / item['by']"}
FLAGS = {"formula_parse_error", "invalid_variable_error", "model_grader_parse_error", "model_grader_refusal_error",
         "model_grader_server_error", "other_error", "python_grader_runtime_error", "python_grader_server_error",
         "sample_parse_error", "truncated_observation_error", "unresponsive_reward_error"}
TEXTS = {"model_grader_server_error_details", "python_grader_runtime_error_details", "python_grader_server_error_type"}
REFUSED = [
    ({"type": "label_model"}, "the grader label_model is for evals alone"), ({}, "a grader has no type"),
    ({"type": "string_check", "name": "a"}, "lacks the field input"), ({**EXACT, "pass": 1}, "has no field 'pass'"),
    ({**EXACT, "reference": "{{ row.answer }}"}, "row"), ({**JUDGE, "model": "gpt-4o"}, "the model grades itself"),
    ({**BOTH, "calculate_output": "exact +"}, "formula"), ({**BOTH, "graders": {"a": BOTH}}, "is a multi")]


HUNGRY = {"type": "python", "name": "hungry", "timeout": 60.0, "source": """
def grade(sample, item):
    taken = bytearray(item["mib"] << 20)
    taken[::4096] = b"x" * len(taken[::4096])
    return float(sum(range(item["rounds"])) > 0)
"""}


@pytest.mark.dev
def test_memory_of_graders_counts_and_is_bounded_by_what_is_left(running, http, monkeypatch):
    path = "/v1/fine_tuning/alpha/graders/run"
    before = running.service.memory()
    most = 0
    with ThreadPoolExecutor(1) as pool:
        asked = {"grader": HUNGRY, "model_sample": "on", "item": {"mib": 100, "rounds": 20_000_000}}
        graded = pool.submit(http.post, path, json=asked)
        while not graded.done():
            most = max(most, running.service.memory())
            time.sleep(0.1)  # the grader has the lowest priority
    assert graded.result().json()["reward"] == 1
    assert most - before > 100 * MIB
    monkeypatch.setattr(running.service, "budget", before + 200 * MIB)
    asked["item"] = {"mib": 300, "rounds": 2}
    assert http.post(path, json=asked).json()["metadata"]["errors"]["python_grader_runtime_error"]


def test_what_an_answer_scores_with_all_that_openai_says_of_it(http):
    asked = {"grader": EXACT, "model_sample": "on", "item": {"answer": "on"}}
    found = http.post("/v1/fine_tuning/alpha/graders/run", json=asked).json()
    metadata = found["metadata"]
    assert found.keys() == {"reward", "sub_rewards", "metadata", "model_grader_token_usage_per_model"}
    assert metadata.keys() == {"name", "type", "errors", "execution_time", "scores", "token_usage",
                               "sampled_model_name"}
    assert metadata["errors"] == dict.fromkeys(FLAGS, False) | dict.fromkeys(TEXTS)
    assert (found["reward"], found["sub_rewards"], found["model_grader_token_usage_per_model"]) == (1.0, {}, {})
    assert (metadata["name"], metadata["type"], metadata["scores"]) == ("exact", "string_check", {})
    assert (metadata["token_usage"], metadata["sampled_model_name"]) == (None, None)
    assert 0 < metadata["execution_time"] < PATIENCE


def test_the_base_judges_as_llama_cpp_does_without_a_daemon(client, model):
    graders = client.fine_tuning.alpha.graders
    assert graders.validate(grader=BOTH).grader.calculate_output == "exact + judge"
    found = graders.run(grader=BOTH, model_sample="on", item={"answer": "on"})
    with LlamaModel(model, threads=1) as served:
        judged = read_grader(JUDGE, model=LlamaJudge(served, "tiny")).grade([Sample("on")], [{}])[0].reward
    assert found.sub_rewards == found.metadata.scores == {"exact": 1.0, "judge": pytest.approx(judged, abs=1e-3)}
    assert found.reward == pytest.approx(1 + judged, abs=1e-3)
    usage = found.model_grader_token_usage_per_model["tiny"]
    assert (found.metadata.sampled_model_name, found.metadata.token_usage) == ("tiny", usage["total_tokens"])
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.dev
@pytest.mark.parametrize(("grader", "item", "reward", "wrong"), [
    (PYTHON, {"by": 2}, 0.5, {}),
    (PYTHON, {"by": 0}, 0.0, {"python_grader_runtime_error": True,
                              "python_grader_runtime_error_details": "ZeroDivisionError: division by zero (line 2)"}),
    (EXACT, {}, 0.0, {"invalid_variable_error": True}),
    ({**EXACT, "input": "{{ sample.output_json.on }}"}, {"answer": "on"}, 0.0, {"sample_parse_error": True}),
    ({**BOTH, "graders": {"a": EXACT}, "calculate_output": "1 / a"}, {"answer": "off"}, 0.0,
     {"formula_parse_error": True})])
def test_what_goes_wrong_with_an_answer_is_named_as_openai_does(client, grader, item, reward, wrong):
    found = client.fine_tuning.alpha.graders.run(grader=grader, model_sample="on", item=item)
    said = found.metadata.errors.model_dump()
    assert found.reward == reward
    assert {name: said[name] for name in FLAGS | TEXTS if said[name]} == wrong


def test_a_grader_that_is_none_is_refused_by_a_sentence(client):
    graders = client.fine_tuning.alpha.graders
    for grader, says in REFUSED:
        for call in (graders.validate, lambda grader: graders.run(grader=grader, model_sample="on")):
            with pytest.raises(openai.BadRequestError, match=says) as caught:
                call(grader=grader)
            assert caught.value.param == "grader"


def test_python_runs_only_where_the_daemon_was_told_and_it_cannot_read_the_state(model, tmp_path, monkeypatch):
    with daemon(model, tmp_path / "state") as running, openai_client(running.url) as client:
        graders = client.fine_tuning.alpha.graders
        for wrong in (PYTHON, {**BOTH, "graders": {"a": PYTHON}, "calculate_output": "a"}):
            with pytest.raises(openai.BadRequestError, match=r"not allowed here.*--allow-python-graders"):
                graders.validate(grader=wrong)
            with pytest.raises(openai.BadRequestError, match="not allowed here"):
                graders.run(grader=wrong, model_sample="on")
    monkeypatch.setattr(confinement, "landlock_version", lambda: 0)
    with pytest.raises(UsageError, match=r"allow-python-graders.*Landlock"):
        Service(model, DaemonConfig(state=str(tmp_path), allow_python_graders=True))


def test_a_grader_that_does_not_end_keeps_nobody_from_being_answered(running, monkeypatch, client):
    """An error of the judge is not taken for that."""
    def fail(*_):
        raise ValueError("the judge failed")

    monkeypatch.setattr(grading.Judge, "label_probabilities", fail)
    with pytest.raises(ValueError, match="the judge failed"):
        running.service.grading.run(JUDGE, "on", {})
    monkeypatch.setattr(grading, "SECONDS", 0.01)
    slow = {"type": "regex", "name": "slow", "pattern": "(a+)+$"}
    found = client.fine_tuning.alpha.graders.run(grader=slow, model_sample="a" * 60 + "b")
    assert (found.reward, found.metadata.errors.unresponsive_reward_error) == (0.0, True)
    monkeypatch.setattr(running.service.grading.places, "most", -1)
    with pytest.raises(openai.RateLimitError, match="graders wait already"):
        client.fine_tuning.alpha.graders.run(grader=EXACT, model_sample="on")
    assert running.service.grading.places.waiting == 0
