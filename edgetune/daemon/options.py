"""The options of the daemon, defined once: flags, the unit of `service install` and documentation come from here."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, make_dataclass, replace
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ..errors import UsageError
from ..evaluation.graders import confinement
from ..machine.policy import read_hours
from ..manifest import PartOptions, manifests
from ..options import AUTO, check_options, declared, option, share_of
from ..training.config import TrainConfig

OFF = "off"
IDLE_SECONDS = 600.0  # without a request, then --learn idle begins
NUMBER = r"\d{1,4}(?:\.\d{1,4})?"
NIGHTLY = "-nightly"  # after a value of --learn that parts add
WHEN = ("", NIGHTLY)
MORE = tuple((name, source) for manifest in manifests() for name, source in manifest.learn.items())
LOOPBACK = ("127.0.0.1", "::1", "localhost")
C = TypeVar("C", bound="DaemonOptions")


@dataclass(frozen=True)
class Limits:
    """Limits of an adapter's drift on the canary. rise: of perplexity, a share; kl: nats a token. None: any."""

    rise: float | None = None
    kl: float | None = None


@dataclass(frozen=True)
class AllowedPython:
    """Code that clients may have run. graders: Python, in a sandbox. rewards: the folder of functions, or ""."""

    graders: bool = False
    rewards: str = ""


@dataclass(frozen=True)
class DaemonOptions:
    """Options of every daemon. `DaemonConfig` has those of the parts, too."""

    # where it listens
    host: str = option("127.0.0.1", "Address to listen on; any but loopback needs --key-file.",
                       common=True, group="Where it listens")
    port: int = option(8642, "Port to listen on; 0: one that is free, which is printed.", low=0, high=65535,
                       common=True)
    socket: str = option("", "Listen on this Unix socket instead.", common=True)
    key_file: str = option("", "File with the hashes of keys that clients must show; edgetune service key adds one.",
                           common=True)
    trusted_proxy: str = option("", "IP address of a proxy that lets in only the right people, such as Home "
                                "Assistant's ingress, 172.30.32.2: its requests need no key, and its pages may show "
                                "the daemon's in a frame [none].")
    # data that it keeps
    state: str = option("", "Folder of the daemon's state [~/.local/state/edgetune].",
                        common=True, group="What it keeps")
    log_prompts: bool = option(False, "Write prompts and answers into the log.")
    drawn_days: int = option(90, "Days for which one in five questions is kept, without its answer, to test new "
                             "adapters by; 0: none, and the test promises less.", low=0, high=3650)
    propose: bool = option(True, "Propose corrections that people made in the chat itself; they are learned only if "
                           "somebody accepts them.")
    keep: int = option(3, "Adapters kept with the active one: the previous one, and the latest.",
                       low=2, high=100)
    # models for answers, in addition to the base
    embeddings: str = option("", "GGUF or name of an encoder or another model for /v1/embeddings [the model's own "
                             "hidden states].", group="What it answers with", local=True)
    prompt: str = option("", "Prompt file, put around chats that have no system message.",
                         common=True)
    # resources that it may use
    memory: str = option("", "Memory of the daemon at most, training included, such as 500M or 25% of what is "
                         "available [75%].", common=True, group="What it may use")
    context: int = option(0, "Tokens of all prompts and answers in progress at most; auto: 4096, or fewer where the "
                          "model was trained for fewer or a job needs the memory, at least 1024.", low=0, zero=AUTO,
                          common=True)
    parallel: int = option(8, "Answers worked on at once.", low=1, high=64)
    queue: int = option(64, "Requests that may wait; more are refused with 429.", low=1)
    threads: int = option(0, "Threads of answers, and of training; auto: one a core that this process may use.", low=0,
                          high=1024, zero=AUTO, common=True)
    max_upload: int = option(64, "MiB of an uploaded file at most.", low=1)
    max_body: int = option(1024, "KiB of any other request at most.", low=1)
    max_rows: int = option(100_000, "Rows of an uploaded file at most.", low=1)
    structured: str = option("auto", "auto: hold the answers of an adapter to the schema of its training rows, if all "
                             "are JSON and a request asks for no other form; or off.",
                             choices=("auto", "off"))
    allow_python_graders: bool = option(False, "Let clients send python graders, which run in a sandbox. Needs a "
                                        "kernel with Landlock.")
    rewards: str = option("", "Folder of reward functions that jobs may name, as module:function; they run in the "
                          "process that trains [none].", local=True)
    # how it learns
    learn: str = option("off", "Learn from feedback by itself: idle (ten minutes after the last answer), nightly (in "
                        "--learn-hours), or off" + "".join(f"; {one} and {one}{NIGHTLY} also {of}" for one, of in MORE)
                        + ".", choices=("off", "idle", "nightly", *(one + when for one, _ in MORE for when in WHEN)),
                        common=True, group="How it learns")
    learn_hours: str = option("01:00-06:00", "Hours in which nightly learning may start, local time.", common=True)
    learn_method: str = option(AUTO, "How feedback is learned, by a method of edgetune train: auto (sft, or classify "
                               "for an encoder): right answers; dpo or orpo: that they are better than wrong ones; "
                               "kto: which were good and which bad; grpo, rloo, rest and others: what --learn-grader "
                               "rewards.")
    learn_options: str = option("", "Options of that method, such as beta=0.2,sft_weight=1; of an encoder also of "
                                "training, such as steps=1: only the heads.")
    learn_grader: str = option("", "File of a grader, which rewards answers to questions that people asked.",
                               local=True)
    learn_rows: int = option(20, "New pieces of feedback that start a training, held-out ones included.",
                             low=1)
    compact_every: int = option(0, "Activated feedback jobs after which all feedback is learned again, when --learn "
                                "allows it; 0: only when told.", low=0)
    recall: bool = option(True, "Answer an exact repeat of a corrected question as corrected, until a training has "
                          "learned it.")
    recall_like: str = option("auto", "auto: also for like questions, where --embeddings is an encoder: answer "
                              "one that is the same in other words, and show the model corrections of like ones; or "
                              "off.",
                              choices=("auto", "off"))
    feedback_rows: int = option(20_000, "Pieces of feedback kept at most, half of them not learned yet; the oldest "
                                "that were learned leave first.", low=2)
    feedback_size: int = option(64, "MiB of feedback kept at most, half of it not learned yet.", low=1)
    replay: float = option(1.0, "Earlier rows that are mixed with each new one, after one pass over all earlier "
                           "rows.", low=0.0, high=100.0)
    canary: str = option("", "Text whose perplexity a new adapter must not raise [a page of ours].", local=True)
    canary_rise: str = option("5%", "Share by which a new adapter may raise the canary's perplexity over the base's, "
                              "such as 5% or 0.05; off: any.")
    max_kl: str = option("0.1", "Nats a token by which a new adapter's predictions on the canary may differ from the "
                         "base's (KL); off: any.")

    @property
    def learns_more(self) -> bool:
        """Returns whether it learns from something in addition to feedback."""
        return self.learn.removesuffix(NIGHTLY) in dict(MORE)

    @property
    def learns(self) -> str:
        """Returns when it learns by itself, as words after "it"."""
        if self.learn == OFF:
            return "learns when it is told to, not by itself"
        nightly = self.learn.endswith(NIGHTLY.removeprefix("-"))
        when = _hours_of_day(read_hours("learn-hours", self.learn_hours)) if nightly else \
            f"when nobody has asked for {IDLE_SECONDS / 60:g} minutes"
        return f"learns {when}" + "".join(f", also {source}" for name, source in MORE
                                          if name == self.learn.removesuffix(NIGHTLY))

    def check(self: C) -> C:
        """Returns self; raises UsageError for the first option out of its range."""
        check_options(self)
        for own in part_options():
            own.check_own(cast(PartOptions, self))
        TrainConfig(memory=self.memory).memory_bytes(2**40)
        read_hours("learn-hours", self.learn_hours)
        self.limits()
        self.python()
        if self.allow_python_graders and confinement.landlock_version() == 0:
            raise UsageError("allow-python-graders is given, and this kernel has no Landlock, or has it off: a python "
                             "grader could read the daemon's state",
                             "start a kernel with lsm=landlock among its options, or leave allow-python-graders out")
        if not self.socket and self.host not in LOOPBACK and not self.key_file:
            raise UsageError(f"host is {self.host}, which others can reach, and there is no key-file",
                             "make a key with edgetune service key and give its file, or listen on 127.0.0.1")
        self._check_proxy()
        return self

    def _check_proxy(self) -> None:
        if not self.trusted_proxy:
            return
        if self.socket:
            raise UsageError("trusted-proxy is given, and a socket has no addresses",
                             "leave trusted-proxy or socket out")
        try:
            address = ip_address(self.trusted_proxy)
        except ValueError:
            raise UsageError(f"trusted-proxy is {self.trusted_proxy!r:.60}", "give an IP address such as 172.30.32.2") \
                from None
        if str(address) in LOOPBACK:
            raise UsageError(f"trusted-proxy is {address}, from which every program of this device connects",
                             "let the proxy connect from another address")

    def limits(self) -> Limits:
        """Returns the limits on the canary. Raises UsageError."""
        rise = share_of(self.canary_rise)
        if rise is None and re.fullmatch(r"0\.\d{1,4}", self.canary_rise):
            rise = float(self.canary_rise)
        if rise is None and self.canary_rise != OFF:
            raise UsageError(f"canary-rise is {self.canary_rise!r:.40}", "give a share such as 5% or 0.05, or off")
        kl = re.fullmatch(f"({NUMBER})", self.max_kl)
        if not kl and self.max_kl != OFF:
            raise UsageError(f"max-kl is {self.max_kl!r:.40}", "give nats a token such as 0.1, or off")
        return Limits(rise, float(kl[1]) if kl else None)

    def python(self) -> AllowedPython:
        """Returns the code that clients may have run. Raises UsageError for a missing folder of functions."""
        folder = Path(self.rewards).expanduser().absolute()
        if self.rewards and not folder.is_dir():
            raise UsageError(f"rewards is {self.rewards}, and that is no folder", "name a folder of Python files")
        return AllowedPython(self.allow_python_graders, str(folder) if self.rewards else "")

    def folder(self) -> Path:
        """Returns the folder of the state."""
        base = os.environ.get("STATE_DIRECTORY", "").split(":")[0]  # systemd's
        default = Path(base) if base else Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state") / "edgetune"
        return Path(self.state).expanduser() if self.state else default.expanduser()


def _hours_of_day(hours: tuple[int, int]) -> str:
    """Returns minutes of the day in words: at night, from 1 to 6 o'clock."""
    begin, end = (f"{minutes // 60}:{minutes % 60:02}".removesuffix(":00") for minutes in hours)
    return f"{'at night' if not 6 * 60 <= hours[0] < 20 * 60 else 'each day'}, from {begin} to {end} o'clock"


@cache
def part_options() -> tuple[type[PartOptions], ...]:
    """Returns the options of the parts that add some, in the parts' order."""
    return tuple(manifest.load(manifest.options) for manifest in manifests() if manifest.options)


if TYPE_CHECKING:

    class DaemonConfig(DaemonOptions):
        """Options of a daemon, or of a service within an app, with those of all parts. Immutable."""

        def __init__(self, **given: Any) -> None: ...

else:
    DaemonConfig = make_dataclass(
        "DaemonConfig", (), bases=(*reversed(part_options()), DaemonOptions), frozen=True, namespace={
            "__module__": __name__,
            "__doc__": "Options of a daemon, or of a service within an app, with those of all parts. Immutable."})


def without_parts(config: DaemonConfig) -> DaemonConfig:
    """Returns a daemon's options without those of its parts."""
    plain: dict[str, Any] = {spec.name: spec.default for own in part_options() for spec in declared(own)}
    return replace(config, **plain)


def model_name(path: Path) -> str:
    """Returns a model's name for clients: its file's name without ending, of small letters, digits and . _ -"""
    stem = path.name.removesuffix(".edge").removesuffix(".gguf")
    return re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-.") or "model"
