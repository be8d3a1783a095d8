"""LoRA on experts: gradients by autograd, logits by llama.cpp and PEFT, and that each row has its own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from decoder_cases import LIMIT, Case, branching_examples, distance, in_parts, keeping, make_case, pass_once, train_once
from gguf_names import gguf_name

from edgetune.adapters.lora import stack_of
from edgetune.data.trees import micro_batches
from edgetune.formats.families import OF_EXPERTS
from edgetune.objectives.sft import Sft
from edgetune.training.passes import Gradient

EXPERTS = tuple(OF_EXPERTS)
MIXTURES = ("qwen3moe", "olmoe", "granitemoe", "granitemoeshared")
WITH_SHARED = {"granitemoe": "granitemoeshared", "granitehybrid": "granitehybridmoe"}


def with_updates(case: Case) -> tuple[dict[str, torch.Tensor], dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """The weights of transformers' model plus s B A of each pair, and the A and B that they depend on."""
    leaves = {name: (torch.tensor(pair.a, dtype=torch.float32, requires_grad=True),
                     torch.tensor(pair.b, dtype=torch.float32, requires_grad=True))
              for name, pair in case.pairs.items()}

    def update(name: str) -> torch.Tensor:
        a, b = leaves[name]
        return case.pairs[name].scale * b @ a

    weights = {}
    shape = case.decoder.shape
    family = WITH_SHARED[shape.architecture] if shape.d_shared else shape.architecture
    for hf_name, weight in case.model.named_parameters():
        name = gguf_name(hf_name, family).removesuffix(".weight")
        base = weight.detach()
        if name in leaves:
            weights[hf_name] = base + update(name)
        elif name.replace("gate_up", "up") in leaves:
            weights[hf_name] = base + torch.cat([update(name.replace("gate_up", half)) for half in ("gate", "up")])
        elif name.replace("gate_up", "up") + ".0" in leaves and "gate_up" in name:
            halves = [torch.stack([update(f"{name.replace('gate_up', half)}.{i}") for i in range(len(base))])
                      for half in ("gate", "up")]
            weights[hf_name] = base + torch.cat(halves, 1)
        elif f"{name}.0" in leaves:
            weights[hf_name] = base + torch.stack([update(f"{name}.{i}") for i in range(len(base))])
    return weights, leaves


def truth(case: Case) -> tuple[np.ndarray, np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """As decoder_cases.truth, by hand-made LoRA in torch."""
    logits = []
    logps = []
    weights, leaves = with_updates(case)
    loss = torch.zeros(())
    for example in case.examples:
        tokens = torch.from_numpy(example.tokens).long()
        out = torch.func.functional_call(case.model, weights, (tokens[None],), {"use_cache": False}).logits[0]
        logits.append(out.detach().numpy())
        logp = torch.log_softmax(out[:-1], -1).gather(1, tokens[1:, None])[:, 0]
        of_tokens = torch.from_numpy(example.weights[1:])
        logps.append(logp[of_tokens != 0].detach().numpy())
        loss = loss - (of_tokens * logp).sum()
    loss.backward()
    grads = {name: (a.grad.numpy(), b.grad.numpy()) for name, (a, b) in leaves.items()}
    return np.concatenate(logits), np.concatenate(logps), grads


def compare(case: Case, logits: np.ndarray, logp: np.ndarray, grads: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    errors = {"logits": distance(case.decoder.logits(case.batch)[case.places], logits),
              "score": distance(case.decoder.score(case.batch), logp), "train": distance(train_once(case), logp),
              **gradient_errors(case, grads)}
    assert {what: error for what, error in errors.items() if not error < LIMIT} == {}


def gradient_errors(case: Case, grads: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Of what is in the arena. Each stack together: an expert that few tokens take has a small gradient."""
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for name, pair in case.decoder.adapter.adapted.items():
        for kind, ours, theirs in zip("AB", (pair.da, pair.db), grads[name], strict=True):
            found.setdefault(f"{stack_of(name)[0]} {kind}", []).append((ours, theirs))
    assert all(np.linalg.norm([theirs for _, theirs in both]) > 1e-3 for both in found.values())
    return {what: distance(*map(np.stack, zip(*both, strict=True))) for what, both in found.items()}


def expert_case(name: str, folder: Path, blocks: range | None = None, targets: tuple[str, ...] = EXPERTS) -> Case:
    return make_case(name, folder, targets, blocks)


@pytest.mark.dev
@pytest.mark.parametrize("blocks", [None, range(1, 3), range(2)], ids=["all", "last", "first"])
@pytest.mark.parametrize("name", [*MIXTURES, "granitehybridmoe"])
def test_gradients_equal_autograd(name, blocks, tmp_path):
    """Where activations of one block are kept, of some, and of all; backward ends at the experts of the lowest block.
    """
    case = expert_case(name, tmp_path, blocks)
    found = truth(case)
    for kept in (1, 2, 9):
        compare(keeping(case, kept), *found)


@pytest.mark.dev
@pytest.mark.parametrize("target", EXPERTS)
def test_gradients_of_one_projection_alone(target, tmp_path):
    case = expert_case("qwen3moe", tmp_path, range(1, 3), (target,))
    compare(case, *truth(case))
    case = expert_case("qwen3moe", tmp_path, range(1, 3), ("q_proj", target))
    compare(case, *truth(case))


@pytest.mark.dev
@pytest.mark.parametrize("name", MIXTURES)
def test_gradients_of_a_forest_and_of_its_parts_equal_autograd_on_its_rows(name, tmp_path):
    case = expert_case(name, tmp_path)
    case = replace(case, examples=branching_examples(case.decoder.shape.n_vocab))
    assert case.batch.tokens.size < 0.6 * case.batch.row_tokens
    found = truth(case)
    compare(case, *found)
    case = replace(case, examples=[replace(row, group=1) for row in case.examples])
    parts = in_parts(case, 48, 20, 1)
    tree, = micro_batches(case.examples, 48, prefix=20)
    parts.decoder.arena.flat("dlora").fill(0.0)
    Gradient(parts.decoder, Sft(), 1.0).add(tree)
    assert {what: error for what, error in gradient_errors(parts, found[2]).items() if not error < 1e-5} == {}


def test_gradients_accumulate(tmp_path):
    case = expert_case("olmoe", tmp_path)
    train_once(case)
    once = case.decoder.arena.flat("dlora").copy()
    pass_once(case)
    assert distance(case.decoder.arena.flat("dlora"), 2 * once) < 1e-6
