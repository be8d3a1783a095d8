"""Under limits of the system, on memory or on open files, a command says which one refuses, and ends."""

import importlib.util
import os
import resource
import subprocess
import sys

import pytest
from encoders import WORDS, tiny_bert, write_encoder
from json_lines import write_lines

MIB = 1 << 20
ROWS = [{"prompt": f"light {word} " * 40, "completion": word} for word in ("on", "off")] * 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with an encoder, rows and documents."""
    folder = tmp_path_factory.mktemp("limits")
    write_encoder(folder / "tiny.gguf", tiny_bert(), WORDS)
    write_lines(folder / "rows.jsonl", ROWS)
    (folder / "documents").mkdir()
    (folder / "documents" / "a.txt").write_text("the light is on")
    return folder


COMMANDS = {"train": "train tiny.gguf rows.jsonl -o {} --eval none --steps 1 --threads 1",
            "large": "train tiny.gguf rows.jsonl -o {} --eval none --steps 1 --threads 1 --batch-size 128 "
                     "--micro-batch 12800 --recompute none --precision exact",
            "index": "index documents -o {} --encoder tiny.gguf --threads 1 --chunk-tokens 32"}


def said_under(limit, value, folder, command, out):
    """(exit code, lines) of a command whose process has this limit. It is given a minute."""
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-m", "edgetune", *command.format(out).split()], cwd=folder, env=env,
                         capture_output=True, text=True, timeout=60, check=False,
                         preexec_fn=lambda: resource.setrlimit(limit, (value, value)))
    return run.returncode, (run.stdout + run.stderr).splitlines()


@pytest.mark.dev
@pytest.mark.parametrize("name", ["train", "index"])
@pytest.mark.parametrize("files", [5, 6, 9])
def test_too_few_open_files_are_named(folder, tmp_path, name, files):
    if name == "index":
        pytest.importorskip("apsw")
    code, lines = said_under(resource.RLIMIT_NOFILE, files, folder, COMMANDS[name], tmp_path / "out")
    refused = [line for line in lines if line.startswith("edgetune: ")]
    expected = f"edgetune: the system refuses another open file: this process may have {files}; raise that limit"
    assert code == 0 or (len(refused) == 1 and refused[0].startswith(expected)), lines
    assert "Traceback (most recent call last):" not in lines
    assert code == 1 or files > 5  # a pipe's ends and what Python itself has open are 5


@pytest.mark.dev
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("mib", [150, 190, 250])
def test_too_little_memory_is_named(folder, tmp_path, name, mib):
    if name == "index":
        pytest.importorskip("apsw")
    code, lines = said_under(resource.RLIMIT_AS, mib * MIB, folder, COMMANDS[name], tmp_path / "out")
    assert "Traceback (most recent call last):" not in lines
    expected = f"edgetune: the system refuses more memory: this process may have {mib} MiB of addresses; raise"
    ours = [line for line in lines if line.startswith("edgetune: ")]
    assert code == 0 or any("OpenBLAS" in line for line in lines) or (
        len(ours) == 1 and ours[0].startswith(expected)), lines


def test_packages_that_do_not_fit_the_memory_are_not_called_missing(folder, tmp_path):
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    code, lines = said_under(resource.RLIMIT_AS, 300 * MIB, folder, "compress tiny.gguf -o {}", tmp_path / "out")
    assert code == 1
    assert lines[-1].startswith("edgetune: the system refuses more memory: this process may have 300 MiB"), lines
