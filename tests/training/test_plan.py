"""The planner: what it trades, in which order, that it fits, that more memory is never slower, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from tiny import write_tiny

from edgetune.adapters.full import Full
from edgetune.backends.arena import Arena, Buffer, lay_out
from edgetune.backends.cpu import Cpu
from edgetune.bench.train import random_rows
from edgetune.data.lengths import Lengths, Unit
from edgetune.errors import BudgetError, UsageError
from edgetune.formats.shape import Rope, Shape
from edgetune.machine import device
from edgetune.models.stream import WeightBytes
from edgetune.models.structure import DecoderStructure
from edgetune.training import plan
from edgetune.training.config import TrainConfig
from edgetune.training.cost import cost_per_token
from edgetune.training.trainer import Trainer

MIB = 1 << 20
SMOLLM2 = Shape("llama", 30, 576, 1536, 9, 3, 64, 49152, 64, 2048, 1e-5, False, "silu", 1.0, 0.125, False, False,
                (Rope(), Rope()), (0,) * 30)
WEIGHTS = WeightBytes((int(2.11 * MIB),) * 30, int(28.69 * MIB), 0, 612)
OPTIONS = {"batch_size": 4, "max_length": 256}


def make(budget=None, lengths=(), process=45, before=0, sizes=WEIGHTS, previous=None, **options):
    limit = plan.UNLIMITED if budget is None else int(budget * MIB)
    limits = plan.MemoryLimits(process * MIB, int(before * MIB), limit, "asked")
    return plan.make(DecoderStructure(SMOLLM2), TrainConfig(**{**OPTIONS, **options}), ops=Cpu(2), sizes=sizes,
                     limits=limits, lengths=lengths, previous=previous)


def test_enough_memory_trades_nothing():
    assert make().tradeoffs == plan.Tradeoffs(1024, 30, 0)
    assert make().traded == ()
    assert make().weight_bytes == WEIGHTS.total


def test_a_gpu_has_no_inputs_on_disk():
    class Unpaged(Cpu):
        is_paged = False

    with pytest.raises(UsageError, match="--recompute disk is given, and a GPU trains"):
        plan.make(DecoderStructure(SMOLLM2), TrainConfig(recompute="disk"), ops=Unpaged(2), sizes=WEIGHTS,
                  limits=plan.MemoryLimits(45 * MIB))


def test_what_is_traded_is_said_with_what_it_saves():
    tight = make(160)
    assert tight.tradeoffs.kept < 30
    assert tight.tradeoffs.streamed > 0
    assert tight.peak_bytes <= 160 * MIB
    first, *_, last = tight.traded
    assert f"{plan.mib(make().peak_bytes)} MiB -> " in first
    assert last.endswith(f"-> {plan.mib(tight.peak_bytes)} MiB")
    assert "4 tokens" not in first
    made = make(200).to_json()
    assert made["peak_bytes"] == made["process_bytes"] + made["weight_bytes"] + made["arena_bytes"]
    assert made["peak_bytes"] <= made["budget_bytes"] == 200 * MIB


@pytest.mark.parametrize(("options", "choice"), [
    ({"recompute": "block"}, plan.Tradeoffs(1024, 1, 0)),
    ({"recompute": "block", "weights": "streamed"}, plan.Tradeoffs(1024, 1, 30)),
    ({"micro_batch": 300}, plan.Tradeoffs(300, 30, 0)),
    ({"micro_batch": 1}, plan.Tradeoffs(256, 30, 0)),
])
def test_what_is_asked_for_is_done(options, choice):
    assert make(**options).tradeoffs == choice


def test_full_fine_tuning_takes_masters_gradients_and_moments():
    """4 bytes a weight for values, gradient and best values, 8 for moments in floats or 2 in 8 bits."""
    full = Full()
    whole = make(family=full, blocks="last:4")
    weights = 4 * (2 * 576 * 576 + 2 * 192 * 576 + 3 * 576 * 1536 + 2 * 576) + 576
    table = {buffer.name: buffer.nbytes for buffer in whole.buffers}
    assert table["lora"] == table["dlora"] == table["best"] == table["adam_m"] == 4 * weights
    with pytest.raises(BudgetError, match=r"training needs (\d+) MiB at least, the budget is 200 MiB .*"
                                          r"would help most") as refused:
        make(200, family=full, blocks="last:4")
    tight = make(refused.value.needed / MIB, family=full, blocks="last:4")
    assert tight.tradeoffs.optimizer_state == "8bit"
    assert 14 * weights < tight.arena_bytes < 14 * weights + 20 * MIB


def test_moments_in_8_bits_come_last():
    """They are taken where nothing else does, give back what they should, and are said."""
    with pytest.raises(UsageError) as refused:
        make(1, optimizer_state="float")
    least = int(refused.value.hint.split("--memory ")[1].split("M")[0])
    assert make(least).tradeoffs.optimizer_state == "float"
    tight = make(least - 8)
    assert tight.tradeoffs.optimizer_state == "8bit"
    assert "AdamW's moments are stored in 8 bits" in tight.traded[-1]
    n = sum(b.nbytes for b in tight.buffers if b.name == "lora") // 4
    assert sum(b.nbytes for b in tight.buffers if b.name.startswith("adam_")) == pytest.approx(2 * n, rel=0.02)
    assert make(optimizer_state="8bit").traded == ()
    assert make(200, previous=plan.Tradeoffs(256, 3, 0, "8bit")).tradeoffs.optimizer_state == "8bit"


def test_an_explicit_option_is_not_traded():
    assert make(300, recompute="block").tradeoffs.kept == 1
    for options in ({"recompute": "none"}, {"weights": "resident"}):
        tight = make(260, **options)
        assert tight.tradeoffs.kept == 30 or "recompute" not in options
        assert tight.tradeoffs.streamed == 0 or "recompute" in options
    with pytest.raises(UsageError, match="--weights auto would help most"):
        make(160, weights="resident", recompute="block")


def test_buffers_are_as_long_as_the_rows():
    assert make(lengths=[10, 200, 30, 40, 50]).tradeoffs.max_tokens == 200 + 50 + 40 + 30
    assert make(lengths=[10, 20]).run.max_length == 20
    assert make(lengths=[10, 1000]).run.max_length == 256
    assert make(lengths=[10, 1000], packing=True).tradeoffs.max_tokens == 1024
    assert make(lengths=[1000] * 9, batch_size=8, micro_batch=600).tradeoffs.max_tokens == 600


INSTRUCTION = Lengths((Unit(360, 360, 360, 0, 60),) * 32, 300)  # rows of 60 tokens behind one of 300
ANSWERS = Lengths((Unit(288, 2304, 960, 192, 768),) * 4)  # groups of eight answers of 96 tokens to a prompt of 192


def activations(made):
    layout = lay_out(made.buffers)
    return layout.nbytes - layout.temporary


@pytest.mark.dev
def test_buffers_are_as_large_as_what_is_computed():
    assert make(lengths=INSTRUCTION, batch_size=8, max_length=512).tradeoffs.max_tokens == 300 + 8 * 60
    assert make(lengths=INSTRUCTION, batch_size=8).run.max_length == 256  # of the options
    whole = make(lengths=ANSWERS, batch_size=1, micro_batch=4096, max_length=512)
    assert whole.tradeoffs.max_tokens == whole.least_tokens == 960
    apart = make(lengths=[(288,) * 8], batch_size=1, micro_batch=4096, max_length=512)
    assert apart.tradeoffs.max_tokens == 2304
    assert activations(whole) < 0.6 * activations(apart)
    same = Lengths((Unit(100, 800, 100, 100, 700),))  # eight times the same row
    assert make(lengths=same, batch_size=1).tradeoffs.max_tokens == 700


def test_what_shares_most_is_computed_together():
    """Where micro-batches of two rows would pay for the instruction four times, other memory is saved first."""
    tight = make(200, lengths=INSTRUCTION, batch_size=8, max_length=512)
    assert (tight.tradeoffs.max_tokens, tight.tradeoffs.prefix) == (780, 0)
    assert tight.tradeoffs.kept < 5
    apart = make(200, lengths=[98] * 8, batch_size=8, max_length=512)
    assert apart.tradeoffs.max_tokens < 780
    assert make(160, previous=plan.Tradeoffs(288, 1, 30, "8bit", 191)).run.prefix == 191


@pytest.mark.dev
def test_a_tree_that_does_not_fit_is_computed_in_parts():
    """Peak: the prefix and the longest branch, not all branches; and the least budget is one of them."""
    options = {"batch_size": 1, "max_length": 512}
    tight = make(250, lengths=ANSWERS, **options)
    assert (tight.tradeoffs.max_tokens, tight.tradeoffs.prefix, tight.tradeoffs.kept) == (192 + 96, 191, 30)
    assert tight.least_tokens == tight.run.max_length == 288
    assert any("288 tokens are computed at a time, not 960, for the same batch, up to 191 that rows begin with alike "
               "before them: " in text for text in tight.traded)
    assert make(400, lengths=INSTRUCTION, batch_size=32, max_length=512).run.prefix == 299
    tighter = make(170, lengths=ANSWERS, **options)
    assert tighter.run.prefix_inputs  # most blocks are computed again from these, and need not be once more
    assert activations(tighter) < activations(tight)
    least = []
    for lengths in (ANSWERS, [(288,) * 8], [960]):
        with pytest.raises(UsageError) as refused:
            make(1, lengths=lengths, **{**options, "max_length": 1024})
        least.append(int(refused.value.hint.split("--memory ")[1].split("M")[0]))
    assert least[0] < least[2] < least[1]
    assert make(least[0], lengths=ANSWERS, **options).run.prefix == 191


@examples(15)
@given(budget=st.floats(110, 900), more=st.floats(0, 300), batch=st.integers(1, 12), rank=st.integers(1, 32),
       length=st.sampled_from([16, 128, 256, 700]), recompute=st.sampled_from(["auto", "block", "none", "disk"]))
def test_every_plan_fits_and_more_memory_is_never_slower(budget, more, batch, rank, length, recompute):
    options = {"batch_size": batch, "rank": rank, "max_length": length, "recompute": recompute}

    def slowness(budget):
        try:
            made = make(budget, **options)
        except UsageError:
            return float("inf")
        assert made.peak_bytes <= budget * MIB
        worth = plan.PENALTY_8BIT if made.tradeoffs.optimizer_state == "8bit" else 1
        return worth * cost_per_token(DecoderStructure(SMOLLM2), made.run, made.read_bytes)

    assert slowness(budget + more) <= slowness(budget)


@pytest.mark.dev
@examples(10)
@given(batch=st.integers(1, 12), rank=st.integers(1, 32), length=st.sampled_from([16, 128, 700]),
       recompute=st.sampled_from(["auto", "block", "none", "disk"]),
       weights=st.sampled_from(["auto", "resident", "streamed"]))
def test_the_least_budget_that_a_refusal_names_is_enough(batch, rank, length, recompute, weights):
    options = {"batch_size": batch, "rank": rank, "max_length": length, "recompute": recompute, "weights": weights}
    with pytest.raises(UsageError) as refused:
        make(1, **options)
    least = int(refused.value.hint.split("--memory ")[1].split("M")[0])
    make(least, **options)
    with pytest.raises(UsageError):
        make(least - 2, **options)


def test_the_option_that_is_said_to_help_does():
    with pytest.raises(UsageError, match=r"budget is 100 MiB \(asked\)") as refused:
        make(100, rank=64)
    assert "--rank 32 would help most" in refused.value.hint or "--targets q_proj,v_proj" in refused.value.hint
    named = int(refused.value.hint.split("most: ")[1].rstrip("M"))
    make(named, **({"rank": 32} if "--rank" in refused.value.hint else {"rank": 64, "targets": "q_proj,v_proj"}))


def test_what_was_used_before_training_counts():
    assert make(400, before=399.9).peak_bytes == int(399.9 * MIB)
    with pytest.raises(UsageError, match="training needs 410 MiB at least"):
        make(400, before=410)


def test_earlier_tradeoffs_are_repeated():
    for budget, streamed in ((plan.UNLIMITED, 0), (200 * MIB, 30)):
        again = make(budget / MIB, process=10, previous=plan.Tradeoffs(512, 8, 3))
        assert (again.run.max_tokens, again.run.kept) == (512, 8)
        assert again.tradeoffs.streamed <= streamed
    with pytest.raises(UsageError, match="at least"):
        make(150, previous=plan.Tradeoffs(1024, 30, 0))


@pytest.mark.parametrize(("text", "expected"), [
    ("300M", 300 * MIB), ("1.5g", 3 << 29), ("900K", 900 << 10), ("25%", 1000), ("", 3000), ("100%", 4000)])
def test_budgets_are_read(text, expected):
    assert TrainConfig(memory=text).check().memory_bytes(4000) == expected


@pytest.mark.parametrize("text", ["300", "M", "-3M", "0M", "101%", "300MB", "lots", "1e3M", "٣M "])
def test_other_budgets_are_refused(text):
    with pytest.raises(UsageError, match="300M"):
        TrainConfig(memory=text).check()


# ---- the arena ----


@given(st.lists(st.tuples(st.integers(0, 9000), st.sampled_from(["run", "step", "block", "head"])), max_size=12))
def test_buffers_in_use_together_do_not_overlap(sizes):
    table = [Buffer(str(i), (n,), lifetime, "uint8") for i, (n, lifetime) in enumerate(sizes)]
    layout = lay_out(table)
    spans = [(layout.offsets[b.name], layout.offsets[b.name] + b.nbytes, b.lifetime) for b in table]
    for i, (begin, end, lifetime) in enumerate(spans):
        assert begin % 64 == 0
        assert end <= layout.nbytes
        assert end <= layout.temporary if lifetime == "run" else begin >= layout.temporary
        for other_begin, other_end, other in spans[:i]:
            assert end <= other_begin or other_end <= begin or {lifetime, other} == {"block", "head"}


def test_release_keeps_what_the_run_needs():
    arena = Arena([Buffer("kept", (5000,), "run"), Buffer("x", (50_000,), "step"), Buffer("y", (9, 7), "head")],
                  Cpu(1).allocate)
    for name in ("kept", "x", "y"):
        arena.flat(name).fill(1.0)
    arena.release()
    assert (arena.flat("kept") == 1).all()
    assert not arena.flat("x").any()
    assert not arena.flat("y").any()
    Arena([Buffer("kept", (5000,), "run")], Cpu(1).allocate).release()


# ---- a trainer under a budget ----


@pytest.mark.dev
def test_a_trainer_trades_and_learns_the_same(tmp_path):
    """Weights streamed change no bit; smaller micro-batches, and activations made again, are rounded otherwise."""
    path = write_tiny(tmp_path / "model.gguf", formats="Q8_0", d_model=256, d_ff=1024, n_blocks=4)
    rows = random_rows(416, 8, 64, seed=1)
    losses = []
    choices = []
    options = {"rank": 4, "batch_size": 4, "max_length": 64, "steps": 4, "threads": 1, "lr": 1e-2}
    for change in ({}, {"weights": "streamed"}, {"recompute": "block"}, {"micro_batch": 64, "weights": "streamed"}):
        trainer = Trainer(path, **options, **change)
        trainer.add_examples(rows)
        losses.append([r.loss for r in trainer.train()])
        losses[-1].append(trainer.loss(rows)[0])
        choices.append(trainer.plan.tradeoffs)
    assert losses[0] == losses[1]
    assert losses[2] == pytest.approx(losses[0], rel=1e-3)
    assert losses[3] == pytest.approx(losses[0], rel=1e-3)
    assert [c.streamed for c in choices] == [0, 4, 0, 4]
    assert [c.max_tokens for c in choices] == [256, 256, 256, 64]


@pytest.mark.learning
def test_moments_in_8_bits_learn_nearly_the_same(tmp_path):
    """Ten rows by heart in 30 steps: the same losses on the way, another adapter."""
    path = write_tiny(tmp_path / "model.gguf", formats="Q8_0", d_model=64, n_blocks=2)
    losses = []
    adapters = []
    for state in ("float", "8bit"):
        trainer = Trainer(path, rank=8, batch_size=5, max_length=32, steps=30, threads=1, lr=1e-2,
                          optimizer_state=state)
        trainer.add_examples(random_rows(416, 10, 32, seed=1))
        losses.append([r.loss for r in trainer.train()])
        adapters.append(trainer.arena.flat("lora").copy())
    assert losses[0][-1] < 0.9 * losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert 0 < np.linalg.norm(adapters[1] - adapters[0]) < 0.2 * np.linalg.norm(adapters[0])


def test_a_trainer_refuses_at_once(tmp_path):
    path = write_tiny(tmp_path / "model.gguf")
    with pytest.raises(UsageError, match=r"training needs [\d.]+ [MG]iB at least, the budget is 1 MiB \(--memory 1M\)"):
        Trainer(path, memory="1M")


def test_default_budget_is_a_share_of_what_is_available(tmp_path, monkeypatch):
    path = write_tiny(tmp_path / "model.gguf")
    here = replace(device.read_device(), memory_available=1 << 30)
    monkeypatch.setattr(device, "read_device", lambda: here)
    made = Trainer(path, threads=1).plan.limits
    assert made.budget == pytest.approx((made.process + (1 << 30)) * 0.75, abs=1)
    assert "75%" in made.asked


def test_memory_of_a_step_is_given_back(tmp_path):
    path = write_tiny(tmp_path / "model.gguf", formats="Q8_0")
    trainer = Trainer(path, rank=4, batch_size=8, max_length=256, steps=2, threads=1)
    trainer.add_examples(random_rows(416, 8, 256, seed=0))
    trainer.step()
    before = device.rss()
    lora = trainer.arena.flat("lora").copy()
    trainer.arena.release()
    assert device.rss() < before - MIB
    assert np.array_equal(trainer.arena.flat("lora"), lora)
    trainer.step()
