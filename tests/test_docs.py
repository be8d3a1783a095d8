"""What is written is run: the README's Python block, and the commands it names exist."""

import re
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
