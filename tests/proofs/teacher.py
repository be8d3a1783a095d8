"""What a small model gets back from a large one's file: SmolLM2 in F16 teaches what `edgetune compress` made of it.

    python tests/proofs/teacher.py [--only s60 pruned] [--variants forward sft ...] [--seeds 0,1,2] [--lr 1e-3]
                                   [--out teacher.jsonl]

The teacher is SmolLM2-135M-Instruct, dequantized from Q4_1 to F16: no better file is on a package registry. Students:
s60 (60 MB, by `edgetune compress`) and pruned (F16, without 3 of 30 blocks, and nothing was fitted to that). Rows:
--rows of Snips and --windows of WikiText-2 of about 96 tokens, in the memory of --memory. Held out: 20 of Snips' other
file, and 20 windows of the part of WikiText-2 on which no step of `compress` was tuned.

before               the student as it is
sft                  imitates the rows
sft-greedy           imitates what the teacher says: greedy answers, greedy continuations of half a window
forward, reverse, jsd, mixed   learn from the teacher's file; mixed: forward, and half of the loss is the rows'

KL(teacher || student) in nats a token over the whole vocabulary, by llama.cpp, and agreement of the likeliest token.
Exits with 1 unless forward KL on the most windows takes at least 40 % of the student's KL away on both texts, in the
memory planned.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from json_lines import read_lines, write_lines
from peers.snips import SYSTEM
from proofs.compared import Result, arguments, edgetune, end, folder_of, measure_missing

from edgetune.compress.shrink.prune import without_blocks
from edgetune.compress.source import floats
from edgetune.data.dataset import load
from edgetune.data.packing import Example
from edgetune.formats.bundle import open_bundle
from edgetune.formats.gguf import open_gguf
from edgetune.llamacpp.divergence import divergence
from edgetune.serving.llama import LlamaModel

STUDENTS = ("s60", "pruned")
DROPPED = (22, 24, 26)  # of 30 blocks
VARIANTS = ("before", "sft", "sft-greedy", "forward", "reverse", "jsd", "mixed")
HELD = {"snips": 20, "wiki": 20}
WORDS = 70  # in a window, about 96 tokens
LONGEST = 256
SAID = 48  # tokens of a greedy answer
TARGET = 0.6  # of the KL that the student begins with


class Proof:
    """Models, rows and the teacher's file of one folder."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.folder = folder_of(args)
        self.data = args.shared / "data"
        self.tag = f"{args.rows}" + (f"-{args.windows}" if args.windows else "")
        self.teacher = self.folder / "teacher-f16.gguf"
        if not self.teacher.exists():
            floats.write(self.teacher, floats.read(open_gguf(args.model)))
        self.rows = self.folder / f"rows-{self.tag}.jsonl"
        if not self.rows.exists():
            write_lines(self.rows, [*read_lines(self.data / "snips_train.jsonl")[:args.rows],
                                    *self.windows(0, args.windows or args.rows)])
        self.held = {"snips": write_lines(self.folder / "held-snips.jsonl",
                                          read_lines(self.data / "snips_dev.jsonl")[:HELD["snips"]]),
                     "wiki": write_lines(self.folder / "held-wiki.jsonl", self.windows(1, HELD["wiki"]))}
        self._expected: dict[str, list[tuple[Example, Any]]] = {}

    def windows(self, part: int, number: int) -> list[dict[str, Any]]:
        """Of the first four fifths of the text, on which compress calibrates, or of the last, evenly spread."""
        text = (self.data / "wikitext2_valid.txt").read_text(encoding="utf-8")
        words = [text[:len(text) * 4 // 5], text[len(text) * 4 // 5:]][part].split(" ")
        begins = np.linspace(0, len(words) - WORDS, number).astype(int)
        return [{"text": " ".join(words[begin:begin + WORDS]).strip()} for begin in begins]

    def student(self, name: str) -> Path:
        path = self.folder / ("s60.edge" if name == "s60" else "pruned.gguf")
        if not path.exists() and name == "s60":
            edgetune("compress", self.teacher, "-o", path, "--calibrate", self.data / "wikitext2_valid.txt",
                     "--target-size", "60M", "--json")
        elif not path.exists():
            whole = floats.read(open_gguf(self.teacher))
            floats.write(path, without_blocks(whole, [i for i in range(whole.shape.n_layer) if i not in DROPPED]))
        return path

    def file(self) -> Path:
        path = self.folder / f"rows-{self.tag}.teacher"
        if not path.exists():
            made = edgetune("teach", self.teacher, self.rows, "-o", path, "--system", SYSTEM, "--max-length", LONGEST,
                            "--threads", 1, "--json")
            print(f"teacher's file: {made['positions']} tokens, {made['bytes']} bytes", flush=True)
        return path

    def greedy(self) -> Path:
        """Rows of what the teacher says."""
        path = self.folder / f"greedy-{self.tag}.jsonl"
        if not path.exists():
            write_lines(path, self._said())
        return path

    def _said(self) -> Iterator[dict[str, Any]]:
        with LlamaModel(self.teacher, context=512, threads=1) as model:
            for row in read_lines(self.rows):
                if "text" in row:
                    begin = " ".join(row["text"].split(" ")[:WORDS // 2])
                    yield {"text": begin + "".join(model.generate(begin, max_tokens=SAID, temperature=0))}
                    continue
                asked = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": row["prompt"]}]
                said = "".join(model.chat(asked, max_tokens=SAID, temperature=0))
                yield {"prompt": row["prompt"], "completion": said or "{}"}

    def run(self, student: str, variant: str, seed: int) -> Result:
        bundle = self.student(student)
        adapter = None
        facts: Result = {}
        if variant != "before":
            adapter = self.folder / f"{student}-{variant}-{seed}-{self.args.lr:g}-{self.args.epochs:g}-{self.tag}"
            rows = self.greedy() if variant == "sft-greedy" else self.rows
            made = edgetune("train", bundle, rows, "-o", adapter, *self.method(variant), "--system", SYSTEM, "--rank",
                            16, "--lr", self.args.lr, "--epochs", self.args.epochs, "--batch-size", 4, "--max-length",
                            LONGEST, "--eval", "none", "--anchors", 0, "--seed", seed, "--threads", 1, "--memory",
                            self.args.memory, "--no-answers", "--no-govern", "--json")
            plan = made["plan"]
            facts = {"seconds": made["seconds"], "steps": made["steps"], "peak_mib": made["peak_rss_mib"],
                     "planned_mib": plan["peak_mib"]}
        return facts | self.distances(bundle, adapter)

    def method(self, variant: str) -> list[object]:
        if variant.startswith("sft"):
            return []
        options = {"mixed": ["--label-share", 0.5]}.get(variant, ["--divergence", variant])
        return ["--method", "distill", "--teacher", self.file(), *options]

    def distances(self, bundle: Path, adapter: Path | None) -> Result:
        """KL of each held-out row, [snips or wiki]: sums over its tokens, and the tokens."""
        found: Result = {}
        with LlamaModel(open_bundle(bundle).gguf, context=512, threads=1) as student:
            if adapter:
                student.load_adapter(adapter, "it")
                student.use("it")
            for name, rows in self.expected().items():
                found[name] = []
                for one, expected in rows:
                    at = np.flatnonzero(one.weights[1:])
                    each = divergence(expected, logits_at(student, one), one.tokens[at + 1])
                    found[name].append([len(at), each.kl, each.agreed, each.loss, each.source_loss])
        return found

    def expected(self) -> dict[str, list[tuple[Example, Any]]]:
        """Of each held-out row, the teacher's logits [S, V], which a file keeps for later pieces of the proof."""
        if self._expected:
            return self._expected
        kept = self.folder / "expected.npz"
        known = dict(np.load(kept)) if kept.exists() else {}
        with LlamaModel(self.teacher, context=512, threads=1) as model:
            for name, path in self.held.items():
                examples = load(path, model.tokenizer, max_length=LONGEST, system=SYSTEM).examples
                for i, one in enumerate(examples):
                    if f"{name} {i}" not in known:
                        known[f"{name} {i}"] = logits_at(model, one)
                self._expected[name] = [(one, known[f"{name} {i}"]) for i, one in enumerate(examples)]
        if not kept.exists():
            np.savez(kept, **known)
        return self._expected


def logits_at(model: LlamaModel, example: Example) -> Any:
    """Of the supervised tokens, [S, V]."""
    wanted = example.weights[1:] != 0
    return np.concatenate([logits.copy() for _, logits in
                           model.cache.feed(example.tokens[:-1].tolist(), wanted, repeats=True)])


def kl(result: Result, name: str) -> float:
    tokens, found, *_ = np.sum(result[name], axis=0)
    return float(found / tokens)


def interval(result: Result, name: str) -> tuple[float, float]:
    """95 % of KL's bootstrap over the held-out rows."""
    rows = np.array(result[name])
    rng = np.random.default_rng(0)
    drawn = rows[rng.integers(0, len(rows), (2000, len(rows)))].sum(1)
    low, high = np.quantile(drawn[:, 1] / drawn[:, 0], [0.025, 0.975])
    return float(low), float(high)


def line_of(result: Result) -> str:
    parts = [f"{result['student']} {result['variant']} {result['seed']}:"]
    for name in HELD:
        rows = np.sum(result[name], axis=0)
        low, high = interval(result, name)
        parts.append(f"{name} KL {kl(result, name):.4f} ({low:.4f}-{high:.4f}), agree {rows[2] / rows[0]:.1%}, "
                     f"loss {rows[3] / rows[0]:.3f} (teacher {rows[4] / rows[0]:.3f});")
    if "seconds" in result:
        parts.append(f"{result['steps']} steps, {result['seconds']:.0f} s, peak {result['peak_mib']:.0f} of "
                     f"{result['planned_mib']:.0f} MiB planned")
    return " ".join(parts)


def wrong(results: Sequence[Result]) -> Iterator[str]:
    for student in STUDENTS:
        of = [result for result in results if result["student"] == student]
        most = max((result["windows"] for result in of), default=0)
        before = [result for result in of if result["variant"] == "before"]
        for name in HELD:
            after = [kl(result, name) for result in of
                     if result["variant"] == "forward" and result["windows"] == most]
            if after and before and statistics.fmean(after) > TARGET * kl(before[0], name):
                yield f"{student}, {name}: KL {statistics.fmean(after):.4f} of {kl(before[0], name):.4f}"
    for result in results:
        if result.get("peak_mib", 0) > result.get("planned_mib", 0):
            yield f"{line_of(result)}: more than planned"


def main() -> None:
    parser = arguments(__doc__, "teacher.jsonl", STUDENTS, seeds=True)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=[*VARIANTS])
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--rows", type=int, default=80)
    parser.add_argument("--windows", type=int, default=0, help="of WikiText-2 [as many as rows]")
    parser.add_argument("--memory", default="320M")
    args = parser.parse_args()
    proof = Proof(args)
    cases = [{"student": student, "variant": variant, "seed": seed, "lr": 0.0 if variant == "before" else args.lr,
              "epochs": 0.0 if variant == "before" else args.epochs, "rows": 0 if variant == "before" else args.rows,
              "windows": 0 if variant == "before" else args.windows or args.rows}
             for variant in args.variants for student in args.only
             for seed in (args.seeds if variant != "before" else [0])]
    results = measure_missing(args, cases, lambda lr, epochs, rows, windows, **case: proof.run(**case), line_of)  # noqa: ARG005
    end([*wrong(results)])


if __name__ == "__main__":
    main()
