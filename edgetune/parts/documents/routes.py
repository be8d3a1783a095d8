"""OpenAI's vector stores: files with the purpose assistants, added one by one or in batches, indexed and searched."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field

from ...daemon.api import schemas
from ...daemon.api.completions import TheService
from ...daemon.api.errors import RESPONSES, JsonRoute, about
from ...daemon.api.fine_tuning import After, Limit, page
from ...daemon.api.schemas import Metadata
from ...daemon.api.security import needs
from ...daemon.api.shapes import Answer, AsGiven, Body, Id, Time, Whole
from ...daemon.keys import KeyScope
from ...errors import NotFoundError, UsageError
from .running import documents_of
from .store_records import CANCELLED, COMPLETED, FAILED, IN_PROGRESS, Attached, VectorStore
from .vector_stores import VectorStores

AUTO = "Only auto: chunks of 256 tokens, at headings, paragraphs and sentences."
STATUS = "in_progress: files are being read."
ONE_FILE = "A file with the purpose assistants."
Text512 = Annotated[str, Field(max_length=512)]
Attributes = Annotated[dict[Annotated[str, Field(max_length=64)], Text512 | float | bool], Field(max_length=16)]
Status = Annotated[Literal["in_progress", "completed", "failed", "cancelled"] | None,
                   Query(alias="filter", description="Only files with this status.")]


def _stores(service: TheService) -> VectorStores:
    return documents_of(service).stores


TheStores = Annotated[VectorStores, Depends(_stores)]
MOST = 1000  # files of a batch: as many as a store has
BATCHES = "/v1/vector_stores/{store_id}/file_batches"
router = APIRouter(route_class=JsonRoute, responses=RESPONSES)


# ---- requests -------------------------------------------------------------------------------------------------------


class ChunkingStrategy(Body):
    """A way to divide files."""

    type: Literal["auto"] = Field(description=AUTO)


class StoreRequest(Body):
    name: str | None = Field(None, max_length=256, description="What people call it.")
    description: str | None = Field(None, max_length=512, description="Taken and not kept.")
    file_ids: list[str] | None = Field(None, max_length=100, description="Files with the purpose assistants.")
    metadata: Metadata | None = Field(None, description="Given back.")
    chunking_strategy: ChunkingStrategy | None = Field(None, description=AUTO)
    expires_after: None = Field(None, description="Only null: it stays until it is deleted.")


class StoreChange(Body):
    name: str | None = Field(None, max_length=256, description="What people call it.")
    metadata: Metadata | None = Field(None, description="Given back.")
    expires_after: None = Field(None, description="Only null: it stays until it is deleted.")


class StoreFileRequest(Body):
    file_id: str = Field(description=ONE_FILE)
    attributes: Attributes | None = Field(None, description="Given back.")
    chunking_strategy: ChunkingStrategy | None = Field(None, description=AUTO)


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


class RankingOptions(Body):
    """Options of a ranking."""

    ranker: Literal["none", "auto", "default-2024-11-15"] | None = Field(None, description="All are the same here.")
    score_threshold: float | None = Field(None, ge=0, le=1, description="Leave passages with a lower score out [0].")


class SearchRequest(Body):
    query: str | Annotated[list[str], Field(min_length=1, max_length=8)] = Field(description="A question; several are "
                                                                                 "one.")
    max_num_results: Annotated[Whole, Field(ge=1, le=50)] | None = Field(None, description="Passages at most [10].")
    ranking_options: RankingOptions | None = Field(None, description="Options of the ranking.")
    rewrite_query: Literal[False] | None = Field(None, description="Only false.")
    filters: None = Field(None, description="Only null.")


# ---- answers --------------------------------------------------------------------------------------------------------


class DocumentsDevice(BaseModel):
    """The documents of a daemon."""

    documents: dict[str, Any] = Field(description="index (of --index: name, files and passages; null: none) and "
                                                  "vector_stores, their number.")


class DocumentObject(Answer):
    """A document of an index."""

    id: str = Field(description="Its name, below the folder that was indexed.")
    object: Literal["document"] = "document"


class FileCounts(Answer):
    """Numbers of files."""

    in_progress: int = Field(description="Those that wait, or are being read.")
    completed: int = Field(description="Those that are searched.")
    failed: int = Field(description="Those that could not be read.")
    cancelled: int = Field(description="Those whose batch was cancelled before they were read.")
    total: int = Field(description="All.")


class StoreObject(Answer):
    """A vector store."""

    id: Id
    object: Literal["vector_store"] = "vector_store"
    created_at: Time
    last_active_at: Time
    name: str = Field(description="What people call it.")
    status: Literal["in_progress", "completed"] = Field(description=STATUS)
    usage_bytes: int = Field(description="Of its index.")
    file_counts: FileCounts = Field(description="Files by their status.")
    metadata: dict[str, str] = Field(description=AsGiven)
    expires_after: None = None
    expires_at: None = None


class LastError(Answer):
    """Why a file is not read."""

    code: Literal["invalid_file"] = "invalid_file"
    message: str = Field(description="What is wrong with it.")


class StoreFileObject(Answer):
    """A file of a vector store."""

    id: Id
    object: Literal["vector_store.file"] = "vector_store.file"
    created_at: Time
    vector_store_id: str = Field(description="Its vector store.")
    status: Literal["in_progress", "completed", "failed", "cancelled"] = Field(description="completed: it is searched.")
    usage_bytes: int = Field(description="Of the file.")
    last_error: LastError | None = Field(description="Why it is not read.")
    attributes: dict[str, Any] = Field(description=AsGiven)
    chunking_strategy: dict[str, Any] = Field(description="Always static, of 256 tokens.")


class SearchText(Answer):
    """A passage's text."""

    type: Literal["text"] = "text"
    text: str = Field(description="The text.")


class SearchResult(Answer):
    """A passage."""

    file_id: str = Field(description="Its file.")
    filename: str = Field(description="The name that the file was uploaded with.")
    score: float = Field(description="From 0 to 1, 1: the best by words and by meaning.")
    attributes: dict[str, Any] = Field(description="Those of the file in this store.")
    content: list[SearchText] = Field(description="Its text.")
    source: str = Field(description="For people: the file, its page or line, and the heading.")


class SearchPage(Answer):
    """What a search found: nothing, where the store does not answer the question."""

    object: Literal["vector_store.search_results.page"] = "vector_store.search_results.page"
    search_query: list[str] = Field(description="What was looked for.")
    data: list[SearchResult] = Field(description="Passages, the best first.")
    has_more: Literal[False] = False
    next_page: None = None


class BatchObject(Answer):
    """Files that were added together. A file that is removed, or added again, leaves its batch."""

    id: Id
    object: Literal["vector_store.files_batch"] = "vector_store.files_batch"
    created_at: Time
    vector_store_id: str = Field(description="Its vector store.")
    status: Literal["in_progress", "completed", "cancelled"] = Field(description="in_progress: files are being read.")
    file_counts: FileCounts = Field(description="Files by their status.")


# ---- routes ---------------------------------------------------------------------------------------------------------


@router.get("/v1/documents", response_model=schemas.Page[DocumentObject])
def list_documents(service: TheService, after: After = None, limit: Limit = 100) -> Any:
    """Lists the documents of --index, by name; none without an index."""
    index = documents_of(service).opened()
    found = [DocumentObject(id=name) for name in index.files] if index else []
    return page(after_id(found, after)[:limit + 1], limit)


@router.post("/v1/vector_stores", response_model=StoreObject)
def create_store(body: StoreRequest, stores: TheStores) -> Any:
    """Makes a vector store. Its files are read in the background."""
    with about("file_ids"):
        return _store(stores.create(body.name or "", body.metadata or {}, body.file_ids or []))


@router.get("/v1/vector_stores", response_model=schemas.Page[StoreObject])
def list_stores(stores: TheStores, after: After = None, limit: Limit = 20) -> Any:
    """Lists vector stores, the newest first."""
    return page([_store(each) for each in after_id(stores.list(), after)][:limit + 1], limit)


@router.get("/v1/vector_stores/{store_id}", response_model=StoreObject)
def get_store(store_id: str, stores: TheStores) -> Any:
    """Returns a vector store."""
    return _store(stores.get(store_id))


@router.post("/v1/vector_stores/{store_id}", response_model=StoreObject)
def change_store(store_id: str, body: StoreChange, stores: TheStores) -> Any:
    """Changes the name or the metadata of a vector store."""
    given = body.model_dump(include={"name", "metadata"}, exclude_none=True)
    return _store(stores.change(store_id, **given))


@router.delete("/v1/vector_stores/{store_id}", response_model=schemas.Deleted)
def delete_store(store_id: str, stores: TheStores) -> Any:
    """Deletes a vector store, and none of its files."""
    stores.delete(store_id)
    return {"id": store_id, "object": "vector_store.deleted"}


@router.post("/v1/vector_stores/{store_id}/files", response_model=StoreFileObject)
def add_file(store_id: str, body: StoreFileRequest, stores: TheStores) -> Any:
    """Adds a file to a vector store. It is read in the background: its status says when that is done."""
    with about("file_id"):
        return file_object(store_id, stores.add(store_id, body.file_id, body.attributes or {}))


@router.get("/v1/vector_stores/{store_id}/files", response_model=schemas.Page[StoreFileObject])
def list_store_files(store_id: str, stores: TheStores, after: After = None, limit: Limit = 20,
                     status: Status = None) -> Any:
    """Lists the files of a vector store, the newest first."""
    found = [each for each in reversed(stores.get(store_id).files) if status in (None, each.status)]
    return page([file_object(store_id, each) for each in after_id(found, after)][:limit + 1], limit)


@router.get("/v1/vector_stores/{store_id}/files/{file_id}", response_model=StoreFileObject)
def get_store_file(store_id: str, file_id: str, stores: TheStores) -> Any:
    """Returns a file of a vector store."""
    return file_object(store_id, stores.file(store_id, file_id))


@router.delete("/v1/vector_stores/{store_id}/files/{file_id}", response_model=schemas.Deleted)
def remove_file(store_id: str, file_id: str, stores: TheStores) -> Any:
    """Takes a file out of a vector store. The file itself stays."""
    stores.remove(store_id, file_id)
    return {"id": file_id, "object": "vector_store.file.deleted"}


@router.post(BATCHES, response_model=BatchObject)
def create_batch(store_id: str, body: BatchRequest, stores: TheStores) -> Any:
    """Adds several files to a vector store. They are read in the background."""
    id = f"vsfb_{secrets.token_hex(12)}"
    with about("files" if body.files else "file_ids"):
        stores.add_batch(store_id, body.added(), id)
    return _batch(id, stores.batch(store_id, id))


@router.get(BATCHES + "/{batch_id}", response_model=BatchObject)
def get_batch(store_id: str, batch_id: str, stores: TheStores) -> Any:
    """Returns a batch: its status says whether all of its files are read."""
    return _batch(batch_id, stores.batch(store_id, batch_id))


@router.post(BATCHES + "/{batch_id}/cancel", response_model=BatchObject)
def cancel_batch(store_id: str, batch_id: str, stores: TheStores) -> Any:
    """Leaves out the files of a batch that are not read yet."""
    return _batch(batch_id, stores.cancel(store_id, batch_id))


@router.get(BATCHES + "/{batch_id}/files", response_model=schemas.Page[StoreFileObject])
def list_batch_files(store_id: str, batch_id: str, stores: TheStores, after: After = None, limit: Limit = 20,
                     status: Status = None) -> Any:
    """Lists the files of a batch, the newest first."""
    files = reversed(stores.batch(store_id, batch_id).files)
    found = [each for each in files if status in (None, each.status)]
    return page([file_object(store_id, each) for each in after_id(found, after)][:limit + 1], limit)


@router.post("/v1/vector_stores/{store_id}/search", response_model=SearchPage)
@needs(KeyScope.ANSWER)
def search_store(store_id: str, body: SearchRequest, stores: TheStores) -> Any:
    """Finds the passages that answer a question; none, where the store does not answer it."""
    queries = [body.query] if isinstance(body.query, str) else body.query
    least = (body.ranking_options and body.ranking_options.score_threshold) or 0
    attributes = {file.id: file.attributes for file in stores.get(store_id).files}
    with about("query"):
        found = stores.search([store_id], " ".join(queries), body.max_num_results or 10)
    return {"search_query": queries, "data": [
        {"file_id": passage.source.id, "filename": passage.source.file, "score": passage.score,
         "attributes": attributes.get(passage.source.id, {}), "content": [{"text": passage.text}],
         "source": str(passage.source)} for passage in found.passages if passage.score >= least]}


def after_id(found: Sequence[Any], id: str | None) -> Sequence[Any]:
    """The items after the one with this id. Raises NotFoundError."""
    if id is None:
        return found
    for place, each in enumerate(found):
        if each.id == id:
            return found[place + 1:]
    raise NotFoundError(f"there is no {id!r:.80} after which to continue", "give the id of the last one that you got")


def _store(store: VectorStore) -> dict[str, Any]:
    return {**{name: getattr(store, name) for name in ("id", "created_at", "last_active_at", "name", "status",
                                                       "metadata")},
            "usage_bytes": store.usage, "file_counts": store.counts()}


def file_object(store: str, file: Attached) -> dict[str, Any]:
    """A file of a store as OpenAI's API describes it."""
    static = {"type": "static", "static": {"max_chunk_size_tokens": 256, "chunk_overlap_tokens": 38}}
    return {"id": file.id, "created_at": file.created_at, "vector_store_id": store, "status": file.status,
            "usage_bytes": file.bytes, "attributes": file.attributes, "chunking_strategy": static,
            "last_error": {"message": file.error} if file.status == FAILED else None}


def _batch(id: str, store: VectorStore) -> dict[str, Any]:
    """store: with the files of the batch only."""
    counts = store.counts()
    status = IN_PROGRESS if counts[IN_PROGRESS] else CANCELLED if counts[CANCELLED] else COMPLETED
    return {"id": id, "created_at": min(file.created_at for file in store.files), "vector_store_id": store.id,
            "status": status, "file_counts": counts}
