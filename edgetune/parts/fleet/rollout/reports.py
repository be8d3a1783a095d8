"""The file in which a device says what it last did, and what of it counts.

In a fleet that devices join, only what a device signed counts. Its signature is over all other fields: so over the name
of the device, the roll-out, and `number`, which rises from one report to the next. Fields that are empty or 0 are left
out of what is signed, so that an edgetune that has more of them checks it, too.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....disk import Record, exclusive, json_text, replaced
from ....errors import DiskError, EdgetuneError, FormatError, UsageError
from ....formats.signature import verifies
from ....persisted import from_json
from ....version import __version__
from ..membership.members import REPORTS, approved, is_joined, reason_against
from . import rings
from .artifact import RolloutArtifact
from .rings import NAME, RingReport

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

VERSION = 1
DEVICES = "devices"
MOST = 64 * 1024  # bytes of a device's file
MOST_DIGESTS = 100
NUMBERS = ("passed", "wins", "losses", "p", "alpha")  # of a verdict, in a device's file
_HEAD = "edgetune fleet report"  # so that nothing else that the key signs is a report


@dataclass(frozen=True)
class DeviceFile:
    """What a device last did. rollout: the roll-out that the report is about. adapter: the daemon's id of it. at: when.
    installed, superseded: digests of what roll-outs brought, and of what those replaced. kept: ids of those that
    the daemon has. model: a fingerprint. verdict: numbers of its gate. kind: of the device, as machine.device has it;
    base: the model's name; active: the id of the adapter that answers, "": none. number: rises with each report;
    signature: of all other fields, "": none.
    """

    device: str
    at: int = 0
    model: str = ""
    rollout: str = ""
    execution: str = rings.NOTHING
    finished: str = rings.NOTHING
    reason: str = ""
    adapter: str = ""
    verdict: dict[str, Any] = field(default_factory=dict)
    installed: list[str] = field(default_factory=list)
    superseded: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    version: int = VERSION
    edgetune: str = __version__
    kind: str = ""
    base: str = ""
    active: str = ""
    number: int = 0
    signature: str = ""

    @property
    def report(self) -> RingReport:
        return RingReport(self.execution, self.finished, self.reason)


def sign(found: DeviceFile, key: Ed25519PrivateKey) -> DeviceFile:
    """Returns the same report, signed."""
    return replace(found, signature=key.sign(_message(found)).hex())


def unsigned(found: DeviceFile, key: str) -> str:
    """Returns why a report is not signed by a public key, in a sentence; "": it is. Raises UnsupportedError."""
    if found.signature and verifies(key, found.signature, _message(found)):
        return ""
    return f"the report of {found.device} is not signed by its key, which begins with {key:.16}"


def _message(found: DeviceFile) -> bytes:
    said = {name: value for name, value in asdict(found).items() if value and name != "signature"}
    return f"{_HEAD}\n{json.dumps(said, sort_keys=True)}\n".encode()


def read_device(folder: Path, device: str) -> DeviceFile:
    """Returns what a device wrote; one that has done nothing if there is no file. Raises FormatError and UsageError."""
    if not NAME.fullmatch(device):
        raise UsageError(f"the device is called {device!r:.70}", "take up to 64 letters, digits, dots, dashes and "
                         "underscores, a letter or digit first")
    return _record(folder / DEVICES, device).read() or DeviceFile(device)


def _record(place: Path, device: str) -> Record[DeviceFile]:
    def parse(written: Any, source: str) -> DeviceFile:
        found = from_json(DeviceFile, written, source)
        if found.version != VERSION or found.device != device:
            raise FormatError(f"{source} is of the device {found.device!r:.70}, version {found.version}", "remove it")
        found.report.check(source)
        return found

    return Record(place / f"{device}.json", parse, "remove it, and run edgetune fleet apply", MOST)


def write_device(folder: Path, found: DeviceFile) -> None:
    """Replaces a device's file, whatever it has: others may have written it. Raises DiskError."""
    place = folder / DEVICES
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"cannot write to {folder}: {error.strerror}", "mount it, or name another") from None
    with exclusive(place), replaced(place / f"{found.device}.json") as beside:
        beside.write_text(json_text(asdict(found), indent=1) + "\n", encoding="utf-8")


def read_devices(folder: Path) -> tuple[dict[str, DeviceFile], list[str]]:
    """Returns (the devices by name, why others could not be read or do not count)"""
    found, excluded, wrong = read_reports(folder)
    return found, [*wrong, *(why for _, why in excluded)]


def read_reports(folder: Path) -> tuple[dict[str, DeviceFile], list[tuple[DeviceFile, str]], list[str]]:
    """Returns (the devices that count, by name; those that have not joined, were revoked or did not sign, and why; why
    reports of others could not be read, or an earlier one of the device counts)
    """
    found: dict[str, DeviceFile] = {}
    excluded: list[tuple[DeviceFile, str]] = []
    wrong: list[str] = []
    places = (folder / DEVICES, folder / REPORTS)
    for name in sorted({path.stem for place in places for path in place.glob("*.json")}):
        sent = None
        try:
            sent = read_device(folder, name) if (places[0] / f"{name}.json").exists() else None
        except EdgetuneError as error:
            wrong.append(error.what)
        counts, why = _counting(folder, name, sent)
        if counts:
            found[name] = counts
            wrong += [why] if why else []
        elif sent:
            excluded.append((sent, why))
        elif why:  # the one that counted before is damaged
            wrong.append(why)
    return found, excluded, wrong


def _counting(folder: Path, name: str, sent: DeviceFile | None) -> tuple[DeviceFile | None, str]:
    """Returns (the report of a device that counts; why the one that was sent does not, "" if it does or there is none)
    """
    if (why := reason_against(folder, name)) or not is_joined(folder):
        return None if why else sent, why if sent else ""
    try:
        before = _record(folder / REPORTS, name).read()
    except FormatError as error:
        return None, error.what
    why = unsigned(sent, approved(folder, name).key) if sent else ""
    if sent and before and not why and sent.number < before.number:
        why = f"the report of {name} is older than one that counted"
    return before if why else sent or before, why


def keep(folder: Path, devices: dict[str, DeviceFile]) -> None:
    """Keeps the reports that count, if they are signed."""
    if not is_joined(folder):
        return
    (folder / REPORTS).mkdir(exist_ok=True)
    for name, found in devices.items():
        _record(folder / REPORTS, name).change(partial(_newer, found))


def _newer(found: DeviceFile, before: DeviceFile | None) -> DeviceFile:
    """Returns the newer of two reports of a device: another may have kept one meanwhile."""
    return before if before and before.number > found.number else found


def reports_of(devices: dict[str, DeviceFile], rollout: str) -> dict[str, RingReport]:
    """Returns the reports about one roll-out."""
    return {name: device.report for name, device in devices.items() if device.rollout == rollout}


class Look:
    """folder: where the device's file is; own: it, as it was written last. now: seconds."""

    def __init__(self, folder: Path, own: DeviceFile, now: int) -> None:
        self.folder = folder
        self.own = own
        self.now = now

    def say(self, execution: str = "", finished: str = rings.NOTHING, reason: str = "", **facts: Any) -> None:
        """Writes the file of the device, with another report if an execution is given."""
        if execution:
            facts |= {"execution": execution, "finished": finished, "reason": reason}
        number = max(self.own.number + 1, self.now)  # rises also if the file was lost
        self.own = replace(self.own, at=self.now, number=number, **facts)
        write_device(self.folder, self.own)


def superseded_by(own: DeviceFile, artifact: RolloutArtifact) -> dict[str, list[str]]:
    """Returns the digests of a device's file once it has this artifact."""
    replaced = dict.fromkeys([*own.superseded, *artifact.facts.supersedes])
    replaced.pop(artifact.digest, None)
    return {"superseded": [*replaced][-MOST_DIGESTS:],
            "installed": [*own.installed, artifact.digest][-MOST_DIGESTS:]}
