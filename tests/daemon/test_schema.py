"""The daemon's own OpenAPI: answers are as it says, by schemathesis; it and
docs/reference/http-api.md name the same fields."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from api_fields import ENDPOINTS, IGNORED, REFUSED, SUPPORTED
from daemons import daemon
from fastapi.openapi.utils import get_openapi
from hypothesis import HealthCheck, Phase, given, settings

from edgetune.daemon.api import app
from edgetune.objectives.base import objectives
from edgetune.training.config import FILE_OPTIONS, train_options

DAEMON = {"context": 256, "max_upload": 1}
MODES = ["positive", "negative"]
THEIRS = re.compile(r"\b(Input|List|String) should\b|after validation|\bvalid (string|number|integer|list|dictionary)|"
                    r"unable to|function-|literal\[|instance of", re.IGNORECASE)  # of pydantic


@pytest.fixture(scope="module")
def schema(running):
    import schemathesis

    return schemathesis.openapi.from_url(f"{running.url}/openapi.json", timeout=60)


def check(schema, mode, examples):
    """N requests to each operation, that fit the schema or do not. What is wrong is said in words of ours.

    Not checked: that all that fits the schema is accepted. No schema can say that a file of this id exists, or that a
    prompt has fewer tokens than the context.
    """
    from schemathesis import GenerationMode
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) == sum(len(route.methods) for route in app.routes() if route.include_in_schema)
    for operation in operations:
        if mode == "negative" and not (operation.query or operation.body):
            continue  # nothing can be wrong with it

        @settings(max_examples=examples, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
                  suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=GenerationMode(mode)))
        def answers(case):
            said = case.call_and_validate(excluded_checks=[positive_data_acceptance])
            assert said.status_code != 400 or not THEIRS.search(said.text), said.text

        answers()


@pytest.mark.dev
@pytest.mark.parametrize("mode", MODES)
def test_answers_are_as_the_schema_says(schema, mode):
    check(schema, mode, examples=2)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # minutes, many on a busy machine
@pytest.mark.parametrize("mode", MODES)
def test_many_answers_are_as_the_schema_says(schema, mode):
    check(schema, mode, examples=200)


@pytest.mark.slow
def test_others_are_answered_while_the_schema_is_made(model, tmp_path, monkeypatch):
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


def answer(endpoint, found):
    for key in endpoint.reads:
        found = found[key]
    return found


@pytest.mark.dev
@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.path)
def test_each_field_becomes_what_is_written(http, endpoint):
    plain = http.post(endpoint.path, json=endpoint.body)
    assert plain.status_code == 200, plain.text
    null = http.post(endpoint.path, json={field.name: None for field in endpoint.fields
                                            if field.becomes != REFUSED} | endpoint.body)
    assert null.status_code == 200, null.text  # null is absent
    assert answer(endpoint, null.json()) == answer(endpoint, plain.json())
    for name, field, body in endpoint.all():
        said = http.post(endpoint.path, json=body)
        if field.becomes == REFUSED:
            assert said.status_code == 400, (name, said.text)
            assert field.name in said.text, (name, said.text)
            continue
        assert said.status_code == 200, (name, said.text)
        if field.becomes == IGNORED:
            assert answer(endpoint, said.json()) == answer(endpoint, plain.json()), name


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.path)
def test_no_field_is_left_out(schema, endpoint):
    schema = schema.raw_schema
    shapes = schema["components"]["schemas"]

    def fields_of(part):
        return set(shapes[part["$ref"].rpartition("/")[2]]["properties"])

    body = schema["paths"][endpoint.path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    listed = {field.name: field.becomes for field in endpoint.fields}
    assert fields_of(body) <= listed.keys()
    assert {name for name, becomes in listed.items() if becomes in (SUPPORTED, IGNORED)} <= fields_of(body)
    if endpoint.within:
        inner = shapes[body["$ref"].rpartition("/")[2]]["properties"][endpoint.within]["anyOf"][0]
        assert {field.name for field in endpoint.inner} == fields_of(inner)


def test_the_schema_has_every_option_once_and_no_errors_of_fastapi(schema):
    schema = schema.raw_schema
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            assert not {"409", "500"} & set(operation["responses"]), path
            assert "HTTPValidationError" not in str(operation["responses"].get("422")), path
            assert {"400", "401", "403", "404", "413", "429", "507"} <= set(operation["responses"]), path
    options = schema["components"]["schemas"]["Hyperparameters"]["properties"]
    local = {name for name, spec in train_options().items() if spec.metadata["local"]}
    assert local
    assert not local & set(options)
    known = {name: spec.metadata["help"] for name, spec in train_options().items()
             if name not in FILE_OPTIONS and name not in local}
    for name, text in known.items():
        assert options[name]["description"] == text
    assert set(options) - set(known) == {"n_epochs", "learning_rate_multiplier", "family"}
    methods = set(schema["components"]["schemas"]["Method"]["properties"]) - {"type"}
    assert methods == {kind.method for kind in objectives().values() if not kind.needs_files}
