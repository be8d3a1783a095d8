"""Starts edgetune as an app of Home Assistant: reads the entities, trains the house if it must, and serves it.

The supervisor gives options in /data/options.json and a token in SUPERVISOR_TOKEN. The token is passed on in the
environment of the one command that asks Home Assistant, and what trains or answers does not have it. Everything is
kept in /data/edgetune:

    entities.yaml    the exposed entities of the last start
    house            what answers; house.before is the one before it, house.new one that was worse
    recipe.json      what the house was trained from, besides its entities
    keys             hashes of the keys that clients show
    state, cache     of the daemon; models
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.daemon.keys import add_key
from edgetune.daemon.options import DaemonConfig
from edgetune.errors import WORSE, EdgetuneError
from edgetune.parts.home.entities import read_home
from edgetune.parts.home.house import ENTITIES
from edgetune.parts.home.updating import Change

HUB = "ws://supervisor/core/websocket"  # of Home Assistant's WebSocket API, as an app reaches it
INGRESS = "172.30.32.2"  # from which the supervisor connects for people who have signed in
TOKENS = ("SUPERVISOR_TOKEN", "HASSIO_TOKEN")
EDGETUNE = (sys.executable, "-m", "edgetune")
TRIES = 30  # to read the entities: Home Assistant may still be starting
PAUSE = 10  # seconds between two tries


@dataclass(frozen=True)
class Options:
    """What a person sets on the page of the app; config.yaml says what each may be."""

    language: str
    model: str
    memory: str
    learn: str
    clients: tuple[str, ...]
    own_sentences: str = ""

    @classmethod
    def read(cls, path: Path) -> Options:
        found = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**found, "clients": tuple(found["clients"])})


@dataclass(frozen=True)
class Places:
    folder: Path

    @property
    def entities(self) -> Path:
        return self.folder / "entities.yaml"

    @property
    def house(self) -> Path:
        return self.folder / "house"

    @property
    def refused(self) -> Path:
        """The house that was worse than the present one."""
        return self.folder / "house.new"

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.json"

    @property
    def keys(self) -> Path:
        return self.folder / "keys"


def say(text: str) -> None:
    print(text, flush=True)


def edgetune(*words: object, env: dict[str, str]) -> int:
    """Runs a command, whose output goes to the log of the app. Returns its exit code."""
    return subprocess.run([*EDGETUNE, *map(str, words)], env=env, check=False).returncode


def read_entities(places: Places, hub: str, env: dict[str, str], token: str, tries: int, pause: float) -> bool:
    """Writes the exposed entities. Returns whether Home Assistant has given them."""
    fresh = places.folder / "entities.read.yaml"
    for left in reversed(range(tries)):
        fresh.unlink(missing_ok=True)
        if edgetune("home", "entities", "--url", hub, "-o", fresh, env={**env, "HOME_ASSISTANT_TOKEN": token}) == 0:
            fresh.replace(places.entities)
            return True
        if left:
            time.sleep(pause)
    return False


# ---- the house -------------------------------------------------------------------------------------------------------


def recipe_of(options: Options) -> dict[str, Any]:
    """What decides how a house is trained, besides its entities. Raises OSError for own sentences that are not there.
    """
    own = Path(options.own_sentences).read_bytes() if options.own_sentences else b""
    return {"language": options.language, "own": hashlib.sha256(own).hexdigest()}


def keep_house(places: Places, options: Options, env: dict[str, str]) -> None:
    """Trains the house if there is none, or for another language or other sentences; else what changed in it."""
    recipe = recipe_of(options)
    known = json.loads(places.recipe.read_text(encoding="utf-8")) if places.recipe.exists() else None
    if places.house.exists() and known == recipe:
        update(places, options, env)
        return
    trained = places.folder / "house.trained"
    shutil.rmtree(trained, ignore_errors=True)
    own = ("--own", options.own_sentences) if options.own_sentences else ()
    if edgetune("home", "train", places.entities, "-o", trained, "--language", options.language, "--memory",
                options.memory, *own, env=env):
        return
    for old in (places.house, places.refused):
        shutil.rmtree(old, ignore_errors=True)
    trained.rename(places.house)
    places.recipe.write_text(json.dumps(recipe), encoding="utf-8")


def update(places: Places, options: Options, env: dict[str, str]) -> None:
    """Trains what changed; not again for entities with which the house became worse."""
    if not changed(places.house, places.entities):
        say("the entities are those that the house knows")
        return
    if (places.refused / ENTITIES).exists() and not changed(places.refused, places.entities):
        say("the house stays as it was: trained with these entities it was worse")
        return
    words = ("home", "update", places.house, places.entities, "--memory", options.memory)
    if edgetune(*words, env=env) not in (0, WORSE):
        say("the house stays as it was")


def changed(house: Path, entities: Path) -> bool:
    return bool(Change.of(read_home(house / ENTITIES), read_home(entities)))


# ---- who may ask -----------------------------------------------------------------------------------------------------


def keep_keys(places: Places, clients: tuple[str, ...]) -> None:
    """A key for each client, shown once; those of clients that are gone end."""
    lines = places.keys.read_text(encoding="utf-8").splitlines() if places.keys.exists() else []
    kept = [line for line in lines if line.rpartition(" ")[2] in clients]
    if kept != lines:
        places.keys.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    known = {line.rpartition(" ")[2] for line in kept}
    for client in dict.fromkeys(clients):
        if client not in known:
            say(f"the key of {client}, shown this once: {add_key(places.keys, client)}")
    say(f"clients with a key reach http://{socket.gethostname()}:{DaemonConfig.port}")


# ---- the start -------------------------------------------------------------------------------------------------------


def become(name: str, folder: Path) -> str:
    """Gives the folder to a user and goes on as that user. Returns the user's home."""
    user = pwd.getpwnam(name)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
    os.setgroups([])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    return user.pw_dir


def daemon_options(places: Places, options: Options, env: dict[str, str]) -> dict[str, str]:
    """Variables of `edgetune serve`; what the environment says comes first."""
    ours = {"HOST": "0.0.0.0", "TRUSTED_PROXY": INGRESS, "KEY_FILE": places.keys, "STATE": places.folder / "state",
            "HOME": places.house, "MEMORY": options.memory, "LEARN": options.learn}
    return {f"EDGETUNE_DAEMON_{name}": str(value) for name, value in ours.items()} | env


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("/data"))
    parser.add_argument("--hub", default=HUB)
    parser.add_argument("--user", default="", help="Who runs it [the one who calls].")
    parser.add_argument("--tries", type=int, default=TRIES)
    parser.add_argument("--pause", type=float, default=PAUSE)
    args = parser.parse_args()
    options = Options.read(args.data / "options.json")
    places = Places(args.data / "edgetune")
    places.folder.mkdir(exist_ok=True)
    env = {name: value for name, value in os.environ.items() if name not in TOKENS}
    env["XDG_CACHE_HOME"] = str(places.folder / "cache")
    if args.user:
        env["HOME"] = become(args.user, places.folder)

    for name in ("minilm", options.model):
        if not Path(name).exists() and edgetune("pull", name, env=env):
            sys.exit(1)
    if read_entities(places, args.hub, env, os.environ.get(TOKENS[0], ""), args.tries, args.pause):
        keep_house(places, options, env)
    if not places.house.exists():
        sys.exit("there is no house, so nothing can be served; the lines above say why")
    keep_keys(places, options.clients)
    os.execve(EDGETUNE[0], [*EDGETUNE, "serve", options.model], daemon_options(places, options, env))


if __name__ == "__main__":
    try:
        main()
    except (EdgetuneError, OSError) as error:
        sys.exit(f"edgetune: {error}")
