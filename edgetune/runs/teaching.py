"""What a model expects at each token of some rows' answers, computed by llama.cpp and written into a teacher's file."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..adapters.store import fingerprint_of
from ..data.dataset import Dataset
from ..data.loader import load
from ..data.packing import Example, example_key, is_supervised
from ..data.teacher_file import FORMAT, VERSION, Header, new_teacher, template_digest, tokenizer_digest
from ..disk import refuse_existing
from ..errors import Interrupted, UsageError
from ..formats.bundle import Bundle, open_bundle
from ..serving.llama import LlamaModel
from ..training.config import FILE_OPTIONS, READING, TrainConfig
from ..training.length import reading_limit
from ..training.sizing import context_of

Floats = NDArray[np.float32]
Progress = Callable[[str, int, int], None]
LEAST_FLOAT16 = -65504.0


def teach(model: str | Path | Bundle, data: str | Path, out: str | Path, *, adapter: Path | None = None, top: int = 32,
          temperature: float = 1.0, reading: TrainConfig | None = None, threads: int = 0,
          on_progress: Progress = lambda *_: None, should_stop: Callable[[], bool] = lambda: False) -> Header:
    """Write what a model expects at each token of the answers in `data` into the new file `out`, for a smaller one.

    >>> edgetune.teach("large.gguf", "rows.jsonl", "rows.teacher")

    `edgetune train --method distill --teacher FILE` reads it. model: as in `train`. adapter: one that the model has
    learned. top: the number of tokens that are told apart. temperature: of the teacher's softmax. reading: a training's
    options, of which those of rows count. on_progress: gets a name, the number of rows done, and that of all.

    Returns the header of the file. Raises UsageError for a file that exists and for a top above the vocabulary,
    Interrupted once should_stop returns True, DiskError, and the errors of `loader.load`.
    """
    bundle = model if isinstance(model, Bundle) else open_bundle(model)
    out = Path(out)
    refuse_existing(out)
    reading = reading or TrainConfig()
    rows, = load(bundle.gguf.path, [Path(data)], replace(reading, max_length=reading_limit(reading.max_length,
                                                                                     context_of(bundle.gguf))))
    assert rows
    longest = max(example.tokens.size for example in rows.examples)
    with LlamaModel(bundle.gguf, context=longest + 1, threads=threads) as served, new_teacher(
            out, header_of(bundle, rows, adapter, top, temperature, reading, served.tokenizer.n_vocab)) as file:
        if adapter is not None:
            served.load_adapter(adapter, adapter.name)
            served.use(adapter.name)
        for done, example in enumerate(rows.examples, start=1):
            if should_stop():
                raise Interrupted(f"stopped after row {done - 1} of {len(rows.examples)}", "nothing was written: begin "
                                  "again")
            if (key := example_key(example)) not in file:
                file.add(key, *expected(served, example, top, temperature))
            on_progress("rows", done, len(rows.examples))
        return file.finish()


def header_of(bundle: Bundle, rows: Dataset, adapter: Path | None, top: int, temperature: float, reading: TrainConfig,
              n_vocab: int) -> Header:
    if not 1 <= top <= n_vocab:
        raise UsageError(f"top is {top}, and the vocabulary has {n_vocab} tokens", f"choose 1 to {n_vocab}")
    teacher = bundle.gguf.path.name + (f" with the adapter {fingerprint_of(adapter)[:16]}" if adapter else "")
    options = {name: getattr(reading, name) for name in (*READING, *FILE_OPTIONS)}
    return Header(FORMAT, VERSION, top, temperature, n_vocab, tokenizer_digest(bundle.gguf),
                  template_digest(bundle.gguf), rows.digest, f"{teacher} ({bundle.fingerprint[:16]})", reading=options)


def expected(model: LlamaModel, example: Example, top: int,
             temperature: float) -> tuple[NDArray[np.int32], Floats, Floats]:
    """(the likeliest tokens [S, k], the likeliest first, log p of each, log p of all others [S]) at an answer's tokens.
    """
    ids = example.tokens.tolist()
    wanted = is_supervised(example.weights[1:])
    end = int(np.flatnonzero(wanted).max()) + 1
    parts = [likeliest(logits, top, temperature)
             for _, logits in model.cache.feed(ids[:end], wanted[:end], repeats=True)]
    tokens, logp, rest = zip(*parts, strict=True)
    return np.concatenate(tokens), np.concatenate(logp), np.concatenate(rest)


def likeliest(logits: Floats, top: int, temperature: float) -> tuple[NDArray[np.int32], Floats, Floats]:
    """The same of logits [n, V]; of equally likely tokens the first."""
    n_vocab = logits.shape[1]
    tokens = np.empty((len(logits), top), np.int32)
    logp = np.empty((len(logits), top), np.float32)
    rest = np.empty(len(logits), np.float32)
    for row, z in enumerate(logits.astype(np.float64) / temperature):
        least = np.partition(z, n_vocab - top)[n_vocab - top]
        sure = np.flatnonzero(z > least)
        equal = np.flatnonzero(z == least)[:top - sure.size]
        chosen = np.concatenate([sure, equal])
        chosen = chosen[np.lexsort((chosen, -z[chosen]))]
        highest = z.max()
        e = np.exp(z - highest)
        total = math.log(e.sum()) + highest
        tokens[row] = chosen
        logp[row] = z[chosen] - total
        e[chosen] = 0
        left = e.sum()
        rest[row] = math.log(left) + highest - total if left > 0 else LEAST_FLOAT16
    return tokens, logp, rest
