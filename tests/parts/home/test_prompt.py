"""edgetune.parts.home.prompt: what Home Assistant sends before a question."""

import json

import ollama
import pytest
from commands import run
from houses import house, write_house

from edgetune.data.calls import check_calls
from edgetune.errors import UsageError
from edgetune.parts.home.entities import read_home
from edgetune.parts.home.prompt import prompt_of, static_context, through_ollama, versions
from edgetune.parts.home.tools import offered


@pytest.mark.parametrize("version", versions())
def test_tools_fit_the_house(tmp_path, version):
    home = house(tmp_path)
    prompt = prompt_of(home, version)
    wanted = {tool.name for tool in offered(home)}
    missing = {"2026.2": {"HassListRemoveItem"}, "2026.11": {"HassMediaSearchAndPlay"}}[version]
    assert wanted - prompt.names.keys() == missing
    assert "HassVacuumStart" not in prompt.names
    assert ("todo__HassListAddItem" in prompt.names.values()) == (version == "2026.11")
    items = next(tool for tool in prompt.tools if "get_items" in tool["function"]["name"])
    assert items["function"]["parameters"]["properties"]["todo_list"]["enum"] == ["Errands"]
    assert prompt.names["HassTurnOn"] + " to lock" in prompt.system
    assert static_context(home) in prompt.system


@pytest.mark.parametrize("version", versions())
def test_tools_of_rows_are_as_ollamas_client_sends_them(tmp_path, version):
    for tool in prompt_of(house(tmp_path), version).tools:
        assert through_ollama(tool) == ollama.Tool(**tool).model_dump(exclude_none=True)


def test_another_version_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no prompt of Home Assistant 2019\.1"):
        prompt_of(house(tmp_path), "2019.1")


@pytest.mark.parametrize("name", ["dom1-pl", "home2-ru", "home5-cn", "home7-dk"])
def test_the_entities_stand_there_as_home_assistant_writes_them(shared_data, name):
    """By the recorded prompts of a public benchmark. home1-us has a name there that its file does not have."""
    folder = shared_data / "home_assistant"
    if not folder.is_dir():
        pytest.skip("needs the part of home-assistant-datasets that make data does not fetch")
    sent = json.loads((folder / "systems.json").read_text())[name]
    home = read_home(folder / "fixtures" / f"{name}.yaml")
    recorded = sent.partition("smart home:\n")[2].partition("\n\nWhen")[0].strip()
    assert static_context(home).lower() == recorded.lower()


def test_rows_for_a_model_that_writes_text(tmp_path):
    to = tmp_path / "rows.jsonl"
    drawn = ["--count", 200, "--for", "2026.11", "--json"]
    said = json.loads(run("home", "rows", write_house(tmp_path), "-o", to, *drawn))
    rows = [json.loads(line) for line in to.read_text().splitlines()]
    assert said["rows"] == len(rows) > 150
    assert "HassMediaSearchAndPlay" not in said["tools"]
    for row in rows:
        system, user, answer, *after = row["messages"]
        check_calls("row", answer, row["tools"])
        assert system["content"].startswith("You are")
        assert user["content"]
        assert bool(answer.get("tool_calls")) == bool(after) != bool(answer["content"])
