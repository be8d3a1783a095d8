"""What docs/reference/http-api.md shows: each request, told to tiny models, is answered as the page says."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

import pytest

pytest.importorskip("fastapi")

from api_examples import CUT, ERROR, read_examples, told
from daemons import CHAT, daemon
from encoder_daemon import write_tiny_encoder
from fastapi.openapi.utils import get_openapi
from httpx import Client
from indexes import needs_retrieval
from jsonschema import Draft202012Validator
from services import same_holdout
from thread_workers import ThreadWorker
from tiny import write_tiny

from edgetune.daemon.api.app import routes

EXAMPLES = read_examples()
WHOLE = get_openapi(title="", version="", routes=routes())
TOOLS = Path(__file__).parents[2] / "docs" / "tools"
MOST_LINES = 12


def operation(route):
    method, path = route.split()
    return WHOLE["paths"][path][method.lower()]


def schema_of(part, kind="application/json"):
    return part.get("content", {}).get(kind, {}).get("schema")


def refuse(value, schema):
    """Raises ValidationError for what is not of a schema."""
    Draft202012Validator({"components": WHOLE["components"], **schema}).validate(value)


def without(value, name):
    """A schema without this field, or JSON without what stands for what is left out."""
    if isinstance(value, Mapping):
        return {key: without(one, name) for key, one in value.items() if key != name}
    return [without(one, name) for one in value if one != name] if isinstance(value, list) else value


def same_shape(shown, said, place="answer"):
    """Whether all that is shown is said, with values of the same kind; null is shown for what may be null."""
    if isinstance(shown, dict):
        assert isinstance(said, dict), place
        for name in shown.keys() - {CUT}:
            assert name in said, f"{place}.{name}"
            same_shape(shown[name], said[name], f"{place}.{name}")
    elif isinstance(shown, list):
        assert isinstance(said, list), place
        if shown and said:
            same_shape(shown[0], said[0], f"{place}[0]")
    elif shown is not None and said is not None:
        kinds = (int, float) if isinstance(shown, int | float) and not isinstance(shown, bool) else type(shown)
        assert isinstance(said, kinds), f"{place} is {said!r}"


def test_every_route_has_an_example():
    every = {f"{method.upper()} {path}" for path, found in WHOLE["paths"].items() for method in found}
    assert {example.route for example in EXAMPLES} == every


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{example.route} {example.what}".strip())
def test_an_example_is_valid_by_the_schema(example, monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    import api_schema
    found = operation(example.route)
    if example.body is not None:
        refuse(example.body, schema_of(found["requestBody"]))
    if example.form:
        form = schema_of(found["requestBody"], "multipart/form-data")
        refuse(example.form, without(form, "format"))
    answer = schema_of(found["responses"]["200"])
    if example.answer is None:
        assert example.to or not answer
    else:
        loose = without(WHOLE["components"], "required")
        Draft202012Validator({"components": loose, **answer}).validate(without(example.answer, CUT))
        assert len(api_schema.pretty(example.answer)) <= MOST_LINES


@pytest.fixture(scope="module")
def telling(tmp_path_factory):
    """[(examples that are kept in a file, those of tiny models, their whole answers)]"""
    needs_retrieval()
    folder = tmp_path_factory.mktemp("examples")
    write_tiny(folder / "model.gguf", formats="Q8_0", n_context=1024)
    write_tiny_encoder(folder / "minilm")

    @contextmanager
    def serve(model, **options):
        state = Path(mkdtemp(prefix="state-", dir=folder))
        same_holdout(state)
        with daemon(model, state, start_process=ThreadWorker, **options) as running:
            yield running.url

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_STATE_HOME", str(folder / "home"))
        return [(read_examples([file]), examples, answers) for file, examples, answers in told(folder, serve)]


@pytest.mark.dev
def test_all_that_is_told_is_shown(telling):
    for shown, said, _ in telling:
        assert [example.route for example in shown] == [example.route for example in said]


@pytest.mark.dev
def test_the_answers_are_of_the_same_form(telling):
    for shown, said, answers in telling:
        for example, same, answer in zip(shown, said, answers, strict=True):
            if example.answer is not None:
                same_shape(example.answer, answer, example.route)
                refuse(answer, schema_of(operation(example.route)["responses"]["200"]))
            assert (example.what, example.to, example.form) == (same.what, same.to, same.form)
            same_shape(example.body, same.body, example.route)


def test_the_error_is_one(tmp_path):
    model = write_tiny(tmp_path / "model.gguf", formats="Q8_0", n_context=256)
    with daemon(model, tmp_path / "state") as running, Client(base_url=running.url) as client:
        said = client.post(CHAT, json={})
    assert said.status_code == 400
    same_shape(ERROR, said.json())
    assert {**ERROR["error"], "message": ""} == {**said.json()["error"], "message": ""}


def test_every_route_and_every_field_is_described():
    """By a sentence; a value that is always the same says itself what it is."""
    for path, operations in WHOLE["paths"].items():
        for method, found in operations.items():
            assert found.get("description"), f"{method} {path}"
            for query in found.get("parameters", []):
                assert query["in"] == "path" or query.get("description"), f"{method} {path}?{query['name']}"
    for name, schema in WHOLE["components"]["schemas"].items():
        if name in ("HTTPValidationError", "ValidationError"):
            continue
        for field, one in schema.get("properties", {}).items():
            assert one.get("description") or "const" in one or one.get("type") == "null", f"{name}.{field}"
