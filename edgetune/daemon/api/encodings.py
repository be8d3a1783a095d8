"""Unpacks bodies that were sent in gzip or zstd, a piece at a time, so that it is counted before it is here."""

from __future__ import annotations

import sys
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Protocol

from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

from .bodies import CLOSE, LimitedBody

PIECE = 1 << 16  # bytes that are unpacked at a time
WINDOW = 23  # log2 of the bytes that zstd may look back, the most by RFC 9659
GZIP = zlib.MAX_WBITS | 16
ACCEPTED = {"Accept-Encoding": "gzip, zstd"}


class Unpacker(Protocol):
    """What unpacks one stream, as `bz2.BZ2Decompressor` does."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gunzip:
    def __init__(self) -> None:
        self._inner = zlib.decompressobj(GZIP)
        self._rest = b""

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        found = self._inner.decompress(self._rest + data, max_length)
        self._rest = self._inner.unconsumed_tail
        return found


def unpacker(encoding: str) -> Callable[[], Unpacker] | None:
    """What makes an Unpacker for a Content-Encoding; None where nothing is packed. Raises HTTPException for another."""
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return None
    if name in ("gzip", "x-gzip"):
        return _Gunzip
    if name == "zstd":
        return _unzstd
    raise HTTPException(415, f"the body's Content-Encoding is {encoding!r:.100}; send it in gzip or zstd, or as it is",
                        ACCEPTED | CLOSE)


def _unzstd() -> Unpacker:
    if sys.version_info >= (3, 14):  # imported here: few clients pack their bodies
        from compression import zstd
    else:
        from backports import zstd
    found: Unpacker = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: WINDOW})
    return found


class UnpackedBody:
    """`receive` of a request whose body is packed. new: makes an Unpacker; a body may be several streams. body: counts
    what is unpacked.
    """

    def __init__(self, receive: Receive, new: Callable[[], Unpacker], body: LimitedBody) -> None:
        self._receive = receive
        self._new = new
        self._body = body
        self._stream: Unpacker | None = None  # None between two streams
        self._messages = self._unpacked()

    async def __call__(self) -> Message:
        return await anext(self._messages, None) or await self._receive()

    async def _unpacked(self) -> AsyncIterator[Message]:
        is_last = False
        while not is_last:
            message = await self._receive()
            if message["type"] != "http.request":
                yield message
                return
            is_last = not message.get("more_body", False)
            for piece in self._pieces(message.get("body", b"")):
                self._body.count_unpacked(len(piece))
                yield {"type": "http.request", "body": piece, "more_body": True}
        if self._stream:
            raise HTTPException(400, "the body ends before its packed data does; send all of it", CLOSE)
        yield {"type": "http.request", "body": b"", "more_body": False}

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        """What can be unpacked of the next bytes. Raises HTTPException for what is damaged."""
        while data or self._stream:
            self._stream = stream = self._stream or self._new()
            try:
                piece = stream.decompress(data, PIECE)
            except Exception as error:  # zlib.error, or zstd's, which is there only where zstd was imported
                raise HTTPException(400, f"the body cannot be unpacked ({error}); send it as its Content-Encoding says",
                                    CLOSE) from None
            data = b""
            if piece:
                yield piece
            if stream.eof:
                data = stream.unused_data
                self._stream = None
            elif not piece:
                return
