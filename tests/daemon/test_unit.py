"""The systemd unit: it starts what was asked for, sees no more than it needs, and systemd accepts it."""

import re
import shlex
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import psutil
import pytest
from commands import run
from tiny import write_tiny

from edgetune.cli import cli
from edgetune.daemon import unit
from edgetune.daemon.api.connections import MOST
from edgetune.daemon.keys import add_key
from edgetune.daemon.options import DaemonConfig
from edgetune.errors import EdgetuneError, UsageError
from edgetune.machine.policy import Policy

POLICY = Policy(nice=19)
ODD = 'a model of 100% "$HOME".gguf'
analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


@pytest.fixture
def tmp_path(on_disk):
    """In /tmp, of which a service has another one. Those of pytest may be where only this user reads."""
    return Path(tempfile.mkdtemp(dir=on_disk))


@pytest.fixture(scope="module")
def model(on_disk):
    path = write_tiny(on_disk / ODD, formats="Q8_0")
    try:
        unit.unit(path, DaemonConfig(), POLICY)
    except UsageError as error:
        pytest.skip(f"this Python is not for all users: {error}")
    return path


def values(text, name):
    return re.findall(rf"^{name}=(.*)$", text, re.M)


def words(text):
    """ExecStart as systemd splits it."""
    return [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(values(text, "ExecStart")[0])]


def test_options_and_the_budget_are_those_that_were_given_and_the_limit_lies_above_it(model):
    config = DaemonConfig(memory="300M", port=9000, learn="nightly", learn_hours="02:00-04:00", log_prompts=True)
    policy = Policy(nice=19, max_temp=71.5, govern=False, quiet_hours="08:00-22:00")
    python, *called = words(unit.unit(model, config, policy))
    assert subprocess.run([python, "-c", "import numpy"]).returncode == 0
    assert called[:3] == ["-m", "edgetune", "serve"]
    params = cli.get_command(None, "serve").make_context("serve", called[3:]).params
    assert params.pop("model") == model
    assert {name: params[name] for name in vars(config)} == vars(config)
    assert {name: params[name] for name in vars(policy) if name != "nice"} == {
        name: value for name, value in vars(policy).items() if name != "nice"}
    total = psutil.virtual_memory().total >> 20
    for asked, check in (("300M", lambda n: n == 300), ("10%", lambda n: n > 10), ("20%", lambda n: n > 10)):
        text = unit.unit(model, DaemonConfig(memory=asked), POLICY)
        budget = int(re.search(r"--memory (\d+)M", text)[1])
        assert check(budget)
        (limit,) = values(text, "MemoryMax")
        assert int(limit.removesuffix("M")) == budget * 3 // 2
    (limit,) = values(unit.unit(model, DaemonConfig(memory="100%"), POLICY), "MemoryMax")
    assert int(limit.removesuffix("M")) <= total  # a limit above it would be none
    (descriptors,) = values(text, "LimitNOFILE")
    assert int(descriptors) >= 2 * MOST


def test_a_model_in_a_home_is_bound_and_must_be_readable(model, tmp_path, monkeypatch):
    """So must a grader, which is named by its whole path."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)  # as homes are: the service never sees this folder
    path = Path(shutil.copy(model, home / "m.gguf"))
    (home / "link.gguf").symlink_to(path)
    binds = values(unit.unit(home / "link.gguf", DaemonConfig(), POLICY), "BindReadOnlyPaths")
    assert {str(path), str(home / "link.gguf")} <= set(binds)
    assert str(home) not in binds
    grader = tmp_path / "grader.json"
    grader.write_text("{}")
    graded = DaemonConfig(learn_method="grpo", learn_grader=str(grader))
    assert f"--learn-method grpo --learn-grader {grader}" in unit.unit(model, graded, POLICY)
    for named, config, file in ((path, DaemonConfig(), path), (model, graded, grader)):
        file.chmod(0o600)
        with pytest.raises(UsageError, match=rf"{file.name} is not open to all users \(mode 600\).*chmod o\+rX"):
            unit.unit(named, config, POLICY)
    path.chmod(0o644)
    monkeypatch.setattr(unit, "_HIDDEN", ())  # so that the service sees the home
    with pytest.raises(UsageError, match="is not open to all users"):
        unit.unit(path, DaemonConfig(), POLICY)


def test_keys_are_read_by_systemd(model, tmp_path):
    config = DaemonConfig(host="0.0.0.0", key_file=str(tmp_path / "keys"))
    with pytest.raises(UsageError, match="cannot read the key file"):
        unit.unit(model, config, POLICY)
    add_key(tmp_path / "keys", "phone")
    text = unit.unit(model, config, POLICY)
    assert values(text, "LoadCredential") == [f"keys:{tmp_path / 'keys'}"]
    assert words(text)[-2:] == ["--key-file", "${CREDENTIALS_DIRECTORY}/keys"]
    assert str(tmp_path) not in " ".join(values(text, "BindReadOnlyPaths"))
    assert values(text, "After") == ["network-online.target"]
    assert not values(text, "IPAddressDeny")
    assert values(unit.unit(model, DaemonConfig(), POLICY), "IPAddressAllow") == ["localhost"]
    text = unit.unit(model, DaemonConfig(socket="/run/edgetune/socket"), POLICY)
    assert values(text, "PrivateNetwork") == ["yes"]
    assert values(text, "RestrictAddressFamilies") == ["AF_UNIX"]
    assert values(text, "RuntimeDirectory") == ["edgetune"]


def test_what_a_service_cannot_do_is_refused_and_what_lies_with_root_is_reached(model):
    for options, match in (({"state": "/srv/state"}, "state is /srv/state"),
                           ({"socket": "/tmp/socket"}, "socket is /tmp/socket"),
                           ({"canary": "/nowhere.txt"}, "nowhere.txt"), ({"memory": "much"}, "memory is")):
        with pytest.raises(UsageError, match=match):
            unit.unit(model, DaemonConfig(**options), POLICY)
    assert list(unit._binds([Path("/root/venv")])) == ["TemporaryFileSystem=/root:ro,mode=755",
                                                       "BindReadOnlyPaths=/root/venv"]
    assert list(unit._binds([Path("/home/pi/venv")])) == ["BindReadOnlyPaths=/home/pi/venv"]


@analyze
@pytest.mark.parametrize("options", [{}, {"socket": "/run/edgetune/socket"}, {"host": "::", "key_file": "{keys}"}])
def test_systemd_has_nothing_against_it(model, tmp_path, options):
    add_key(tmp_path / "keys", "phone")
    config = DaemonConfig(**{name: value.format(keys=tmp_path / "keys") for name, value in options.items()})
    path = tmp_path / "edgetune.service"
    path.write_text(unit.unit(model, config, POLICY))
    done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    # 0 is a service that can do nothing, 10 one that can do all; what remains is talking to others and its own niceness
    done = subprocess.run(["systemd-analyze", "security", "--offline=yes", "--threshold=15", "--no-pager", path],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.fixture
def systemctl(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    calls = tmp_path / "calls"
    folder.mkdir()
    (folder / "systemctl").write_text(f'#!/bin/sh\necho "$@" >> {calls}\n'
                                      f'test "$1" != "$(cat {tmp_path}/fails)" || {{ echo no bus >&2; exit 1; }}\n')
    (folder / "systemctl").chmod(0o755)
    (tmp_path / "fails").write_text("")
    calls.write_text("")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    (tmp_path / "units").mkdir()
    return tmp_path


def test_install_and_uninstall(model, systemctl):
    units = systemctl / "units"
    calls = systemctl / "calls"
    text = unit.unit(model, DaemonConfig(), POLICY)
    path = unit.install(text, units)
    assert path.read_text() == text
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert calls.read_text().splitlines() == ["daemon-reload", "enable edgetune.service", "restart edgetune.service"]
    calls.write_text("")
    unit.uninstall(units)
    assert list(units.iterdir()) == []
    assert calls.read_text().splitlines() == ["disable --now edgetune.service", "daemon-reload"]
    with pytest.raises(UsageError, match="there is no"):
        unit.uninstall(units)


def test_what_systemd_says_is_passed_on_and_print_changes_nothing(model, systemctl, monkeypatch):
    text = run("service", "install", model, "--print", "--memory", "300M")
    assert text.rstrip("\n") == unit.unit(model, DaemonConfig(memory="300M"), POLICY).rstrip("\n")
    assert (systemctl / "calls").read_text() == ""
    assert "--state" not in run("service", "install", "--help")
    (systemctl / "fails").write_text("restart")
    with pytest.raises(EdgetuneError, match=r"systemctl restart edgetune.service failed: no bus; see journalctl"):
        unit.install("", systemctl / "units")
    monkeypatch.setenv("PATH", str(systemctl / "units"))
    with pytest.raises(UsageError, match=r"there is no systemctl.*service install --print"):
        unit.install("", systemctl / "units")
    with pytest.raises(UsageError, match="there is no systemctl") as refused:
        unit.uninstall(systemctl / "units")
    assert "--" not in str(refused.value)  # it has no options
