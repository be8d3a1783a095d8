"""The modules of a command that is run, and no others, are imported: a board's memory holds them while it trains."""

import json
import os
import subprocess
import sys

import pytest
from commands import cli
from json_lines import write_lines

from edgetune.adapters.base import families
from edgetune.objectives.base import objectives

ALONE = """
import importlib, json, pkgutil, sys
import click

def tree(command):
    own = [[param.name for param in command.params], command.help]
    return own, {name: tree(one) for name, one in getattr(command, "commands", {}).items()}

def fresh():
    for name in [name for name in sys.modules if name.startswith(("edgetune.cli", "edgetune.parts"))]:
        del sys.modules[name]
    return importlib.import_module("edgetune.cli")

whole = fresh()
for names in importlib.import_module("edgetune.cli.names").GROUPS.values():
    for module in [module for modules in names.values() for module in modules]:
        importlib.import_module(module)
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


def printed(code, *args):
    """The last line that a process prints, as JSON."""
    done = subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, check=True,
                          env=os.environ)
    return json.loads(done.stdout.splitlines()[-1])


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
    own = {"app", "names", "configured", "grouped", "learn", "objective", "output"}
    assert {name.rsplit(".", 1)[1] for name in printed(code)} <= own


ONE = """
import json, sys
from edgetune.adapters.base import find_family
from edgetune.objectives.base import find_objective
assert find_family("lora") and find_family("lora-fa") and find_objective("self-correct")
print(json.dumps([name for name in sys.modules if name.startswith(("edgetune.adapters.", "edgetune.objectives."))]))
"""


def test_a_technique_is_found_without_all_others():
    found = {name.rsplit(".", 1)[1] for name in printed(ONE)}
    assert {"low_rank", "lora_fa", "self_correct"} <= found
    assert not found & {"adalora", "bitfit", "prefix", "sora", "kto", "nlft", "tag"}


@pytest.mark.parametrize("named", [*families().items(), *objectives().items()], ids=lambda one: one[0])
def test_the_module_of_a_technique_has_its_name(named):
    """By which it is found alone."""
    name, kind = named
    if kind.__module__.startswith("edgetune."):  # others are of tests
        module = {"lora": "low_rank"}.get(name, name.replace("-", "_"))
        assert kind.__module__.rsplit(".", 1)[1] == module


TRAINED = """
import json, sys
from edgetune.cli import main
sys.argv = ["edgetune", "train", *sys.argv[1:]]
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
print(json.dumps([*sys.modules]))
"""
NEEDED = {
    "adapters": "base heads lora low_rank stacks store",
    "cli": "app configured grouped learn names objective output",
    "data": "anchors around calls dataset decisions files forest formats lengths letters loader packing parts "
            "preferences prompted question rows thoughts trees",
    "llamacpp": "chat_template kv_state library markup thinking tokenizer tokenizers wordpiece",
    "models": "attention base batch_arrays block_embedding cache choices common decoder gated head kept "
              "linear networks norms recorded recurrent shared_keys short_conv states stream structure "
              "sublayer",
    "objectives": "base sft",
    "runs": "chart history report reported result tables train",
    "serving": "labels",
    "training": "anchored batches begin callbacks checkpoint config cost length metrics optim origin passes "
                "plan reference referred resume rewards run sizing source throttle tradeoffs trainer "
                "verdict",
}
SMALL = ("backends", "formats", "machine")  # rooms that are needed whole, or nearly
OTHERS = ("asyncio", "concurrent", "email", "graphlib", "http", "llama_cpp", "multiprocessing", "socket",
          "ssl", "statistics", "unittest", "xml")


MANIFESTS = """
import json, sys
from edgetune.manifest import manifests
manifests()
print(json.dumps([name for name in sys.modules if name.startswith("edgetune.parts")]))
"""


def test_a_plain_training_imports_what_it_uses_alone(tiny_llama, tmp_path):
    """A new module belongs in NEEDED if every training uses it; others are to be imported where they are used."""
    rows = write_lines(tmp_path / "rows.jsonl", [{"text": f"turn the light {i}"} for i in range(8)])
    loaded = printed(TRAINED, tiny_llama, rows, "-o", tmp_path / "new", "--steps", 2, "--no-answers")
    assert sorted(set(OTHERS) & {name.split(".")[0] for name in loaded}) == []
    shown = printed(MANIFESTS)
    assert len(shown) < 40
    loaded = [name for name in loaded if name not in shown]
    parts = [name.split(".")[1:] for name in loaded if name.startswith("edgetune.")]
    found = {".".join(part) for part in parts if len(part) > 1 and part[0] not in SMALL}
    assert found == {f"{room}.{name}" for room, names in NEEDED.items() for name in names.split()}
