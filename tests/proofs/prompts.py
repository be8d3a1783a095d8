"""What a prompt alone reaches, beside an encoder and LoRA: Snips and BANKING77.

    python tests/proofs/prompts.py [--shared ../shared] [--sets snips banking77] [--seeds 0 1 2] [--rows 1000]
                                   [--few 50] [--held 100] [--model smollm2] [--ways zero nearest ...]
                                   [--out prompts.jsonl]

Of each set and seed, --rows rows are what is known, and --few of them the few. The same --held rows, which are no part
of these, are answered greedily by edgetune's own engine, by the encoder, or by the nearest row itself. A result is a
line of --out: exact answers, right intents, tokens of a request, CPU seconds until the first answer could be given, and
of each answer. What it has already is not measured again. Exits with 1 where the nearest few-shot examples are not
better than no prompt on every set, by an exact sign test with p below 0.05.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from json_lines import read_lines, write_lines
from proofs.compared import SIGNIFICANT, end_with, measure_missing

from edgetune.data.around import Instruction
from edgetune.data.dataset import load_rows
from edgetune.data.question import question_text
from edgetune.evaluation.acceptance import Paired
from edgetune.evaluation.judge import same
from edgetune.evaluation.native import engine_within, native_match
from edgetune.formats.bundle import Bundle, open_bundle
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.runs.train import train
from edgetune.serving.classifier import Classifier
from edgetune.serving.nearest import NearestRows
from edgetune.serving.prompt_file import NearestExamples, OpenPrompt, Prompt, open_prompt, write_prompt
from edgetune.serving.rollouts.texts import adapter_of
from edgetune.training.callbacks import RunCallbacks

Row = dict[str, str]
K = 8  # nearest examples, and 4 where they are learned with the rows
LEARNED = 4


@dataclass
class Place:
    """A set and a seed. known: rows; few: some of them; held: rows that are answered."""

    bundle: Bundle
    tokenizer: Tokenizer
    known: list[Row]
    few: list[Row]
    held: list[Row]
    seed: int
    folder: Path

    def grade(self, around: Instruction, adapter: Path | None = None) -> dict[str, Any]:
        """Greedy answers of the model to the held-out rows."""
        began = time.process_time()
        data = load_rows(self.held, self.tokenizer, max_length=2048, system=around)
        answers = native_match(self.bundle, self.tokenizer, data, adapter_of(self.bundle.gguf, adapter),
                               engine_within(threads=1), system=around)
        tokens = [len(self.tokenizer.encode(answer.prompt, bos=True)) for answer in answers]
        return self.graded([answer.answer for answer in answers], sum(tokens) / len(tokens), began)

    def graded(self, answers: list[str], tokens: float, began: float) -> dict[str, Any]:
        flags = [same(row["completion"], answer) for row, answer in zip(self.held, answers, strict=True)]
        intents = [intent(row["completion"]) == intent(answer) for row, answer in zip(self.held, answers, strict=True)]
        return {"exact": sum(flags) / len(flags), "intent": sum(intents) / len(intents), "tokens": round(tokens, 1),
                "answer_s": round((time.process_time() - began) / len(flags), 3), "flags": flags}

    def rows(self, rows: list[Row], name: str) -> Path:
        return write_lines(self.folder / f"{name}.jsonl", rows)

    def near(self, rows: list[Row], k: int) -> OpenPrompt:
        return OpenPrompt(Prompt("", [], NearestExamples("", k, "minilm")), rows, 1)

    def learned(self, rows: list[Row], **options: Any) -> Path:
        out = self.folder / f"out-{len(rows)}-{'prompt' in options}"
        train(self.bundle, self.rows(rows, "learn"), out, "none", answers=False, seed=self.seed, threads=1,
              callbacks=RunCallbacks(), **options)
        return out


def intent(answer: str) -> str | None:
    """The intent of an answer: the field of JSON, else the whole text."""
    text = answer.strip()
    if not text.startswith("{"):
        return text
    try:
        found = json.loads(text).get("intent")
    except (ValueError, AttributeError):
        return None
    return str(found)


# ---- ways ------------------------------------------------------------------------------------------------------------


def zero(place: Place) -> dict[str, Any]:
    return place.grade(None)


def nearest(place: Place) -> dict[str, Any]:
    return place.grade(place.near(place.known, K))


def nearest_of_few(place: Place) -> dict[str, Any]:
    return place.grade(place.near(place.few, K))


def nearest_row(place: Place) -> dict[str, Any]:
    """The answer of the nearest row, without a model that writes."""
    near = NearestRows(place.known, "minilm", 1)
    began = time.process_time()
    answers = [place.known[near.order(question_text(row))[0]]["completion"] for row in place.held]
    return place.graded(answers, 0, began)


def encoder(place: Place) -> dict[str, Any]:
    out = place.folder / "encoder"
    train("minilm", place.rows(place.known, "learn"), out, "none", answers=False, seed=place.seed, threads=1)
    setup = time.process_time()
    began = time.process_time()
    with Classifier("minilm", out, 1) as classifier:
        answers = [found.label for found in classifier.classify([row["prompt"] for row in place.held])]
    return {"setup_s": setup, **place.graded(answers, 0, began)}


def lora_few(place: Place) -> dict[str, Any]:
    return _adapter(place, place.few)


def lora_all(place: Place) -> dict[str, Any]:
    return _adapter(place, place.known)


def lora_few_nearest(place: Place) -> dict[str, Any]:
    """The few rows are learned with the nearest of the others before each."""
    others = [row for row in place.known if row not in place.few]
    place.rows(others, "near")
    write_prompt(place.folder / "near.json", Prompt("", [], NearestExamples("near.jsonl", LEARNED, "minilm")))
    return _adapter(place, place.few, prompt=str(place.folder / "near.json"))


def _adapter(place: Place, rows: list[Row], **options: Any) -> dict[str, Any]:
    adapter = place.learned(rows, **options)
    setup = time.process_time()
    around = open_prompt(Path(options["prompt"]), 1) if options else None
    return {"setup_s": setup, **place.grade(around, adapter)}


WAYS: dict[str, Callable[[Place], dict[str, Any]]] = {
    "zero": zero, "nearest-row": nearest_row, "nearest": nearest, "nearest-of-few": nearest_of_few, "encoder": encoder,
    "lora-few": lora_few, "lora-few-nearest": lora_few_nearest, "lora-all": lora_all}


def measure(args: argparse.Namespace, name: str, seed: int, way: str) -> dict[str, Any]:
    rows = read_lines(args.shared / "data" / f"{name}_train.jsonl")
    held_file = next(path for path in (args.shared / "data" / f"{name}_{part}.jsonl" for part in ("dev", "test"))
                     if path.exists())
    held = read_lines(held_file)[:args.held]
    known = random.Random(seed).sample(rows, args.rows)
    bundle = open_bundle(args.model)
    with tempfile.TemporaryDirectory() as folder:
        place = Place(bundle, Tokenizer(bundle.gguf), known, known[:args.few], held, seed, Path(folder))
        began = time.process_time()
        found = WAYS[way](place)
    if "setup_s" in found:
        found["setup_s"] = round(found["setup_s"] - began, 1)
    return {"model": str(args.model), "rows": args.rows, "few": args.few, "held": args.held, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[3] / "shared")
    parser.add_argument("--sets", nargs="+", default=["snips", "banking77"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--few", type=int, default=50)
    parser.add_argument("--held", type=int, default=100)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--out", type=Path, default=Path("prompts.jsonl"))
    args = parser.parse_args()
    cases = [{"set": name, "seed": seed, "way": way} for seed in args.seeds for way in args.ways for name in args.sets]
    results = measure_missing(args, cases, lambda **case: measure(args, case["set"], case["seed"], case["way"]),
                              lambda result: json.dumps({key: result[key] for key in result if key != "flags"}))
    end_with(targets(results, args.sets))


def targets(found: list[dict[str, Any]], sets: list[str]) -> dict[str, bool]:
    """What was to be shown, and whether it was."""
    said = {}
    for name in sets:
        sides = {way: [flag for row in found if (row["set"], row["way"]) == (name, way) for flag in row["flags"]]
                 for way in ("zero", "nearest")}
        if sides["zero"] and len(sides["zero"]) == len(sides["nearest"]):
            said[f"{name}: the nearest examples are better than no prompt"] = (
                Paired.of(sides["zero"], sides["nearest"]).p_better < SIGNIFICANT)
    return said


if __name__ == "__main__":
    main()
