"""Snips, edgetune beside PEFT: the same rows in the same order, the same recipe, the same machine.

Recipe: first 1,000 rows of snips_train.jsonl in order, one epoch, batch 8, r = 8, alpha 16, all seven projections,
AdamW lr 1e-3, 10 steps of warm-up then linear to 0, loss on the completion only, ChatML with a system line. Both start
from the same A. PEFT trains on the dequantized weights of the GGUF, in fp32 unless asked otherwise. Prints one JSON
object.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from lab.common import SHARED, SNIPS, add, model_path, served

Row = tuple[np.ndarray, np.ndarray]  # token ids [n], weight of predicting each [n]


def load(args: argparse.Namespace) -> Any:
    """(config, training rows, held-out rows) as edgetune tokenises them."""
    import edgetune
    config = edgetune.TrainConfig(rank=8, alpha=16, lr=1e-3, warmup=10, schedule="linear", batch_size=8,
                                  epochs=1, shuffle=False, max_length=256, system=SNIPS, max_grad_norm=1.0,
                                  micro_batch=args.micro_batch, recompute=args.recompute, threads=args.threads,
                                  precision=args.precision, optimizer_state=args.optimizer_state)
    tokenizer = edgetune.Tokenizer(model_path())
    def rows(name: str, n: int) -> Any:
        lines = (args.shared / "data" / name).read_text().splitlines()[:n]
        return edgetune.load_rows([json.loads(line) for line in lines], tokenizer, max_length=256, system=SNIPS)
    return config, rows("snips_train.jsonl", args.rows), rows("snips_dev.jsonl", args.dev)


def run_edgetune(args: argparse.Namespace) -> dict[str, Any]:
    import edgetune
    from edgetune.machine import device
    config, train, dev = load(args)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        began = time.monotonic()
        record = edgetune.run(edgetune.open_bundle(model_path()), train, out, config, held_out=dev)
        events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        steps = [e for e in events if e["event"] == "step"]
        result = {"loss_before": record["held_out"]["loss_before"], "loss_after": record["held_out"]["loss_after"],
                  "tokens_per_s": sum(e["tokens"] for e in steps) / sum(e["seconds"] for e in steps),
                  "median_tokens_per_s": float(np.median([e["tokens_per_s"] for e in steps])),
                  "train_loss_last10": float(np.mean([e["loss"] for e in steps[-10:]])),
                  "seconds": time.monotonic() - began, "peak_rss_mib": device.peak_rss() / 2**20}
        if args.serve:
            from edgetune.evaluation.served import served_loss
            with served(model_path(), out, threads=args.threads or None) as opened:
                result["served_loss_after"], _ = served_loss(opened, dev)
    return result


def padded(batch: list[Row]) -> dict[str, Any]:
    """What transformers takes; without attention_mask where nothing is padded, for the faster attention."""
    import torch
    width = max(ids.size for ids, _ in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for i, (row, weights) in enumerate(batch):
        ids[i, :row.size] = torch.from_numpy(row.astype(np.int64))
        mask[i, :row.size] = 1
        labels[i, :row.size] = torch.from_numpy(np.where(weights > 0, row, -100).astype(np.int64))
    return {"input_ids": ids, "labels": labels} | ({} if bool(mask.all()) else {"attention_mask": mask})


def start_alike(weights: dict[str, Any]) -> None:
    """PEFT's adapter begins with the numbers of ours."""
    import torch

    from edgetune.adapters.lora import init_pairs
    ours = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
            "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
    for name, p in weights.items():
        if ".lora_A." in name:
            block = name.split("layers.")[1].split(".")[0]
            target = name.split(".lora_A.")[0].rsplit(".", 1)[1]
            gguf_name = f"blk.{block}.{ours[target]}"
            a = init_pairs({gguf_name: (1, p.shape[1])}, 8, 2.0, 0)[gguf_name].a
            p.data.copy_(torch.from_numpy(a))


def run_peft(args: argparse.Namespace) -> dict[str, Any]:
    import psutil
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM

    from edgetune.formats.families import TARGETS
    from edgetune.training.optim import learning_rate
    config, train, dev = load(args)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    path = model_path()
    base = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=getattr(torch, args.dtype))
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=list(TARGETS), lora_dropout=0.0))
    weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
    start_alike(weights)
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)

    def loss_of(examples: Any) -> tuple[Any, int]:
        inputs = padded([(e.tokens, e.weights) for e in examples])
        labels = inputs.pop("labels")
        logits = model(**inputs).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")
        return loss, int((labels[:, 1:] != -100).sum())

    def held_out() -> float:
        with torch.no_grad():
            sums = [loss_of(dev.examples[i:i + 8]) for i in range(0, len(dev.examples), 8)]
        return float(sum(float(s) for s, _ in sums) / sum(n for _, n in sums))

    before = held_out()
    began = time.monotonic()
    rates = []
    losses = []
    total = -(-len(train.examples) // 8)
    tokens = 0
    spent = 0.0
    for step in range(1, total + 1):
        examples = train.examples[(step - 1) * 8:step * 8]
        tick = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, config.lr, step, total)
        loss, n = loss_of(examples)
        (loss / n).backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss) / n)
        seconds = time.monotonic() - tick
        count = sum(e.tokens.size for e in examples)
        rates.append(count / seconds)
        tokens = tokens + count
        spent = spent + seconds
    return {"loss_before": before, "loss_after": held_out(), "tokens_per_s": tokens / spent,
            "median_tokens_per_s": float(np.median(rates)), "train_loss_last10": float(np.mean(losses[-10:])),
            "seconds": time.monotonic() - began, "peak_rss_mib": psutil.Process().memory_info().rss / 2**20}


def options(parser: argparse.ArgumentParser) -> None:
    """precision, optimizer_state: edgetune's. serve: also measure the served loss through llama.cpp."""
    add(parser, shared=SHARED, rows=1000, dev=300, threads=0, micro_batch=1024, recompute="block", precision="exact",
        optimizer_state="float", serve=False)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="PEFT's")
    parser.add_argument("--only", choices=("edgetune", "peft"))


def main(args: argparse.Namespace) -> None:
    runs = {"edgetune": run_edgetune, "peft": run_peft}
    print(json.dumps({name: run(args) for name, run in runs.items() if args.only in (None, name)}, indent=2))
