"""A device's part of a round that is summed in secret, besides its answer: whom it meets, and what it reveals.

What a lead or a daemon gets wrong stops no device: it says so, and waits for the next round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import FormatError, MismatchError, UsageError
from ..joining.members import shown_key
from ..rounds.task import Task
from ..secret import aside
from .places import Place

WAIT = "wait for the next round"


@dataclass
class SecretPart:
    """key: the file of the device's X25519 key. is_required: it answers no round that is not summed in secret. peers: a
    file with the keys of devices that its owner knows. sign: the key that signs its folders. say: tells its owner.
    """

    key: Path
    is_required: bool
    peers: Path | None
    sign: Path | None
    say: Callable[[str], object]
    _done: set[str] = field(default_factory=set)  # steps that are not tried again: each would start a process

    def publish(self, folder: Path, device: str) -> None:
        """Puts the device's card into a folder that all see, once. Raises the errors of aside.publish."""
        if "publish" in self._done:
            return
        signer = aside.publish(folder, device, self.key, self.sign)
        self._done.add("publish")
        self.say(f"{folder} has the key of {device}, {_signed(signer)}")

    def may_answer(self, task: Task) -> bool:
        """Whether the device answers a task; says whom it meets there. Raises FormatError, once, where it does not."""
        step = f"answer {task.name}"
        if step in self._done:
            return False
        if not task.secret:
            if self.is_required:
                self._done.add(step)
                raise FormatError(f"the task of round {task.number} is not summed in secret, and --secret is given",
                                  WAIT)
            return True
        try:
            new = aside.check(task.folder, self.key, self.peers)
        except (UsageError, MismatchError) as error:
            self._done.add(step)
            raise FormatError(error.what, WAIT) from None
        for name, signer in new:
            self.say(f"round {task.number} is summed with {name}, which is new to this device, {_signed(signer)}")
        return True

    def reveal(self, place: Place, device: str) -> bool:
        """Reveals what the lead's request asks for; False: it does not name the device, or was answered before. Raises
        FormatError for a request that is wrong or not copied whole.
        """
        out = place.revealed / device
        step = f"reveal {place.number}"
        if not place.is_requested or step in self._done or out.exists():
            return False
        try:
            found = aside.reveal(place.task, place.request, self.key, out, self.sign)
        except (UsageError, MismatchError) as error:
            self._done.add(step)
            raise FormatError(error.what, WAIT) from None
        self._done.add(step)
        return found


def _signed(signer: str) -> str:
    return f"signed by a key that begins with {shown_key(signer)}" if signer else "not signed"
