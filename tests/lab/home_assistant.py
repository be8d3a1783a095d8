"""A real Home Assistant, whose Ollama integration asks a daemon.

Home Assistant runs in a Debian root (hass.py) with the house of lab/house. Each sentence of its file is said to
Assist's conversation API, and the states of all entities are read before and after it: those that were wanted must have
changed as they should, and no other. What edgetune reads of its entities, and the prompt that it writes rows for, must
be what is there and is sent. Then at most --corrections of the wrong ones are corrected at the daemon with the
right calls, and said again: a correction counts at once for the same question.

--model and --adapter say what the daemon serves; further options are the daemon's own. --save writes the system message
and the tools that this Home Assistant sends, and a line for each sentence. --learned writes what was corrected as a
person's own sentences, for `edgetune home update --own`. --by openai_conversation says the sentences
alone, through the integration of OpenAI's API.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ollama
import yaml
from daemons import process
from hass import HOUSE, HomeAssistant, home_assistant, make_root, missing, overheard
from lab.common import ROOT, add

from edgetune.daemon.client import Client
from edgetune.parts.home.entities import read_home
from edgetune.parts.home.prompt import prompt_of, versions
from edgetune.parts.home.systems.home_assistant import read_entities

ROOTS = ROOT / "build" / "home-assistant"
REST = True  # options that are not ours are the daemon's
CONTEXT = ["--context", "8192"]  # a prompt with its tools has thousands of tokens, which a house need not read
Bodies = list[dict[str, Any]]


@dataclass
class Said:
    """A sentence, with what became of it. calls: of all rounds. changed: by entity, the properties that differ."""

    sentence: str
    calls: list[dict[str, Any]]
    changed: dict[str, dict[str, Any]]
    right: bool
    answer: str
    seconds: float


def say(home: HomeAssistant, row: dict[str, Any], heard: Bodies) -> Said:
    home.set_up(row.get("given", {}))
    before = home.states()
    began = time.monotonic()
    answer = home.say(row["say"])
    seconds = time.monotonic() - began
    after = home.states()
    changed = {name: {key: value for key, value in state.items() if before[name].get(key) != value}
               for name, state in after.items() if state != before[name]}
    wanted = row["want"]
    right = changed.keys() == wanted.keys() and all(
        changed[name].get(key) == value for name, values in wanted.items() for key, value in values.items())
    return Said(row["say"], calls_of(heard[-1]) if heard else [], changed, right, answer, seconds)


def calls_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The calls that a request repeats; those of a last answer without one after it are not known."""
    return [call["function"] for message in body["messages"] for call in message.get("tool_calls") or ()]


def say_all(home: HomeAssistant, rows: list[dict[str, Any]], heard: Bodies) -> list[Said]:
    said = []
    for row in rows:
        said.append(say(home, row, heard))
        each = said[-1]
        print(f"{'right' if each.right else 'wrong'} {each.seconds:5.1f} s  {each.sentence} -> {brief(each.changed)} "
              f"| {each.answer[:100]!r}", flush=True)
    print(f"{sum(each.right for each in said)} of {len(said)} right, median "
          f"{statistics.median(each.seconds for each in said):.1f} s, first {said[0].seconds:.1f} s", flush=True)
    return said


def brief(changed: dict[str, dict[str, Any]]) -> str:
    return ", ".join(f"{name} {values.get('state', values)}" for name, values in changed.items()) or "nothing"


def correct(daemon: Client, asked: dict[str, Any], calls: list[dict[str, Any]]) -> None:
    """Sends the right calls as the answer to a question, with the names that this Home Assistant gives its tools."""
    names = [tool["function"]["name"] for tool in asked["tools"]]
    full = {name.rpartition("__")[2]: name for name in names}
    texts = [json.dumps({"name": full[call["name"]], "arguments": call["arguments"]}) for call in calls]
    daemon.post("/v1/feedback", {"messages": asked["messages"], "tools": asked["tools"],
                                 "correction": "\n".join(f"<tool_call>\n{text}\n</tool_call>" for text in texts)})


def check_entities(home: HomeAssistant, file: Path) -> None:
    """Whether `edgetune home entities` reads of it what the file has."""
    def known(house: Mapping[str, Any]) -> set[tuple[str, str, str]]:
        areas = {area["id"]: f"{area['name']}, {area.get('floor') or ''}" for area in house["areas"]}
        return {(one["id"], one["name"], areas.get(one.get("area"), "")) for one in house["entities"]}

    read = known(read_entities(home.url, home.token))
    written = known(yaml.safe_load(file.read_text("utf-8")))
    assert read == written, f"only read: {read - written}; only in {file}: {written - read}"
    print(f"{len(read)} entities read", flush=True)


def check_prompt(sent: dict[str, Any], file: Path, version: str) -> None:
    """Whether the system message and the tools that were sent are those that `edgetune home rows --for` writes, as
    Ollama's client passes them on. Home Assistant gives tools and values another order at each start.
    """
    def ordered(schema: Any) -> Any:
        if isinstance(schema, Mapping):
            return {key: ordered(value) for key, value in schema.items()}
        return sorted(map(ordered, schema), key=repr) if isinstance(schema, list) else schema

    release = [int(part) for part in version.split(".")[:2]]
    known = [each for each in versions() if [int(part) for part in each.split(".")] <= release][-1]
    prompt = prompt_of(read_home(file), known)
    assert sent["messages"][0]["content"].strip() == prompt.system, f"{version} has another prompt than {known}"
    passed = [ollama.Tool(**tool).model_dump(exclude_none=True) for tool in prompt.tools]
    assert ordered(sent["tools"]) == ordered(passed), f"{version} has other tools than {known}"
    print(f"the prompt of {version} is that of --for {known}", flush=True)


def prove(home: HomeAssistant, daemon: Client, heard: Bodies, args: argparse.Namespace) -> None:
    check_entities(home, args.entities)
    rows = yaml.safe_load(args.sentences.read_text("utf-8"))
    said = say_all(home, rows, heard)
    if not heard:  # by OpenAI's API
        return
    asked = {body["messages"][-1]["content"]: body for body in heard if body["messages"][-1]["role"] == "user"}
    if args.save:
        sent = {"system": heard[0]["messages"][0]["content"], "tools": heard[0]["tools"]}
        lines = [{"version": home.config["version"], **sent},
                 *(vars(each) for each in said)]
        args.save.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")
    check_prompt(heard[0], args.entities, home.config["version"])
    wrong = [row for row, each in zip(rows, said, strict=True) if row["calls"] and not each.right][:args.corrections]
    for row in wrong:
        correct(daemon, asked[row["say"]], row["calls"])
    if wrong:
        print(f"{len(wrong)} corrected:", flush=True)
        if args.learned:
            subprocess.run([sys.executable, "-m", "edgetune", "home", "corrections", "-o", args.learned, "--url",
                            daemon.url], check=True)
        say_all(home, wrong, heard)


def options(parser: argparse.ArgumentParser) -> None:
    add(parser, model="smollm2", adapter=Path, entities=HOUSE / "entities.yaml", sentences=HOUSE / "sentences.yaml",
        corrections=20)
    parser.add_argument("--by", choices=["ollama", "openai_conversation"], default="ollama", help="its integration")
    parser.add_argument("--suite", default="trixie", help="of Debian; what its Python runs of Home Assistant is proved")
    parser.add_argument("--learned", type=Path, help="a file for what was corrected, as sentences of a person")
    parser.add_argument("--save", type=Path, help="a file of JSON lines for the prompt and what was said")


def main(args: argparse.Namespace) -> int:
    if why := missing():
        print(f"skipped: {why}")
        return 0
    root = ROOTS / args.suite
    try:
        make_root(root, args.suite)
    except subprocess.CalledProcessError as error:
        print(f"skipped: the root cannot be made, and needs a network the first time:\n{error.stdout[-1000:]}")
        return 0
    with (tempfile.TemporaryDirectory() as name,
          process(args.model, Path(name), *([] if "--home" in args.rest else CONTEXT),
                  *args.rest) as running, Client(running.url) as daemon,
          overheard(running.url) as (proxy, heard),
          home_assistant(root, args.entities, Path(name, "home.log"), f"{running.url}/v1") as home):
        if args.adapter:
            daemon.post(f"/v1/adapters/{daemon.add_adapter(args.adapter)['id']}/promote")
        print(f"Home Assistant {home.config['version']} on {args.suite}", flush=True)
        home.add_agent(args.by, proxy, daemon.get("/api/tags")["models"][0]["name"])  # with the active adapter
        prove(home, daemon, heard, args)
        print(f"the daemon took at most {running.memory('VmHWM') >> 20} MiB")
    return 0
