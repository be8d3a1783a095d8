"""The strategy and the client app on Flower's message API, where flwr is installed: `make lab NAME=flower` has such a
place.

The grid is one of this process: it hands each message to the client app that a node runs, and the reply back, without a
SuperLink between. Trainings and sums are the commands, as in the field.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from json_lines import write_lines

from edgetune.parts.fleet.carriers.flower.app.settings import NODE, NodeSettings, ServerSettings, write_settings
from edgetune.parts.fleet.carriers.flower.environment import command
from edgetune.parts.fleet.rounds.lead import make_task, write_next
from edgetune.parts.fleet.rounds.options import RoundOptions
from edgetune.parts.fleet.rounds.task import open_task
from edgetune.training.config import TrainConfig

pytest.importorskip("flwr", reason="Flower is not installed: make lab NAME=flower makes an environment that has it")

from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from edgetune.parts.fleet.carriers.flower.app import client_app
from edgetune.parts.fleet.carriers.flower.app.messages import ARRAYS, arrays_of, parcel_in
from edgetune.parts.fleet.carriers.flower.app.parcel import TASK_FILES, ParcelError, pack
from edgetune.parts.fleet.carriers.flower.app.strategy import FolderStrategy

CONFIG = TrainConfig(rank=2, lr=1e-2, epochs=1.0, batch_size=4, max_length=64, anchors=0)
TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1  # as a process of Flower sets them
OUTSIDE = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})


class HereGrid(Grid):
    """Nodes of this process. change: what becomes of a reply on its way, by node; lost: nodes whose messages are lost
    until they join again.
    """

    def __init__(self, nodes, change=None):
        self.nodes = nodes
        self.change = change or {}
        self.lost = set()
        self.joined = dict.fromkeys(nodes, "1")
        self.sent = []
        self.open = {}

    def set_run(self, run):
        raise NotImplementedError

    @property
    def run(self):
        raise NotImplementedError

    def create_message(self, *given, **named):
        raise NotImplementedError

    def get_node_ids(self):
        return [*self.nodes]

    def get_nodes(self):
        return [type("Node", (), {"node_id": node, "last_activated_at": self.joined[node]}) for node in self.nodes]

    def push_messages(self, messages):
        names = []
        for message in messages:
            name = f"m{len(self.sent)}"
            message.metadata.__dict__["_message_id"] = name
            message.metadata.__dict__["_run_id"] = 1
            self.sent.append((message.metadata.dst_node_id, message.metadata.group_id))
            if message.metadata.dst_node_id not in self.lost:
                self.open[name] = message
            names.append(name)
        return names

    def pull_messages(self, message_ids):
        found = []
        for name in [name for name in message_ids if name in self.open][:1]:  # one at a time, as they arrive
            message = self.open.pop(name)
            reply = self.nodes[message.metadata.dst_node_id](message)
            found.append(self.change.get(message.metadata.dst_node_id, lambda one: one)(reply))
        return found

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError


@pytest.fixture
def place(bundle, model, tmp_path, monkeypatch):
    """(settings of a server, a function that makes a node of a letter, a function that makes a strategy)."""
    rounds = tmp_path / "rounds"
    make_task(bundle, rounds / "round-0001" / "task", CONFIG, RoundOptions(aggregation="frozen-a", quorum=2))
    words, variables = command("fleet", "aggregate", "--model", str(model))
    settings = ServerSettings(str(rounds), words, variables, 2, 1e6, 2, 1.0, str(tmp_path))

    def node(letter):
        rows = write_lines(tmp_path / f"{letter}.jsonl", [{"prompt": f"say {letter} {i}", "completion": letter * 2}
                                                          for i in range(8)])
        train, own = command("fleet", "train-round")
        more = [str(rows), "--model", str(model), "--device", letter, "--threads", "1", "--no-govern"]
        write_settings(tmp_path / f"{letter}.json", NodeSettings(train, more, own, str(tmp_path / f"work-{letter}")))

        def reply(message):
            monkeypatch.setenv(NODE, str(tmp_path / f"{letter}.json"))
            return client_app.app(message=message, context=OUTSIDE)

        return reply

    return settings, node, lambda **more: FolderStrategy(replace(settings, **more), sleep=lambda _: None)


def first_task(settings):
    return arrays_of(pack(Path(settings.folder) / "round-0001" / "task", TASK_FILES))


def sums(settings, number):
    return (Path(settings.folder) / f"round-{number:04}" / "task" / "adapter" / "adapter.gguf").read_bytes()


def test_two_rounds_end_with_the_sum_of_their_answers(place, bundle, tmp_path):
    settings, node, strategy = place
    result = strategy().start(HereGrid({1: node("a"), 2: node("b")}), first_task(settings), 2)
    assert [*result.train_metrics_clientapp] == [1, 2]
    assert result.train_metrics_clientapp[1]["devices"] == 2
    assert parcel_in(RecordDict({ARRAYS: result.arrays})) == pack(Path(settings.folder) / "round-0003/task", TASK_FILES)
    for number in (1, 2):
        round_ = Path(settings.folder) / f"round-{number:04}"
        again = tmp_path / f"again-{number}"
        write_next(open_task(round_ / "task", bundle), bundle, [*(round_ / "answers").iterdir()], again)
        assert sums(settings, number + 1) == (again / "adapter" / "adapter.gguf").read_bytes()


def test_a_server_that_begins_again_asks_only_for_what_has_not_arrived(place):
    settings, node, strategy = place

    def killed(_reply):
        raise KeyboardInterrupt

    first = HereGrid({1: node("a"), 2: node("b")}, {2: killed})
    with pytest.raises(KeyboardInterrupt):
        strategy().start(first, first_task(settings), 1)
    assert [path.name for path in (Path(settings.folder) / "round-0001/answers").iterdir()] == [f"node-{1:016x}"]
    second = HereGrid({1: node("a"), 2: node("b")})
    strategy().start(second, first_task(settings), 1)
    assert second.sent == [(2, "1")]


def test_nodes_that_fail_come_late_or_lost_a_message_are_asked_again(place):
    settings, node, strategy = place
    times = iter(range(0, 100_000, 100))
    grid = HereGrid({1: node("a")}, {})
    grid.change[1] = lambda _reply: grid.change.pop(1) and Message(Error(1, "no\npower"), reply_to=sent[0])
    grid.lost = {3}
    sent = []
    push = grid.push_messages

    def noted(messages):
        names = push(messages)
        sent.extend(messages)
        if len(grid.sent) == 1:
            grid.nodes[3], grid.joined[3] = node("c"), "1"
        elif 3 in grid.lost and any(to == 3 for to, _ in grid.sent):
            grid.lost = set()
            grid.joined[3] = "2"
        return names

    grid.push_messages = noted
    ended = strategy()
    ended.clock = lambda: float(next(times))
    ended.start(grid, first_task(settings), 1)
    assert sorted(grid.sent) == [(1, "1"), (1, "1"), (3, "1"), (3, "1")]


def test_what_is_no_answer_is_left_out_and_the_round_stays_open(place):
    """One node sends no parcel, one the answer of another task: two that are right must come."""
    settings, node, strategy = place

    def empty(reply):
        reply.content[ARRAYS] = ArrayRecord({"parcel": Array(dtype="uint8", shape=(3,), stype="x", data=b"abc")})
        return reply

    grid = HereGrid({1: node("a"), 2: node("b"), 3: node("c")}, {1: empty})
    strategy().start(grid, first_task(settings), 1)
    assert sorted(grid.sent) == [(1, "1"), (2, "1"), (3, "1")]
    told = json.loads((Path(settings.folder) / "round-0002/task/task.json").read_text())["history"][-1]
    assert (told["devices"], told["left_out"]) == (2, 0)
    with pytest.raises(ParcelError, match="no parcel"):
        parcel_in(RecordDict())


def test_answers_that_the_command_refuses_are_replaced_by_more(place, bundle):
    """Two devices of one name count once: the quorum of two is reached by the third."""
    settings, node, strategy = place
    first = node("a")
    grid = HereGrid({1: first, 2: node("a"), 3: node("b")})
    strategy().start(grid, first_task(settings), 1)
    task = open_task(Path(settings.folder) / "round-0002" / "task", bundle)
    assert task.facts.history[-1]["devices"] == 2


def test_an_evaluation_of_flowers_is_refused(place):
    settings, _, strategy = place
    with pytest.raises(ValueError, match="there is no evaluation apart"):
        strategy().start(HereGrid({}), first_task(settings), 1, evaluate_fn=lambda *_: None)
    assert strategy().configure_evaluate(1, first_task(settings), None, None) == []
