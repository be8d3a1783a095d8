"""Threads for short work only: those that submit requests to the model, and those that report its state.

Requests that may wait (an upload, a job that begins, an adapter that is removed after its last answer) run in FastAPI's
own threads. In the same threads, some dozens of such requests would keep the daemon from answering.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, TypeVar

from fastapi import Depends, Request

T = TypeVar("T")
TAKERS = 2  # threads that make tokens of prompts: more of them would keep each other and the event loop from running
WATCHERS = 2


class Pools:
    """Threads are started when they are needed."""

    def __init__(self) -> None:
        self._takers = ThreadPoolExecutor(TAKERS, "take")
        self._watchers = ThreadPoolExecutor(WATCHERS, "watch")
        self._embedder = ThreadPoolExecutor(1, "embed")  # in the order in which they came

    async def take(self, work: Callable[[], T]) -> T:
        """Runs work that puts a request into the batcher's queue."""
        return await asyncio.get_running_loop().run_in_executor(self._takers, work)

    async def embed(self, work: Callable[[], T]) -> T:
        """Runs work that computes vectors, in the order of the calls."""
        return await asyncio.get_running_loop().run_in_executor(self._embedder, work)

    async def watch(self, work: Callable[[], T]) -> T:
        """Runs work that reports the daemon's state."""
        return await asyncio.get_running_loop().run_in_executor(self._watchers, work)


async def pools_of(request: Request) -> Pools:
    found: Pools = request.app.state.pools
    return found


ThePools = Annotated[Pools, Depends(pools_of)]
