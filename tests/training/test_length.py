"""How long a run is by its data, when it is measured, and when it ends by itself."""


import pytest
from counting import OPTIONS, dataset, sequences
from durable import metrics

from edgetune.adapters.prefix import Prefix
from edgetune.models.networks import open_network
from edgetune.training import length
from edgetune.training.config import TrainConfig
from edgetune.training.run import run
from edgetune.training.sizing import make_plan
from edgetune.training.trainer import Trainer

AUTO = {**OPTIONS, "steps": 0, "epochs": "auto"}


@pytest.mark.parametrize(("units", "batch", "passes", "steps"), [
    (1, 8, 15, 15), (18, 8, 15, 45), (54, 8, 15, 105), (180, 8, 7, 161), (900, 8, 2, 226), (1192, 8, 2, 298),
    (1200, 8, 1, 150), (4744, 8, 1, 593), (54, 1, 3, 162), (0, 8, 15, 1)])
def test_few_rows_are_passed_over_often(units, batch, passes, steps):
    config = TrainConfig(batch_size=batch)
    assert length.auto_epochs(config, units) == passes
    assert length.epochs_of(config, units) == passes
    assert length.total_steps(config, units) == steps


@pytest.mark.parametrize(("units", "batch", "steps"), [
    (0, 8, 1), (1, 4, 15), (16, 4, 60), (36, 4, 135), (54, 5, 154), (79, 7, 156), (80, 8, 150),
    (5000, 8, 625)])
def test_batches_are_small_where_rows_are_few(units, batch, steps):
    assert length.batch_of(TrainConfig(), units) == batch
    assert length.total_steps(TrainConfig(), units) == steps
    assert length.batch_of(TrainConfig(batch_size=4), units) == 4


@pytest.mark.parametrize(("units", "batch", "rate"), [
    (0, "auto", 2e-3), (20, "auto", 1e-3), (54, "auto", 1.25e-3), (80, "auto", 2e-3), (5000, "auto", 2e-3),
    (5000, 1, 1e-3), (20, 6, 1.5e-3), (20, 64, 2e-3)])
def test_the_rate_grows_with_the_batch(units, batch, rate):
    assert length.peak_rate(TrainConfig(batch_size=batch), units) == pytest.approx(rate)
    assert length.peak_rate(TrainConfig(batch_size=batch, lr=3e-4), units) == 3e-4


def test_a_family_has_a_rate_of_its_own():
    lora, prefix = (length.peak_rate(TrainConfig(family=family), 60) for family in ("lora", "prefix"))
    assert prefix == pytest.approx(Prefix.rate * lora)
    assert length.peak_rate(TrainConfig(family="prefix", lr=3e-4), 60) == 3e-4


def test_a_training_takes_the_rate_of_its_batch(bundle):
    rates = {}
    for rows in (36, 96):
        trainer = Trainer(bundle, **{**OPTIONS, "warmup": 0.0, "batch_size": "auto", "lr": "auto"})
        trainer.add_examples(dataset(rows).examples)
        rates[rows] = trainer.step().lr
    assert rates == {36: pytest.approx(1e-3), 96: pytest.approx(2e-3)}


def test_a_plan_has_room_for_a_batch_that_the_data_decides(bundle):
    """The rows of a step are those of `batch_of`; the plan knows them by the lengths."""
    few = [20] * 50
    plan = make_plan(open_network(bundle.gguf), TrainConfig(max_length=20), lengths=few)
    assert plan.run.max_tokens == 5 * 20
    assert make_plan(open_network(bundle.gguf), TrainConfig(max_length=20), lengths=few * 4).run.max_tokens == 8 * 20


@pytest.mark.parametrize(("options", "steps"), [
    ({"epochs": 1.0}, 7), ({"epochs": 2}, 14), ({"epochs": 0.5}, 4), ({"epochs": 0.01}, 1), ({"steps": 20}, 20),
    ({"steps": 20, "epochs": 3.0}, 20)])
def test_a_number_is_kept(options, steps):
    config = TrainConfig(batch_size=8, **options).check()
    assert length.total_steps(config, 54) == steps
    assert length.eval_every(config, 7, steps, 0.1) == 7
    assert length.patience(config) == 0


def test_packs_are_what_is_counted(bundle):
    """40 rows of 8 to 19 tokens are about 12 packs of 48."""
    trainer = Trainer(bundle, **{**AUTO, "packing": True})
    trainer.add_examples(sequences(40, low=8, high=20))
    packs = length.units_of(trainer.examples, trainer.config)
    assert len(packs) < 20
    assert trainer.total_steps == 15 * -(-len(packs) // 4)
    assert trainer.steps_per_epoch == -(-len(packs) // 4)


@pytest.mark.parametrize("units", [1, 6, 54, 200, 400, 900, 1192, 1200, 5000, 100_000])
@pytest.mark.parametrize("held_out", [0.0, 0.05, 0.1])
def test_a_run_by_its_data_is_measured_often_enough_and_not_too_often(units, held_out):
    config = TrainConfig()
    total = length.total_steps(config, units)
    epoch = length.steps_per_epoch(config, units)
    every = length.eval_every(config, epoch, total, held_out)
    measured = {step for step in range(1, total + 1) if step % every == 0} | {total}
    assert min(5, total) <= len(measured) <= 30
    if 5 <= length.auto_epochs(config, units) <= 30:
        assert every == epoch
    assert length.eval_every(TrainConfig(eval_every=3), epoch, total, held_out) == 3


@pytest.mark.parametrize(("held_out", "measured"), [(0.1, 15), (0.5, 15), (1.0, 11), (3.0, 5), (20.0, 5)])
def test_many_held_out_rows_are_measured_less_often(held_out, measured):
    """54 rows, 15 passes of 7 steps: a pass over as many held-out tokens takes a third of a pass of training."""
    every = length.eval_every(TrainConfig(), 7, 105, held_out)
    assert -(-105 // every) == measured
    assert measured == 5 or measured * held_out / 3 <= 0.25 * 15  # passes


def test_patience_follows_epochs():
    assert length.patience(TrainConfig()) == 3
    assert length.patience(TrainConfig(steps=5)) == 0
    assert length.patience(TrainConfig(epochs=2)) == 0
    assert length.patience(TrainConfig(patience=0)) == 0
    assert length.patience(TrainConfig(epochs=2, patience=1)) == 1


def test_a_run_by_its_data_ends_after_three_measurements_that_are_worse(bundle, tmp_path):
    """Held-out rows count downwards, and get worse once upwards is learned."""
    held_out = dataset(24, 1)
    for example in held_out.examples:
        example.tokens[:] = example.tokens[::-1].copy()
    record = run(bundle, dataset(24), tmp_path / "out", TrainConfig(**AUTO), held_out=held_out)
    lines = metrics(tmp_path / "out")
    measured = [line["step"] for line in lines if line["event"] == "eval"]
    assert record["total_steps"] == 90
    assert measured == list(range(0, record["steps"] + 1, 9))  # as many rows as are learned: not once a pass of 6
    assert record["steps"] < 90
    assert record["held_out"]["best_step"] in measured[1:-3]


@pytest.mark.parametrize(("flags", "code", "words"), [
    (["--epochs", "much"], 2, "'much' is neither auto nor a number"),
    (["--patience", "2.5"], 2, "'2.5' is neither auto nor a whole number"),
    (["--epochs", "2", "--patience", "auto"], 0, ""), (["--epochs", "auto"], 0, "")])
def test_the_command_line_takes_a_number_or_auto(tiny_llama, flags, code, words):
    from click.testing import CliRunner

    from edgetune.cli import cli
    done = CliRunner().invoke(cli, ["plan", str(tiny_llama), "--max-length", "32", *flags])
    assert done.exit_code == code, done.output
    assert words in done.output
