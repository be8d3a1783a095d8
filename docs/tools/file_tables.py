"""The lists of docs/reference/files.md: exit codes and environment variables, as the code has them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from inspect import getmembers, isclass
from pathlib import Path

from edgetune import errors

ROOT = Path(__file__).parents[2]
READ = re.compile(r'environ(?:\.get\(|\[)"([A-Z_]+)"|"([A-Z_]+)" (?:not )?in os\.environ|\b(EDGETUNE_[A-Z]+)')
CODES = {
    0: "It succeeded.",
    1: "It failed. `doctor`: something is missing; `status`: the daemon is degraded; `data check`: rows are unfit.",
    2: "A command, an option or its value is wrong.",
    3: "The new adapter or house is not better than the old one, or than no training.",
    75: "It was stopped, and can be resumed.", 130: "It was stopped by Ctrl-C."}
VARIABLES = {
    "EDGETUNE_URL": "The daemon that commands ask: http://HOST:PORT or unix:/PATH; `--url` wins.",
    "EDGETUNE_KEY": "A key (et-...) for it; `--key-file` wins.",
    "EDGETUNE_DAEMON": "`EDGETUNE_DAEMON_` and a name: an option of `edgetune serve`, such as `EDGETUNE_DAEMON_PORT`; "
                       "the command line wins.",
    "EDGETUNE_ISA": "Kernel sets that may be used, such as `avx2,scalar`; the best of them is used.",
    "EDGETUNE_TRUSTED": "Folder of public keys [~/.config/edgetune/trusted]. If it is set, or that folder exists, "
                        "models must be signed by one of them.",
    "HOME_ASSISTANT_TOKEN": "A long-lived access token for `edgetune home entities`; `--token-file` wins.",
    "EDGETUNE_PASSPHRASE": "The passphrase of the private key of `--sign`.",
    "HF_ENDPOINT": "Another hub for `edgetune pull`, with the API of huggingface.co.",
    "NO_COLOR": "Without colours.",
    "STATE_DIRECTORY": "Folder of the daemon's state, as systemd sets it.",
    "XDG_STATE_HOME": "The daemon's state is in its folder edgetune [~/.local/state].",
    "XDG_CONFIG_HOME": "Keys and trusted keys are in its folder edgetune [~/.config].",
    "XDG_CACHE_HOME": "Pulled models and cached log-probabilities are in its folder edgetune [~/.cache].",
}
NOT_FOR_PEOPLE = {"NOTIFY_SOCKET", "JOURNAL_STREAM", "PYTHONPATH", "OMP_WAIT_POLICY", "PATH",  # of other programs
                  "EDGETUNE_FLOWER"}  # of a process of ours, to its own


def exit_codes() -> Iterator[str]:
    found = {0, 130, *(kind.exit_code for _, kind in getmembers(errors, isclass)
                       if issubclass(kind, errors.EdgetuneError)), *filter(None, [getattr(errors, "WORSE", None)])}
    yield from (f"- {code}: {CODES[code]}" for code in sorted(found))


def environment() -> Iterator[str]:
    """A line for each variable that is read anywhere."""
    sources = [*(ROOT / "edgetune").rglob("*.py"), *(ROOT / "native").rglob("*.c")]
    found = {name for path in sources for names in READ.findall(path.read_text("utf-8")) for name in names if name}
    known = [name for name in VARIABLES if name in found]
    yield from (f"- `{name}`: {VARIABLES[name]}" for name in [*known, *sorted(found - {*known} - NOT_FOR_PEOPLE)])
