"""How a served model picks its next token (Sampling, Sampler) and how tokens become text (TextStream)."""

from __future__ import annotations

import codecs
import ctypes
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

from ..errors import UsageError

if TYPE_CHECKING:  # numpy takes 100 ms to import: commands read the options of Sampling without it
    import numpy as np
    from numpy.typing import NDArray

SEED_LIMIT = 2**32 - 1  # llama.cpp takes 32 bits, and the last value means "a random one"


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Natural log-probabilities of logits [..., V]. Sums are in float64, for the KL of two good models is a small
    difference of large numbers.
    """
    import numpy as np

    shifted = logits - logits.max(-1, keepdims=True)
    total = np.exp(shifted).sum(-1, keepdims=True, dtype=np.float64)
    found: NDArray[np.float64] = shifted - np.log(total)
    return found


@dataclass(frozen=True)
class Sampling:
    """Greedy at temperature 0; else top-k, top-p, min-p and temperature in llama.cpp's order.

    top_k 0, top_p 1 and min_p 0 switch the filter off. `check` raises UsageError for a value out of its range.
    """

    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    seed: int = 0

    def check(self) -> Sampling:
        ranges = (("temperature", 0.0, 100.0), ("top_k", 0, 2**31 - 1), ("top_p", 0.0, 1.0), ("min_p", 0.0, 1.0),
                  ("seed", 0, SEED_LIMIT - 1))
        for name, low, high in ranges:
            value = getattr(self, name)
            if not low <= value <= high:  # also refuses NaN
                raise UsageError(f"{name} is {value}", f"choose from {low:g} to {high:.10g}")
        return self


class Sampler:
    """A llama.cpp sampler chain; a context manager, because the chain lives outside Python's memory."""

    def __init__(self, llama: ModuleType, sampling: Sampling) -> None:
        sampling.check()
        self._llama = llama
        self._chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        for link in self._links(sampling):
            llama.llama_sampler_chain_add(self._chain, link)  # the chain owns the link from here on

    def _links(self, sampling: Sampling) -> list[Any]:
        llama = self._llama
        if sampling.temperature == 0.0:
            return [llama.llama_sampler_init_greedy()]
        return [
            llama.llama_sampler_init_top_k(sampling.top_k),
            llama.llama_sampler_init_top_p(sampling.top_p, 1),
            llama.llama_sampler_init_min_p(sampling.min_p, 1),
            llama.llama_sampler_init_temp(sampling.temperature),
            llama.llama_sampler_init_dist(sampling.seed),
        ]

    def sample(self, context: Any, place: int = -1) -> int:
        """The next token, by the logits that the llama.cpp context computed at a place of its batch (-1: the last)."""
        return int(self._llama.llama_sampler_sample(self._chain, context, place))

    def pick(self, logits: NDArray[np.float32]) -> int:
        """The next token by these logits, float32 [V]."""
        import numpy as np

        llama = self._llama
        tokens = np.zeros(len(logits), np.dtype(llama.llama_token_data))
        tokens["id"] = np.arange(len(logits))
        tokens["logit"] = logits
        data = ctypes.cast(tokens.ctypes.data, ctypes.POINTER(llama.llama_token_data))
        choice = llama.llama_token_data_array(data=data, size=len(tokens), selected=-1, sorted=False)
        llama.llama_sampler_apply(self._chain, ctypes.byref(choice))
        token = int(tokens["id"][choice.selected])
        llama.llama_sampler_accept(self._chain, token)
        return token

    def close(self) -> None:
        self._llama.llama_sampler_free(self._chain)

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


class TextStream:
    """Bytes of tokens in, printable text out: never half a UTF-8 character, never a stop string or a part of one.

    `push` and `flush` return the text that is certain so far; `stopped` tells that a stop string was met, after
    which nothing more comes out. Bytes that are no UTF-8 become U+FFFD.
    """

    def __init__(self, stop: str | Iterable[str] = ()) -> None:
        self._stop = (stop,) if isinstance(stop, str) else tuple(stop)
        if not all(self._stop):
            raise UsageError("a stop string is empty", "leave it out, or give it at least one character")
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False

    def push(self, piece: bytes) -> str:
        return self._release(self._decoder.decode(piece), last=False)

    def flush(self) -> str:
        """What is still held back, when no more tokens come."""
        return self._release(self._decoder.decode(b"", final=True), last=True)

    def _release(self, text: str, last: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        found = [(text.find(stop) + len(stop), text.find(stop)) for stop in self._stop if stop in text]
        if found:
            self.stopped = True
            return text[: min(found)[1]]  # the one that ends first, however the tokens happened to cut the text
        keep = 0 if last else max((overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
