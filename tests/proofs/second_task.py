"""A second task after seven rounds of the first: Snips, then the demonstration's home commands, then wrong labels.

    python tests/proofs/second_task.py --lives DIR ... [--shared ../shared] [--rounds 7] [--second 2]
                                       [--corrections 50] [--dev 100] [--out second_task.jsonl]

Each folder is that of a life that `proofs/life.py --rounds 7 --no-wrong --state` has ended. A copy of its service gets
--second rounds of home commands, and then four rounds of wrong labels: of either task each question with another one's
answer, and each intent (of a command its device) called by the name of the next one. Rows that are never given are
answered by what serves before and after the second task. Results are added to --out, and a life that it has already is
not continued again.

Exits with 1 unless over all lives more home commands are right after the second task than before, by a sign test with p
below 0.05, Snips' exact answers are not down by more than two points, and every wrong round was refused, of at least
ten.
"""

import argparse
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from json_lines import read_lines
from proofs import life
from proofs.compared import SIGNIFICANT, Result, Row, end_with, measure_missing, read_results
from proofs.life import answered, live, shuffled, swapped

from edgetune.daemon.service import Service
from edgetune.demo.run import SYSTEM
from edgetune.evaluation.acceptance import Paired
from edgetune.evaluation.judge import same

HOME = Path(__file__).parents[2] / "edgetune" / "demo" / "data"
SNIPS = "snips"
COMMANDS = "home"
LOST = 2.0  # points of Snips' exact answers that the second task may cost
WRONG = 10  # rounds of wrong labels that are to be refused, at least
Spoil = Callable[[list[Row]], list[Row]]


def commands(name: str) -> list[Row]:
    return [{**row, "system": SYSTEM} for row in read_lines(HOME / f"home_{name}.jsonl")]


def plan_of(args: argparse.Namespace, lived: int) -> list[tuple[str, str, list[Row]]]:
    """(task, what is done to its labels, rows) of each round. lived: rounds of Snips, whose rows came in order."""
    size = args.corrections
    left = {SNIPS: read_lines(args.shared / "data" / "snips_train.jsonl")[lived * size:],
            COMMANDS: random.Random(args.seed).sample(found := commands("train"), len(found))}
    wrong: dict[str, dict[str, Spoil]] = {
        SNIPS: {"shuffled": shuffled, "swapped": swapped},
        COMMANDS: {"shuffled": shuffled, "swapped": partial(swapped, key="device")}}
    wanted = [(COMMANDS, "good", list[Row])] * args.second
    wanted += [(task, kind, spoil) for task, kinds in wrong.items() for kind, spoil in kinds.items()]
    rounds = []
    for task, kind, spoil in wanted:
        if len(left[task]) < size:
            sys.exit(f"{size} more rows of {task} are needed and {len(left[task])} are left: lower --second")
        rounds.append((task, kind, spoil(left[task][:size])))
        left[task] = left[task][size:]
    return rounds


def right(service: Service, rows: list[Row]) -> list[bool]:
    return [same(row["completion"], said) for row, said in zip(rows, answered(service, rows), strict=True)]


def continued(args: argparse.Namespace, lived: Path) -> Result:
    """before, after: which rows of each task that are never given are right around the second task."""
    before = len(read_results(lived / "life.jsonl"))
    never = {SNIPS: read_lines(args.shared / "data" / "snips_dev.jsonl")[:args.dev],
             COMMANDS: commands("heldout")[:args.dev]}
    rounds: list[Result] = []
    with tempfile.TemporaryDirectory() as temporary:
        state = shutil.copytree(lived / "state", Path(temporary) / "state")
        with life.opened(args, state) as service:
            around = {"before": {task: right(service, asked) for task, asked in never.items()}}
            for number, (task, kind, rows) in enumerate(plan_of(args, before)):
                rounds.append({"task": task, "kind": kind, **live(service, f"{task}, {kind}", before + number, rows)})
                print(f"{lived.name}, {task}, {kind}: {'in service' if rounds[-1]['promoted'] else 'refused'}; "
                      f"{rounds[-1]['reason']}; {rounds[-1]['seconds']:.0f} s", flush=True)
                if number + 1 == args.second:
                    around["after"] = {task: right(service, asked) for task, asked in never.items()}
                    print({when: {task: sum(found) for task, found in of.items()} for when, of in around.items()},
                          flush=True)
    return {"corrections": args.corrections, "rounds": rounds, **around}


def joined(results: Sequence[Result], when: str, task: str) -> list[bool]:
    return [one for result in results for one in result[when][task]]


def share(rights: Sequence[bool]) -> float:
    """In percent."""
    return 100 * sum(rights) / len(rights)


def verdicts(results: Sequence[Result]) -> dict[str, bool]:
    """{what is asked for, with what was found: whether it was reached}."""
    found = Paired.of(joined(results, "before", COMMANDS), joined(results, "after", COMMANDS))
    old, new = (share(joined(results, when, SNIPS)) for when in ("before", "after"))
    wrong = [one for result in results for one in result["rounds"] if one["kind"] != "good"]
    refused = sum(not one["promoted"] for one in wrong)
    commands_now = share(joined(results, "after", COMMANDS))
    return {f"home commands: {commands_now:.1f} % right, {found.wins} won and {found.losses} lost, "
            f"p = {found.p_two_sided:.2g}":
            found.wins > found.losses and found.p_two_sided < SIGNIFICANT,
            f"Snips: {old:.1f} % exact before, {new:.1f} % after; at most {LOST:g} points down": old - new <= LOST,
            f"wrong rounds refused: {refused} of {len(wrong)}, all of at least {WRONG}":
            refused == len(wrong) >= WRONG}


def main() -> None:
    parser = life.options(__doc__, "second_task.jsonl")
    parser.set_defaults(rounds=7, dev=100)
    parser.add_argument("--lives", type=Path, nargs="+", required=True, help="folders of lives that ended")
    parser.add_argument("--second", type=int, default=2, help="rounds of home commands, at least 1")
    args = parser.parse_args()
    folders = life.ended(args)
    results = measure_missing(args, ({"life": name} for name in folders), lambda life: continued(args, folders[life]),
                              lambda result: f"{result['life']}: done")
    end_with(verdicts(results))


if __name__ == "__main__":
    main()
