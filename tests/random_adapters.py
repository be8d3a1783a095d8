"""Random adapters as GGUF files, written with the gguf package, and prompts whose answers are no close race."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np

from edgetune.adapters.lora import Pair
from edgetune.formats.gguf import Gguf, open_gguf
from edgetune.serving.llama import LlamaModel

SEVEN = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
Pairs = dict[str, tuple[np.ndarray, np.ndarray]]  # "blk.0.attn_q" -> A [R, K], B [N, R]


def tokens_of(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, 259, n).tolist()


def decided_prompts(served: LlamaModel, lengths: list[int], steps: int, start: list[int]) -> list[list[int]]:
    """Prompts of these lengths, beginning with `start`, whose greedy continuation is no close race at any step.

    llama.cpp sums in another order when more tokens are computed together, which may turn a close race.
    """
    prompts: list[list[int]] = []
    seed = 0
    while len(prompts) < len(lengths):
        seed += 1
        prompt = start + tokens_of(lengths[len(prompts)] - len(start), seed)
        if is_decided(served, prompt, steps):
            prompts.append(prompt)
    served.reset()
    return prompts


def is_decided(served: LlamaModel, prompt: list[int], steps: int, least: float = 0.03) -> bool:
    """Whether the logit of each token of the greedy continuation is by more than `least` above that of any other."""
    ids = list(prompt)
    for _ in range(steps):
        wanted = np.arange(len(ids)) == len(ids) - 1
        ((_, logits),) = served.cache.feed(ids, wanted)
        second, first = np.sort(logits[-1])[-2:]
        if first - second <= least:
            return False
        ids.append(int(logits[-1].argmax()))
    return True


def random_pairs(base: Path, ranks: Mapping[str, int], seed: int) -> Pairs:
    """Random A and B of the given rank for these projections in every block."""
    rng = np.random.default_rng(seed)
    pairs = {}
    for name, tensor in open_gguf(base).tensors.items():
        stem = name.removesuffix(".weight")
        rank = ranks.get(stem.rpartition(".")[2])
        if rank:
            n, k = tensor.shape
            pairs[stem] = (rng.standard_normal((rank, k)).astype(np.float32) / np.float32(np.sqrt(k)),
                           rng.standard_normal((n, rank)).astype(np.float32) * np.float32(0.3))
    return pairs


def random_updates(base: Gguf, names: Sequence[str], ranks: Sequence[int] = (4,), scales: Sequence[float] = (2.0,),
                   size: float = 1.0, seed: int = 0) -> dict[str, Pair]:
    """Updates `size` times as large as the weights, so that a wrong scale shows. Ranks and scales are dealt in turn."""
    rng = np.random.default_rng(seed)
    pairs = {}
    for i, name in enumerate(names):
        n, k = base.tensors[f"{name}.weight"].shape
        rank = ranks[i % len(ranks)]
        scale = scales[i % len(scales)]
        a = rng.standard_normal((rank, k)) / np.sqrt(k)
        b = rng.standard_normal((n, rank)) / np.sqrt(rank) / scale * size
        pairs[name] = Pair(a.astype(np.float32), b.astype(np.float32), scale)
    return pairs


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Relative L2 error of a against b."""
    assert a.shape == b.shape
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def write_adapter(path: Path, pairs: Pairs, alpha: float, architecture: str = "llama", **metadata: str) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for key, value in metadata.items():
        writer.add_string(key.replace("__", "."), value)
    for stem, (a, b) in pairs.items():
        writer.add_tensor(f"{stem}.weight.lora_a", a)
        writer.add_tensor(f"{stem}.weight.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
