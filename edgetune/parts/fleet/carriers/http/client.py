"""The daemon that serves the rounds of a fleet, as a device asks it: by a client, and in the process of `carrying`.

That process reads a line of JSON with a call from stdin, and writes one with what it found to stdout.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

from .....daemon.client import Client
from .....errors import told
from .....formats import signature
from .....python_child import begin_replies, reply
from ...membership.lead import Signing, open_lead
from ...rounds import answer as answers

FACTS = "answer"
SIGNED = "signed"
PARTS = {FACTS: answers.FACTS, "update": answers.UPDATE, SIGNED: signature.FILE}


class RoundsByHttp:
    """That daemon, by its client. As RoundServer, whose errors it raises. A device that joined signs
    what it sends by the key that signs its requests.
    """

    def __init__(self, client: Client) -> None:
        self.client = client

    def round(self, device: str, known: str) -> tuple[Mapping[str, Any], str] | None:
        return self.client.get_changed(f"/v1/fleet/round/{quote(device)}", known)

    def load(self, number: int, file: str, target: Path, most: int) -> None:
        self.client.download(f"/v1/fleet/rounds/{number}/task/{quote(file)}", target, most)

    def send(self, number: int, device: str, folder: Path) -> None:
        files = {part: folder / name for part, name in PARTS.items() if (folder / name).exists()}
        with TemporaryDirectory(prefix="edgetune-") as place:
            if isinstance(self.client.sign, Signing) and FACTS in files:  # takes memory: not where it trains
                copy = shutil.copyfile(files[FACTS], Path(place) / files[FACTS].name)
                signature.sign(copy, self.client.sign.key())
                files[SIGNED] = copy.with_name(signature.FILE)
            self.client.put_files(f"/v1/fleet/rounds/{number}/answers/{quote(device)}", files)

    def rest(self) -> None:
        """A client that waits takes nothing that could be given back."""


def main() -> None:
    asked, out = begin_replies()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it

    @cache
    def opened() -> RoundsByHttp:
        key_file = Path(asked["key_file"]) if asked["key_file"] else None
        return RoundsByHttp(open_lead(asked["url"], key_file, asked["device"])[0])

    for line in sys.stdin:
        reply(out, told(partial(_called, opened, **json.loads(line))))


def _called(opened: Callable[[], RoundsByHttp], call: str, **given: Any) -> Any:
    there = opened()
    if call == "round":
        return there.round(**given)
    if call == "load":
        return there.load(**{**given, "target": Path(given["target"])})
    return there.send(**{**given, "folder": Path(given["folder"])})
