"""The size and speed of a large index: 50,000 chunks.

    python tests/proofs/retrieval_size.py [--data FOLDER] [--encoded 50000] [--chunks 50000]

Chunks are shuffled sentences of WikiText-2. First --encoded of them are indexed as `edgetune index` does it: seconds of
CPU and memory. Then an index of --chunks is written with random vectors, as neither its bytes nor the time of a query
depend on these: bytes, and seconds of CPU of 200 questions of XQuAD. Exits with 1 above 100 MB or 50 ms.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from proofs.public_data import FOLDER
from proofs.retrieval import drawn, questions

from edgetune.formats.named import find_model
from edgetune.machine.device import peak_rss
from edgetune.parts.documents.building import AT_ONCE, build
from edgetune.parts.documents.chunks import chunks
from edgetune.parts.documents.encoding import Encoding
from edgetune.parts.documents.paragraphs import Paragraph
from edgetune.parts.documents.ranking import Ranking
from edgetune.parts.documents.store import Store

CHUNKS = 50_000
TOKENS = 256
OF_A_FILE = 500  # chunks
WORDS = 85_000  # of a file
MILLISECONDS = 50
BYTES = 100_000_000


def texts(data: Path, count: int) -> Iterator[str]:
    """Texts of about OF_A_FILE chunks each, every five sentences a paragraph."""
    sentences = re.split(r"(?<= \.) ", (data / "wikitext2_valid.txt").read_text())
    chance = random.Random(0)
    for _ in range(max(1, count // OF_A_FILE)):
        chance.shuffle(sentences)
        parts: list[str] = []
        taken = 0
        for sentence in sentences:
            if taken >= WORDS:
                break
            parts.append(sentence.replace("\n", " ").strip() + "\n" * (1 + (len(parts) % 5 == 4)))
            taken += len(sentence.split())
        yield "".join(parts)


def encoded(data: Path, work: Path, count: int) -> None:
    folder = work / "documents"
    folder.mkdir()
    for number, text in enumerate(texts(data, count)):
        (folder / f"{number:03}.txt").write_text(text)
    encoding = Encoding(find_model("minilm"), 1)
    before = time.process_time()
    report = build(folder, work / "encoded.index", encoding)
    seconds = time.process_time() - before
    encoding.close()
    print(f"{report.chunks} chunks, {report.tokens} tokens, {seconds:.0f} s of CPU, {report.tokens / seconds:.0f} "
          f"tokens a second, peak {peak_rss() / 2**20:.0f} MiB", flush=True)


def stored(data: Path, path: Path, count: int) -> bool:
    encoding = Encoding(find_model("minilm"), 1)
    store = Store(path, writes=True)
    store.begin()
    store.create({}, encoding.width)
    chance = np.random.default_rng(0)
    written = 0
    while written < count:
        for number, text in enumerate(texts(data, count)):
            file = store.add_file(f"{written}-{number}", len(text), 0, "")
            found = list(chunks([Paragraph(part) for part in text.split("\n\n")], lambda part: len(part) // 4, TOKENS,
                                0.15))[:count - written]
            for begin in range(0, len(found), AT_ONCE):
                part = found[begin:begin + AT_ONCE]
                store.add_chunks(file, part, chance.integers(-60, 60, (len(part), encoding.width)).astype(np.int8))
            written += len(found)
    store.commit()
    ranking = Ranking(store, encoding)
    times = []
    for each in drawn(questions(data)):
        before = time.process_time()
        ranking.ranked(each.question)
        times.append(1000 * (time.process_time() - before))
    times.sort()
    store.close()
    median = times[len(times) // 2]
    size = path.stat().st_size
    print(f"{written} chunks: {size / 1e6:.1f} MB; a query takes {median:.1f} ms of CPU (median), 95 % at most "
          f"{times[int(0.95 * len(times))]:.1f} ms")
    return size <= BYTES and median <= MILLISECONDS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=FOLDER)
    parser.add_argument("--encoded", type=int, default=CHUNKS)
    parser.add_argument("--chunks", type=int, default=CHUNKS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.encoded:
            encoded(args.data, Path(folder), args.encoded)
        passed = stored(args.data, Path(folder) / "stored.index", args.chunks)
    sys.exit(not passed)


if __name__ == "__main__":
    main()
