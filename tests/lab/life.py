"""Rounds of 50 corrections of Snips, then one round of shuffled answers and one of consistently wrong ones.

A service on an empty state is asked, gets corrections as a person would give them, and learns after each round; the
gate says whether the new adapter becomes active. After each change the active adapter answers rows that are never
given. A method that learns from rewards gets a grader that counts the right fields, unless another is named. Trainings
have the service's own options; --lr is that of sft.

--second N: N rounds of the demonstration's home commands follow the good rounds, and its wrong rounds come too.
--relearn: at last all is learned again on the same base, as `edgetune feedback learn --all` does, beside one `edgetune
train` on the rows. With --state the service and the results are stored in a folder: a simulation that was stopped, even
in the midst of a round, is continued by the same command, also with more rounds. Exits with 1 unless the targets of
`verdicts` are reached.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from json_lines import read_lines, write_lines
from lab.common import DEMO, SNIPS, Result, Row, add_result, add_usual, edgetune, end_with, read_results, snips, wins

from edgetune import TrainConfig
from edgetune.daemon.kinds.feedback import ALL
from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.service import Service
from edgetune.daemon.state.holdout import KEY, KEY_BYTES
from edgetune.data import prompts
from edgetune.demo.run import SYSTEM as HOME_SYSTEM
from edgetune.evaluation.acceptance import Paired
from edgetune.evaluation.judge import same
from edgetune.machine.policy import Policy
from edgetune.objectives.base import objectives
from edgetune.serving.question import Question

GRADER = {"type": "json_match", "name": "fields", "input": "{{ sample.output_text }}",
          "reference": "{{ item.completion }}"}
EXACT = 0.22  # of the rows that are never given, after the good rounds: at least
KEPT = 0.8  # of the corrections that a good round learned, answered as corrected after it: at least
LOST = 0.02  # of Snips' exact answers that a second task may cost, and that learning again may have fewer
HOME = "home"
Rounds = list[tuple[str, str, list[Row]]]  # task, what is done to its answers, rows


# ---- a round ---------------------------------------------------------------------------------------------------------


def asked(row: Row) -> list[dict[str, str]]:
    return [{"role": "system", "content": row.get("system", SNIPS)}, {"role": "user", "content": row["prompt"]}]


def answered(service: Service, rows: list[Row], is_traffic: bool = False) -> list[str]:
    """What is in service says, each with room for the right answer and more. is_traffic: people ask, so that some
    questions are drawn for the gate; else nothing is kept of them.
    """
    tickets = []
    for row in rows:
        budget = 2 * len(service.served.tokenizer.encode(row["completion"])) + 16
        tickets.append(service.ask(Question(asked(row), options={"max_tokens": budget}, may_be_kept=is_traffic)))
    return [ticket.text().strip() for ticket in tickets]


def right(service: Service, rows: list[Row]) -> list[bool]:
    return [same(row["completion"], said) for row, said in zip(rows, answered(service, rows), strict=True)]


def live(service: Service, number: int, rows: list[Row]) -> Result:
    """Corrections come in, and are learned. A right answer that is written otherwise is not called wrong.

    number: of the rounds before. Of a round that was stopped only what is missing is done; all are of the same size.
    """
    began = time.monotonic()
    given = sum(service.feedback.counts().values()) - number * len(rows)
    rows = rows[given:]
    for row, answer in zip(rows, answered(service, rows, is_traffic=True), strict=True):
        wrong = "" if same(row["completion"], answer) else answer
        service.feedback.add(messages=asked(row), answer=wrong, correction=row["completion"])
    begun = service.jobs.list()
    return {**learn(service, begun[0].id if len(begun) > number else ""), "seconds": time.monotonic() - began}


def learn(service: Service, id: str = "", kind: Any = None) -> Result:
    """A lesson to its end, and what became of it. id: of one that has begun."""
    job = service.jobs.wait(id or service.learner.begin(*([kind] if kind else [])).id)
    if job.status != "succeeded":
        sys.exit(f"{job.id} {job.status}: {job.error}")
    verdict = service.adapters.get(job.result or "").verdict
    corrected = verdict.get("corrected") or {"kept": 0, "rows": 0}
    return {"promoted": service.adapters.serving == job.result, "adapter": job.result, "tokens": job.trained_tokens,
            "kept": corrected["kept"] / max(corrected["rows"], 1),
            **{name: verdict.get(name) for name in ("reason", "old", "new", "canary")}}


# ---- all rounds ------------------------------------------------------------------------------------------------------


def shuffled(rows: list[Row]) -> list[Row]:
    """Each question with another one's answer."""
    turned = random.Random(0).sample(rows, len(rows))
    answers = {a["prompt"]: b["completion"] for a, b in zip(turned, turned[1:] + turned[:1], strict=True)}
    return [{**row, "completion": answers[row["prompt"]]} for row in rows]


def swapped(rows: list[Row], key: str = "intent") -> list[Row]:
    """Each intent is called by the name of the next one, the same everywhere; slots are right. key: of the intent."""
    answers = [json.loads(row["completion"]) for row in rows]
    intents = sorted({answer[key] for answer in answers})
    following = dict(zip(intents, intents[1:] + intents[:1], strict=True))
    return [{**row, "completion": json.dumps({**answer, key: following[answer[key]]}, ensure_ascii=False)}
            for row, answer in zip(rows, answers, strict=True)]


def commands(part: str) -> list[Row]:
    return [{**row, "system": HOME_SYSTEM} for row in read_lines(DEMO / f"home_{part}.jsonl")]


def plan(args: argparse.Namespace) -> Rounds:
    """The rows of each task come in order."""
    left = {"snips": read_lines(args.given) if args.given else snips(args.shared),
            HOME: random.Random(args.seed).sample(found := commands("train"), len(found))}
    kinds: list[tuple[str, str, Callable[[list[Row]], list[Row]]]] = [("snips", "good", list)] * args.rounds
    kinds += [(HOME, "good", list)] * args.second
    if not args.no_wrong:
        kinds += [("snips", "shuffled", shuffled), ("snips", "swapped", swapped)]
        kinds += [(HOME, "shuffled", shuffled), (HOME, "swapped", partial(swapped, key="device"))][:2 * args.second]
    rounds = []
    for task, kind, spoil in kinds:
        rows, left[task] = left[task][:args.corrections], left[task][args.corrections:]
        if len(rows) < args.corrections:
            sys.exit(f"{args.corrections} more rows of {task} are needed, {len(rows)} are left: ask for fewer rounds")
        rounds.append((task, kind, spoil(rows)))
    return rounds


def opened(args: argparse.Namespace, state: Path) -> Service:
    kind = objectives().get(args.learn_method)
    grader = args.learn_grader or ""
    if kind and kind.rows is prompts and not grader:
        grader = state / "grader.json"
        grader.write_text(json.dumps(GRADER))
    config = DaemonConfig(state=str(state), context=args.context, queue=max(args.dev, args.corrections), recall=False,
                          learn_method=args.learn_method, learn_options=args.learn_options, learn_grader=str(grader))
    (state / KEY).write_bytes(bytes(KEY_BYTES))  # the same rows are held out in every life
    train = TrainConfig(seed=args.seed, lr=args.lr or TrainConfig.lr)
    return Service(args.model, config, Policy(govern=False, nice=19), train)


def lived(args: argparse.Namespace, folder: Path) -> list[Result]:
    """All rounds, what was found in each. right: by task, of each row that is never given."""
    never = {"snips": (read_lines(args.never) if args.never else snips(args.shared, "dev"))[:args.dev],
             **({HOME: commands("heldout")[:args.dev]} if args.second else {})}
    rounds = plan(args)
    found = folder / "life.jsonl"
    life = read_results(found)
    state = folder / "state"
    state.mkdir(exist_ok=True)
    with opened(args, state) as service:
        rights = {task: right(service, rows) for task, rows in never.items()}
        for number, (task, kind, rows) in list(enumerate(rounds))[len(life):]:
            done = live(service, number, rows)
            rights = {name: right(service, of) for name, of in never.items()} if done["promoted"] else rights
            add_result(found, life, {"task": task, "kind": kind, **done, "right": rights})
            shares = ", ".join(f"{name} {share(flags):.1%}" for name, flags in rights.items())
            print(f"round {number + 1}, {task} {kind}: {'active' if done['promoted'] else 'refused'}, {shares}; "
                  f"{done['reason']}; canary {done['canary']['rise']:+.1%} from the base; {done['seconds']:.0f} s",
                  flush=True)
        if args.relearn and len(life) == len(rounds):
            done = relearned(args, service, folder, never["snips"])
            add_result(found, life, {"task": "all", "kind": "relearned", **done})
    return life


def relearned(args: argparse.Namespace, service: Service, folder: Path, never: list[Row]) -> Result:
    """What serves after everything is learned again, beside one training on the same rows."""
    rows = [service.feedback.row(row) for row in service.feedback.learned_rows().new]
    done = learn(service, kind=ALL)
    once = folder / "once"
    edgetune("train", args.model, write_lines(folder / "rows.jsonl", rows), "-o", once, "--no-answers", "--no-govern",
             "--seed", args.seed, "--json")
    rows = write_lines(folder / "never.jsonl", never)
    found = edgetune("eval", args.model, rows, "--adapter", once, "--system", SNIPS, "--json")
    return {**done, "right": {"snips": right(service, never)}, "once": found["exact"]}


def share(rights: Sequence[bool]) -> float:
    return sum(rights) / len(rights)


def verdicts(life: list[Result], args: argparse.Namespace) -> dict[str, bool]:
    good = life[:args.rounds]
    exact = [share(done["right"]["snips"]) for done in good]
    third = max(len(exact) // 3, 1)
    wrong = [done for done in life if done["kind"] in ("shuffled", "swapped")]
    found = {f"exact after the good rounds: {exact[-1]:.1%}, at least {EXACT:.0%}": exact[-1] >= EXACT,
             "more and more are right": exact[-1] > exact[0] and sum(exact[-third:]) > sum(exact[:third]),
             f"corrections kept in the worst good round: {min(done['kept'] for done in good):.0%}, at least {KEPT:.0%}":
             all(done["kept"] >= KEPT for done in good),
             f"all {len(wrong)} wrong rounds are refused": not any(done["promoted"] for done in wrong)}
    if args.second:
        before, after = (done["right"] for done in (good[-1], life[args.rounds + args.second - 1]))
        gained = Paired.of(before.get(HOME, [False] * len(after[HOME])), after[HOME])
        found[f"home commands: {share(after[HOME]):.1%} right, {gained.wins} won, {gained.losses} lost"] = wins(gained)
        lost = exact[-1] - share(after["snips"])
        found[f"the second task costs {lost:.1%} of Snips, at most {LOST:.0%}"] = lost <= LOST
    if args.relearn:
        now = share(life[-1]["right"]["snips"])
        found[f"after learning again {now:.1%}, one training {life[-1]['once']:.1%}"] = now >= life[-1]["once"] - LOST
    return found


def options(parser: argparse.ArgumentParser) -> None:
    """corrections: in a round. seed: of the trainings. given, never: other rows of JSON answers with an intent, and
    those that are never given.
    """
    add_usual(parser, rounds=10, second=0, dev=50, lr=0.0, seed=0, context=2048, corrections=50, relearn=False,
              no_wrong=False, learn_method=DaemonConfig.learn_method, learn_options="",
              learn_grader=Path, given=Path, never=Path, state=Path)


def main(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.state or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        life = lived(args, folder)
    print(json.dumps({"seconds": sum(done.get("seconds", 0) for done in life), "life": life}))
    end_with(verdicts(life, args))
