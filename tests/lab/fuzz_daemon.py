"""Random requests against a daemon: none may break it.

Bodies are random bytes, nearly JSON, and sound requests with something changed; some connections carry no HTTP at all.
Each answer must be one that the API knows (no 5xx), each error in OpenAI's shape, and the daemon must answer
as before in the end.
"""

import argparse
import json
import random
import socket
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
from daemons import daemon
from lab.common import add
from tiny import write_tiny

ASK = [{"role": "user", "content": "the light on"}]
ROWS = b'{"prompt": "lamp 1", "completion": "on"}\n{"prompt": "lamp 2", "completion": "off"}\n'
LESSON = b"".join(b'{"prompt": "lamp %d", "completion": "on"}\n' % i for i in range(20))
SOUND: list[tuple[str, Any]] = [
    ("/v1/chat/completions", {"model": "", "messages": ASK, "max_tokens": 4, "stop": ["x"], "seed": 1}),
    ("/v1/chat/completions", {"messages": ASK, "max_completion_tokens": 3, "temperature": 0.5, "stream": True,
                              "stream_options": {"include_usage": True}}),
    ("/v1/completions", {"prompt": "the light", "max_tokens": 3, "top_p": 0.5, "top_k": 3, "min_p": 0.1}),
    ("/v1/completions", {"prompt": [3, 4, 5], "max_tokens": 2}),
    ("/v1/fine_tuning/jobs", {"model": "", "training_file": "file-1", "suffix": "a", "seed": 1, "metadata": {"a": "b"},
                              "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}}}),
    ("/v1/feedback", {"messages": ASK, "answer": "on", "rating": "up", "correction": "off", "model": "m"}),
    ("/v1/feedback", {"completion_id": "chatcmpl-1", "rating": "down"}),
]
PLACES = ["/v1/models", "/v1/files", "/v1/files/file-1", "/v1/files/file-1/content", "/v1/fine_tuning/jobs",
          *(f"/v1/fine_tuning/jobs/ftjob-1{verb}" for verb in (
              "", "/cancel", "/pause", "/resume", "/events", "/checkpoints")),
          "/v1/adapters/rollback", "/v1/adapters/ft:m:a:1/promote", "/v1/learn", "/v1/device", "/healthz", "/metrics",
          "/", "/openapi.json", "/nowhere"]
ODD: list[Any] = [None, True, -1, 0, 1.5, 10**30, -10**30, 1e308, "", "x", "\0", "é" * 50, "../../etc/passwd", [], {},
                  [[]], {"a": {"b": []}}, ["a"] * 50, "<|im_end|>" * 5, {"type": "text", "text": 5}, "a" * 5000]
HOSTILE = [b'{"messages": [' + b",".join([b"0"] * 500_000) + b"]}",  # as many objects, or complaints, as a MiB holds
           b"{" + b",".join(b'"%d":0' % i for i in range(90_000)) + b"}"]


def fuzz(url: str, count: int, seed: int = 0) -> Counter[str]:
    """How often which status came; AssertionError for the first answer that is none of the API's."""
    rng = random.Random(seed)
    met = Counter[str]()
    with httpx.Client(base_url=url, timeout=60) as client:
        names = begin(client)
        for number in range(count):
            if rng.random() < 0.1:
                met[noise(url, rng)] += 1
                continue
            method, path, sent = request(rng)
            for name, id in names.items():
                path = path.replace(name, id)
                if "content" in sent:
                    sent["content"] = sent["content"].replace(name.encode(), id.encode())
            answer = client.request(method, path, **sent)
            what = f"request {number} of seed {seed}: {method} {path} {str(sent)[:500]} -> {answer.status_code}"
            assert answer.status_code < 500, f"{what} {answer.text[:500]}"
            if answer.status_code >= 400 and method != "HEAD":
                error = answer.json()["error"]
                assert error["message"], what
                assert set(error) == {"message", "type", "param", "code"}, what
            met[str(answer.status_code)] += 1
        assert client.get("/healthz").json() == {"status": "ok", "reasons": []}
        assert client.post("/v1/chat/completions", json={"messages": ASK, "max_tokens": 2}).status_code == 200
    return met


def begin(client: httpx.Client) -> dict[str, str]:
    """Names in requests, and the ids of a file and a job that are there."""
    made = client.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("rows.jsonl", LESSON)})
    asked = {"model": "", "training_file": made.json()["id"], "hyperparameters": {"steps": 10**6}}
    return {"file-1": made.json()["id"], "ftjob-1": client.post("/v1/fine_tuning/jobs", json=asked).json()["id"]}


def request(rng: random.Random) -> tuple[str, str, dict[str, Any]]:
    """(method, path, what httpx sends)"""
    if rng.random() < 0.002:
        return "POST", SOUND[0][0], {"content": rng.choice(HOSTILE), "headers": {"Content-Type": "application/json"}}
    kind = rng.randrange(5)
    if kind == 0:  # to any place, random bytes
        place = rng.choice(PLACES + [path for path, _ in SOUND])
        method = rng.choice(["GET", "POST", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"])
        return method, place, {"content": rng.randbytes(rng.randrange(300)), "headers": {"Content-Type": kinds(rng)}}
    path, body = rng.choice(SOUND)
    if kind == 1:  # what is nearly JSON
        text = bytearray(json.dumps(change(body, rng)).encode())
        for _ in range(rng.randrange(1, 4)):
            text[rng.randrange(len(text))] = rng.randrange(256)
        return "POST", path, {"content": bytes(text), "headers": {"Content-Type": "application/json"}}
    if kind == 2:  # a path of a client's making
        odd = quote(rng.choice(["..", "../../x", "\0", "a" * 3000, "é", "%2e%2e", "ft:a:b:c", "' OR 1=1"]), safe="")
        return rng.choice(["GET", "DELETE", "POST"]), rng.choice(PLACES[1:-1]).replace("file-1", odd) + f"/{odd}", {}
    if kind == 3:
        return "POST", "/v1/files", upload(rng)
    for _ in range(rng.randrange(1, 3)):
        body = change(body, rng)
    return "POST", path, {"content": json.dumps(body).encode(), "headers": {"Content-Type": "application/json"}}


def change(value: Any, rng: random.Random) -> Any:
    """A copy in which something is another, is missing, or is there that was not."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        if rng.random() < 0.15:
            return {name: value[name] for name in value if name != key}
        if rng.random() < 0.1:
            return {**value, rng.choice(["n", "foo", "tools", "logprobs", "\0", "response_format"]): rng.choice(ODD)}
        return {**value, key: change(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return [*value[:at], change(value[at], rng), *value[at + 1:]]
    return rng.choice(ODD)


def upload(rng: random.Random) -> dict[str, Any]:
    name = rng.choice(["rows.jsonl", "../../../etc/passwd", "/etc/passwd", "a\\..\\b", "", "\x7f", "é" * 300,
                       "a" * 5000])
    rows = bytearray(ROWS)
    for _ in range(rng.randrange(4)):
        rows[rng.randrange(len(rows))] = rng.randrange(256)
    if rng.random() < 0.3:  # the form itself is broken
        form = bytearray(b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--x\r\n'
                         b'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + rows + b"\r\n--x--\r\n")
        for _ in range(rng.randrange(1, 6)):
            form[rng.randrange(len(form))] = rng.randrange(256)
        form = form[:rng.randrange(len(form))] if rng.random() < 0.5 else form
        return {"content": bytes(form), "headers": {"Content-Type": "multipart/form-data; boundary=x"}}
    return {"files": {"file": (name, bytes(rows))},
            "data": {"purpose": rng.choice(["fine-tune", "fine-tune", "assistants", ""])}}


def kinds(rng: random.Random) -> str:
    return rng.choice(["application/json", "text/plain", "multipart/form-data", "multipart/form-data; boundary=x",
                       "application/x-www-form-urlencoded", "application/json; charset=utf-16", "x"])


def noise(url: str, rng: random.Random) -> str:
    """Bytes that are no HTTP, or the beginning of some, and the connection closed."""
    place = urlsplit(url)
    starts = [b"", b"GET / HTTP/1.1\r\n", b"POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99\r\n\r\n",
              b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"]
    with socket.create_connection((place.hostname, place.port), timeout=60) as connection:
        connection.sendall(rng.choice(starts) + rng.randbytes(rng.randrange(200)))
        connection.shutdown(socket.SHUT_WR)
        try:
            while connection.recv(1 << 16):
                pass
        except ConnectionResetError:  # it may hang up on what it does not understand
            pass
    return "no HTTP"


def options(parser: argparse.ArgumentParser) -> None:
    add(parser, count=10_000, seed=0)


def main(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as place:
        model = write_tiny(Path(place) / "tiny.gguf", formats="Q8_0", n_context=128)
        start = time.monotonic()
        with daemon(model, Path(place) / "state", max_body=64, max_upload=1) as running:
            counts = fuzz(running.url, args.count, args.seed)
    for status, number in sorted(counts.items()):
        print(f"{number:6} {status}")
    print(f"{sum(counts.values())} random requests, and it answers as before; {time.monotonic() - start:.0f} s")
