"""/metrics: the state of the service at the time of the request, and all requests with their seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...version import __version__
from ..service import Service

_TOTALS = {  # of Batcher.facts
    "requests": "Answers asked for.", "prompt_tokens": "Tokens of their prompts.",
    "cached_tokens": "Of those, tokens in a compiled prompt, or that an earlier answer had left in the cache.",
    "completion_tokens": "Tokens answered.",
}
_NOW = {
    "waiting": "Requests that wait for their turn.", "working": "Answers in progress.",
    "tokens_per_s": "Of the last answer, from its first token to its latest.",
    "cells_used": "Tokens in the cache.", "cells": "Tokens that the cache holds at most.",
}
_MEMORY = {
    "budget": "What the whole daemon may use, training included.",
    "used": "What the whole daemon uses, training included.",
    "available": "What this machine could still give to programs, the daemon or others.",
}
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """The metrics of one service, in a separate registry: an app may have others."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.registry = CollectorRegistry()
        self.requests = Counter("edgetune_http_requests", "Requests, by route and status.",
                                ("method", "route", "status"), registry=self.registry)
        self.first = Histogram("edgetune_http_first_byte_seconds", "From a request to the first bytes of its answer.",
                               ("route",), buckets=_SECONDS, registry=self.registry)
        self.registry.register(self)

    def text(self) -> tuple[bytes, str]:
        """(the text, its media type)"""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def describe(self) -> list[Any]:
        return []  # else the registry would collect at once, before the service has started

    def collect(self) -> Iterator[Any]:
        """Called by the registry at each scrape."""
        service = self.service
        device = service.device()
        yield gauge("info", "Version, model, and the active adapter.", 1, version=__version__, model=service.name,
                     adapter=service.adapters.serving or "")
        yield gauge("healthy", "1: ok, 0: degraded.", service.health()["status"] == "ok")
        for name, help in _MEMORY.items():
            yield gauge(f"memory_{name}_bytes", help, device["memory"][name])
        yield gauge("temperature_celsius", "The hottest zone that counts.", device["temperature"])
        for name, help in _TOTALS.items():
            counter = CounterMetricFamily(f"edgetune_{name}", help)
            counter.add_metric([], device["serving"][name])
            yield counter
        for name, help in _NOW.items():
            yield gauge(name, help, device["serving"][name])
        by_source = CounterMetricFamily("edgetune_answers", "Answers by who gave them.", labels=["source"])
        for source, count in device["answered"].items():
            by_source.add_metric([source], count)
        yield by_source
        statuses = service.store.read("SELECT status, count(*) AS n FROM jobs GROUP BY status")
        yield family("jobs", "Jobs by status.", "status", {row["status"]: row["n"] for row in statuses})
        yield family("feedback_rows", "Rows of feedback by state.", "state", service.feedback.counts())
        progress = (device["job"] or {}).get("progress") or {}
        yield gauge("training_judging", "1: the job that runs is trained, and being evaluated.",
                     progress.get("phase") == "judging" if progress else None)
        for name in ("step", "steps", "loss"):
            yield gauge(f"training_{name}", "Of the job that runs.", progress.get(name))
        yield gauge("training_judging_rows", "Rows that evaluate the job that runs.",
                     progress.get("judging"))
        yield gauge("training_judged_rows", "Of these, rows that were answered.", progress.get("judged"))
        for running in service.running.values():
            yield from running.metrics()
        speed = progress.get("tokens_per_s") if progress.get("phase") == "training" else None
        yield gauge("training_tokens_per_s", "Of the last step of the job that runs, while it trains.", speed)


class Counted:
    """Middleware that counts requests and times the first byte of answers."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.perf_counter()
        status = 500
        first = False

        async def watched(message: Message) -> None:
            nonlocal status, first
            if message["type"] == "http.response.start":
                status = message["status"]
            elif not first and message.get("body"):
                first = True
                self.metrics.first.labels(_route(scope)).observe(time.perf_counter() - start)
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            if scope["type"] == "http":
                self.metrics.requests.labels(scope["method"], _route(scope), str(status)).inc()


def _route(scope: Scope) -> str:
    """/v1/files/{file_id}, not each path: a label must not have more values than there are routes."""
    return getattr(scope.get("route"), "path", "none")


def gauge(name: str, help: str, value: Any, **labels: str) -> GaugeMetricFamily:
    """Returns one value, or none if it is not known."""
    found = GaugeMetricFamily(f"edgetune_{name}", help, labels=tuple(labels))
    if value is not None:
        found.add_metric(list(labels.values()), float(value))
    return found


def family(name: str, help: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    """Returns a value for each label."""
    found = GaugeMetricFamily(f"edgetune_{name}", help, labels=(label,))
    for key, value in values.items():
        found.add_metric([key], value)
    return found
