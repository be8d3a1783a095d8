"""Log-probabilities by the reference model: the base, or the adapter that training starts from. They are computed once
an example, after its own prompt and after the row's other prompts, such as its question with a judgment. What these
begin with alike is computed once. They are stored in a file: in the run's folder for a resume, in the user's cache for
a second run on the same rows.

The file is npz: `fingerprint` of everything but the examples, `keys` [n, 32], `sizes` [n], `values`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data.packing import Batch, Example, collate, is_supervised
from ..data.trees import micro_batches
from ..disk import cache, cache_folder, replaced
from ..models.base import Passes

FILE = "reference.npz"
CACHED = 8  # files in the cache, the newest
ANY = 1 << 62


class Reference:
    """log p by the reference model at the supervised positions of examples: computed once for each example.

    Each example is read alone, so that its value does not depend on other rows: a resumed run gets the same bits. It
    takes 4 bytes a supervised position and prompt. is_base: the base is the reference, and can be computed at any time;
    else it is the adapter in the arena at the call of `add`, and only added examples are known. max_tokens: computed at
    a time for an example with other prompts. top: number of likeliest tokens to store after an example's first other
    prompt, in place of log p of its tokens; 8 bytes each.
    """

    def __init__(self, decoder: Passes, max_tokens: int = ANY, top: int = 0) -> None:
        self.decoder = decoder
        self.max_tokens = max_tokens
        self.top = top
        self.is_base = True
        self._known: dict[bytes, NDArray[np.float32]] = {}  # a template is in the tokens

    def add_to(self, batch: Batch) -> Batch:
        found = [self._of(example) for example in batch.examples]
        if self.top:
            return with_choices(batch, found, self.top)
        own = [value[:example.supervised] for example, value in zip(batch.examples, found, strict=True)]
        others = [value[example.supervised:] for example, value in zip(batch.examples, found, strict=True)]
        return replace(batch, reference=np.concatenate(own), views=_spread(batch.examples, others))

    def _of(self, example: Example) -> NDArray[np.float32]:
        if _key(example) not in self._known:
            if not self.is_base:
                raise ValueError("the reference adapter was not asked about this example before training")
            self.add(example)
        return self._known[_key(example)]

    def missing(self, examples: Iterable[Example]) -> list[Example]:
        """The examples that are not known yet, each once."""
        found = {_key(example): example for example in examples if example.supervised}
        return [example for key, example in found.items() if key not in self._known]

    def add(self, example: Example) -> None:
        with self.decoder.linear.off() if self.is_base else nullcontext():
            self._known[_key(example)] = (likeliest(self.decoder, documents(example)[0], self.top) if self.top
                                          else self._read(example))

    def _read(self, example: Example) -> NDArray[np.float32]:
        """log p as [documents, supervised], flat: the example's own document first."""
        read = [replace(example, group=0), *documents(example)]
        found: dict[int, NDArray[np.float32]] = {}
        for batch in micro_batches(read, self.max_tokens):
            assert isinstance(batch, Batch)
            logp = self.decoder.score(batch)
            found |= {id(one): logp[part].copy() for one, part in batch.parts()}
        return np.concatenate([found[id(one)] for one in read])

    # ---- on disk ------------------------------------------------------------------------------------------------

    def save(self, path: Path, fingerprint: str) -> int:
        """Writes all that is known, whole, and returns its bytes. Raises DiskError."""
        keys = np.frombuffer(b"".join(self._known), np.uint8).reshape(-1, sha256().digest_size)
        sizes = np.array([value.size for value in self._known.values()], np.int64)
        values = np.concatenate([np.zeros(0, np.float32), *self._known.values()])
        with replaced(path) as beside, beside.open("wb") as file:
            np.savez(file, fingerprint=np.array(fingerprint), keys=keys, sizes=sizes, values=values)
            return file.tell()

    def load(self, path: Path, fingerprint: str) -> None:
        """Loads the values of a file, unless it is missing, damaged or of another fingerprint."""
        with suppress(*unreadable()), path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            if str(file["fingerprint"]) == fingerprint:
                parts = np.split(file["values"].astype(np.float32), np.cumsum(file["sizes"])[:-1])
                self._known |= {bytes(key): part for key, part in zip(file["keys"], parts, strict=True)}

    def save_cached(self, name: str, fingerprint: str) -> None:
        """Saves to the user's cache, whose oldest files are removed; a disk that refuses is ignored."""
        path = cached(name)
        cache(path, lambda: self.save(path, fingerprint), CACHED)


def unreadable() -> tuple[type[Exception], ...]:
    """The exceptions that reading a damaged npz raises."""
    import zipfile  # here: most trainings read none
    return OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile


def documents(example: Example) -> list[Example]:
    """The example's answer after each of its other prompts that it has."""
    answer = slice(example.begin, None)
    return [replace(example, tokens=np.concatenate([prompt, example.tokens[answer]]),
                    weights=np.concatenate([np.zeros(prompt.size, np.float32), example.weights[answer]]), prompts=())
            for prompt in example.prompts if prompt.size]


def _spread(examples: Sequence[Example], values: Sequence[NDArray[np.float32]]) -> NDArray[np.float32] | None:
    """[V, S]: what was read after the other prompts of some examples, nan where a row lacks one; None where all do.

    values: [documents, supervised] of each example, flat, in the order of `documents`.
    """
    count = max((len(example.prompts) for example in examples), default=0)
    if not count:
        return None
    parts = []
    for example, value in zip(examples, values, strict=True):
        part = np.full((count, example.supervised), np.nan, np.float32)
        part[[i for i, prompt in enumerate(example.prompts) if prompt.size]] = value.reshape(-1, example.supervised)
        parts.append(part)
    return np.concatenate(parts, axis=1)


def likeliest(decoder: Passes, example: Example, top: int) -> NDArray[np.float32]:
    """Returns the likeliest tokens at an example's answer, [2, supervised, top] flat: the tokens, which float32 holds
    exactly, and their log p.
    """
    batch = collate([example])
    decoder.forward(batch, keep=False)
    tokens, logp = decoder.likeliest(batch, top)
    return np.concatenate([tokens.reshape(-1).astype(np.float32), logp.reshape(-1)])


def with_choices(batch: Batch, known: Sequence[NDArray[np.float32]], top: int) -> Batch:
    """The batch with the results of `likeliest` for each of its examples."""
    parts = np.concatenate([value.reshape(2, -1, top) for value in known], axis=1)
    return replace(batch, choices=parts[0].astype(np.int32), choices_reference=parts[1])


def cached(name: str) -> Path:
    """The file in the user's cache for a name, which is made of a fingerprint and data."""
    return cache_folder() / "references" / f"{sha256(name.encode()).hexdigest()}.npz"


def chunks(examples: list[Example], size: int) -> Iterator[list[Example]]:
    for begin in range(0, len(examples), size):
        yield examples[begin:begin + size]


def _key(example: Example) -> bytes:
    digest = sha256(example.tokens.tobytes() + is_supervised(example.weights).tobytes())
    for prompt in example.prompts:
        digest.update(prompt.size.to_bytes(8, "little") + prompt.tobytes())
    return digest.digest()
