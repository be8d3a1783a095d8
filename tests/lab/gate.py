"""The gate with people who correct only what is wrong, and are wrong themselves in a quarter of their corrections.

table: how often what is simulated becomes active, in minutes. nights: a daemon of minilm, seconds a night, of four
intents of Snips (from make data). Each night people ask until they corrected 40 wrong answers, every correction has a
wrong label with the probability --noise, and one training follows. 400 other questions measure the active adapter.
Exits with 1 if an adapter that became active answers 5 points fewer of these than the one before.
"""

import argparse
import json
import random
import sys
import tempfile
from itertools import cycle

from lab.common import SHARED, add, snips
from nights import A_THIRD, EVERYBODY, ONLY_CORRECTIONS, SHAPES, Pair, People, share

from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.service import Service
from edgetune.machine.policy import Policy
from edgetune.serving.question import Question

CORRECTED = 40
UNSEEN = 400
INTENTS = ("PlayMusic", "GetWeather", "BookRestaurant", "AddToPlaylist")
WORSE = 0.05
RUNS = 200


def table() -> None:
    """Shares of runs in which an adapter becomes active."""
    null = max((share(Pair(accuracy, **shape), people, 10, RUNS), accuracy, str(shape), str(people))
               for accuracy in (0.1, 0.3, 0.5, 0.7, 0.9) for shape in SHAPES for people in EVERYBODY
               if accuracy >= 0.5 or "likes" not in shape  # it cannot break as much as it mends
               if 0.2 <= accuracy <= 0.8 or shape.get("nested", 0) < 0.2)
    print("no better, ten nights, the most of all:", null, flush=True)
    print("no better, 365 nights, the most:", max(share(Pair(0.7, **shape), people, 365, 60)
                                                 for shape in SHAPES for people in EVERYBODY), flush=True)
    for loss in (-0.05, -0.1):
        print(f"worse by {-loss:.0%}, 20 nights, the most:", max(
            share(Pair(0.7, loss, **shape), people, 20, RUNS) for people in EVERYBODY
            for shape in ({}, {"nested": 0.1}, {"likes": True})), flush=True)
    people = {"a third of the errors corrected": A_THIRD, "all corrected": ONLY_CORRECTIONS,
              "all rated": People(1.0, 1.0), "a third corrected, three checked a night": People(checks=3)}
    for accuracy, gain, shape in ((0.7, 0.05, {}), (0.7, 0.1, {}), (0.7, 0.1, {"nested": 0.02}), (0.5, 0.4, {}),
                                  (0.0, 0.8, {})):
        for name, each in people.items():
            found = [f"{share(Pair(accuracy, gain, **shape), each, nights, RUNS):.0%}" for nights in (1, 5, 20)]
            print(f"{accuracy:.0%} and {gain:+.0%} {shape}, {name}: after 1, 5, 20 nights", *found, flush=True)


def intent(row: dict[str, str]) -> str:
    return str(json.loads(row["completion"])["intent"])


def right(service: Service, rows: list[tuple[str, str]]) -> float:
    """The share of questions that the active adapter answers right, which are not kept."""
    answers = [service.ask(Question(prompt=prompt, may_be_kept=False)) for prompt, _ in rows]
    return sum(answer.text() == label for answer, (_, label) in zip(answers, rows, strict=True)) / len(rows)


def night(service: Service, stream: cycle, dice: random.Random, noise: float) -> None:
    """People ask until they have corrected enough wrong answers."""
    corrected = 0
    while corrected < CORRECTED:
        prompt, label = next(stream)
        said = service.generate(prompt).text() if service.adapters.serving else ""
        if said != label:
            wrong = dice.choice([other for other in INTENTS if other != label])
            service.feedback.add(prompt=prompt, answer=said, correction=wrong if dice.random() < noise else label)
            corrected += 1


def nights(args: argparse.Namespace) -> int:
    dice = random.Random(args.seed)
    given = [(row["prompt"], intent(row)) for row in snips(SHARED) if intent(row) in INTENTS]
    dice.shuffle(given)
    unseen, asked = given[:UNSEEN], cycle(given[UNSEEN:])
    lost = 0
    with tempfile.TemporaryDirectory() as state, Service(
            "minilm", DaemonConfig(state=state, queue=UNSEEN, recall=False), Policy(govern=False)) as service:
        before = 0.0
        for number in range(args.nights):
            night(service, asked, dice, args.noise)
            job = service.jobs.wait(service.learner.begin().id)
            is_active = service.adapters.serving == job.result
            now = right(service, unseen) if is_active else before
            lost += is_active and now < before - WORSE
            print(f"night {number + 1}: {'active' if is_active else 'refused'}, {now:.1%} of {UNSEEN} unseen; "
                  f"{(job.verdict or {}).get('reason', job.error)}", flush=True)
            before = now
    return lost


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("table", "nights"))
    add(parser, seed=0, nights=44, noise=0.25)


def main(args: argparse.Namespace) -> None:
    if args.what == "table":
        table()
    elif lost := nights(args):
        sys.exit(f"{lost} adapters became active that are worse")
