"""schemathesis over the daemon's own OpenAPI: whatever is sent, what comes back is what the schema says, and no 500."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("fastapi")

from daemons import daemon
from hypothesis import HealthCheck, Phase, given, settings
from tiny import write_tiny

if TYPE_CHECKING:  # else every process that collects tests would take a second for it
    import schemathesis

OPERATIONS = 53
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
