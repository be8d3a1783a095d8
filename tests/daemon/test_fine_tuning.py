"""Jobs in OpenAI's words."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("fastapi")

from services import open_service, upload

from edgetune.daemon.api.fine_tuning import job_object


@pytest.mark.parametrize(("asked", "rate", "told"), [
    ({"learning_rate_multiplier": 1.0}, 4e-3, 1.0), ({}, 4e-3, 1.0), ({"learning_rate_multiplier": "auto"}, 4e-3, 1.0),
    ({"learning_rate_multiplier": 3.0}, 12e-3, 3.0), ({"lr": 4e-3}, 4e-3, 2.0), ({"lr": "auto"}, "auto", 1.0)])
def test_the_multiplier_is_told_as_it_was_asked(tmp_path, asked, rate, told):
    service = open_service(tmp_path)
    service.train = replace(service.train, lr=4e-3)  # what jobs have otherwise; training's own is half of it
    with service:
        job = service.jobs.create("tiny", upload(service), hyperparameters={**asked, "steps": 1})
        assert job.config["lr"] == (rate if rate == "auto" else pytest.approx(rate))
        assert job_object(job)["hyperparameters"]["learning_rate_multiplier"] == pytest.approx(told)
