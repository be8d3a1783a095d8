"""Training speed, start and memory of edgetune beside PEFT: same model, token ids, shapes and machine, alternately.

--snips: rows a second on completion-only rows; --instruction: the same, of 60 random tokens behind an instruction of
300, both against PEFT bf16. --length 2048: edgetune on one row of so many tokens against 1x256.

Model: SmolLM2-135M; PEFT trains the dequantized GGUF. LoRA r = 8, alpha 16, all seven projections, AdamW lr 1e-3, every
position supervised (rows: the completion only, batch 8, padded for PEFT). Every measurement is a process of its own,
so that peak memory and the time from the command to the end of the first step are its own; a torch.compile finds an
empty cache. PEFT is as fast as it gets: weights and adapter in the dtype itself, sdpa attention, fused AdamW, nothing
recomputed; of its shapes the best counts, in speed, memory and start, of edgetune's the fastest. A ratio is taken in
each round; median (least to most) is printed.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from lab.common import SNIPS, add, add_usual, again
from lab.snips import Row, padded

PEERS = ("peft-fp32", "peft-bf16", "peft-bf16-compile", "peft-nf4")
FP32_COMPILED = "peft-fp32-compile"  # only if asked for: for a CPU that does not multiply bf16
WARM = 2  # steps of a process that are not counted
ROWS = 96  # of Snips, and behind an instruction
OF_ROWS = ("snips", "instruction")  # shapes that are batches of 8 of these

Step = Callable[[list[Row]], float]  # trains on a batch, the next of the data -> its loss
Results = dict[str, list[dict[str, Any]]]  # label -> one result a round


# ---- in a process of its own: what is measured ----------------------------------------------------------------------

def batches(folder: Path, shape: str) -> list[list[Row]]:
    """The batches that the steps go through again and again: one of B x T, or rows in batches of 8."""
    if shape in OF_ROWS:
        saved = np.load(folder / "rows.npz")
        cuts = saved["lengths"].cumsum()[:-1]
        rows = list(zip(np.split(saved["tokens"], cuts), np.split(saved["weights"], cuts), strict=True))
        return [rows[i:i + 8] for i in range(0, len(rows), 8)]
    b, t = map(int, shape.split("x"))
    weights = np.ones(t, np.float32)
    weights[0] = 0
    return [[(row, weights) for row in np.load(folder / "text.npy")[:b * t].reshape(b, t)]]


def edgetune_step(args: argparse.Namespace, data: list[list[Row]]) -> Step:
    import edgetune
    from edgetune.data.packing import Example
    rows = [row for batch in data for row in batch]
    longest = max(ids.size for ids, _ in rows)
    whole = max(sum(ids.size for ids, _ in batch) for batch in data)
    trainer = edgetune.Trainer(
        args.model, rank=8, alpha=16.0, lr=1e-3, schedule="constant", warmup=0.0, max_grad_norm=0.0, steps=10**6,
        batch_size=len(data[0]), max_length=longest, micro_batch=args.micro_batch or whole, shuffle=False,
        recompute=args.recompute, memory=args.memory, threads=args.cores,
        precision=args.contender.removeprefix("edgetune-"))
    trainer.add_examples([Example(ids.astype(np.int32), weights) for ids, weights in rows])
    return lambda _batch: trainer.step().loss


def peft_step(args: argparse.Namespace) -> Step:
    if args.contender != "peft-nf4":
        sys.modules["bitsandbytes"] = None  # type: ignore[assignment]  # PEFT would import it: a second and 60 MiB
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    torch.set_num_threads(args.cores)
    dtype = torch.float32 if args.contender.startswith("peft-fp32") else torch.bfloat16
    options: dict[str, Any] = {}
    if args.contender == "peft-nf4":
        nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",  # type: ignore[no-untyped-call]
                                 bnb_4bit_compute_dtype=dtype)
        options = {"device_map": {"": "cpu"}, "quantization_config": nf4}
    folder = args.folder / str(dtype).removeprefix("torch.")
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa", **options)
    base.config.use_cache = False
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM"),
                           autocast_adapter_dtype=False)
    for parameter in model.parameters():  # bitsandbytes leaves the adapter in fp32
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0,
                                  fused=True)
    run = torch.compile(model) if args.contender.endswith("-compile") else model

    def step(batch: list[Row]) -> float:
        loss = run(**padded(batch)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The steps of one contender on one shape. seconds: of a counted step, median (rows: mean, batches differ)."""
    data = batches(args.folder, args.shape)
    step = edgetune_step(args, data) if args.contender.startswith("edgetune") else peft_step(args)
    seconds = []
    losses = []
    first = 0.0
    for i in range(WARM + (len(data) if args.shape in OF_ROWS else args.steps)):
        began = time.monotonic()
        losses.append(step(data[i % len(data)]))
        seconds.append(time.monotonic() - began)
        first = first or time.monotonic() - args.began
    counted = seconds[WARM:]
    typical = sum(counted) / len(counted) if args.shape in OF_ROWS else median(counted)
    rows, tokens = (sum(f(b) for b in data) / len(data) for f in (len, lambda b: sum(ids.size for ids, _ in b)))
    return {"contender": args.contender, "shape": args.shape, "tokens_per_s": tokens / typical, "step_s": typical,
            "rows_per_s": rows / typical, "first_step_s": first, "loss_first": losses[0], "loss_last": losses[-1],
            "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def save_rows(folder: Path, rows: list[Row]) -> None:
    np.savez(folder / "rows.npz", tokens=np.concatenate([ids for ids, _ in rows]),
             weights=np.concatenate([weights for _, weights in rows]), lengths=[ids.size for ids, _ in rows])


def prepare(args: argparse.Namespace) -> None:
    """Writes what the contenders read into the folder: text.npy, rows.npz, the model for PEFT."""
    import edgetune
    tokenizer = edgetune.Tokenizer(args.model)
    text = args.shared / "data" / "wikitext2_valid.txt"
    np.save(args.folder / "text.npy", np.array(tokenizer.encode(text.read_text()[:100_000])) if text.exists()
            else np.random.default_rng(0).integers(0, tokenizer.n_vocab, 16384))
    if args.snips:
        lines = (args.shared / "data" / "snips_train.jsonl").read_text().splitlines()[:ROWS]
        examples = edgetune.load_rows([json.loads(line) for line in lines], tokenizer, max_length=256,
                                      system=SNIPS).examples
        save_rows(args.folder, [(e.tokens, e.weights) for e in examples])
    if args.instruction:
        tokens = np.random.default_rng(0).integers(1000, 40_000, (ROWS, 360), np.int32)
        tokens[:, :300] = tokens[0, :300]
        save_rows(args.folder, [(row, (np.arange(360) >= 300).astype(np.float32)) for row in tokens])
    if not args.length:
        import torch
        from transformers import AutoModelForCausalLM
        model: Any = AutoModelForCausalLM.from_pretrained(args.model.parent, gguf_file=args.model.name,
                                                          dtype=torch.float32)
        model.hf_quantizer = None  # nothing is quantized any more, which transformers would not believe
        vars(model.config).pop("quantization_config", None)
        for dtype in (torch.float32, torch.bfloat16):
            model.to(dtype).save_pretrained(args.folder / str(dtype).removeprefix("torch."))


# ---- the parent: stays small, since a child's peak memory begins with its parent's ----------------------------------

def child(args: argparse.Namespace, folder: Path, *more: str) -> str:
    keep = [f"--{name}={getattr(args, name.replace('-', '_'))}"
            for name in ("shared", "steps", "recompute", "memory", "micro-batch", "model", "cores")]
    with tempfile.TemporaryDirectory() as cache:
        env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache, "OMP_NUM_THREADS": str(args.cores), "HF_HUB_OFFLINE": "1"}
        return again("speed", *keep, f"--folder={folder}", f"--began={time.monotonic()}", *more, env=env)


def alternate(args: argparse.Namespace, folder: Path, work: dict[str, list[str]]) -> Results:
    """All of the work in each round, one after another."""
    results: Results = {label: [] for label in work}
    for number in range(args.rounds):
        for label, options in work.items():
            result = json.loads(child(args, folder, *options).splitlines()[-1])
            if not result["loss_last"] < result["loss_first"]:
                sys.exit(f"{label} does not train: loss {result['loss_first']} -> {result['loss_last']}")
            results[label].append(result)
            print(f"round {number + 1} {label:26} {result['tokens_per_s']:8.0f} tokens/s  first step "
                  f"{result['first_step_s']:6.1f} s  {result['peak_rss_mib']:6.0f} MiB  loss {result['loss_first']:.3f}"
                  f" -> {result['loss_last']:.3f}", file=sys.stderr)
    return results


def runs_of(results: Results, contender: str) -> list[list[dict[str, Any]]]:
    """A round's results of the contender, one a shape, for every round."""
    return [list(runs) for runs in zip(*(r for r in results.values() if r[0]["contender"] == contender), strict=True)]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    found = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    return {"median": median(found), "least": found[0], "most": found[-1], "of": median(ours), "to": median(theirs)}


def compare_peers(args: argparse.Namespace, folder: Path) -> tuple[Results, dict[str, dict[str, float]]]:
    ours = f"edgetune-{args.precision}"
    work = {f"{name} {shape}": [f"--contender={name}", f"--shape={shape}"]
            for name in (ours, *args.peers) for shape in args.shapes}
    results = alternate(args, folder, work)
    ratios = {}
    fastest = [max(runs, key=lambda run: run["tokens_per_s"]) for runs in runs_of(results, ours)]
    for peer in args.peers:
        rounds = runs_of(results, peer)
        for what, pick in (("tokens_per_s", max), ("peak_rss_mib", min), ("first_step_s", min)):  # its best shape
            ratios[f"{what}, {ours} / {peer}"] = ratio([run[what] for run in fastest],
                                                       [pick(run[what] for run in runs) for runs in rounds])
    return results, ratios


def compare_lengths(args: argparse.Namespace, folder: Path) -> tuple[Results, dict[str, dict[str, float]]]:
    """edgetune on one long row against itself on the first shape."""
    base = args.shapes[0]
    long = f"1x{args.length}"
    results = alternate(args, folder, {shape: [f"--contender=edgetune-{args.precision}", f"--shape={shape}"]
                                       for shape in (base, long)})
    return results, {f"{what}, {long} / {base}": ratio(*([r[what] for r in results[shape]] for shape in (long, base)))
                     for what in ("tokens_per_s", "peak_rss_mib")}


def compare_rows(args: argparse.Namespace, folder: Path) -> tuple[Results, dict[str, dict[str, float]]]:
    names = (f"edgetune-{args.precision}", "peft-bf16")
    shape = "snips" if args.snips else "instruction"
    results = alternate(args, folder, {f"{n} {shape}": [f"--contender={n}", f"--shape={shape}"] for n in names})
    ours, theirs = ([r["rows_per_s"] for r in found] for found in results.values())
    return results, {f"rows_per_s, {names[0]} / {names[1]}": ratio(ours, theirs)}


def options(parser: argparse.ArgumentParser) -> None:
    """shapes: rows x tokens. precision, recompute, memory, micro_batch: edgetune's. cores: threads of everybody. steps:
    counted in a process, after two to warm up.
    """
    modes = parser.add_mutually_exclusive_group()
    add(modes, length=0, snips=False, instruction=False)
    add_usual(parser, rounds=3, steps=8, shapes=["1x256", "4x256"], precision="fast", recompute="none", memory="",
              micro_batch=0, cores=2, json=False)
    parser.add_argument("--peers", nargs="*", default=PEERS, choices=(*PEERS, FP32_COMPILED))
    for name, kind in (("contender", str), ("shape", str), ("prepare", str), ("folder", Path), ("began", float)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)  # a child's


def main(args: argparse.Namespace) -> None:
    if args.contender:
        print(json.dumps(measure(args)))
    elif args.prepare:
        prepare(args)
    else:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            mode = [f for f in ("--snips", "--instruction") if getattr(args, f[2:])]
            child(args, folder, "--prepare=all", *mode, *([f"--length={args.length}"] if args.length else []))
            compare = compare_rows if mode else compare_lengths if args.length else compare_peers
            results, ratios = compare(args, folder)
        if args.json:
            print(json.dumps({"ratios": ratios, "results": results}, indent=2))
            return
        for title, r in ratios.items():
            spread = f"({r['least']:.2f} to {r['most']:.2f})"
            print(f"{title:48} {r['median']:6.2f} {spread:18} {r['of']:.4g} / {r['to']:.4g}")
