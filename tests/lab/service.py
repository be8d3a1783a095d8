"""The service in a real systemd, not this machine's.

systemd starts as the first process of its own namespaces, over a copy of this system that lies in memory. There
`edgetune service install` must bring a daemon that answers, trains under all restrictions of the unit, comes back when
it is killed or hangs, keeps what it had, asks for its key, stops with 0, and is gone after `uninstall`; nothing of
that touches this system.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from services import until
from tiny import write_tiny

PORT = "8643"
DROP_IN = Path("/etc/systemd/system/edgetune.service.d/watchdog.conf")
# /proc/sys stays read-only: it is this machine's own
BOOT = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
cd "$1/root"
mount -t proc proc proc && mount --bind proc/sys proc/sys && mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t tmpfs tmpfs sys/fs/cgroup && mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for name in null zero full random urandom tty; do touch dev/$name && mount --bind /dev/$name dev/$name; done
mkdir dev/shm dev/pts && mount -t devpts devpts dev/pts && ln -s pts/ptmx dev/ptmx && ln -s /proc/self/fd dev/fd
mount -t tmpfs tmpfs run && mount -t tmpfs -o mode=1777 tmpfs tmp
mkdir -p "./$2" && mount --bind "$2" "./$2"
rm -rf etc/systemd/system/*.wants && mkdir old
pivot_root . old && cd / && umount -l old && mount --make-rshared /
exec env -i container=proof PATH="$PATH" /lib/systemd/systemd --system --unit=basic.target --show-status=0
"""


class Machine:
    """A systemd in namespaces of its own; `place` is a folder that it shares with us."""

    def __init__(self, place: Path) -> None:
        root = place / "system"
        root.mkdir()
        self.log = (place / "boot.log").open("w")
        self.process = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "--cgroup", "bash", "-c", BOOT,
             "boot", root, place], stdout=self.log, stderr=self.log)
        until(lambda: self.first() and self.run("systemctl", "is-active", "basic.target").returncode == 0, 120)

    def first(self) -> str:
        """The process number, here, of its first process."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return children[0] if children else ""

    def run(self, *words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        names = [f"{name}={value}" for name, value in environment.items()]
        return subprocess.run(["nsenter", "-t", self.first(), "-m", "-p", "-u", "-i", "-C", "-r", "-w", "env", *names,
                               *map(str, words)], capture_output=True, text=True)

    def stop(self) -> None:
        self.process.kill()  # and with it all of them
        self.process.wait()
        self.log.close()


class Proof:
    def __init__(self, machine: Machine, place: Path) -> None:
        self.machine = machine
        self.place = place
        self.key = ""

    def edgetune(self, *words: str | Path, code: int = 0) -> dict[str, Any]:
        done = self.machine.run(sys.executable, "-m", "edgetune", *words, "--json", PYTHONPATH=os.environ["PYTHONPATH"],
                                EDGETUNE_URL=f"http://127.0.0.1:{PORT}", EDGETUNE_KEY=self.key, HOME="/root",
                                PATH=os.environ["PATH"])
        if done.returncode != code:
            journal = self.machine.run("journalctl", "--no-pager", "-n", "40", "-u", "edgetune").stdout
            raise AssertionError(f"{words} ended with {done.returncode}: {done.stdout}{done.stderr}\n{journal}")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def prove(self) -> None:
        model = write_tiny(self.place / "model.gguf", formats="Q8_0")
        rows = self.place / "rows.jsonl"
        rows.write_text("".join(json.dumps({"prompt": f"turn on lamp {i}", "completion": f"lamp {i}"}) + "\n"
                                for i in range(40)))
        self.key = self.edgetune("service", "key", "proof")["key"]
        keys = Path("/root/.config/edgetune/keys")
        self.edgetune("service", "install", model, "--port", PORT, "--key-file", keys, "--memory", "400M")
        say("installed; it said that it is ready")
        facts = self.properties("User", "MainPID", "NotifyAccess", "MemoryMax", "StatusText")
        say(f"systemd says {facts}")
        self.has_no_rights(facts["MainPID"])
        assert self.edgetune("status")["health"]["status"] == "ok"
        self.refuses_without_the_key()
        job = self.edgetune("jobs", "create", rows, "--follow", "--steps", "4", "--rank", "4", "--max-length", "64",
                            "--batch-size", "4")
        say(f"{job['id']} {job['status']}, adapter {job['fine_tuned_model']}")
        self.comes_back("killed", "KILL", job)
        self.machine.run("mkdir", "-p", DROP_IN.parent)
        self.machine.run("sh", "-c", f"printf '[Service]\\nWatchdogSec=3\\n' > {DROP_IN}")
        self.machine.run("systemctl", "daemon-reload")
        self.machine.run("systemctl", "restart", "edgetune")
        self.comes_back("hung, and systemd noticed", "STOP", job)
        self.machine.run("systemctl", "stop", "edgetune")
        stopped = self.properties("Result", "ExecMainStatus")
        assert stopped == {"Result": "success", "ExecMainStatus": "0"}, stopped
        say("stopped with 0")
        self.edgetune("service", "uninstall")
        until(lambda: self.machine.run("systemctl", "is-active", "edgetune").stdout.strip() == "inactive", 120)
        assert self.machine.run("test", "-e", "/var/lib/private/edgetune/state.db").returncode == 0
        say("uninstalled; the state is still there")

    def properties(self, *names: str) -> dict[str, str]:
        words = [word for name in names for word in ("-p", name)]
        lines = self.machine.run("systemctl", "show", "edgetune", *words).stdout.splitlines()
        return dict(line.split("=", 1) for line in lines)

    def has_no_rights(self, pid: str) -> None:
        text = self.machine.run("cat", f"/proc/{pid}/status").stdout
        found = dict(line.split(":\t", 1) for line in text.splitlines())
        rights = {name: found[name] for name in ("Uid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp")}
        assert int(rights.pop("Uid").split()[0]) > 0
        assert rights == {"CapEff": "0" * 16, "CapBnd": "0" * 16, "NoNewPrivs": "1", "Seccomp": "2"}, rights

    def refuses_without_the_key(self) -> None:
        self.key, right = "et-wrong", self.key
        assert "refuses" in self.edgetune("status", code=2)["error"]
        self.key = right

    def comes_back(self, what: str, signal: str, job: dict[str, Any]) -> None:
        before = self.properties("MainPID")["MainPID"]
        self.machine.run("systemctl", "kill", "-s", signal, "edgetune")

        def is_back() -> bool:
            now = self.properties("MainPID", "ActiveState")
            return now["MainPID"] != before and now["ActiveState"] == "active"

        until(is_back, 120)
        found = self.edgetune("adapters")
        assert job["fine_tuned_model"] in [adapter["id"] for adapter in found["data"]]
        say(f"{what}: it is back with its adapter")


def say(text: str) -> None:
    print(text, flush=True)


def options(_parser: argparse.ArgumentParser) -> None:
    """None."""


def main(_args: argparse.Namespace) -> None:
    missing = [tool for tool in ("unshare", "nsenter", "systemctl") if shutil.which(tool) is None]
    if os.geteuid() or missing:
        sys.exit(f"needs root and {', '.join(missing) or 'no more'}")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        place.chmod(0o755)
        machine = Machine(place)
        try:
            Proof(machine, place).prove()
        finally:
            machine.stop()
