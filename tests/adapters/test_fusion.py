"""edgetune.adapters.fusion: log p and the gradient of the weights, compared with autograd on the formula."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from decoder_cases import LIMIT, distance, hf_projection, logp_by_peft, make_case, make_decoder, train_once
from families import row_order
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

    def add(name):
        order = row_order(hf_projection(name), carved.shapes[name][0], case.model)
        back = slice(None) if order is None else torch.from_numpy(np.argsort(order).copy())
        a, b = (torch.from_numpy(carved.fused[name][part].copy()) for part in "ab")

        def added(_, inp, out):
            sources = [weights[i] * (inp[0] @ a[2 * i:2 * i + 2].T @ b[:, 2 * i:2 * i + 2].T) for i in range(3)]
            return out + sum(sources)[..., back]

        return case.model.get_submodule(hf_projection(name)).register_forward_hook(added)

    hooks = [add(name) for name in carved.shapes]
    logps = []
    for example in case.examples:
        logp = logp_by_peft(case.model, example.tokens)
        row = torch.from_numpy(example.weights[1:])
        (-(row * logp).sum()).backward()
        logps.append(logp[row != 0].detach().numpy())
    for hook in hooks:
        hook.remove()
    assert distance(train_once(replace(case, decoder=decoder)), np.concatenate(logps)) < LIMIT
    assert np.linalg.norm(weights.grad) > 1e-3
    assert distance(carved.dweights, weights.grad.numpy()) < LIMIT
