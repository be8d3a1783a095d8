"""Streamed weights: each part is in memory when it is used and gone when it is left; sizes by hand; budgets kept
however the page cache holds the file.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from small_families import OPTIONS, small
from tiny import write_tiny

from edgetune.backends.cpu import Cpu
from edgetune.data.packing import Example, collate
from edgetune.errors import FormatError
from edgetune.formats.gguf import open_gguf
from edgetune.models.decoder import Decoder
from edgetune.models.stream import EMBEDDING, PAGE, Stream, WeightBytes, part_of, sizes
from edgetune.training.trainer import Trainer

MIB = 1 << 20
Ranges = list[tuple[int, int]]


@pytest.fixture(scope="module")
def gguf(on_disk):
    """Three blocks of about 2 MiB, embedding and head of 0.8 MiB, in large folios where the file system has them."""
    path = on_disk / "stream.gguf"
    write_tiny(path, formats="F16", n_blocks=3, d_model=512, d_ff=512, n_vocab=800, tied=False)
    return open_gguf(in_large_folios(path))


def in_large_folios(path):
    """Written again in large pieces: the page cache of ext4, xfs and others then holds it in folios of up to 2 MiB."""
    whole = path.read_bytes()
    path.unlink()
    with path.open("wb", buffering=0) as file:
        for begin in range(0, len(whole), 8 * MIB):
            file.write(whole[begin:begin + 8 * MIB])
        os.fsync(file.fileno())
    return path


def require_large_folios(gguf):
    """Skips where one byte that is touched maps no more than 64 KiB."""
    gguf.release()
    int(gguf.data[gguf.data.size // 2])
    around = resident(gguf)
    gguf.release()
    if around <= 65536:
        pytest.skip(f"this kernel and file system map {around} bytes around one: no large folios")


def resident(gguf):
    """Bytes of the file that are mapped, by the kernel."""
    maps = Path("/proc/self/smaps").read_text().splitlines()
    found = 0
    name = ""
    for line in maps:
        if re.match(r"^[0-9a-f]+-[0-9a-f]+ ", line):
            name = line
        elif line.startswith("Rss:") and str(gguf.path) in name:
            found += int(line.split()[1]) * 1024
    return found


def values(stream, part, n=3):
    return {name: stream.weights[name].data.copy() for name in stream.weights if part_of(name, n) == part}


def test_sizes_are_the_bytes_of_the_tensors(gguf):
    block = 2 * (2 * 512 * 64 + 2 * 512 * 32 + 3 * 512 * 512) + 2 * 512 * 4
    assert sizes(gguf.tensors.values(), 3) == WeightBytes((block,) * 3, 2 * 800 * 512, 2 * 800 * 512, 1024)


def test_what_is_in_memory_and_read_by_hand():
    s = WeightBytes((MIB, 2 * MIB, 3 * MIB), MIB, 0, 512)
    assert s.total == s.in_memory(0, 8) == 7 * MIB
    pages = 3 * PAGE  # where resident blocks begin and end
    assert s.in_memory(1, 8) == 5 * MIB + MIB + 2 * PAGE + pages  # blocks 1 and 2, and all of the head, on whole pages
    assert s.in_memory(2, 8) == 3 * MIB + 2 * MIB + pages
    assert s.in_memory(3, 8) == 3 * MIB + pages
    assert [s.read(n, lowest) // MIB for n, lowest in ((0, 0), (2, 0), (3, 1))] == [0, 2 * 3 + 1, 6 + 5 + 1]
    assert WeightBytes((10, 20, 30), 25, 40, 5).in_memory(0, 3) == 60 + 40 + 15  # of the embedding three rows
    assert WeightBytes((10, 20, 30), 25, 40, 5).in_memory(0, 8) == 60 + 40 + 25
    large = WeightBytes((MIB,), 60 * MIB, 30 * MIB, 1024)
    assert large.head_row == 512
    around = 2 * PAGE + 512  # of the head a slice, and the pages of 16 rows
    assert large.in_memory(1, 16) == 2 * MIB + 16 * around + 3 * PAGE
    assert large.in_memory(1, 8192) == 8 * MIB + PAGE  # rows of the embedding: more than the head's 256 at a time
    assert large.in_memory(1, 256) == 2 * MIB + 256 * around + 3 * PAGE


@pytest.mark.dev
def test_only_the_part_in_use_is_in_memory(gguf):
    gguf.release()
    stream = Stream(gguf, 3, Cpu(1), streamed=3)
    for part, then in ((EMBEDDING, 0), (0, 1), (1, 2), (2, 3), (3, 2), (2, 1), (1, 0), (0, None)):
        stream.enter(part, then)
        if 0 <= part < 3:
            for name, data in values(stream, part).items():
                tensor = gguf.tensors[name]
                begin = gguf.offset(tensor)
                assert data.tobytes() == gguf.path.read_bytes()[begin:begin + tensor.data.nbytes], name
        assert resident(gguf) == 0, part  # it is read, not mapped
    assert stream._buffer.nbytes <= sizes(gguf.tensors.values(), 3).blocks[0]
    stream.leave()


def test_rows_of_the_embedding_are_read(gguf):
    gguf.release()
    tokens = np.array([5, 799, 5, 0, 63], np.int32)
    embedding = gguf.tensors["token_embd.weight"]
    rows, places = Stream(gguf, 3, Cpu(1), streamed=3).rows(tokens)
    assert resident(gguf) == 0
    assert (rows.shape, rows.format, rows.data.nbytes) == ((4, 512), "F16", 4 * 1024)
    whole = embedding.data.reshape(800, 1024)
    assert np.array_equal(rows.data.reshape(4, 1024)[places], whole[tokens])
    assert places.dtype == np.int32
    gguf.release()
    again, same = Stream(gguf, 3, Cpu(1)).rows(tokens)  # nor does it stay where all other weights do
    assert resident(gguf) == 0
    assert np.array_equal(again.data, rows.data)
    assert np.array_equal(same, places)


def test_an_embedding_that_is_the_head_stays(tmp_path):
    tied = open_gguf(write_tiny(tmp_path / "model.gguf", formats="F16", n_blocks=3))
    tokens = np.array([5, 5, 0], np.int32)
    embedding = tied.tensors["token_embd.weight"]
    same, again = Stream(tied, 3, Cpu(1)).rows(tokens)
    assert same.shape == embedding.shape
    assert np.shares_memory(same.data, embedding.data)
    assert again is tokens


def test_slices_of_the_head_go_when_the_next_comes(gguf, monkeypatch):
    gguf.release()
    monkeypatch.setattr("edgetune.models.stream.SLICE", 256 * 1024)
    stream = Stream(gguf, 3, Cpu(1), streamed=3)
    whole = gguf.tensors["output.weight"].data.copy()
    gguf.release()
    head = stream.head
    targets = np.array([700, 3, 3], np.int32)
    seen = 0
    stream.enter(3)
    for begin, end in stream.slices(targets):
        assert (begin, seen) == (seen, begin)
        seen = end
        here = slice(begin * 1024, end * 1024)
        assert np.array_equal(head.data[here], whole[here])
        assert resident(gguf) == 0
        assert held(head) <= (end - begin) * 1024 + 4 * PAGE
    assert seen == 800
    assert held(head) == 0
    row = slice(3 * 1024, 4 * 1024)
    for _, end in stream.slices(targets):
        if end == 800:  # with the last slice the targets' rows come again
            assert np.array_equal(head.data[row], whole[row])
            break  # as a run that is stopped
    assert held(head) == 0
    assert list(Stream(gguf, 3, Cpu(1)).slices(targets)) == [(0, 800)]


def held(tensor):
    """Bytes in memory of the anonymous mapping that holds a tensor, by the kernel."""
    at = tensor.data.ctypes.data
    within = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"^([0-9a-f]+)-([0-9a-f]+) ", line):
            within = int(found[1], 16) <= at < int(found[2], 16)
        elif line.startswith("Rss:") and within:
            return int(line.split()[1]) * 1024
    raise AssertionError("the tensor is in no mapping")


def test_of_blocks_that_stay_no_more_is_mapped(gguf):
    """Around a byte of block 1 or 2 a fault would map block 0, the head and the embedding, too."""
    require_large_folios(gguf)
    stream = Stream(gguf, 3, Cpu(1), streamed=1)
    block = sizes(gguf.tensors.values(), 3).blocks[0]
    for part in (0, 1, 2):
        stream.enter(part)
        for name, data in values(stream, part).items():
            assert np.array_equal(data, gguf.read(gguf.tensors[name]).data)
    stream.leave()
    assert 2 * block - 2 * 4096 <= resident(gguf) <= 2 * block + 4 * PAGE


def test_without_streaming_everything_stays(gguf):
    gguf.release()
    stream = Stream(gguf, 3, Cpu(1))
    for part in (0, 1, 2, 3):
        stream.enter(part)
        values(stream, part)
    stream.leave()
    whole = sizes(gguf.tensors.values(), 3)
    assert resident(gguf) >= whole.total - whole.embedding
    gguf.release()
    assert resident(gguf) < MIB // 2


def test_neither_the_norms_nor_the_fingerprint_map_the_weights(gguf):
    require_large_folios(gguf)
    again = open_gguf(gguf.path)
    again.release()
    assert again.fingerprint == gguf.fingerprint
    for tensor in again.tensors.values():
        if len(tensor.shape) == 1:
            again.read(tensor)
    assert resident(again) == 0


TRAIN = """
import sys
from edgetune.training.trainer import Trainer
t = Trainer(sys.argv[1], memory=sys.argv[2], weights=sys.argv[3], max_length=64, rank=2, precision="exact", threads=2,
            micro_batch=64, recompute="block")
from edgetune.machine import device
import numpy as np
from edgetune.data.packing import Example
rng = np.random.default_rng(1)
t.add_examples([Example(rng.integers(0, 800, 64).astype(np.int32), np.ones(64, np.float32)) for _ in range(8)])
loss = [t.step().loss for _ in range(2)]
assert (t.plan.tradeoffs.streamed == 0) == (sys.argv[3] == "resident"), "the test needs another budget"
print(device.peak_rss(), t.plan.peak_bytes, *loss, t.arena.flat("lora").tobytes().hex()[:400])
"""


def train(path, memory, weights):
    done = subprocess.run([sys.executable, "-c", TRAIN, str(path), memory, weights], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr
    peak, planned, *learnt = done.stdout.split()
    return int(peak), int(planned), learnt


@pytest.fixture(scope="module")
def larger(on_disk):
    """Twelve blocks of 6 MiB, a head of 4 MiB."""
    path = on_disk / "larger.gguf"
    return in_large_folios(write_tiny(path, formats="F16", n_blocks=12, d_model=512, d_ff=2048, n_vocab=4096, seed=2))


@pytest.mark.slow
def test_a_budget_is_kept_however_the_page_cache_holds_the_file(larger):
    """Of blocks, head and embedding in folios of 2 MiB no more is in memory than was planned, and what is learnt is the
    same, whether some blocks stay or none.
    """
    require_large_folios(open_gguf(larger))
    learnt = {}
    for streamed in ("auto", "streamed"):
        peak, planned, learnt[streamed] = train(larger, "75M", streamed)
        assert peak <= planned <= 75 * MIB, f"{peak / MIB:.1f} MiB, planned {planned / MIB:.1f}"
    assert learnt["auto"] == learnt["streamed"]
    resident = train(larger, "400M", "resident")[2]
    losses = [[float(loss) for loss in run[:2]] for run in (learnt["auto"], resident)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # the head's sums are rounded a slice at a time


def test_a_file_that_was_cut_off_is_refused_while_it_is_streamed(tmp_path):
    path = write_tiny(tmp_path / "model.gguf", formats="F16", n_blocks=3)
    gguf = open_gguf(path)
    stream = Stream(gguf, 3, Cpu(1), streamed=3)
    stream.enter(0)
    os.truncate(path, path.stat().st_size - 200_000)
    with pytest.raises(FormatError, match="it was longer when it was opened"):
        stream.enter(2)
    with pytest.raises(FormatError, match="was changed after it was opened"):
        stream.rows(np.array([3], np.int32))


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
