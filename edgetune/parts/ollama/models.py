"""Ollama's /api/tags, /api/show, /api/ps, /api/pull and /api/version: the models that answer, and their details."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import StreamingResponse

from ...daemon.api.completions import TheService
from ...daemon.api.security import needs
from ...daemon.api.shapes import Answer, Body
from ...daemon.keys import KeyScope
from ...daemon.service import Service
from ...daemon.state.adapters import LATEST
from ...errors import NotFoundError
from ...formats.gguf import Gguf
from ...serving.embedding import EncoderFile, TableFile
from .bodies import BASE, named
from .routes import ERRORS, LINES, AnyTypeRoute

SPOKEN = "0.12.0"  # the version of Ollama whose calls these are: clients ask for a least one
FOREVER = "9999-12-31T23:59:59Z"
router = APIRouter(route_class=AnyTypeRoute, responses=ERRORS)


class Details(Answer):
    """What a model is made of."""

    parent_model: str = Field(description="The base of an adapter, NAME:base; else empty.")
    format: str = Field("gguf", description="The format of its file.")
    family: str = Field(description="Its architecture, such as llama.")
    families: list[str] = Field(description="The same, in a list.")
    parameter_size: str = Field(description="Its parameters, such as 134.52M.")
    quantization_level: str = Field(description="The format of most of its weights, such as Q4_1.")


class OllamaTag(Answer):
    """A model of the list."""

    name: str = Field(description="Its name with a tag.")
    model: str = Field(description="The same.")
    modified_at: str = Field(description="When its file changed, or the adapter was made (RFC 3339).")
    size: int = Field(description="Bytes of the model's file.")
    digest: str = Field(description="The base's SHA-256; of an adapter a hash of that and its name.")
    details: Details = Field(description="What it is made of.")


class OllamaTags(Answer):
    """The models."""

    models: list[OllamaTag] = Field(description="All that answer.")


class Loaded(OllamaTag):
    """A model that is loaded."""

    expires_at: str = Field(FOREVER, description="When it will be unloaded: never.")
    size_vram: int = Field(0, description="Always 0: a CPU answers.")
    context_length: int = Field(description="Tokens of prompt and answer at most.")


class Processes(Answer):
    """The models that are loaded."""

    models: list[Loaded] = Field(description="All that answer.")


class ShowBody(Body):
    """The model to show."""

    model: str | None = Field(None, description="A name of /api/tags.")
    name: str | None = Field(None, description="The older name of model.")
    verbose: bool | None = Field(None, description="true: also lists of the file's metadata, not its vocabulary.")


class Shown(Answer):
    """A model."""

    modelfile: str = Field(description="FROM and the base's name.")
    parameters: str = Field(description="Sampling by default: temperature 0.")
    template: str = Field(description="Its chat template.")
    details: Details = Field(description="What it is made of.")
    model_info: dict[str, Any] = Field(description="The file's metadata.")
    capabilities: list[str] = Field(description="completion, tools, thinking, embedding.")
    modified_at: str = Field(description="When its file changed, or the adapter was made (RFC 3339).")


class PullBody(Body):
    """The model to have."""

    model: str | None = Field(None, description="A name of /api/tags.")
    name: str | None = Field(None, description="The older name of model.")
    insecure: bool | None = Field(None, description="Taken and not used: nothing is fetched.")
    stream: bool | None = Field(None, description="true, the default: a line of JSON for each step.")


class PullStep(Answer):
    """A step of what a model needs to be here."""

    status: str = Field(description="success: it is here.")
    digest: str | None = Field(None, description="That of /api/tags.")
    total: int | None = Field(None, description="Bytes of its file.")
    completed: int | None = Field(None, description="The same: all of them are here.")


@router.head("/api/version", response_model=dict[str, str], include_in_schema=False)
@router.get("/api/version", response_model=dict[str, str])
@needs(KeyScope.ANSWER)
def ollama_version() -> Any:
    """Returns the version of Ollama whose calls these are."""
    return {"version": SPOKEN}


@router.head("/api/tags", response_model=OllamaTags, include_in_schema=False)
@router.get("/api/tags", response_model=OllamaTags)
@needs(KeyScope.ANSWER)
def ollama_tags(service: TheService) -> Any:
    """Lists NAME:latest with the active adapter, NAME:base without, every adapter, and the model of --embeddings."""
    return {"models": _tags(service)}


@router.get("/api/ps", response_model=Processes)
@needs(KeyScope.ANSWER)
def ollama_ps(service: TheService) -> Any:
    """Lists the same models: all of them stay loaded."""
    tags = _tags(service)
    for tag in tags:
        encoder = _encoder(service, tag["name"])
        tag["context_length"] = encoder.embedder.size if encoder else service.served.context
    return {"models": tags}


@router.post("/api/show", response_model=Shown)
@needs(KeyScope.ANSWER)
def ollama_show(body: ShowBody, service: TheService) -> Any:
    """Returns a model's chat template, what it can do, and the file's metadata."""
    name, tag = _found(service, body.model or body.name or "")
    encoder = _encoder(service, name)
    served = service.served
    template = "" if encoder else served.chat_template
    able = ["embedding"] if encoder else ["completion", *(["tools"] if served.calls_tools else []),
                                          *(["thinking"] if served.thinks else []),
                                          *([] if served.writes else ["embedding"])]
    root = name if encoder else service.name + BASE
    gguf = encoder.gguf if encoder else service.bundle.gguf
    return {"modelfile": f"FROM {root}\n", "parameters": "" if encoder else "temperature 0", "template": template,
            "details": tag["details"], "model_info": _facts(gguf, bool(body.verbose)),
            "capabilities": able, "modified_at": tag["modified_at"]}


@router.post("/api/pull", response_model=PullStep, response_model_exclude_none=True, responses={
    200: {"description": "success; without stream false lines of the steps.", "content": {LINES: {}}}})
@needs(KeyScope.ANSWER)
def ollama_pull(body: PullBody, service: TheService) -> Any:
    """Says that a model is here, as Ollama does of one that it has. Nothing is fetched."""
    _, tag = _found(service, body.model or body.name or "")
    if body.stream is False:
        return {"status": "success"}
    return StreamingResponse((json.dumps(step) + "\n" for step in _steps(tag)), media_type=LINES)


def _steps(tag: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What Ollama says of a model that it has."""
    yield {"status": "pulling manifest"}
    yield {"status": f"pulling {tag['digest'][:12]}", "digest": f"sha256:{tag['digest']}", "total": tag["size"],
           "completed": tag["size"]}
    for status in ("verifying sha256 digest", "writing manifest", "success"):
        yield {"status": status}


def _found(service: Service, asked: str) -> tuple[str, dict[str, Any]]:
    """(a model's name here, its entry of the list). Raises NotFoundError."""
    name = named(service, asked)
    tag = next((tag for tag in _tags(service) if named(service, tag["name"]) == name), None)
    if tag is None:
        raise NotFoundError(f"there is no model {asked!r:.200}", "/api/tags lists those that exist")
    return name, tag


def _encoder(service: Service, name: str) -> EncoderFile | TableFile | None:
    """The encoder, if the name is that of the file of --embeddings."""
    return service.embeddings.encoder if name.removesuffix(LATEST) == service.embeddings.name else None


def _tags(service: Service) -> list[dict[str, Any]]:
    made = _changed(service.path)
    names = [(service.name + LATEST, made), (service.name + BASE, made)]
    for adapter in service.adapters.list():
        names += [(name, adapter.created_at) for name in (adapter.id, adapter.name) if name]
    names += [(name, made) for name in service.choosing()]
    if service.embeddings.file:
        names.append((service.embeddings.name + LATEST, _changed(service.embeddings.file)))
    digest = service.bundle.fingerprint.removeprefix("sha256:")
    return [_tag(service, name, at, digest) for name, at in names]


def _tag(service: Service, name: str, at: int, digest: str) -> dict[str, Any]:
    """An entry of the list. digest: that of the base; models that share its weights get a hash of it and their name."""
    encoder = _encoder(service, name)
    gguf = encoder.gguf if encoder else service.bundle.gguf
    alone = name.endswith(BASE) or encoder
    return {"name": name, "model": name, "modified_at": _time(at), "size": int(gguf.data.nbytes),
            "digest": digest if name.endswith(BASE) else hashlib.sha256(f"{digest} {name}".encode()).hexdigest(),
            "details": _details(gguf) | {"parent_model": "" if alone else service.name + BASE}}


def _changed(path: Path) -> int:
    return int(path.stat().st_mtime) if path.exists() else 0


def _details(gguf: Gguf) -> dict[str, Any]:
    formats: Counter[str] = Counter()
    for tensor in gguf.tensors.values():
        formats[tensor.format] += math.prod(tensor.shape)
    count = sum(formats.values())
    size = f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.2f}M"
    return {"family": gguf.architecture, "families": [gguf.architecture], "parameter_size": size,
            "quantization_level": formats.most_common(1)[0][0]}


def _facts(gguf: Gguf, verbose: bool) -> dict[str, Any]:
    """Metadata of the file, as Ollama names it; the vocabulary is left out."""
    facts: dict[str, Any] = {"general.parameter_count": sum(math.prod(t.shape) for t in gguf.tensors.values())}
    for key in gguf.metadata:
        is_list = gguf.metadata.type(key).startswith("[")
        if not key.startswith("tokenizer.") and (verbose or not is_list):
            facts[key] = gguf.metadata[key]
    return {key: value for key, value in facts.items() if _is_json(value)}


def _is_json(value: object) -> bool:
    """Returns whether JSON can express a value: its numbers are finite, and its text is UTF-8."""
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except ValueError:
        return False
    return True


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat().replace("+00:00", "Z")
