"""A model with OpenAI's API for chats, whoever serves it: asked again where the server is busy or not there."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ..errors import EdgetuneError, UsageError
from ..evaluation.collected import RefusedByTeacher
from ..evaluation.graders.sample import Sample

BUSY = (408, 409, 425, 429, 500, 502, 503, 504)  # answers after which the same question may be answered
LONGEST_WAIT = 60.0  # seconds
VERSION = "/v1"


@dataclass
class Endpoint:
    """A server. url: with or without /v1 at its end. model: by the server's name. key: "": none is sent. retries: times
    that a question is asked again. timeout: seconds for an answer. Used by several threads at once. Close it.
    """

    url: str
    model: str
    key: str = ""
    retries: int = 5
    timeout: float = 600.0
    sleep: Callable[[float], object] = time.sleep
    _http: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        import httpx
        if not self.url.startswith(("http://", "https://")):
            raise UsageError(f"url is {self.url!r:.80}", "give it as http://HOST:PORT/v1")
        base = self.url.rstrip("/")
        self._http = httpx.Client(
            base_url=base if base.endswith(VERSION) else base + VERSION,
            headers={"Authorization": f"Bearer {self.key}"} if self.key else {},
            timeout=httpx.Timeout(self.timeout, connect=10))

    def close(self) -> None:
        self._http.close()

    def answer(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = (),
               **options: Any) -> Sample:
        """One answer. options: further fields of the request. Raises Refused for a question that this server does not
        answer, and EdgetuneError where it answers none.
        """
        body = {"messages": [*messages], **({"tools": [*tools]} if tools else {}), **options}
        found = self.post("/chat/completions", body)
        try:
            choice = found["choices"][0]
            message = choice["message"]
            calls = message.get("tool_calls") or ()
            return Sample(str(message.get("content") or ""), [*calls], str(choice.get("finish_reason") or "stop"))
        except (AttributeError, IndexError, KeyError, TypeError):
            raise self._no_endpoint() from None

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """What the model answers to a request of another route. Raises as `answer` does."""
        return self._ask("POST", path, {"model": self.model, **body})

    def models(self) -> list[str]:
        """The names of the server's models."""
        found = self._ask("GET", "/models", None)
        return [str(one["id"]) for one in found.get("data") or () if isinstance(one, dict) and "id" in one]

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        import httpx
        says = ""
        for turn in range(self.retries + 1):
            wait = 0.0
            try:
                answer = self._http.request(method, path, json=body)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                says = str(error) or type(error).__name__
            else:
                if answer.is_success:
                    return self._read(answer)
                says = f"{answer.status_code} {_message(answer)}"
                if answer.status_code in (401, 403, 404):
                    raise UsageError(f"{self.url} answers {says}", "look at --url, --model and the key")
                if answer.status_code not in BUSY:
                    raise RefusedByTeacher(says)
                with suppress(ValueError):
                    wait = float(answer.headers.get("retry-after", 0))
            if turn < self.retries:
                self.sleep(min(max(wait, 2.0 ** turn * random.uniform(0.5, 1)), LONGEST_WAIT))
        raise EdgetuneError(f"{self.url} does not answer: {says}", "look whether it runs, or raise --retries")

    def _read(self, answer: Any) -> dict[str, Any]:
        try:
            found = answer.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise self._no_endpoint()
        return found

    def _no_endpoint(self) -> EdgetuneError:
        return EdgetuneError(f"what answers at {self.url} has not OpenAI's API for chats", "name another --url")


def _message(answer: Any) -> str:
    try:
        error = answer.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error)[:200]
    except (ValueError, KeyError, TypeError):
        return str(answer.reason_phrase)
