"""What is written is run: Python blocks of README and docs; their commands exist, with the options that they give; the
generated pages are current."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from tiny import write_tiny

ROOT = Path(__file__).parents[1]
PAGES = {path.name: path.read_text("utf-8") for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
WRITTEN = {name: text for name, text in PAGES.items() if "docs/generate.py; `make docs`" not in text}


@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if "```python" in text])
def test_programs_run(page, tmp_path):
    write_tiny(tmp_path / "model.gguf", formats="Q8_0")
    for block in re.findall(r"```python\n(.*?)```", PAGES[page], re.S):
        command = [sys.executable, "-W", "error", "-c", block]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout
    assert (tmp_path / "lamp-adapter" / "adapter.gguf").exists()


def test_programs_are_in_readme_and_library():
    assert {name for name, text in PAGES.items() if "```python" in text} >= {"README.md", "library.md"}


def test_commands_exist():
    from edgetune.cli import cli
    named = {name for text in WRITTEN.values() for name in re.findall(r"(?:^|`|&& )edgetune +([a-z]+)", text, re.M)}
    assert {"train", "eval", "demo", "chat", "plan", "generate", "merge", "info", "doctor"} <= named
    for name in named:
        assert cli.get_command(None, name) is not None, name


def test_commands_have_the_options_that_the_pages_give():
    from edgetune.cli import cli
    lines = [line for text in WRITTEN.values() for block in re.findall(r"```sh\n(.*?)```", text, re.S)
             for line in block.replace("$(command -v edgetune)", "edgetune").splitlines()]
    checked = 0
    for line in lines:
        for part in re.split(r"&&|\bsudo ", line):
            program, *words = shlex.split(part, comments=True) or [""]
            if program == "edgetune":
                command: click.Command = cli
                while isinstance(command, click.Group) and words:
                    command = command.get_command(None, words[0])
                    words = words[1:]
                command.make_context(line, words)  # raises for what it does not know
                checked += 1
    assert checked >= 15


def test_generated_pages_are_current():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert generate.stale() == [], "run make docs"


def test_links_lead_somewhere():
    for name, text in PAGES.items():
        folder = ROOT if name == "README.md" else ROOT / "docs"
        for target in re.findall(r"\]\(([^)#\s]+)", text):
            if "://" not in target:
                assert (folder / target).exists(), f"{name} links to {target}"


def test_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 120
