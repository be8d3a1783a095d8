"""--help with the common options, --help-all with all of them, in groups, in terminals of 60 and 80 columns."""

import re

import click
import pytest
from click.testing import CliRunner
from commands import run
from tiny import write_tiny

from edgetune.cli import cli
from edgetune.cli.app import summary
from edgetune.cli.names import GROUPS, renamed
from edgetune.compress.options import CompressConfig
from edgetune.daemon.options import DaemonConfig
from edgetune.machine.policy import Policy
from edgetune.options import groups_of
from edgetune.training.config import TrainConfig

GROUPED = {("train",): (TrainConfig, Policy), ("resume",): (TrainConfig, Policy), ("plan",): (TrainConfig,),
           ("jobs", "create"): (TrainConfig,), ("compress",): (CompressConfig,), ("serve",): (DaemonConfig, Policy)}


def shown(*args, width=80):
    done = CliRunner().invoke(cli, list(args), terminal_width=width)
    assert done.exit_code == 0
    return done.output


def found(path):
    command = cli
    for name in path:
        command = command.get_command(None, name)
    return command


def params_of(path):
    """Those of a command, with those that are made when it is parsed, without --help."""
    command = found(path)
    return [param for param in command.get_params(click.Context(command))
            if not {"--help", "--help-all"} & set(param.opts)]


@pytest.mark.parametrize("path", GROUPED, ids=" ".join)
def test_all_options_are_in_groups(path):
    everything = shown(*path, "--help-all")
    flags = [param.opts[0] for param in params_of(path) if isinstance(param, click.Option) and not param.hidden]
    assert [flag for flag in flags if f"  {flag} " not in everything.replace("\n", " \n") and f", {flag} " not in
            everything and not flag.startswith("-o")] == []
    titles = [f"\n{title}:\n" for kind in GROUPED[path] for title in dict.fromkeys(groups_of(kind).values())]
    assert "" not in [title.strip("\n:") for title in titles]
    places = [everything.find(title) for title in titles]
    assert sorted(places) == places
    assert places[0] > 0


@pytest.mark.parametrize("path", GROUPED, ids=" ".join)
def test_help_has_the_common_options_and_says_how_many_are_left_out(path):
    short = shown(*path, "--help", width=1000)
    rare = [param for param in params_of(path) if not getattr(param, "common", True) and not param.hidden]
    assert rare
    assert [param.opts[0] for param in rare if f"  {param.opts[0]} " in short] == []
    assert f"--help-all shows {len(rare)} more." in short
    assert len(short.splitlines()) < len(shown(*path, "--help-all", width=1000).splitlines())


def commands(command=cli, name="edgetune"):
    yield name, command
    if isinstance(command, click.Group):
        for each in command.list_commands(click.Context(command)):
            yield from commands(command.get_command(None, each), f"{name} {each}")


def test_the_commands_are_in_groups_each_with_a_short_sentence():
    lines = shown("--help", width=80).splitlines()
    assert sorted(cli.list_commands(None)) == sorted(cli.commands)
    for name, command in commands():
        sentence = summary(command.help)
        assert len(sentence) <= 55 or command is cli, name
        assert (sentence[0].isupper(), sentence[-1]) == (True, "."), name
        assert len(name.split()) != 2 or [name.split()[1], *sentence.split()] in [line.split() for line in lines]
    titles = [line for line in lines if line and line[0] != " "]
    assert titles[-len(GROUPS):] == [f"{title}:" for title in GROUPS]


def test_methods_are_listed_by_use_and_experimental_ones_are_marked():
    listed = " ".join(shown("train", "--help", width=1000).split()).partition("--method NAME")[2].partition(". ")[0]
    listed, _, rest = listed.partition("experimental:")
    first, _, encoders = listed.partition("of encoders:")
    assert re.findall(r"[\w-]+", encoders) == ["classify", "tag", "multilabel", "decide", "embed"]
    assert re.findall(r"[\w-]+(?=[,;])", first)[-7:] == ["sft", "dpo", "kto", "orpo", "grpo", "rloo", "rest"]
    assert {"nlft", "score"} <= set(re.findall(r"[\w-]+", rest))
    assert "dpo" not in rest


def test_defaults_are_words():
    defaults = dict(re.findall(r"^  (--[\w-]+) .*\[default: (.*)\]$", shown("train", "--help-all", width=1000), re.M))
    assert not {"True", "False"} & set(defaults.values())
    assert [defaults[flag] for flag in ("--answers", "--govern", "--packing")] == ["on", "on", "off"]
    assert {defaults[flag] for flag in ("--threads", "--max-temp", "--min-free", "--eval-every")} == {"auto"}
    assert defaults["--dropout"] == "0"


def test_auto_is_taken_where_it_is_the_default():
    done = CliRunner().invoke(cli, ["plan", "nowhere.gguf", "--threads", "auto", "--eval-every", "auto"])
    assert "nowhere" in done.output
    done = CliRunner().invoke(cli, ["plan", "nowhere.gguf", "--steps", "auto"])
    assert (done.exit_code, "auto" in done.output) == (2, True)


def test_help_names_options_that_the_command_has():
    for name, command in commands():
        options = [param for param in command.params if isinstance(param, click.Option)]
        own = {flag for option in options for flag in (*option.opts, *option.secondary_opts)}
        for option in options:
            if "edgetune " not in (option.help or ""):  # else it may speak of another command
                assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", option.help or "")) <= own, f"{name} {option.name}"


def test_an_option_that_help_leaves_out_is_taken():
    done = CliRunner().invoke(cli, ["plan", "nowhere.gguf", "--beta1", "0.8"])
    assert "nowhere" in done.output


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("path", GROUPED, ids=" ".join)
def test_all_options_fit(path, columns):
    assert [line for line in shown(*path, "--help-all", width=columns).splitlines() if len(line) > columns] == []


@pytest.mark.parametrize("words", [("train", "model.gguf"), ("eval", "model.gguf"), ("grade", "grader.json"),
                                   ("data", "check"), ("jobs", "create")], ids=" ".join)
def test_a_missing_data_is_explained_once(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path / "model.gguf")
    said = run(*words, code=2)
    assert said.count("DATA'") == 1
    assert said.count("a file of rows") == 1
    assert "edgetune train --help" in said


def test_an_old_name_is_understood_and_names_the_new_one(tiny_llama):
    said = CliRunner().invoke(cli, ["info", str(tiny_llama)])
    assert said.stderr == "edgetune info is called edgetune models info now\n"
    assert said.stdout == CliRunner().invoke(cli, ["models", "info", str(tiny_llama)]).stdout
    assert CliRunner().invoke(cli, ["info", str(tiny_llama), "--json"]).stderr == ""


def test_every_old_name_is_of_a_command_that_exists():
    for old, new in renamed().items():
        command = cli
        for word in new.split():
            command = command.get_command(click.Context(cli), word)
        assert command is not None, old
        assert old not in cli.list_commands(None)


def test_train_shows_twelve_options():
    shown_flags = re.findall(r"^  (?:-\w, )?--([a-z-]+)", shown("train", "--help", width=100), re.M)
    assert len(set(shown_flags) - {"help", "help-all"}) == 12
