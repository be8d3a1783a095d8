"""Adapter families compared on Snips: the same rows, steps and batches, each family with its own learning rate.

    python tests/proofs/families.py [--rows 1000] [--held-out 300] [--seeds 0,1,2] [--rates 5e-4,1e-3,2e-3,4e-3,8e-3]
                                    [--only sora bitfit ...] [--out FILE]

The recipe is that of peers/snips.py: one epoch in batches of 8, alpha 16, 10 steps of warm-up, then linear to 0. A rate
is chosen for each family by the loss on TUNING other rows, with one seed more; --rates are LoRA's, and of other
families times their `rate`. With it each seed is trained, and llama.cpp answers the held-out rows: their loss, and
which answers and which intents are exact. An adapter that llama.cpp does not apply is merged before. Of dylora each cut
is measured, too, with LoRA trained at that rank. Results are added to --out, and what it already holds is not measured
again, so that the proof can run in pieces.

Exits with 1 unless a family wins against LoRA at about its parameters or fewer; dylora is within 5 % of LoRA's loss at
the ranks 4 and 8; and sora or adalora has at most 70 % of LoRA's bytes at its loss.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from json_lines import read_lines, write_lines
from peers.snips import SYSTEM
from proofs.compared import Result, Row, arguments, by_variant, edgetune, end_with, folder_of, measure_missing, paired

from edgetune.adapters.base import MERGED, Family, family_named
from edgetune.adapters.store import FILE
from edgetune.data.dataset import load_rows
from edgetune.evaluation.served import exact_match, served_loss
from edgetune.options import declared
from edgetune.serving.llama import LlamaModel

LORA = "lora"
CUT = "dylora cut to "
LAST = ["--blocks", "last:4"]
RANKS = (1, 2, 4, 8)
VARIANTS: dict[str, Sequence[object]] = {
    LORA: ["--rank", 8], "rslora": ["--rank", 8, "--rslora"], "lora+": ["--rank", 8, "--lora-plus", 16],
    "adalora": ["--family", "adalora"], "dylora": ["--family", "dylora"], "sora": ["--family", "sora"],
    "lora-dropout": ["--family", "lora-dropout"], "lora-fa": ["--family", "lora-fa"],
    "bitfit": ["--family", "bitfit"], "full": ["--family", "full"],
    "full last:4": ["--family", "full", *LAST], "lora last:4": ["--rank", 8, *LAST],
    **{f"lora r={rank}": ["--rank", rank] for rank in RANKS if rank != 8}}
RECIPE = ["--epochs", 1, "--batch-size", 8, "--warmup", 10, "--max-length", 256, "--anchors", 0, "--system", SYSTEM,
          "--no-answers", "--eval-every", 10**6, "--no-govern"]
TUNING = 150  # rows that choose a rate
SEED = 100  # of these trainings
WITHIN = 1.05  # of LoRA's loss
BYTES = 0.7  # of LoRA's


def family_of(variant: str) -> type[Family]:
    words = VARIANTS[variant]
    return family_named(str(words[1]) if words[0] == "--family" else LORA)


def trained(args: argparse.Namespace, variant: str, rate: float, seed: int, held_out: Path) -> tuple[Path, Row, float]:
    """The adapter's folder, its record and the seconds of the command."""
    out = folder_of(args) / f"{variant}-{rate:g}-{seed}"
    alpha = ["--alpha", 16] if "alpha" in [spec.name for spec in declared(family_of(variant))] else []
    began = time.monotonic()
    if not (out / FILE).is_file():
        edgetune("train", args.model, part_of(args, "train"), "-o", out, *VARIANTS[variant], *RECIPE, *alpha, "--lr",
                 rate, "--seed", seed, "--eval", held_out, "--json")
    return out, json.loads((out / "run.json").read_text()), time.monotonic() - began


def part_of(args: argparse.Namespace, name: str) -> Path:
    """A file with rows to train on, with other rows that choose a rate, or with those held out."""
    train = read_lines(args.shared / "data" / "snips_train.jsonl")
    rows = {"train": train[:args.rows], "tuning": train[-min(TUNING, args.held_out):],
            "held": read_lines(args.shared / "data" / "snips_dev.jsonl")[:args.held_out]}
    return write_lines(folder_of(args) / f"{name}.jsonl", rows[name])


def tuned(args: argparse.Namespace, variant: str, rate: float) -> Result:
    _, record, _ = trained(args, variant, rate, SEED, part_of(args, "tuning"))
    return {"loss": record["held_out"]["loss_after"]}


def measured(args: argparse.Namespace, rates: dict[str, float], variant: str, seed: int) -> Result:
    held = part_of(args, "held")
    trains, _, rank = variant.partition(CUT)
    name = "dylora" if rank else trains
    out, record, seconds = trained(args, name, rates[name], seed, held)
    if rank:
        whole = out
        out = whole.with_name(f"{whole.name}-cut{rank}")
        if not out.exists():
            edgetune("export", whole, "--rank", rank, "--base", args.model, "-o", out, "--json")
    served_by = edgetune("info", out, "--json")["answered_by"]
    model = args.model
    if served_by == MERGED:
        model = out.with_name(f"{out.name}.gguf")
        if not model.exists():
            edgetune("merge", args.model, out, "-o", model, "--json")
    with LlamaModel(model) as served:
        if model == args.model:
            served.load_adapter(out, variant)
            served.use(variant)
        rows = load_rows(read_lines(held), served.tokenizer, max_length=256, system=SYSTEM)
        loss, _ = served_loss(served, rows)
        answers = exact_match(served, rows, system=SYSTEM)
    return {"rate": rates[name], "loss": loss, "exact": [answer.correct for answer in answers],
            "intent": [intent(answer.answer) == intent(answer.expected) for answer in answers],
            "parameters": record["parameters"], "bytes": (out / FILE).stat().st_size, "seconds": round(seconds, 1),
            "served_by": served_by}


def intent(answer: str) -> object:
    try:
        found = json.loads(answer)
    except ValueError:
        return answer
    return found.get("intent") if isinstance(found, dict) else found


# ---- what the results say ----


def line(result: Result) -> str:
    shares = "  ".join(f"{name} {share(result, name)}" for name in ("exact", "intent"))
    return (f"{result['variant']:18} lr {result['rate']:<7g} loss {result['loss']:.4f}  {shares}  "
            f"{result['parameters']:>9,} parameters  {result['bytes']:>10,} bytes  {result['seconds']:>6g} s  "
            f"{result['served_by']}")


def share(result: Result, name: str) -> str:
    return f"{statistics.fmean(result[name]):6.1%}"


def mean(runs: Sequence[Result], name: str) -> float:
    return statistics.fmean(run[name] for run in runs)


def merged(runs: Sequence[Result]) -> Result:
    """The means over the seeds; of answers, all of them."""
    found = {**runs[0], **{name: mean(runs, name) for name in ("loss", "bytes", "seconds")}}
    found |= {name: [value for run in runs for value in run[name]] for name in ("exact", "intent")}
    return found | {"bytes": round(found["bytes"]), "seconds": round(found["seconds"])}


def targets(found: dict[str, list[Result]]) -> dict[str, bool]:
    """Those that the measured variants can show."""
    plain = found[LORA]
    small = [name for name, runs in found.items() if runs[0]["parameters"] <= 1.1 * plain[0]["parameters"]]
    better = [name for name in small if (both := paired(found[name], plain, "exact")).wins > both.losses
              and both.p_two_sided < 0.05]
    reached = {f"a family wins at LoRA's parameters: {', '.join(better) or 'none does'}": bool(better)}
    for rank in (4, 8):
        other = LORA if rank == 8 else f"lora r={rank}"
        if (cut := found.get(f"{CUT}{rank}")) and other in found:
            ratio = mean(cut, "loss") / mean(found[other], "loss")
            reached[f"dylora cut to {rank}: {ratio:.3f} of LoRA's loss at that rank"] = ratio <= WITHIN
    pruned = {name: mean(found[name], "bytes") / mean(plain, "bytes") for name in ("sora", "adalora")
              if name in found and mean(found[name], "loss") <= mean(plain, "loss")}
    if "sora" in found or "adalora" in found:
        least = min(pruned.values(), default=1.0)
        reached[f"bytes at LoRA's loss: {least:.0%} of LoRA's"] = least <= BYTES
    return reached


def main() -> None:
    parser = arguments(__doc__, "families.jsonl", VARIANTS, seeds=True)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--held-out", type=int, default=300)
    parser.add_argument("--rates", type=lambda text: [float(rate) for rate in text.split(",")],
                        default=[5e-4, 1e-3, 2e-3, 4e-3, 8e-3])
    args = parser.parse_args()
    args.only = [LORA, *(name for name in args.only if name != LORA)]
    grid = [{"phase": "rate", "variant": name, "rate": rate * family_of(name).rate}
            for name in args.only for rate in args.rates]
    found = measure_missing(args, grid, lambda variant, rate, phase: tuned(args, variant, rate),  # noqa: ARG005
                            lambda result: f"{result['variant']:18} lr {result['rate']:<7g} loss {result['loss']:.4f}")
    rates = {name: min((run["loss"], run["rate"]) for run in found if run.get("phase") == "rate"
                       and run["variant"] == name)[1] for name in args.only}
    cuts = [f"{CUT}{rank}" for rank in RANKS] if "dylora" in args.only else []
    cases = [{"phase": "seed", "variant": name, "seed": seed} for seed in args.seeds for name in [*args.only, *cuts]]
    found = measure_missing(args, cases, lambda variant, seed, phase: measured(args, rates, variant, seed),  # noqa: ARG005
                            line)
    of_variant = by_variant([run for run in found if run["phase"] == "seed"])
    print(f"\nmeans of {len(args.seeds)} seeds")
    for runs in of_variant.values():
        print(line(merged(runs)))
    end_with(targets(of_variant))


if __name__ == "__main__":
    main()
