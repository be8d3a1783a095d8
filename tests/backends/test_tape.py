"""Tapes: what runs from one is what its ops would compute, and what they would compute for other sizes."""

import gc
import weakref
from functools import partial

import numpy as np
import pytest
from tiny import write_tiny

from edgetune.backends import _native
from edgetune.backends.cpu import Cpu
from edgetune.bench.train import clocked, random_rows
from edgetune.training.trainer import Trainer

MOST = 16  # tokens
WIDTH = 32


class Pass:
    """Some ops on memory that stays, as a block's are; calls: how often they were called."""

    def __init__(self, ops, precision="exact"):
        rng = np.random.default_rng(0)
        self.ops = ops
        self.precision = precision
        self.calls = 0
        self.weight = rng.standard_normal((WIDTH, WIDTH), np.float32)
        self.inp = rng.standard_normal((MOST, WIDTH), np.float32)
        self.out = np.zeros((MOST, WIDTH), np.float32)

    def __call__(self, tokens):
        self.calls += 1
        out = self.out[:tokens]
        self.ops.matmul_forward(out, self.inp[:tokens], self.weight, "F32", precision=self.precision)
        self.ops.scale(out.reshape(-1), 2.0)

    def run(self, tape, tokens):
        """The output of a pass by tape, and whether it called this object."""
        before = self.calls
        self.out[:] = 0
        tape.run(tokens, partial(self, tokens))
        return self.out.copy(), self.calls > before

    def expected(self, tokens):
        self.out[:] = 0
        self(tokens)
        return self.out.copy()


@pytest.fixture
def ops():
    return Cpu(2)


@pytest.mark.parametrize("precision", ["exact", "fast", "int8"])
def test_a_tape_holds_for_the_tokens_it_was_written_for_and_then_for_any(ops, precision):
    of = Pass(ops, precision)
    tape = ops.tape()
    called = []
    for tokens in (5, 5, 7, 1, 16, 5, 7, 2):
        out, was_called = of.run(tape, tokens)
        called.append(was_called)
        assert out.tobytes() == of.expected(tokens).tobytes()
    assert called == [True, False, True, False, False, False, False, False]


def test_the_precision_of_other_ops_is_not_that_of_a_tape(ops):
    of = Pass(ops, "int8")
    exact = Pass(ops)
    tape = ops.tape()
    of.run(tape, 4)
    expected = exact.expected(4)
    of.run(tape, 4)
    assert exact.expected(4).tobytes() == expected.tobytes()


def other_array(of, tokens):
    of.out = np.zeros_like(of.out) if tokens == 7 else of.out
    of(tokens)


def other_number(of, tokens):
    of(tokens)
    of.ops.scale(of.out[:tokens].reshape(-1), float(tokens))


def other_op(of, tokens):
    of(tokens)
    if tokens == 7:
        of.ops.scale(of.out.reshape(-1), 3.0)


def fewer_ops(of, tokens):
    of(tokens)
    if tokens == 5:
        of.ops.scale(of.out.reshape(-1), 3.0)


def size_of_another_kind(of, tokens):
    of(tokens)
    of.ops.scale(of.out.reshape(-1)[:tokens + 1], 3.0)


@pytest.mark.parametrize("ops_of", [other_array, other_number, other_op, fewer_ops, size_of_another_kind])
def test_ops_that_differ_otherwise_are_always_called(ops, ops_of):
    of = Pass(ops)
    tape = ops.tape()
    called = []
    for tokens in (5, 7, 7, 5, 9):
        before = of.calls
        tape.run(tokens, partial(ops_of, of, tokens))
        called.append(of.calls > before)
        out = of.out.copy()
        of.out[:] = 0
        ops_of(of, tokens)
        assert out[:tokens].tobytes() == of.out[:tokens].tobytes()
    assert called == [True] * 5


def test_a_tape_keeps_its_memory(ops):
    tape = ops.tape()
    x = np.ones(8, np.float32)
    there = weakref.ref(x)
    tape.run(1, partial(ops.scale, x, 2.0))
    del x
    gc.collect()
    assert there() is not None
    tape.run(1, pytest.fail)
    assert (there() == 4).all()
    del tape
    gc.collect()
    assert there() is None


def test_an_error_of_an_op_is_raised_and_ends_the_tape(ops):
    of = Pass(ops)

    def fails():
        of(4)
        ops.scale(of.inp[:, ::2], 1.0)
    tape = ops.tape()
    for _ in range(2):
        with pytest.raises(ValueError, match="contiguous"):
            tape.run(4, fails)
    assert of.calls == 2
    tokens = np.zeros(1, np.int32)
    embedded = partial(ops.embed, of.out[:1], tokens, of.weight, "F32")
    tape = ops.tape()
    tape.run(1, embedded)
    tokens[0] = WIDTH
    with pytest.raises(ValueError, match="out of its range"):
        tape.run(1, embedded)
    tokens[0] = 3
    tape.run(1, pytest.fail)
    assert of.out[0].tobytes() == of.weight[3].tobytes()


def test_one_tape_is_written_at_a_time():
    context = _native.context(1, None, 0, np.zeros(_native.scratch_bytes(1), np.uint8))
    with pytest.raises(ValueError, match="tape_end: no tape is being written"):
        _native.tape_end(context, True)
    with pytest.raises(TypeError, match="tape_end needs a context, not NoneType"):
        _native.tape_end(None, True)
    tape = _native.tape()
    _native.tape_begin(context, tape, 1)
    with pytest.raises(ValueError, match="tape_begin: a tape is being written"):
        _native.tape_begin(context, _native.tape(), 1)
    assert _native.tape_run(context, tape, 1) is None
    _native.tape_end(context, True)
    assert _native.tape_run(context, tape, 1) == 0


def test_an_op_that_is_watched_is_called(ops):
    of = Pass(ops)
    tape = ops.tape()
    of.run(tape, 4)
    with clocked(ops) as spent:
        assert of.run(tape, 4)[1]
    assert spent["scale"].calls == 1
    assert not of.run(tape, 4)[1]


def trainer_of(path, **options):
    """A trainer with rows of several lengths, of half of which some tokens alone are supervised."""
    trainer = Trainer(path, **{"steps": 12, "batch_size": 1, "max_length": 24, "threads": 2, "lr": 0.01, **options})
    for length in (24, 9, 17, 12):
        whole, half = random_rows(400, 2, length, length)
        half.weights[:length // 2] = 0
        trainer.add_examples([whole, half])
    return trainer


def trained(path, tapes, monkeypatch, **options):
    """The adapter after some steps."""
    with monkeypatch.context() as patch:
        if not tapes:
            patch.setattr(Cpu, "tape", lambda _self: None)
        trainer = trainer_of(path, **options)
        for _ in range(12):
            trainer.step()
        return trainer.decoder.arena.flat("lora").tobytes()


@pytest.mark.dev
@pytest.mark.parametrize(("arch", "options"), [
    ("llama", {}), ("qwen3", {"precision": "int8"}), ("gemma3", {"precision": "fast"}), ("lfm2", {}),
    ("llama", {"recompute": "block"}), ("llama", {"recompute": "disk"}), ("llama", {"dropout": 0.5}),
    ("llama", {"family": "bitfit"}), ("llama", {"batch_size": 3, "precision": "fast"}),
])
def test_training_by_tapes_gives_the_same_bytes(tmp_path, monkeypatch, arch, options):
    path = write_tiny(tmp_path / "m.gguf", arch, formats="Q8_0")
    assert trained(path, True, monkeypatch, **options) == trained(path, False, monkeypatch, **options)


def test_in_training_blocks_run_from_tapes(tmp_path, monkeypatch):
    trainer = trainer_of(write_tiny(tmp_path / "m.gguf", "llama", formats="Q8_0"))
    for _ in range(8):
        trainer.step()
    called = []
    for name in ("_block_forward", "_block_backward"):
        of = getattr(trainer.decoder, name)
        monkeypatch.setattr(trainer.decoder, name, lambda layer, *rest, of=of: (called.append(layer), of(layer, *rest)))
    for _ in range(4):
        trainer.step()
    assert called
    assert set(called) == {trainer.decoder.shape.n_layer - 1}  # whose output is needed for some tokens alone
