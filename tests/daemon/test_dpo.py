"""A job of OpenAI's method dpo, by the official client: its rows, its hyperparameters, and how the gate judges it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("openai")

import openai
from daemons import PATIENCE, daemon, openai_client
from tiny import write_tiny

from edgetune.daemon.jobs.decide import Findings, decide
from edgetune.daemon.jobs.exam import Score
from edgetune.daemon.jobs.recipe import check_judgeable
from edgetune.errors import DataError
from edgetune.training.config import TrainConfig

TRAIN = TrainConfig(rank=8, batch_size=4, max_length=64, threads=1, steps=30)
ROWS = [{"input": {"messages": [{"role": "user", "content": f"set the light {i}"}], "tools": [],
                   "parallel_tool_calls": True},
         "preferred_output": [{"role": "assistant", "content": "on"}],
         "non_preferred_output": [{"role": "assistant", "content": "the turn"}]} for i in range(24)]
ANSWERS = [{"messages": [*row["input"]["messages"], *row["preferred_output"]]} for row in ROWS[:5]]  # type: ignore[index]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    folder = tmp_path_factory.mktemp("dpo")
    model = write_tiny(folder / "Tiny.gguf", formats="Q8_0", n_context=128)
    with daemon(model, folder / "state", train=TRAIN) as running, openai_client(running.url, "none") as made:
        yield made


def created(client: openai.OpenAI, rows: list[dict[str, Any]], hyperparameters: dict[str, Any], folder: Path) -> Any:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = client.files.create(file=path, purpose="fine-tune")
    return client.fine_tuning.jobs.create(model="tiny", training_file=file.id, method={
        "type": "dpo", "dpo": {"hyperparameters": hyperparameters}})


def test_a_job_learns_pairs_and_is_judged_by_them(client: openai.OpenAI, tmp_path: Path) -> None:
    given = {"beta": 0.5, "n_epochs": 6, "batch_size": 4, "learning_rate_multiplier": 40}
    job = created(client, ROWS, given, tmp_path)
    until = time.monotonic() + PATIENCE
    while job.status not in ("succeeded", "failed") and time.monotonic() < until:
        time.sleep(0.1)
        job = client.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "succeeded", job.error
    assert job.method.type == "dpo"
    asked = job.method.dpo.hyperparameters
    assert (asked.beta, asked.n_epochs, asked.batch_size, asked.learning_rate_multiplier) == (0.5, 6, 4, 40)
    events = client.fine_tuning.jobs.list_events(job.id, limit=100).data
    metrics = [event.data for event in events if event.type == "metrics" and "metrics" in (event.data or {})]
    assert {"rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen",
            "logps/rejected"} == set(metrics[0]["metrics"])
    assert metrics[0]["metrics"]["rewards/accuracies"] == 1  # the newest
    assert any(" better, " in event.message for event in events), [event.message for event in events]
    assert client.fine_tuning.jobs.checkpoints.list(job.id).data  # the loss of the pairs that were held out
    columns = client.files.content(job.result_files[0]).text.splitlines()[0].split(",")
    assert {"valid_loss", "rewards/accuracies", "eval_rewards/margins"} < set(columns)


def test_numbers_may_be_auto(client: openai.OpenAI, tmp_path: Path) -> None:
    given = dict.fromkeys(("beta", "n_epochs", "batch_size", "learning_rate_multiplier"), "auto")
    job = created(client, ROWS, given, tmp_path)
    asked = job.method.dpo.hyperparameters
    assert (asked.beta, asked.learning_rate_multiplier, asked.lr) == (0.1, 1, 2e-4)
    client.fine_tuning.jobs.cancel(job.id)
    with pytest.raises(openai.BadRequestError, match="beta"):
        created(client, ROWS, {"beta": "much"}, tmp_path)


def test_what_the_gate_can_judge_by() -> None:
    check_judgeable(ROWS[0])
    check_judgeable(ANSWERS[0])
    with pytest.raises(DataError, match=r"label false.*; name a validation file"):
        check_judgeable({"prompt": "a", "completion": "b", "label": False})
    with pytest.raises(DataError, match=r"cannot be held out, chosen and rejected are the same"):
        check_judgeable({"prompt": "a", "chosen": "b", "rejected": "b"})


def test_a_verdict_on_pairs_says_so() -> None:
    def scores(right: int) -> list[Score]:
        return [Score(0.3 if i < right else 1.2, i < right, pair=True) for i in range(12)]

    better = decide(Findings(scores(4), scores(11)))
    assert better.passed
    assert better.reason.startswith("11 of 12 validation examples are told apart rightly, 4 before")
    assert not decide(Findings(scores(11), scores(4))).passed
