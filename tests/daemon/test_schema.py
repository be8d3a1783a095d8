"""schemathesis over the daemon's own OpenAPI: whatever is sent, what comes back is what the schema says, and no 500."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("fastapi")

import httpx
from daemons import daemon
from fastapi.openapi.utils import get_openapi
from hypothesis import HealthCheck, Phase, given, settings
from tiny import write_tiny

from edgetune.daemon.api import app

if TYPE_CHECKING:  # else every process that collects tests would take a second for it
    import schemathesis

OPERATIONS = 52
MODES = ["positive", "negative"]


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Iterator[schemathesis.schemas.BaseSchema]:
    schemathesis = pytest.importorskip("schemathesis")
    folder = tmp_path_factory.mktemp("schema")
    model = write_tiny(folder / "tiny.gguf", formats="Q8_0", n_context=64)
    with daemon(model, folder / "state", max_upload=1) as running:
        yield schemathesis.openapi.from_url(f"{running.url}/openapi.json", timeout=60)


def check(schema: schemathesis.schemas.BaseSchema, mode: str, examples: int) -> None:
    """So many requests to each operation, that fit the schema or do not.

    Not checked: that all that fits the schema is accepted. No schema can say that a file of this id exists, or that a
    prompt has fewer tokens than the context.
    """
    from schemathesis import GenerationMode
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) == OPERATIONS
    for operation in operations:
        if mode == "negative" and not (operation.query or operation.body):
            continue  # nothing can be wrong with it

        @settings(max_examples=examples, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
                  suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=GenerationMode(mode)))
        def answers(case: schemathesis.Case) -> None:
            case.call_and_validate(excluded_checks=[positive_data_acceptance])

        answers()


@pytest.mark.parametrize("mode", MODES)
def test_answers_are_as_the_schema_says(schema, mode):
    check(schema, mode, examples=4)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_many_answers_are_as_the_schema_says(schema, mode):
    check(schema, mode, examples=200)


@pytest.mark.slow
def test_others_are_answered_while_the_schema_is_made(tmp_path, monkeypatch):
    """It takes seconds on a small board, and is made when somebody asks for it, not at the start or at a wrong path."""
    asked = threading.Event()
    go_on = threading.Event()
    made = []

    def slowly(**given):
        made.append(given["title"])
        asked.set()
        assert go_on.wait(60)
        return get_openapi(**given)

    monkeypatch.setattr(app, "get_openapi", slowly)
    model = write_tiny(tmp_path / "tiny.gguf", formats="Q8_0", n_context=64)
    with daemon(model, tmp_path / "state") as running, ThreadPoolExecutor(2) as pool:
        assert httpx.patch(f"{running.url}/v1/files", timeout=60).headers["Allow"] == "GET, POST"
        assert httpx.get(f"{running.url}/nowhere", timeout=60).status_code == 404
        assert not made
        pages = [pool.submit(httpx.get, f"{running.url}/openapi.json", timeout=60) for _ in range(2)]
        assert asked.wait(60)
        assert httpx.get(f"{running.url}/healthz", timeout=60).status_code == 200
        go_on.set()
        assert all(page.result().status_code == 200 for page in pages)
    assert len(made) == 1
