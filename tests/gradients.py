"""An objective's loss and LoRA gradient by this engine, and by autograd on the same model in transformers with PEFT."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from decoder_cases import Case, adapted, hf_projection, lora_parameters
from families import row_order
from peft import PeftModel

from edgetune.data.packing import collate
from edgetune.objectives.base import Objective
from edgetune.training.gradient import Gradient
from edgetune.training.reference import Reference

Loss = Callable[[list[torch.Tensor], list[torch.Tensor]], torch.Tensor]  # of each document: log p [S], weights [S]


def autograd(
    case: Case, loss_of: Loss, peft: PeftModel | None = None
) -> tuple[float, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """The loss and its gradients by transformers, PEFT and autograd, each document in a separate pass."""
    peft = peft or adapted(case)
    logps = []
    weights = []
    for example in case.examples:
        tokens = torch.from_numpy(example.tokens).long()
        out = torch.log_softmax(peft(tokens[None], use_cache=False).logits[0, :-1], -1)
        w = torch.from_numpy(example.weights[1:])
        logps.append(out.gather(1, tokens[1:, None])[:, 0][w != 0])
        weights.append(w[w != 0])
    loss = loss_of(logps, weights)
    loss.backward()
    grads = {}
    for key, pair in case.pairs.items():
        a, b = (p.grad.numpy() for p in lora_parameters(peft, key))
        order = row_order(hf_projection(key), pair.b.shape[0], case.model)
        grads[key] = a, b if order is None else b[order]
    return loss.item(), grads


def flat(grads: dict[str, tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    return np.concatenate([part.ravel() for key in sorted(grads) for part in grads[key]])


def our_gradient(
    case: Case, objective: Objective, parts: int, reference: Reference | None = None
) -> tuple[float, np.ndarray]:
    """Loss and gradient over a number of micro-batches."""
    step = np.array_split(np.arange(len(case.examples) // 2), parts)
    batches = [collate(case.examples[2 * pairs[0]:2 * pairs[-1] + 2]) for pairs in step]
    n = objective.count(case.examples)
    case.decoder.arena.flat("dlora").fill(0.0)
    gradient = Gradient(case.decoder, objective, n, reference)
    if objective.sees_step and parts > 1:
        loss = gradient.add_together(lambda: batches).loss / n
    else:
        loss = sum(gradient.add(batch).loss for batch in batches) / n
    return loss, flat({key: (pair.da, pair.db) for key, pair in case.decoder.adapter.adapted.items()})
