"""An HTTP server on this machine, in a thread of the test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Quiet(BaseHTTPRequestHandler):
    """Answers requests and logs none; do_GET, do_POST and others are the subclass's."""

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served_by(handler: type[Quiet]) -> Iterator[str]:
    """The address of a server whose requests this class answers."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
