"""A mixture of LoRAs as the paper's formula, by autograd; and what its experts are worth where they are alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoder_cases import LIMIT, distance, logp_with_updates, make_case, make_decoder, train_once

from edgetune.adapters.lora import Pair
from edgetune.adapters.molora import Molora
from edgetune.data.packing import collate
from edgetune.serving.rollouts.forward import open_decoder


def mixture(case: Any, family: Molora) -> Any:
    """The decoder of a case with this family, of random values."""
    decoder = make_decoder(case.decoder.model, replace(case.decoder.run, family=family))
    rng = np.random.default_rng(5)
    for value in decoder.adapter.values.values():
        value[:] = rng.standard_normal(value.shape) / value.shape[-1]**0.5
    return decoder


def formula(read: torch.Tensor, out: torch.Tensor, x: torch.Tensor, family: Molora) -> torch.Tensor:
    """scale * sum_e p_e(x) B_e (A_e x), the experts one by one. read [E R + E, K], out [N, E R]."""
    r = family.rank
    p = torch.softmax(x @ read[family.experts * r:].T, -1)
    each = [p[..., e, None] * (x @ read[e * r:(e + 1) * r].T @ out[:, e * r:(e + 1) * r].T)
            for e in range(family.experts)]
    return family.alpha / r * torch.stack(each).sum(0)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3"])
def test_forward_and_gradients_are_those_of_the_paper(architecture: str, tmp_path: Path) -> None:
    case = make_case(architecture, tmp_path, num_hidden_layers=2)
    family = Molora(experts=3, rank=2, alpha=4.0)
    decoder = mixture(case, family)
    carved = decoder.adapter
    leaves = {name: torch.from_numpy(value.copy()).requires_grad_() for name, value in carved.values.items()}

    logp = logp_with_updates(case, [name.removesuffix(".in") for name in leaves if name.endswith(".in")],
                             lambda name, x: formula(leaves[f"{name}.in"], leaves[f"{name}.out"], x, family))
    errors = {"log p": distance(train_once(replace(case, decoder=decoder)), logp)}
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        gradient = leaf.grad.numpy()
        assert np.linalg.norm(gradient) > 1e-4, f"{name}: no gradient to compare"
        errors[name] = distance(carved.gradients[name], gradient)
    assert {what: error for what, error in errors.items() if not error < LIMIT} == {}


def test_experts_that_are_alike_are_one_lora(tmp_path: Path) -> None:
    """Whatever the router says: the weights of all experts sum to 1."""
    case = make_case("llama", tmp_path, num_hidden_layers=2)
    family = Molora(experts=3, rank=2, alpha=4.0)
    decoder = mixture(case, family)
    pairs = {}
    for name, read in decoder.adapter.values.items():
        if name.endswith(".in"):
            projection = name.removesuffix(".in")
            out = decoder.adapter.values[f"{projection}.out"]
            read[:6] = np.tile(read[:2], (3, 1))
            out[:] = np.tile(out[:, :2], 3)
            pairs[projection] = Pair(read[:2].copy(), out[:, :2].copy(), 2.0)
    batch = collate(case.examples)
    alone = open_decoder(case.decoder.model.gguf, pairs, threads=2, max_tokens=200, max_length=64)
    np.testing.assert_allclose(alone.score(batch), decoder.score(batch), atol=1e-4)
