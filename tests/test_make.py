"""The targets that the pages name: they exist, and say what to run first where edgetune is not installed."""

import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from lab.run import PROGRAMS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "native" / "README.md", *(ROOT / "docs").rglob("*.md")]
RULE = re.compile(r"^([a-z0-9-]+):([^\n#=]*)(?:#[^\n]*)?\n((?:\t[^\n]*\n?)*)", re.M)
RULES = {name: (needs.split(), recipe) for name, needs, recipe in RULE.findall((ROOT / "Makefile").read_text("utf-8"))}
WITHOUT_EDGETUNE = {"help", "ready", "data", "dev", "lint", "check", "cuda", "arm-kernels", "wheels", "install",
                    "installs", "home-assistant-app", "release", "site", "clean"}


def named(text):
    """Targets in code: `make a b` in a sentence, and commands of shell blocks, also several joined by `&&`."""
    lines = [*re.findall(r"`([^`\n]*)`", text),
             *(line for block in re.findall(r"```sh\n(.*?)```", text, re.S) for line in block.splitlines())]
    commands = [command.strip() for line in lines for command in line.split("&&")]
    words = [word for command in commands if command.startswith("make ")
             for word in shlex.split(command.removeprefix("make "), comments=True)]
    return {word for word in words if "=" not in word and word != "X"}


def test_targets_that_pages_name_exist_and_need_what_they_use():
    found = set().union(*(named(path.read_text("utf-8")) for path in PAGES))
    assert {"dev", "lint", "test", "lab", "crash", "wheels", "help"} <= found <= RULES.keys()
    for name, (needs, recipe) in RULES.items():
        if name in WITHOUT_EDGETUNE - {"ready"}:
            assert "$(RUN)" not in recipe, f"make {name} runs an edgetune that may not be installed"
        elif name != "ready":
            assert needs == ["ready"], f"make {name} does not say what to run first"


def test_programs_of_the_lab_that_pages_name_exist_and_say_what_they_take():
    text = "".join(path.read_text("utf-8") for path in PAGES)
    assert {"kills", "speed", "memory"} <= set(re.findall(r"make lab NAME=([a-z0-9-]+)", text)) <= PROGRAMS.keys()
    listed = subprocess.run([sys.executable, ROOT / "tests" / "lab" / "run.py"], capture_output=True, text=True,
                            check=True)
    assert all(f"\n{name} " in listed.stdout for name in PROGRAMS)


@pytest.mark.dev
def test_programs_of_the_lab_have_options():
    """In one process: some set the environment of what they import."""
    code = """
from lab.run import PROGRAMS, parser_of
for name in [name for name, program in PROGRAMS.items() if not program.tests]:
    try:
        assert parser_of(name)[0].description.startswith(PROGRAMS[name].what)
    except ModuleNotFoundError as error:
        assert error.name.partition(".")[0] not in ("edgetune", "lab"), error
"""
    there = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *filter(None, sys.path)])}
    done = subprocess.run([sys.executable, "-c", code], env=there, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_few_targets():
    text = (ROOT / "Makefile").read_text("utf-8")
    assert len(re.findall(r"^[a-z0-9-]+:.*## ", text, re.M)) <= 25


def test_ready_says_what_to_run_first(tmp_path):
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "tests").mkdir()
    bare = tmp_path / "python"  # one that finds no installed package
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(bare.stat().st_mode | stat.S_IXUSR)
    for target in ("ready", "lab"):
        done = subprocess.run([make, target, f"PYTHON={bare}"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2
        said = f"edgetune is not installed for {bare}: run make install EXTRAS=test, or make dev"
        assert said in done.stderr
        assert "Traceback" not in done.stderr
        assert "run.py" not in done.stdout


def test_make_learning_gives_trainings_its_seed():
    """Of what is made from the options, too, unless a seed is named."""
    code = ("from seeds import take_seed; take_seed()\nfrom edgetune.training.config import TrainConfig\n"
            "print(TrainConfig().seed, TrainConfig(rank=4).seed, TrainConfig(seed=7).seed)")
    there = {"EDGETUNE_TEST_SEED": "3", "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *filter(None, sys.path)])}
    found = subprocess.run([sys.executable, "-c", code], env=os.environ | there, capture_output=True, text=True,
                           check=True)
    assert found.stdout.split() == ["3", "3", "7"]
