"""A home's system message, compiled once, compared with the same text in each request.

    python tests/proofs/compiled.py [--model GGUF] [--shared ../shared] [--homes 1] [--answers 100]
                                    [--out compiled.jsonl]

Each home's message (of ../shared/data/home_assistant/systems.json) is compiled by `edgetune compile-prompt`. Questions
of that home are asked with the message in an empty cache, and with the adapter in an empty cache. For right answers to
them, the log p of each token is compared. Results are added to --out, and a home that it has is not measured again.

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
TIMED = 5  # questions
SLOWEST = 0.25  # of the time that the text takes
FURTHEST = 0.01  # nats


def texts(served: LlamaModel, message: str, rows: list[dict[str, Any]]) -> Iterator[tuple[list[int], int]]:
    """The tokens of each question with its right answer, and how many are before the answer."""
    for row in rows:
        messages = [{"role": "system", "content": message}, {"role": "user", "content": row["sentence"]}]
        asked = served.tokenizer.render(messages, None, add_generation_prompt=True)
        before = served.tokenizer.encode(asked, bos=True)
        yield [*before, *served.tokenizer.encode(json.dumps(row["accepted"][0]), continues=True)], len(before)


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


def measured(model: Path, folder: Path, message: str, rows: list[dict[str, Any]], home: str) -> Result:
    (folder / f"{home}.txt").write_text(message)
    began = time.perf_counter()
    made = json.loads(run("compile-prompt", model, folder / f"{home}.txt", "-o", folder / home, "--json"))
    seconds = time.perf_counter() - began
    result: Result = {"tokens": made["tokens"], "bytes": made["bytes"], "compile_seconds": seconds}
    with LlamaModel(model, context=4096) as served:
        served.load_adapter(folder / home, NAME)
        asked = [*texts(served, message, rows)]
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
    return (f"{result['home']}: {result['tokens']} tokens, {result['bytes'] >> 20} MiB, compiled in "
            f"{result['compile_seconds']:.1f} s; first token {result['text_seconds']:.3f} s with the text, "
            f"{result['home_seconds']:.3f} s compiled; {result['text_computed']} and {result['home_computed']} tokens "
            f"computed; log p of {result['answers']} answers differ by {result['furthest']:.2g} at most")


def main() -> None:
    parser = arguments(__doc__, "compiled.jsonl")
    parser.add_argument("--homes", type=int, default=1)
    parser.add_argument("--answers", type=int, default=100)
    args = parser.parse_args()
    data = args.shared / "data" / "home_assistant"
    systems = json.loads((data / "systems.json").read_text())
    rows = [row for row in read_lines(data / "assist.jsonl") if row["accepted"]]
    longest = sorted(systems, key=lambda home: -len(systems[home]))[:args.homes]
    results = measure_missing(args, [{"home": home} for home in longest], lambda home: measured(
        args.model, folder_of(args), systems[home], rows[:args.answers], home), told)
    end_with({"only the question is computed": all(r["home_computed"] <= r["question"] for r in results),
              "the first token in a quarter of the time": all(
                  r["home_seconds"] <= SLOWEST * r["text_seconds"] for r in results),
              "the same log p": all(r["furthest"] <= FURTHEST for r in results)})


if __name__ == "__main__":
    main()
