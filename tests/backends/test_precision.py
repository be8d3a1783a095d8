"""What precision may cost: a LoRA's gradients at "fast" and "int8" beside "exact", on tiny models and a real one."""

from functools import cache, lru_cache

import numpy as np
import pytest
from precision import GATES, KERNEL_SETS, KINDS, cosine
from sometimes import mostly_slow
from tiny import SHAPES, write_tiny

from edgetune.adapters.base import Artifact
from edgetune.adapters.lora import Pair, stack_of
from edgetune.backends import cpu, native
from edgetune.data.packing import Example, collate
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.models.experts import Experts
from edgetune.training.trainer import Trainer

# What a delta net reads of its states is normed, however small it is: with a small epsilon rounding decides it.
CALM = {"qwen35": {"rms_eps": 1e-2}}
CHOSEN = {}  # experts of each token in exact passes, by model and block


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Writes a tiny model in Q8_0, or returns the one that was written before."""
    folder = tmp_path_factory.mktemp("tiny")

    @cache
    def write(architecture, **sizes):
        return write_tiny(folder / f"{len([*folder.iterdir()])}.gguf", architecture, formats="Q8_0", **sizes)

    return write


@lru_cache(2)  # the exact ones serve both precisions
def gradients(model, tokens, precision, isa, targets):
    """(every dA and dB by name, those of a block's experts together, loss) for one row, with a random B of 1e-3.

    Where B is ten times as large, the first blocks' gradients in SmolLM2 differ altogether, in bf16 and in int8 alike.
    """
    tokens = np.array(tokens, np.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGETUNE_ISA", isa)
        trainer = Trainer(model, rank=8, max_length=tokens.size, batch_size=1, threads=2, precision=precision,
                          targets=targets)
    rng = np.random.default_rng(1)
    adapter = trainer.decoder.adapter
    pairs = {name: Pair(pair.a, rng.standard_normal(pair.b.shape, np.float32) * np.float32(1e-3), pair.scale)
             for name, pair in adapter.artifact().pairs.items()}
    adapter.load(Artifact(pairs), "pairs")
    weights = np.ones(tokens.size, np.float32)
    weights[0] = 0
    batch = collate([Example(tokens, weights)])
    choose = Experts._chosen

    def as_exact(self, layer, p):  # or a token with two experts as good would take the other where it is rounded
        return CHOSEN.setdefault((model, layer), choose(self, layer, p))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Experts, "_chosen", as_exact)
        trainer.decoder.forward(batch, keep=True)
        logp = trainer.decoder.backward(batch, np.full(tokens.size - 1, 1 / (tokens.size - 1), np.float32))
    parts = {}
    for name, pair in adapter.adapted.items():
        for side in ("da", "db"):
            parts.setdefault(f"{stack_of(name)[0]}.{side}", []).append(getattr(pair, side).astype(np.float64).ravel())
    return {name: np.concatenate(found) for name, found in parts.items()}, float(-logp.mean())


def compare(model, tokens, precision, isa, targets="all"):
    """(cosine of the whole, the least of a tensor, relative difference of the loss)"""
    (exact, loss), (other, other_loss) = (gradients(model, tuple(tokens), p, isa, targets)
                                          for p in ("exact", precision))
    whole = cosine(np.concatenate(list(exact.values())), np.concatenate(list(other.values())))
    return whole, min(cosine(exact[name], other[name]) for name in exact), abs(other_loss / loss - 1)


@pytest.mark.dev
@pytest.mark.parametrize("precision", GATES)
@pytest.mark.parametrize("architecture", SHAPES)
@pytest.mark.parametrize("isa", KINDS)
def test_tiny_models_pass_the_gate(isa, architecture, precision, written):
    model = written(architecture, **CALM.get(architecture, {}))
    tokens = np.random.default_rng(0).integers(0, 200, 64).tolist()
    whole, least, loss = compare(model, tokens, precision, isa)
    assert whole >= GATES[precision][0]
    assert least >= GATES[precision][1]
    assert loss < 0.01


# Sizes of states that are multiplied in bf16: of tiny models, those of no other test.
STRIPS = {"granitehybrid": {"mamba": (4, 64, 1)}, "qwen35": {"delta": (2, 4, 32), "rms_eps": 1e-2}}


@pytest.mark.dev
@pytest.mark.parametrize("precision", GATES)
@pytest.mark.parametrize("architecture", STRIPS)
@pytest.mark.parametrize("isa", KINDS)
def test_states_of_whole_strips_pass_the_gate(isa, architecture, precision, written):
    """Of 150 tokens, so that two states are kept."""
    model = written(architecture, **STRIPS[architecture])
    tokens = np.random.default_rng(0).integers(0, 200, 150).tolist()
    whole, least, loss = compare(model, tokens, precision, isa)
    print(f"{precision}: whole {whole:.5f}, least {least:.4f}, loss {loss:.2e}")
    assert whole >= GATES[precision][0]
    assert least >= GATES[precision][1]
    assert loss < 0.01


@pytest.mark.dev
@pytest.mark.parametrize("precision", GATES)
@pytest.mark.parametrize("architecture", [name for name in SHAPES if SHAPES[name].experts])
@pytest.mark.parametrize("isa", KINDS)
def test_experts_pass_the_gate(isa, architecture, precision, written):
    model = written(architecture)
    tokens = np.random.default_rng(0).integers(0, 200, 64).tolist()
    whole, least, loss = compare(model, tokens, precision, isa, "q_proj,gate_proj,up_proj,down_proj")
    assert whole >= GATES[precision][0]
    assert least >= GATES[precision][1]
    assert loss < 0.01


@pytest.mark.dev
@pytest.mark.parametrize("precision", GATES)
@pytest.mark.parametrize("isa", mostly_slow(KINDS, KINDS[:1]))
def test_real_model_passes_the_gate(smollm2, shared_data, isa, precision):
    """128 tokens of Snips text. `make slow`: also with the kernels that this machine would not choose."""
    text = (shared_data / "snips_train.jsonl").read_text()[:2000]
    tokens = Tokenizer(smollm2).encode(text)[:128]
    whole, least, loss = compare(smollm2, tokens, precision, isa)
    print(f"{precision}: whole {whole:.5f}, least {least:.4f}, loss {loss:.2e}")
    assert whole >= GATES[precision][0]
    assert least >= GATES[precision][1]
    assert loss < 0.01


def test_threads_change_no_bit(tmp_path):
    model = write_tiny(tmp_path / "tiny.gguf", formats="Q4_1")
    results = []
    for threads in (1, 3):
        trainer = Trainer(model, rank=4, max_length=40, batch_size=2, steps=2, threads=threads)
        trainer.add_examples([Example(np.arange(i, i + 30, dtype=np.int32), np.r_[0, np.ones(29)].astype(np.float32))
                              for i in range(4)])
        trainer.train()
        results.append(trainer.arena.flat("lora").copy())
    assert results[0].tobytes() == results[1].tobytes()


@pytest.mark.parametrize("precision", native.PRECISIONS)
@pytest.mark.parametrize("isa", KERNEL_SETS)
def test_products_are_in_the_numbers_that_they_are_said_to_be(isa, precision):
    """Of 255 and 256.75: floats keep both, bf16 makes 256 of the second, 127ths of 256.75 make 254.73 of the first."""
    ops = cpu.Cpu(1, isa)
    w = np.zeros((2, 32), np.float16)
    inp = np.zeros((1, 32), np.float32)
    out = np.empty((1, 2), np.float32)
    inp[0, :2] = 255, 256.75
    w[0, 0] = w[1, 1] = 1
    ops.matmul_forward(out, inp, w.view(np.uint8).reshape(-1), "F16", precision=precision)
    step = 256.75 / 127
    want = {"float": (255, 256.75), "bf16": (255, 256), "int8": (round(255 / step) * step, 256.75)}
    assert out[0] == pytest.approx(want[ops.products(precision).split()[0]], rel=1e-6)
