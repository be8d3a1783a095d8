"""Sampling: a served model picks its next token (Sampling, Sampler), and tokens become text (TextStream)."""

from __future__ import annotations

import codecs
import ctypes
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

from ..errors import UsageError

if TYPE_CHECKING:  # numpy takes 100 ms to import: commands read the options of Sampling without it
    import numpy as np
    from numpy.typing import NDArray

    from .grammar import Grammar
    from .thinking import ThinkingBudget
    from .tokenizer import Tokenizer

SEED_LIMIT = 2**32 - 1  # llama.cpp takes 32 bits, and the last value means "a random one"
FAINT = 13.0  # nats below the likeliest token that a grammar allows
MOST_BIAS = 100  # as OpenAI has it: it decides alone
MOST_LAST = 1 << 17  # tokens that penalties look back at most


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log-probabilities of logits [..., V], summed in float64: the KL of good models is a small difference."""
    import numpy as np

    shifted = logits - logits.max(-1, keepdims=True)
    total = np.exp(shifted).sum(-1, keepdims=True, dtype=np.float64)
    found: NDArray[np.float64] = shifted - np.log(total)
    return found


@dataclass(frozen=True)
class Sampling:
    """Greedy at temperature 0; else top-k, top-p, min-p and temperature in llama.cpp's order.

    top_k 0, top_p 1 and min_p 0 switch the filter off. Penalties are llama.cpp's, on the last `repeat_last_n` tokens of
    prompt and answer (-1: all): repeat_penalty divides a logit (1: off), presence_penalty and frequency_penalty are
    subtracted, once and for each time. logit_bias: (token, what is added to its logit). grammar: GBNF.
    `check` raises UsageError for a value out of its range.
    """

    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    seed: int = 0
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_last_n: int = 64
    logit_bias: tuple[tuple[int, float], ...] = ()
    grammar: str = ""

    def check(self) -> Sampling:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:  # also refuses NaN
                raise UsageError(f"{name} is {value}", f"choose from {low:g} to {high:.10g}")
        for token, bias in self.logit_bias:
            if not -MOST_BIAS <= bias <= MOST_BIAS:
                raise UsageError(f"logit_bias of token {token} is {bias}", f"choose from -{MOST_BIAS} to {MOST_BIAS}")
        return self

    @property
    def penalizes(self) -> bool:
        on = self.repeat_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0
        return on and self.repeat_last_n != 0


RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 100), "top_k": (0, 2**31 - 1), "top_p": (0, 1), "min_p": (0, 1), "seed": (0, SEED_LIMIT - 1),
    "repeat_penalty": (0.01, 100), "presence_penalty": (-2, 2), "frequency_penalty": (-2, 2),
    "repeat_last_n": (-1, MOST_LAST)}


class Sampler:
    """llama.cpp's samplers for one answer; a context manager, because they are outside Python's memory.

    vocabulary: of the model, where logits are biased or penalized or there is a grammar. before: the prompt, whose
    tokens are penalized too. budget: tokens of the answer at most, within which a grammar ends it. thinking: of a model
    that thinks, within which a grammar has no say. Raises UsageError for a grammar that is not
    valid, or a token that does not exist.
    """

    def __init__(self, llama: ModuleType, sampling: Sampling, tokenizer: Tokenizer, before: Sequence[int] = (),
                 budget: int | None = None, thinking: ThinkingBudget | None = None) -> None:
        sampling.check()
        self.thinking = thinking
        if strange := [token for token, _ in sampling.logit_bias if not 0 <= token < tokenizer.n_vocab]:
            raise UsageError(f"logit_bias names token {strange[0]}",
                             f"token ids must be from 0 to {tokenizer.n_vocab - 1}")
        self.sampling = sampling
        self._llama = llama
        self._grammar: Grammar | None = None
        if sampling.grammar:
            from .grammar import Grammar  # only now, as numpy

            self._grammar = Grammar(tokenizer, sampling.grammar, budget)
        changes = sampling.penalizes or sampling.logit_bias
        self._changes = self._chain(self._of_logits(tokenizer.n_vocab)) if changes else None
        self._choice = self._chain(self._of_choice()) if sampling.temperature else None
        self._free = weakref.finalize(self, _free, llama, [self._changes, self._choice])
        if sampling.penalizes:
            for token in before[-MOST_LAST if sampling.repeat_last_n < 0 else -sampling.repeat_last_n :]:
                llama.llama_sampler_accept(self._changes, token)

    def _chain(self, links: list[Any]) -> Any:
        chain = self._llama.llama_sampler_chain_init(self._llama.llama_sampler_chain_default_params())
        for link in links:
            self._llama.llama_sampler_chain_add(chain, link)  # the chain owns the link from here on
        return chain

    def _of_logits(self, n_vocab: int) -> list[Any]:
        llama = self._llama
        s = self.sampling
        links = []
        if s.logit_bias:
            biases = (llama.llama_logit_bias * len(s.logit_bias))(*s.logit_bias)
            links.append(llama.llama_sampler_init_logit_bias(n_vocab, len(biases), biases))
        if s.penalizes:
            last = MOST_LAST if s.repeat_last_n < 0 else s.repeat_last_n
            links.append(llama.llama_sampler_init_penalties(n_vocab, last, s.repeat_penalty, s.frequency_penalty,
                                                            s.presence_penalty))
        return links

    def _of_choice(self) -> list[Any]:
        llama = self._llama
        s = self.sampling
        return [
            llama.llama_sampler_init_top_k(s.top_k),
            llama.llama_sampler_init_top_p(s.top_p, 1),
            llama.llama_sampler_init_min_p(s.min_p, 1),
            llama.llama_sampler_init_temp(s.temperature),
            llama.llama_sampler_init_dist(s.seed),
        ]

    def pick(self, logits: NDArray[np.float32]) -> int:
        """The next token by these logits, float32 [V]."""
        forced = self.thinking.forced if self.thinking else None
        token = self._chosen(logits) if forced is None else forced
        if self.thinking:
            self.thinking.take(token)
        for chain in (self._changes, self._choice):
            if chain is not None:
                self._llama.llama_sampler_accept(chain, token)
        return token

    def _chosen(self, logits: NDArray[np.float32]) -> int:
        import numpy as np

        if self._changes is not None:
            logits = self._apply(self._changes, np.arange(len(logits)), logits)[1]
        token = int(logits.argmax()) if self._choice is None else self._sampled(np.arange(len(logits)), logits)
        if self._grammar is None or (self.thinking and self.thinking.is_free(token)):
            return token
        if not self._grammar.allows(token):
            token = self._allowed(self._grammar, logits)
        return self._grammar.accept(token)

    def _allowed(self, grammar: Grammar, logits: NDArray[np.float32]) -> int:
        """A token by these logits among those that the grammar allows. More than top_k have no part in it, nor those
        that would be chosen once in half a million times as often as the likeliest.
        """
        if self._choice is None:
            return int(grammar.likeliest(logits, 1)[0])
        ids = grammar.likeliest(logits, self.sampling.top_k, FAINT * max(1.0, self.sampling.temperature))
        return self._sampled(ids, logits[ids])

    def _sampled(self, ids: NDArray[np.intp], logits: NDArray[np.float32]) -> int:
        selected, _ = self._apply(self._choice, ids, logits)
        return selected

    def _apply(self, chain: Any, ids: NDArray[np.intp],
               logits: NDArray[np.float32]) -> tuple[int, NDArray[np.float32]]:
        """(the token that a chain selects, the logits that it leaves) of tokens."""
        import numpy as np

        llama = self._llama
        tokens = np.empty(len(ids), np.dtype(llama.llama_token_data))
        tokens["id"] = ids
        tokens["logit"] = logits
        tokens["p"] = 0
        data = ctypes.cast(tokens.ctypes.data, ctypes.POINTER(llama.llama_token_data))
        choice = llama.llama_token_data_array(data=data, size=len(tokens), selected=-1, sorted=False)
        llama.llama_sampler_apply(chain, ctypes.byref(choice))
        return int(tokens["id"][choice.selected]), tokens["logit"]

    @property
    def whole(self) -> bool:
        """Whether the answer has a grammar, and is whole by it."""
        return self._grammar is not None and self._grammar.whole

    def close(self) -> None:
        """Closing twice is fine."""
        self._free()

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def _free(llama: ModuleType, chains: list[Any]) -> None:
    for chain in chains:
        if chain is not None:
            llama.llama_sampler_free(chain)


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
