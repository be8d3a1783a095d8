"""A text distilled into a few virtual tokens (cartridges, Eyuboglu et al. 2025, arXiv 2506.06266).

    python tests/proofs/cartridge.py [--model GGUF] [--tokens 64] [--rates 3e-3,1e-2] [--steps 40]
                                     [--out cartridge.jsonl]

The text is a page of the documentation. The keys and values of its first tokens are the start of a prefix. It learns,
on 20 questions, the distribution of each token of the answer that the model has with the whole text in view. On 10
other questions the divergence from that distribution is measured: without the text, with its first tokens alone, and
with the trained prefix.

Exits with 1 if the trained prefix is not nearer than the first tokens.
"""

import argparse
import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from commands import run
from proofs.compared import Result, arguments, end_with, folder_of, measure_missing

from edgetune.adapters.prefix import Prefix
from edgetune.data import privileged
from edgetune.data.dataset import load_rows
from edgetune.objectives.self_distill import SelfDistill
from edgetune.serving.llama import LlamaModel
from edgetune.training.trainer import Trainer

TEXT = Path(__file__).parents[2] / "docs" / "how-to" / "run-as-a-service.md"
ASK = "Ask one short question that this text answers. Write the question alone."
LEARNED = 20  # questions
HELD_OUT = 10
MAX_LENGTH = 1536
NAME = "text"


def questions(args: argparse.Namespace, folder: Path) -> list[dict[str, str]]:
    """Questions that the model asks with the text in view, and its answers to them."""
    saved = folder / "questions.json"
    if saved.exists():
        return [*json.loads(saved.read_text())]
    found: dict[str, str] = {}
    with LlamaModel(args.model, context=2048) as served:
        served.load_adapter(folder / NAME, NAME)
        served.use(NAME)
        for seed in range(10 * (LEARNED + HELD_OUT)):
            asked = "".join(served.chat([{"role": "user", "content": ASK}], temperature=1.0, seed=seed, max_tokens=40))
            if asked.strip().endswith("?") and asked not in found:
                said = served.chat([{"role": "user", "content": asked.strip()}], max_tokens=40)
                found[asked.strip()] = "".join(said)
            if len(found) == LEARNED + HELD_OUT:
                break
    text = TEXT.read_text()
    rows = [{"prompt": asked, "completion": said, "privileged_context": text} for asked, said in found.items() if said]
    saved.write_text(json.dumps(rows))
    return rows


def divergence(trainer: Trainer, rows: list[dict[str, str]], base: bool = False) -> float:
    """Nats a token. base: without the prefix."""
    found = load_rows(rows, trainer.tokenizer, max_length=MAX_LENGTH, parser=privileged)
    with trainer.decoder.linear.off() if base else nullcontext():
        return trainer.loss(found.examples)[0]


def measured(args: argparse.Namespace, rate: float) -> Result:
    folder = folder_of(args)
    if not (folder / NAME).exists():
        (folder / "text.txt").write_text(TEXT.read_text())
        run("lab", "compile-prompt", args.model, folder / "text.txt", "-o", folder / NAME, "--json")
    rows = questions(args, folder)
    trainer = Trainer(args.model, family=Prefix(prefix_tokens=args.tokens), lr=rate, steps=args.steps, batch_size=4,
                      max_length=MAX_LENGTH, objective=SelfDistill())
    trainer.load(folder / NAME)
    learned, held_out = rows[:LEARNED], rows[LEARNED:]
    result: dict[str, Any] = {"tokens": args.tokens, "questions": len(rows)}
    result["without"] = divergence(trainer, held_out, base=True)
    result["first"] = divergence(trainer, held_out)
    trainer.add(learned)
    began = time.monotonic()
    result["steps"] = [step.loss for step in trainer.train()]
    result["seconds"] = time.monotonic() - began
    result["trained"] = divergence(trainer, held_out)
    return result


def told(result: Result) -> str:
    return (f"rate {result['rate']:g}: {result['without']:.3f} without the text, {result['first']:.3f} with its first "
            f"{result['tokens']} tokens, {result['trained']:.3f} trained in {result['seconds']:.0f} s")


def main() -> None:
    parser = arguments(__doc__, "cartridge.jsonl")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rates", type=lambda text: [float(rate) for rate in text.split(",")], default=[3e-3, 1e-2])
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    results = measure_missing(args, [{"rate": rate} for rate in args.rates], lambda rate: measured(args, rate), told)
    end_with({"the trained prefix is nearer": any(each["trained"] < each["first"] for each in results)})


if __name__ == "__main__":
    main()
