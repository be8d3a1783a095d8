"""A server and four nodes of Flower, real processes with TLS and keys, that are killed within rounds.

    python tests/proofs/flower.py --flower build/flower/bin/python [--folder DIR] [--out FILE]

Four devices with 8 to 1,600 rows learn on a tiny model in three rounds. A fifth, whose key the server does not have,
must stay out. The server and all that it started are killed in round 1, when the first answer has arrived, and the same
command is started again. A node is killed in round 2 while it trains, and started again. In round 3 it is killed for
good, and the round ends with the quorum once the time is over.

The same rounds are made by files alone, by `edgetune fleet train-round` and `aggregate`: the adapters after round 1 and
2 must be the same, byte for byte, and the one after round 3 that of the three answers. No process may talk to anything
but this machine. Memory is the proportional set size (PSS), which divides shared pages among the processes that share
them, of the processes of a node. Exits with 1 where something differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil
from json_lines import write_lines
from tiny import write_tiny

from edgetune.python_child import child

DEVICES = {"a": 8, "b": 60, "c": 300, "d": 1600}  # rows
STRANGER = "e"
ROUNDS = 3
WAIT = 420.0  # seconds of a round until the quorum is enough
LONGEST = 1200.0
PORT = 18765
KINDS = {"flower-supernode": "SuperNode", "flower-superexec": "SuperExec", "client_process": "client app",
         "train-round": "training", "fleet node": "edgetune fleet node"}


class Place:
    """The files of the proof. python: Flower's."""

    def __init__(self, folder: Path, python: Path) -> None:
        self.folder = folder
        self.python = python
        self.rounds = folder / "rounds"
        self.model = folder / "tiny.gguf"
        write_tiny(self.model, formats="Q8_0")
        for letter, count in {**DEVICES, STRANGER: 8}.items():
            write_lines(self.rows(letter), [{"prompt": f"say {letter} {i}", "completion": letter * (2 + i % 7)}
                                            for i in range(count)])
        self.run("task", self.model, "-o", self.task(1), "--aggregation", "frozen-a", "--rank", 2, "--quorum", 3,
                 "--lr", "1e-2", "--max-length", 64)

    def rows(self, letter: str) -> Path:
        return self.folder / f"{letter}.jsonl"

    def task(self, number: int, rounds: Path | None = None) -> Path:
        return (rounds or self.rounds) / f"round-{number:04}" / "task"

    def answers(self, number: int) -> dict[str, Path]:
        """The answers that have arrived, by device."""
        found = self.task(number).with_name("answers").glob("*/answer.json")
        return {json.loads(path.read_text())["device"]: path.parent for path in found}

    def environment(self, letter: str) -> dict[str, str]:
        return child("edgetune.__main__")["env"] | {"XDG_STATE_HOME": str(self.folder / f"state-{letter}"),
                                                    "OMP_NUM_THREADS": "1"}

    def words(self, *words: object) -> list[str]:
        return [*child("edgetune.__main__")["args"], "fleet", *map(str, words)]

    def run(self, *words: object) -> None:
        subprocess.run(self.words(*words), env=self.environment("files"), check=True, stdout=subprocess.DEVNULL)

    def server(self) -> subprocess.Popen[bytes]:
        return self._start("server", self.words(
            "server", self.rounds, "--model", self.model, "--nodes", self.folder / "nodes.txt", "--flower", self.python,
            "--port", PORT, "--devices", len(DEVICES), "--rounds", ROUNDS, "--wait", WAIT, "--every", 1))

    def node(self, letter: str) -> subprocess.Popen[bytes]:
        trust = ["--authority", self.folder / "ca.crt"] if (self.folder / "ca.crt").exists() else []
        return self._start(letter, self.words(
            "node", f"127.0.0.1:{PORT}", self.rows(letter), "--model", self.model, "--flower", self.python, *trust,
            "--device", letter, "--threads", 1, "--no-govern"))

    def _start(self, name: str, words: list[str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(words, env=self.environment(name), stdout=log, stderr=log,
                                    stdin=subprocess.DEVNULL)

    def key(self, letter: str) -> str:
        return next((self.folder / f"state-{letter}").glob("edgetune/flower-node-*/node.key.pub")).read_text()


class Watch:
    """What is seen of the processes: the most memory of a node's, while it waits and while it trains; addresses."""

    def __init__(self) -> None:
        self.waiting: dict[str, float] = {}
        self.training: dict[str, float] = {}
        self.outside: set[str] = set()

    def look(self, node: subprocess.Popen[bytes], server: subprocess.Popen[bytes]) -> None:
        sizes: dict[str, float] = {}
        for process in (node, server):
            for one in tree(process.pid):
                with suppress(psutil.Error):
                    self.outside |= {each.raddr.ip for each in one.net_connections("inet") if each.raddr
                                     and not each.raddr.ip.startswith("127.")}
                    kind = kind_of(one)
                    if process is node and kind:
                        sizes[kind] = sizes.get(kind, 0.0) + one.memory_full_info().pss / 2**20
        into = self.training if "training" in sizes else self.waiting if "client app" not in sizes else {}
        for kind, size in sizes.items():
            into[kind] = max(into.get(kind, 0.0), round(size))


def tree(pid: int) -> list[psutil.Process]:
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def kind_of(process: psutil.Process) -> str:
    words = " ".join(process.cmdline())
    return next((kind for word, kind in KINDS.items() if word in words), "")


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kills a command and nothing else: what it started must end by itself."""
    started = tree(process.pid)[1:]
    process.kill()
    process.wait()
    psutil.wait_procs(started, 30)


def until(is_so: Callable[[], bool], what: str, each: Callable[[], None] = lambda: None) -> None:
    late = time.monotonic() + LONGEST
    while not is_so():
        if time.monotonic() > late:
            raise TimeoutError(f"{what}: not after {LONGEST:.0f} s")
        each()
        time.sleep(0.5)


def is_training(place: Place, letter: str, number: int) -> bool:
    works = (place.folder / f"state-{letter}").glob("edgetune/flower-node-*/work/answer-*.work/run")
    return any(True for _ in works) and place.task(number).exists()


@contextmanager
def ended(processes: dict[str, subprocess.Popen[bytes]]) -> Iterator[None]:
    try:
        yield
    finally:
        for process in processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)


def by_files(place: Place) -> Path:
    """The same rounds without Flower; in the last one without the device that is killed."""
    rounds = place.folder / "by-files"
    shutil.copytree(place.task(1), place.task(1, rounds))
    for number in range(1, ROUNDS + 1):
        letters = [letter for letter in DEVICES if number < ROUNDS or letter != "d"]
        for letter in letters:
            place.run("train-round", place.task(number, rounds), place.rows(letter), "-o",
                      rounds / f"{letter}-{number}", "--model", place.model, "--device", letter, "--threads", 1,
                      "--no-govern")
        place.run("aggregate", place.task(number, rounds), *(rounds / f"{letter}-{number}" for letter in letters), "-o",
                  place.task(number + 1, rounds), "--model", place.model)
    return rounds


def carried(place: Place, watch: Watch) -> dict[str, float]:
    """Starts and kills all; returns the seconds of each round."""
    letters = [*DEVICES, STRANGER]
    running: dict[str, subprocess.Popen[bytes]] = {}
    seconds: dict[str, float] = {}
    with ended(running):
        running |= {letter: place.node(letter) for letter in letters}  # each makes its key
        until(lambda: all([*(place.folder / f"state-{letter}").glob("edgetune/flower-node-*/node.key.pub")]
                          for letter in letters), "keys")
        for process in running.values():
            process.terminate()
            process.wait()
        (place.folder / "nodes.txt").write_text("".join(place.key(letter) for letter in DEVICES))
        running["server"] = place.server()
        authority = "edgetune/flower-server-*/tls/ca.crt"
        until(lambda: bool([*(place.folder / "state-server").glob(authority)]), "a certificate")
        shutil.copyfile(next((place.folder / "state-server").glob(authority)), place.folder / "ca.crt")
        running |= {letter: place.node(letter) for letter in letters}

        def look() -> None:
            watch.look(running["d"], running["server"])

        for number in range(1, ROUNDS + 1):
            began = time.monotonic()
            if number == 1:
                until(lambda: bool(place.answers(1)), "a first answer", look)
                print(f"the server is killed with {sorted(place.answers(1))}", flush=True)
                kill(running["server"])
                running["server"] = place.server()
            else:
                until(lambda number=number: is_training(place, "d", number), "a training", look)
                print(f"node d is killed with {sorted(place.answers(number))}", flush=True)
                kill(running["d"])
                if number == 2:
                    running["d"] = place.node("d")
            until(lambda number=number: place.task(number + 1).exists(), f"the end of round {number}", look)
            seconds[str(number)] = round(time.monotonic() - began)
            print(f"round {number}: {sorted(place.answers(number))}, {seconds[str(number)]} s", flush=True)
        code = running["server"].wait(120)
        if code:
            raise RuntimeError(f"the server ended with {code}")
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flower", type=Path, required=True, metavar="PYTHON")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="flower-"))
    folder.mkdir(parents=True, exist_ok=True)
    place = Place(folder, Path(os.path.abspath(asked.flower)))  # noqa: PTH100  # a link to the Python is the environment
    watch = Watch()
    reference = by_files(place)
    seconds = carried(place, watch)
    adapters = {number: place.task(number + 1) / "adapter" / "adapter.gguf" for number in range(1, ROUNDS + 1)}
    same = {str(number): path.read_bytes() == (reference / path.relative_to(place.rounds)).read_bytes()
            for number, path in adapters.items()}
    found = {"seconds": seconds, "answers": [sorted(place.answers(number)) for number in adapters],
             "byte_for_byte": same, "outside": sorted(watch.outside), "pss_mib_waiting": watch.waiting,
             "pss_mib_training": watch.training,
             "stranger": "does not let this node in" in (folder / f"{STRANGER}.log").read_text()}
    print(json.dumps(found, indent=1))
    if asked.out:
        with asked.out.open("a") as file:
            file.write(json.dumps(found) + "\n")
    is_right = (all(same.values()) and not watch.outside and found["stranger"]
                and found["answers"] == [[*DEVICES], [*DEVICES], [*DEVICES][:3]])
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
