"""The systemd unit of the daemon: devices/edgetune.service with the model, the options and the budget of this device.

The service has a separate user, which cannot see home folders. Files that it needs from there are therefore bound into
its view of the system, and must be readable by all.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

from .. import disk
from ..errors import EdgetuneError, UsageError
from ..formats.bundle import open_bundle
from ..formats.signature import TRUSTED, trusted_folder, trusted_keys
from ..machine.device import devices_folder, read_device
from ..machine.policy import Policy
from ..manifest import PartOptions
from ..options import declared
from ..training.config import TrainConfig
from .keys import read_keys
from .options import LOOPBACK, DaemonConfig, part_options

NAME = "edgetune"
FILES = [spec.name for spec in declared(DaemonConfig) if spec.metadata["local"]]  # options that name a file or a folder
UNITS = Path("/etc/systemd/system")
RUN = Path("/run") / NAME
_HIDDEN = tuple(map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))  # by ProtectHome and PrivateTmp
_MIB = 2**20


def unit(model: Path, config: DaemonConfig, policy: Policy) -> str:
    """Returns the unit's text. Raises UsageError for options no service can have, and an unreadable model."""
    if config.state:
        raise UsageError(f"state is {config.state}, a service keeps its state in /var/lib/{NAME}", "leave it out")
    if config.socket and not Path(config.socket).is_relative_to(RUN):
        raise UsageError(f"socket is {config.socket}, a service may make one below {RUN} alone",
                         f"for example --socket {RUN}/socket")
    device = read_device()
    budget = TrainConfig(memory=config.memory).memory_bytes(device.memory_available) // _MIB
    open_bundle(model)
    needed = _needed(model, config)
    for path in needed:
        _check_readable(path)
    lines = {
        "after": "After=network.target" if _local(config) else "Wants={0}\nAfter={0}".format("network-online.target"),
        "command": " ".join(_word(word).replace("$", "$$") for word in command(model, config, policy, budget))
                   + (" --key-file ${CREDENTIALS_DIRECTORY}/keys" if config.key_file else ""),
        "environment": "\n".join(_environment(config)),
        "memory": f"{min(budget * 3 // 2, device.memory_total // _MIB)}M",  # above the total it would be no limit
        "binds": "\n".join(_binds([path for path in needed if _hidden(path)])),
        "network": "\n".join(_network(config)),
    }
    text = (devices_folder() / f"{NAME}.service").read_text()
    for name, value in lines.items():
        text = text.replace(f"@{name}@", value)
    return text


def command(model: Path, config: DaemonConfig, policy: Policy, budget: int) -> list[str]:
    """Returns the arguments that start the daemon with these options and `budget` MiB, without the key file."""
    python = Path(sys.executable)  # in a virtual environment a link that must be called by its own name
    return [str(python.parent.resolve() / python.name), "-m", "edgetune", "serve", str(model.absolute()),
            "--memory", f"{budget}M", *_flags(config, "memory", "key_file", *FILES), *_flags(policy, "nice"),
            *(word for name, path in _files(config) for word in (f"--{name.replace('_', '-')}", str(path.absolute())))]


def _files(config: DaemonConfig) -> list[tuple[str, Path]]:
    """Returns the files that options name, except the keys."""
    return [(name, Path(getattr(config, name))) for name in FILES if getattr(config, name)]


def _flags(options: Any, *left_out: str) -> Iterator[str]:
    """Yields every option that differs from its default."""
    for spec in fields(options):
        value = getattr(options, spec.name)
        name = spec.name.replace("_", "-")
        if value != spec.default and spec.name not in left_out:
            yield from [f"--{'' if value else 'no-'}{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]


def _needed(model: Path, config: DaemonConfig) -> list[Path]:
    """Returns the paths that the service reads (Python, edgetune, model, keys) by name, and where links lead."""
    named = [Path(sys.base_prefix), Path(sys.prefix), Path(__file__).parents[1], devices_folder(), model,
             *(path for _, path in _files(config)),
             *(path for own in part_options() for path in own.files(cast(PartOptions, config))),
             *([] if trusted_keys() is None else [trusted_folder()])]
    paths = {at for path in named for at in (path.absolute(), path.resolve())}
    return sorted(path for path in paths if not paths.intersection(path.parents))


def _check_readable(path: Path) -> None:
    """Checks that every user may read a path. Folders above count unless the service sees others in their place."""
    above = () if _hidden(path) else path.parents
    if not path.exists():
        raise UsageError(f"there is no {path}", "name a file that exists")
    for place, needs in ((path, 0o5 if path.is_dir() else 0o4), *((folder, 0o1) for folder in above)):
        if place.stat().st_mode & needs != needs:
            raise UsageError(f"{place} is not open to all users (mode {place.stat().st_mode & 0o777:o}), the service "
                             "has a separate one", f"chmod o+rX {place}, or move what it needs to /opt")


def _binds(paths: list[Path]) -> Iterator[str]:
    if any(path.is_relative_to("/root") for path in paths):
        yield "TemporaryFileSystem=/root:ro,mode=755"  # ProtectHome's can be entered by root alone
    yield from (f"BindReadOnlyPaths={_word(str(path))}" for path in paths)


def _hidden(path: Path) -> bool:
    return any(path.is_relative_to(folder) for folder in _HIDDEN)


def _local(config: DaemonConfig) -> bool:
    return bool(config.socket) or config.host in LOOPBACK


def _environment(config: DaemonConfig) -> Iterator[str]:
    yield f"Environment=HOME=/var/lib/{NAME}"
    if found := os.environ.get("PYTHONPATH"):  # where this very edgetune was found
        yield f"Environment={_word(f'PYTHONPATH={found}')}"
    if trusted_keys() is not None:
        yield f"Environment={_word(f'{TRUSTED}={trusted_folder().absolute()}')}"
    if config.key_file:
        path = Path(config.key_file).resolve()
        read_keys(path)
        yield f"LoadCredential=keys:{str(path).replace('%', '%%')}"  # read by systemd: root's alone


def _network(config: DaemonConfig) -> Iterator[str]:
    if config.socket:
        yield from (f"RuntimeDirectory={NAME}", "RestrictAddressFamilies=AF_UNIX", "PrivateNetwork=yes")
    else:
        yield "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6"
        yield from ("IPAddressDeny=any", "IPAddressAllow=localhost") if _local(config) else ()


def _word(text: str) -> str:
    """Quotes a word for systemd: % begins a specifier, quotes hold blanks together."""
    text = text.replace("%", "%%")
    if re.fullmatch(r"[\w./:=@,%+-]+", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


# ---- into systemd ---------------------------------------------------------------------------------------------------


def install(text: str, folder: Path = UNITS) -> Path:
    """Writes, enables and restarts the unit. Raises EdgetuneError if it does not start, UsageError without systemd."""
    _require_root(folder, "start edgetune serve in its own way; edgetune service install --print shows the unit")
    path = folder / f"{NAME}.service"
    with disk.replaced(path) as beside:
        beside.write_text(text)
        beside.chmod(0o644)
    for arguments in (["daemon-reload"], ["enable", path.name], ["restart", path.name]):
        _systemctl(*arguments)
    return path


def uninstall(folder: Path = UNITS) -> Path:
    """Stops the service, disables it and removes the unit; the state stays. Raises UsageError where there is none."""
    _require_root(folder, "end the daemon in the way in which it was started")
    path = folder / f"{NAME}.service"
    if not path.exists():
        raise UsageError(f"there is no {path}", "edgetune service install writes it")
    _systemctl("disable", "--now", path.name)
    path.unlink()
    disk.sync(folder)
    _systemctl("daemon-reload")
    return path


def _require_root(folder: Path, without_systemd: str) -> None:
    if shutil.which("systemctl") is None:
        raise UsageError("there is no systemctl: this system does not run systemd", without_systemd)
    if not os.access(folder, os.W_OK):
        raise UsageError(f"only root may write to {folder}", f"sudo {sys.executable} -m edgetune service ...")


def _systemctl(*arguments: str) -> None:
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True)
    if done.returncode:
        message = " ".join(done.stderr.split())
        raise EdgetuneError(f"systemctl {' '.join(arguments)} failed: {message:.300}", f"see journalctl -u {NAME}")
