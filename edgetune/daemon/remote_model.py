"""The model of a daemon, with the methods of a local one: `chat` and `generate` stream its answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

from ..data.around import Instruction, instructed
from .client import Client

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


class RemoteModel:
    """The model `name` of the daemon that `client` asks; "": the base with the active adapter. Raises NotFoundError.

    around: what is put around every chat, here and not there. said_tokens: of the last answer, where it was read to its
    end; else the number of its pieces.
    """

    def __init__(self, client: Client, name: str) -> None:
        self.client = client
        self.around: Instruction = None
        self.name = name
        self.said_tokens = 0
        if name:
            client.get(f"/v1/models/{quote(name, safe=':')}")
        found = client.get("/v1/device")
        with client.understood():
            self.context = int(found["serving"]["cells"])

    def chat(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None = None,
             **options: Any) -> Iterator[str]:
        """Streams the next message, without calls of tools; options and errors are those of ServedModel.generate."""
        asked = {"messages": instructed(messages, self.around)} | ({"tools": list(tools)} if tools else {})
        for choice in self._choices(CHAT, asked, options):
            with self.client.understood():
                text = choice["delta"].get("content")
            if text:
                self.said_tokens += 1
                yield str(text)

    def generate(self, prompt: str, **options: Any) -> Iterator[str]:
        """Streams the continuation of a prompt."""
        for choice in self._choices(TEXT, {"prompt": prompt}, options):
            with self.client.understood():
                text = choice["text"]
            if text:
                self.said_tokens += 1
                yield str(text)

    def _choices(self, path: str, asked: dict[str, Any], options: dict[str, Any]) -> Iterator[dict[str, Any]]:
        given = {name: list(value) if name == "stop" else value for name, value in options.items()
                 if value is not None and value != ()}
        body = {"model": self.name, **asked, **given, "stream": True, "stream_options": {"include_usage": True}}
        self.said_tokens = 0
        for event in self.client.events(path, body):
            with self.client.understood():
                yield from event["choices"]
                if usage := event.get("usage"):
                    self.said_tokens = int(usage["completion_tokens"])
