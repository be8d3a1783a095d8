"""A home's system message, compiled once by `edgetune lab compile-prompt`, compared with the same text in each request.

The message is the longest of ../shared/data/home_assistant/systems.json. Questions are asked in an empty cache, with
the message and with the adapter. For right answers to them, the log p of each token is compared.

Exits with 1 unless the adapter leaves the question alone to be computed, the first token takes at most a quarter of the
time, and no log p differs by more than 0.01.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from json_lines import read_lines
from lab.common import Row, add_usual, edgetune, end_with, served

TIMED = 5  # questions
SLOWEST = 0.25  # of the time that the text takes
FURTHEST = 0.01  # nats
Asked = list[tuple[list[int], int]]  # tokens of a question with its right answer, and how many are before the answer


def texts(tokenizer: Any, message: str, rows: list[Row], answers: int) -> Asked:
    """Of each question one answer, then of each a second one."""
    found = []
    for sentence, answer in [(row["sentence"], row["accepted"][i]) for i in (0, 1) for row in rows
                             if i < len(row["accepted"])][:answers]:
        messages = [{"role": "system", "content": message}, {"role": "user", "content": sentence}]
        before = tokenizer.encode(tokenizer.render(messages, add_generation_prompt=True), bos=True)
        found.append(([*before, *tokenizer.encode(json.dumps(answer), continues=True)], len(before)))
    return found


def first_token(opened: Any, tokens: list[int]) -> tuple[float, int]:
    """(seconds until the first token in an empty cache, tokens that were computed)."""
    computed: list[int] = []
    opened.reset()
    opened.cache.before_decode = lambda: computed.append(opened.cache.batch.size)
    began = time.perf_counter()
    next(opened.generate(tokens, max_tokens=1), None)
    return time.perf_counter() - began, sum(computed)


def measured(opened: Any, asked: Asked) -> tuple[float, int, np.ndarray]:
    """(seconds to the first token, tokens computed for it, the log p of all answers' tokens)"""
    times = [first_token(opened, tokens[:before]) for tokens, before in asked[:TIMED]]
    opened.reset()
    log_p = [opened.logprobs(tokens, np.arange(len(tokens)) >= before)[before:] for tokens, before in asked]
    return statistics.median(seconds for seconds, _ in times), max(each for _, each in times), np.concatenate(log_p)


def options(parser: argparse.ArgumentParser) -> None:
    add_usual(parser, answers=100)


def main(args: argparse.Namespace) -> None:
    data = args.shared / "data" / "home_assistant"
    message = max(json.loads((data / "systems.json").read_text()).values(), key=len)
    rows = [row for row in read_lines(data / "assist.jsonl") if row["accepted"]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "home.txt").write_text(message)
        made = edgetune("lab", "compile-prompt", args.model, folder / "home.txt", "-o", folder / "home", "--json")
        with served(args.model, folder / "home", context=4096) as opened:
            asked = texts(opened.tokenizer, message, rows, args.answers)
            seconds, computed, log_p = measured(opened, asked)
            opened.use(None)
            text_seconds, text_computed, text_log_p = measured(opened, asked)
    furthest = float(np.abs(log_p - text_log_p).max())
    print(f"{made['tokens']} tokens, {made['bytes'] >> 20} MiB; first token {text_seconds:.3f} s with the text, "
          f"{seconds:.3f} s compiled; {text_computed} and {computed} tokens computed")
    question = max(before for _, before in asked[:TIMED]) - made["tokens"]
    end_with({"only the question is computed": computed <= question,
              "the first token in a quarter of the time": seconds <= SLOWEST * text_seconds,
              f"log p of {len(asked)} answers differ by {furthest:.2g} at most": furthest <= FURTHEST})
