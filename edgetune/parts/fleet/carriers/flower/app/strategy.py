"""The strategy on Flower's message API: rounds in a folder, answered by nodes, summed by a command of edgetune.

Each answer is written to the folder as it arrives, and the round that is open is read from the folder. So a server that
is killed begins at the round where it was, and asks only nodes whose answers it does not have.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from logging import INFO, WARNING, getLogger
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from .messages import ARRAYS, arrays_of, parcel_in
from .parcel import ANSWER_FILES, TASK_FILES, ParcelError, pack, unpack
from .settings import ServerSettings

PULLED = 16  # replies in memory at once
LONGEST_PAUSE = 600.0  # seconds until a node that failed is asked again
MOST_REASON = 200  # characters of what a node says of its failure
MIB = 1 << 20
_log = getLogger("flwr")


class TooFew(RuntimeError):
    """The command made no next task, such as if fewer answers count than the quorum."""


@dataclass
class AskedNode:
    """What is known of a node in a round. message: the newest one to it, "" if it may be asked; activated: when the
    node last joined, as Flower says it; failed: how often in the round; later: the time before which it is left alone.
    """

    message: str = ""
    activated: str = ""
    failed: int = 0
    later: float = 0.0


@dataclass
class FolderStrategy(Strategy):  # type: ignore[misc]
    """Rounds of a folder. clock: seconds, of any beginning. at_once: messages without a reply, at most; a simulation,
    whose nodes compute one after the other, is faster with few. pause: seconds before a node that failed is asked
    again, twice as many each time.
    """

    settings: ServerSettings
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    at_once: int = 1_000_000
    pause: float = 5.0
    _least: int = 0  # answers before the next try to sum
    _refused: set[int] = field(default_factory=set)  # nodes that answered the round with what is no answer

    def task(self, number: int) -> Path:
        return Path(self.settings.folder) / f"round-{number:04}" / "task"

    def answers(self, number: int) -> Path:
        return self.task(number).with_name("answers")

    def newest(self) -> int:
        """Returns the number of the newest round. Raises FileNotFoundError if there is none."""
        found = [int(path.parent.parent.name.removeprefix("round-"))
                 for path in Path(self.settings.folder).glob("round-*/task/task.json")]
        if not found:
            raise FileNotFoundError(f"{self.settings.folder} holds no round-0001/task")
        return max(found)

    def start(self, grid: Grid, initial_arrays: ArrayRecord, num_rounds: int = 3, timeout: float = 3600,
              train_config: ConfigRecord | None = None, evaluate_config: ConfigRecord | None = None,
              evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None) -> Result:
        """Ends rounds up to `num_rounds`, from the newest in the folder. initial_arrays: of that one's task; timeout:
        seconds after which the quorum is enough.

        Raises ValueError if an evaluation is wanted: devices measure their losses in the training.
        """
        if evaluate_config is not None or evaluate_fn is not None:
            raise ValueError("devices measure losses while they train; there is no evaluation apart")
        self.summary()
        result = Result(arrays=initial_arrays)
        for number in range(self.newest(), num_rounds + 1):
            self._least = 0
            self._refused = set()
            began = self.clock()
            metrics = None
            while metrics is None:
                replies = self._replies(number, result.arrays, train_config or ConfigRecord(), grid, began + timeout)
                try:
                    result.arrays, metrics = self.aggregate_train(number, replies)
                except TooFew as error:
                    _log.log(WARNING, "round %s stays open: %s", number, error)
                    self._least = len(self._count(number)) + 1
            result.train_metrics_clientapp[number] = metrics
        return result

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord,
                        grid: Grid) -> Iterable[Message]:
        """Returns a message with the task for each node that is there and whose answer is not."""
        content = RecordDict({ARRAYS: arrays, "config": config})
        return [Message(content, node, MessageType.TRAIN, ttl=self.settings.wait, group_id=str(server_round))
                for node in grid.get_node_ids()
                if node not in self._refused and not self._place(server_round, node).exists()]

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord, MetricRecord]:
        """Returns (the next task, figures of the round), once the replies are in the folder. Raises TooFew."""
        for reply in replies:
            self._keep(server_round, reply)
        found = self._sum(server_round)
        told = {key: found[key] for key in ("devices", "left_out", "tokens", "loss_before", "loss_after", "up", "down")}
        return (arrays_of(pack(self.task(server_round + 1), TASK_FILES)),
                MetricRecord({key: value for key, value in told.items() if value is not None}))

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord,  # noqa: ARG002
                           grid: Grid) -> Iterable[Message]:  # noqa: ARG002
        """Nothing: the losses are in the answers."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:  # noqa: ARG002
        return None

    def summary(self) -> None:
        _log.log(INFO, "rounds in %s: a round ends with %s answers, or after %g seconds with the quorum",
                 self.settings.folder, self.settings.devices, self.settings.wait)

    def _replies(self, number: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid,
                 late: float) -> Iterator[Message]:
        """Yields the replies of a round as they arrive, until they are enough; nodes that come later are asked later.
        """
        nodes: dict[int, AskedNode] = {}
        waited: dict[str, int] = {}
        while not self._is_enough(number, late):
            activated = _activated(grid)
            wanted = [message for message in self.configure_train(number, arrays, config, grid)
                      if self._may_ask(nodes.setdefault(message.metadata.dst_node_id, AskedNode()),
                                       activated.get(message.metadata.dst_node_id, ""))]
            wanted = wanted[:max(0, self.at_once - len(waited))]
            sent = [*grid.push_messages(wanted)] if wanted else []
            for message, name in zip(wanted, sent, strict=True):
                if name:
                    node = message.metadata.dst_node_id
                    nodes[node].message, nodes[node].activated = name, activated.get(node, "")
                    waited[name] = node
            names = [*waited]
            for first in range(0, len(names), PULLED):
                for reply in grid.pull_messages(names[first:first + PULLED]):
                    node = waited.pop(reply.metadata.reply_to_message_id, None)
                    if node is not None and reply.has_error():
                        self._failed(number, node, nodes[node], reply)
                    elif node is not None:
                        yield reply
            if not self._is_enough(number, late):
                self.sleep(self.settings.every)

    def _may_ask(self, node: AskedNode, activated: str) -> bool:
        """Returns whether a node may have a message: it has none, or joined again since, and so has lost it."""
        return self.clock() >= node.later and (not node.message or activated != node.activated)

    def _failed(self, number: int, name: int, node: AskedNode, reply: Message) -> None:
        reason = " ".join(str(reply.error.reason).split())[:MOST_REASON]
        _log.log(WARNING, "round %s: node %016x did not answer: %s", number, name, reason)
        node.message = ""
        node.failed += 1
        node.later = self.clock() + min(self.pause * 2.0**(node.failed - 1), max(LONGEST_PAUSE, self.pause))

    def _place(self, number: int, node: int) -> Path:
        return self.answers(number) / f"node-{node:016x}"

    def _keep(self, number: int, reply: Message) -> None:
        """Writes an answer to the folder. What is no answer is left out and logged."""
        if reply.has_error():
            return
        node = reply.metadata.src_node_id
        out = self._place(number, node)
        adapter = self.task(number) / "adapter" / "adapter.gguf"
        most = 2 * adapter.stat().st_size + 2 * MIB  # both factors as float32, and the facts
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            if not out.exists():
                unpack(parcel_in(reply.content), out, ANSWER_FILES, most)
        except ParcelError as error:
            self._refused.add(node)
            _log.log(WARNING, "round %s: the answer of node %016x is left out: %s", number, node, error)

    def _count(self, number: int) -> list[Path]:
        """Returns the answers in the folder that say they are to this task; whether they count, the command decides."""
        task = hashlib.sha256((self.task(number) / "task.json").read_bytes()).hexdigest()
        return [path.parent for path in sorted(self.answers(number).glob("*/answer.json")) if _task_of(path) == task]

    def _is_enough(self, number: int, late: float) -> bool:
        facts = json.loads((self.task(number) / "task.json").read_text(encoding="utf-8"))
        quorum = int(facts["fleet"].get("quorum", 1))
        wanted = quorum if self.clock() >= late else max(quorum, self.settings.devices)
        return len(self._count(number)) >= max(wanted, self._least)

    def _sum(self, number: int) -> dict[str, Any]:
        out = self.task(number + 1)
        out.parent.mkdir(parents=True, exist_ok=True)
        given = sorted(path.parent for path in self.answers(number).glob("*/answer.json"))
        words = [*self.settings.aggregate, str(self.task(number)), *map(str, given), "-o", str(out), "--json"]
        done = subprocess.run(words, env=os.environ | self.settings.variables, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, text=True, check=False)
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1]) if done.stdout.strip() else {}
        if done.returncode != 0 or "error" in found:
            raise TooFew(found.get("error", f"the command ended with {done.returncode}"))
        return found


def _activated(grid: Grid) -> dict[int, str]:
    """Returns when each node last joined, if the grid says it; a simulation does not."""
    nodes = getattr(grid, "get_nodes", None)
    return {node.node_id: node.last_activated_at for node in nodes()} if nodes else {}


def _task_of(path: Path) -> object:
    """Returns the task that an answer.json names, of whatever is in it."""
    try:
        found = json.loads(path.read_bytes()[:MIB])
    except (ValueError, RecursionError):
        return None
    return found.get("task") if isinstance(found, dict) else None
