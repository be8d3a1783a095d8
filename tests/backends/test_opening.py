"""Which backend is opened, and why a GPU is not."""

import json
import logging
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner

from edgetune.backends import opening
from edgetune.cli.app import Commands, json_option
from edgetune.errors import UsageError

SAID = "computing on the GPU (cuda sm_87); --backend cpu computes on the CPU"


@pytest.fixture
def with_gpu(monkeypatch):
    monkeypatch.setattr(opening, "open_cuda", lambda _say: SimpleNamespace(isa="cuda sm_87"))


def test_without_a_gpu_auto_is_silent_and_cuda_is_refused(monkeypatch):
    monkeypatch.setattr("edgetune.backends.opening.DRIVER", "libcuda-that-is-missing.so")
    said: list[str] = []
    assert opening.open_backend("auto", 1, said.append).threads == 1
    assert said == []
    with pytest.raises(UsageError, match="--backend cuda: no NVIDIA driver is installed"):
        opening.open_backend("cuda", 1, said.append)


@pytest.mark.usefixtures("with_gpu")
def test_the_library_prints_nothing_and_logs_what_computes(capfd, caplog):
    caplog.set_level(logging.WARNING)  # another test may have asked for more
    opening.open_backend("auto", 1)
    assert caplog.record_tuples == []  # a program that does not ask is told of warnings alone
    with caplog.at_level(logging.INFO, "edgetune"):
        opening.open_backend("auto", 1)
    assert caplog.record_tuples == [("edgetune.backends", logging.INFO, SAID)]
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("with_gpu")
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_command_says_what_computes_on_stderr(flags):
    group = Commands("edgetune")

    @group.command("compute")
    @json_option
    def compute(as_json):
        opening.open_backend("auto", 1)
        click.echo(f"json: {as_json}")

    for _ in range(2):  # a line each time
        done = CliRunner().invoke(group, ["compute", *flags])
        assert done.stdout == f"json: {bool(flags)}\n"
        assert done.stderr == (json.dumps({"event": "log", "line": SAID}) if flags else SAID) + "\n"
    assert not logging.getLogger("edgetune.backends").handlers
    assert not logging.getLogger("edgetune.backends").level
