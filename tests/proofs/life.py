"""Simulation of ten rounds of 50 corrections, then one round of shuffled answers and one of consistently wrong ones.

    python tests/proofs/life.py [--model GGUF] [--shared ../shared] [--rounds 10] [--no-wrong] [--corrections 50]
                                 [--dev 50] [--lr RATE] [--seed 0] [--context 2048] [--learn-method sft]
                                 [--learn-options ""] [--learn-grader FILE] [--given FILE --never FILE] [--state DIR]

A service on an empty state is asked, and gets corrections as a person would give them, of Snips unless other rows are
named, and learns after each round; the gate says whether the new adapter becomes active. After each change the active
adapter answers rows that are never given. A method that learns from rewards gets a grader that counts the right fields
of an answer, unless another is named. Trainings have the service's own options; --lr is that of sft, others have their
own.

With --state the service and the results are stored in a folder: a simulation that was stopped, even in the midst of a
round, is continued by the same command. --no-wrong leaves the wrong rounds out, for proofs/compaction.py and
proofs/second_task.py, which begin from such a folder. Exits with 1 unless the targets below are reached, more and more
of those rows are right over the good rounds, and no wrong round becomes active.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from json_lines import read_lines
from proofs.compared import Result, Row, add_result, arguments, end_with, read_results

from edgetune import TrainConfig
from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.service import Service
from edgetune.daemon.state.holdout import KEY, KEY_BYTES
from edgetune.data import prompts
from edgetune.evaluation.judge import same
from edgetune.machine.policy import Policy
from edgetune.objectives.base import objectives
from edgetune.serving.question import Question

SYSTEM = "Extract the intent and slots as JSON."
GRADER = {"type": "json_match", "name": "fields", "input": "{{ sample.output_text }}",
          "reference": "{{ item.completion }}"}
EXACT = 0.22  # of the rows that are never given, after the good rounds: at least
KEPT = 0.8  # of the corrections that a good round learned, answered as corrected after it: at least


def asked(row: Row) -> list[dict[str, str]]:
    return [{"role": "system", "content": row.get("system", SYSTEM)}, {"role": "user", "content": row["prompt"]}]


def exact(service: Service, dev: list[Row]) -> float:
    """Share of rows that what is in service answers rightly."""
    said = answered(service, dev)
    return sum(same(row["completion"], answer) for row, answer in zip(dev, said, strict=True)) / len(dev)


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


def answered(service: Service, rows: list[Row], is_traffic: bool = False) -> list[str]:
    """What is in service says, each with room for the right answer and more. is_traffic: people ask, so that some
    questions are drawn for the gate; else nothing is kept of them.
    """
    tickets = []
    for row in rows:
        budget = 2 * len(service.served.tokenizer.encode(row["completion"])) + 16
        tickets.append(service.ask(Question(asked(row), options={"max_tokens": budget}, may_be_kept=is_traffic)))
    return [ticket.text() for ticket in tickets]


def live(service: Service, name: str, number: int, rows: list[Row]) -> Result:
    """A round: corrections come in, and are learned. A right answer that is written otherwise is not called wrong.

    number: of the rounds before. Of a round that was stopped only what is missing is done; all are of the same size.
    """
    began = time.monotonic()
    given = sum(service.feedback.counts().values()) - number * len(rows)
    rows = rows[given:]
    said = answered(service, rows, is_traffic=True)
    for row, answer in zip(rows, said, strict=True):
        wrong = "" if same(row["completion"], answer) else answer
        service.feedback.add(messages=asked(row), answer=wrong, correction=row["completion"])
    begun = service.jobs.list()
    job = service.jobs.wait(begun[0].id if len(begun) > number else service.learner.begin().id)
    if job.status != "succeeded":
        sys.exit(f"{job.id} {job.status}: {job.error}")
    verdict = service.adapters.get(job.result or "").verdict
    corrected = verdict["corrected"]
    return {"round": name, "promoted": service.adapters.serving == job.result, "reason": verdict["reason"],
            "old": verdict["old"], "new": verdict["new"], "canary": verdict["canary"], "corrected": corrected,
            "kept": corrected["kept"] / corrected["rows"], "job": job.metadata, "tokens": job.trained_tokens,
            "seconds": time.monotonic() - began}


def grader_file(args: argparse.Namespace, folder: Path) -> str:
    """The file that a method by reward learns by; "" for another method."""
    kind = objectives().get(args.learn_method)
    if kind is None or kind.rows is not prompts:
        return str(args.learn_grader or "")
    path = args.learn_grader or folder / "grader.json"
    if args.learn_grader is None:
        path.write_text(json.dumps(GRADER))
    return str(path)


def options(description: str | None, out: str = "") -> argparse.ArgumentParser:
    parser = arguments(description, out)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--dev", type=int, default=50)
    parser.add_argument("--lr", type=float, help="[the service's own]")
    parser.add_argument("--seed", type=int, default=0, help="of the trainings")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--corrections", type=int, default=50, help="in a round")
    parser.add_argument("--learn-method", default=DaemonConfig.learn_method)
    parser.add_argument("--learn-options", default="")
    parser.add_argument("--learn-grader", type=Path, help="a file [the share of right fields]")
    return parser


def ended(args: argparse.Namespace) -> dict[str, Path]:
    """The folders that --lives names, by their names; each must hold a simulation of --rounds rounds."""
    for folder in args.lives:
        if len(read_results(folder / "life.jsonl")) < args.rounds:
            sys.exit(f"the simulation in {folder} has not {args.rounds} rounds: continue it with proofs/life.py "
                     f"--rounds {args.rounds} --no-wrong --state {folder}")
    return {folder.name: folder for folder in args.lives}


def opened(args: argparse.Namespace, state: Path) -> Service:
    config = DaemonConfig(state=str(state), context=args.context, queue=max(args.dev, args.corrections), recall=False,
                          learn_method=args.learn_method, learn_options=args.learn_options,
                          learn_grader=grader_file(args, state))
    (state / KEY).write_bytes(bytes(KEY_BYTES))  # the same rows are held out in every life
    train = TrainConfig(seed=args.seed, lr=args.lr or TrainConfig.lr)
    return Service(args.model, config, Policy(govern=False, nice=19), train)


def lived(args: argparse.Namespace, folder: Path) -> list[Result]:
    """All rounds, what was found in each."""
    good = read_lines(args.given or args.shared / "data" / "snips_train.jsonl")
    dev = read_lines(args.never or args.shared / "data" / "snips_dev.jsonl")[: args.dev]
    size = args.corrections
    wrong = [] if args.no_wrong else [("shuffled", shuffled), ("swapped", swapped)]
    bad = {str(args.rounds + 1 + i): one for i, one in enumerate(wrong)}
    rounds = [(str(i + 1), good[size * i :][:size]) for i in range(args.rounds + len(bad))]
    found = folder / "life.jsonl"
    life = read_results(found)
    state = folder / "state"
    state.mkdir(exist_ok=True)
    with opened(args, state) as service:
        right = life[-1]["exact"] if life else exact(service, dev)
        print(f"after {len(life)} rounds {right:.1%} of {len(dev)} held-out rows", flush=True)
        for number, (name, rows) in list(enumerate(rounds))[len(life):]:
            kind, spoil = bad.get(name, ("good", list))
            done = live(service, f"{name} {kind}", number, spoil(rows))
            right = done["exact"] = exact(service, dev) if done["promoted"] else right
            add_result(found, life, done)
            print(f"round {done['round']}: {'active' if done['promoted'] else 'refused'}, {right:.1%}; "
                  f"{done['reason']}; canary {done['canary']['rise']:+.1%} from the base; "
                  f"{done['seconds']:.0f} s", flush=True)
    return life


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--given", type=Path, help="other rows of JSON answers with an intent [snips_train]")
    parser.add_argument("--never", type=Path, help="the rows that are never given, with --given [snips_dev]")
    parser.add_argument("--no-wrong", action="store_true", help="good rounds alone")
    parser.add_argument("--state", type=Path, help="a folder in which a life can be continued [a temporary one]")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.state or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        life = lived(args, folder)
    print(json.dumps({"seconds": sum(done["seconds"] for done in life), "life": life}))
    share = [done["exact"] for done in life[:args.rounds]]
    third = max(len(share) // 3, 1)
    found = {f"exact after the good rounds: {share[-1]:.1%}, at least {EXACT:.0%}": share[-1] >= EXACT,
             "more and more are right": share[-1] > share[0] and sum(share[-third:]) > sum(share[:third]),
             f"corrections kept in the worst good round: {min(done['kept'] for done in life[:args.rounds]):.0%}, at "
             f"least {KEPT:.0%}": all(done["kept"] >= KEPT for done in life[:args.rounds])}
    if not args.no_wrong:
        found["wrong rounds are refused"] = not any(done["promoted"] for done in life[args.rounds:])
    end_with(found)


if __name__ == "__main__":
    main()
