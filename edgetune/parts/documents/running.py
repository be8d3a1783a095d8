"""Documents that a daemon answers from: the index of its options, and the vector stores of its clients."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ...daemon.options import DaemonConfig
from ...daemon.running import RunningPart
from ...data.around import Instruction
from .options import DocumentsOptions
from .passages import USUAL, Passages
from .search import Index
from .vector_stores import VectorStores

if TYPE_CHECKING:
    from ...daemon.service import Service


class RunningDocuments(RunningPart):
    """The documents of a daemon. Raises the errors of Index."""

    stores: VectorStores

    def __init__(self, config: DaemonConfig) -> None:
        options = cast(DocumentsOptions, config)
        self.index = Index(Path(options.index).expanduser(), config.threads) if options.index else None
        self._passages = Passages(self.index.search, options.passages, self.index.refresh) if self.index else None

    @property
    def around(self) -> Instruction:
        return self._passages

    def tool(self, given: Mapping[str, Any]) -> Instruction:
        """Returns the passages of vector stores, for file_search. Raises NotFoundError."""
        if given["type"] != "file_search":
            return None
        ids = given["vector_store_ids"]
        for id in ids:
            self.stores.get(id)
        return Passages(partial(self.stores.search, ids), given.get("max_num_results") or USUAL)

    def join(self, service: Service) -> None:
        self.stores = VectorStores(service.config.folder(), service.files, service.config)
        service.files.on_deleted.append(self.stores.forget)

    def start(self) -> None:
        self.stores.resume()

    def stop(self) -> None:
        self.stores.close()

    def close(self) -> None:
        if self.index:
            self.index.close()

    def threads(self) -> Sequence[threading.Thread]:
        return self.stores.threads()

    def reasons(self) -> Sequence[str]:
        return self.stores.reasons()

    def device(self) -> dict[str, Any]:
        index = self.opened()
        shown = index and {"name": index.path.name, "files": len(index.files), "passages": index.passages}
        return {"documents": {"index": shown, "vector_stores": len(self.stores.list())}}

    def opened(self) -> Index | None:
        """Returns the index as its file is now; None: there is none."""
        if self.index:
            self.index.refresh()
        return self.index


def running(config: DaemonConfig) -> RunningDocuments:
    """Returns the documents of a daemon."""
    return RunningDocuments(config)


def documents_of(service: Service) -> RunningDocuments:
    """Returns the documents of a service."""
    return cast(RunningDocuments, service.running["documents"])
