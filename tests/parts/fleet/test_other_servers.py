"""A device before a server that is no daemon: it keeps its keys, and waits."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

import pytest
from other_servers import ANSWERS, answering, told, write_files

from edgetune.daemon.client import Client
from edgetune.errors import AwayError
from edgetune.parts.fleet.membership.device import begin, joined
from edgetune.parts.fleet.rollout.daemons import DaemonByHttp
from edgetune.parts.fleet.rollout.http import LeadByHttp


@pytest.fixture
def files(tmp_path, monkeypatch):
    return write_files(tmp_path, monkeypatch)


@pytest.mark.parametrize("what", ANSWERS)
@pytest.mark.usefixtures("files")
def test_a_device_that_joins_or_rotates_keeps_its_keys(what):
    with answering(ANSWERS[what]) as url:
        said, code = told("fleet", "join", url, "--code", "ABCD-EFGH-JKLM")
        assert (f"what answers at {url} is no daemon" in said, code) == (True, 1)
        assert joined(url) is None
        own = begin(url, "kitchen")
        before = own.public()
        said, code = told("fleet", "rotate", url)
        assert (f"what answers at {url} is no daemon" in said, code) == (True, 1)
        assert joined(url).public() == before


@pytest.mark.dev
@pytest.mark.parametrize("what", ANSWERS)
def test_a_look_of_a_device_says_nothing_of_what_it_does_not_know(files, what):
    with answering(ANSWERS[what]) as url, Client(url) as client:
        daemon = DaemonByHttp(client)
        calls = {"about": daemon.about, "held": lambda: daemon.held("x"), "evaluate": lambda: daemon.evaluate("x", {}),
                 "add": lambda: daemon.add(files["adapter"]), "evaluate_base": lambda: daemon.evaluate_base({}),
                 "order": LeadByHttp(client).order, "slot": daemon.slot}
        for name, call in calls.items():
            with contextlib.suppress(AwayError):
                call()
                assert name in ("order", "slot", "add")  # of which the first is checked where it is used
        for lead in (url, files["folder"]):
            said, code = told("fleet", "apply", lead, "--url", url)
            assert code == 1
            assert "no daemon of edgetune" in said or "the order that was sent is none" in said
        assert list(files["folder"].iterdir()) == []


@pytest.mark.dev
def test_a_device_that_follows_waits_for_the_daemon(tiny_llama, files):
    with answering(ANSWERS["a proxy's page"]) as url:
        for command in (("follow", url, files["rows"], "--model", tiny_llama), ("join", url)):
            begin(url, "kitchen")
            other = subprocess.Popen(
                [sys.executable, "-m", "edgetune", "fleet", *map(str, command), "--every", "0.1"], text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "COLUMNS": "1000"})
            ends = threading.Timer(60, other.kill)
            ends.start()
            said = ""
            while "waiting: what answers at" not in said and (line := other.stdout.readline()):
                said += line
            other.send_signal(signal.SIGINT)
            said += other.communicate()[0]
            ends.cancel()
            assert f"waiting: what answers at {url} is no daemon of edgetune" in said
            assert "Traceback" not in said
            assert other.returncode == 75
            joined(url).forget()
