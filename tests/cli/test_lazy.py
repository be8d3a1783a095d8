"""The modules of a command that is run, and no others, are imported: a board's memory holds them while it trains."""

import json
import os
import subprocess
import sys

from commands import cli

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
