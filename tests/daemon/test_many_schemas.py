"""Answers under random schemas by a real daemon, 16 at a time, by the base and two adapters in turn."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("jsonschema_rs")

import httpx
import jsonschema_rs
from daemons import PATIENCE, Daemon, daemon
from hypothesis import HealthCheck, Phase, given, settings
from schemas import SCHEMAS
from tiny import write_tiny

from edgetune.data.dataset import load_rows
from edgetune.formats.bundle import open_bundle
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.training import run as train
from edgetune.training.config import TrainConfig

TOGETHER = 16
LONGEST = 1500  # tokens of an answer
ROWS = [{"prompt": f"turn {i}", "completion": f"the light {i}"} for i in range(8)]
CLOSING = 4.0  # added to the logits of what ends a string, a list, an object or the answer: noise would talk for ever


def random_schemas(count: int) -> list[Any]:
    """The same ones each time."""
    found: list[Any] = []

    @settings(max_examples=count, derandomize=True, database=None, phases=[Phase.generate], deadline=None,
              suppress_health_check=list(HealthCheck))
    @given(schema=SCHEMAS)
    def collect(schema: Any) -> None:
        found.append(schema)

    collect()
    return found[:count]


def add_adapters(running: Daemon, model: Path, folder: Path) -> list[str]:
    """Two that say other things than the base."""
    names = []
    for seed in (1, 2):
        data = load_rows(ROWS, Tokenizer(model), max_length=64)
        config = TrainConfig(steps=2, batch_size=4, max_length=64, threads=1, lr=0.05, seed=seed)
        train.run(open_bundle(model), data, folder / str(seed), config)
        adapter = running.service.adapters.add(f"job-{seed}", folder / str(seed), "s", {"passed": True, "reason": ""})
        names.append(adapter.id)
    return names


def closing(tokenizer: Tokenizer) -> dict[str, float]:
    """As logit_bias."""
    ids = [token for token in range(tokenizer.n_vocab)
           if tokenizer.is_end(token) or tokenizer.piece(token)[:1] in (b'"', b"]", b"}")]
    return {str(token): CLOSING for token in ids}


@pytest.mark.slow  # minutes
def test_a_thousand_answers_are_valid(tmp_path):
    model = write_tiny(tmp_path / "tiny.gguf", n_context=32768)
    schemas = random_schemas(1000)
    with daemon(model, tmp_path / "state", parallel=TOGETHER, context=32768) as running, httpx.Client(
            base_url=running.url, timeout=10 * PATIENCE) as client, ThreadPoolExecutor(TOGETHER) as pool:
        names = ["tiny", *add_adapters(running, model, tmp_path)]
        bias = closing(running.service.served.tokenizer)

        def ask(number: int) -> tuple[str, str]:
            """(what is said, and why it ended)"""
            body = {"model": names[number % 3], "messages": [{"role": "user", "content": f"turn {number % 7}"}],
                    "max_tokens": LONGEST, "temperature": (0.8, 1.0, 1.3)[number % 3], "seed": number,
                    "logit_bias": bias, "response_format": {"type": "json_schema", "json_schema": {
                        "name": "random", "schema": schemas[number]}}}
            said = client.post("/v1/chat/completions", json=body)
            assert said.status_code == 200, (schemas[number], said.text)
            choice, = said.json()["choices"]
            return choice["message"]["content"], choice["finish_reason"]

        answers = list(pool.map(ask, range(len(schemas))))
        together = running.service.batcher.facts()
    assert len(answers) == together["requests"] == 1000
    for schema, (said, finish) in zip(schemas, answers, strict=True):
        assert finish == "stop", (schema, said)
        jsonschema_rs.validator_for(schema, validate_formats=True).validate(json.loads(said))
    assert len({said for said, _ in answers}) > 500
