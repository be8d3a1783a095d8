"""Options: a misspelt one, or one of another type or range, is one sentence; a type checker finds it too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
from counting import OPTIONS, dataset, sequences
from durable import metrics

from edgetune.adapters.base import Family
from edgetune.adapters.low_rank import LoraFamily
from edgetune.adapters.prefix import Prefix
from edgetune.errors import UsageError
from edgetune.formats.families import TARGETS
from edgetune.models.networks import open_network
from edgetune.training import length
from edgetune.training.config import CommonOptions, TrainConfig, TrainOptions, train_options
from edgetune.training.run import run
from edgetune.training.sizing import make_plan
from edgetune.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
AUTO = {**OPTIONS, "steps": 0, "epochs": "auto"}


@pytest.mark.parametrize(("options", "words"), [
    ({"rnak": 8}, ("'rnak' is no option", "did you mean rank")),
    ({"learning_rate": 1e-3}, ("'learning_rate' is no option", "lr")),
    ({"rank": "8"}, ("rank is '8'", "str", "a whole number, such as 8")),
    ({"rank": 8.0}, ("rank is 8.0", "a whole number")), ({"rank": True}, ("rank is True", "a whole number")),
    ({"lr": "1e-3"}, ("lr is '1e-3'", "a number")), ({"lr": None}, ("lr is None", "a number")),
    ({"patience": 3}, ("patience is an option of a run", "edgetune.run")),
    ({"shuffle": 1}, ("shuffle is 1", "True or False")), ({"targets": ["q_proj"]}, ("targets is ['q_proj']", "text"))])
def test_trainer_refuses_in_a_sentence(bundle, options, words):
    with pytest.raises(UsageError) as caught:
        Trainer(bundle, **options)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_options_by_name_are_added_to_a_config(bundle):
    trainer = Trainer(bundle, TrainConfig(rank=2, max_length=32, alpha=4), lr=1, threads=1)
    assert (trainer.config.family.options(), trainer.config.lr) == (LoraFamily(rank=2, alpha=4).options(), 1)


@pytest.mark.slow
def test_a_type_checker_knows_every_option(tmp_path):
    """TrainOptions spells what TrainConfig has; mypy refuses a misspelt one, where Trainer or train is given it."""
    wanted = {**get_type_hints(CommonOptions), **get_type_hints(LoraFamily)}
    found = get_type_hints(TrainOptions, localns={"Family": Family})
    assert found == {"family": Family | str} | {name: wanted[name] for name in train_options("lora")}
    pytest.importorskip("mypy")
    cases = {"right": ("rank=8", ""), "name": ("rnak=8", '"rnak" for "Trainer"'),
             "kind": ('rank="8"', '"str"; expected "int"')}
    for name, (option, _) in cases.items():
        (tmp_path / f"{name}.py").write_text(f'import edgetune\nedgetune.Trainer("m.gguf", {option})\n'
                                             f'edgetune.train("m.gguf", "rows.jsonl", "out", {option})\n')
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"),
               *(str(tmp_path / f"{name}.py") for name in cases)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    said = [line for line in done.stdout.splitlines() if "error:" in line]
    assert len(said) == 4, done.stdout
    for name, (_, error) in cases.items():
        found = [line for line in said if f"{name}.py:" in line]
        assert len(found) == (2 if error else 0), done.stdout
        assert error in "".join(found)


@pytest.mark.parametrize("options", [{"patience": 3}, {"eval_every": 10}])
def test_what_asks_for_measurements_needs_held_out_rows(bundle, tmp_path, options):
    with pytest.raises(UsageError, match=r"is \d+, and no rows are held out to measure; .*--eval"):
        run(bundle, dataset(4), tmp_path / "out", TrainConfig(**OPTIONS, **options))
    assert not (tmp_path / "out").exists()


def test_the_command_line_says_so_before_it_reads_a_row(tiny_llama, tmp_path):
    from click.testing import CliRunner

    from edgetune.cli import cli
    out = tmp_path / "out"
    done = CliRunner().invoke(cli, ["train", str(tiny_llama), "missing.jsonl", "-o", str(out), "--patience", "2",
                                   "--eval", "none"])
    assert done.exit_code == 2
    assert "patience is 2" in done.output
    assert not out.exists()


@pytest.mark.parametrize("memory", ["lots", "0M", "101%", "-5M", "500"])
def test_a_daemon_checks_its_memory_before_it_starts(memory):
    from edgetune.daemon.options import DaemonConfig
    with pytest.raises(UsageError, match=f"memory is '{memory}'; give it as"):
        DaemonConfig(memory=memory).check()
    assert DaemonConfig(memory="500M").check().memory == "500M"


def test_how_far_the_canary_may_be_from_the_base():
    from edgetune.daemon.options import DaemonConfig, Limits
    assert DaemonConfig().check().limits() == Limits(0.05, 0.1)
    for text, limit in (("off", None), ("0%", 0.0), ("12.5%", 0.125), ("0.05", 0.05)):
        assert DaemonConfig(canary_rise=text).check().limits() == Limits(limit, 0.1)
    for text, limit in (("off", None), ("0", 0.0), ("0.25", 0.25)):
        assert DaemonConfig(max_kl=text).check().limits() == Limits(0.05, limit)
    for text in ("", "-1", "5%", "1e2", "inf"):
        with pytest.raises(UsageError, match=r"max-kl is .*; give nats a token such as 0.1, or off"):
            DaemonConfig(max_kl=text).check()
    for text in ("5", "", "-1%", "five%", "1e2%", "inf%"):
        with pytest.raises(UsageError, match=r"canary-rise is .*; give a share such as 5% or 0.05, or off"):
            DaemonConfig(canary_rise=text).check()


@pytest.mark.parametrize(("options", "words"), [
    ({"rank": 0}, ("rank", "0", "1")), ({"dropout": 1.0}, ("dropout", "1.0", "0.95")),
    ({"lr": float("nan")}, ("lr", "not a number")), ({"lr": -1.0}, ("lr", "-1")),
    ({"schedule": "step"}, ("schedule", "'step'", "cosine")), ({"targets": "q_proj,lm_head"}, ("lm_head", "q_proj")),
    ({"targets": ""}, ("targets", "all")), ({"blocks": "middle:3"}, ("middle:3", "last:K")),
    ({"epochs": 0.0}, ("epochs", "steps")), ({"checkpoint_every": "soon"}, ("checkpoint-every", "'soon'", "5m")),
    ({"checkpoint_every": "-1s"}, ("checkpoint-every", "'-1s'", "never")),
    ({"max_length": 1}, ("max-length", "1", "2"))])
def test_wrong_options_are_refused_in_one_sentence(options, words):
    with pytest.raises(UsageError) as caught:
        TrainConfig(**options).check()
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert caught.value.exit_code == 2


def test_targets_and_blocks():
    config = TrainConfig(targets="v_proj, q_proj", blocks="last:2").check()
    assert config.target_names() == ("q_proj", "v_proj")
    assert config.block_range(5) == range(3, 5)
    assert TrainConfig(blocks="first:2").block_range(5) == range(2)
    assert TrainConfig().target_names() == tuple(TARGETS)
    with pytest.raises(UsageError, match="1 <= K <= 5"):
        TrainConfig(blocks="last:6").block_range(5)


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("1s", 1), ("0.5s", 0.5), ("5m", 300), ("2h", 7200),
                                               ("1d", 86400), ("never", float("inf")), ("0", float("inf")),
                                               ("auto", 300)])
def test_checkpoint_times_are_read(text, seconds):
    assert TrainConfig(checkpoint_every=text).check().checkpoint_seconds() == seconds


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


@pytest.mark.dev
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
