"""Distillation: a pruned model learns the answers of the whole one (Hinton et al. 2015), on plain text, without labels.

The loss is the KL from the whole model's next-token distribution to the pruned one's, at temperature 1 over the whole
vocabulary. Embedding and head stay as they are: they come from the teacher, and cost a tenth of a step. Everything
random is a function of the seed and the step, so a state on disk is weights, moments and the step.
Letters: N windows, B windows in a step, T tokens in a window, D, V as everywhere.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from ...disk import make_folder
from ...errors import DataError, Interrupted, MismatchError, NumericsError
from ...machine.device import thread_count
from ...persisted import from_json
from ...training import checkpoint
from ...training.config import TrainConfig
from ...training.optim import learning_rate
from ..options import CompressConfig
from ..progress import Progress, ignore, never
from ..source import huggingface as hf
from ..source.floats import Floats
from .blockwise import divergence, fast, quick

HELD_TOKENS = 4096  # that the curve is measured on, at most a tenth of the windows
POINTS = 10  # of the curve, after the one before the first step
SAVE_SECONDS = 180.0
WARMUP = 0.05  # of all steps
MAX_NORM = 1.0
BETAS = (0.9, 0.95)
LORA_SCALE = 2.0  # alpha / rank


@dataclass(frozen=True)
class Point:
    """A point of the curve, on held-out windows: nats a token, perplexity, seconds of training until then."""

    step: int
    kl: float
    perplexity: float
    seconds: float


@dataclass(frozen=True)
class Distilled:
    """The curve, its first point before and its last after distillation, and what was learned from.

    tokens: that were trained on, repeats counted; held_tokens: that the curve was measured on, never trained on.
    """

    curve: list[Point]
    source_perplexity: float
    weights_trained: int
    tokens: int
    held_tokens: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def distill(student: Floats, teacher: Floats, windows: NDArray[np.int32], config: CompressConfig, folder: Path, *,
         threads: int = 0, on_progress: Progress = ignore,
         should_stop: Callable[[], bool] = never) -> tuple[Floats, Distilled]:
    """`student` after config.steps steps on windows [N, T], the last of which are held out to measure by.

    `folder` (made if need be) holds the state, saved every few minutes, when should_stop says so (Interrupted is raised
    then) and at the end; a call with the same arguments continues from there and ends with the same bytes as one that
    was never stopped. The caller removes it. threads 0: one a core that this process may use.

    Raises DataError for fewer than two windows, MismatchError where `folder` holds the state of other models, text or
    options, NumericsError if the loss is not finite, DiskError where the disk refuses.
    """
    if len(windows) < 2:
        raise DataError(f"the text to distil on has {len(windows)} windows of {config.distill_length} tokens, at least "
                        f"2 are needed", "give more text, or a smaller --distill-length")
    threads = thread_count(threads)
    torch.set_num_threads(threads)
    make_folder(folder)
    run = _Distillation(student, teacher, windows, config, folder,
                        _identity(student, teacher, windows, config, threads))
    run.resume()
    run.go(on_progress, should_stop)
    return run.result(student)


def steps_done(folder: Path) -> int:
    """Steps of the distillation whose state is in `folder`, which need not exist."""
    return max((int(path.name.removeprefix(checkpoint.PREFIX)) for path in checkpoint.found(folder)), default=0)


class _Distillation:
    """The two models in torch, the optimizer, and how far it is."""

    def __init__(self, student: Floats, teacher: Floats, windows: NDArray[np.int32], config: CompressConfig,
                 folder: Path, identity: str) -> None:
        self.config = config
        self.folder = folder
        self.identity = identity
        self.teacher = hf.to_torch(teacher, torch.bfloat16 if quick() else torch.float32)
        self.student = hf.to_torch(student)
        self.teacher_head = hf.head_of(self.teacher)
        self.student_head = hf.head_of(self.student)
        self.last_norm = hf.last_norm(self.student, student.architecture)
        ids = torch.from_numpy(windows.astype(np.int64))
        n_held = max(1, min(len(ids) // 10, HELD_TOKENS // ids.shape[1]))
        self.ids = ids[:-n_held]
        self.held = ids[-n_held:]
        self.params = self._trainable()
        self.optimizer = torch.optim.AdamW(self.params.values(), betas=BETAS, fused=True)
        for param in self.params.values():
            self.optimizer.state[param] = {"step": torch.zeros(()), "exp_avg": torch.zeros_like(param),
                                           "exp_avg_sq": torch.zeros_like(param)}
        self.step = 0
        self.seconds = 0.0
        self.curve = list[Point]()
        self.source_perplexity = 0.0

    def _trainable(self) -> dict[str, nn.Parameter]:
        """Parameters by name, in memory that torch aligns: products of arrays aligned otherwise can round otherwise."""
        self.student.requires_grad_(False)
        if self.config.distill_rank:
            add_lora(self.student, self.config.distill_rank, self.config.seed)
        else:
            self.student.model.layers.requires_grad_(True)
            self.last_norm.requires_grad_(True)
        for param in self.student.parameters():
            param.data = param.data.clone()
        return {name: param for name, param in self.student.named_parameters() if param.requires_grad}

    # ---- training ----------------------------------------------------------------------------------------------------

    def go(self, on_progress: Progress, should_stop: Callable[[], bool]) -> None:
        steps = self.config.steps
        saved = time.monotonic()
        every = -(-steps // POINTS)
        if not self.curve:
            self._measure()
        while self.step < steps:
            if should_stop():
                self._save()
                raise Interrupted(f"distillation was stopped after step {self.step} of {steps}",
                                  "the same command continues from there")
            on_progress("distilling", self.step, steps)
            begin = time.monotonic()
            self._train()
            self.seconds += time.monotonic() - begin
            if self.step % every == 0 or self.step == steps:
                self._measure()
            if time.monotonic() - saved > SAVE_SECONDS or self.step == steps:
                self._save()
                saved = time.monotonic()

    def _train(self) -> None:
        """One step. Logits [T, V] are in memory for a few tokens at a time: so is the head's backward."""
        ids = self.ids[self._rows()]
        with fast():
            with torch.no_grad():
                target = self.teacher.model(ids, **hf.unpadded(ids))[0].flatten(0, 1)
            hidden = self.student.model(ids, **hf.unpadded(ids))[0].flatten(0, 1)  # [BT, D]
            leaf = hidden.detach().requires_grad_()
            loss = 0.0
            for part in divergence(target, leaf, self.teacher_head, self.student_head):
                torch.autograd.backward(part / ids.numel())
                loss += float(part.detach()) / ids.numel()
        if not math.isfinite(loss):
            raise NumericsError(f"the KL is {loss} in step {self.step + 1} of distillation", "lower --distill-lr")
        torch.autograd.backward(hidden, leaf.grad)
        nn.utils.clip_grad_norm_(self.params.values(), MAX_NORM)
        schedule = TrainConfig(warmup=WARMUP, schedule="cosine")
        self.optimizer.param_groups[0]["lr"] = learning_rate(schedule, self.config.distill_lr, self.step + 1,
                                                             self.config.steps)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1

    def _rows(self) -> list[int]:
        """The B windows of this step: every window once an epoch, in another order each."""
        rows = []
        n = len(self.ids)
        for at in range(self.step * self.config.distill_batch, (self.step + 1) * self.config.distill_batch):
            order = np.random.default_rng([self.config.seed, at // n]).permutation(n)
            rows.append(int(order[at % n]))
        return rows

    @torch.no_grad()
    def _measure(self) -> None:
        kl = 0.0
        nll = 0.0
        source = 0.0
        for ids in torch.split(self.held, 1):
            with fast():
                target, hidden = (model.model(ids, **hf.unpadded(ids))[0][0]
                                  for model in (self.teacher, self.student))
                kl += sum(map(float, divergence(target, hidden, self.teacher_head, self.student_head)))
                nll += _nll(self.student, hidden, ids[0])
                source += 0.0 if self.curve else _nll(self.teacher, target, ids[0])
        n = self.held.numel()
        predicted = n - len(self.held)
        if not self.curve:
            self.source_perplexity = math.exp(source / predicted)
        self.curve.append(Point(self.step, kl / n, math.exp(min(nll / predicted, 700.0)), round(self.seconds, 1)))

    # ---- state -------------------------------------------------------------------------------------------------------

    def _arrays(self) -> dict[str, NDArray[np.float32]]:
        """Weights and moments, in place: training continues with what is read into them."""
        arrays = {}
        for name, param in self.params.items():
            state = self.optimizer.state[param]
            arrays[name] = param.detach().numpy()
            arrays[f"m.{name}"] = state["exp_avg"].numpy()
            arrays[f"v.{name}"] = state["exp_avg_sq"].numpy()
        return arrays

    def _save(self) -> None:
        meta = {"of": self.identity, "step": self.step, "seconds": self.seconds,
                "source_perplexity": self.source_perplexity, "curve": [asdict(point) for point in self.curve]}
        checkpoint.save(self.folder, self.step, self._arrays(), meta)

    def resume(self) -> None:
        if not checkpoint.found(self.folder):
            return
        state, _ = checkpoint.newest(self.folder)
        if state.meta["of"] != self.identity:
            raise MismatchError(f"{self.folder} holds a distillation of other models, text or options",
                                "give what was given then, or remove that folder")
        state.read(self._arrays().__getitem__)
        self.step = state.meta["step"]
        self.seconds = state.meta["seconds"]
        self.source_perplexity = state.meta["source_perplexity"]
        self.curve = [from_json(Point, point, f"the curve in {state.path}") for point in state.meta["curve"]]
        for param in self.params.values():
            self.optimizer.state[param]["step"].fill_(self.step)

    def result(self, student: Floats) -> tuple[Floats, Distilled]:
        trained = sum(param.numel() for param in self.params.values())
        tokens = self.config.steps * self.config.distill_batch * self.ids.shape[1]
        merge_lora(self.student)
        return hf.from_torch(self.student, student), Distilled(self.curve, self.source_perplexity, trained, tokens,
                                                            self.held.numel())


def _nll(model: PreTrainedModel, hidden: Tensor, ids: Tensor) -> float:
    """-log p of tokens 1..T-1 of ids [T], summed."""
    return float(cross_entropy(hf.head_of(model)(hidden[:-1]).float(), ids[1:], reduction="sum"))


def _identity(student: Floats, teacher: Floats, windows: NDArray[np.int32], config: CompressConfig,
              threads: int) -> str:
    """A hash of everything that the result depends on."""
    options = {name: getattr(config, name) for name in ("steps", "distill_lr", "distill_rank", "distill_batch", "seed")}
    digest = hashlib.sha256(json.dumps([options, threads, list(windows.shape)]).encode())
    digest.update(np.ascontiguousarray(windows).data)
    for model in (student, teacher):
        for name, array in model.tensors.items():
            digest.update(f"{name} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


# ---- LoRA (Hu et al. 2021) -------------------------------------------------------------------------------------------


Module = TypeVar("Module", bound=nn.Module)


class _Lora(nn.Module):
    """base(x) + scale B A x, base frozen."""

    def __init__(self, base: nn.Linear, rank: int, seed: list[int]) -> None:
        super().__init__()
        spread = np.random.default_rng(seed).standard_normal((rank, base.in_features)) / math.sqrt(base.in_features)
        self.base = base
        self.a = nn.Parameter(torch.from_numpy(spread.astype(np.float32)))  # [R, K]
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))  # [N, R]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        return out + LORA_SCALE * (x @ self.a.T) @ self.b.T

    def merged(self) -> nn.Linear:
        self.base.weight.data += LORA_SCALE * (self.b @ self.a).detach()
        return self.base


def add_lora(model: PreTrainedModel, rank: int, seed: int) -> None:
    """Puts a pair on all projections of every block."""
    for i, block in enumerate(model.model.layers):
        for j, (owner, leaf, module) in enumerate(_children(block, nn.Linear)):
            setattr(owner, leaf, _Lora(module, rank, [seed, i, j]))


def merge_lora(model: PreTrainedModel) -> None:
    for block in model.model.layers:
        for owner, leaf, module in _children(block, _Lora):
            setattr(owner, leaf, module.merged())


def _children(block: nn.Module, kind: type[Module]) -> list[tuple[nn.Module, str, Module]]:
    """The modules of a kind in a block, with what holds them and their names there, in the block's order."""
    return [(owner, leaf, module) for owner in block.modules() for leaf, module in owner.named_children()
            if isinstance(module, kind)]
