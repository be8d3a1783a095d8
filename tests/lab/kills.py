"""kill -9 of the actions that write, at random moments, and the same again.

Each action runs in a process of its own and is killed, half of the times after a random share of the seconds that it
takes, else before a random one of the changes that it makes to names and files. Then each output is what stood there
before, or the whole new one. One kill in four is followed by another. At last the same is run to its end: it succeeds,
or it says in a sentence that the output is there, and then the folder has what an undisturbed run leaves, and nothing
else. A daemon's client does the same by its service: after a kill the database passes SQLite's checks, and what the
service accepted is done after the next start, with the same result and the same files.

Imports would take nearly all of the time. So this process imports what an undisturbed run did, and forks while it has
no other thread; the fork runs the command's function. Each process of a job is a new one.
"""

import argparse
import contextlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from mmap import mmap
from pathlib import Path
from typing import Any

for library in ("OMP", "OPENBLAS", "MKL"):  # whose pools of threads would begin with the imports
    os.environ[f"{library}_NUM_THREADS"] = "1"
os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"
os.environ["PYTHONPATH"] = os.pathsep.join(str(Path(path).resolve()) for path in sys.path if path)

from lab.crash import processes  # noqa: E402 (see above)
from lab.written import ACTIONS, Action  # noqa: E402
from services import until  # noqa: E402

ID = re.compile("[0-9a-f]{8,}")  # of files, jobs, adapters, stores
AGAIN = 0.25  # how many kills are followed by another
PATIENCE = 300.0  # seconds
WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod"}
Contents = dict[str, bytes]


@dataclass
class Met:
    """Kills of an action, and after how many the output was whole; what was wrong."""

    kills: int = 0
    after: int = 0
    wrong: Counter[str] = field(default_factory=Counter)


class Trial:
    """One action in PLACE/now, which is made anew from PLACE/start."""

    def __init__(self, place: Path, name: str, action: Action) -> None:
        self.place = place
        self.name = name
        self.action = action
        self.folder = place / "now"
        self.report = place / "report.json"
        self.changes = mmap(-1, 8)  # how many a process has made
        self.met = Met()
        self.folder.mkdir(parents=True)
        self.ended(self.fork(action.prepare))
        self.folder.rename(place / "start")
        self.measure()

    def measure(self) -> None:
        """What an undisturbed run leaves and says, by a warm process; another one must do the same."""
        for _ in range(3):
            self.renew()
            self.before = self.contents()
            began = time.monotonic()
            self.said = self.ended(self.fork(self.action.run))
            self.seconds = time.monotonic() - began
            self.made = int.from_bytes(self.changes[:8], sys.byteorder)
            self.whole, earlier = self.visible(), getattr(self, "whole", None)
            self.names = self.hidden_names()
            assert self.action.is_done is None or self.action.is_done(self.folder)
            for name in json.loads(self.report.read_text())["modules"]:
                with contextlib.suppress(Exception):  # some modules are made by others
                    importlib.import_module(name)
            assert len([*Path("/proc/self/task").iterdir()]) == 1, "an import has begun a thread"
        assert earlier == self.whole, f"{self.name}: two runs write other bytes: {unlike(earlier, self.whole)}"

    def renew(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.place / "start", self.folder, symlinks=True)

    def visible(self) -> Contents:
        """All that counts of the folder."""
        return {path: data for path, data in self.contents().items() if top(path) not in self.action.hidden}

    def hidden_names(self) -> list[str]:
        """Paths of all else, in which ids differ."""
        return sorted(ID.sub("*", path) for path in self.contents() if top(path) in self.action.hidden)

    def contents(self) -> Contents:
        """Files by their paths, and folders with a slash at their end; of a record only that it is there."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            name = str(path.relative_to(self.folder))
            if path.is_dir():
                found[f"{name}/"] = b""
            else:
                found[name] = b"" if path.name in self.action.records else path.read_bytes()
        return found

    # ---- processes ----------------------------------------------------------------------------------------------

    def fork(self, run: Callable[[], Any], last: int = -1) -> int:
        """The number of a process that runs something in the folder. last: the change before which it is killed."""
        self.report.unlink(missing_ok=True)
        self.changes[:8] = bytes(8)
        sys.stdout.flush()
        if process := os.fork():
            return process
        try:
            os.chdir(self.folder)
            log = os.open(self.place / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.addaudithook(self.counting(last))
            said = run()
            modules = sorted(name for name in sys.modules if name != "__main__")
            self.report.write_text(json.dumps({"said": said, "modules": modules}))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    def counting(self, last: int) -> Callable[[str, tuple[Any, ...]], None]:
        """Counts the changes that Python makes in the folder, and kills this process before the one of this number."""
        inside = str(self.folder)

        def hook(event: str, args: tuple[Any, ...]) -> None:
            is_write = event in WRITES or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR))
            if not is_write or not isinstance(args[0], str | bytes):
                return
            if not os.path.abspath(os.fsdecode(args[0])).startswith(inside):  # noqa: PTH100 (it need not exist)
                return
            number = int.from_bytes(self.changes[:8], sys.byteorder)
            if number == last:
                os.kill(os.getpid(), signal.SIGKILL)
            self.changes[:8] = (number + 1).to_bytes(8, sys.byteorder)

        return hook

    def wait(self, process: int) -> bool:
        """Whether a process was killed, after it and all that it started have ended."""
        status = 0

        def has_ended() -> bool:
            nonlocal status
            ended, status = os.waitpid(process, os.WNOHANG)
            return bool(ended)

        until(has_ended, PATIENCE, f"{self.name} does not end")
        until(lambda: not processes(self.folder), PATIENCE, f"{self.name} has left a process")
        return os.WIFSIGNALED(status)

    def ended(self, process: int) -> Any:
        """What a process says that nobody kills."""
        assert not self.wait(process)
        if not self.report.exists():
            raise AssertionError(f"{self.name}: {(self.place / 'log').read_text()[-1500:]}")
        return json.loads(self.report.read_text())["said"]

    # ---- a kill -------------------------------------------------------------------------------------------------

    def prove(self, rng: random.Random, most: int) -> Met:
        while self.met.kills < most:
            self.renew()
            try:
                while self.is_killed(rng) and rng.random() < AGAIN:
                    pass
                self.check_again()
            except AssertionError as error:
                self.met.wrong[str(error)] += 1
        return self.met

    def is_killed(self, rng: random.Random) -> bool:
        """Runs it until it is killed; False if it was done before."""
        if self.made and rng.random() < 0.5:
            process = self.fork(self.action.run, rng.randrange(self.made))
        else:
            process = self.fork(self.action.run)
            time.sleep(rng.random() * self.seconds)
            os.kill(process, signal.SIGKILL)
        if not self.wait(process):
            return False
        self.met.kills += 1
        self.check_left()
        return True

    def check_left(self) -> None:
        """Each output is the old one or the new one, and nothing else has changed that was there."""
        found = self.contents()
        outputs = {top(path) for path in {**self.before, **self.whole}} - self.action.hidden
        is_whole = True
        for name in sorted(outputs):
            now, old, new = (part(each, name) for each in (found, self.before, self.whole))
            is_whole = is_whole and now == new
            if now not in (old, new) and name not in self.action.between:
                raise AssertionError(f"after a kill {name} is neither old nor new: {unlike(new, now)}")
        self.met.after += self.action.is_done(self.folder) if self.action.is_done else is_whole

    def check_again(self) -> None:
        """The same once more, to its end."""
        said = self.ended(self.fork(self.action.run))
        log = (self.place / "log").read_text()
        is_refused = said == 2 and log.startswith("edgetune: ") and len(log.splitlines()) == 1
        assert said == self.said or is_refused, f"the same again ends with {said}: {log[-600:]}"
        now = self.visible()
        assert now == self.whole, f"the same again leaves another folder: {unlike(self.whole, now)}: {log[:300]}"
        assert self.hidden_names() == self.names, f"the same again leaves {self.hidden_names()}, not {self.names}"


# ---- what a folder has -----------------------------------------------------------------------------------------------


def top(path: str) -> str:
    return path.partition("/")[0]


def part(found: Contents, name: str) -> Contents:
    return {path: data for path, data in found.items() if top(path) == name}


def unlike(wanted: Contents, found: Contents) -> str:
    """The paths in which two folders differ."""
    lost = [f"without {path}" for path in wanted if path not in found]
    more = [f"with {path}" for path in found if path not in wanted]
    other = [f"other bytes in {path}" for path in wanted if path in found and found[path] != wanted[path]]
    return ", ".join([*lost, *more, *other][:6])


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kills", type=int, default=40, help="of each action [40]")
    parser.add_argument("--only", nargs="+", choices=ACTIONS, default=[*ACTIONS])
    parser.add_argument("--seed", type=int, default=0)


def main(args: argparse.Namespace) -> int:
    wrong = kills = 0
    began = time.monotonic()
    for name in args.only:
        with tempfile.TemporaryDirectory() as place:
            trial = Trial(Path(place).resolve(), name, ACTIONS[name])
            met = trial.prove(random.Random(f"{name} {args.seed}"), args.kills)
        print(f"{name}: {met.kills} kills within {trial.seconds:.2f} s and {trial.made} changes, "
              f"{met.kills - met.after} before and {met.after} after the output was complete; "
              f"{met.wrong.total()} violations", flush=True)
        for what, count in met.wrong.most_common():
            print(f"  {count} times: {what}", flush=True)
        wrong += met.wrong.total()
        kills += met.kills
    print(f"{kills} kills of {len(args.only)} actions, {wrong} violations; {time.monotonic() - began:.0f} s")
    return 1 if wrong else 0
