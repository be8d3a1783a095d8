"""max_length "auto": by the longest row, the model's context and the memory; alike in plan, train and data check."""

import json

import pytest
from commands import run as command
from counting import OPTIONS
from json_lines import write_lines
from tiny import write_tiny

import edgetune
from edgetune.errors import UsageError
from edgetune.formats.bundle import open_bundle
from edgetune.objectives.grpo import Grpo
from edgetune.objectives.sft import Sft
from edgetune.training.config import TrainConfig
from edgetune.training.length import reading_limit, sized
from edgetune.training.run import run
from edgetune.training.sizing import load_run, sized_by

LONG = {"prompt": "turn the light off", "completion": "on the " * 400}
SHORT = {"prompt": "turn the light off", "completion": "on"}


@pytest.fixture
def model(tmp_path):
    return write_tiny(tmp_path / "tiny.gguf", formats="Q8_0", metadata={"llama.context_length": 2048})


@pytest.mark.parametrize(("longest", "found"), [(20, 512), (512, 512), (513, 576), (2000, 2048), (9000, 4096)])
def test_auto_is_the_longest_row_rounded_up(longest, found):
    assert sized(TrainConfig(), longest).max_length == found
    assert sized(TrainConfig(max_length=48), longest).max_length == 48


@pytest.mark.parametrize(("context", "limit"), [(300, 512), (2048, 2048), (131072, 4096)])
def test_rows_are_read_up_to_the_context(context, limit):
    assert reading_limit("auto", context) == limit
    assert reading_limit(48, context) == 48


def test_nothing_of_a_long_row_is_cut_where_memory_has_room(model, tmp_path):
    data = write_lines(tmp_path / "rows.jsonl", [*[SHORT] * 3, LONG])
    config, _, rows, held = load_run(open_bundle(model), data, "none", TrainConfig(), Sft())
    longest = max(example.tokens.size for example in rows.examples)
    assert held is None
    assert rows.truncated == 0
    assert 512 < longest <= config.row_limit < longest + 64


@pytest.mark.parametrize(("room", "found"), [(1500, 832), (700, 512), (100, 512)])
def test_rows_are_cut_where_memory_has_no_room(model, tmp_path, monkeypatch, room, found):
    """Memory for `room` tokens: rows of 820 are read up to 2048, 1024 or 512 of them; the plan alone refuses."""
    data = write_lines(tmp_path / "rows.jsonl", [*[SHORT] * 3, LONG])

    def plan(_model, config, **_options: object):
        if config.row_limit > room:
            raise UsageError("this does not fit")

    monkeypatch.setattr("edgetune.training.sizing.make_plan", plan)
    config, _, rows, _ = load_run(open_bundle(model), data, "none", TrainConfig(), Sft())
    assert config.row_limit == found
    assert max(example.tokens.size for example in rows.examples) <= config.row_limit


def test_prompts_have_room_for_their_answers(model, tmp_path):
    data = write_lines(tmp_path / "rows.jsonl", [{"prompt": "on the " * 300}] * 2)
    objective = Grpo(max_completion_length=100)
    config, _, rows, _ = load_run(open_bundle(model), data, "none", TrainConfig(), objective)
    assert config.row_limit >= max(example.tokens.size for example in rows.examples) + 100


def test_a_run_that_is_resumed_keeps_its_length(model, tmp_path):
    bundle = open_bundle(model)
    options = {**OPTIONS, "steps": 2}
    del options["max_length"]
    data = write_lines(tmp_path / "rows.jsonl", [SHORT, LONG])
    loaded = load_run(bundle, data, "none", TrainConfig(**options, max_length=64), Sft())
    run(bundle, loaded[2], tmp_path / "out", loaded[0])
    record = run(bundle, loaded[2], tmp_path / "out", TrainConfig(**options), resume=True, more=1.0)
    assert record["options"]["max_length"] == 64


def test_plan_train_and_data_check_agree(model, tmp_path):
    data = write_lines(tmp_path / "rows.jsonl", [*[SHORT] * 3, LONG])
    checked = json.loads(command("data", "check", data, model, "--json"))
    planned = json.loads(command("plan", model, data, "--eval", "none", "--no-measure", "--json"))
    trained = edgetune.train(model, data, tmp_path / "out", "none", steps=1, threads=1, anchors=0)
    assert checked["data"]["cut"] == 0
    assert planned["tokens"] == trained.record["data"]["tokens"]
    assert trained.record["data"]["truncated"] == 0
    assert sized_by(TrainConfig(), Sft(), []).max_length == 512
