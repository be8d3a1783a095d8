"""Graders run and validated by OpenAI's client, against a daemon on a tiny model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("openai")

import httpx
import openai
from daemons import PATIENCE, Daemon, daemon, openai_client
from tiny import write_tiny

from edgetune.daemon import grading
from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.service import Service
from edgetune.errors import UsageError
from edgetune.evaluation.graders import landlock
from edgetune.evaluation.graders.base import read_grader
from edgetune.evaluation.graders.llama_judge import LlamaJudge
from edgetune.evaluation.graders.sample import Sample
from edgetune.serving.llama import LlamaModel

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
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"type": "label_model"}, "the grader label_model is for evals alone"), ({}, "a grader has no type"),
    ({"type": "string_check", "name": "a"}, "lacks the field input"), ({**EXACT, "pass": 1}, "has no field 'pass'"),
    ({**EXACT, "reference": "{{ row.answer }}"}, "row"), ({**JUDGE, "model": "gpt-4o"}, "the model grades itself"),
    ({**BOTH, "calculate_output": "exact +"}, "formula"), ({**BOTH, "graders": {"a": BOTH}}, "is a multi")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "Tiny.gguf", formats="Q8_0", n_context=256)


@pytest.fixture(scope="module")
def running(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with daemon(model, tmp_path_factory.mktemp("daemon") / "state", allow_python_graders=True) as made:
        yield made


@pytest.fixture(scope="module")
def client(running: Daemon) -> Iterator[openai.OpenAI]:
    with openai_client(running.url) as made:
        yield made


def test_what_an_answer_earns_with_all_that_openai_says_of_it(running: Daemon) -> None:
    asked = {"grader": EXACT, "model_sample": "on", "item": {"answer": "on"}}
    found = httpx.post(f"{running.url}/v1/fine_tuning/alpha/graders/run", json=asked, timeout=PATIENCE).json()
    metadata = found["metadata"]
    assert found.keys() == {"reward", "sub_rewards", "metadata", "model_grader_token_usage_per_model"}
    assert metadata.keys() == {"name", "type", "errors", "execution_time", "scores", "token_usage",
                               "sampled_model_name"}
    assert metadata["errors"] == dict.fromkeys(FLAGS, False) | dict.fromkeys(TEXTS)
    assert (found["reward"], found["sub_rewards"], found["model_grader_token_usage_per_model"]) == (1.0, {}, {})
    assert (metadata["name"], metadata["type"], metadata["scores"]) == ("exact", "string_check", {})
    assert (metadata["token_usage"], metadata["sampled_model_name"]) == (None, None)
    assert 0 < metadata["execution_time"] < PATIENCE


def test_the_base_judges_as_llama_cpp_does_without_a_daemon(client: openai.OpenAI, model: Path) -> None:
    found = client.fine_tuning.alpha.graders.run(grader=BOTH, model_sample="on", item={"answer": "on"})
    with LlamaModel(model, threads=1) as served:
        judged = read_grader(JUDGE, model=LlamaJudge(served, "tiny")).grade([Sample("on")], [{}])[0].reward
    assert found.sub_rewards == found.metadata.scores == {"exact": 1.0, "judge": pytest.approx(judged, abs=1e-3)}
    assert found.reward == pytest.approx(1 + judged, abs=1e-3)
    usage = found.model_grader_token_usage_per_model["tiny"]
    assert (found.metadata.sampled_model_name, found.metadata.token_usage) == ("tiny", usage["total_tokens"])
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.parametrize(("grader", "item", "reward", "wrong"), [
    (PYTHON, {"by": 2}, 0.5, {}),
    (PYTHON, {"by": 0}, 0.0, {"python_grader_runtime_error": True,
                              "python_grader_runtime_error_details": "ZeroDivisionError: division by zero (line 2)"}),
    (EXACT, {}, 0.0, {"invalid_variable_error": True}),
    ({**EXACT, "input": "{{ sample.output_json.on }}"}, {"answer": "on"}, 0.0, {"sample_parse_error": True}),
    ({**BOTH, "graders": {"a": EXACT}, "calculate_output": "1 / a"}, {"answer": "off"}, 0.0,
     {"formula_parse_error": True})])
def test_what_goes_wrong_with_an_answer_is_named_as_openai_does(client: openai.OpenAI, grader: Any, item: Any,
                                                                reward: float, wrong: dict[str, Any]) -> None:
    found = client.fine_tuning.alpha.graders.run(grader=grader, model_sample="on", item=item)
    said = found.metadata.errors.model_dump()
    assert found.reward == reward
    assert {name: said[name] for name in FLAGS | TEXTS if said[name]} == wrong


def test_a_grader_that_does_not_end_keeps_nobody_from_being_answered(client: openai.OpenAI, running: Daemon,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grading, "SECONDS", 0.01)
    slow = {"type": "regex", "name": "slow", "pattern": "(a+)+$"}
    found = client.fine_tuning.alpha.graders.run(grader=slow, model_sample="a" * 60 + "b")
    assert (found.reward, found.metadata.errors.unresponsive_reward_error) == (0.0, True)
    monkeypatch.setattr(running.service.grading.places, "most", -1)
    with pytest.raises(openai.RateLimitError, match="graders wait already"):
        client.fine_tuning.alpha.graders.run(grader=EXACT, model_sample="on")
    assert running.service.grading.places.waiting == 0


@pytest.mark.parametrize(("grader", "says"), REFUSED)
def test_a_grader_that_is_none_is_refused_by_a_sentence(client: openai.OpenAI, grader: Any, says: str) -> None:
    graders = client.fine_tuning.alpha.graders
    for call in (graders.validate, lambda grader: graders.run(grader=grader, model_sample="on")):
        with pytest.raises(openai.BadRequestError, match=says) as caught:
            call(grader=grader)
        assert caught.value.param == "grader"


def test_one_that_can_be_used_comes_back(client: openai.OpenAI) -> None:
    found = client.fine_tuning.alpha.graders.validate(grader=BOTH).grader
    assert (found.type, found.name, found.calculate_output) == ("multi", "both", "exact + judge")


def test_python_runs_only_where_the_daemon_was_told(model: Path, tmp_path: Path) -> None:
    with daemon(model, tmp_path / "state") as running, openai_client(running.url) as client:
        graders = client.fine_tuning.alpha.graders
        for wrong in (PYTHON, {**BOTH, "graders": {"a": PYTHON}, "calculate_output": "a"}):
            with pytest.raises(openai.BadRequestError, match=r"not allowed here.*--allow-python-graders"):
                graders.validate(grader=wrong)
            with pytest.raises(openai.BadRequestError, match="not allowed here"):
                graders.run(grader=wrong, model_sample="on")


def test_python_is_refused_where_it_could_read_the_state(model: Path, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "version", lambda: 0)
    with pytest.raises(UsageError, match=r"allow-python-graders.*Landlock"):
        Service(model, DaemonConfig(state=str(tmp_path), allow_python_graders=True))


def test_an_error_of_the_judge_is_not_taken_for_the_end_of_a_grader(running: Daemon,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("the judge failed")

    monkeypatch.setattr(grading.Judge, "label_probabilities", fail)
    with pytest.raises(ValueError, match="the judge failed"):
        running.service.grading.run(JUDGE, "on", {})
