"""Divergences of distributions and log-probabilities of answers by torch, and examples that a teacher knows."""

from pathlib import Path

import numpy as np
import pytest
import torch

import edgetune
from edgetune.data.packing import Example
from edgetune.errors import MismatchError


def divergence(objective, logq, logp):
    """Of each position [S], from log-probabilities of outcomes [S, K + 1]."""
    q, p = logq.exp(), logp.exp()
    if objective.divergence == "forward":
        return (q * (logq - logp)).sum(1)
    if objective.divergence == "reverse":
        return (p * (logp - logq)).sum(1)
    alpha = objective.distillation_alpha
    logm = (alpha * q + (1 - alpha) * p).log()
    return (alpha * q * (logq - logm) + (1 - alpha) * p * (logp - logm)).sum(1)


def with_rest(logp):
    return torch.cat([logp, torch.log1p(-logp.exp().sum(1, keepdim=True))], 1)


def taught(case, sizes):
    """Answers of these sizes to a question of 10 tokens, two of which are the same; the teacher sees 4 more."""
    rng = np.random.default_rng(11)
    n_vocab = case.decoder.shape.n_vocab
    case.examples[:] = []
    for i, size in enumerate(sizes):
        if i != 3:
            question = rng.integers(0, n_vocab, 10)
        tokens = np.r_[question, rng.integers(0, n_vocab, size)].astype(np.int32)
        prompt = np.r_[question, rng.integers(0, n_vocab, 4)].astype(np.int32)
        case.examples.append(Example(tokens, np.r_[np.zeros(10), np.ones(size)].astype(np.float32), prompts=(prompt,)))


def by_peft(peft, example, prompt):
    """log p [S, V] at the answer's positions behind a prompt."""
    tokens = torch.from_numpy(np.r_[prompt, example.tokens[10:]]).long()
    return torch.log_softmax(peft(tokens[None], use_cache=False).logits[0, prompt.size - 1:-1], -1)


def resumes_with_its_teacher(stopped: Path, whole: Path, teacher: Path, other: bytes, refusal: str) -> None:
    """A stopped run goes on to the bytes of one that was not, and not while the teacher's file holds `other`."""
    kept = teacher.read_bytes()
    teacher.write_bytes(other)
    try:
        with pytest.raises(MismatchError, match=refusal):
            edgetune.resume(stopped, answers=False)
    finally:
        teacher.write_bytes(kept)  # other tests read it too
    edgetune.resume(stopped, answers=False)
    assert (whole / "adapter.gguf").read_bytes() == (stopped / "adapter.gguf").read_bytes()
