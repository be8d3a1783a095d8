"""Rounds that Flower carries, as far as no Flower is needed: parcels, a node's answer, keys, and who may ask what.

What needs it is in test_flower_apps.py; the programs themselves are tried by `make lab NAME=flower`.
"""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from json_lines import write_lines

from edgetune.cli.app import cli
from edgetune.errors import EdgetuneError, UnsupportedError, UsageError
from edgetune.formats import signature
from edgetune.parts.fleet.carriers.flower.app.answering import TrainingFailed, answer
from edgetune.parts.fleet.carriers.flower.app.fleet_alone import FleetAlone, is_here
from edgetune.parts.fleet.carriers.flower.app.parcel import (
    ANSWER_FILES,
    MOST_TASK,
    TASK_FILES,
    ParcelError,
    pack,
    unpack,
)
from edgetune.parts.fleet.carriers.flower.app.settings import NodeSettings
from edgetune.parts.fleet.carriers.flower.environment import Flower, command, find, last_line, running, state_of
from edgetune.parts.fleet.carriers.flower.node import Node
from edgetune.parts.fleet.carriers.flower.server import node_keys
from edgetune.parts.fleet.rounds import answer as answers
from edgetune.parts.fleet.rounds import task as tasks
from edgetune.parts.fleet.rounds.lead import make_task
from edgetune.parts.fleet.rounds.options import RoundOptions
from edgetune.parts.fleet.rounds.task import open_task
from edgetune.training.config import TrainConfig

CONFIG = TrainConfig(rank=2, lr=1e-2, epochs=1.0, batch_size=4, max_length=64, anchors=0)
KEY = "ecdsa-sha2-nistp384 " + "A" * 180


@pytest.fixture(scope="module")
def task(bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("round") / "task"
    make_task(bundle, folder, CONFIG, RoundOptions(aggregation="frozen-a"))
    return folder


@pytest.fixture
def settings(model, tmp_path):
    """Of a node with eight rows."""
    rows = write_lines(tmp_path / "rows.jsonl", [{"prompt": f"say {i}", "completion": "ab"} for i in range(8)])
    words, variables = command("fleet", "train-round")
    more = [str(rows), "--model", str(model), "--device", "kitchen", "--threads", "1", "--no-govern"]
    return NodeSettings(words, more, variables, str(tmp_path / "work"))


def archive(files, **options):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as found:
        for name, content in files:
            found.writestr(name, content)
    return file.getvalue()


def test_a_parcel_has_the_files_of_a_round_and_the_same_bytes_each_time(task, tmp_path):
    parcel = pack(task, TASK_FILES)
    assert parcel == pack(task, TASK_FILES)
    unpack(parcel, tmp_path / "task", TASK_FILES, MOST_TASK)
    assert pack(tmp_path / "task", TASK_FILES) == parcel
    assert (tmp_path / "task" / "adapter" / "adapter.gguf").read_bytes() == (task / "adapter/adapter.gguf").read_bytes()


def test_a_parcel_may_have_what_rounds_have():
    assert set(TASK_FILES) == {tasks.FACTS, *tasks.NEEDED, signature.FILE}
    assert set(ANSWER_FILES) == {answers.FACTS, answers.UPDATE, signature.FILE}


@pytest.mark.parametrize(("files", "options", "says"), [
    ([("../answer.json", b"{}")], {}, "none of a round is"),
    ([("/etc/passwd", b"")], {}, "none of a round is"),
    ([("answer.json/x", b"")], {}, "none of a round is"),
    ([("answer.json", b"{}"), ("answer.json", b"{}")], {}, "twice"),
    ([], {}, "empty"),
    ([("answer.json", bytes(1 << 20))], {"compression": zipfile.ZIP_DEFLATED}, "compressed"),
    ([("answer.json", bytes(3000)), ("update.safetensors", bytes(3000))], {}, "more than 5000 bytes"),
    ([("answer.json", bytes(40_000))], {}, "the most is 5000"),
])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_what_is_no_parcel_is_refused_and_nothing_is_written(tmp_path, files, options, says):
    with pytest.raises(ParcelError, match=says):
        unpack(archive(files, **options), tmp_path / "answer", ANSWER_FILES, 5000)
    assert not [*tmp_path.iterdir()]


@examples(200)
@given(data=st.data())
def test_damaged_parcels_are_refused_by_their_error(task, tmp_path_factory, data):
    parcel = bytearray(pack(task, ("task.json", "adapter/run.json")))
    for _ in range(data.draw(st.integers(1, 4))):
        parcel[data.draw(st.integers(0, len(parcel) - 1))] = data.draw(st.integers(0, 255))
    cut = parcel[:data.draw(st.integers(0, len(parcel)))]
    folder = tmp_path_factory.mktemp("damaged") / "task"
    for found in (bytes(parcel), bytes(cut)):
        try:
            unpack(found, folder, TASK_FILES, MOST_TASK)
        except ParcelError:
            assert not folder.exists()
        else:
            assert {path.name for path in folder.rglob("*") if path.is_file()} <= {"task.json", "run.json"}
            (folder.rename(folder.with_name("read")))
            break


def test_a_node_answers_by_a_process_and_sends_the_same_again(task, bundle, settings, tmp_path):
    parcel, told = answer(pack(task, TASK_FILES), settings, 300.0)
    unpack(parcel, tmp_path / "answer", ANSWER_FILES, 1 << 20)
    found = answers.open_answer(tmp_path / "answer", open_task(task, bundle))
    assert (found.device, told["rows"], told["tokens"]) == ("kitchen", found.facts.rows, found.facts.tokens)
    assert told["loss_before"] == found.facts.loss_before
    again, _ = answer(pack(task, TASK_FILES), NodeSettings(["false"], [], {}, settings.work), 300.0)
    assert again == parcel


@pytest.mark.dev
def test_a_node_keeps_nothing_of_older_tasks(task, bundle, settings, tmp_path):
    answer(pack(task, TASK_FILES), settings, 300.0)
    make_task(bundle, tmp_path / "other", TrainConfig(**{**vars(CONFIG), "seed": 1}), RoundOptions())
    answer(pack(tmp_path / "other", TASK_FILES), settings, 300.0)
    name = open_task(tmp_path / "other", bundle).name[:16]
    assert {path.name for path in Path(settings.work).iterdir()} == {"lock", f"task-{name}", f"answer-{name}"}


def test_a_node_tells_nothing_of_its_files_where_the_training_fails(task, settings, capfd):
    wrong = NodeSettings(settings.train, ["/nowhere/rows.jsonl", *settings.more[1:]], settings.variables, settings.work)
    with pytest.raises(TrainingFailed, match=r"ended with \d; the log of the node says why") as raised:
        answer(pack(task, TASK_FILES), wrong, 300.0)
    assert "nowhere" not in str(raised.value)
    assert "/nowhere/rows.jsonl" in capfd.readouterr().err


@pytest.mark.dev
def test_a_training_that_takes_too_long_is_stopped_and_continued(task, bundle, settings, tmp_path):
    many = write_lines(tmp_path / "many.jsonl", [{"prompt": f"say {i}", "completion": "ab" * 8} for i in range(2000)])
    long = NodeSettings(settings.train, [str(many), *settings.more[1:], "--eval", "none"], settings.variables,
                        settings.work)
    work = Path(long.work) / f"answer-{open_task(task, bundle).name[:16]}.work"
    for seconds in (0.8, 1.2, 2.0, 3.0, 5.0, 8.0, 13.0, 20.0):  # until it has begun, which depends on the machine
        with pytest.raises(TrainingFailed):
            answer(pack(task, TASK_FILES), long, seconds)
        if work.exists():
            break
    assert work.exists()
    _, told = answer(pack(task, TASK_FILES), long, 300.0)
    assert told["rows"] == 2000


def test_nodes_reach_the_fleet_alone():
    """The ASGI app by hand: a request from each place to each part."""
    async def inner(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def status(path, client, server="192.168.1.5"):
        sent = []

        async def send(message):
            sent.append(message)

        await FleetAlone(inner)({"type": "http", "path": path, "client": client, "server": (server, 8000)}, None, send)
        return sent[0]["status"]

    there, here = ("192.168.1.9", 4000), ("127.0.0.1", 4000)
    for path, client, wanted in (("/v1/fleet/pull-messages", there, 200), ("/v1/control/start-run", there, 403),
                                 ("/v1/runtime/acquire-task", there, 403), ("/docs", there, 403),
                                 ("/v1/fleet", there, 403), ("/v1/control/start-run", here, 200),
                                 ("/v1/control/start-run", ("192.168.1.5", 4000), 200),
                                 ("/v1/control/start-run", None, 403)):
        assert asyncio.run(status(path, client)) == wanted, (path, client)
    assert is_here(("::1", 1), ("::", 8000))
    assert is_here(("::ffff:127.0.0.1", 1), ("::", 8000))
    assert not is_here(("no address", 1), ("192.168.1.5", 8000))


def test_public_keys_are_a_line_each(tmp_path):
    path = tmp_path / "keys.txt"
    path.write_text(f"# kitchen\n{KEY} root@kitchen # spare\n\n{KEY}\n")
    assert node_keys(path) == (KEY,)
    for wrong, says in (("ssh-ed25519 AAAA", "line 1 of .* is no public key"), ("# none", "has no public key")):
        path.write_text(wrong)
        with pytest.raises(UsageError, match=says):
            node_keys(path)
    with pytest.raises(UsageError, match="cannot read"):
        node_keys(tmp_path / "none")


def test_without_flower_a_sentence_says_what_to_install(tmp_path, model, monkeypatch):
    empty = tmp_path / "python"
    empty.write_text("#!/bin/sh\nexit 1\n")
    empty.chmod(0o700)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "keys.txt").write_text(KEY)
    for words in (["server", tmp_path, "--nodes", tmp_path / "keys.txt"], ["node", "localhost:8000", tmp_path / "x"]):
        done = CliRunner().invoke(cli, ["fleet", *map(str, words), "--model", str(model), "--flower", str(empty)])
        assert isinstance(done.exception, UnsupportedError | SystemExit)
        assert "has no package flwr" in done.output
        assert "pip install 'flwr>=1.42,<1.43'" in done.output
        assert done.output.count("\n") == 1


@pytest.mark.parametrize(("prints", "says"), [("1.30.0 3.12", "Flower 1.30.0 in Python 3.12"),
                                              ("1.42.0 3.10", "Flower 1.42.0 in Python 3.10")])
def test_an_older_flower_is_refused(tmp_path, prints, says):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho {prints}\n")
    python.chmod(0o700)
    with pytest.raises(UnsupportedError, match=says):
        find(python, tmp_path)


def test_a_node_runs_its_own_app_and_nothing_else_of_flower(tmp_path):
    flower = Flower(Path(sys.executable), tmp_path)
    flower.app_folder()
    flower.replace_programs({"flwr-agentapp": "", "flwr-clientapp": "client_process"})
    agent = subprocess.run([flower.bin / "flwr-agentapp"], capture_output=True, text=True, check=False)
    assert (agent.returncode, agent.stderr) == (1, "a node of edgetune runs no flwr-agentapp\n")
    assert str(tmp_path / "app" / "edgetune-flower") in (flower.bin / "flwr-clientapp").read_text()
    assert flower.variables()["PATH"].startswith(f"{flower.bin}{os.pathsep}")
    assert flower.variables()["FLWR_TELEMETRY_ENABLED"] == "0"


def test_a_program_ends_with_all_that_it_started(tmp_path):
    log = tmp_path / "log"
    with running(["sh", "-c", "sleep 100 & echo $!; echo started; wait"], dict(os.environ), log) as process:
        until = time.monotonic() + 20
        while last_line(log) != "started" and time.monotonic() < until:
            time.sleep(0.05)
        child = int(log.read_text().split()[0])
    assert process.returncode == -signal.SIGTERM
    until = time.monotonic() + 20
    while Path(f"/proc/{child}/cmdline").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}/cmdline").exists() or not Path(f"/proc/{child}/cmdline").read_bytes()


def test_addresses_and_places(tmp_path):
    node = Node("nowhere", Flower(Path(sys.executable), tmp_path), tmp_path / "key", None, [])
    with pytest.raises(UsageError, match="write HOST:PORT"):
        node.follow(lambda: True, print)
    with pytest.raises(UsageError, match="ssh-keygen -y"):
        node.public_key()
    assert state_of(tmp_path / "a", tmp_path) != state_of(tmp_path / "b", tmp_path)


def test_the_program_of_an_environment_that_fails_is_one_sentence(tmp_path):
    flower = Flower(Path(sys.executable), tmp_path)
    with pytest.raises(EdgetuneError, match="sh -c failed: it is no use"):
        flower.run("sh", "-c", "echo it is no use; exit 3")
