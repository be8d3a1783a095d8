"""Mutated models through the kernels: what opens is trained for a step; never a crash (run under sanitizers too)."""


import numpy as np
import pytest
from counting import one_step
from encoders import WORDS, tiny_bert, write_encoder
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from labelled import at_first, classes, open_trainer
from tiny import write_tiny

from edgetune.errors import EdgetuneError, NumericsError
from edgetune.formats.gguf import ENCODER, FORMATS, open_gguf

CASES = examples(80, derandomize=True, database=None)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    paths = [write_tiny(folder / f"{name}.gguf", name, formats="Q8_0", n_blocks=n_blocks, n_vocab=384)
             for name, n_blocks in (("llama", 2), ("qwen2", 2), ("qwen3", 2), ("gemma3", 2), ("gemma4", 4),
                                    ("qwen35", 2), ("granitehybrid", 2))]
    paths.append(write_tiny(folder / "shared.gguf", "granitehybrid", formats="Q8_0", n_blocks=2, n_vocab=384,
                            experts=(4, 2), d_ff=64, d_shared=96))
    paths.append(write_encoder(folder / "bert.gguf", tiny_bert(), WORDS))
    return [path.read_bytes() for path in paths]


def labelled_step(path):
    """As one_step, of an encoder."""
    trainer = open_trainer(path, classes(2), steps=1, max_length=16)
    trainer.add_examples([at_first(row, i) for i, row in enumerate(np.arange(24, dtype=np.int32).reshape(2, 12))])
    return trainer


def train_a_step(path):
    """True if the file was good enough to be trained."""
    try:
        (labelled_step if open_gguf(path).metadata.get("general.architecture") == ENCODER else one_step)(path).step()
    except EdgetuneError:
        return False
    return True


@CASES
@given(data=st.data())
def test_mutated_headers(tmp_path, originals, data):
    """Bytes of keys and tensor entries, aimed at the values that sizes come from."""
    raw = bytearray(data.draw(st.sampled_from(originals)))
    path = tmp_path / "x.gguf"
    path.write_bytes(raw)
    end = open_gguf(path).data_start
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.one_of(st.integers(0, min(1500, end) - 8), st.integers(max(0, end - 3000), end - 8)))
        raw[place:place + 4] = data.draw(st.sampled_from([0, 1, 2, 3, 7, 16, 31, 33, 64, 128, 2**16, 2**31 - 1,
                                                          2**32 - 1])).to_bytes(4, "little")
    path.write_bytes(raw)
    train_a_step(path)


@pytest.mark.dev
@pytest.mark.parametrize("form", sorted(FORMATS.keys() - {"F32"}))
def test_random_weights(tmp_path, form):
    """Any bytes are weights: scales and norms become NaN, infinite, huge. A step says so and is undone."""
    path = write_tiny(tmp_path / "x.gguf", formats=form, d_model=256, head_width=64, d_ff=256, n_blocks=1, n_vocab=384)
    raw = bytearray(path.read_bytes())
    start = open_gguf(path).data_start
    raw[start:] = np.random.default_rng(0).bytes(len(raw) - start)
    path.write_bytes(raw)
    with np.errstate(all="ignore"):
        assert not all(np.isfinite(tensor.f32()).all() for tensor in open_gguf(path).tensors.values())
    trainer = one_step(path)
    before = trainer.arena.flat("lora").copy()
    with pytest.raises(NumericsError, match="loss is"):
        trainer.step()
    assert trainer.arena.flat("lora").tobytes() == before.tobytes()
    assert trainer.steps_done == 0


def test_the_originals_train(tmp_path, originals):
    for raw in originals:
        (tmp_path / "x.gguf").write_bytes(raw)
        assert train_a_step(tmp_path / "x.gguf")
