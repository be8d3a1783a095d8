"""All that a life learned, learned anew on the same base, beside what the life came to and one training on its rows.

    python tests/proofs/compaction.py --lives DIR ... [--shared ../shared] [--rounds 10] [--asked 100]
                                      [--out compaction.jsonl]

Each folder is that of a life of --rounds good rounds that `proofs/life.py --state` has ended. A copy of its service
learns everything anew, as `edgetune feedback learn --all` and --compact-every do, and the gate decides. The same rows
are learned by `edgetune train` without an option. The first rows of snips_dev judge, by the likeliest answers through
llama.cpp: what served at the end of the life, what learning anew made, so also what serves after it, and the one
training; of all, what unrelated text (WikiText) says of forgetting. Results are added to --out, and a life that it has
already is not measured again.

Exits with 1 unless what serves after learning anew has within two points as many exact answers as one training, in the
mean over all lives.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).parents[1]))

from json_lines import read_lines, write_lines
from proofs import life
from proofs.compared import Result, edgetune, forgotten, measure_missing

from edgetune.daemon.kinds.feedback import ALL
from edgetune.evaluation.acceptance import wilson

LESS = 0.02  # of exact answers, that learning anew may have
END, ANEW, ONCE = "at its end", "learned anew", "one training"
AFTER = "after learning anew"  # what serves then: one of the first two, as the gate decided


def adapters(args: argparse.Namespace, state: Path, folder: Path) -> Iterator[tuple[str, Path, Result]]:
    """(name, folder, what is known of it) of each adapter that is compared. state: of a life, which is changed."""
    with life.opened(args, state) as service:
        if service.adapters.serving is None:
            sys.exit("nothing is in service at the end of this life, and there is nothing to compare")
        yield END, service.adapters.path(service.adapters.serving), {}
        rows = [service.feedback.row(row) for row in service.feedback.learned_rows().new]
        job = service.jobs.wait(service.learner.begin(ALL).id)
        if job.status != "succeeded":
            sys.exit(f"{job.id} {job.status}: {job.error}")
        verdict = service.adapters.get(job.result or "").verdict
        told = {"promoted": service.adapters.serving == job.result, "reason": verdict["reason"], "rows": len(rows)}
        yield ANEW, service.adapters.path(job.result or ""), told
    once = folder / "once"
    learned = write_lines(folder / "rows.jsonl", rows)
    edgetune("train", args.model, learned, "-o", once, "--no-answers", "--no-govern", "--seed", args.seed, "--json")
    yield ONCE, once, {"rows": len(rows)}


def measured(args: argparse.Namespace, lived: Path) -> Result:
    """{name: what was found} of each adapter."""
    data = args.shared / "data"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        asked = write_lines(folder / "asked.jsonl", read_lines(data / "snips_dev.jsonl")[:args.asked])
        shutil.copytree(lived / "state", folder / "state")
        found = {}
        for name, adapter, told in adapters(args, folder / "state", folder):
            answered = edgetune("eval", args.model, asked, "--adapter", adapter, "--system", life.SYSTEM, "--json")
            found[name] = {"exact": answered["exact"], "asked": answered["exact_rows"],
                           **forgotten(args.model, adapter, data), **told}
            print(json.dumps({name: found[name]}), flush=True)
    return found


def show(results: list[Result]) -> None:
    print("\n| | lives | exact | each | WikiText | KL |\n" + "|---" * 6 + "|")
    for name in (END, AFTER, ANEW, ONCE):
        of = named(results, name)
        right = sum(round(result["exact"] * result["asked"]) for result in of)
        low, high = wilson(right, sum(result["asked"] for result in of))
        each = ", ".join(f"{result['exact']:.0%}" for result in of)
        print(f"| {name} | {len(of)} | {exact(results, name):.1%} ({low:.1%}-{high:.1%}) | {each} | "
              f"{fmean(result['rise'] for result in of):+.1%} | {fmean(result['kl'] for result in of):.3f} |")


def named(results: list[Result], name: str) -> list[Result]:
    """Of each life."""
    if name == AFTER:
        return [result[ANEW] if result[ANEW]["promoted"] else result[END] for result in results]
    return [result[name] for result in results]


def exact(results: list[Result], name: str) -> float:
    return fmean(result["exact"] for result in named(results, name))


def main() -> None:
    parser = life.options(__doc__, "compaction.jsonl")
    parser.add_argument("--lives", type=Path, nargs="+", required=True, help="folders of lives that ended")
    parser.add_argument("--asked", type=int, default=100, help="rows that judge")
    args = parser.parse_args()
    folders = life.ended(args)
    results = measure_missing(args, ({"life": name} for name in folders), lambda life: measured(args, folders[life]),
                              lambda result: f"{result['life']}: done")
    show(results)
    sys.exit(exact(results, AFTER) < exact(results, ONCE) - LESS)


if __name__ == "__main__":
    main()
