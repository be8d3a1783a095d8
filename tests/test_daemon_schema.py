"""schemathesis over the daemon's own OpenAPI: whatever is sent, what comes back is what the schema says, and no 500."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("schemathesis")

import schemathesis
from daemons import Daemon, daemon
from hypothesis import HealthCheck, Phase, settings
from tiny import write_tiny

# Not checked: that all that fits the schema is accepted. No schema can say that a file of this id exists, or that a
# prompt has fewer tokens than the context.
LEFT_OUT = [schemathesis.checks.CHECKS.get_one("positive_data_acceptance")]
GIVEN = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck),
         "phases": [Phase.explicit, Phase.generate]}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("schema")
    model = write_tiny(folder / "tiny.gguf", formats="Q8_0", n_context=64)
    with daemon(model, folder / "state", max_upload=1) as made:
        yield made


@pytest.fixture(scope="module")
def api(running: Daemon) -> object:
    return schemathesis.openapi.from_url(f"{running.url}/openapi.json")


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@settings(max_examples=10, **GIVEN)
def test_answers_are_as_the_schema_says(case):
    case.call_and_validate(excluded_checks=LEFT_OUT)


@pytest.mark.slow
@schema.parametrize()
@settings(max_examples=300, **GIVEN)
def test_many_answers_are_as_the_schema_says(case):
    case.call_and_validate(excluded_checks=LEFT_OUT)
