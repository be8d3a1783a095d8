"""The modules of a command that is run, and no others, are imported: a board's memory holds them while it trains."""

import json
import os
import subprocess
import sys

import pytest
from commands import cli

from edgetune.adapters.base import families
from edgetune.objectives.base import objectives

ALONE = """
import importlib, json, pkgutil, sys
import click

def tree(command):
    own = [[param.name for param in command.params], command.help]
    return own, {name: tree(one) for name, one in getattr(command, "commands", {}).items()}

def fresh():
    for name in [name for name in sys.modules if name.startswith("edgetune.cli")]:
        del sys.modules[name]
    return importlib.import_module("edgetune.cli")

whole = fresh()
for module in pkgutil.iter_modules(whole.__path__):
    importlib.import_module("edgetune.cli." + module.name)
trees = tree(whole.cli)[1]
differ = []
for name, known in trees.items():
    command = fresh().cli.get_command(None, name)
    if command is None or tree(command) != known:
        differ.append(name)
print(json.dumps([sorted(trees), differ]))
"""


def printed(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    return json.loads(done.stdout)


def test_each_command_comes_with_all_that_belongs_to_it():
    names, differ = printed(ALONE)
    assert differ == []
    assert names == sorted(cli.list_commands(None))


def test_an_unknown_command_is_compared_with_all():
    code = """
import json
from edgetune.cli import cli
assert cli.get_command(None, "trian") is None
print(json.dumps(sorted(cli.commands)))
"""
    assert printed(code) == sorted(cli.list_commands(None))


def test_train_imports_the_module_of_no_other_command():
    code = """
import json, sys
from edgetune.cli import cli
cli.get_command(None, "train")
print(json.dumps([name for name in sys.modules if name.startswith("edgetune.cli.")]))
"""
    own = {"app", "configured", "extras", "grouped", "learn", "objective", "prose", "sweep"}
    assert {name.rsplit(".", 1)[1] for name in printed(code)} <= own


ONE = """
import json, sys
from edgetune.adapters.base import find_family
from edgetune.objectives.base import find_objective
assert find_family("lora") and find_family("o-lora") and find_objective("self-correct")
print(json.dumps([name for name in sys.modules if name.startswith(("edgetune.adapters.", "edgetune.objectives."))]))
"""


def test_a_technique_is_found_without_all_others():
    found = {name.rsplit(".", 1)[1] for name in printed(ONE)}
    assert {"low_rank", "o_lora", "self_correct"} <= found
    assert not found & {"adalora", "bitfit", "prefix", "vera", "kto", "nlft", "tag"}


@pytest.mark.parametrize("named", [*families().items(), *objectives().items()], ids=lambda one: one[0])
def test_the_module_of_a_technique_has_its_name(named):
    """By which it is found alone."""
    name, kind = named
    if kind.__module__.startswith("edgetune."):  # others are of tests
        module = {"lora": "low_rank"}.get(name, name.replace("-", "_"))
        assert kind.__module__.rsplit(".", 1)[1] == module
