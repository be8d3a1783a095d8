"""edgetune.home.hass: entities by the WebSocket API, from a server that answers as Home Assistant does."""

import json
import threading
from contextlib import contextmanager

import pytest
from commands import run
from websockets.sync.server import serve

from edgetune.errors import EdgetuneError, UsageError
from edgetune.home.entities import Area, Entity, read_home
from edgetune.home.hass import read_entities, read_token, socket_address

RIGHT = "a right token"
RESULTS = {
    "config/area_registry/list": [{"area_id": "hall", "name": "Hall", "floor_id": "ground", "aliases": ["Entry"]},
                                  {"area_id": "attic", "name": "Attic", "floor_id": None, "aliases": []}],
    "config/floor_registry/list": [{"floor_id": "ground", "name": "Ground", "level": 0, "aliases": []}],
    "config/device_registry/list": [{"id": "d1", "area_id": "attic"}],
    "homeassistant/expose_entity/list": {"exposed_entities": {
        "light.hall": {"conversation": True}, "cover.roof": {"conversation": True, "cloud.alexa": True},
        "switch.secret": {"cloud.alexa": True}, "light.gone": {"conversation": True}}},
    "get_states": [
        {"entity_id": "light.hall", "state": "on", "attributes": {"friendly_name": "Hall Lamp"}},
        {"entity_id": "cover.roof", "state": "open", "attributes": {"friendly_name": "Skylight",
                                                                   "device_class": "window"}},
        {"entity_id": "switch.secret", "state": "on", "attributes": {"friendly_name": "Secret"}}],
    "config/entity_registry/get_entries": {
        "light.hall": {"area_id": "hall", "device_id": None, "aliases": ["big lamp", None]},
        "cover.roof": {"area_id": None, "device_id": "d1", "aliases": []}, "light.gone": None},
}


def answer(socket):
    socket.send(json.dumps({"type": "auth_required", "ha_version": "2026.11.0"}))
    signed = json.loads(socket.recv())["access_token"] == RIGHT
    socket.send(json.dumps({"type": "auth_ok" if signed else "auth_invalid"}))
    if not signed:
        return
    for text in socket:
        asked = json.loads(text)
        socket.send(json.dumps({"id": 0, "type": "event", "event": {}}))
        if asked["type"] in RESULTS:
            socket.send(json.dumps({"id": asked["id"], "type": "result", "success": True,
                                    "result": RESULTS[asked["type"]]}))
        else:
            socket.send(json.dumps({"id": asked["id"], "type": "result", "success": False,
                                    "error": {"code": "unauthorized", "message": "Unauthorized"}}))


@contextmanager
def home_assistant():
    """The address of a server."""
    with serve(answer, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join()


def test_what_is_exposed_to_assist_is_read_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME_ASSISTANT_TOKEN", RIGHT)
    with home_assistant() as url:
        said = json.loads(run("home", "entities", "--url", url, "-o", tmp_path / "house.yaml", "--json"))
    assert (said["entities"], said["areas"], said["domains"]) == (2, 2, {"light": 1, "cover": 1})
    found = read_home(tmp_path / "house.yaml")
    assert found.areas == (Area("Hall", "Ground", ("Entry",)), Area("Attic"))
    assert found.entities == (Entity("light.hall", "Hall Lamp", "Hall", "Ground", aliases=("big lamp",)),
                              Entity("cover.roof", "Skylight", "Attic", device_class="window"))
    assert "Secret" not in (tmp_path / "house.yaml").read_text()


def test_a_wrong_token_and_no_permission_are_said(monkeypatch):
    with home_assistant() as url:
        with pytest.raises(EdgetuneError, match="refuses the token"):
            read_entities(url, "another")
        monkeypatch.delitem(RESULTS, "config/floor_registry/list")
        with pytest.raises(EdgetuneError, match="refuses config/floor_registry/list: Unauthorized"):
            read_entities(url, RIGHT)
    with pytest.raises(EdgetuneError, match="does not answer as Home Assistant"):
        read_entities(url, RIGHT)


def test_addresses_and_tokens(tmp_path, monkeypatch):
    assert socket_address("https://my.house/ha/") == "wss://my.house/ha/api/websocket"
    for url in ("my.house", "ftp://my.house", "http://"):
        with pytest.raises(UsageError, match="url is"):
            socket_address(url)
    (tmp_path / "token").write_text(f"{RIGHT}\n")
    assert read_token(tmp_path / "token") == RIGHT
    monkeypatch.delenv("HOME_ASSISTANT_TOKEN", raising=False)
    with pytest.raises(UsageError, match="holds no token"):
        read_token(None)
