"""A hub of one repository on this machine: what huggingface-hub asks of Hugging Face's, over HTTP."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from local_http import Quiet, served_by

REPO = "some/tiny-GGUF"
COMMIT = "c" * 40


@dataclass
class Hub:
    """files: by name. refusal: (status, code) that it answers instead. digest: what it says a file's SHA-256 is, unless
    that is true. breaks: after that many bytes the next download breaks off. gets: (name, Range) of each download.
    """

    files: dict[str, bytes]
    repo: str = REPO
    refusal: tuple[int, str] | None = None
    licence: str = "mit"
    digest: str = ""
    breaks: int | None = None
    gets: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    class Handler(Quiet):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            if hub.refusal:
                self._send(hub.refusal[0], b"{}", **{"X-Error-Code": hub.refusal[1]})
                return
            if self.path.startswith((f"/api/models/{hub.repo}", f"/api/datasets/{hub.repo}/revision/")):
                self._send(200, json.dumps({
                    "id": hub.repo, "sha": COMMIT, "cardData": {"license": hub.licence},
                    "siblings": [{"rfilename": name, "size": len(content)} for name, content in hub.files.items()],
                }).encode())
                return
            prefix = f"/{hub.repo}/resolve/{COMMIT}/"
            name = self.path.removeprefix("/datasets").removeprefix(prefix)
            if prefix not in self.path or name not in hub.files:
                self._send(404, b"", **{"X-Error-Code": "EntryNotFound"})
                return
            self._file(name, hub.files[name])

        def _file(self, name: str, content: bytes) -> None:
            etag = hub.digest or hashlib.sha256(content).hexdigest()
            about = {"X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{etag}"', "ETag": f'"{etag}"',
                     "X-Linked-Size": str(len(content)), "Accept-Ranges": "bytes"}
            asked = self.headers.get("Range")
            if self.command == "GET":
                hub.gets.append((name, asked))
            if asked is None:
                self._send(200, content, **about)
            else:
                begin = int(asked.removeprefix("bytes=").partition("-")[0])
                about["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
                self._send(206, content[begin:], **about)

        def _send(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if hub.breaks is not None and "X-Linked-Etag" in headers:
                body = body[:hub.breaks]
                hub.breaks = None
                self.close_connection = True
            self.wfile.write(body)

    with served_by(Handler) as hub.url:
        yield hub
