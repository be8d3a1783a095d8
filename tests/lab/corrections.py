"""40 corrections and one lesson: are the same 40 questions then answered as corrected, and others of their kind?

For each of three data sets of own_sets.py: a service on an empty state answers 40 rows of its train file, each answer
is corrected, and one lesson is learned with the service's own options. Then the same 40 questions and 20 held-out ones
are asked. Beside it `edgetune train` without an option on a file of the same 40 rows, asked the same.

Exits with 1 unless in each data set 36 of the 40 are right, and the 20 are as good as the file's: not below the 95 %
interval of its share.
"""

import argparse
import tempfile
from dataclasses import replace

from lab.common import Result, add_usual, end_with, folder_of, measure_missing
from lab.comparisons import OWN
from lab.learning import Setting, ask, learned
from lab.life import answered, live
from own_sets import SETS

from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.service import Service
from edgetune.evaluation.acceptance import wilson
from edgetune.machine.policy import Policy

CORRECTED = 40
UNSEEN = 20
KEPT = 36  # of the corrected ones


def measured(args: argparse.Namespace, set: str) -> Result:
    own = SETS[set]
    rows = [{**row, "system": own.system} for row in own.rows("train")[:CORRECTED] + own.rows("heldout")[:UNSEEN]]
    with tempfile.TemporaryDirectory() as state, Service(
            args.model, DaemonConfig(state=state, recall=False), Policy(govern=False, nice=19)) as service:
        lesson = live(service, 0, rows[:CORRECTED])
        flags = [own.right(row["completion"], said)
                 for row, said in zip(rows, answered(service, rows), strict=True)]
    task = replace(OWN[set], held=lambda *_: rows, asked=len(rows))
    setting = Setting(args, set, task, CORRECTED, 0)
    file = learned(setting, setting.rows, folder_of(args) / set)
    return {"lesson": {**lesson, **counted(flags)}, "file": {"seconds": file["seconds"],
                                                             **counted(ask(setting, folder_of(args) / set)["right"])}}


def counted(rights: list[bool]) -> Result:
    return {"corrected": sum(rights[:CORRECTED]), "unseen": sum(rights[CORRECTED:])}


def told(result: Result) -> str:
    return f"{result['set']}: " + "; ".join(
        f"{way}: {found['corrected']} of {CORRECTED} as corrected, {found['unseen']} of {UNSEEN} unseen, "
        f"{found['seconds']:.0f} s{'' if found.get('promoted', True) else ', refused: ' + found['reason']}"
        for way, found in ((way, result[way]) for way in ("lesson", "file")))


def options(parser: argparse.ArgumentParser) -> None:
    add_usual(parser, "corrections.jsonl", ("irrigation", "tickets", "library"), asked=0)


def main(args: argparse.Namespace) -> None:
    found = {}
    for result in measure_missing(args, ({"set": name} for name in args.only), lambda set: measured(args, set), told):
        lesson, file = result["lesson"], result["file"]
        found[f"{result['set']}: {lesson['corrected']} of {CORRECTED} as corrected"] = lesson["corrected"] >= KEPT
        found[f"{result['set']}: {lesson['unseen']} of {UNSEEN} unseen, the file's {file['unseen']}"] = (
            lesson["unseen"] / UNSEEN >= wilson(file["unseen"], UNSEEN)[0])
    end_with(found)
