"""edgetune.evaluation.canary: against torch on llama.cpp's own logits."""

import math

import numpy as np
import pytest
import torch
from random_adapters import SEVEN

from edgetune.adapters.lora import Pair
from edgetune.adapters.store import save_gguf
from edgetune.evaluation.canary import FILE, drift
from edgetune.serving.llama import LlamaModel

TEXTS = ["A river, and what is beside it.", FILE.read_text("utf-8")[:400]]


def adapter(bundle, path, size):
    rng = np.random.default_rng(0)
    pairs = {}
    for name, tensor in bundle.gguf.tensors.items():
        if name.startswith("blk.0.") and name.split(".")[2] in SEVEN and name.endswith(".weight"):
            n, k = tensor.shape
            pairs[name.removesuffix(".weight")] = Pair(rng.normal(size=(2, k)).astype(np.float32),
                                                       (size * rng.normal(size=(n, 2))).astype(np.float32), 1.0)
    save_gguf(path, pairs, bundle.gguf)
    return path


def test_drift_is_what_torch_says(bundle, tmp_path):
    with LlamaModel(bundle.path, context=512) as served:
        served.load_adapter(adapter(bundle, tmp_path / "far.gguf", 0.1), "far")
        found = drift(served, "far", TEXTS)
        base, other, kl = [], [], []
        for text in TEXTS:
            tokens = served.tokenizer.encode(text, bos=True)
            for i in range(0, len(tokens), 128):
                piece = tokens[i:i + 128]
                served.use(None)
                p = torch.log_softmax(torch.from_numpy(served.logits(piece[:-1])).double(), -1)
                served.use("far")
                q = torch.log_softmax(torch.from_numpy(served.logits(piece[:-1])).double(), -1)
                following = torch.tensor(piece[1:])[:, None]
                base.append(p.gather(1, following))
                other.append(q.gather(1, following))
                kl.append(torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(1))
    assert found.tokens == sum(len(part) for part in kl)
    assert found.kl == pytest.approx(float(torch.cat(kl).mean()), rel=1e-4)
    rise = math.exp(float((torch.cat(base) - torch.cat(other)).mean())) - 1
    assert found.rise == pytest.approx(rise, rel=1e-3)


def test_what_changes_nothing_drifts_nowhere(bundle, tmp_path):
    with LlamaModel(bundle.path, context=512) as served:
        served.load_adapter(adapter(bundle, tmp_path / "none.gguf", 0.0), "none")
        found = drift(served, "none", TEXTS)
        assert found.rise == pytest.approx(0, abs=1e-6)
        assert found.kl == pytest.approx(0, abs=1e-6)
        assert drift(served, "none", []).tokens == 0
