"""What docs/api.md says of the fields of requests, asked of a daemon: each field once, and no field is left out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

import httpx
from api_fields import ENDPOINTS, IGNORED, REFUSED, SUPPORTED, Endpoint
from daemons import PATIENCE, daemon
from tiny import write_tiny


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder: Path = tmp_path_factory.mktemp("fields")
    model = write_tiny(folder / "tiny.gguf", formats="Q8_0", n_context=512)
    with daemon(model, folder / "state", context=256) as running, httpx.Client(
            base_url=running.url, timeout=PATIENCE) as made:
        yield made


def answer(endpoint: Endpoint, found: Any) -> Any:
    for key in endpoint.reads:
        found = found[key]
    return found


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.path)
def test_each_field_becomes_what_is_written(client, endpoint):
    plain = client.post(endpoint.path, json=endpoint.body)
    assert plain.status_code == 200, plain.text
    null = client.post(endpoint.path, json={field.name: None for field in endpoint.fields
                                            if field.becomes != REFUSED} | endpoint.body)
    assert null.status_code == 200, null.text  # null is absent
    assert answer(endpoint, null.json()) == answer(endpoint, plain.json())
    for name, field, body in endpoint.all():
        said = client.post(endpoint.path, json=body)
        if field.becomes == REFUSED:
            assert said.status_code == 400, (name, said.text)
            assert field.name in said.text, (name, said.text)
            continue
        assert said.status_code == 200, (name, said.text)
        if field.becomes == IGNORED:
            assert answer(endpoint, said.json()) == answer(endpoint, plain.json()), name


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.path)
def test_no_field_is_left_out(client, endpoint):
    schema = client.get("/openapi.json").json()
    shapes = schema["components"]["schemas"]

    def fields_of(part: dict[str, Any]) -> set[str]:
        return set(shapes[part["$ref"].rpartition("/")[2]]["properties"])

    body = schema["paths"][endpoint.path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    listed = {field.name: field.becomes for field in endpoint.fields}
    assert fields_of(body) <= listed.keys()
    assert {name for name, becomes in listed.items() if becomes in (SUPPORTED, IGNORED)} <= fields_of(body)
    if endpoint.within:
        inner = shapes[body["$ref"].rpartition("/")[2]]["properties"][endpoint.within]["anyOf"][0]
        assert {field.name for field in endpoint.inner} == fields_of(inner)
