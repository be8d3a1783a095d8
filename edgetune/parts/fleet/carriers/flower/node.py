"""`edgetune fleet node`: a SuperNode with its own key, whose client app answers by `edgetune fleet train-round`."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .....disk import alone, private_folder, read_small
from .....errors import UsageError
from ...pauses import stopped
from .app.settings import NODE, NodeSettings, write_settings
from .environment import Flower, command, last_line, running

LOG = "supernode.log"
PAUSE = 15.0  # before SuperNode begins again
LONGEST_PAUSE = 120.0
TOLD_SECONDS = 60.0  # without an answer, after which the node says so
_IN = b"SuperNode ID"  # of its log, once the server knows it
_ADDRESS = re.compile(r"[^\s/]+:\d{1,5}")
_OTHERS = ("flwr-agentapp", "flwr-connector", "flwr-model", "flwr-serverapp", "flwr-simulation")
Say = Callable[[str], object]


@dataclass(frozen=True)
class Node:
    """address: of SuperLink, HOST:PORT. key: the private key, made if it is not there. authority: the certificate
    that the server's must come from; None: those of the system. more: words of `edgetune fleet train-round` after the
    task: the rows and options.
    """

    address: str
    flower: Flower
    key: Path
    authority: Path | None
    more: list[str]

    def follow(self, should_stop: Callable[[], bool], say: Say) -> None:
        """Answers rounds until should_stop returns True. A SuperNode that ends begins again."""
        if not _ADDRESS.fullmatch(self.address):
            raise UsageError(f"the server is {self.address!r:.80}", "write HOST:PORT, such as 192.168.1.5:8000")
        if self.authority and not self.authority.is_file():
            raise UsageError(f"there is no file {self.authority}", "copy ca.crt from the server, which names its place")
        state = self.flower.state
        private_folder(state)
        with alone(state):
            self._prepare()
            say(f"the server needs this line in its --nodes: {self.public_key()}")
            say(f"the log is {state / LOG}")
            pause = PAUSE
            said = ""
            while True:
                begun = (state / LOG).stat().st_size if (state / LOG).exists() else 0
                with running(self._supernode(), self._variables(), state / LOG) as process:
                    if self._watch(process, begun, should_stop, say):
                        return
                pause = PAUSE if _says(state / LOG, begun, _IN) else min(2.0 * pause, LONGEST_PAUSE)
                why = self._why(begun)
                if why != said:
                    said = why
                    say(why)
                if stopped(pause, should_stop):
                    return

    def public_key(self) -> str:
        """Its line. Raises UsageError if KEY.pub is missing."""
        public = self.key.with_name(f"{self.key.name}.pub")
        try:
            return " ".join(read_small(public).decode("utf-8", "replace").split()[:2])
        except OSError as error:
            raise UsageError(f"cannot read {public}: {error.strerror}",
                             f"ssh-keygen -y -f {self.key} > {public}") from None

    def _why(self, begun: int) -> str:
        """Returns what a person is told of a SuperNode that ended. begun: where its part of the log begins."""
        log = self.flower.state / LOG
        if _says(log, begun, b"Failed to activate"):
            return (f"{self.address} does not let this node in: its key is not among the server's --nodes, or was in "
                    "use a minute ago; this node tries again")
        return f"SuperNode ended ({last_line(log)}); it begins again"

    def _watch(self, process: subprocess.Popen[bytes], begun: int, should_stop: Callable[[], bool], say: Say) -> bool:
        """Waits for its end. Returns True if this process shall end. It says once whether a server let it in."""
        log = self.flower.state / LOG
        late = time.monotonic() + TOLD_SECONDS
        told = False
        while process.poll() is None:
            if stopped(1.0, should_stop):
                return True
            if not told and _says(log, begun, _IN):
                told = True
                say(f"{self.address} has let this node in")
            elif not told and time.monotonic() > late:
                told = True
                say(f"{self.address} has not answered: nothing is there, or its certificate is of another authority")
        return False

    def _supernode(self) -> list[str]:
        trust = ["--root-certificates", str(self.authority.absolute())] if self.authority else []
        return [self.flower.program("flower-supernode"), "--superlink", self.address, *trust,
                "--auth-supernode-private-key", str(self.key.absolute()), "--port", str(_free_port())]

    def _variables(self) -> dict[str, str]:
        return self.flower.variables(**{NODE: str(self.flower.state / "node.json")})

    def _prepare(self) -> None:
        app = self.flower.app_folder()
        self.flower.replace_programs({"flwr-clientapp": "client_process", **dict.fromkeys(_OTHERS, "")})
        if not self.key.exists():
            self.key.absolute().parent.mkdir(parents=True, exist_ok=True)
            self.flower.run(str(self.flower.python), str(app / "edgetune_flower" / "keys.py"), "node", str(self.key))
        words, variables = command("fleet", "train-round")
        write_settings(self.flower.state / "node.json",
                       NodeSettings(words, self.more, variables, str(self.flower.state / "work")))


def _free_port() -> int:
    """Returns a port of this machine, at which SuperNode talks with its own processes."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _says(log: Path, begin: int, what: bytes) -> bool:
    with log.open("rb") as file:
        file.seek(begin)
        return what in file.read(1 << 16)
