"""A command that is shown for copying means the same to a shell, whatever a path in it holds."""

import ast
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from commands import run
from json_lines import write_lines

import edgetune
from edgetune.cli.app import cli
from edgetune.errors import printable, shell_word

SOURCE = Path(edgetune.__file__).parent
OTHERS = {"leg['more']", "NAME", "PACKAGED", "TOML", "code", "needed.word", "rank"}  # numbers, and names of ours
QUOTED = {"made", "model", "named"}  # texts of `shell_word`
NAMES = ["plain.jsonl", "two words", "a\nb", "it's \\ \t\x1b[31m", "$(id) `id` \"&;*", "é\u202e"]


@pytest.mark.parametrize("name", NAMES)
def test_a_shell_reads_the_word_as_it_was(name):
    word = shell_word(f"/tmp/{name}")
    assert word == printable(word)
    assert subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, text=True, check=True).stdout == (
        f"/tmp/{name}")
    if name.isprintable():
        assert shlex.split(word) == [f"/tmp/{name}"]


def test_half_a_character_is_shown_in_one_line():
    assert shell_word("\udcff") == "$'\\xff'"
    assert shell_word("\ud800").isprintable()


@pytest.mark.dev
def test_commands_within_sentences_quote_what_they_are_given():
    """Every f-string of the package that names a command and puts a value after it."""
    commands = "|".join(cli.list_commands(None))
    loose = []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.JoinedStr):
                continue
            values = [part.value for part in node.values if isinstance(part, ast.FormattedValue)]
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
            for command in re.finditer(rf"\bedgetune (?:{commands})\b[^;,:\n]*", text):
                begin, end = (text.count("\0", 0, place) for place in command.span())
                loose += [f"{path.relative_to(SOURCE)}:{node.lineno}: {shown}" for value in values[begin:end]
                          if (shown := ast.unparse(value)) not in OTHERS | QUOTED
                          and not shown.startswith("shell_word(")]
    assert loose == []


@pytest.mark.parametrize("name", ["my rows", "my\nrows"])
def test_the_next_command_of_a_mixture_runs_as_it_is_shown(tmp_path, name):
    write_lines(tmp_path / "rows.jsonl", [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(30)])
    (tmp_path / "mix.json").write_text('{"sources": {"own": {"rows": "rows.jsonl"}}}')
    printed = run("data", "mix", tmp_path / "mix.json", "-o", tmp_path / name)
    shown = next(line for line in printed.splitlines() if line.startswith("next: edgetune data check "))
    typed = shown.removeprefix("next: edgetune ").removesuffix(" MODEL")
    words = subprocess.run(["bash", "-c", f"printf '%s\\0' {typed}"], capture_output=True, text=True, check=True)
    assert json.loads(run(*words.stdout.split("\0")[:-1], "--json"))["data"]["rows"] == 30
