"""A source for proofs of quantization: a Q4_1 model whose weights lie on no 4-bit grid again.

A GGUF that was dequantized from Q4_1 goes back into Q4_1 without loss, so every comparison by it would be a sham. Each
weight of a Q4_1 tensor gets a uniform residue within half its block's step, as what quantization once took from it.
"""

from pathlib import Path

import numpy as np

from edgetune.compress.source import floats
from edgetune.formats.gguf import open_gguf


def write_residue(path: Path, out: Path, seed: int = 0) -> None:
    """The Q4_1 GGUF at `path` as F16 with its residue, drawn in the order of the file."""
    stored = open_gguf(path)
    model = floats.read(stored)
    rng = np.random.default_rng(seed)
    tensors = dict(model.tensors)
    for name, tensor in stored.tensors.items():
        if tensor.format == "Q4_1":
            blocks = tensor.data.reshape(-1, 20)
            steps = np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float32)  # [n, 1]
            residue = steps * rng.uniform(-0.5, 0.5, (len(blocks), 32)).astype(np.float32)
            tensors[name] = tensors[name] + residue.reshape(tensor.shape)
    floats.write(out, model.with_keys(tensors))
