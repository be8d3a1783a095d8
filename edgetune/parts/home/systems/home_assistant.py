"""Home Assistant: entities by its WebSocket API, those that are exposed to Assist and no others, and Assist's calls.

The API is below the address of Home Assistant, /api/websocket. An app of Home Assistant reaches it at another path,
ws://supervisor/core/websocket, so an address that begins with ws is that of the API itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ....data.yaml_text import read_yaml
from ....disk import read_key_file
from ....errors import DataError, EdgetuneError, UsageError
from ..tools import LIVE_CONTEXT, Call, plain_name

TOKEN = "HOME_ASSISTANT_TOKEN"
ASSIST = "conversation"  # Home Assistant's name of it, where an entity is exposed
SECONDS = 30  # for each answer
MOST_BYTES = 64 << 20  # of an answer
ASKED = {"areas": "config/area_registry/list", "floors": "config/floor_registry/list",
         "devices": "config/device_registry/list", "exposed": "homeassistant/expose_entity/list",
         "states": "get_states"}
ENTRIES = "config/entity_registry/get_entries"
SOCKETS = ("ws", "wss")  # of addresses of the API itself
MAX_CONTEXT = 1 << 20  # bytes of a result of GetLiveContext: 500 entities take 40,000
Found = dict[str, Any]


class HomeAssistant:
    """Its tools are those of TOOLS, with other names in some versions."""

    schemes = ("",)

    def entities(self, url: str, token_file: Path | None) -> Found:
        return read_entities(url, read_token(token_file))

    def offered(self, tools: Sequence[str]) -> Mapping[str, str]:
        names = {plain_name(tool): tool for tool in tools}
        return names if {LIVE_CONTEXT, "HassTurnOn"} & names.keys() else {}  # each of its requests has one of them

    def call(self, call: Call, tool: str) -> Call:
        return Call(tool, call.arguments)

    def meant(self, call: Call) -> Call:
        return Call(plain_name(call.name), call.arguments)

    def result(self, content: Any) -> Any:
        """Unwraps it: from 2026.10 on it is {"data": ..., "error": false}; before, that of a tool that is no intent was
        {"success": true, "result": ...}. Entities are a text with a part in YAML.
        """
        try:
            found = json.loads(content)
        except (TypeError, ValueError, RecursionError):
            found = content
        if isinstance(found, Mapping) and isinstance(found.get("error"), bool):
            found = found.get("data")
        if isinstance(found, Mapping) and "result" in found:
            found = found["result"]
        if not isinstance(found, str) or "- names:" not in found:
            return found
        try:
            return read_yaml(found[found.index("- names:"):], "the result", MAX_CONTEXT)
        except DataError:  # as the text comes from whoever sends the conversation
            return found


SYSTEM = HomeAssistant()


def read_token(path: Path | None) -> str:
    """The long-lived token of a file, or of the environment. Raises UsageError without one."""
    token = read_key_file(path) if path else os.environ.get(TOKEN, "").strip()
    if not token:
        raise UsageError(f"{path or TOKEN} holds no token", "create a long-lived access token on your page in "
                         f"Home Assistant, and put it into a file for --token-file, or into {TOKEN}")
    return token


def read_entities(url: str, token: str) -> Found:
    """Areas and entities, as a file of entities has them. Raises UsageError for a wrong address, EdgetuneError where
    Home Assistant does not answer or refuses the token.
    """
    from websockets.exceptions import WebSocketException
    from websockets.sync.client import connect
    address = socket_address(url)
    try:
        with connect(address, open_timeout=SECONDS, max_size=MOST_BYTES) as socket:
            return _read(socket, url, token)
    except (OSError, TimeoutError, WebSocketException, ValueError) as error:
        raise EdgetuneError(f"{url} does not answer as Home Assistant: {error}", "check the address, such as "
                            "http://homeassistant.local:8123") from None


def socket_address(url: str) -> str:
    """The address of the WebSocket API. Raises UsageError."""
    parts = urlsplit(url)
    if not parts.hostname or parts.scheme not in ("http", "https", *SOCKETS):
        raise UsageError(f"url is {url!r}", "give it as http://homeassistant.local:8123")
    if parts.scheme in SOCKETS:
        return url
    scheme = "wss" if parts.scheme == "https" else "ws"
    return f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}/api/websocket"


def _read(socket: Any, url: str, token: str) -> Found:
    """Signs in, asks, and puts the answers together."""
    socket.recv(SECONDS)
    socket.send(json.dumps({"type": "auth", "access_token": token}))
    if json.loads(socket.recv(SECONDS)).get("type") != "auth_ok":
        raise EdgetuneError(f"{url} refuses the token", "create another one on the page of your profile")
    found = {name: _ask(socket, number, {"type": kind}) for number, (name, kind) in enumerate(ASKED.items(), 1)}
    exposed = [identity for identity, to in found["exposed"]["exposed_entities"].items() if to.get(ASSIST)]
    entries = _ask(socket, len(ASKED) + 1, {"type": ENTRIES, "entity_ids": exposed})
    return house_of(found, exposed, entries)


def _ask(socket: Any, number: int, message: Found) -> Any:
    """The result of a command. Other messages, such as events, are passed over."""
    socket.send(json.dumps({"id": number, **message}))
    while True:
        answer = json.loads(socket.recv(SECONDS))
        if answer.get("id") != number or answer.get("type") != "result":
            continue
        if not answer.get("success"):
            raise EdgetuneError(f"Home Assistant refuses {message['type']}: {answer.get('error', {}).get('message')}",
                                "create the token as an administrator")
        return answer["result"]


def house_of(found: Mapping[str, Any], exposed: Iterable[str], entries: Mapping[str, Any]) -> Found:
    """Areas and entities out of Home Assistant's answers. entries: of the registry, by the entities' ids; None for an
    entity that it does not have.
    """
    floors = {one["floor_id"]: one["name"] for one in found["floors"]}
    areas = [{"name": one["name"], "id": one["area_id"], "floor": floors.get(one.get("floor_id"), ""),
              "aliases": _texts(one)} for one in found["areas"]]
    in_area = {one["id"]: one.get("area_id") for one in found["devices"]}
    states = {one["entity_id"]: one["attributes"] for one in found["states"]}
    entities = []
    for identity in exposed:
        if (attributes := states.get(identity)) is None:  # switched off, or gone
            continue
        entry = entries.get(identity) or {}
        entities.append({"name": attributes.get("friendly_name") or identity, "id": identity,
                         "area": entry.get("area_id") or in_area.get(entry.get("device_id")) or "",
                         "aliases": _texts(entry),
                         "attributes": {"device_class": attributes.get("device_class") or ""}})
    return {"areas": areas, "entities": entities}


def _texts(one: Mapping[str, Any]) -> list[str]:
    return sorted(alias for alias in one.get("aliases") or () if isinstance(alias, str) and alias.strip())
