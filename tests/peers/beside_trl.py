"""A GRPO iteration and a DPO step beside TRL: same model, prompts and shapes, same machine, in turn.

    python tests/peers/beside_trl.py [--shared ../shared] [--rounds 2] [--steps 4] [--dtypes bf16 fp32]

GRPO: 8 prompts of Snips, 4 answers of 64 tokens each, answering and rewarding included, one update, no KL. DPO: 8
pairs, the right answer and another row's, log-probabilities by the reference included: once a pair here, in each step
in TRL. LoRA r = 8 on all seven projections. TRL has the dequantized weights in the dtype itself, sdpa attention and
nothing recomputed. Each contender is a process; its first step is not counted. Needs trl, which is in no extra.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import cycle, islice, pairwise
from pathlib import Path
from statistics import median
from typing import Any

from snips import SYSTEM, model_path

PROMPTS = 8
ANSWERS = 4
TOKENS = 64
PAIRS = 8
LR = 1e-5
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def snips(shared: Path, count: int) -> list[dict[str, str]]:
    lines = (shared / "data" / "snips_train.jsonl").read_text(encoding="utf-8").splitlines()
    return list(islice(cycle(json.loads(line) for line in lines[:400]), count))


def worth(text: str) -> float:
    """A reward that differs between answers to a prompt, whatever the model says."""
    return len(set(text)) / max(len(text), 1)


# ---- in a process of its own -----------------------------------------------------------------------------------------

def ours(method: str, shared: Path, steps: int) -> list[float]:
    """The seconds of each step."""
    from edgetune.objectives.dpo import Dpo
    from edgetune.objectives.grpo import Grpo
    from edgetune.training.answered import Reward
    from edgetune.training.trainer import Trainer
    common: dict[str, Any] = {"lr": LR, "system": SYSTEM, "shuffle": False, "steps": steps, "max_length": 192}
    if method == "grpo":
        trainer = Trainer(model_path(), objective=Grpo(num_generations=ANSWERS, max_completion_length=TOKENS),
                          rewards=lambda answers: [Reward(worth(answer.text)) for answer in answers],
                          batch_size=PROMPTS, **common)
        trainer.add([{"prompt": row["prompt"]} for row in snips(shared, PROMPTS * steps)])
        assert trainer.roller
        trainer.roller.tokenizer.is_end = lambda _token: False  # type: ignore[method-assign]  # all have TOKENS
    else:
        trainer = Trainer(model_path(), objective=Dpo(), batch_size=PAIRS, **common)
        rows = snips(shared, PAIRS * steps + 1)
        trainer.add([{"prompt": row["prompt"], "chosen": row["completion"], "rejected": other["completion"]}
                     for row, other in pairwise(rows)])
    return [trainer.step().seconds for _ in range(steps)]


def theirs(method: str, shared: Path, steps: int, dtype: str, folder: Path) -> list[float]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer
    torch.set_num_threads(os.cpu_count() or 1)
    path = model_path()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=kind,
                                                 attn_implementation="sdpa")
    seconds: list[float] = []

    class Watch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            seconds.append(-time.monotonic())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds[-1] += time.monotonic()

    common: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": steps, "learning_rate": LR, "report_to": [], "save_strategy": "no",
        "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "disable_tqdm": True, "logging_steps": 1000,
        "lr_scheduler_type": "constant"}
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, lora_dropout=0.0)
    rows = snips(shared, (PROMPTS * steps) + 1)

    def asked(row: dict[str, str]) -> list[dict[str, str]]:
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": row["prompt"]}]

    def answered(row: dict[str, str]) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": row["completion"]}]

    trainer: Any
    if method == "grpo":
        config = GRPOConfig(per_device_train_batch_size=PROMPTS * ANSWERS, num_generations=ANSWERS, beta=0.0,
                            max_completion_length=TOKENS, generation_kwargs={"min_new_tokens": TOKENS}, **common)
        trainer = GRPOTrainer(model=model, reward_funcs=lambda completions, **_: [worth(c[0]["content"])
                                                                                   for c in completions],
                              args=config, train_dataset=Dataset.from_list([{"prompt": asked(row)} for row in rows]),
                              processing_class=tokenizer, peft_config=lora, callbacks=[Watch()])
    else:
        pairs = [{"prompt": asked(row), "chosen": answered(row), "rejected": answered(other)}
                 for row, other in pairwise(rows)]
        config = DPOConfig(per_device_train_batch_size=PAIRS, max_length=192, **common)
        trainer = DPOTrainer(model=model, args=config, train_dataset=Dataset.from_list(pairs),
                             processing_class=tokenizer, peft_config=lora, callbacks=[Watch()])
    trainer.train()
    return seconds


# ---- the parent ------------------------------------------------------------------------------------------------------

def child(args: argparse.Namespace, who: str, method: str, dtype: str) -> dict[str, Any]:
    command = [sys.executable, __file__, f"--shared={args.shared}", f"--steps={args.steps}", f"--who={who}",
               f"--method={method}", f"--dtypes={dtype}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False,
                          env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
    if done.returncode:
        sys.exit(f"{who} {method} {dtype} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def rounds(args: argparse.Namespace) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for number in range(args.rounds):
        for method in args.methods:
            for name in ("edgetune", *args.dtypes):
                found = child(args, "edgetune" if name == "edgetune" else "trl", method, name)
                print(f"round {number + 1} {method} {name}: {found['seconds']:.2f} s a step, {found['mib']:.0f} MiB",
                      file=sys.stderr, flush=True)
                yield method, name, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[3] / "shared")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--methods", nargs="+", default=["grpo", "dpo"])
    parser.add_argument("--dtypes", nargs="+", default=["bf16", "fp32"], help="TRL's")
    parser.add_argument("--who", help=argparse.SUPPRESS)
    parser.add_argument("--method", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.who:
        with tempfile.TemporaryDirectory() as folder:
            seconds = ours(args.method, args.shared, args.steps) if args.who == "edgetune" else theirs(
                args.method, args.shared, args.steps, args.dtypes[0], Path(folder))
        print(json.dumps({"seconds": median(seconds[1:]),
                          "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        return
    results: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for method, name, found in rounds(args):
        results.setdefault((method, name), []).append(found)
    print("| | edgetune | TRL | times faster | of its memory |\n" + "|---" * 5 + "|")
    for method in args.methods:
        mine = results[method, "edgetune"]
        for name in args.dtypes:
            trl = results[method, name]
            faster = median(b["seconds"] / a["seconds"] for a, b in zip(mine, trl, strict=True))
            memory = median(a["mib"] / b["mib"] for a, b in zip(mine, trl, strict=True))
            print(f"| {method}, {name} | {_told(mine)} | {_told(trl)} | {faster:.1f} | {memory:.2f} |")


def _told(results: Sequence[dict[str, Any]]) -> str:
    return f"{median(r['seconds'] for r in results):.2f} s, {median(r['mib'] for r in results):.0f} MiB"


if __name__ == "__main__":
    main()
