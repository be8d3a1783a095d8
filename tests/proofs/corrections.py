"""40 corrections and one lesson: are the same 40 questions then answered as corrected, and others of their kind?

    python tests/proofs/corrections.py [--only NAME ...] [--model GGUF] [--out corrections.jsonl]

For each of three data sets of own_sets.py: a service on an empty state answers 40 rows of its train file, each answer
is corrected (or confirmed, where it is right), and one lesson is learned with the service's own options. Then the same
40 questions and 20 held-out ones are asked in chat.
Beside it `edgetune train` without an option on a file of the same 40 rows, asked the same. Results are added to --out,
and what it has already is not measured again.

Exits with 1 unless in each data set 36 of the 40 are right, and the 20 are as good as the file's: not below the 95 %
interval of its share.
"""

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from json_lines import write_lines
from own_sets import SETS, OwnSet, Row
from proofs.compared import Result, arguments, end, measure_missing
from proofs.recipes import right_answers, trained

from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.service import Service
from edgetune.evaluation.acceptance import wilson
from edgetune.machine.policy import Policy
from edgetune.serving.question import Question

DOMAINS = ("irrigation", "tickets", "library")
CORRECTED = 40
UNSEEN = 20
KEPT = 36  # of the corrected ones


def asked(own: OwnSet, row: Row) -> list[dict[str, str]]:
    return [{"role": "system", "content": own.system}, {"role": "user", "content": row["prompt"]}]


def answer(service: Service, own: OwnSet, row: Row, is_traffic: bool = False) -> str:
    budget = 2 * len(service.served.tokenizer.encode(row["completion"])) + 16
    return service.ask(Question(asked(own, row), options={"max_tokens": budget}, may_be_kept=is_traffic)).text().strip()


def correct(service: Service, own: OwnSet, row: Row) -> None:
    """What a person does who knows the right answer."""
    given = answer(service, own, row, is_traffic=True)
    if given == row["completion"]:
        service.feedback.add(messages=asked(own, row), answer=given, rating="up")
    else:
        service.feedback.add(messages=asked(own, row), answer=given, correction=row["completion"])


def count(service: Service, own: OwnSet, rows: list[Row]) -> int:
    return sum(own.right(row["completion"], answer(service, own, row)) for row in rows)


def config_of(state: str) -> DaemonConfig:
    """Without recall: what is answered as corrected has been learned, not looked up."""
    return DaemonConfig(state=state, recall=False)


def by_lesson(model: Path, own: OwnSet, rows: list[Row], unseen: list[Row]) -> Result:
    policy = Policy(govern=False, nice=19)
    with tempfile.TemporaryDirectory() as state, Service(model, config_of(state), policy) as service:
        for row in rows:
            correct(service, own, row)
        began = time.monotonic()
        job = service.jobs.wait(service.learner.begin().id)
        seconds = time.monotonic() - began
        if job.status != "succeeded":
            sys.exit(f"{own.name}: {job.id} {job.status}: {job.error}")
        return {"corrected": count(service, own, rows), "unseen": count(service, own, unseen), "seconds": seconds,
                "in_service": service.adapters.serving is not None, "verdict": job.verdict,
                "tokens": job.trained_tokens}


def by_file(model: Path, own: OwnSet, rows: list[Row], unseen: list[Row]) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        file = write_lines(Path(folder) / "rows.jsonl", rows)
        out = Path(folder) / "adapter"
        record, seconds = trained(model, file, own.system, out, [])
        corrected, others = right_answers(model, out, own, rows, unseen)
    return {"corrected": corrected, "unseen": others, "seconds": seconds, "steps": record["steps"]}


def judged(result: Result) -> list[str]:
    """What does not hold."""
    lesson = result["lesson"]
    file = result["file"]
    wrong = []
    if lesson["corrected"] < KEPT:
        wrong.append(f"{result['set']}: {lesson['corrected']} of {CORRECTED} answered as corrected")
    low, _ = wilson(file["unseen"], UNSEEN)
    if lesson["unseen"] / UNSEEN < low:
        wrong.append(f"{result['set']}: {lesson['unseen']} of {UNSEEN} unseen ones, the file's {file['unseen']}")
    return wrong


def told(result: Result) -> str:
    parts = []
    for way in ("lesson", "file"):
        found = result[way]
        low, high = wilson(found["unseen"], UNSEEN)
        refused = f", refused: {found['verdict']['reason']}" if found.get("in_service") is False else ""
        parts.append(f"{way}: {found['corrected']} of {CORRECTED} as corrected, {found['unseen']} of {UNSEEN} unseen "
                     f"({low:.0%}-{high:.0%}), {found['seconds']:.0f} s{refused}")
    return f"{result['set']}: " + "; ".join(parts)


def main() -> None:
    args = arguments(__doc__, "corrections.jsonl", DOMAINS).parse_args()

    def measured(set: str) -> Result:
        own = SETS[set]
        rows = own.rows("train")[:CORRECTED]
        unseen = own.rows("heldout")[:UNSEEN]
        return {"lesson": by_lesson(args.model, own, rows, unseen), "file": by_file(args.model, own, rows, unseen)}

    results = measure_missing(args, ({"set": name} for name in args.only), measured, told)
    end([what for result in results for what in judged(result)])


if __name__ == "__main__":
    main()
