"""edgetune.adapters.fusion: log p and the gradient of the weights, compared with autograd on the formula."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from decoder_cases import LIMIT, distance, logp_with_updates, make_case, make_decoder, train_once
from small_families import small


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_forward_and_gradient_are_those_of_the_formula(architecture, tmp_path):
    case = make_case(architecture, tmp_path, num_hidden_layers=2)
    shape = replace(case.decoder.run, family=replace(small("fusion", 6), sources=3))
    model = case.decoder.model
    decoder = make_decoder(model, shape, shape.family.state(model.structure.trained_shapes(shape)))
    carved = decoder.adapter
    carved.weights[:] = (0.5, -0.3, 0.8)
    weights = torch.tensor(carved.weights.copy(), requires_grad=True)

    def update(name, x):
        a, b = (torch.from_numpy(carved.fused[name][part].copy()) for part in "ab")
        return sum(weights[i] * (x @ a[2 * i:2 * i + 2].T @ b[:, 2 * i:2 * i + 2].T) for i in range(3))

    logp = logp_with_updates(case, carved.shapes, update)
    assert distance(train_once(replace(case, decoder=decoder)), logp) < LIMIT
    assert np.linalg.norm(weights.grad) > 1e-3
    assert distance(carved.dweights, weights.grad.numpy()) < LIMIT
