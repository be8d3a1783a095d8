"""all-MiniLM-L6-v2 on its weights: transformers, llama.cpp, the gates of precision, memory."""

import subprocess
import sys
from functools import cache

import numpy as np
import pytest
from encoders import minilm_checkpoint, truth, vectors
from labelled import LLAMA_CPP, TEXTS, classes, close, open_trainer, our_gradient, read_texts
from precision import GATES, KINDS, cosine
from sometimes import mostly_slow

from edgetune.adapters.heads import VECTOR
from edgetune.data.packing import collate
from edgetune.formats.bert import write_bert

pytest.importorskip("torch", reason="torch is the truth here")
from transformers import BertModel


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    """(its checkpoint, a function of a format: the GGUF)"""
    folder = tmp_path_factory.mktemp("minilm")
    checkpoint = minilm_checkpoint(folder)

    @cache
    def written(format):
        write_bert(folder / f"{format}.gguf", checkpoint, format)
        return folder / f"{format}.gguf"

    return checkpoint, written


@pytest.mark.dev
def test_minilm_equals_transformers_and_llama_cpp(minilm):
    checkpoint, written = minilm
    path = written("F32")
    rows = read_texts(path)
    network = BertModel.from_pretrained(checkpoint).eval()
    found = open_trainer(path, VECTOR).decoder.pooled(collate(rows, share=False))
    close(found, [truth(network, row.tokens.tolist()) for row in rows])
    close(found, vectors(path, TEXTS), LLAMA_CPP)


@pytest.mark.dev
@pytest.mark.parametrize("format", ["Q8_0", "Q4_1"])
def test_quantized_minilm_equals_llama_cpp(minilm, format):
    """Within what its products in 8 bits are off."""
    path = minilm[1](format)
    rows = read_texts(path)
    found = open_trainer(path, VECTOR).decoder.pooled(collate(rows, share=False))
    assert (found * vectors(path, TEXTS)).sum(1).min() > 0.999


@pytest.mark.dev
@pytest.mark.parametrize("precision", GATES)
@pytest.mark.parametrize("isa", mostly_slow(KINDS, KINDS[:1]))
def test_minilm_passes_the_gates_of_precision(minilm, isa, precision, monkeypatch):
    monkeypatch.setenv("EDGETUNE_ISA", isa)
    path = minilm[1]("Q8_0")
    rows = read_texts(path)
    found = {}
    for asked in ("exact", precision):
        trainer = open_trainer(path, classes(len(TEXTS)), precision=asked)
        rng = np.random.default_rng(1)
        pairs = trainer.decoder.adapter.adapted
        for pair in pairs.values():
            pair.b[:] = rng.standard_normal(pair.b.shape) * 1e-3
        our_gradient(trainer, collate(rows, share=False), np.ones(len(TEXTS), np.float32))
        found[asked] = {f"{name}.{side}": getattr(pair, side).astype(np.float64).ravel()
                        for name, pair in pairs.items() for side in ("da", "db")}
    exact, other = found["exact"], found[precision]
    least = min(cosine(exact[name], other[name]) for name in exact)
    whole = cosine(*(np.concatenate([*each.values()]) for each in (exact, other)))
    print(f"{precision}: whole {whole:.5f}, least {least:.4f}")
    assert whole >= GATES[precision][0]
    assert least >= GATES[precision][1]


WITHIN = """
import sys
import numpy as np
from edgetune.errors import BudgetError
from edgetune.machine.device import peak_rss
from labelled import at_first, classes, open_trainer
rng = np.random.default_rng(0)
try:
    trainer = open_trainer(sys.argv[1], classes(7), memory=sys.argv[2], max_length=64, precision="fast", steps=2)
except BudgetError as error:
    sys.exit(print(error.needed))
trainer.add_examples([at_first(rng.integers(1000, 20000, 60).astype(np.int32), i % 7) for i in range(16)])
trainer.train()
print(trainer.plan.peak_bytes, peak_rss(), trainer.plan.tradeoffs.streamed)
"""


def train_within(path, mib):
    """What WITHIN prints, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", WITHIN, path, f"{mib}M"], capture_output=True, text=True, timeout=300,
                          check=True)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.dev
def test_minilm_trains_within_a_budget(minilm):
    """In 150 MiB, and in the least that a refusal names, where weights are read at each use."""
    path = minilm[1]("Q8_0")
    planned, measured, streamed = train_within(path, 150)
    assert measured <= planned <= 150 << 20
    assert not streamed
    least = -(-train_within(path, 1)[0] >> 20) + 1
    assert least < 80
    planned, measured, streamed = train_within(path, least)
    assert measured <= planned <= least << 20
    assert streamed


