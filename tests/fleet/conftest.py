"""Devices of secret rounds that compute in the process of the test."""

import json

import pytest


@pytest.fixture(autouse=True)
def devices_mask_and_reveal_here(request, monkeypatch):
    """By the same messages: another process takes 20 times as long to start. test_secret_rounds.py has it, and so has
    all that is started as a program.
    """
    if request.path.name != "test_secret_rounds.py":
        def here(said):
            from edgetune.fleet.secret import called
            return json.loads(json.dumps(called.answer(said)))

        monkeypatch.setattr("edgetune.fleet.secret.aside._by_process", here)
