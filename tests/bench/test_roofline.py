"""What a step computes and moves, as the roofline counts it: beside torch, the plan's buffers and a real step."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from commands import run
from families import SIZES, make_family
from tiny import write_tiny
from torch.utils.flop_counter import FlopCounterMode

from edgetune.backends.base import OPS
from edgetune.bench import roofline
from edgetune.bench.train import random_rows
from edgetune.formats.gguf import open_gguf
from edgetune.machine.device import profile_named, read_profiles
from edgetune.machine.gpu import Gpu
from edgetune.models.networks import open_network
from edgetune.training.config import TrainConfig
from edgetune.training.plan import Plan
from edgetune.training.planned import make_plan
from edgetune.training.trainer import Trainer

ROWS = 3
LENGTH = 32
TOKENS = ROWS * LENGTH
RANK = 4
OPTIONS: dict[str, Any] = {"rank": RANK, "batch_size": ROWS, "max_length": LENGTH, "threads": 1, "recompute": "none"}
L, D, F, H, C, V = (SIZES[name] for name in ("num_hidden_layers", "hidden_size", "intermediate_size",
                                             "num_attention_heads", "head_dim", "vocab_size"))


def counted(path: Path, **options: Any) -> tuple[Plan, list[roofline.Call]]:
    network = open_network(open_gguf(path))
    config = TrainConfig(**OPTIONS | options)
    plan = make_plan(network, config)
    return plan, roofline.step_calls(network, plan, config)


def flops_of(calls: list[roofline.Call]) -> Counter[str]:
    found = Counter[str]()
    for call in calls:
        found[call.kind] += call.flops
    return found


def bytes_of(calls: list[roofline.Call]) -> Counter[str]:
    found = Counter[str]()
    for call in calls:
        found[call.kind] += call.nbytes
    return found


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    return make_family("llama", tmp_path_factory.mktemp("roofline"))


def test_operations_are_those_that_torch_counts(llama: tuple[Path, Any]) -> None:
    """PEFT's LoRA on transformers' model, all projections; torch's attention computes also what is masked, 2 products
    forward and 4 backward, where ours makes the scores a second time.
    """
    path, model = llama
    found = flops_of(counted(path)[1])
    lora = peft.LoraConfig(r=RANK, target_modules="all-linear", lora_dropout=0.0)
    body = peft.get_peft_model(model, lora).base_model.model.model
    with FlopCounterMode(display=False) as counter:
        hidden = body(torch.zeros(ROWS, LENGTH, dtype=torch.long)).last_hidden_state
        forward = dict(counter.get_flop_counts()["Global"])
        hidden.sum().backward()
    whole = counter.get_flop_counts()["Global"]
    products = sum(flops for op, flops in whole.items() if op in (torch.ops.aten.mm, torch.ops.aten.addmm))
    assert found["products forward"] + found["products backward"] + found["LoRA"] == products
    seen = (LENGTH + 1) / (2 * LENGTH)
    rotary = 2 * LENGTH * C // 2  # transformers' angles are a product of matrices, too
    attention = forward[torch.ops.aten.bmm] - rotary
    assert found["attention forward"] == attention * seen
    backward = whole[torch.ops.aten.bmm] - forward[torch.ops.aten.bmm]
    assert found["attention backward"] == backward * seen * 5 / 4
    assert found["head"] == 2 * 2 * ROWS * (LENGTH - 1) * V * D


@pytest.mark.parametrize(("precision", "half"), [("exact", 4), ("fast", 2)])
def test_bytes_are_those_of_the_plans_buffers(llama: tuple[Path, Any], precision: str, half: int) -> None:
    """By hand, from the buffers of a plan that keeps all blocks; a float of 4 bytes, an activation of `half`."""
    plan, calls = counted(llama[0], precision=precision)
    found = bytes_of(calls)
    size = {buffer.name: buffer.nbytes for buffer in plan.buffers}
    assert (plan.run.kept, plan.run.max_tokens) == (L, TOKENS)
    tree = L * 2 * 4 * TOKENS  # where each token's subtree ends, and its position
    keys = size["k"] + size["v"]
    assert found["attention forward"] == size["q"] + keys + size["att"] + size["lse"] + tree
    assert found["attention backward"] == (
        L * (size["dq"] + size["dk"] + size["dv"] + size["datt"]) + size["att"] + size["lse"] + size["q"] + keys + tree)
    supervised = ROWS * (LENGTH - 1)
    head = 4 * V * D + supervised * (half * D + 4 * D + 4 + 4 + 4)  # weights, h, dh, log p, targets, a
    assert found["head"] == head
    assert found["optimizer"] == 2 * size["lora"] + 2 * (size["adam_m"] + size["adam_v"]) + 2 * size["dlora"]
    normed = size["norm1"] + size["rstd1"] + 4 * D
    x = size["x"]
    block_x = size["block_x"] // L
    mid = size["mid"] // L
    picked = supervised * (4 * D + half * D + 4) + 4 * D
    last = supervised * 3 * 4 * D + 4 * supervised + 4 * D
    forward = 2 * L * (normed + x) + picked
    again = (L - 1) * (2 * normed + block_x + mid)  # of all but the last block, whose norms are still there
    through = 2 * size["dx"] + size["dnorm"] + size["rstd1"] + 4 * D
    backward = (L - 1) * (through + block_x) + L * (through + mid) + last  # the first block's first norm passes nothing
    assert found["norms"] == forward + again + backward


def test_products_move_weights_inputs_and_outputs(llama: tuple[Path, Any]) -> None:
    """F32 weights once forward, and once backward but for q, k and v of the first block."""
    _, calls = counted(llama[0], targets="down_proj", precision="exact")
    found = bytes_of(calls)
    kv = C * SIZES["num_key_value_heads"]  # type: ignore[operator]
    shapes = [(H * C, D), (kv, D), (kv, D), (D, H * C), (F, D), (F, D), (D, F)]
    plain = sum(4 * (n * k + TOKENS * (n + k)) for n, k in shapes)
    twice = 2 * 4 * TOKENS * D  # both sums into the residual stream read it, too
    low_rank = 4 * RANK * (TOKENS + D)
    assert found["products forward"] == L * (plain + twice + low_rank)


class Recorded:
    """Notes the calls of a real backend as the roofline notes its own."""

    def __init__(self, ops: Any) -> None:
        self.calls: list[roofline.Call] = []
        for name in OPS:
            setattr(ops, name, self._noted(name, getattr(ops, name)))

    def _noted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        note = roofline.Counting()

        def call(*args: Any, **kwargs: Any) -> Any:
            getattr(note, name)(*args, **kwargs)
            self.calls.append(note.calls.pop())
            return function(*args, **kwargs)

        return call


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3"])
@pytest.mark.parametrize("options", [{}, {"recompute": "block", "micro_batch": LENGTH, "optimizer_state": "8bit"},
                                     {"blocks": "last:1", "dropout": 0.1}], ids=str)
def test_the_calls_are_those_of_a_real_step(tmp_path: Path, family: str, options: dict[str, Any]) -> None:
    """In their order, with their bytes. Left out are a copy of the adapter, where no held-out loss says which was the
    best, and the scaling of a gradient that is too long.
    """
    path = write_tiny(tmp_path / "model.gguf", family, formats="Q8_0")
    plan, calls = counted(path, **options)
    trainer = Trainer(path, steps=1, max_grad_norm=1e9, share_prefixes="off", **OPTIONS | options)
    trainer.add_examples(random_rows(V, ROWS, LENGTH, seed=0))
    assert trainer.plan.tradeoffs == plan.tradeoffs
    trainer.best_known = True
    recorded = Recorded(trainer.ops)
    trainer.step()
    assert recorded.calls == calls


def test_a_kernel_takes_as_long_as_the_slower_of_two() -> None:
    gpu = Gpu(sms=10, ghz=1.0, memory_gb_s=50.0)
    assert (gpu.tensor_flops, gpu.float_flops) == (20.48e12, 2.56e12)
    computing = roofline.Call("head", 2048 * 10**7, 50 * 10**3, is_exact=False)  # 1 ms, 1 us
    moving = roofline.Call("head", 2048 * 10**4, 20 * 10**6, is_exact=False)  # 1 us, 0.4 ms
    exact = roofline.Call("LoRA", 256 * 10**7, 50 * 10**6, is_exact=True)  # 1 ms, 1 ms
    lora, head = roofline.bounds([computing, exact, moving], gpu)
    assert (head.kind, head.calls, head.bound, head.seconds) == ("head", 2, "computing", pytest.approx(1.4e-3))
    assert (lora.kind, lora.bound, lora.seconds) == ("LoRA", "memory", pytest.approx(1e-3))
    said = roofline.limit([moving, moving], gpu, tokens=16)
    assert said["tokens_per_s"] == pytest.approx(16 / 0.8e-3)


# of the GPU alone, 8-bit integers, sparse: its data sheet's TOPS, at its data sheet's clock
TOPS = {("jetson-orin-nano-4gb", ""): 20, ("jetson-orin-nano-8gb", ""): 40, ("jetson-orin-nano-8gb", "Super mode"): 67,
        ("jetson-orin-nx-8gb", ""): 70 - 20, ("jetson-orin-nx-16gb", ""): 100 - 40,
        ("jetson-orin-nx-8gb", "Super mode"): 117 - 40, ("jetson-orin-nx-16gb", "Super mode"): 157 - 80,
        ("jetson-agx-orin-32gb", ""): 108, ("jetson-agx-orin-64gb", ""): 170}


@pytest.mark.parametrize(("board", "mode"), TOPS)
def test_peaks_are_a_quarter_of_the_data_sheets(board: str, mode: str) -> None:
    gpu = next(gpu for gpu in profile_named(board).gpus() if gpu.mode == mode)
    assert gpu.tensor_flops == pytest.approx(TOPS[board, mode] * 1e12 / 4, rel=0.03)


def test_profiles_have_a_gpu_for_each_memory() -> None:
    for board in read_profiles():
        for name in ("gpu_sms", "gpu_ghz", "memory_gb_s", "super_gpu_ghz", "super_memory_gb_s"):
            assert len(getattr(board, name)) in (0, len(board.memory_mib)), (board.name, name)
        assert bool(board.gpu_sms) == ("Orin" in board.name)
    assert [gpu.memory_gb_s for gpu in profile_named("jetson-orin-nano").gpus()] == [34, 51]
    assert [gpu.memory_gb_s for gpu in profile_named("jetson-orin-nano-8gb").gpus()] == [68, 102]
    assert profile_named("raspberry-pi-5").gpus() == []


def test_plan_says_what_bounds_a_boards_gpu(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "model.gguf", formats="Q8_0")
    options = ["--rank", 4, "--max-length", 64, "--batch-size", 2]
    text = run("plan", path, *options, "--device", "jetson-orin-nano-8gb")
    assert "\nits GPU: about " in text
    assert "where its 68 GB/s and 10.2 TFLOP/s are the limit\nits GPU in Super mode: about " in text
    assert "never run on a card" in text
    slow, fast = json.loads(run("plan", path, *options, "--device", "jetson-orin-nano-8gb", "--json"))["gpu"]
    assert slow["step_s"] == pytest.approx(sum(kernel["seconds"] for kernel in slow["kernels"]))
    assert slow["tokens_per_s"] == pytest.approx(2 * 64 / slow["step_s"])
    assert fast["step_s"] < slow["step_s"]
    assert json.loads(run("plan", path, *options, "--no-measure", "--json"))["gpu"] == []
    exact = run("plan", path, *options, "--device", "jetson-orin-nano-8gb", "--precision", "exact")
    assert "10.2 TFLOP/s" not in exact
    assert "1.3 TFLOP/s" in exact
