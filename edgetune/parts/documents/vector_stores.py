"""Vector stores of clients: files that were uploaded for it, indexed in the background, and searched.

One thread reads files, one store after another. Stores share one encoder, which is opened when it is needed.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ... import disk
from ...daemon.options import DaemonConfig
from ...daemon.state.database import now
from ...daemon.state.files import Files
from ...daemon.threads import Background, told
from ...errors import DiskError, EdgetuneError, Interrupted, NotFoundError, UsageError
from ...formats.named import find_model
from .building import build_of
from .options import IndexOptions
from .paragraphs import file_of, require_name
from .search import MOST, Encoding, Found, Index
from .store_records import COMPLETED, FAILED, IN_PROGRESS, Attached, StoreRecords, VectorStore

PURPOSE = "assistants"  # of files
ENCODER = "minilm"
LIMIT = 1000  # stores, and files of a store
RETRY_SECONDS = 60.0  # after the disk or memory refused
LATER = (DiskError, OSError, MemoryError)

log = logging.getLogger("edgetune.daemon")


def _may_succeed(error: Exception) -> bool:
    """Whether another try may, because the disk, the system or memory refused, and no document is to blame."""
    return isinstance(error, LATER) or disk.refusal(error) is not None


class VectorStores:
    """The vector stores of a daemon, for any number of threads. Close them: what is in progress continues at the next
    start.
    """

    def __init__(self, folder: Path, files: Files, config: DaemonConfig) -> None:
        self._records = StoreRecords(folder)
        self._files = files
        self._threads = config.threads
        self._stores = self._records.load()
        self._changing = threading.Condition(threading.RLock())
        self._indexes: dict[str, Index] = {}
        self._searching = threading.RLock()
        self._encoding: Encoding | None = None
        self._due: dict[str, float] = {}  # stores that wait to be read: from when on, on the monotonic clock
        self._failures: dict[str, str] = {}  # by store: why it is not as its files are, a sentence
        self._closing = threading.Event()
        self._thread = Background("documents", self._read_next, self._closing, "read the files of vector stores")

    def resume(self) -> None:
        """Does what the daemon was killed before: a file that was deleted leaves, and its passages too."""
        for store in self.list():
            for file in store.files:
                if not self._files.has(file.id):
                    store = self._save(store.without_file(file.id))
            if store.status == IN_PROGRESS or store.stale:
                self._begin(store.id)

    def close(self) -> None:
        with self._changing:
            self._closing.set()
            self._changing.notify()
        self._thread.stop()
        with self._searching:
            for index in self._indexes.values():
                index.close()
            self._indexes.clear()
            if self._encoding:
                self._encoding.close()

    def threads(self) -> Sequence[threading.Thread]:
        return [self._thread]

    def reasons(self) -> Sequence[str]:
        with self._changing:
            return [*filter(None, [self._thread.failure]), *self._failures.values()]

    # ---- stores -------------------------------------------------------------------------------------------------

    def list(self) -> Sequence[VectorStore]:
        """Returns all, the newest first."""
        with self._changing:
            return [*reversed(self._stores.values())]

    def get(self, id: str) -> VectorStore:
        """Raises NotFoundError."""
        with self._changing:
            if id not in self._stores:
                raise NotFoundError(f"there is no vector store {id!r:.80}", "list them to see those that exist")
            return self._stores[id]

    def create(self, name: str, metadata: Mapping[str, str], files: Sequence[str]) -> VectorStore:
        """Makes a store. files: their ids. Raises NotFoundError or UsageError for a file that is no document."""
        made = now()
        store = VectorStore(f"vs_{secrets.token_hex(12)}", name, made, made, dict(metadata))
        for file in files:
            store = store.with_file(self._attached(file, {}))
        with self._changing:
            if files:
                self._ready()
            if len(self._stores) >= LIMIT:
                raise UsageError(f"there are {LIMIT} vector stores, the most here", "delete one")
            self._save(store)
        if files:
            self._begin(store.id)
        return store

    def change(self, id: str, **fields: Any) -> VectorStore:
        """Changes the name or the metadata. Raises NotFoundError."""
        with self._changing:
            return self._save(replace(self.get(id), last_active_at=now(), **fields))

    def delete(self, id: str) -> None:
        """Deletes a store, and none of its files. Raises NotFoundError."""
        with self._changing:
            self.get(id)
            del self._stores[id]
            self._due.pop(id, None)
            self._failures.pop(id, None)
        with self._searching:
            if found := self._indexes.pop(id, None):
                found.close()
        self._records.remove(id)

    # ---- files --------------------------------------------------------------------------------------------------

    def file(self, id: str, file: str) -> Attached:
        """Raises NotFoundError."""
        for found in self.get(id).files:
            if found.id == file:
                return found
        raise NotFoundError(f"the vector store {id} has no file {file!r:.80}", "list its files")

    def add(self, id: str, file: str, attributes: Mapping[str, Any]) -> Attached:
        """Adds a file, which is read in the background. Errors as in `create`."""
        added, = self.add_batch(id, {file: attributes}, "")
        return added

    def add_batch(self, id: str, files: Mapping[str, Mapping[str, Any]], batch: str) -> Sequence[Attached]:
        """Adds files, as `add` does. files: their attributes, by their ids. batch: the id of all together."""
        found = [replace(self._attached(file, attributes), batch=batch) for file, attributes in files.items()]
        with self._changing:
            self._ready()
            store = self.get(id)
            for each in found:
                store = store.with_file(each)
            if len(store.files) > LIMIT:
                raise UsageError(f"the vector store {id} would have {len(store.files)} files, {LIMIT} is the most here",
                                 "make another")
            self._save(replace(store, last_active_at=now()))
        self._begin(id)
        return found

    def batch(self, id: str, batch: str) -> VectorStore:
        """Returns the store with the files of a batch only. Raises NotFoundError."""
        found = self.get(id).batch(batch)
        if not batch or not found.files:
            raise NotFoundError(f"the vector store {id} has no files of a batch {batch!r:.80}", "list its files")
        return found

    def cancel(self, id: str, batch: str) -> VectorStore:
        """Lets the files of a batch that are not read yet be left out. Raises NotFoundError."""
        with self._changing:
            self.batch(id, batch)
            return self._save(self.get(id).without_unread(batch)).batch(batch)

    def remove(self, id: str, file: str) -> None:
        """Takes a file out of a store. Raises NotFoundError."""
        with self._changing:
            self._ready()
            self.file(id, file)
            self._save(replace(self.get(id).without_file(file), last_active_at=now()))
        self._begin(id)

    def forget(self, file: str) -> None:
        """Takes a file out of all stores, because it was deleted."""
        for store in self.list():
            if any(each.id == file for each in store.files):
                self.remove(store.id, file)

    def _attached(self, file: str, attributes: Mapping[str, Any]) -> Attached:
        found = self._files.get(file)
        if found.purpose != PURPOSE:
            raise UsageError(f"the file {file} has the purpose {found.purpose}", f"upload it with {PURPOSE!r}")
        require_name(found.name)
        return Attached(found.id, found.name, found.bytes, now(), attributes=dict(attributes))

    def _save(self, store: VectorStore) -> VectorStore:
        self._records.save(store)
        self._stores[store.id] = store
        return store

    # ---- search -------------------------------------------------------------------------------------------------

    def search(self, ids: Sequence[str], query: str, limit: int) -> Found:
        """The best passages of several stores; `least` and evidence are those of the store that answers best. Raises
        NotFoundError, and the errors of Index.search.
        """
        found = [self._search(id, query, limit) for id in ids]
        passages = sorted((passage for each in found for passage in each.passages), key=lambda each: -each.score)
        best = max(found, key=lambda each: each.evidence - each.least)
        return Found(passages[:limit], best.evidence, best.least)

    def _search(self, id: str, query: str, limit: int) -> Found:
        with self._changing:
            store = self._stores[id] = replace(self.get(id), last_active_at=now())
        path = self._records.index(id)
        with self._searching:
            if id not in self._indexes and path.exists():
                self._indexes[id] = Index(path, encoding=self.encoder())
            if id not in self._indexes:
                return Found([], 0.0, 0.0)
            found = self._indexes[id].search(query, min(2 * limit, MOST))
        here = {file.id for file in store.files if not file.is_cancelled}
        sources = [(passage, passage.source.file.partition("/")) for passage in found.passages]
        # a source names the file as its client called it; of one that has gone, passages may still be in the index
        passages = [replace(passage, source=replace(passage.source, file=name, id=id))
                    for passage, (id, _, name) in sources if id in here]
        return replace(found, passages=passages[:limit])

    def encoder(self) -> Encoding:
        """The encoder of all stores, opened when it is needed first. Raises NotFoundError where it is not here."""
        with self._searching:
            self._encoding = self._encoding or Encoding(find_model(ENCODER), self._threads)
            return self._encoding

    # ---- the background -----------------------------------------------------------------------------------------

    def _ready(self) -> None:
        """Starts the thread, before anything is written that waits for it. Raises TooMuchError where the system starts
        none.
        """
        if not self._thread.ident:
            with disk.refusals():
                self._thread.start()

    def _begin(self, id: str) -> None:
        with self._changing:
            self._ready()
            self._due[id] = time.monotonic()
            self._changing.notify()

    def _read_next(self) -> None:
        """Reads the files of the next store. Where the disk or memory refuses, they remain in progress and are tried
        again, also at the next start.
        """
        if (store := self._next()) is None:
            return
        try:
            self._end(store, *self._indexed(store))
        except Interrupted:
            pass
        except Exception as error:
            if not _may_succeed(error):
                raise
            self._note(store.id, f"waits, and is tried again each minute: {told(error)}")
            with self._changing:
                self._due.setdefault(store.id, time.monotonic() + RETRY_SECONDS)

    def _next(self) -> VectorStore | None:
        """Returns the store that waits for longest; None: the daemon stops, and none can be completed before."""
        with self._changing:
            while True:
                ready = next((id for id, since in self._due.items() if since <= time.monotonic()), None)
                if ready is not None:
                    del self._due[ready]
                    if ready in self._stores:
                        return self._stores[ready]
                elif self._closing.is_set():
                    return None
                else:
                    self._changing.wait(min(self._due.values()) - time.monotonic() if self._due else None)

    def _indexed(self, store: VectorStore) -> tuple[dict[str, str], int, bool]:
        """Indexes a store. Returns why files failed, by id, the bytes of the index, 0: unknown, and whether it is made.
        Raises Interrupted, and errors after which another try may succeed.
        """
        try:
            found = self._index(store)
        except Exception as error:  # any one: other stores need this thread
            if isinstance(error, Interrupted) or _may_succeed(error):
                raise
            if isinstance(error, EdgetuneError):
                log.warning("the vector store %s is not indexed: %s", store.id, error)
                return dict.fromkeys((file.id for file in store.files), str(error)), 0, False
            log.exception("the vector store %s", store.id)
            self._note(store.id, f"is not indexed: {told(error)}; the daemon's log says more")
            return dict.fromkeys((file.id for file in store.files), told(error)), 0, False
        with self._changing:
            self._failures.pop(store.id, None)
        return (*found, True)

    def _note(self, id: str, why: str) -> None:
        """Notes for the daemon's health why a store is not as its files are."""
        with self._changing:
            if id in self._stores:
                self._failures[id] = f"the vector store {id} {why}"
        log.warning("the vector store %s %s", id, why)

    def _index(self, store: VectorStore) -> tuple[dict[str, str], int]:
        """Reads the files of a store that its index does not have yet. Raises Interrupted where that can wait for the
        next start; files that left a store leave its index before the end.
        """
        def go_on(*_: object) -> None:
            if self._closing.is_set() and store.status == IN_PROGRESS:
                raise Interrupted("the daemon stops", "start it again")

        go_on()
        documents = []
        failed: dict[str, str] = {}
        for file in store.files:
            if file.is_cancelled:
                continue
            try:
                documents.append(file_of(self._files.content(file.id), f"{file.id}/{file.name}"))
            except (NotFoundError, OSError) as error:  # it may be deleted in this moment
                if disk.refusal(error):
                    raise
                failed[file.id] = str(error)
        encoder = self.encoder()
        options = IndexOptions(chunk_tokens=min(IndexOptions.chunk_tokens, encoder.longest - 2))
        report = build_of(sorted(documents, key=lambda each: each.name), self._records.index(store.id), encoder,
                          options, on_progress=go_on)
        return failed | {each["file"].partition("/")[0]: each["reason"] for each in report.skipped}, report.bytes

    def _end(self, indexed: VectorStore, failed: Mapping[str, str], usage: int = 0, is_whole: bool = True) -> None:
        """Notes what became of the files of a store, but for those that came or went meanwhile. failed: why, by id.
        is_whole: whether the index is made.
        """
        known = {file.id for file in indexed.files}

        def ended(file: Attached) -> Attached:
            if file.is_cancelled:
                return file
            if error := failed.get(file.id, ""):
                return replace(file, status=FAILED, error=error)
            return replace(file, status=COMPLETED, error="")

        with self._changing:
            if store := self._stores.get(indexed.id):
                files = [ended(file) if file.id in known else file for file in store.files]
                has_left = bool(known - {file.id for file in files})
                self._save(replace(store, files=files, usage=usage or store.usage,
                                   stale=store.stale and (has_left or not is_whole)))
