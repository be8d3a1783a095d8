"""Streamed experts: those that no token takes are neither read nor read ahead, and all else is as if they stayed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from small_families import OPTIONS, small
from tiny import write_tiny

from edgetune.data.packing import Example, collate
from edgetune.formats.gguf import open_gguf
from edgetune.models.decoder import Decoder
from edgetune.models.stream import Stream
from edgetune.training.trainer import Trainer

Ranges = list[tuple[int, int]]


@pytest.fixture
def trainer(tmp_path, request):
    """All blocks are streamed. Of 16 experts of 4 blocks a token takes 2."""
    path = write_tiny(tmp_path / "model.gguf", "qwen3moe", formats="F16", n_blocks=4, experts=(16, 2))
    return Trainer(path, family=small("lora"), weights="streamed", targets="q_proj,up_proj,down_proj",
                   recompute=request.param, **OPTIONS)


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch, decoder: Decoder) -> Iterator[tuple[Ranges, dict[int, set[int]]]]:
    """(first byte, end) of all that is read or read ahead, and the experts that blocks asked for."""
    ranges: Ranges = []
    asked: dict[int, set[int]] = {}
    file = decoder.model.gguf.file
    read_into = file.read_into
    expect = Stream.expect

    def read(out: np.ndarray, begin: int) -> None:
        ranges.append((begin, begin + out.nbytes))
        read_into(out, begin)

    def advise(_handle: int, begin: int, nbytes: int, advice: int) -> None:
        if advice == os.POSIX_FADV_WILLNEED:
            ranges.append((begin, begin + nbytes))

    def expected(stream: Stream, part: int, experts: list[int]) -> None:
        asked.setdefault(part, set()).update(experts)
        expect(stream, part, experts)

    with monkeypatch.context() as patched:
        patched.setattr(file, "read_into", read)
        patched.setattr(os, "posix_fadvise", advise)
        patched.setattr(Stream, "expect", expected)
        yield ranges, asked


def touched(decoder: Decoder, ranges: Ranges) -> dict[int, set[int]]:
    """The experts of each block of which a byte is in these ranges."""
    gguf = decoder.model.gguf
    found: dict[int, set[int]] = {}
    for name, tensor in gguf.tensors.items():
        if len(tensor.shape) == 3:
            size = tensor.data.nbytes // tensor.shape[0]
            for i in range(tensor.shape[0]):
                begin = gguf.offset(tensor) + i * size
                if any(first < begin + size and begin < end for first, end in ranges):
                    found.setdefault(int(name.split(".")[1]), set()).add(i)
    return found


def batch_of(*tokens: int):
    return collate([Example(np.array(tokens, np.int32), np.ones(len(tokens), np.float32))])


@pytest.mark.parametrize("trainer", ["none", "block"], indirect=True)
def test_only_what_tokens_take_is_read(trainer, monkeypatch):
    """Neither in a pass after one that took others, nor on the way back; in all of it something is left out."""
    decoder = trainer.decoder
    for batch in (batch_of(5, 6, 7), batch_of(90, 8), batch_of(*range(40, 44))):
        with watched(monkeypatch, decoder) as (ranges, asked):
            decoder.forward(batch, keep=True)
            decoder.backward(batch, np.ones(batch.supervised.size, np.float32))
        assert all(len(experts) < 16 for experts in asked.values())
        assert touched(decoder, ranges) == asked
        with watched(monkeypatch, decoder) as (ranges, asked):
            decoder.score(batch)
        assert touched(decoder, ranges) == asked


@pytest.mark.parametrize("trainer", ["block"], indirect=True)
def test_few_are_read_ahead_and_most_at_once(trainer, monkeypatch):
    """On the way back what the same tokens took, before its block is entered; on the way up nothing."""
    decoder = trainer.decoder
    stream = decoder.stream
    decoder.forward(batch_of(5, 6, 7), keep=True)
    used = {layer: set(experts) for layer, experts in stream._taken.items()}
    assert all(len(experts) < 12 for experts in used.values())
    stream.leave()
    with watched(monkeypatch, decoder) as (ranges, _):
        stream.enter(3, 2)
        assert touched(decoder, ranges) == {2: used[2]}
        ranges.clear()
        stream.enter(2, 3)
        assert touched(decoder, ranges) == {}
        stream.expect(2, range(11))
        assert touched(decoder, ranges) == {2: {*range(11)}}
        assert not stream._there
        stream.expect(2, range(12))  # most of 16: they are read
        assert touched(decoder, ranges) == {2: {*range(12)}}
        assert stream._there == {(f"blk.2.ffn_{name}_exps.weight", 11) for name in ("gate", "up", "down")}
        stream.enter(1)
        stream.expect(1, range(13))
        ranges.clear()
        stream.enter(2, 1)
        assert touched(decoder, ranges) == {}
    stream.leave()


@pytest.mark.parametrize("trainer", ["none"], indirect=True)
def test_what_is_not_read_is_not_in_memory(trainer):
    """Its place in the buffer stays as it was."""
    decoder = trainer.decoder
    stream = decoder.stream
    name = "blk.0.ffn_up_exps.weight"
    stack = stream.weights[name]
    stream.enter(0)
    stack.data[:] = 170
    for i in (3, 4, 9):
        stream.bring(0, name, i)
    stored = open_gguf(decoder.model.gguf.path).tensors[name]
    for i in range(16):
        wanted = stored.matrix(i).data if i in (3, 4, 9) else 170
        assert np.all(stack.matrix(i).data == wanted), i
    stack.matrix(3).data[:] = 1
    stream.bring(0, name, 3)  # what is there is not read again
    assert np.all(stack.matrix(3).data == 1)
    stream.enter(1)
    stream.enter(0)
    stream.bring(0, name, 3)
    assert np.array_equal(stack.matrix(3).data, stored.matrix(3).data)
    stream.leave()
