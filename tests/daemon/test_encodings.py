"""Bodies in gzip and zstd, packed by other programs' code, are unpacked within the limit of plain ones."""

import asyncio
import json
import resource
import sys
import zlib
from functools import partial
from gzip import compress

import httpx
import pytest
from daemons import ASK, CHAT, daemon

from edgetune.daemon.api import encodings
from edgetune.daemon.api.bodies import Bodies, LimitedBody
from edgetune.daemon.keys import add_key
from edgetune.daemon.options import DaemonConfig

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    zstd = pytest.importorskip("backports.zstd", reason="backports.zstd is not installed")

PLAIN = json.dumps(ASK).encode()
MIB = 1 << 20
gzip = partial(compress, mtime=0)  # equal in each of several processes, which name the tests by it


def squeezed(data, **options):
    return zstd.compress(data, options={zstd.CompressionParameter[name]: value for name, value in options.items()})


def framed(data):
    """Without the size of what is packed, as a stream has it, and in two frames."""
    middle = len(data) // 2
    return b"".join(streamed(part) for part in (data[:middle], data[middle:]))


def streamed(data, **options):
    packer = zstd.ZstdCompressor(options={zstd.CompressionParameter[name]: value for name, value in options.items()})
    return packer.compress(data) + packer.flush()


WIDE = streamed(PLAIN * 2000, window_log=27)  # asks for a window of 128 MiB


@pytest.mark.parametrize(("name", "body"), [
    ("gzip", gzip(PLAIN)), ("x-gzip", gzip(PLAIN)), ("GZIP", gzip(PLAIN)),
    ("gzip", gzip(PLAIN[:20]) + gzip(PLAIN[20:])), ("zstd", squeezed(PLAIN)),
    ("zstd", framed(PLAIN)), ("identity", PLAIN), ("zstd", squeezed(PLAIN, checksum_flag=1))])
def test_packed_bodies_are_answered_as_plain_ones(http, name, body):
    plain = http.post(CHAT, content=PLAIN, headers={"content-type": "application/json"})
    packed = http.post(CHAT, content=body, headers={"content-type": "application/json", "content-encoding": name})
    assert (plain.status_code, packed.status_code) == (200, 200), packed.text
    assert packed.json()["choices"] == plain.json()["choices"]


@pytest.mark.parametrize(("name", "body", "status", "said"), [
    ("br", PLAIN, 415, "send it in gzip or zstd"), ("gzip, zstd", PLAIN, 415, "gzip, zstd"),
    ("gzip", PLAIN, 400, "cannot be unpacked"), ("zstd", PLAIN, 400, "cannot be unpacked"),
    ("gzip", gzip(PLAIN)[:-4], 400, "ends before"), ("zstd", squeezed(PLAIN)[:-2], 400, "ends before"),
    ("gzip", gzip(PLAIN) + b"more", 400, "cannot be unpacked"),
    ("gzip", gzip(PLAIN)[:-8] + bytes(8), 400, "cannot be unpacked"),
    ("zstd", WIDE, 400, "cannot be unpacked"),
    ("gzip", gzip(bytes(2 * MIB)), 413, "1048576 bytes"),
    ("zstd", squeezed(bytes(2 * MIB)), 413, "--max-body"),
])
def test_other_bodies_are_refused_in_a_sentence(http, name, body, status, said):
    answer = http.post(CHAT, content=body, headers={"content-type": "application/json", "content-encoding": name})
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]
    assert (answer.headers.get("accept-encoding") == "gzip, zstd") is (status == 415)


def test_a_key_comes_first(model, tmp_path):
    add_key(tmp_path / "keys", "phone")
    with daemon(model, tmp_path / "state", key_file=str(tmp_path / "keys")) as running:
        answer = httpx.post(running.url + CHAT, content=b"", headers={"content-encoding": "br"})
        assert answer.status_code == 401


@pytest.mark.parametrize("packed", [gzip(bytes(512 * MIB), 1), squeezed(bytes(512 * MIB))],
                         ids=["gzip", "zstd"])
def test_a_bomb_takes_no_memory(http, packed):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = http.post(CHAT, content=packed, headers={"content-type": "application/json", "content-encoding":
                                                      "gzip" if packed[:2] == b"\x1f\x8b" else "zstd"})
    assert answer.status_code == 413
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB; the daemon is this process


def test_uploads_are_unpacked_too(http):
    row = json.dumps({"prompt": "the light", "completion": "on"}).encode() + b"\n"
    files = {"file": ("a.jsonl", 9 * row)}
    request = http.build_request("POST", "/v1/files", data={"purpose": "fine-tune"}, files=files)
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    body = packer.compress(request.read()) + packer.flush()
    answer = http.post("/v1/files", content=body, headers={"content-type": request.headers["content-type"],
                                                           "content-encoding": "gzip"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["bytes"] == 9 * len(row)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_pieces_of_any_size_come_out_whole(size):
    data = json.dumps(list(range(50_000))).encode()
    bodies = Bodies(DaemonConfig())
    for packed, name in ((gzip(data), "gzip"), (squeezed(data), "zstd"), (framed(data), "zstd")):
        assert read(packed, name, size, bodies) == data
        assert bodies.held == 0


def read(packed, name, size, bodies):
    """The body that comes in messages of this many bytes."""
    parts = [packed[at:at + size] for at in range(0, len(packed), size)]
    messages = iter([*({"type": "http.request", "body": part, "more_body": True} for part in parts),
                     {"type": "http.request", "body": b"", "more_body": False}, {"type": "http.disconnect"}])

    async def receive():
        return next(messages)

    async def whole():
        limited = LimitedBody(bodies, receive, MIB, 0, spooled=False)
        ask = encodings.UnpackedBody(limited, encodings.unpacker(name), limited)
        found = []
        while True:
            message = await ask()
            if message["type"] == "http.disconnect":
                break
            found.append(message)
        assert bodies.held >= sum(len(message["body"]) for message in found)
        limited.end()
        assert [message["more_body"] for message in found] == [True] * (len(found) - 1) + [False]
        return b"".join(message["body"] for message in found)

    return asyncio.run(whole())
