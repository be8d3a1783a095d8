"""The process of aside.py: it reads a call as JSON from stdin, and writes what it found to stdout."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import told
from ...formats import signature
from ...python_child import begin_replies, reply
from ..joining import cards as published
from ..rounds.task import read_task
from . import round as rounds
from .cards import Card, check_known, make_card, read_peers
from .files import open_request
from .key import load_key, note_met
from .masks import Member
from .round import circle_of

PATHS = ("folder", "key", "sign", "task", "peers", "update", "out", "request")


def main() -> None:
    asked, out = begin_replies()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    reply(out, answer(asked))


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """What the call found that aside.py asks for, or its error; see `told`."""
    call = CALLS[asked.pop("call")]
    given = {name: Path(value) if value and name in PATHS else value for name, value in asked.items()}
    return told(partial(call, **given))


def _publish(folder: Path, device: str, key: Path, sign: Path | None) -> str:
    secret = load_key(key).public_key().public_bytes_raw().hex()
    card = make_card(device, secret, signature.private_key(sign) if sign else None)
    published.publish(folder, card)
    return card.key


def _check(task: Path, key: Path, peers: Path | None) -> list[tuple[str, str]]:
    circle = circle_of(found := read_task(task))
    assert found.secret
    member = Member(circle, load_key(key))
    cards = [card.check(str(task)) for card in found.secret.named()] or [
        Card(circle.name(number), secret) for number, secret in enumerate(found.secret.keys)]
    if peers:
        check_known(cards, member.number, circle.threshold, read_peers(peers), peers)
    others = {card.key or card.secret: card for number, card in enumerate(cards) if number != member.number}
    return [(others[each].device, others[each].key) for each in note_met(key, [*others])]


def _mask(task: Path, update: Path, tokens: int, key: Path, out: Path, sign: Path | None) -> None:
    from safetensors.numpy import load
    rounds.mask(read_task(task), load(update.read_bytes()), tokens, key, out, sign)


def _reveal(task: Path, request: Path, key: Path, out: Path, sign: Path | None) -> bool:
    found = read_task(task)
    circle = circle_of(found)
    if Member(circle, load_key(key)).number not in open_request(request, found, circle).answered:
        return False
    rounds.reveal(found, request, key, out, sign)
    return True


CALLS: dict[str, Any] = {"publish": _publish, "check": _check, "mask": _mask, "reveal": _reveal}
