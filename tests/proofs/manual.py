"""A manual of 30 pages asked without it: rows trained, beside its text trained, retrieval and a cartridge.

    python tests/proofs/manual.py [--manual docs/how-to] [--rows NAME=FILE ...] [--only base text ...] [--epochs 10]
                                  [--out build/manual.jsonl]

48 questions were written by hand, with the words that a right answer has. Variants: the model alone (base); the part
of a page that BM25 finds before the question (bm25), or that the index of `edgetune index` finds (index); a LoRA on the
text as it is (text), on rows by rules (rules), by the model (made), by hand (hand), or of a file (NAME); also with what
is found before the question (hand+bm25, hand+index), or learned with what BM25 finds (hand-reader+bm25); a prefix of
64 tokens trained on the rows (hand-prefix); the first tokens of the manual compiled (compiled). Milliseconds are CPU
time of this process for one question, megabytes the files that it needs in addition to the model.
"""

import math
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from json_lines import read_lines, write_lines
from proofs.compared import Result, arguments, edgetune, folder_of, measure_missing

from edgetune.serving.llama import LlamaModel

QUESTIONS = Path(__file__).parent / "data" / "manual_questions.jsonl"
ROWS = Path(__file__).parent / "data" / "manual_rows.jsonl"  # by hand: 93 facts, each asked in two wordings
MANUAL = Path(__file__).parents[2] / "docs" / "how-to"
WORDS = 110  # of a part, at most
PASSAGES = 3  # of the index
TOKENS = 40  # of an answer
COMPILED = 6000  # characters of the manual that are compiled: some 2,000 tokens
READ = "{part}\n\nAnswer from this text in a few words: {question}"


def parts_of(folder: Path) -> list[str]:
    """Sections of each page, or paragraphs of a long one, below their headings."""
    found = []
    for path in sorted(folder.glob("*.md")):
        title = heading = ""
        taken: list[str] = []
        for line in [*path.read_text("utf-8").splitlines(), "# "]:
            head = re.match(r"(#+) (.*)", line)
            if head or (not line.strip() and sum(len(each.split()) for each in taken) >= WORDS):
                if text := "\n".join(taken).strip():
                    found.append(f"{title}: {heading}\n{text}" if heading else f"{title}\n{text}")
                taken = []
            else:
                taken.append(line)
            if head:
                title, heading = (head[2], "") if head[1] == "#" else (title, head[2])
    return found


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


class Bm25:
    def __init__(self, parts: list[str]) -> None:
        self.counts = [Counter(words(part)) for part in parts]
        self.lengths = [sum(count.values()) for count in self.counts]
        self.among = Counter(word for count in self.counts for word in count)

    def best(self, question: str) -> int:
        mean = sum(self.lengths) / len(self.lengths)

        def score(i: int) -> float:
            return sum(math.log(1 + (len(self.counts) - self.among[word] + 0.5) / (self.among[word] + 0.5))
                       * self.counts[i][word] * 2.2 / (self.counts[i][word] + 0.3 + 0.9 * self.lengths[i] / mean)
                       for word in set(words(question)))

        return max(range(len(self.counts)), key=score)


def is_right(answer: str, accepted: list[str]) -> bool:
    """Whether an accepted text stands in the answer, not within a longer word or number."""
    said = answer.casefold()
    return any(re.search(rf"(?<![\w.,]){re.escape(text.casefold())}(?![\w])", said) for text in accepted)


class Proof:
    def __init__(self, args: Any) -> None:
        self.args = args
        self.folder = folder_of(args)
        self.questions = read_lines(QUESTIONS)
        self.rows = {"hand": str(ROWS)} | dict(each.split("=", 1) for each in args.rows)

    def measured(self, variant: str) -> Result:
        began = time.process_time()
        adapter, facts = self.adapter(variant)
        result: Result = {**facts, "making_s": time.process_time() - began}
        find, stored = self.search(variant)
        with LlamaModel(self.args.model, context=4096, threads=1) as served:
            if adapter:
                served.load_adapter(adapter, "adapter")
                served.use("adapter")
            begun = time.process_time()
            said = []
            found = 0
            for row in self.questions:
                asked = row["prompt"]
                if find:
                    part = find(asked)
                    found += is_right(part, row["accepted"])
                    asked = READ.format(part=part, question=asked)
                said.append("".join(served.chat([{"role": "user", "content": asked}], max_tokens=TOKENS)))
            result["ms"] = 1000 * (time.process_time() - begun) / len(said)
        result["answers"] = said
        result["found"] = found if find else None
        result["right"] = [int(is_right(answer, row["accepted"])) for answer, row in zip(said, self.questions,
                                                                                        strict=True)]
        files = [adapter] if adapter and adapter.is_file() else [*adapter.glob("*.gguf"), *adapter.glob("*.bin")] \
            if adapter else []
        result["mb"] = (sum(file.stat().st_size for file in files) + stored) / 1e6
        return result

    def search(self, variant: str) -> tuple[Callable[[str], str] | None, int]:
        """(what finds the part of the manual for a question, the bytes of its files); None: nothing is looked up."""
        if variant.endswith("bm25"):
            parts = parts_of(self.args.manual)
            bm25 = Bm25(parts)
            return (lambda asked: parts[bm25.best(asked)]), sum(len(part.encode()) for part in parts)
        if not variant.endswith("index"):
            return None, 0
        from edgetune.formats.named import find_model
        from edgetune.parts.documents.searching import Index
        path = self.folder / "manual.index"
        if not path.exists():
            edgetune("index", self.args.manual, "-o", path, "--chunk-tokens", 160, "--threads", 1, "--json")
        index = Index(path, 1)

        def find(asked: str) -> str:
            passages = index.search(asked, PASSAGES, 0.0).passages
            return "\n\n".join(passage.text for passage in passages)

        return find, path.stat().st_size + find_model("minilm").stat().st_size

    def adapter(self, variant: str) -> tuple[Path | None, Result]:
        name = variant.removesuffix("+bm25").removesuffix("+index")
        if name in ("base", "bm25", "index"):
            return None, {}
        path = self.folder / name
        if name == "compiled":
            text = "\n\n".join(parts_of(self.args.manual))[:COMPILED]
            (self.folder / "compiled.txt").write_text(text)
            if not path.exists():
                edgetune("compile-prompt", self.args.model, self.folder / "compiled.txt", "-o", path, "--json")
            return path, {"characters": len(text)}
        rows = self.rows_of(name.removesuffix("-prefix"))
        if name.endswith("-reader"):
            rows = self.with_parts(name)
        count = len(read_lines(rows))
        if not path.exists():
            family = ["--family", "prefix", "--prefix-tokens", 64] if name.endswith("-prefix") else []
            edgetune("train", self.args.model, rows, "-o", path, "--epochs", self.args.epochs, "--no-govern",
                     "--no-answers", "--threads", 1, *family, "--json")
        return path, {"rows": count}

    def with_parts(self, name: str) -> Path:
        """Rows whose questions stand after the part of the manual that BM25 finds for them."""
        parts = parts_of(self.args.manual)
        bm25 = Bm25(parts)
        rows = [{**row, "prompt": READ.format(part=parts[bm25.best(row["prompt"])], question=row["prompt"])}
                for row in read_lines(self.rows_of(name.removesuffix("-reader")))]
        return write_lines(self.folder / f"{name}.jsonl", rows)

    def rows_of(self, name: str) -> Path:
        path = self.folder / f"{name}.jsonl"
        if name == "text":
            return write_lines(path, [{"text": part} for part in parts_of(self.args.manual)])
        if name in self.rows:
            return Path(self.rows[name])
        if not path.exists():
            model = [self.args.model] if name == "made" else []
            edgetune("data", "make", "documents", self.args.manual, *model, "-o", path, "--json")
        return path


def told(result: Result) -> str:
    return (f"{result['variant']:14} {sum(result['right'])} of {len(result['right'])} right, {result['ms']:.0f} ms, "
            f"{result['mb']:.1f} MB" + (f", {result['rows']} rows" if "rows" in result else "")
            + (f", the part has the answer of {result['found']}" if result.get("found") is not None else ""))


def main() -> None:
    parser = arguments(__doc__, "manual.jsonl")
    parser.add_argument("--manual", type=Path, default=MANUAL)
    parser.add_argument("--rows", nargs="*", default=[], metavar="NAME=FILE")
    parser.add_argument("--only", nargs="+", default=["base", "bm25", "index", "text", "rules", "compiled"])
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    proof = Proof(args)
    measure_missing(args, [{"variant": name} for name in args.only], proof.measured, told)


if __name__ == "__main__":
    main()
