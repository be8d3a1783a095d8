"""A server that answers as Home Assistant's WebSocket API does, at its own path or at the one that its apps have."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from websockets.sync.server import ServerConnection, serve

RIGHT = "a right token"
HOME_ASSISTANT = "/api/websocket"
SUPERVISOR = "/core/websocket"  # as developers.home-assistant.io/docs/apps/communication has it
RESULTS: dict[str, Any] = {
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


def expose(entity: str, name: str) -> None:
    """Adds an entity to RESULTS, which the caller restores."""
    RESULTS["homeassistant/expose_entity/list"]["exposed_entities"][entity] = {"conversation": True}
    RESULTS["get_states"].append({"entity_id": entity, "state": "on", "attributes": {"friendly_name": name}})


def answer(socket: ServerConnection) -> None:
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
def fake_hub(path: str = HOME_ASSISTANT, on_call: Callable[[], None] = lambda: None) -> Iterator[str]:
    """Host and port of one whose API is at `path` alone. on_call: called while somebody connects."""
    def only_there(connection: ServerConnection, request: Any) -> Any:
        on_call()
        return None if request.path == path else connection.respond(404, "there is nothing\n")

    with serve(answer, "127.0.0.1", 0, process_request=only_there) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join()
