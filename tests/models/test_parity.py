"""The real SmolLM2: our engine on the quantized weights beside llama.cpp, the same file and the same tokens."""

import numpy as np
import pytest

from edgetune.data.packing import Example, collate
from edgetune.formats.gguf import open_gguf
from edgetune.models.decoder import Model
from edgetune.serving.llama import LlamaModel
from edgetune.serving.rollouts.forward import open_decoder

TOKENS = 4000
WINDOW = 500


def log_softmax(logits):
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


@pytest.mark.slow  # half a minute; `make lab NAME=parity`
def test_perplexity_and_divergence_to_llama_cpp(smollm2, shared_data):
    """Perplexity within 1 %, mean KL(llama.cpp || ours) <= 0.02, over windows of 500 tokens."""
    decoder = open_decoder(Model(open_gguf(smollm2)), {}, threads=2, max_tokens=WINDOW, max_length=WINDOW)
    text = (shared_data / "wikitext2_valid.txt").read_text()[:40_000]
    ours = []
    theirs = []
    divergence = []
    with LlamaModel(smollm2, context=WINDOW) as served:
        ids = served.tokenizer.encode(text, special=False)[:TOKENS]
        assert len(ids) == TOKENS
        for at in range(0, TOKENS, WINDOW):
            tokens = np.array(ids[at:at + WINDOW], np.int32)
            a = log_softmax(served.logits(tokens.tolist()))
            b = log_softmax(decoder.logits(collate([Example(tokens, np.ones(WINDOW, np.float32))])))
            rows = np.arange(WINDOW - 1)
            theirs.append(a[rows, tokens[1:]])
            ours.append(b[rows, tokens[1:]])
            divergence.append((np.exp(a) * (a - b)).sum(axis=1))
            served.reset()
    perplexity = [float(np.exp(-np.concatenate(x).mean(dtype=np.float64))) for x in (ours, theirs)]
    assert perplexity[0] == pytest.approx(perplexity[1], rel=0.01)
    assert float(np.concatenate(divergence).mean()) <= 0.02
    print(perplexity, float(np.concatenate(divergence).mean()))
