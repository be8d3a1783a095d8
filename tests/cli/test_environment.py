"""Options of the daemon from environment variables and from a file."""

import json
from dataclasses import fields

import pytest
from commands import run
from tiny import write_tiny

from edgetune.daemon.options import DaemonConfig
from edgetune.machine.policy import Policy


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Starts `edgetune serve` as far as its options: (model, config, policy) of each daemon."""
    found = []
    monkeypatch.setattr("edgetune.daemon.service.Service", lambda *given: found.append(given))
    monkeypatch.setattr("edgetune.daemon.server.run", lambda *_, **__: None)
    monkeypatch.setattr("edgetune.daemon.memory.keep_little", lambda: None)  # of this process, which goes on
    write_tiny(tmp_path / "model.gguf", formats="Q8_0", n_blocks=1, d_model=32, d_ff=64)
    return found


def test_the_environment_sets_options_and_the_command_line_wins(started, tmp_path, monkeypatch):
    for name, value in {"MODEL": tmp_path / "model.gguf", "MEMORY": "500M", "PORT": "9000", "LOG_PROMPTS": "true",
                        "RECALL": "0", "REPLAY": "0.5", "MAX_TEMP": "75", "QUIET_HOURS": "08:00-22:00",
                        "STATE": ""}.items():
        monkeypatch.setenv(f"EDGETUNE_DAEMON_{name}", str(value))
    run("serve", "--port", 9001)
    [(model, config, policy)] = started
    assert model == tmp_path / "model.gguf"
    assert config == DaemonConfig(memory="500M", port=9001, log_prompts=True, recall=False, replay=0.5)
    assert (policy.max_temp, policy.quiet_hours) == (75.0, "08:00-22:00")


def test_it_wins_over_files(started, tmp_path, monkeypatch):
    (tmp_path / "policy.toml").write_text("max-temp = 70\nmin-free = 200\n")
    (tmp_path / "daemon.toml").write_text(f'model = "{tmp_path / "model.gguf"}"\nport = 9000\nparallel = 2\n'
                                          f'policy = "{tmp_path / "policy.toml"}"\n')
    monkeypatch.setenv("EDGETUNE_DAEMON_PORT", "9001")
    monkeypatch.setenv("EDGETUNE_DAEMON_MAX_TEMP", "75")
    run("serve", "--config", tmp_path / "daemon.toml")
    [(_, config, policy)] = started
    assert (config.port, config.parallel) == (9001, 2)
    assert (policy.max_temp, policy.min_free) == (75.0, 200)


@pytest.mark.parametrize(("name", "value"), [("PORT", "http"), ("PORT", "99999"), ("MEMORY", "lots"), ("RECALL", "?"),
                                             ("LEARN", "never"), ("QUIET_HOURS", "nights"), ("CANARY_RISE", "5")])
def test_a_bad_value_is_refused_by_the_name_of_its_variable(started, tmp_path, monkeypatch, name, value):
    monkeypatch.setenv(f"EDGETUNE_DAEMON_{name}", value)
    said = run("serve", tmp_path / "model.gguf", code=2)
    assert f"EDGETUNE_DAEMON_{name}" in said
    assert value in said
    assert not started


def test_a_bad_value_that_is_typed_is_not_the_variables(started, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGETUNE_DAEMON_PORT", "9000")
    assert "EDGETUNE" not in run("serve", tmp_path / "model.gguf", "--port", 99999, code=2)
    assert not started


def test_help_has_the_variable_of_each_option():
    text = " ".join(run("serve", "--help-all").split())
    for spec in [*fields(DaemonConfig), *fields(Policy)]:
        assert f"EDGETUNE_DAEMON_{spec.name.upper()}" in text or spec.name == "nice"


def test_clients_and_services_have_none(monkeypatch, on_disk):
    """A service is started by systemd, and its options are in its unit."""
    write_tiny(on_disk / "model.gguf", formats="Q8_0", n_blocks=1, d_model=32, d_ff=64)
    monkeypatch.setenv("EDGETUNE_DAEMON_PORT", "9000")
    (on_disk / "daemon.toml").write_text("parallel = 2\n")
    unit = json.loads(run("service", "install", on_disk / "model.gguf", "--print", "--config",
                          on_disk / "daemon.toml", "--json"))["unit"]
    assert "--parallel 2" in unit
    assert "9000" not in unit
