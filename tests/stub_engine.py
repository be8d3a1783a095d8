"""An engine that answers at once, without computing, for tests of a daemon around it: answers, adapters and vectors."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from edgetune.adapters import store as lora
from edgetune.errors import FormatError, UsageError
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.serving.answering import Answering
from edgetune.serving.completion import Completion

WIDTH = 8  # numbers of a vector
SAID = "as it was before"  # by the base, to everything


@dataclass(frozen=True)
class Prepared:
    """As serving.served.Prepared."""

    tokens: list[int]
    budget: int


class StubServed:
    """A `Served` whose adapters are files that exist. model: a GGUF, whose tokenizer reads rows."""

    writes = True
    context = 512
    busy_bytes = 0
    chat_template = ""
    calls_tools = False
    thinks = False

    def __init__(self, model: Path) -> None:
        self.tokenizer = _tokenizer(model)
        self._adapters: dict[str, Path] = {}

    def close(self) -> None:
        self._adapters.clear()

    def bytes_to_load(self, path: Path) -> int:  # noqa: ARG002
        return 0

    def load_adapter(self, path: str | Path, name: str) -> None:
        """Raises FormatError where the file is not there, or is no GGUF."""
        file = Path(path) / lora.FILE
        if not file.is_file() or not file.read_bytes().startswith(b"GGUF"):
            raise FormatError(f"{file} is no adapter", "restore it")
        self._adapters[name] = file

    def unload(self, name: str) -> None:
        del self._adapters[name]

    def check_adapter(self, name: str | None) -> None:
        if name is not None and name not in self._adapters:
            raise UsageError(f"the adapter {name!r} is not loaded", "load it")

    def adapters(self) -> list[str]:
        return [*self._adapters]

    def system_of(self, name: str | None) -> str:  # noqa: ARG002
        return ""

    def grammar_of(self, name: str | None) -> str:  # noqa: ARG002
        return ""

    def render(self, messages: Sequence[Any], tools: Sequence[Any] | None, adapter: str | None,  # noqa: ARG002
               enable_thinking: bool | None = None) -> str:  # noqa: ARG002
        return "\n".join(str(message["content"]) for message in messages)

    def form_of(self, question: object) -> str:  # noqa: ARG002
        return ""

    def prepare(self, prompt: str | Sequence[int], max_tokens: int, **_: Any) -> Prepared:
        return Prepared([0] * len(prompt), max_tokens)

    def count(self, text: str) -> int:
        return len(text.split())

    def embedder(self) -> StubVectors:
        return StubVectors()


@cache
def _tokenizer(model: Path) -> Tokenizer:
    return Tokenizer(model)


@dataclass(frozen=True)
class Asked:
    completion: Completion


class StubAnswering(Answering[Asked]):
    """Its thread is real, and ends each answer as soon as it begins it."""

    def __init__(self, model: Path) -> None:
        super().__init__(StubServed(model), parallel=8, queue=64)  # type: ignore[arg-type]

    def submit(self, prompt: str | Sequence[int], *, adapter: str | None = None,
               on_piece: Callable[[Completion, str | None], None] | None = None, **_: Any) -> Completion:
        return self._take_in(Asked(Completion(adapter, len(prompt), self._notify, on_piece)))

    def facts(self) -> dict[str, Any]:
        return {"requests": self._totals["requests"]}

    def _admit(self) -> None:
        self._working += self._waiting
        self._waiting = deque()

    def _step(self) -> None:
        for asked in self._working.copy():
            self._end(asked, "stop", SAID)


class StubVectors:
    """Vectors of texts by their bytes: equal texts have equal ones. Also what an index takes, in place of Encoding."""

    name = "stub"
    digest = "0" * 16
    nbytes = 0
    width = WIDTH
    size = longest = 256

    def close(self) -> None:
        pass

    def check(self, digest: object, source: str = "") -> None:
        pass

    def encode(self, text: str) -> list[int]:
        return [*text.encode()]

    def truncate(self, tokens: list[int]) -> list[int]:
        return tokens[:self.size]

    def count(self, text: str) -> int:
        return len(text.split())

    def embed(self, out: Any, tokens: Sequence[Sequence[int]]) -> Generator[None, None, None]:
        for row, each in zip(out, tokens, strict=True):
            row[:] = _vector(bytes(each))
        yield

    def vectors(self, texts: Sequence[str]) -> Any:
        return np.stack([_vector(text.encode()) for text in texts])


def _vector(content: bytes) -> Any:
    return np.frombuffer(hashlib.sha256(content).digest()[:WIDTH], np.int8)
