"""A proxy before a daemon, which keeps what clients ask of /api/chat."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
from local_http import Quiet, served_by

PATIENCE = 600  # seconds of an answer


@contextmanager
def overheard(url: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The proxy's address, and the bodies of the requests so far."""
    heard: list[dict[str, Any]] = []

    class Handler(Quiet):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            if self.path == "/api/chat":
                heard.append(json.loads(body))
            with httpx.stream(self.command, url + self.path, content=body, timeout=PATIENCE) as answer:
                self.send_response(answer.status_code)
                self.send_header("content-type", answer.headers["content-type"])
                self.end_headers()
                with suppress(BrokenPipeError):  # the client no longer waits, so the daemon need not either
                    for part in answer.iter_bytes():
                        self.wfile.write(part)

        do_GET = do_POST

    with served_by(Handler) as proxy:
        yield proxy, heard
