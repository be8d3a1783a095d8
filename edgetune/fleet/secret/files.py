"""The folders of a round that is summed in secret. N devices are in it, M of them answered.

    masked.json, masked.safetensors        of a device: words [V + 1] under masks, sealed [N, bytes], digests
    request.json, request.safetensors      of the aggregator: who answered; sealed [M, N, bytes]
    revealed.json, revealed.safetensors    of a device: own [M, 32], shared [M, N - M, 32], opened [M] of 0 or 1
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...disk import MIB, new_folder, read_small, sha256
from ...errors import FormatError, MismatchError
from ...formats import signature
from ...formats.signature import Check
from ..rounds.task import Task
from ..signed_folder import AGAIN, check_file, read_facts, write_facts
from .masks import DIGEST, KEY, Circle, Masked, Revealed

VERSION = 1
MASKED, REQUEST, REVEALED = ("masked.json", "request.json", "revealed.json")
ARRAYS = {name: f"{Path(name).stem}.safetensors" for name in (MASKED, REQUEST, REVEALED)}
TAG = 16  # bytes that seal shares, besides them
Arrays = Mapping[str, NDArray[Any]]
Reason = Callable[[int, str], str]
"""From a device's number and the key that signed its folder, why that does not count; "": it does."""
Sender = Callable[[str], tuple[Check, Reason]]
"""From the name of a device's folder, the check of its signature, and what else may be against it; raises EdgetuneError
where nothing of that device counts.
"""


def anybody(_folder: str) -> tuple[Check, Reason]:
    """Takes the folders of all devices."""
    return signature.check, lambda _number, _signer: ""


@dataclass(frozen=True)
class MaskedFacts:
    """task, base: as of AnswerFacts. number: of the device among the keys of the task. file: SHA-256."""

    version: int
    task: str
    base: str
    number: int
    file: str
    edgetune: str = ""


@dataclass(frozen=True)
class RequestFacts:
    """answered: the numbers of the devices whose vectors are summed, ascending."""

    version: int
    task: str
    answered: list[int]
    file: str


@dataclass(frozen=True)
class RevealedFacts:
    """request: the SHA-256 of request.json. number: of the device."""

    version: int
    task: str
    request: str
    number: int
    file: str


@dataclass(frozen=True, eq=False)
class Request:
    """An opened request. name: the SHA-256 of request.json; sealed: uint8 [M, N, bytes]."""

    name: str
    answered: list[int]
    sealed: NDArray[np.uint8] = field(repr=False)


def write_masked(folder: Path, facts: MaskedFacts, masked: Masked, key: Path | None) -> None:
    sealed = np.stack([np.frombuffer(one, np.uint8) for one in masked.sealed])
    _write(folder, "masked", facts, {"words": masked.words, "sealed": sealed, "digests": masked.digests}, key)


def open_masked(folder: Path, task: Task, circle: Circle, sender: Sender = anybody) -> tuple[MaskedFacts, Masked, int]:
    """What a device sent, and its bytes. sender: says whether it is of that device. Raises FormatError or MismatchError
    for what cannot count, and errors of `sender`.
    """
    check, reason = sender(folder.name)
    facts, _, signer = read_facts(folder, MASKED, MaskedFacts, VERSION, check)
    _check(facts, folder, task, circle, reason, signer)
    n = len(circle.keys)
    read = _read(folder, "masked", facts.file, {
        "words": ("uint32", (values_of(task) + 1,)), "sealed": ("uint8", (n, sealed_bytes(n))),
        "digests": ("uint8", (n, n + 1, DIGEST))})
    masked = Masked(read["words"], tuple(one.tobytes() for one in read["sealed"]), read["digests"])
    return facts, masked, (folder / "masked.safetensors").stat().st_size


def write_request(folder: Path, facts: RequestFacts, masked: Mapping[int, Masked], key: Path | None) -> None:
    sealed = np.stack([np.stack([np.frombuffer(one, np.uint8) for one in masked[number].sealed])
                       for number in facts.answered])
    _write(folder, "request", facts, {"sealed": sealed}, key)


def open_request(folder: Path, task: Task, circle: Circle) -> Request:
    """Raises FormatError or MismatchError for a request that is not of this task."""
    facts, name, _ = read_facts(folder, REQUEST, RequestFacts, VERSION)
    n = len(circle.keys)
    if facts.task != task.name:
        raise MismatchError(f"{folder} is of the task {facts.task:.12}, not {task.name:.12}", AGAIN)
    if facts.answered != sorted(set(facts.answered)) or not all(0 <= number < n for number in facts.answered):
        raise FormatError(f"{folder} names devices that the round does not have", AGAIN)
    read = _read(folder, "request", facts.file, {"sealed": ("uint8", (len(facts.answered), n, sealed_bytes(n)))})
    return Request(name, facts.answered, read["sealed"])


def write_revealed(folder: Path, facts: RevealedFacts, circle: Circle, answered: list[int], revealed: Revealed,
                   key: Path | None) -> None:
    dropped = _dropped(circle, answered)
    own = np.zeros((len(answered), KEY), np.uint8)
    shared = np.zeros((len(answered), len(dropped), KEY), np.uint8)
    opened = np.array([number in revealed.own for number in answered], np.uint8)
    for i, dealer in enumerate(answered):
        if opened[i]:
            own[i] = np.frombuffer(revealed.own[dealer], np.uint8)
            for j, other in enumerate(dropped):
                shared[i, j] = np.frombuffer(revealed.shared[dealer, other], np.uint8)
    _write(folder, "revealed", facts, {"own": own, "shared": shared, "opened": opened}, key)


def open_revealed(folder: Path, task: Task, circle: Circle, request: Request,
                  sender: Sender = anybody) -> tuple[RevealedFacts, Revealed]:
    """What a device revealed. Raises as open_masked."""
    check, reason = sender(folder.name)
    facts, _, signer = read_facts(folder, REVEALED, RevealedFacts, VERSION, check)
    _check(facts, folder, task, circle, reason, signer)
    if facts.request != request.name or facts.number not in request.answered:
        raise MismatchError(f"{folder} answers another request", "leave it out")
    dropped = _dropped(circle, request.answered)
    m = len(request.answered)
    wanted = {"own": ("uint8", (m, KEY)), "opened": ("uint8", (m,)), "shared": ("uint8", (m, len(dropped), KEY))}
    read = _read(folder, "revealed", facts.file, wanted)
    own: dict[int, bytes] = {}
    shared: dict[tuple[int, int], bytes] = {}
    for i in np.flatnonzero(read["opened"]).tolist():
        dealer = request.answered[i]
        own[dealer] = read["own"][i].tobytes()
        shared |= {(dealer, other): read["shared"][i, j].tobytes() for j, other in enumerate(dropped)}
    return facts, Revealed(own, shared)


def most_masked(task: Task) -> int:
    """The bytes of the arrays of a masked answer at most."""
    assert task.secret
    n = len(task.secret.keys)
    return MIB + 4 * (values_of(task) + 1) + n * sealed_bytes(n) + n * (n + 1) * DIGEST


def most_revealed(request: Request) -> int:
    """The bytes of the arrays that a device reveals at most."""
    m = len(request.answered)
    dropped = int(request.sealed.shape[1]) - m
    return MIB + m * (KEY + 1) + m * dropped * KEY


def most_request(task: Task) -> int:
    """The bytes of the arrays of a request at most."""
    assert task.secret
    n = len(task.secret.keys)
    return MIB + n * n * sealed_bytes(n)


def values_of(task: Task) -> int:
    """V: the values of the half that the round trains."""
    return sum(int(getattr(pair, task.half).size) for pair in task.pairs.values())


def sealed_bytes(devices: int) -> int:
    return (devices + 1) * KEY + TAG


def _dropped(circle: Circle, answered: list[int]) -> list[int]:
    return [number for number in range(len(circle.keys)) if number not in answered]


def _check(facts: MaskedFacts | RevealedFacts, folder: Path, task: Task, circle: Circle, reason: Reason,
           signer: str) -> None:
    if facts.task != task.name:
        raise MismatchError(f"{folder} answers the task {facts.task:.12}, not {task.name:.12}", "leave it out")
    if not 0 <= facts.number < len(circle.keys):
        raise FormatError(f"{folder} is of device {facts.number}, of {len(circle.keys)}", "leave it out")
    if why := reason(facts.number, signer):
        raise MismatchError(f"{folder} {why}", "leave it out")


def _write(folder: Path, name: str, facts: Any, arrays: Arrays, key: Path | None) -> None:
    """Writes a folder, whole or not at all; `file` of the facts is filled in."""
    from safetensors.numpy import save
    with new_folder(folder) as beside:
        path = beside / f"{name}.safetensors"
        path.write_bytes(save({each: np.ascontiguousarray(array) for each, array in arrays.items()}))
        write_facts(beside, f"{name}.json", replace(facts, file=sha256(path)), key)


def _read(folder: Path, name: str, digest: str,
          wanted: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, NDArray[Any]]:
    """The arrays of these types and shapes. Raises FormatError for a file that has others."""
    from safetensors import SafetensorError
    from safetensors.numpy import load
    path = folder / f"{name}.safetensors"
    most = MIB + sum(np.dtype(kind).itemsize * prod(shape) for kind, shape in wanted.values())
    check_file(path, digest, most)
    try:
        found = load(read_small(path, most))
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path} is no safetensors file: {str(error)[:200]}", AGAIN) from None
    if {each: (array.dtype.name, array.shape) for each, array in found.items()} != dict(wanted):
        raise FormatError(f"{path} has other arrays than this round's", "leave it out")
    return found
