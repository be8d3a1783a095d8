"""An objective's loss and LoRA gradient by this engine, and by autograd on the same model in transformers with PEFT."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from decoder_cases import Case, gradients_by_peft, logp_by_peft
from peft import PeftModel

from edgetune.data.packing import Batch, Example, collate
from edgetune.data.trees import Tree
from edgetune.models.decoder import Decoder
from edgetune.objectives.base import Objective
from edgetune.training.passes import Gradient
from edgetune.training.reference import Reference

Loss = Callable[[list[torch.Tensor], list[torch.Tensor]], torch.Tensor]  # of each document: log p [S], weights [S]


def autograd(case: Case, loss_of: Loss, peft: PeftModel) -> tuple[float, np.ndarray]:
    """The loss and its gradients by transformers, PEFT and autograd, each document in a separate pass."""
    logps = supervised_logps(peft, case.examples)
    loss = loss_of(logps, [torch.from_numpy(one.weights[1:][one.weights[1:] != 0]) for one in case.examples])
    loss.backward()
    return loss.item(), flat(gradients_by_peft(case, peft))


def supervised_logps(peft: PeftModel, examples: Iterable[Example]) -> list[torch.Tensor]:
    """Of each document [S]."""
    return [logp_by_peft(peft, one.tokens)[torch.from_numpy(one.weights[1:]) != 0] for one in examples]


def flat(grads: dict[str, tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    return np.concatenate([part.ravel() for key in sorted(grads) for part in grads[key]])


def our_gradient(case: Case, objective: Objective, parts: int,
                 reference: Reference | Known | None = None) -> tuple[float, np.ndarray]:
    """Loss and gradient over a number of micro-batches."""
    step = np.array_split(np.arange(len(case.examples) // 2), parts)
    batches = [collate(case.examples[2 * pairs[0]:2 * pairs[-1] + 2]) for pairs in step]
    return gradient_over(case.decoder, objective, case.examples, batches, reference)


def gradient_over(decoder: Decoder, objective: Objective, examples: Sequence[Example], micros: Sequence[Batch | Tree],
                  reference: Reference | Known | None = None) -> tuple[float, np.ndarray]:
    """The same over these micro-batches of the examples, or over trees."""
    n = objective.count(examples)
    decoder.arena.flat("dlora").fill(0.0)
    gradient = Gradient(decoder, objective, n, reference)
    if objective.sees_step and len(micros) > 1:
        loss = gradient.add_together(lambda: micros).loss / n
    else:
        loss = sum(gradient.add(micro).loss for micro in micros) / n
    return loss, flat({key: (pair.da, pair.db) for key, pair in decoder.adapter.adapted.items()})


class Known:
    """log p by the base, as transformers has it, by the answer's tokens."""

    def __init__(self, examples: Sequence[Example], base: Sequence[torch.Tensor]) -> None:
        self.known = {one.tokens.tobytes(): logp.numpy() for one, logp in zip(examples, base, strict=True)}

    def add_to(self, batch: Batch) -> Batch:
        return replace(batch, reference=np.concatenate([self.known[one.tokens.tobytes()] for one in batch.examples]))
