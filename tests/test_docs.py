"""What is written is run: the README's Python blocks; its commands exist, with the options that it gives them."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

from tiny import write_tiny

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_readme_program_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert blocks
    write_tiny(tmp_path / "model.gguf", formats="Q8_0")
    for block in blocks:
        command = [sys.executable, "-W", "error", "-c", block]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout
    assert (tmp_path / "lamp-adapter" / "adapter.gguf").exists()


def test_readme_commands_exist():
    from edgetune.cli import cli
    named = set(re.findall(r"(?:^|`|&& )edgetune +([a-z]+)", README, re.M))
    assert {"train", "eval", "demo", "chat", "plan", "generate", "merge", "info", "doctor"} <= named
    for name in named:
        assert cli.get_command(None, name) is not None, name


def test_readme_commands_have_the_options_that_it_gives():
    import click

    from edgetune.cli import cli
    lines = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.S)).replace("$(command -v edgetune)", "edgetune")
    checked = 0
    for line in lines.splitlines():
        for part in re.split(r"&&|\bsudo ", line):
            program, *words = shlex.split(part, comments=True) or [""]
            if program == "edgetune":
                command: click.Command = cli
                while isinstance(command, click.Group) and words:
                    command, words = command.get_command(None, words[0]), words[1:]
                command.make_context(line, words)  # raises for what it does not know
                checked += 1
    assert checked >= 15
