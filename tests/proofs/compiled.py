"""A home's system message, alone and with tools, compiled once, compared with the same text in each request.

    python tests/proofs/compiled.py [--model GGUF] [--shared ../shared] [--answers 100] [--only alone tools]
                                    [--out compiled.jsonl]

The longest message of ../shared/data/home_assistant/systems.json is compiled by `lab compile-prompt`. Questions
are asked with the message in an empty cache, and with the adapter in an empty cache. For right answers to them, the
log p of each token is compared. Results are added to --out, and what it has is not measured again.

Exits with 1 unless the adapter leaves the question alone to be computed, the first token takes at most a quarter of the
time, and no log p differs by more than 0.01.
"""

import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from commands import run
from json_lines import read_lines
from proofs.compared import Result, arguments, end_with, folder_of, measure_missing

from edgetune.serving.llama import LlamaModel

NAME = "home"
WHERE = {"name": {"type": "string"}, "area": {"type": "string"}, "floor": {"type": "string"},
         "domain": {"type": "array", "items": {"type": "string"}}}
PERCENT = {"type": "integer", "minimum": 0, "maximum": 100}
INTENTS: dict[str, tuple[str, dict[str, Any]]] = {  # of Home Assistant: what they do, and their parameters
    "HassTurnOn": ("Turns on, opens or locks a device or all devices of an area", WHERE),
    "HassTurnOff": ("Turns off, closes or unlocks a device or all devices of an area", WHERE),
    "HassSetPosition": ("Sets the position of a cover or valve", {**WHERE, "position": PERCENT}),
    "HassSetVolume": ("Sets the volume of a media player", {**WHERE, "volume_level": PERCENT}),
}
TOOLS = [{"type": "function", "function": {"name": name, "description": what, "parameters": {
    "type": "object", "properties": properties}}} for name, (what, properties) in INTENTS.items()]
VARIANTS: dict[str, list[dict[str, Any]] | None] = {"alone": None, "tools": TOOLS}
Tools = list[dict[str, Any]] | None
TIMED = 5  # questions
SLOWEST = 0.25  # of the time that the text takes
FURTHEST = 0.01  # nats


def texts(served: LlamaModel, message: str, tools: Tools, rows: list[dict[str, Any]],
          answers: int) -> Iterator[tuple[list[int], int]]:
    """The tokens of questions with right answers, and how many are before the answer: of each question one, then of
    each a second one.
    """
    asked = [(row["sentence"], row["accepted"][i]) for i in (0, 1) for row in rows if i < len(row["accepted"])]
    for sentence, answer in asked[:answers]:
        messages = [{"role": "system", "content": message}, {"role": "user", "content": sentence}]
        before = served.tokenizer.encode(served.tokenizer.render(messages, tools, add_generation_prompt=True), bos=True)
        calls = "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in answer)
        said = calls if tools else json.dumps(answer)
        yield [*before, *served.tokenizer.encode(said, continues=True)], len(before)


def first_token(served: LlamaModel, tokens: list[int]) -> tuple[float, int]:
    """(seconds until the first token in an empty cache, tokens that were computed)."""
    computed: list[int] = []
    served.reset()
    served.cache.before_decode = lambda: computed.append(served.cache.batch.size)
    began = time.perf_counter()
    next(served.generate(tokens, max_tokens=1), None)
    return time.perf_counter() - began, sum(computed)


def log_p(served: LlamaModel, asked: list[tuple[list[int], int]]) -> np.ndarray:
    return np.concatenate([served.logprobs(tokens, np.arange(len(tokens)) >= before)[before:]
                           for tokens, before in asked])


def measured(model: Path, folder: Path, message: str, rows: list[dict[str, Any]], answers: int,
             variant: str) -> Result:
    tools = VARIANTS[variant]
    request = folder / f"{variant}.json"
    request.write_text(json.dumps({"messages": [{"role": "system", "content": message},
                                                {"role": "user", "content": "anything"}],
                                   **({"tools": tools} if tools else {})}))
    began = time.perf_counter()
    made = json.loads(run("lab", "compile-prompt", model, request, "-o", folder / variant, "--json"))
    seconds = time.perf_counter() - began
    result: Result = {"tokens": made["tokens"], "bytes": made["bytes"], "compile_seconds": seconds}
    with LlamaModel(model, context=4096) as served:
        served.load_adapter(folder / variant, NAME)
        asked = [*texts(served, message, tools, rows, answers)]
        found = {}
        for adapter in (None, NAME):
            served.use(adapter)
            times = [first_token(served, tokens[:before]) for tokens, before in asked[:TIMED]]
            which = adapter or "text"
            result[f"{which}_seconds"] = statistics.median(seconds for seconds, _ in times)
            result[f"{which}_computed"] = max(computed for _, computed in times)
            served.reset()
            found[which] = log_p(served, asked)
    result["answers"] = len(asked)
    result["furthest"] = float(np.abs(found[NAME] - found["text"]).max())
    result["question"] = max(before for _, before in asked[:TIMED]) - made["tokens"]
    return result


def told(result: Result) -> str:
    return (f"{result['variant']}: {result['tokens']} tokens, {result['bytes'] >> 20} MiB, compiled in "
            f"{result['compile_seconds']:.1f} s; first token {result['text_seconds']:.3f} s with the text, "
            f"{result['home_seconds']:.3f} s compiled; {result['text_computed']} and {result['home_computed']} tokens "
            f"computed; log p of {result['answers']} answers differ by {result['furthest']:.2g} at most")


def main() -> None:
    parser = arguments(__doc__, "compiled.jsonl", VARIANTS)
    parser.add_argument("--answers", type=int, default=100)
    args = parser.parse_args()
    data = args.shared / "data" / "home_assistant"
    systems = json.loads((data / "systems.json").read_text())
    rows = [row for row in read_lines(data / "assist.jsonl") if row["accepted"]]
    results = measure_missing(args, [{"variant": variant} for variant in args.only], lambda variant: measured(
        args.model, folder_of(args), max(systems.values(), key=len), rows, args.answers, variant), told)
    end_with({"only the question is computed": all(r["home_computed"] <= r["question"] for r in results),
              "the first token in a quarter of the time": all(
                  r["home_seconds"] <= SLOWEST * r["text_seconds"] for r in results),
              "the same log p": all(r["furthest"] <= FURTHEST for r in results)})


if __name__ == "__main__":
    main()
