"""Houses of a public benchmark, each trained from its entities alone, then asked the benchmark's sentences.

The benchmark is a part of home-assistant-datasets, in the folder home_assistant of the shared data. A sentence is
right if its calls equal one of the accepted lists. How many of the sentences the training drew by itself is counted:
they are in Home Assistant's own templates too. lab/home/no_call.txt has 200 sentences for which no tool is right.
The homes `de` and `fr`, in those languages, are ours, with 30 sentences each.
The plainest baseline is hassil, the recognizer of Home Assistant, with the same templates and the entities. Results are
added to --out, and what it already holds is not measured again.

Exits with 1 unless 80 % of the sentences are right (65 % with a decoder alone), by the mean of the seeds, 95 % of the
others call nothing, and no training takes more than 600 seconds or 400 MB.
"""

import argparse
import json
import resource
import statistics
import time
from functools import partial
from pathlib import Path

import yaml
from hassil import Intents, recognize_best
from hassil.intents import TextSlotList
from home_assistant_intents import get_intents
from json_lines import read_lines, write_lines
from lab.common import Result, add_usual, edgetune, end_with, folder_of, measure_missing

from edgetune.parts.home.entities import read_home
from edgetune.parts.home.house import ROWS
from edgetune.parts.home.tools import Call, same_calls

LEAST = {"encoder": 0.8, "decoder": 0.65, "both": 0.8}  # share of right sentences
HOMES = ("dom1-pl", "home1-us", "home2-ru", "home5-cn", "home7-dk")
FOLDER = Path(__file__).parent / "home"
NO_CALL = FOLDER / "no_call.txt"
OTHERS = tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))  # languages, each with a home of ours
ASKING = [[], [{"name": "GetLiveContext", "arguments": {}}]]  # what no tool is right for may still be looked up


def measured(args: argparse.Namespace, learner: str, home: str, seed: int) -> Result:
    kind, _, decoder = learner.partition(" ")
    folder = folder_of(args) / f"{home}-{seed}-{kind}-{Path(decoder).stem}"
    entities = entities_of(args, home)
    language = home if home in OTHERS else "en"
    began = time.monotonic()
    seconds = None
    if not folder.exists():
        edgetune("home", "train", entities, "-o", folder, "--seed", seed, "--with", kind, "--language",
                 language, "--threads", args.threads,
                 "--memory", args.memory, *(["--decoder", decoder] if decoder else []), "--json")
        seconds = round(time.monotonic() - began)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    sentences = asked(args, home)
    found = edgetune("home", "eval", folder, sentences, "--threads", args.threads, "--json")
    others = write_lines(folder_of(args) / "no_call.jsonl",
                         [{"sentence": text, "accepted": ASKING} for text in texts()])
    quiet = edgetune("home", "eval", folder, others, "--threads", args.threads, "--json")
    drawn = {plain(row["sentence"]) for row in read_lines(folder / ROWS)}
    return {"right": found["right"], "asked": found["asked"], "milliseconds": found["milliseconds"],
            "quiet": quiet["right"], "others": quiet["asked"], "seconds": seconds, "mib": round(peak),
            "drawn": sum(plain(row["sentence"]) in drawn for row in read_lines(sentences))}


def entities_of(args: argparse.Namespace, home: str) -> Path:
    return FOLDER / f"{home}.yaml" if home in OTHERS else args.shared / f"data/home_assistant/fixtures/{home}.yaml"


def asked(args: argparse.Namespace, home: str) -> Path:
    """The file of a home's sentences."""
    if home in OTHERS:
        found = yaml.safe_load(entities_of(args, home).read_text("utf-8"))["sentences"]
        rows = [{"sentence": row["say"], "accepted": [row["calls"]] if row["calls"] else ASKING} for row in found]
        return write_lines(folder_of(args) / f"{home}.jsonl", rows)
    rows = [row for row in read_lines(args.shared / "data/home_assistant/assist.jsonl") if row["home"] == home]
    return write_lines(folder_of(args) / f"{home}.jsonl", rows)


def texts() -> list[str]:
    lines = NO_CALL.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


def plain(sentence: str) -> str:
    return sentence.lower().strip(" .!?")


def recognized(args: argparse.Namespace, home: str) -> int:
    """How many sentences Home Assistant's own recognizer turns into an accepted call."""
    intents = Intents.from_dict(get_intents(home if home in OTHERS else "en"))
    house = read_home(entities_of(args, home))
    lists = {"name": TextSlotList.from_tuples([(one.name, one.name, {"domain": one.domain}) for one in house.entities],
                                              name="name"),
             "area": TextSlotList.from_tuples([(one.name, one.name) for one in house.areas], name="area"),
             "floor": TextSlotList.from_tuples([(floor, floor) for floor in house.floors], name="floor")}
    right = 0
    for row in read_lines(asked(args, home)):
        best = recognize_best(row["sentence"], intents, slot_lists=lists, best_slot_name="name")
        calls = [Call(best.intent.name, {key: one.value for key, one in best.entities.items()})] if best else []
        right += same_calls(calls, row["accepted"])
    return right


def line(found: Result) -> str:
    return (f"{found['learner']} {found['home']:9} seed {found['seed']}  right {found['right']:2} of "
            f"{found['asked']:2}, {found['drawn']} of them drawn  no call {found['quiet']} of {found['others']}  "
            f"{found['seconds'] or '?'} s  {found['mib']} MiB  {found['milliseconds']:.0f} ms")


def options(parser: argparse.ArgumentParser) -> None:
    add_usual(parser, "houses.jsonl", seeds=[0, 1, 2], threads=0, decoder="smollm2", memory="380M")
    parser.add_argument("--homes", nargs="+", choices=(*HOMES, *OTHERS), default=[*HOMES])
    parser.add_argument("--with", dest="learner", choices=LEAST, default="encoder")


def main(args: argparse.Namespace) -> None:
    learner = args.learner + (f" {args.decoder}" if args.learner != "encoder" else "")
    cases = [{"learner": learner, "home": home, "seed": seed} for seed in args.seeds for home in args.homes]
    found = measure_missing(args, cases, partial(measured, args), line)
    asked_in_all = sum(one["asked"] for one in found)
    right = sum(one["right"] for one in found) / asked_in_all
    quiet = sum(one["quiet"] for one in found) / sum(one["others"] for one in found)
    print(f"hassil alone: {sum(recognized(args, home) for home in args.homes)} of {asked_in_all // len(args.seeds)}")
    print(json.dumps({"right": right, "no call": quiet,
                      "milliseconds": statistics.median(one["milliseconds"] for one in found)}))
    slowest = max(one["seconds"] or 0 for one in found)
    largest = max(one["mib"] for one in found) * 1.048576
    least = LEAST[args.learner]
    end_with({f"right: {right:.1%}, at least {least:.0%}": right >= least,
              f"no call: {quiet:.1%}, at least 95 %": quiet >= 0.95,
              f"seconds of a training: {slowest}, at most 600": slowest <= 600,
              f"megabytes: {largest:.0f}, at most 400": largest <= 400})
