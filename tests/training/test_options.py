"""Options: a misspelt one, or one of another type or range, is one sentence; a type checker finds it too."""

import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
from counting import OPTIONS, dataset

from edgetune.adapters.base import Family
from edgetune.adapters.low_rank import LoraFamily
from edgetune.errors import UsageError
from edgetune.formats.families import TARGETS
from edgetune.training.config import CommonOptions, TrainConfig, TrainOptions, train_options
from edgetune.training.run import run
from edgetune.training.trainer import Trainer

ROOT = Path(__file__).parents[2]


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
