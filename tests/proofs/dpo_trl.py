"""DPO beside TRL's DPOTrainer on SmolLM2: loss for loss, from the same adapter, with the same rows and optimizer.

    python tests/proofs/dpo_trl.py [--shared ../shared] [--steps 20] [--lr 2e-4]

Pairs: rows of Snips, the right answer before that of the next row. Four pairs a step, r = 8, alpha 16, all seven
projections, AdamW without decay, a constant rate. We compute in `--precision exact` on the quantized weights, TRL in
fp32 on the same weights dequantized. Exits with 1 where a loss differs by more than 1 %.
"""

import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from json_lines import read_lines
from peers.snips import SYSTEM, model_path, start_alike
from proofs.compared import arguments

from edgetune.data import preferences
from edgetune.data.dataset import Dataset, load_rows
from edgetune.formats.bundle import open_bundle
from edgetune.formats.targets import TARGETS
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.objectives.dpo import Dpo
from edgetune.training.config import TrainConfig
from edgetune.training.trainer import Trainer

BATCH = 4
LIMIT = 0.01


def pairs(shared: Path, steps: int) -> Dataset:
    rows = read_lines(shared / "data" / "snips_train.jsonl")[:BATCH * steps + 1]
    made = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": other["completion"]}
            for row, other in pairwise(rows)]
    return load_rows(made, Tokenizer(model_path()), max_length=256, system=SYSTEM, parser=preferences)


def ours(data: Dataset, steps: int, lr: float) -> tuple[list[float], list[float], float]:
    """(losses, reward margins, seconds a step)"""
    config = TrainConfig(rank=8, alpha=16, lr=lr, warmup=0, schedule="constant", batch_size=BATCH, steps=steps,
                         shuffle=False, max_length=256, precision="exact")
    trainer = Trainer(open_bundle(model_path()), config, objective=Dpo())
    trainer.add_examples(data.examples)
    began = time.monotonic()
    results = trainer.train()
    seconds = (time.monotonic() - began) / steps
    return [r.loss for r in results], [r.metrics["rewards/margins"] for r in results], seconds


def trl(data: Dataset, steps: int, lr: float, folder: str) -> tuple[list[float], list[float], float]:
    import torch
    from datasets import Dataset as Rows
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    class InOrder(DPOTrainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset  # it has our token ids

    path = model_path()
    base = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    base.is_quantized = False  # the weights are floats now, which transformers 5 does not see
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=list(TARGETS), lora_dropout=0.0))
    start_alike({name: p for name, p in model.named_parameters() if p.requires_grad})
    rows = []
    for chosen, rejected in zip(data.examples[::2], data.examples[1::2], strict=True):
        n = int((chosen.weights == 0).sum())
        rows.append({"prompt_ids": chosen.tokens[:n].tolist(), "chosen_ids": chosen.tokens[n:].tolist(),
                     "rejected_ids": rejected.tokens[n:].tolist()})
    config = DPOConfig(output_dir=folder, per_device_train_batch_size=BATCH, max_steps=steps, learning_rate=lr,
                       lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0,
                       logging_steps=1, report_to=[], save_strategy="no", use_cpu=True, bf16=False, max_length=256,
                       gradient_checkpointing=False, optim="adamw_torch", disable_tqdm=True,
                       remove_unused_columns=False)
    trainer = InOrder(model=model, args=config, train_dataset=Rows.from_list(rows), processing_class=tokenizer)
    began = time.monotonic()
    trainer.train()
    seconds = (time.monotonic() - began) / steps
    logs = [line for line in trainer.state.log_history if "loss" in line]
    return [line["loss"] for line in logs], [line["rewards/margins"] for line in logs], seconds


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--lr", type=float, default=2e-4)
    args = parser.parse_args()
    data = pairs(args.shared, args.steps)
    losses, margins, seconds = ours(data, args.steps, args.lr)
    with tempfile.TemporaryDirectory() as folder:
        theirs, their_margins, their_seconds = trl(data, args.steps, args.lr, folder)
    print("| step | loss | TRL's | differs by | margin | TRL's |\n" + "|---" * 6 + "|")
    worst = 0.0
    for step, (loss, other) in enumerate(zip(losses, theirs, strict=True)):
        worst = max(worst, abs(loss / other - 1))
        print(f"| {step + 1} | {loss:.5f} | {other:.5f} | {loss / other - 1:+.3%} | {margins[step]:.4f} | "
              f"{their_margins[step]:.4f} |")
    print(f"\na step took {seconds:.2f} s here, {their_seconds:.2f} s in TRL; losses differ by {worst:.2%} at most")
    sys.exit(worst > LIMIT)


if __name__ == "__main__":
    main()
