"""Batches of files that are added to a vector store together, as OpenAI's clients add them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field

from ...errors import UsageError
from ..state.store_records import CANCELLED, COMPLETED, IN_PROGRESS, VectorStore
from . import schemas
from .completions import TheService
from .errors import RESPONSES, JsonRoute, about
from .fine_tuning import After, Limit, page
from .shapes import Answer, Body, Id, Time
from .vector_stores import (
    AUTO,
    Attributes,
    ChunkingStrategy,
    FileCounts,
    Status,
    StoreFileObject,
    StoreFileRequest,
    after_id,
    file_object,
)

MOST = 1000  # files of a batch: as many as a store has
PATH = "/v1/vector_stores/{store_id}/file_batches"
router = APIRouter(route_class=JsonRoute, responses=RESPONSES)


class BatchRequest(Body):
    file_ids: Annotated[list[str], Field(min_length=1, max_length=MOST)] | None = Field(
        None, description="Files with the purpose assistants.")
    files: Annotated[list[StoreFileRequest], Field(min_length=1, max_length=MOST)] | None = Field(
        None, description="The same, each with its attributes, in place of file_ids.")
    attributes: Attributes | None = Field(None, description="Of each of file_ids; given back.")
    chunking_strategy: ChunkingStrategy | None = Field(None, description=AUTO)

    def added(self) -> Mapping[str, Mapping[str, Any]]:
        """The attributes of each file. Raises UsageError."""
        if (self.file_ids is None) == (self.files is None):
            raise UsageError("a batch has file_ids or files", "give one of the two")
        if self.files is not None:
            return {file.file_id: file.attributes or {} for file in self.files}
        return dict.fromkeys(self.file_ids or (), self.attributes or {})


class BatchObject(Answer):
    """Files that were added together. A file that is removed, or added again, leaves its batch."""

    id: Id
    object: Literal["vector_store.files_batch"] = "vector_store.files_batch"
    created_at: Time
    vector_store_id: str = Field(description="Its vector store.")
    status: Literal["in_progress", "completed", "cancelled"] = Field(description="in_progress: files are being read.")
    file_counts: FileCounts = Field(description="Files by their status.")


@router.post(PATH, response_model=BatchObject)
def create_batch(store_id: str, body: BatchRequest, service: TheService) -> Any:
    """Adds several files to a vector store. They are read in the background."""
    id = f"vsfb_{secrets.token_hex(12)}"
    stores = service.documents.stores
    with about("files" if body.files else "file_ids"):
        stores.add_batch(store_id, body.added(), id)
    return _batch(id, stores.batch(store_id, id))


@router.get(PATH + "/{batch_id}", response_model=BatchObject)
def get_batch(store_id: str, batch_id: str, service: TheService) -> Any:
    """Returns a batch: its status says whether all of its files are read."""
    return _batch(batch_id, service.documents.stores.batch(store_id, batch_id))


@router.post(PATH + "/{batch_id}/cancel", response_model=BatchObject)
def cancel_batch(store_id: str, batch_id: str, service: TheService) -> Any:
    """Leaves out the files of a batch that are not read yet."""
    return _batch(batch_id, service.documents.stores.cancel(store_id, batch_id))


@router.get(PATH + "/{batch_id}/files", response_model=schemas.Page[StoreFileObject])
def list_batch_files(store_id: str, batch_id: str, service: TheService, after: After = None, limit: Limit = 20,
                     status: Status = None) -> Any:
    """Lists the files of a batch, the newest first."""
    files = reversed(service.documents.stores.batch(store_id, batch_id).files)
    found = [each for each in files if status in (None, each.status)]
    return page([file_object(store_id, each) for each in after_id(found, after)][:limit + 1], limit)


def _batch(id: str, store: VectorStore) -> dict[str, Any]:
    """store: with the files of the batch only."""
    counts = store.counts()
    status = IN_PROGRESS if counts[IN_PROGRESS] else CANCELLED if counts[CANCELLED] else COMPLETED
    return {"id": id, "created_at": min(file.created_at for file in store.files), "vector_store_id": store.id,
            "status": status, "file_counts": counts}
