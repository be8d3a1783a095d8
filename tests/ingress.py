"""Home Assistant's ingress as a daemon sees it: a proxy that connects from an address of its own and cuts off its path.

What it passes on is what Home Assistant 2026.8 and its supervisor do: the browser's Host and Origin, X-Ingress-Path,
X-Forwarded-For and X-Forwarded-Host; answers without redirects, and without the encoding and length of the daemon's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from local_http import Quiet, served_by

ADDRESS = "127.0.0.2"  # from which it connects; Linux has all of 127.0.0.0/8
PATH = "/api/hassio_ingress/a-token"
PANEL = b'<!doctype html><title>panel</title><iframe src="%s/" width="1200" height="800"></iframe>' % PATH.encode()
NOT_PASSED_ON = ("content-length", "transfer-encoding", "content-encoding", "connection")


def client_from(address: str, url: str) -> httpx.Client:
    """One whose connections come from that address of this machine."""
    return httpx.Client(base_url=url, timeout=60, transport=httpx.HTTPTransport(local_address=address))


@contextmanager
def ingress(daemon: str) -> Iterator[str]:
    """The address of the proxy, which shows its own panel at /, and the daemon's pages below PATH."""
    with client_from(ADDRESS, daemon) as http:

        class Handler(Quiet):
            def do_GET(self) -> None:
                if self.path == "/":
                    self.start(200, {"Content-Type": "text/html"})
                    self.wfile.write(PANEL)
                elif not self.path.startswith(f"{PATH}/"):
                    self.start(404, {})
                else:
                    self.pass_on()

            do_POST = do_PATCH = do_DELETE = do_GET

            def pass_on(self) -> None:
                headers = {name: value for name, value in self.headers.items() if name.lower() not in NOT_PASSED_ON}
                headers |= {"X-Ingress-Path": PATH, "X-Forwarded-For": self.client_address[0],
                            "X-Forwarded-Host": self.headers["Host"], "X-Forwarded-Proto": "http"}
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                with http.stream(self.command, self.path.removeprefix(PATH), headers=headers, content=body) as answer:
                    self.start(answer.status_code, {name: value for name, value in answer.headers.items()
                                                    if name not in NOT_PASSED_ON})
                    for part in answer.iter_bytes():
                        self.wfile.write(part)
                        self.wfile.flush()

            def start(self, status: int, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()

        with served_by(Handler) as proxy:
            yield proxy
