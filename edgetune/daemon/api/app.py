"""OpenAI's API in front of a service, and beyond it: adapters, device, health, metrics."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, FastAPI, Form, Query, Request
from fastapi.openapi.utils import get_openapi
from fastapi.params import File
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.routing import BaseRoute

from ... import disk
from ...adapters import store
from ...adapters.published import public_files
from ...errors import NotFoundError, UsageError
from ...manifest import manifests
from ...version import __version__
from ..jobs.decide import without_scores
from ..keys import KeyScope
from ..kinds.evaluation import EvaluationRequest
from ..service import Service
from ..state.adapters import LATEST
from ..state.files import PURPOSE, RESULTS, check_purpose, purposes
from . import (
    checking,
    classify,
    completions,
    embeddings,
    errors,
    feedback,
    fine_tuning,
    fine_tuning_schemas,
    pages,
    schemas,
    tokens,
)
from .adapters import AnAdapter, adapter_object, zipped
from .asking import RecentAnswers
from .bodies import Bodies
from .completions import TheService
from .errors import JSONL, RESPONSES, JsonRoute, of_type
from .fine_tuning import After, Limit, job_object, page
from .metrics import Counted, Metrics
from .pools import Pools, ThePools
from .security import HEALTH, Guard, Keys, needs, scope_of

Purpose = Annotated[str | None, Query(description="Only files of this purpose.")]
CSV = "text/csv"
BYTES = "application/octet-stream"
ZIP = "application/zip"
WHICHEVER = schemas.Rollback(adapter=None)  # of requests without a body
BY_DEFAULT = schemas.Evaluation.model_validate({})
router = APIRouter(route_class=JsonRoute, responses=RESPONSES)
PARTS = (*(part.router for part in (checking, classify, completions, embeddings, feedback, fine_tuning, pages, tokens)),
         router,
         *(manifest.load(name).router for manifest in manifests() for name in manifest.routes))


def routes() -> list[BaseRoute]:
    """All routes of the API, for its reference."""
    return [route for part in PARTS for route in part.routes]


def uploads() -> list[re.Pattern[str]]:
    """The paths that take files."""
    return [route.path_regex for route in routes() if isinstance(route, APIRoute)
            and any(isinstance(field.field_info, File) for field in route.dependant.body_params)]


def app(service: Service) -> FastAPI:
    """The API of a service, which may start later. Raises UsageError or FormatError for a key file that is none."""
    config = service.config
    keys = Keys(Path(config.key_file).expanduser()) if config.key_file else None
    made = FastAPI(title="edgetune", version=__version__, openapi_url=None, docs_url=None, redoc_url=None,
                   redirect_slashes=False)
    made.state.service = service
    made.state.recent = RecentAnswers()
    made.state.metrics = Metrics(service)
    made.state.ignored = set()
    made.state.pools = Pools()
    made.state.bodies = Bodies(config)
    made.router.routes += routes()  # as they are: include_router would make each a second time
    errors.install(made)
    made.openapi = _made_once(made, keyed=keys is not None)  # type: ignore[method-assign]
    made.add_middleware(Counted, metrics=made.state.metrics)
    made.add_middleware(Guard, service=service, keys=keys, bodies=made.state.bodies, routes=made.routes,
                        uploads=uploads())  # comes first
    return made


def _made_once(made: FastAPI, keyed: bool) -> Callable[[], dict[str, Any]]:
    """A function that makes the schema at the first request, once for all who wait: it takes seconds on a small board.

    keyed: whether a key is required.
    """
    lock = threading.Lock()

    def openapi() -> dict[str, Any]:
        with lock:
            if made.openapi_schema is None:
                made.openapi_schema = _openapi(made, keyed)
            return made.openapi_schema

    return openapi


def _openapi(made: FastAPI, keyed: bool) -> dict[str, Any]:
    """The schema of FastAPI, without its 422, which is a 400 here; with the scope of the key, if one is required."""
    schema = get_openapi(title=made.title, version=made.version, routes=made.routes)
    for path in schema["paths"].values():
        for operation in path.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        schema["components"]["schemas"].pop(name, None)
    if keyed:
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for route in made.routes:
            if isinstance(route, APIRoute) and route.include_in_schema:
                scope = scope_of(route)
                for method in route.methods or ():
                    operation = schema["paths"][route.path_format][method.lower()]
                    operation["security"] = [{"key": [scope.word]}] if scope else []
    return schema

# ---- models ---------------------------------------------------------------------------------------------------------


@router.get("/v1/models", response_model=schemas.ModelPage)
@needs(KeyScope.ANSWER)
def list_models(service: TheService) -> Any:
    """Lists the names that requests may give as their model, as OpenAI does; `models` as TypeSafe does."""
    found = _models(service)
    return {"data": found, "models": [
        {"name": model["id"], "description": model["system"],
         "release_date": datetime.fromtimestamp(model["created"], timezone.utc).date().isoformat()} for model in found]}


@router.get("/v1/models/{model}", response_model=schemas.ModelObject)
@needs(KeyScope.ANSWER)
def get_model(model: str, service: TheService) -> Any:
    """Returns one of these names, also as commands call it."""
    for found in _models(service):
        if found["id"] == service.spelled(model):
            return found
    raise NotFoundError(f"there is no model {model!r:.200}", "/v1/models lists those that exist")


@router.delete("/v1/models/{model}", response_model=schemas.Deleted)
def delete_model(model: str, service: TheService) -> Any:
    """Deletes an adapter that is not active, as DELETE /v1/adapters does. Other models are files of the daemon's."""
    adapter = service.adapters.id_of(model)
    if all(adapter != found.id for found in service.adapters.list()):
        get_model(model, service)
        raise UsageError(f"{model!r:.200} is no adapter", "give an id of /v1/adapters")
    service.adapters.delete(adapter)
    return {"id": model, "object": "model"}


def _models(service: Service) -> list[dict[str, Any]]:
    made = int(service.path.stat().st_mtime) if service.path.exists() else int(time.time())
    system_of = service.served.system_of
    models = [(service.name, made, ""), (service.name + LATEST, made, system_of(service.adapters.serving))]
    for adapter in service.adapters.list():
        models += [(name, adapter.created_at, system_of(adapter.id)) for name in (adapter.id, adapter.name) if name]
    models += [(name, made, "") for name in service.choosing()]
    if service.embeddings.file:
        models.append((service.embeddings.name, made, ""))
    return [{"id": name, "created": created, "system": system} for name, created, system in models]


# ---- files ----------------------------------------------------------------------------------------------------------


@router.post("/v1/files", response_model=schemas.FileObject)
def upload(file: schemas.RowsFile,
           purpose: Annotated[str, Form(description="fine-tune, or assistants: a document.",
                                        json_schema_extra={"enum": [*purposes()]})],
           service: TheService) -> Any:
    """Uploads a file, as a form: rows to train on, which are kept as JSON Lines, or a document to search."""
    with errors.about("purpose"):
        check_purpose(purpose)
    chunks = iter(lambda: file.file.read(1 << 16), b"")
    return _file(service.files.add(file.filename or "rows.jsonl", purpose, chunks))


@router.get("/v1/files", response_model=schemas.Page[schemas.FileObject])
def list_files(service: TheService, after: After = None, limit: Limit = 100, purpose: Purpose = None) -> Any:
    """Lists files, the newest first."""
    return page([_file(file) for file in service.files.list(after, limit + 1, purpose)], limit)


@router.get("/v1/files/{file_id}", response_model=schemas.FileObject)
def get_file(file_id: str, service: TheService) -> Any:
    """Returns a file's facts."""
    return _file(service.files.get(file_id))


@router.delete("/v1/files/{file_id}", response_model=schemas.Deleted)
def delete_file(file_id: str, service: TheService) -> Any:
    """Deletes a file. A job that has begun keeps its copy of the rows; later jobs learn none of them. A document leaves
    the vector stores too.
    """
    service.files.delete(file_id)
    return {"id": file_id, "object": "file"}


@router.get("/v1/files/{file_id}/content", response_class=Response, responses=of_type(JSONL, CSV, BYTES))
def file_content(file_id: str, service: TheService) -> Response:
    """Returns the rows or the document as they were uploaded, or a job's results as CSV."""
    kind = {RESULTS: CSV, PURPOSE: JSONL}.get(service.files.get(file_id).purpose, BYTES)
    return FileResponse(service.files.content(file_id), media_type=kind)


def _file(file: Any) -> dict[str, Any]:
    return {**vars(file), "filename": file.name}


# ---- adapters -------------------------------------------------------------------------------------------------------


@router.get("/v1/adapters", response_model=schemas.AdapterList)
def list_adapters(service: TheService) -> Any:
    """Lists the adapters, the active one, and when it changed."""
    listed = [adapter_object(adapter, service) for adapter in service.adapters.list()]
    serving = next((adapter["id"] for adapter in listed if adapter["state"] == "serving"), None)
    for adapter in listed:
        adapter["verdict"] = without_scores(adapter["verdict"])  # only the answer for one adapter has them
    return {"data": listed, "serving": serving, "history": service.adapters.history()}


@router.post("/v1/adapters", response_model=schemas.AdapterObject)
def add_adapter(file: schemas.AdapterFile, service: TheService, run: schemas.RunFile = None,
                json_schema: schemas.SchemaFile = None,
                suffix: Annotated[str, Form(description="A part of the adapter's id.")] = "") -> Any:
    """Adds an adapter that no job here made, such as a compiled prompt, as a form. It is a candidate, which no gate
    has evaluated: evaluate it, promote it, or name it in requests.
    """
    with TemporaryDirectory(prefix="edgetune-") as folder:
        for name, given in ((store.FILE, file), (store.RUN, run), (store.SCHEMA, json_schema)):
            if given:
                with disk.replaced(Path(folder) / name) as beside, beside.open("wb") as out:
                    shutil.copyfileobj(given.file, out)
        return adapter_object(service.add_adapter(Path(folder), suffix), service)


@router.post("/v1/adapters/rollback", response_model=schemas.Serving)
def roll_back(service: TheService, body: schemas.Rollback = WHICHEVER) -> Any:
    """Activates the adapter that was active before the present one, or only the base."""
    only = service.adapters.id_of(body.adapter) if body.adapter else None
    before = service.adapters.rollback("asked for by a client", only)
    return {"serving": before.id if before else None}


@router.post("/v1/adapters/recover", response_model=schemas.Recovered)
def recover_adapters(service: TheService) -> Any:
    """Takes back, as candidates, adapters that were set aside because the database does not name them."""
    found, refused = service.adapters.recover()
    return {"recovered": [adapter.id for adapter in found], "refused": refused}


@router.get("/v1/adapters/{adapter}", response_model=schemas.AdapterObject)
def get_adapter(adapter: AnAdapter, service: TheService) -> Any:
    """Returns an adapter with the whole verdict of its gate."""
    return adapter_object(service.adapters.get(adapter), service)


@router.patch("/v1/adapters/{adapter}", response_model=schemas.AdapterObject)
def rename_adapter(adapter: AnAdapter, body: schemas.AdapterName, service: TheService) -> Any:
    """Gives an adapter a name for people; its id stays."""
    return adapter_object(service.adapters.rename(adapter, body.name), service)


@router.get("/v1/adapters/{adapter}/download", response_class=Response, responses=of_type(ZIP))
def download_adapter(adapter: AnAdapter, service: TheService) -> Response:
    """Returns a zip: adapter.gguf, a model card, and run.json without questions, answers and paths."""
    found = service.adapters.get(adapter)
    name = found.name.replace(" ", "-") or f"adapter-{found.folder}"
    files = public_files(service.adapters.path(adapter), service.bundle.gguf, name)
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name)}.zip"}
    return StreamingResponse(zipped({f"{name}/{file}": content for file, content in files.items()}),
                             media_type=ZIP, headers=headers)


@router.post("/v1/adapters/{adapter}/promote", response_model=schemas.Serving)
def promote(adapter: AnAdapter, service: TheService) -> Any:
    """Activates an adapter, whatever the gate decided."""
    service.adapters.promote(adapter, "asked for by a client")
    return {"serving": service.adapters.serving}


@router.post("/v1/adapters/{adapter}/evaluate", response_model=fine_tuning_schemas.JobObject)
def evaluate(adapter: AnAdapter, service: TheService, body: schemas.Evaluation = BY_DEFAULT) -> Any:
    """Begins a job in which the gate evaluates an adapter, compared with the active one, by the held-out questions of
    this device. The verdict is kept with the adapter.
    """
    request = EvaluationRequest(**{name: value for name, value in body.model_dump().items() if value is not None})
    return job_object(service.evaluate_adapter(adapter, request))


@router.delete("/v1/adapters/{adapter}", response_model=schemas.Deleted)
def delete_adapter(adapter: AnAdapter, service: TheService) -> Any:
    """Deletes an adapter that is not active."""
    service.adapters.delete(adapter)
    return {"id": adapter, "object": "adapter"}


# ---- the device -----------------------------------------------------------------------------------------------------


@router.get("/v1/device", response_model=schemas.DeviceObject)
@needs(KeyScope.ANSWER)
def device(service: TheService) -> Any:
    """Returns what the machine is, and what the daemon does on it now."""
    return service.device()


@router.get("/openapi.json", include_in_schema=False)
@needs(KeyScope.ANSWER)
def show_schema(request: Request) -> Response:
    """All calls; made in a thread, so that others are answered meanwhile."""
    return JSONResponse(request.app.openapi())


@router.get("/healthz", response_model=schemas.Health)
@needs(KeyScope.OPEN)
async def health(service: TheService, pools: ThePools) -> Any:
    """Says whether all of the daemon works. A degraded daemon still answers. /health and /v1/health, as llama-server
    has them, say the same.
    """
    return await pools.watch(service.health)


for path in HEALTH:
    router.head(path, response_model=schemas.Health, include_in_schema=False)(health)
    if path != "/healthz":
        router.get(path, response_model=schemas.Health, include_in_schema=False)(health)


@router.get("/metrics", response_class=Response, responses=of_type("text/plain"))
@needs(KeyScope.ANSWER)
async def metrics(request: Request, pools: ThePools) -> Response:
    """Returns metrics in Prometheus' text format."""
    text, kind = await pools.watch(request.app.state.metrics.text)
    return Response(text, media_type=kind)
