"""edgetune.parts.home.systems.home_assistant: entities by the WebSocket API, from a server that answers as it does."""

import json
import os
import shlex

import pytest
from commands import run
from fake_hub import RESULTS, RIGHT, SUPERVISOR, fake_hub

from edgetune.errors import EdgetuneError, UsageError
from edgetune.parts.home.entities import Area, Entity, read_home
from edgetune.parts.home.systems.home_assistant import read_entities, read_token, socket_address


def test_what_is_exposed_to_assist_is_read_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME_ASSISTANT_TOKEN", RIGHT)
    with fake_hub() as place:
        said = json.loads(run("home", "entities", "--url", f"http://{place}", "-o", tmp_path / "house.yaml", "--json"))
    assert (said["entities"], said["areas"], said["domains"]) == (2, 2, {"light": 1, "cover": 1})
    found = read_home(tmp_path / "house.yaml")
    assert found.areas == (Area("Hall", "Ground", ("Entry",)), Area("Attic"))
    assert found.entities == (Entity("light.hall", "Hall Lamp", "Hall", "Ground", aliases=("big lamp",)),
                              Entity("cover.roof", "Skylight", "Attic", device_class="window"))
    assert "Secret" not in (tmp_path / "house.yaml").read_text()


def test_the_next_command_can_be_copied(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME_ASSISTANT_TOKEN", RIGHT)
    path = tmp_path / "my house's.yaml"
    with fake_hub() as place:
        said = run("home", "entities", "--url", f"http://{place}", "-o", path)
    command = said.partition("next: ")[2].strip()
    assert shlex.split(command) == ["edgetune", "home", "train", str(path), "-o", "house"]


def test_a_token_file_that_is_none_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("missing", "pipe", "."):
        said = run("home", "entities", "--url", "http://127.0.0.1:9", "-o", tmp_path / "out", "--token-file",
                   tmp_path / name, code=2)
        assert said.startswith("edgetune: cannot read")


def test_a_wrong_token_and_no_permission_are_said(monkeypatch):
    with fake_hub() as place:
        url = f"http://{place}/"
        with pytest.raises(EdgetuneError, match="refuses the token"):
            read_entities(url, "another")
        monkeypatch.delitem(RESULTS, "config/floor_registry/list")
        with pytest.raises(EdgetuneError, match="refuses config/floor_registry/list: Unauthorized"):
            read_entities(url, RIGHT)
    with pytest.raises(EdgetuneError, match="does not answer as Home Assistant"):
        read_entities(url, RIGHT)


def test_the_supervisor_has_the_api_at_another_path():
    with fake_hub(SUPERVISOR) as place:
        found = read_entities(f"ws://{place}{SUPERVISOR}", RIGHT)
        assert [one["name"] for one in found["entities"]] == ["Hall Lamp", "Skylight"]
        with pytest.raises(EdgetuneError, match=f"http://{place}/core does not answer as Home Assistant"):
            read_entities(f"http://{place}/core", RIGHT)


def test_addresses_and_tokens(tmp_path, monkeypatch):
    assert socket_address("https://my.house/ha/") == "wss://my.house/ha/api/websocket"
    assert socket_address("wss://my.house/core/websocket") == "wss://my.house/core/websocket"
    for url in ("my.house", "ftp://my.house", "http://", "ws:///core/websocket"):
        with pytest.raises(UsageError, match="url is"):
            socket_address(url)
    (tmp_path / "token").write_text(f"{RIGHT}\n")
    assert read_token(tmp_path / "token") == RIGHT
    monkeypatch.delenv("HOME_ASSISTANT_TOKEN", raising=False)
    with pytest.raises(UsageError, match="holds no token"):
        read_token(None)
