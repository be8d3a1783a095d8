"""Streamed weights: each part is there when it is used and gone when it is left; sizes by hand."""

import re
from pathlib import Path

import numpy as np
import pytest
from tiny import write_tiny

from edgetune.gguf import open_gguf
from edgetune.stream import EMBEDDING, Sizes, Stream, part_of, sizes

MIB = 1 << 20


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    """Three blocks of about 3 MiB, embedding and head of 0.8 MiB."""
    path = tmp_path_factory.mktemp("stream") / "model.gguf"
    return open_gguf(write_tiny(path, formats="F16", n_blocks=3, d_model=512, d_ff=512, n_vocab=800, tied=False))


def resident(gguf) -> int:
    """Bytes of the file that are mapped, by the kernel."""
    maps, found, name = Path("/proc/self/smaps").read_text().splitlines(), 0, ""
    for line in maps:
        if re.match(r"^[0-9a-f]+-[0-9a-f]+ ", line):
            name = line
        elif line.startswith("Rss:") and str(gguf.path) in name:
            found += int(line.split()[1]) * 1024
    return found


def touch(gguf, part, n=3):
    return sum(int(t.data.sum()) for t in gguf.tensors.values() if part_of(t.name, n) == part)


def test_sizes(gguf):
    block = 2 * (2 * 512 * 64 + 2 * 512 * 32 + 3 * 512 * 512) + 2 * 512 * 4
    assert sizes(gguf.tensors.values(), 3) == Sizes((block,) * 3, 2 * 800 * 512, 2 * 800 * 512, 1024)


def test_what_is_mapped_and_read_by_hand():
    s = Sizes((10, 20, 30), 25, 0, 5)
    assert s.total == s.mapped(0, 8) == 85
    around = s.mapped(1, 8) - 75  # blocks 1 and 2, and the embedding
    assert 0 <= around < MIB
    assert s.mapped(2, 8) == 30 + 25 + around
    assert s.mapped(3, 8) == 30
    assert (s.read(0, 0), s.read(2, 0), s.read(3, 1)) == (0, 2 * 30 + 25, 60 + 50 + 25)
    assert Sizes((10, 20, 30), 25, 40, 5).mapped(0, 3) == 60 + 40 + 15  # of the embedding three rows
    assert Sizes((10, 20, 30), 25, 40, 5).mapped(0, 8) == 60 + 40 + 25
    large = Sizes((MIB,), 60 * MIB, 50 * MIB, 1024)
    assert large.mapped(1, 16) == 2 * MIB + 16 * 65 * 1024  # a slice of the head, and pages around 16 of its rows
    assert large.mapped(1, 4096) == 2 * MIB + 256 * 65 * 1024  # the head takes 256 tokens at a time
    assert large.mapped(1, 40_960) == 40 * MIB


def test_only_the_part_at_hand_is_mapped(gguf):
    gguf.release()
    stream, whole = Stream(gguf, 3, streamed=3), sizes(gguf.tensors.values(), 3)
    first = {}
    for part, then in ((EMBEDDING, 0), (0, 1), (1, 2), (2, 3), (3, 2), (2, 1), (1, 0), (0, None)):
        stream.enter(part, then)
        value = touch(gguf, part)
        assert first.setdefault(part, value) == value
        assert resident(gguf) <= max(whole.blocks) + MIB // 2, part
    stream.leave()
    assert resident(gguf) < MIB // 2


def test_rows_of_the_embedding_are_read(gguf):
    gguf.release()
    tokens, embedding = np.array([5, 799, 5, 0, 63], np.int32), gguf.tensors["token_embd.weight"]
    rows, places = Stream(gguf, 3, streamed=3).rows(embedding, tokens)
    assert resident(gguf) == 0
    assert rows.nbytes == 4 * 1024
    whole = embedding.data.reshape(800, 1024)
    assert np.array_equal(rows.reshape(4, 1024)[places], whole[tokens])
    assert places.dtype == np.int32
    gguf.release()
    again, same = Stream(gguf, 3).rows(embedding, tokens)  # nor does it stay where all other weights do
    assert resident(gguf) == 0
    assert np.array_equal(again, rows)
    assert np.array_equal(same, places)


def test_an_embedding_that_is_the_head_stays(tmp_path):
    tied = open_gguf(write_tiny(tmp_path / "model.gguf", formats="F16", n_blocks=3))
    tokens, embedding = np.array([5, 5, 0], np.int32), tied.tensors["token_embd.weight"]
    same, again = Stream(tied, 3).rows(embedding, tokens)
    assert same is embedding.data
    assert again is tokens


def test_slices_of_the_head_go_when_the_next_comes(gguf, monkeypatch):
    gguf.release()
    monkeypatch.setattr("edgetune.stream.SLICE", 256 * 1024)
    stream, head, seen = Stream(gguf, 3, streamed=3), gguf.tensors["output.weight"], 0
    stream.enter(3)
    for begin, end in stream.slices(head):
        assert (begin, seen) == (seen, begin)
        seen = end
        int(head.data[begin * 1024:end * 1024].sum())
        assert resident(gguf) <= 256 * 1024 + 7 * 65536
    assert seen == 800
    assert list(Stream(gguf, 3).slices(head)) == [(0, 800)]


def test_the_last_blocks_stay(gguf):
    gguf.release()
    stream, block = Stream(gguf, 3, streamed=1), sizes(gguf.tensors.values(), 3).blocks[0]
    for part in (0, 1, 2):
        stream.enter(part)
        touch(gguf, part)
    stream.leave()
    assert abs(resident(gguf) - 2 * block) < MIB // 2


def test_without_streaming_everything_stays(gguf):
    gguf.release()
    stream = Stream(gguf, 3)
    for part in (EMBEDDING, 0, 1, 2, 3):
        stream.enter(part)
        touch(gguf, part)
    stream.leave()
    assert resident(gguf) >= sizes(gguf.tensors.values(), 3).total
    gguf.release()
    assert resident(gguf) < MIB // 2
