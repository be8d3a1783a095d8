"""`edgetune fleet server`: a SuperLink with TLS and the keys of its nodes, and the server app that ends the rounds.

Flower ends a run whose SuperLink is killed: its ServerApp is a child of that process, and nothing submits it again. So
this does. The round that was begun is in the folder, with the answers that arrived; a new run sends the same task, and
nodes that have answered it send the same answer again.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .....disk import alone, private_folder, read_object, read_small, replaced
from .....errors import EdgetuneError, UsageError
from .....formats.bundle import Bundle
from ...pauses import wait
from ...rounds.places import newest
from ...rounds.task import RoundRecord, open_task, records_of
from .app.settings import ENDED, PROCESS, SERVER, ServerSettings, write_settings
from .environment import Flower, command, last_line, running

START_SECONDS = 120.0  # for SuperLink, and for the server app
PAUSE = 5.0  # before SuperLink or a run begins again
CONNECTION = "edgetune"
LOG = "superlink.log"
LOOPBACK = "127.0.0.1"
_KEY = re.compile(r"ecdsa-sha2-nistp384 [A-Za-z0-9+/=]{100,200}")
Say = Callable[[str], object]


@dataclass(frozen=True)
class Tls:
    """PEM files: of the authority that nodes trust, of the server's certificate, of its private key."""

    authority: Path
    certificate: Path
    key: Path


@dataclass(frozen=True)
class FlowerServer:
    """folder: of the rounds. nodes: public keys of those that may take part. host, port: where SuperLink listens.
    names: under which nodes reach it, more than the host's. devices, wait: as of RoundLead. rounds: the last one to
    end. every: seconds between two looks. key: signs the tasks.
    """

    folder: Path
    bundle: Bundle
    flower: Flower
    nodes: tuple[str, ...]
    host: str
    port: int
    names: tuple[str, ...]
    tls: Tls | None
    devices: int
    wait: float
    rounds: int
    every: float
    key: Path | None

    @property
    def _here(self) -> str:
        """Returns the address at which this machine reaches it."""
        return LOOPBACK if self.host in ("0.0.0.0", "") else self.host

    def serve(self, should_stop: Callable[[], bool], on_round: Callable[[RoundRecord], object], say: Say) -> None:
        """Ends rounds until the last. on_round: what became of each. Raises Interrupted if should_stop returns True,
        and the errors of open_task, of Flower's programs and of the server app.
        """
        ended = newest(self.folder).number
        open_task(newest(self.folder).task, self.bundle)  # what is wrong is said at once
        state = self.flower.state
        private_folder(state)
        with alone(state):
            tls = self.tls or self._own_tls(say)
            self._prepare(tls)
            while newest(self.folder).number <= self.rounds:
                with running(self._superlink(tls), self._variables(), state / LOG) as link:
                    self._wait_for(self._is_open, link.poll, should_stop)
                    self._register()
                    say(f"listening at {self.host}:{self.port}; the log is {state / LOG}")
                    ended = self._runs(ended, link.poll, should_stop, on_round)
                if newest(self.folder).number <= self.rounds:
                    say(f"SuperLink ended ({last_line(state / LOG)}); it begins again, in the same round")
                    wait(PAUSE, should_stop)

    def _runs(self, ended: int, link_ended: Callable[[], int | None], should_stop: Callable[[], bool],
              on_round: Callable[[RoundRecord], object]) -> int:
        """Submits the server app, and again if it is killed, until the last round has ended or SuperLink has."""
        state = self.flower.state
        while link_ended() is None:
            for name in (PROCESS, ENDED):
                (state / name).unlink(missing_ok=True)
            self.flower.run(self.flower.program("flwr"), "run", str(self.flower.app_folder()), CONNECTION)
            self._wait_for(lambda: (state / PROCESS).exists() or (state / ENDED).exists(), link_ended, should_stop)
            while link_ended() is None:
                ended = self._told(ended, on_round)
                if (found := read_object(state / ENDED, "remove it")) is not None:
                    if found.get("error"):
                        raise EdgetuneError(f"the server app ended: {found['error']}", f"its log is {state / LOG}")
                    return self._told(ended, on_round)
                if not _is_alive(state / PROCESS):
                    break
                wait(self.every, should_stop)
            wait(PAUSE, should_stop)
        return ended

    def _told(self, ended: int, on_round: Callable[[RoundRecord], object]) -> int:
        """Tells of the rounds that ended since; returns the number of the newest."""
        number = newest(self.folder).number
        if number > ended:
            task = open_task(newest(self.folder).task, self.bundle)
            for record in records_of(task.facts.history, str(task.folder)):
                if ended <= record.round < number:
                    on_round(record)
        return number

    def _superlink(self, tls: Tls) -> list[str]:
        return [*self.flower.module("superlink"), "--host", self.host, "--port", str(self.port),
                "--ssl-ca-certfile", str(tls.authority), "--ssl-certfile", str(tls.certificate),
                "--ssl-keyfile", str(tls.key), "--database", str(self.flower.state / "superlink.db"),
                "--enable-supernode-auth", "--disable-runtime-dependency-installation"]

    def _variables(self) -> dict[str, str]:
        return self.flower.variables(**{SERVER: str(self.flower.state / "server.json")})

    def _prepare(self, tls: Tls) -> None:
        """Writes what SuperLink, the server app and Flower's command line read."""
        state = self.flower.state
        self.flower.app_folder()
        self.flower.replace_programs({})
        words, variables = command("fleet", "aggregate", "--model", str(self.bundle.path.absolute()),
                                   *(["--sign", str(self.key.absolute())] if self.key else []))
        write_settings(state / "server.json", ServerSettings(
            str(self.folder.absolute()), words, variables, self.devices, self.wait, self.rounds, self.every,
            str(state)))
        home = state / "home"
        home.mkdir(exist_ok=True)
        (home / "config.toml").write_text(
            f"[superlink]\ndefault = {json.dumps(CONNECTION)}\n\n[superlink.{CONNECTION}]\n"
            f"address = {json.dumps(f'{self._here}:{self.port}')}\nroot-certificates = "
            f"{json.dumps(str(tls.authority.absolute()))}\n", encoding="utf-8")

    def _own_tls(self, say: Say) -> Tls:
        """Returns an authority and a certificate, made once."""
        folder = self.flower.state / "tls"
        tls = Tls(folder / "ca.crt", folder / "server.crt", folder / "server.key")
        if not tls.authority.exists():
            folder.mkdir(exist_ok=True)
            tls.key.unlink(missing_ok=True)
            names = dict.fromkeys(["localhost", LOOPBACK, socket.gethostname(), *self.names, self._here])
            self.flower.run(str(self.flower.python), str(self.flower.app_folder() / "edgetune_flower" / "keys.py"),
                            "server", str(folder), *names)
        say(f"nodes trust {tls.authority}: copy it to each, for --authority")
        return tls

    def _register(self) -> None:
        """Lets SuperLink know the nodes' keys, and no others: one that is no longer listed is let in no more."""
        path = self.flower.state / "nodes.json"
        known = read_object(path, "remove it with superlink.db next to it") or {}
        flwr = self.flower.program("flwr")
        for key in [key for key in known if key not in self.nodes]:
            self.flower.run(flwr, "supernode", "unregister", str(known[key]), CONNECTION)
            known.pop(key)
            _write(path, known)
        for key in [key for key in self.nodes if key not in known]:
            file = self.flower.state / "node.pub"
            file.write_text(key + "\n")
            said = self.flower.run(flwr, "supernode", "register", str(file), CONNECTION, "--format", "json")
            found = re.search(r'"node-id"\s*:\s*"?(\d+)', said)
            if found is None:
                raise EdgetuneError(f"Flower did not register a node: {' '.join(said.split())[:200]}",
                                    "see that the key is one of edgetune fleet node")
            known[key] = found[1]
            _write(path, known)

    def _is_open(self) -> bool:
        with suppress(OSError), socket.create_connection((self._here, self.port), 1.0):
            return True
        return False

    def _wait_for(self, is_there: Callable[[], bool], link_ended: Callable[[], int | None],
                  should_stop: Callable[[], bool]) -> None:
        """Waits for a program to say that it runs. Raises EdgetuneError if SuperLink ends, or it takes long."""
        log = self.flower.state / LOG
        until = time.monotonic() + START_SECONDS
        while not is_there():
            if link_ended() is not None or time.monotonic() > until:
                raise EdgetuneError(f"Flower did not start: {last_line(log)}", f"its log is {log}")
            wait(0.3, should_stop)


def node_keys(path: Path) -> tuple[str, ...]:
    """Returns the public keys in a file, one a line as edgetune fleet node prints it; what follows # is for people.

    Raises UsageError for another line, or none.
    """
    try:
        lines = read_small(path).decode("utf-8", "replace").splitlines()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", "write a file with a public key a line") from None
    found = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        key = " ".join(words[:2])
        if not _KEY.fullmatch(key):
            raise UsageError(f"line {number} of {path} is no public key of a node",
                             "write what edgetune fleet node printed: ecdsa-sha2-nistp384 ...")
        found.append(key)
    if not found:
        raise UsageError(f"{path} has no public key of a node", "start the nodes once: each prints its key")
    return tuple(dict.fromkeys(found))


def _write(path: Path, known: dict[str, object]) -> None:
    with replaced(path) as beside:
        beside.write_text(json.dumps(known, indent=1) + "\n")


def _is_alive(file: Path) -> bool:
    """Returns whether the process that a file names runs, and is no zombie."""
    try:
        status = Path(f"/proc/{int(file.read_text())}/stat").read_text()
    except (OSError, ValueError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
