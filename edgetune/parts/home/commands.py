"""The commands of home: a house of Home Assistant learns to call its tools."""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...cli.app import (
    ModelPath,
    cli,
    command,
    config_options,
    out,
    show,
    stop_on_signals,
    threads_option,
    train_progress,
)
from ...cli.daemon import NICE
from ...cli.feedback import FEEDBACK
from ...cli.output import new_file
from ...cli.remote import request, url_path
from ...console import Copyable
from ...errors import shell_word
from ...training.config import CommonOptions
from .recipe import Recipe

if TYPE_CHECKING:
    from .rows import HouseRow

SHOWN = 20  # rows that `home rows` prints
ENTITIES = click.argument("entities", type=click.Path(path_type=Path))
HOUSE = click.argument("house", type=click.Path(path_type=Path))
OUT = click.option("-o", "--out", "to", type=click.Path(path_type=Path), required=True, help="New file or folder.")
MEMORY = config_options("memory", of=CommonOptions, grouped=False)
DRAWN = ("language", "count", "seed", "own")


@cli.group("home")
def home() -> None:
    """Teach a house of Home Assistant to a model."""


@command("entities",
         click.option("--url", required=True, help="Home Assistant, such as http://homeassistant.local:8123, or its "
                      "WebSocket API, such as ws://supervisor/core/websocket."),
         click.option("--token-file", type=click.Path(path_type=Path),
                      help="File that holds a long-lived access token [HOME_ASSISTANT_TOKEN]."), OUT, group=home)
def home_entities(url: str, token_file: Path | None, to: Path, as_json: bool) -> None:
    """Read the entities of a Home Assistant.

    Only those that are exposed to Assist are read. The file is the ENTITIES of the other commands.
    """
    from ...data.yaml_text import write_yaml
    from ...disk import refuse_existing, replaced
    from .entities import home_of
    from .systems.registry import system_at
    refuse_existing(to)
    found = system_at(url).entities(url, token_file)
    read = home_of(found, url)
    with replaced(to) as beside:
        beside.write_text(write_yaml(found), encoding="utf-8")
    domains = Counter(entity.domain for entity in read.entities)
    show(as_json, {"out": str(to), "entities": len(read.entities), "areas": len(read.areas), "domains": domains},
         f"{len(read.entities)} entities in {len(read.areas)} areas: {counts(domains)}",
         Copyable(f"next: edgetune home train {shell_word(to)} -o house"))


@command("rows", ENTITIES, OUT, config_options(*DRAWN, of=Recipe, grouped=False),
         click.option("--for", "version", default="", metavar="VERSION",
                      help="Write conversations for a model that writes text, with the prompt and tools that this "
                      "version of Home Assistant sends: 2026.2, or 2026.11 for it and later ones."), group=home)
def home_rows(entities: Path, to: Path, version: str, as_json: bool, **options: Any) -> None:
    """Write sentences of a house, and the calls they mean.

    ENTITIES is a YAML file with areas and entities. The sentences come from Home Assistant's own templates and ours.
    With --for, edgetune train learns the rows as they are.
    """
    from ...disk import refuse_existing
    from .chats import write_chats
    from .house import plain, write_rows
    from .learning import draw_rows
    refuse_existing(to)
    drawn = draw_rows(entities, Recipe(**options))
    rows = [*drawn.held, *drawn.learned]
    if version:
        rows = write_chats(to, rows, drawn.home, drawn.language, version, options["seed"])
    else:
        write_rows(to, rows)
    kinds = Counter(row.kind for row in rows)
    tools = Counter(call.name for row in rows for call in row.calls)
    show(as_json, {"out": str(to), "rows": len(rows), "kinds": kinds, "tools": tools,
                   "sample": [plain(row) for row in rows[:SHOWN]]},
         f"{len(rows)} sentences in {to}: {counts(kinds)}", f"calls: {counts(tools)}", "",
         *(f"{row.sentence}  ->  {meaning(row)}" for row in rows[:SHOWN]))


@command("train", ENTITIES, OUT, config_options(*DRAWN, "with_", "encoder", "decoder", of=Recipe, grouped=False),
         MEMORY, threads_option, group=home)
def home_train(entities: Path, to: Path, memory: str, threads: int, as_json: bool, **options: Any) -> None:
    """Train a house from only its ENTITIES.

    It draws sentences, learns them, and says how many of other drawn sentences give the right calls.
    """
    from ...console import duration
    from ...training.callbacks import RunCallbacks
    from .learning import make_house
    began = time.monotonic()
    with stop_on_signals() as should_stop, train_progress(as_json) as progress:
        house = make_house(entities, to, Recipe(**options), memory=memory, threads=threads,
                           callbacks=RunCallbacks(progress.event, should_stop),
                           on_step=lambda step: None if as_json else out.print(step))
    seconds = time.monotonic() - began
    facts = house.facts
    show(as_json, {"out": str(to), "rows": facts.rows, "right": facts.right, "asked": facts.asked, "seconds": seconds},
         f"{facts.right} of {facts.asked} other sentences right, {duration(seconds)} in all",
         Copyable(f"ask it: edgetune home eval {shell_word(to)} SENTENCES.jsonl"))


@command("update", HOUSE, click.argument("entities", type=click.Path(path_type=Path), required=False),
         config_options("own", of=Recipe, grouped=False), MEMORY, threads_option, group=home)
def home_update(house: Path, entities: Path | None, own: str, memory: str, threads: int, as_json: bool) -> None:
    """Train a HOUSE again after a change.

    It learns other ENTITIES, further sentences of yours, or both.
    The new house takes the place of the old one, which stays as HOUSE.before, unless it is worse on sentences about
    entities that stayed or on yours, or no better on what is new. Then it stays as HOUSE.new, and the command exits
    with 3.
    """
    from ...errors import WORSE
    from ...training.callbacks import RunCallbacks
    from .updating import update_house
    with stop_on_signals() as should_stop, train_progress(as_json) as progress:
        found = update_house(house, entities, own, memory=memory, threads=threads,
                             callbacks=RunCallbacks(progress.event, should_stop),
                             on_step=lambda step: None if as_json else out.print(step))
    changed = {name: list(getattr(found.change, name)) for name in ("added", "renamed", "removed")}
    stayed = found.stayed.right
    asked = found.changed.right.rows
    of_own = found.own.right.rows
    others = f"; {found.right} of {asked} about the others right" if found.change else ""
    yours = f"; {found.own_right} of {of_own} of yours right" if of_own else ""
    show(as_json, {**changed, "replaced": found.replaced, "better": stayed.wins, "worse": stayed.losses,
                   "right": found.right, "asked": asked, "own_right": found.own_right, "own": of_own},
         *(f"{name}: {', '.join(names)}" for name, names in changed.items() if names),
         f"of sentences about what stayed {stayed.wins} better, {stayed.losses} worse, {stayed.ties} equal"
         f"{others}{yours}",
         f"{house} is the new house" if found.replaced else f"{house} stays as it was, the new one is {house}.new")
    sys.exit(0 if found.replaced else WORSE)


@request("corrections", OUT, group=home)
def home_corrections(client: Any, to: Path, as_json: bool) -> None:
    """Write what a daemon was told of a house.

    The file has the corrections of Home Assistant's requests, as sentences for `home update --own`.
    """
    from ...disk import json_lines, refuse_existing, replaced
    from .own import own_rows
    refuse_existing(to)
    rows = own_rows(client.get(url_path(FEEDBACK, piece["id"])) for piece in client.all(FEEDBACK))
    with replaced(to) as beside:
        beside.write_text(json_lines(rows), encoding="utf-8")
    show(as_json, {"out": str(to), "rows": len(rows)}, f"{len(rows)} sentences in {to}",
         Copyable(f"learn them: edgetune home update HOUSE --own {shell_word(to)}"))


@command("eval", HOUSE, click.argument("data", type=click.Path(path_type=Path)),
         click.option("--save", type=click.Path(path_type=Path), callback=new_file,
                      help="New file for the calls, a line for each sentence."),
         click.option("--show-wrong", type=click.IntRange(0), default=0, help="Print this many wrong answers."),
         threads_option, group=home)
def home_eval(house: Path, data: Path, save: Path | None, show_wrong: int, threads: int, as_json: bool) -> None:
    """Ask a HOUSE the sentences of a file.

    Each row of DATA has a `sentence`, and, to be counted, `accepted`: lists of calls, each {"name", "arguments"}.
    """
    from statistics import median

    from .asking import ask, read_asked, save_answers
    from .house import House
    from .understanding import understanding_of
    rows = read_asked(data)
    with understanding_of(House.open(house), threads) as understanding:
        answers = ask(understanding, rows)
    if save:
        save_answers(save, answers)
    judged = [one.right for one in answers if one.right is not None]
    right = sum(judged)
    milliseconds = median(one.milliseconds for one in answers)
    wrong = [one for one in answers if one.right is False][:show_wrong]
    verdict = f"{right} of {len(judged)} sentences right, " if judged else ""
    show(as_json, {"asked": len(answers), "judged": len(judged), "right": right, "milliseconds": milliseconds},
         f"{verdict}{len(answers)} asked, {milliseconds:.0f} ms each",
         *(f"{one.sentence}  ->  {[call.to_json() for call in one.calls]}" for one in wrong))


@command("install", HOUSE,
         click.option("--model", type=ModelPath(), default="smollm2", show_default=True,
                      help="Model that answers what the house leaves to it."),
         click.option("--key-file", type=click.Path(path_type=Path),
                      help="File of keys (edgetune service key): other computers may ask then [only this device]."),
         click.option("--memory", default="", help="Memory of the service at most, such as 400M."),
         click.option("--print", "print_only", is_flag=True, help="Print the unit and change nothing."), group=home)
def home_install(house: Path, model: Path, key_file: Path | None, memory: str, print_only: bool, as_json: bool) -> None:
    """Install a service that answers for a HOUSE.

    It is the service of `edgetune service install MODEL --home HOUSE`, needs root, and says what to do in Home
    Assistant.
    """
    import socket

    from ...daemon import unit
    from ...daemon.options import DaemonConfig
    from ...machine.policy import Policy
    from .house import House
    House.open(house)
    host = "0.0.0.0" if key_file else DaemonConfig.host
    keys = str(key_file or DaemonConfig.key_file)
    config = DaemonConfig(home=str(house.absolute()), memory=memory, host=host, key_file=keys).check()
    text = unit.unit(model, config, Policy(nice=NICE))
    name = socket.gethostname() if key_file else "127.0.0.1"
    steps = [f"in Home Assistant: Settings, Devices & services, Add integration, Ollama: http://{name}:{config.port}",
             *(["as API key, one of the key file's"] if key_file else []),
             f"add a conversation agent with the model {model.stem.lower()}:latest; Control Home Assistant: Assist"]
    if print_only:
        show(as_json, {"unit": text, "steps": steps}, Copyable(text), *steps)
        return
    path = unit.install(text)
    show(as_json, {"unit": text, "path": str(path), "steps": steps}, f"{path} is written, enabled and runs", *steps)


def counts(found: Counter[str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in found.most_common())


def meaning(row: HouseRow) -> str:
    """What a sentence asks for, in a line."""
    said = [f"{call.name}({', '.join(f'{key}={value}' for key, value in call.arguments.items())})"
            for call in row.calls]
    return " ".join(said) or f"no call: {row.why}"
