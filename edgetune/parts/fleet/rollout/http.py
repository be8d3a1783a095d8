"""A roll-out carried by HTTP: a daemon serves the folder, and devices keep a copy of the part that concerns them.

A device asks for the order, and loads files only if it has not this one yet. It checks them as if a sync had brought
them, so the daemon that serves them is believed no more than a folder. Then it sends its own file. It needs no open
port.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ....disk import json_text, new_folder, read_small, require_room, state_folder, sync
from ....errors import FormatError, MismatchError, NotFoundError, UsageError
from ....formats import signature
from ....persisted import from_json
from ..membership.members import approved, is_joined
from ..signed_folder import MAX_FACTS
from . import artifact
from .folder import ARTIFACT, FACTS, ORDERS, ROLLOUTS, newest_order
from .reports import MOST, DeviceFile, read_device, sign, unsigned, write_device
from .rings import DEPLOY, NAME, NOTHING

if TYPE_CHECKING:
    from ....daemon.client import Client

FILES = (artifact.FACTS, signature.FILE, *artifact.FILES)
WRONG = "update edgetune on both sides"


# ---- the daemon that serves ------------------------------------------------------------------------------------------


def served_order(folder: Path) -> dict[str, Any]:
    """rollout, number; order, signature: the texts of its files, "": none; files: of its artifact, by their names.

    rollout is "" if nothing was rolled out. Raises errors of newest_order.
    """
    order = newest_order(folder)
    if order is None:
        return {"rollout": "", "number": 0, "order": "", "signature": "", "files": []}
    place = order.folder / ORDERS / f"{order.facts.number:06d}"
    texts = [read_small(place / name, MAX_FACTS).decode() if (place / name).is_file() else ""
             for name in (FACTS, signature.FILE)]
    files = [name for name in _names(order.folder / ARTIFACT) if (order.folder / ARTIFACT / name).is_file()]
    return {"rollout": order.facts.rollout, "number": order.facts.number, "order": texts[0], "signature": texts[1],
            "files": files}


def served_file(folder: Path, rollout: str, file: str) -> Path:
    """Returns the path of a file of an artifact. Raises NotFoundError for any other name."""
    place = folder / ROLLOUTS / rollout / ARTIFACT
    path = place / file
    if not NAME.fullmatch(rollout) or not place.is_dir() or file not in _names(place) or not path.is_file():
        raise NotFoundError(f"there is no file {file!r:.80} of the roll-out {rollout!r:.80}", "ask for the order again")
    return path


def _names(place: Path) -> list[str]:
    """Returns the files that an artifact may have: of a base those that it lists."""
    return [*FILES, *(file for file in artifact.listed(place) if artifact.is_of_base(file))]


def take_report(folder: Path, device: str, content: Mapping[str, Any]) -> DeviceFile:
    """Writes a device's file, which a request brought. Raises UsageError, FormatError and DiskError, and MismatchError
    if it is not signed by a device that joined.
    """
    read_device(folder, device)  # raises for a name that is none
    found = from_json(DeviceFile, dict(content), "the report")
    if found.device != device:
        raise UsageError(f"the report is of {found.device!r:.70}, sent as {device}", "send it under its own name")
    if len(json_text(asdict(found))) > MOST // 2:
        raise UsageError(f"the report has more than {MOST // 2} bytes", WRONG)
    found.report.check("the report")
    if is_joined(folder) and (why := unsigned(found, approved(folder, device).key)):
        raise MismatchError(why, "update edgetune on the device")
    write_device(folder, found)
    return found


# ---- a device --------------------------------------------------------------------------------------------------------


def copy_of(url: str, device: str) -> Path:
    """Returns the folder in which a device keeps its copy of what a daemon serves."""
    name = hashlib.sha256(f"{url} {device}".encode()).hexdigest()[:16]
    return state_folder() / "fleet" / name


class LeadByHttp:
    """The daemon that serves a folder, by its client. All methods raise EdgetuneError if it does not answer."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def order(self) -> Mapping[str, Any]:
        """Returns the order that counts, as `served_order` returns it."""
        return self.client.get("/v1/fleet/order")

    def load(self, rollout: str, file: str, target: Path) -> None:
        """Writes a file of an artifact into a new one."""
        self.client.download(f"/v1/fleet/rollouts/{quote(rollout)}/{quote(file)}", target)

    def load_rest(self, rollout: str, file: str, target: Path, size: int) -> None:
        """Writes a file of this number of bytes, or what one that was broken off lacks of it."""
        self.client.download_rest(f"/v1/fleet/rollouts/{quote(rollout)}/{quote(file)}", target, size)

    def report(self, found: DeviceFile) -> None:
        """Sends a device's file, signed by the key that signs the client's requests if the device has joined."""
        from ..membership.lead import Signing
        if isinstance(self.client.sign, Signing):
            found = sign(found, self.client.sign.key())
        self.client.put(f"/v1/fleet/devices/{quote(found.device)}", json.loads(json_text(asdict(found))))


def fetch(lead: LeadByHttp, folder: Path) -> None:
    """Brings the device's copy of the folder up to date, without a base. Raises FormatError for an answer that is none,
    and errors of the artifact; what is not whole or not signed leaves nothing.
    """
    found = lead.order()
    rollout, number = found.get("rollout"), found.get("number")
    if rollout == "":
        return
    texts = {FACTS: found.get("order"), signature.FILE: found.get("signature")}
    files = found.get("files")
    if not (isinstance(rollout, str) and NAME.fullmatch(rollout) and type(number) is int and 0 < number < 10**6
            and all(isinstance(text, str) for text in texts.values()) and isinstance(files, list)
            and all(isinstance(file, str) and (file in FILES or artifact.is_of_base(file)) for file in files)):
        raise FormatError("the order that was sent is none", WRONG)
    place = folder / ROLLOUTS / rollout
    if not (place / ARTIFACT).is_dir():
        with new_folder(place / ARTIFACT) as beside:
            _load_small(lead, rollout, files, beside)
    order = place / ORDERS / f"{number:06d}"
    if not order.is_dir():
        with new_folder(order) as beside:
            for name, text in texts.items():
                if text:
                    (beside / name).write_text(text, encoding="utf-8")
    for other in (folder / ROLLOUTS).iterdir():
        if other.name < rollout:
            shutil.rmtree(other, ignore_errors=True)


def _load_small(lead: LeadByHttp, rollout: str, files: Sequence[str], beside: Path) -> None:
    """Loads all of an artifact but a base, which is large and may never be needed here."""
    (beside / artifact.ADAPTER).mkdir()
    for file in files:
        if file in FILES:
            lead.load(rollout, file, beside / file)
    try:
        found = artifact.read_artifact(beside)
    except UsageError:  # this edgetune cannot use it, which apply reports
        return
    for file in found.facts.files:
        if file in FILES:
            found.check_file(file, beside / file)


def fetch_base(lead: LeadByHttp, folder: Path, device: str) -> None:
    """Loads the files of a base that the device is to install, or continues where that was broken off. Removes those of
    one that it has installed or refused. Raises UnansweredError, DiskError, and FormatError for a damaged file.
    """
    order = newest_order(folder)
    if order is None or order.kind != artifact.BASE:
        return
    found = order.stated
    own = read_device(folder, device)
    if own.rollout == order.facts.rollout and own.execution != NOTHING:
        shutil.rmtree(found.base, ignore_errors=True)
        return
    if order.state.action(device) != DEPLOY:
        return
    missing = {file: found.facts.sizes[file] for file in found.facts.files
               if file not in FILES and not (found.folder / file).exists()}
    require_room(folder, sum(missing.values()))
    for file, size in missing.items():
        target = found.folder / file
        part = target.with_name(f"{target.name}.part")
        target.parent.mkdir(exist_ok=True)
        lead.load_rest(order.facts.rollout, file, part, size)
        try:
            found.check_file(file, part)
        except FormatError:
            part.unlink()  # to continue it would not mend it
            raise
        sync(part)
        part.rename(target)
