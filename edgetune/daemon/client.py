"""A client of a running daemon, over TCP or a Unix socket; the daemon's errors are raised as EdgetuneError.

What answers may be something else for a while, such as a proxy whose daemon is away: an answer that no daemon gives is
an AwayError, an UnansweredError, after which one may ask again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from .. import disk
from ..data.around import Instruction, instructed
from ..errors import (
    AwayError,
    EdgetuneError,
    FormatError,
    NotFoundError,
    TooMuchError,
    UnansweredError,
    UsageError,
    named,
)
from ..persisted import from_json
from .keys import PREFIX
from .options import DaemonConfig

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
URL = "EDGETUNE_URL"
KEY = "EDGETUNE_KEY"
UNIX = "unix:"
EVENT = "data: "
ENDED = ("succeeded", "failed", "cancelled")
POLL = 0.5  # seconds
END = EVENT + "[DONE]"
DEFAULT = f"http://{DaemonConfig.host}:{DaemonConfig.port}"
NO_FILES = ("html", "json")  # types that a daemon gives no file and no event
_KINDS = {404: NotFoundError, 413: TooMuchError, 429: TooMuchError, 400: UsageError}


class Client:
    """Requests to the daemon at `url`: http://HOST:PORT or unix:/PATH. key: the output of `edgetune service key`.
    sign: signs each request instead.

    Raises EdgetuneError where nothing answers, and for every answer that is an error, with the daemon's message.
    """

    def __init__(self, url: str = "", key: str = "", sign: Callable[[httpx.Request], httpx.Request] | None = None
                 ) -> None:
        import httpx
        self.sign = sign
        self.url = url or os.environ.get(URL) or DEFAULT
        if not self.url.startswith((UNIX, "http://", "https://")):
            raise UsageError(f"url is {self.url!r}", f"give it as {DEFAULT} or {UNIX}/run/edgetune/socket")
        socket = self.url.removeprefix(UNIX) if self.url.startswith(UNIX) else None
        self._http = httpx.Client(
            base_url="http://localhost" if socket else self.url, transport=httpx.HTTPTransport(uds=socket),
            headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=httpx.Timeout(600, connect=10),
            auth=sign)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._http.close()

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        return self._ask("GET", path, params={name: value for name, value in query.items() if value is not None})

    def post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._ask("POST", path, json=body or {})

    def patch(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._ask("PATCH", path, json=body)

    def put(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._ask("PUT", path, json=dict(body))

    def delete(self, path: str) -> dict[str, Any]:
        return self._ask("DELETE", path)

    def get_changed(self, path: str, known: str) -> tuple[dict[str, Any], str] | None:
        """(the answer of `path`, its ETag); None where the ETag is still `known`."""
        import httpx
        answer = self._answer("GET", path, headers={"If-None-Match": known} if known else {})
        if answer.status_code == httpx.codes.NOT_MODIFIED:
            return None
        return self._body(answer), answer.headers.get("ETag", "")

    def put_files(self, path: str, files: Mapping[str, Path]) -> dict[str, Any]:
        """Sends files as the parts of a form, by their names. Raises UsageError for one that cannot be read."""
        with ExitStack() as opened:
            try:
                parts = {name: (file.name, opened.enter_context(file.open("rb"))) for name, file in files.items()}
            except OSError as error:
                raise UsageError(f"cannot read {error.filename}: {error.strerror}", "make it again") from None
            return self._ask("PUT", path, files=parts)

    def download(self, path: str, target: Path, most: int | None = None) -> None:
        """Writes the answer of `path` into a new file, whole or not at all. most: bytes that it may have. Raises
        UsageError where the file exists, and FormatError for more bytes.
        """
        import httpx
        disk.refuse_existing(target)
        try:
            with self._http.stream("GET", path) as answer:
                self._check_file(answer)
                with disk.replaced(target) as beside, beside.open("wb") as file:
                    for piece in answer.iter_bytes():
                        file.write(piece)
                        if most is not None and file.tell() > most:
                            raise FormatError(f"{path} of {self.url} has more than {most} bytes", "try again")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UnansweredError(f"the download from {self.url} broke off ({error})", "try again") from None

    def download_rest(self, path: str, target: Path, size: int) -> None:
        """Writes the answer of `path`, which has this number of bytes, into a file: what the file lacks of it, where an
        earlier call was broken off. Raises UnansweredError where this one is, and FormatError for more bytes.
        """
        import httpx
        begin = target.stat().st_size if target.exists() else 0
        if begin == size:
            return
        headers = {"Range": f"bytes={begin}-"} if 0 < begin < size else {}
        try:
            with self._http.stream("GET", path, headers=headers) as answer:
                self._check_file(answer)
                with target.open("ab" if answer.status_code == httpx.codes.PARTIAL_CONTENT else "wb") as file:
                    for piece in answer.iter_raw():
                        file.write(piece)
                        if file.tell() > size:
                            raise FormatError(f"{path} of {self.url} has more than {size} bytes", "try again")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UnansweredError(f"the download from {self.url} broke off ({error})",
                                  "the next one continues") from None
        except OSError as error:
            raise disk.cannot_write(target, error) from None

    def upload(self, path: Path) -> str:
        """Uploads a file of rows and returns its id."""
        try:
            with path.open("rb") as file:
                found = self._ask("POST", "/v1/files", data={"purpose": "fine-tune"}, files={"file": (path.name, file)})
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}", "name a file of rows") from None
        with self.understood():
            return str(found["id"])

    def add_adapter(self, path: Path, suffix: str = "") -> dict[str, Any]:
        """Adds an adapter: a folder, or its adapter.gguf."""
        from ..adapters.store import FILE, RUN, SCHEMA
        folder = path if path.is_dir() else path.parent
        names = {"file": FILE, "run": RUN, "json_schema": SCHEMA} if path.is_dir() else {"file": path.name}
        with ExitStack() as opened:
            try:
                files = {part: (name, opened.enter_context((folder / name).open("rb")))
                         for part, name in names.items() if part == "file" or (folder / name).exists()}
            except OSError as error:
                raise UsageError(f"cannot read {error.filename}: {error.strerror}", "name the folder of an adapter"
                                 ) from None
            return self._ask("POST", "/v1/adapters", data={"suffix": suffix}, files=files)

    def evaluate_adapter(self, id: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Lets the gate evaluate an adapter, waits, and returns it with the verdict. options: of the request. Raises
        EdgetuneError where the job does not succeed.
        """
        self.succeeded(self.post(f"/v1/adapters/{quote(id, safe=':')}/evaluate", dict(options)))
        return self.get(f"/v1/adapters/{quote(id, safe=':')}")

    def succeeded(self, job: dict[str, Any]) -> dict[str, Any]:
        """The job of an evaluation when it has ended. Raises EdgetuneError where it does not succeed."""
        with self.understood():
            while not has_ended(job):
                time.sleep(POLL)
                job = self.get(f"/v1/fine_tuning/jobs/{job['id']}")
            if job["status"] != "succeeded":
                why = (job["error"] or {}).get("message", "it was ended")
                raise EdgetuneError(f"the evaluation {job['status']}: {why}", "begin it again")
            return job

    def all(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        """Yields every item of a list, a page at a time, as OpenAI's clients read lists."""
        after = None
        while True:
            page = self.get(path, after=after, **query)
            with self.understood():
                yield from page["data"]
                if not page.get("has_more"):
                    return
                if after == (after := page["data"][-1]["id"]):  # it would never end
                    raise ValueError(f"no page after {after!r:.60}")

    def events(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yields the events of a streamed answer as they come; closing the iterator ends the answer."""
        import httpx
        try:
            with self._http.stream("POST", path, json=body) as answer:
                self._check_file(answer)
                for line in answer.iter_lines():
                    if line.startswith(EVENT) and line != END:
                        with self.understood():
                            event = dict(json.loads(line.removeprefix(EVENT)))
                        if "error" in event:
                            raise self._error(503, event)
                        yield event
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._no_daemon(error) from None

    def _no_daemon(self, error: Exception) -> EdgetuneError:
        return AwayError(f"no daemon answers at {self.url} ({error})",
                         "start one with edgetune serve MODEL, or name it with --url")

    @contextmanager
    def understood(self) -> Iterator[None]:
        """Holds code that takes answers apart, and does nothing else. Raises AwayError for those that no daemon
        gives.
        """
        try:
            yield
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise self._no_edgetune(named(error)) from error

    def read(self, kind: type[T], values: Mapping[str, Any], source: str) -> T:
        """A dataclass of what an answer has. source: what that is about. Raises AwayError as `understood`."""
        try:
            return from_json(kind, values, source)
        except FormatError as error:
            raise self._no_edgetune(error.what) from error

    def _no_edgetune(self, said: str) -> EdgetuneError:
        return AwayError(f"what answers at {self.url} is no daemon of edgetune, or a proxy whose daemon is away "
                         f"({said})", "try again, or name the daemon with --url")

    def _ask(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        return self._body(self._answer(method, path, **content))

    def _answer(self, method: str, path: str, **content: Any) -> httpx.Response:
        import httpx
        try:
            return self._http.request(method, path, **content)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._no_daemon(error) from None

    def _body(self, answer: httpx.Response) -> dict[str, Any]:
        try:
            body = answer.json()
        except (ValueError, RecursionError):
            raise self._no_edgetune(_in_short(answer)) from None
        if not isinstance(body, dict):
            raise self._no_edgetune(f"{_in_short(answer)}, a list or value")
        if answer.is_success:
            return body
        raise self._error(answer.status_code, body)

    def _check_file(self, answer: httpx.Response) -> None:
        """Raises the error that an answer is, in place of the file or events that were asked for."""
        if not answer.is_success:
            answer.read()
            self._body(answer)
        if any(kind in answer.headers.get("Content-Type", "") for kind in NO_FILES):
            raise self._no_edgetune(_in_short(answer))

    def _error(self, status: int, body: Mapping[str, Any]) -> EdgetuneError:
        """The error that a daemon tells. A 404 of a proxy must not say that what was asked for is gone."""
        error = body.get("error")
        message = error.get("message") if isinstance(error, dict) else error
        if not isinstance(message, str):
            return self._no_edgetune(f"status {status}")
        if isinstance(error, dict) and error.get("code") == "device_refused":
            return UsageError(f"the daemon refuses: {message}")
        if status in (401, 403):
            return UsageError(f"the daemon refuses: {message}", f"give a key with --key-file or {KEY}")
        kind = UnansweredError if status >= 500 or status == 408 else _KINDS.get(status, EdgetuneError)
        return kind(message)


def _in_short(answer: httpx.Response) -> str:
    kind = answer.headers.get("Content-Type", "").partition(";")[0]
    return f"status {answer.status_code}, {kind or 'of no type'}"


def has_ended(job: Mapping[str, Any]) -> bool:
    """Whether a job has ended. Raises TypeError for what is none, for which nobody should wait."""
    if not isinstance(job["status"], str) or not isinstance(job["id"], str):
        raise TypeError("a job without a status")
    return job["status"] in ENDED


def read_key(path: Path | None) -> str:
    """Returns the key in a file, or, without one, in the environment; "": none. Raises UsageError."""
    if path is None:
        return os.environ.get(KEY, "")
    text = disk.read_key_file(path)
    if not text.startswith(PREFIX) or len(text.split()) != 1:
        raise UsageError(f"{path} holds no key", f"it holds one word, {PREFIX}..., as edgetune service key printed it")
    return text


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
