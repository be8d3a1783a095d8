"""Models that write questions and answers: a GGUF on this device, or any endpoint with OpenAI's chat API."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ...errors import EdgetuneError, UsageError, named
from ...llamacpp.json_schema import grammar_of
from ...serving.llama import LlamaModel

MOST_BYTES = 4 << 20  # of an answer of an endpoint
TIMEOUT = 600  # seconds
SHOWN = 200  # characters of an endpoint's error


class Asker(Protocol):
    """A model that answers a message. name: for the report."""

    name: str

    def answer(self, message: str, max_tokens: int, schema: Mapping[str, Any] | None = None, seed: int = 0) -> str:
        """Returns the answer; with a schema, JSON that fits it, or that was cut. Raises EdgetuneError."""
        ...

    def close(self) -> None: ...


class LocalAsker:
    """A GGUF, answered by llama.cpp. threads: 0: one a core. Errors as of LlamaModel."""

    def __init__(self, model: Path, threads: int = 0) -> None:
        self.name = model.name
        self._served = LlamaModel(model, threads=threads or None)

    def answer(self, message: str, max_tokens: int, schema: Mapping[str, Any] | None = None, seed: int = 0) -> str:
        grammar = grammar_of(dict(schema)) if schema else ""
        pieces = self._served.chat([{"role": "user", "content": message}], max_tokens=max_tokens, grammar=grammar,
                                   seed=seed)
        return "".join(pieces)

    def close(self) -> None:
        self._served.close()


class RemoteAsker:
    """A model of an endpoint. url: up to /v1, such as http://127.0.0.1:8642/v1; key: "" for none."""

    def __init__(self, url: str, model: str, key: str = "") -> None:
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"url is {url!r:.80}", "give it as http://127.0.0.1:8642/v1")
        self.name = model
        self.url = url.rstrip("/") + "/chat/completions"
        self._key = key

    def answer(self, message: str, max_tokens: int, schema: Mapping[str, Any] | None = None, seed: int = 0) -> str:
        form = {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema,
                                                                           "strict": True}}} if schema else {}
        found = self._post({"model": self.name, "messages": [{"role": "user", "content": message}], "temperature": 0,
                            "max_tokens": max_tokens, "seed": seed, **form})
        try:
            return str(found["choices"][0]["message"]["content"] or "")
        except (KeyError, IndexError, TypeError):
            raise EdgetuneError(f"{self.url} answered without a message: {json.dumps(found)[:SHOWN]}",
                                "give the address of an OpenAI-compatible API") from None

    def _post(self, body: Mapping[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        asked = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(asked, timeout=TIMEOUT) as answer:
                return json.loads(answer.read(MOST_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(SHOWN).decode("utf-8", "replace")
            raise EdgetuneError(f"{self.url} answered {error.code}: {said}", "look at its log") from None
        except (OSError, ValueError) as error:
            raise EdgetuneError(f"{self.url} gave no answer ({named(error)})", "check the address") from None

    def close(self) -> None:
        pass
