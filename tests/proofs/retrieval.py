"""Retrieval on public texts: passages found, answers with and without them, injected documents, size and time.

    python tests/proofs/retrieval.py found|answers|injected|size [--data FOLDER] [--model MODEL ...]

found: an index of XQuAD's 240 English paragraphs (48 articles of Wikipedia) among those of WikiText-2, and 200 of the
1,190 questions that people asked about them: recall at 5 of BM25 alone, of vectors alone, and of both. A passage counts
if it holds the answer with the words around it. Then an index without half of the articles, and 200 questions to each
half: how often it says that nothing was found.
size: an index of 50,000 chunks of shuffled sentences of WikiText-2: seconds, bytes, milliseconds of a query.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from proofs.public_data import FOLDER

from edgetune.evaluation.acceptance import wilson
from edgetune.formats.named import find_model
from edgetune.machine.device import peak_rss
from edgetune.retrieval.building import Report, build
from edgetune.retrieval.encoding import Encoding
from edgetune.retrieval.searching import Index

QUESTIONS = 200
AROUND = 20  # characters on each side of an answer that a passage must hold too
RECALL = 0.9
CHUNKS = 50_000
MILLISECONDS = 50
BYTES = 100_000_000


@dataclass(frozen=True)
class Asked:
    """A question about a paragraph of an article. span: the answer with the words around it."""

    question: str
    answers: Sequence[str]
    article: int
    span: str


def articles(data: Path) -> list[Any]:
    found: list[Any] = json.loads((data / "xquad_en.json").read_text())["data"]
    return found


def write_articles(folder: Path, data: Path, wanted: Callable[[int], bool], wiki: bool = True) -> Path:
    folder.mkdir()
    for number, article in enumerate(articles(data)):
        if wanted(number):
            text = "\n\n".join(part["context"] for part in article["paragraphs"])
            (folder / f"article-{number:02}.txt").write_text(text + "\n")
    if wiki:
        (folder / "wikitext.txt").write_text((data / "wikitext2_valid.txt").read_text())
    return folder


def questions(data: Path) -> list[Asked]:
    """All, in the order of the file."""
    found = []
    for number, article in enumerate(articles(data)):
        for part in article["paragraphs"]:
            for asked in part["qas"]:
                begin = asked["answers"][0]["answer_start"]
                end = begin + len(asked["answers"][0]["text"])
                span = part["context"][max(0, begin - AROUND):end + AROUND]
                texts = list(dict.fromkeys(answer["text"] for answer in asked["answers"]))
                found.append(Asked(asked["question"], texts, number, squeezed(span)))
    return found


def squeezed(text: str) -> str:
    return " ".join(text.split())


def drawn(found: Sequence[Asked], count: int = QUESTIONS, seed: int = 0) -> list[Asked]:
    return random.Random(seed).sample(list(found), count)


def share_text(right: int, count: int) -> str:
    low, high = wilson(right, count)
    return f"{right}/{count} = {right / count:.3f} [{low:.3f}, {high:.3f}]"


@contextmanager
def indexed(folder: Path, path: Path) -> Iterator[tuple[Index, Report, float]]:
    """An index of a folder, opened; with the seconds of CPU that it took."""
    encoding = Encoding(find_model("minilm"), 1)
    before = time.process_time()
    report = build(folder, path, encoding)
    seconds = time.process_time() - before
    encoding.close()
    with Index(path, 1) as index:
        yield index, report, seconds


# ---- found ----------------------------------------------------------------------------------------------------------


def found_part(data: Path, work: Path) -> bool:
    with indexed(write_articles(work / "all", data, lambda _: True), work / "all.index") as (index, report, seconds):
        print(f"{report.chunks} chunks, {report.tokens} tokens, {report.bytes} bytes, {seconds:.1f} s of CPU")
        recall = recalls(index, drawn(questions(data)))
    nothing_part(data, work)
    return recall >= RECALL


def recalls(index: Index, asked: Sequence[Asked]) -> float:
    """Prints recall at 1, 5 and 10 by each ranking; that of both at 5."""
    kinds: dict[str, list[int | None]] = {"BM25": [], "vectors": [], "both": []}
    for each in asked:
        ranked = index._ranking.ranked(each.question)
        for kind, order in (("BM25", ranked.by_words), ("vectors", ranked.by_vector),
                            ("both", [chunk for chunk, _ in ranked.chunks])):
            held = (rank for rank, chunk in enumerate(order, 1)
                    if each.span in squeezed(index._store.passage(chunk)[1]))
            kinds[kind].append(next(held, None))
    for kind, ranks in kinds.items():
        for depth in (1, 5, 10):
            right = sum(rank is not None and rank <= depth for rank in ranks)
            print(f"{kind}: recall at {depth}: {share_text(right, len(ranks))}")
    return sum(rank is not None and rank <= 5 for rank in kinds["both"]) / len(asked)


def nothing_part(data: Path, work: Path) -> None:
    """How often an index of half of the articles says that it does not answer: its own questions, and others'."""
    for name, wiki in (("24 articles", False), ("24 articles and WikiText-2", True)):
        folder = write_articles(work / f"half-{wiki}", data, lambda number: number % 2 == 0, wiki)
        with indexed(folder, work / f"half-{wiki}.index") as (index, report, _):
            own = drawn([each for each in questions(data) if each.article % 2 == 0], seed=1)
            others = drawn([each for each in questions(data) if each.article % 2], seed=1)
            refused = [sum(not index.search(each.question).passages for each in part) for part in (own, others)]
            print(f"{name}, {report.chunks} chunks, limit {index.least:.3f}: nothing found of its own questions: "
                  f"{share_text(refused[0], len(own))}, of others': {share_text(refused[1], len(others))}")


# ---- size -----------------------------------------------------------------------------------------------------------


def size_part(data: Path, work: Path, chunks: int) -> bool:
    folder = work / "large"
    folder.mkdir()
    sentences = re.split(r"(?<= \.) ", (data / "wikitext2_valid.txt").read_text())
    chance = random.Random(0)
    for number in range(chunks // 500):  # 500 chunks a file: about 107,000 new tokens
        chance.shuffle(sentences)
        taken = 0
        with (folder / f"{number:03}.txt").open("w") as file:
            for sentence in sentences:
                if taken >= 85_000:  # words
                    break
                file.write(sentence.replace("\n", " ").strip() + "\n" * (1 + (taken % 5 == 0)))
                taken += len(sentence.split())
    with indexed(folder, work / "large.index") as (index, report, seconds):
        print(f"{report.chunks} chunks, {report.tokens} tokens, {report.bytes / 1e6:.1f} MB, {seconds:.0f} s of CPU, "
              f"peak {peak_rss() / 2**20:.0f} MiB")
        times = []
        for each in drawn(questions(data)):
            before = time.perf_counter()
            index.search(each.question, least=0)
            times.append(1000 * (time.perf_counter() - before))
        times.sort()
        print(f"a query: median {times[len(times) // 2]:.1f} ms, 95 % within {times[int(0.95 * len(times))]:.1f} ms")
        return report.bytes <= BYTES and times[len(times) // 2] <= MILLISECONDS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["found", "size"])
    parser.add_argument("--data", type=Path, default=FOLDER)
    parser.add_argument("--chunks", type=int, default=CHUNKS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        passed = found_part(args.data, work) if args.part == "found" else size_part(args.data, work, args.chunks)
    sys.exit(not passed)


if __name__ == "__main__":
    main()
