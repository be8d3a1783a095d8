"""Memory as planned and as the kernel measured it, each run in a process of its own.

predict   26 combinations of model, batch, length, family, rank, recomputation and streaming: the plan's peak beside the
          process's, with two steps, a held-out loss and saving. Must be within 5 % or 12 MiB, and never under by more
          than 3 %.
budgets   SmolLM2-135M, 4 x 256 tokens a step, in 160M, 200M, 300M, 600M and without: `edgetune train` on text with
          --eval, to the end. Peaks must hold, losses must be the same as without.
smallest  the least budget in which SmolLM2-135M trains at 1 x 128 tokens.
large     a random llama of 1.1 billion weights (of `big`) in 350M, and resident: peak, and time a token, which must be
          at most 1.5 times the resident run's.
lengths   random models of the shapes of Llama-3.2-3B and Qwen2.5-3B at 1,024, 2,048 and 4,096 tokens, one row a step,
          30 % or all of its tokens supervised, each in the least budget, inputs of blocks on disk: the peak, beside
          that of arXiv 2606.19528 (an A100). And the time a token, beside weights and inputs in memory at 1,024.
experts   a random mixture of experts with 6.9 billion weights, of which a token takes 1.3 billion, in 2G, and resident;
          attention trained, then experts too.
embeddings  a random gemma4 of E2B's shape, one step on a row of random tokens: its embeddings of each block, 1.3 of
          2.6 GB, must not be in memory.

Peaks are VmHWM, and for `edgetune train` also what its tokenising process had. Exits with 1 if something does not hold.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab.common import MIB, add_usual, environment

WORDS = "the lamp is on and a small river runs through old town where people talk about rain and music"  # to draw from


# ---- predicted against measured ----


def combinations() -> Iterator[tuple[str, dict[str, Any]]]:
    """(model, options): SmolLM2 and random models of other families and sizes."""
    base = {"rank": 8, "batch_size": 4, "max_length": 256}
    again = {"recompute": "block"}
    for change in ({}, again, again | {"weights": "streamed"}, again | {"batch_size": 1, "max_length": 128},
                   again | {"rank": 32, "optimizer_state": "8bit"},
                   {"batch_size": 8, "max_length": 64}, {"precision": "exact", "batch_size": 2},
                   again | {"batch_size": 1, "max_length": 1024}, {"memory": "200M"},
                   {"rank": 16, "targets": "q_proj,v_proj", "blocks": "last:10"},
                   {"dropout": 0.1, "weights": "streamed"}):
        yield "smollm2", base | change
    yield "smollm2", {"batch_size": 4, "max_length": 256, "family": "full", "blocks": "last:4"}
    yield "smollm2", {"batch_size": 4, "max_length": 256, "family": "full", "blocks": "last:4", "memory": "350M"}
    for name in ("llama", "qwen2", "qwen3", "gemma3"):
        yield f"{name}-small", base | again
        yield f"{name}-wide", base | {"batch_size": 2}
        yield f"{name}-wide", base | again | {"weights": "streamed", "rank": 16}
    yield "llama-wide", base | {"batch_size": 16, "max_length": 128}


def write_model(name: str, folder: Path) -> Path:
    from tiny import write_tiny
    family, size = name.split("-")
    path = folder / f"{name}.gguf"
    if not path.exists():
        wide = size == "wide"
        write_tiny(path, family, "Q8_0" if wide else "Q4_0", d_model=1024 if wide else 256, n_blocks=8 if wide else 4,
                   n_heads=16 if wide else 4, n_kv_heads=4 if wide else 2, head_width=64, d_ff=2816 if wide else 768,
                   n_vocab=16000 if wide else 2000, n_context=2048, tied=family != "qwen3")
    return path


def one_run(model: str, options: dict[str, Any], steps: int = 2, share: float = 1.0) -> dict[str, Any]:
    """In this process: train steps on full rows, measure a loss, save. cpu: seconds of all threads in the steps. share:
    of a row's tokens, those that are supervised, its last ones.
    """
    from edgetune.bench.train import random_rows
    from edgetune.formats.bundle import open_bundle
    from edgetune.machine import device
    from edgetune.training.trainer import Trainer
    bundle = open_bundle(model)
    size = options["batch_size"]
    length = options["max_length"]
    trainer = Trainer(bundle, steps=steps, lengths=[length] * (steps * size), **options)
    rows = random_rows(trainer.model.shape.n_vocab, steps * size, length, seed=0)
    for row in rows:
        row.weights[:round((1 - share) * length)] = 0
    trainer.add_examples(rows)
    began = time.process_time()
    results = trainer.train()
    cpu = time.process_time() - began
    trainer.loss(trainer.examples[:1])
    with tempfile.TemporaryDirectory() as folder:
        trainer.save(Path(folder) / "adapter")
    return {"predicted": trainer.plan.peak_bytes, "measured": device.peak_rss(), "loss": results[-1].loss,
            "tokens_per_s": sum(step.tokens for step in results) / sum(step.seconds for step in results), "cpu": cpu,
            "streamed": trainer.plan.tradeoffs.streamed, "max_tokens": trainer.plan.tradeoffs.max_tokens}


def run_alone(model: Path, options: dict[str, Any], steps: int = 2, share: float = 1.0) -> dict[str, Any]:
    """`one_run` in another process."""
    code = (f"import json; from lab import memory; "
            f"print(json.dumps(memory.one_run({str(model)!r}, {options!r}, {steps}, {share})))")
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, env=environment())
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def predict(args: argparse.Namespace, folder: Path) -> tuple[list[dict[str, Any]], bool]:
    rows = []
    for name, options in combinations():
        model = args.model if name == "smollm2" else write_model(name, folder)
        row = run_alone(model, options)
        off = row["predicted"] - row["measured"]
        row["holds"] = (abs(off) <= max(0.05 * row["measured"], 12 * MIB)) and off >= -0.03 * row["measured"]
        rows.append({"model": name, "options": options, **row})
        print(f"{name:13} predicted {row['predicted'] / MIB:7.1f}  measured {row['measured'] / MIB:7.1f}  "
              f"{off / row['measured']:+6.1%}  {'ok' if row['holds'] else 'OFF'}  "
              f"{' '.join(f'{k}={v}' for k, v in options.items())}", flush=True)
    return rows, all(row["holds"] for row in rows)


# ---- budgets ----


def write_text(path: Path, n: int) -> Path:
    draw = random.Random(0)
    words = WORDS.split()
    path.write_text(" ".join(draw.choice(words) for _ in range(n)))
    return path


def train(model: Path, folder: Path, name: str, *options: str) -> dict[str, Any]:
    """`edgetune train` on random words; its run.json, losses of its steps, tokens/s of its last."""
    text = write_text(folder / "text.txt", 30_000)
    held_out = write_text(folder / "held.txt", 200)
    command = [sys.executable, "-m", "edgetune", "train", str(model), str(text), "--eval", str(held_out), "-o",
               str(folder / name), *options, "--json", "--no-govern"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    record = json.loads(done.stdout)
    if "error" in record:
        return record
    lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    return {"peak": record["peak_rss_mib"], "children": record["peak_children_mib"], "plan": record["plan"],
            "losses": [s["loss"] for s in steps], "held_out": record["held_out"]["loss_after"],
            "tokens_per_s": sum(s["tokens"] for s in steps) / sum(s["seconds"] for s in steps)}


def least_budget(model: Path, folder: Path, *options: str) -> int:
    """MiB, by the sentence that refuses less."""
    refused = train(model, folder, "none", *options, "--memory", "1M")
    return int(re.search(r"--memory (\d+)M", refused["hint"])[1])  # type: ignore[index]


def show(name: str, run: dict[str, Any], holds: bool) -> None:
    losses = " ".join(f"{x:.4f}" for x in run["losses"])
    print(f"{name:9} peak {run['peak']:.1f} (planned {run['plan']['peak_mib']:.1f}, tokenising {run['children']:.1f})  "
          f"{run['tokens_per_s']:6.1f} tokens/s  losses {losses}  held-out {run['held_out']:.4f}  "
          f"{'ok' if holds else 'OFF'}  {'; '.join(run['plan']['traded'])}", flush=True)


def budgets(args: argparse.Namespace, folder: Path) -> tuple[list[dict[str, Any]], bool]:
    common = ["--max-length", "256", "--batch-size", "4", "--steps", str(args.steps)]
    free = train(args.model, folder, "free", *common)
    show("free", free, True)
    rows = [{"budget": None, **free}]
    for budget in (600, 300, 200, 160):
        run = train(args.model, folder, f"m{budget}", *common, "--memory", f"{budget}M")
        apart = max(abs(a - b) for a, b in zip(run["losses"], free["losses"], strict=True))
        holds = max(run["peak"], run["children"]) <= budget and apart < 0.005
        show(f"{budget}M", run, holds)
        rows.append({"budget": budget, "holds": holds, **run})
    return rows, all(row.get("holds", True) for row in rows)


def smallest(args: argparse.Namespace, folder: Path) -> tuple[list[dict[str, Any]], bool]:
    common = ["--max-length", "128", "--batch-size", "1", "--steps", "4"]
    least = least_budget(args.model, folder, *common)
    run = train(args.model, folder, "least", *common, "--memory", f"{least}M")
    holds = max(run["peak"], run["children"]) <= least
    show(f"{least}M", run, holds)
    return [{"budget": least, "holds": holds, **run}], holds


def large(args: argparse.Namespace, folder: Path) -> tuple[list[dict[str, Any]], bool]:
    from lab import big
    model = args.large or big.write(folder / "big.gguf")
    common = ["--max-length", "256", "--batch-size", "4", "--steps", "2"]
    small = train(model, folder, "small", *common, "--memory", "350M")
    show("350M", small, small["peak"] <= 350)
    again = "none" if small["plan"]["kept"] > 1 else "block"
    same = ["--recompute", again, "--micro-batch", str(small["plan"]["max_tokens"])]
    resident = train(model, folder, "resident", *common, "--weights", "resident", *same)
    show("resident", resident, True)
    ratio = resident["tokens_per_s"] / small["tokens_per_s"]
    print(f"time a token: {ratio:.2f} times the resident run's")
    holds = max(small["peak"], small["children"]) <= 350 and ratio <= 1.5
    return [{"budget": 350, "holds": holds, "ratio": ratio, **small}, resident], holds


TABLE = 262144 * 8960 // 32 * 18  # bytes of the embeddings of each block in Q4_0
PAPER = {"llama3.2-3b": {1024: 0.70, 2048: 1.02, 4096: 1.59}, "qwen2.5-3b": {1024: 0.66, 2048: 1.01, 4096: 1.71}}
SHARE = 0.3  # of the tokens are supervised in PAPER, gigabytes


def lengths(args: argparse.Namespace, folder: Path) -> tuple[list[dict[str, Any]], bool]:
    from lab import big
    rows = []
    for name, theirs in PAPER.items():
        model = args.shapes / f"{name}.gguf" if args.shapes else big.write(folder / f"{name}.gguf", name)
        for length in theirs:
            least = least_budget(model, folder, "--max-length", str(length), "--batch-size", "1", "--steps", "1",
                                 "--anchors", "0", "--recompute", "disk")
            in_memory = {"recompute": "block", "weights": "resident"}
            for share, how in ((SHARE, {"recompute": "disk", "memory": f"{least}M"}),
                               (1.0, {"recompute": "disk", "memory": f"{least}M"}), (SHARE, in_memory)):
                if "memory" not in how and length > min(theirs):
                    continue  # only what a token takes is asked of it
                row = run_alone(model, {"rank": 8, "batch_size": 1, "max_length": length, **how}, steps=1, share=share)
                row["holds"] = "memory" not in how or (row["measured"] <= least * MIB
                                                       and row["measured"] <= theirs[length] * 1e9)
                print(f"{name} {length:5} tokens, {share:.0%} supervised, {how}: planned "
                      f"{row['predicted'] / MIB:.0f}, peak {row['measured'] / MIB:.1f} MiB = "
                      f"{row['measured'] / 1e9:.2f} GB, theirs {theirs[length]}; "
                      f"{length / row['cpu']:.1f} tokens a CPU second, {row['tokens_per_s']:.1f} a second  "
                      f"{'ok' if row['holds'] else 'OFF'}", flush=True)
                rows.append({"model": name, "length": length, "share": share, "budget": least, **how, **row})
    return rows, all(row["holds"] for row in rows)


def experts(args: argparse.Namespace, folder: Path) -> tuple[list[dict[str, Any]], bool]:
    from lab import big
    model = args.experts or big.write(folder / "experts.gguf", "olmoe")
    common = ["--max-length", "256", "--batch-size", "4", "--steps", "2", "--anchors", "0"]
    small = train(model, folder, "small", *common, "--memory", "2G")
    show("2G", small, small["peak"] <= 2048)
    resident = train(model, folder, "resident", *common, "--weights", "resident")
    show("resident", resident, True)
    print(f"time a token: {resident['tokens_per_s'] / small['tokens_per_s']:.2f} times the resident run's")
    named = ["--targets", "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj", "--rank", "2"]
    adapted = train(model, folder, "adapted", *common, *named, "--memory", "2G")
    show("experts", adapted, adapted["peak"] <= 2048)
    return [small, resident, adapted], max(small["peak"], adapted["peak"]) <= 2048


def embeddings(args: argparse.Namespace, folder: Path) -> tuple[list[dict[str, Any]], bool]:
    from lab import big
    model = args.embeddings or big.write(folder / "gemma4.gguf", "gemma4-e2b")
    rows = []
    for length, recompute, weights, share in ((512, "block", "resident", 1.0), (1024, "block", "resident", 1.0),
                                              (1024, "block", "resident", 0.3), (512, "block", "streamed", 1.0),
                                              (512, "none", "resident", 1.0)):
        row = run_alone(model, {"rank": 8, "batch_size": 1, "max_length": length, "recompute": recompute,
                                "weights": weights, "threads": 1}, steps=1, share=share)
        row["holds"] = row["measured"] < 1.03 * row["predicted"] and (
            recompute == "none" or row["measured"] < model.stat().st_size - TABLE + 512 * MIB)
        print(f"{length:5} tokens, {share:.0%} supervised, {recompute}, {weights}: "
              f"planned {row['predicted'] / MIB:.0f}, peak {row['measured'] / MIB:.0f} MiB  "
              f"{length / row['cpu']:.1f} tokens a CPU second", flush=True)
        rows.append({"length": length, "share": share, "recompute": recompute, "weights": weights, **row})
    return rows, all(row["holds"] for row in rows)


PARTS = {"predict": predict, "budgets": budgets, "smallest": smallest, "large": large, "lengths": lengths,
         "experts": experts, "embeddings": embeddings}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[], help="[all]")
    add_usual(parser, large=Path, shapes=Path, experts=Path, embeddings=Path, steps=6, json=Path)


def main(args: argparse.Namespace) -> bool:
    """large, experts, embeddings: what `big` wrote [made anew]; shapes: a folder of its llama3.2-3b and qwen2.5-3b.
    steps: of the budgets' runs.
    """
    results = {}
    good = True
    with tempfile.TemporaryDirectory() as folder:
        for name in args.parts or PARTS:
            results[name], holds = PARTS[name](args, Path(folder))
            good = good and holds
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    return not good
