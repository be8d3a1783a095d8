"""Steps of a device in a secret round, each in a separate process, which ends after it.

Keys, masks and shares take some 20 MiB of a process, which a small board needs for the training. What they do is in
called.py.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from ...errors import UnansweredError, found_in
from ...python_child import child, how_it_ended

MODULE = f"{__package__}.called"  # by its name: it loads what this process shall not


def publish(folder: Path, device: str, key: Path, sign: Path | None) -> str:
    """Puts the card of a device into a folder that all see; returns the public key that signed it, "" for none.

    key: the file of its X25519 key. Raises the errors of joining.cards.publish and load_key.
    """
    return str(_call(call="publish", folder=folder, device=device, key=key, sign=sign))


def check(task: Path, key: Path, peers: Path | None = None) -> list[tuple[str, str]]:
    """(name, public key that signed its card, "" for none) of each device of the round that this one meets for the
    first time. peers: a file with the keys of devices that its owner knows.

    Raises UsageError or MismatchError where this device cannot answer the task, or should not.
    """
    return [(name, signer) for name, signer in _call(call="check", task=task, key=key, peers=peers)]


def mask(task: Path, update: Path, tokens: int, key: Path, out: Path, sign: Path | None) -> None:
    """Writes the masked answer. update: the file of its arrays; others as of round.mask, whose errors it raises."""
    _call(call="mask", task=task, update=update, tokens=tokens, key=key, out=out, sign=sign)


def reveal(task: Path, request: Path, key: Path, out: Path, sign: Path | None) -> bool:
    """Writes what the device reveals for a request, as round.reveal does; False: the request does not name it."""
    return bool(_call(call="reveal", task=task, request=request, key=key, out=out, sign=sign))


def _call(**given: Any) -> Any:
    """What a call found. Raises its error, and UnansweredError where its process was killed."""
    return found_in(_by_process({name: str(value) if isinstance(value, Path) else value
                                 for name, value in given.items()}))


def _by_process(said: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(**child(MODULE), input=json.dumps({**said, "parent": os.getpid()}), text=True,
                          stdout=subprocess.PIPE, check=False)
    if not done.stdout:
        raise UnansweredError(f"the process of a secret round has ended: {how_it_ended(done.returncode)}",
                              "try again")
    found: dict[str, Any] = json.loads(done.stdout)
    return found
