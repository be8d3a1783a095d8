"""The bases that a state has had: each adapter belongs to one, and each base has its own active adapter.

A daemon that serves a slot may get another base. The adapters of the base before stay, and the one that was active is
active again when that base is back.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

from ...adapters import store as lora
from ...errors import EdgetuneError, MismatchError
from ...formats.gguf import open_gguf
from .database import Store

log = logging.getLogger("edgetune.daemon")
OWN = "SELECT 1 FROM adapters WHERE base = ?1 UNION SELECT 1 FROM service WHERE base = ?1 LIMIT 1"


def settle(store: Store, folder: Path, base: str, may_differ: bool) -> None:
    """Completes rows that say no base, as an earlier version wrote them. folder: of the adapters. base: the fingerprint
    of the model that is opened. may_differ: whether the state may be one of other models alone.

    Raises MismatchError where it is and may not.
    """
    _complete(store, folder, base)
    others = store.read("SELECT id, folder FROM adapters WHERE base != ?", base)
    if others and not may_differ and not store.read(OWN, base):
        raise MismatchError(f"{others[0]['id']} in {folder / others[0]['folder']} was trained on another model, not on "
                            f"this one ({base:.19})", "give the model that it was trained on, or another --state")
    if others:
        log.info("adapters of other bases that are kept, and do not answer: %d", len(others))


def _complete(store: Store, folder: Path, base: str) -> None:
    stated = {row["id"]: _stated(folder / row["folder"]) or base
              for row in store.read("SELECT id, folder FROM adapters WHERE base = ''")}
    if not stated and not store.read("SELECT 1 FROM service WHERE base = '' LIMIT 1"):
        return
    with store.write() as db:
        for id, found in stated.items():
            db.execute("UPDATE adapters SET base = ? WHERE id = ?", (found, id))
        db.execute("UPDATE service SET base = coalesce((SELECT base FROM adapters WHERE id = adapter), ?) "
                   "WHERE base = ''", (base,))


def _stated(adapter: Path) -> str:
    """The fingerprint that an adapter's file states, ""; none, or it cannot be read, as its loading says."""
    with suppress(EdgetuneError, OSError):
        return lora.base_of(open_gguf(adapter / lora.FILE))[1]
    return ""
