"""kill -9 at random moments, resume, and the same bytes in the end.

--experts: of a run that trains the experts of a mixture, whose weights are streamed.
--method grpo: of a run that learns from rewards of its answers, four steps and two updates from the same ones.

`edgetune train` on a tiny model is killed at a random moment and started again with --resume, until it gets through. It
saves its state all the time, so that many kills fall into saving. In the end its adapter.gguf must have the bytes of a
run that nobody disturbed; after every kill each checkpoint must be whole, and the newest not older than before.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lab.common import add, environment
from tiny import write_tiny

from edgetune.adapters.store import read_run
from edgetune.training import checkpoint

STEPS = 240
LONGEST = 0.15  # seconds from the first sign of life to the kill
OPTIONS = ["--rank", "4", "--max-length", "64", "--batch-size", "4", "--micro-batch", "64",
           "--dropout", "0.1", "--eval-every", "40", "--lr", "0.01", "--threads", "1", "--checkpoint-every", "0.005",
           "--no-answers"]
GRPO = ["--method", "grpo", "--grader", "grader.json", "--steps-per-generation", "4", "--num-iterations", "2",
        "--max-completion-length", "8", "--beta", "0.05"]
EXPERTS = ["--targets", "q_proj,gate_proj,up_proj,down_proj", "--weights", "streamed"]


def prove(folder: Path, kills: int, seed: int = 0, options: Sequence[str] = (), steps: int = STEPS,
          architecture: str = "llama") -> dict[str, int]:
    """Counts of what the kills met; AssertionError for the first thing that is wrong."""
    write_inputs(folder, architecture)
    options = ["--steps", str(steps), *options]
    whole = folder / "whole"
    error = train(folder, whole, options).communicate()[1]
    assert (whole / "adapter.gguf").exists(), error
    rng = random.Random(seed)
    met = Counter[str]()
    run = 0
    while sum(met.values()) < kills:
        out = folder / f"run-{run}"
        run = run + 1
        met += kill_until_done(folder, out, rng, kills - sum(met.values()), options)
        assert (out / "adapter.gguf").read_bytes() == (whole / "adapter.gguf").read_bytes(), f"{out.name}: other bytes"
        names, wanted = ({path.name for path in each.iterdir()} for each in (out, whole))
        assert names == wanted
        assert steps_of(out) == list(range(1, steps + 1))
    return dict(met)


def kill_until_done(folder: Path, out: Path, rng: random.Random, most: int, options: Sequence[str]) -> Counter[str]:
    """One run, killed until it got through or was killed `most` times; counts of what the kills met."""
    met = Counter[str]()
    safe = -1
    while True:
        process = train(folder, out, options)
        wait_for_life(process, out)
        if sum(met.values()) < most:
            time.sleep(rng.uniform(0, LONGEST))
            process.kill()
        error = process.communicate()[1]
        if process.returncode != -signal.SIGKILL:
            assert process.returncode == 0 or "is finished" in error, error
            return met
        met[moment(out)] += 1
        safe = check(out, safe)


def write_inputs(folder: Path, architecture: str) -> None:
    write_tiny(folder / "model.gguf", architecture, formats="Q8_0")
    rows = [{"prompt": f"turn on lamp {i}", "completion": json.dumps({"lamp": i})} for i in range(24)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    grader = {"type": "text_similarity", "name": "near", "input": "{{ sample.output_text }}",
              "reference": "{{ item.completion }}", "evaluation_metric": "fuzzy_match"}
    (folder / "grader.json").write_text(json.dumps(grader))


def train(folder: Path, out: Path, options: Sequence[str]) -> subprocess.Popen[str]:
    resume = ["--resume"] if out.exists() else []
    command = [sys.executable, "-m", "edgetune", "train", "model.gguf", "rows.jsonl", "--eval", "rows.jsonl", "-o",
               out.name, *OPTIONS, *options, *resume]
    return subprocess.Popen(command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True)


def wait_for_life(process: subprocess.Popen[str], out: Path) -> None:
    """Until it has touched its folder: what comes before is Python's start, and nothing to lose."""
    before = out.stat().st_mtime_ns if out.exists() else 0
    while process.poll() is None and not (out.exists() and out.stat().st_mtime_ns != before):
        time.sleep(0.001)


def moment(out: Path) -> str:
    """What the process was doing when it was killed, as its folder tells."""
    names = {path.name for path in out.iterdir()}
    if any(name.startswith("checkpoint-") and name.endswith(".tmp") for name in names):
        return "inside saving a checkpoint"
    if any(name.endswith(".tmp") for name in names) or "adapter.gguf" in names:
        return "inside saving the adapter"
    if len(checkpoint.found(out)) > checkpoint.KEPT:
        return "before the oldest checkpoint was removed"
    return "between" if checkpoint.found(out) else "before the first checkpoint"


def check(out: Path, safe: int) -> int:
    """The newest step that is safe: not less than before; no checkpoint is damaged."""
    if read_run(out).get("status") == "done":  # the checkpoints may go
        return safe
    if not checkpoint.found(out):
        assert safe < 0, f"{out} lost its checkpoints"
        return -1
    newest, wrong = checkpoint.newest(out)
    assert not wrong, wrong
    assert newest.meta["step"] >= safe
    return int(newest.meta["step"])


def steps_of(out: Path) -> list[int]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if line["event"] == "step"]


def options(parser: argparse.ArgumentParser) -> None:
    add(parser, kills=200, seed=0, experts=False)
    parser.add_argument("--method", choices=["sft", "grpo"], default="sft")


def main(args: argparse.Namespace) -> None:
    more = [*(GRPO if args.method == "grpo" else ()), *(EXPERTS if args.experts else ())]
    with tempfile.TemporaryDirectory() as place:
        start = time.monotonic()
        counts = prove(Path(place), args.kills, args.seed, more, architecture="olmoe" if args.experts else "llama")
    for what, count in sorted(counts.items(), key=lambda item: -item[1]):
        print(f"{count:4} kills {what}")
    print(f"{sum(counts.values())} kills, every run ended in the same bytes; {time.monotonic() - start:.0f} s")
