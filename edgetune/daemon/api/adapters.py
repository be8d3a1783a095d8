"""An adapter of a path, and its facts in an answer."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends

from ..service import Service
from ..state.adapters import Adapter
from .completions import TheService


def _id_of(adapter: str, service: TheService) -> str:
    return service.adapters.id_of(adapter)


AnAdapter = Annotated[str, Depends(_id_of)]  # in a path: an adapter's id, or what people call it


def adapter_object(adapter: Adapter, service: Service) -> dict[str, Any]:
    """Returns an adapter as the API describes it, with the facts of the daemon's parts."""
    served = service.served
    of_parts = [running.adapter(adapter.id) for running in service.running.values()]
    structured = adapter.id in served.adapters() and bool(served.grammar_of(adapter.id))
    return {**vars(adapter), "name": adapter.name or None, "structured": structured,
            "probation": service.probations.facts(adapter),
            **{name: fact for facts in of_parts for name, fact in facts.items()}}
