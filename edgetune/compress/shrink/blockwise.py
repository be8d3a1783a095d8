"""A transformers model a block at a time, and how far one model's next-token distribution is from another's.

Letters: B windows, T tokens in a window, D, V as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax
from transformers import PreTrainedModel

from ...backends import cpu
from ...formats.shape import Shape
from ...models.structure import feed_of, mixer_of
from ..source import huggingface as hf

Head = Callable[[Tensor], Tensor]
CHUNK = 512  # tokens whose float32 logits [CHUNK, V] are in memory at a time


def quick() -> bool:
    """Whether the CPU multiplies bf16; where it does not, PyTorch's float32 is faster."""
    return cpu.usable("avx512bf16")


def fast() -> torch.autocast:
    """Products in bf16 where they are quick."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=quick())


class Blocks:
    """The blocks of a model from hf.to_torch, each to be called alone on hidden states [B, T, D] of one length T.

    What a block takes besides them (rotary tables, its mask) is the same for every window of that length.
    """

    def __init__(self, model: PreTrainedModel, architecture: str, length: int) -> None:
        self.model = model
        self.norm = hf.last_norm(model, architecture)
        self.head = hf.head_of(model)
        self.length = length
        self.blocks: list[nn.Module] = list(model.model.layers)
        self._beside: list[dict[str, Any]] = []
        hooks = [block.register_forward_pre_hook(lambda _block, _args, others: self._beside.append(others),
                                                 with_kwargs=True) for block in self.blocks]
        with torch.inference_mode():
            ids = torch.zeros(1, length, dtype=torch.long)
            model.model(ids, **hf.unpadded(ids))
        for hook in hooks:
            hook.remove()

    def embed(self, ids: Tensor) -> Tensor:
        """[B, T, D] of ids [B, T]."""
        return hf.embedded(self.model, ids)

    def block(self, i: int, hidden: Tensor) -> Tensor:
        """Block i's output [B, T, D]."""
        out: Any = self.blocks[i](hidden, **self._beside[i])
        after: Tensor = out[0] if isinstance(out, tuple) else out
        return after

    def last_of(self, i: int, shape: Shape) -> tuple[nn.Linear, nn.Linear]:
        """The projections of block i that write to the residual stream: the mixer's and the MLP's."""
        names = (mixer_of(shape, i).last, feed_of(shape, i).last)
        out, down = (self.model.get_submodule(hf.module_in_torch(f"blk.{i}.{name}", shape.architecture))
                     for name in names)
        return cast(nn.Linear, out), cast(nn.Linear, down)

    def final(self, hidden: Tensor) -> Tensor:
        """What the head takes, [B, T, D]."""
        normed: Tensor = self.norm(hidden)
        return normed


@contextmanager
def inputs_of(*modules: nn.Module) -> Iterator[list[Tensor]]:
    """The inputs that these modules get, in the order of their calls, as long as the context lasts."""
    seen: list[Tensor] = []

    def note(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0])

    hooks = [module.register_forward_pre_hook(note) for module in modules]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def divergence(teacher: Tensor, student: Tensor, teacher_head: Head, student_head: Head) -> Iterator[Tensor]:
    """KL(teacher || student) summed over a chunk of tokens, chunk after chunk, from what the heads take: [N, D] each.

    Forward KL at temperature 1 (Hinton et al. 2015): the student must give weight wherever the teacher does.
    """
    for t, s in zip(torch.split(teacher, CHUNK), torch.split(student, CHUNK), strict=True):
        with torch.no_grad():
            target = log_softmax(teacher_head(t).float(), dim=-1)
        yield kl_div(log_softmax(student_head(s).float(), dim=-1), target, reduction="sum", log_target=True)
