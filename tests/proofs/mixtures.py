"""Four tasks in one adapter: mixed by `edgetune data mix`, or simply put together, beside an adapter for each alone.

    python tests/proofs/mixtures.py [--seeds 0] [--rows 200] [--tests 60] [--data FOLDER] [--out build/mixtures.jsonl]

Tasks: Snips (JSON), 20 intents of CLINC150 and of BANKING77 (labels), and the commands of the demonstration (JSON).
Mixed: each row once, in one of three wordings, a tenth with an example, a twentieth inverted; repeated: each row in all
three wordings, in about as many steps. Each adapter answers the test rows of all tasks, as they are and in a wording
that no row had. `make data` brings the rows of CLINC150 and BANKING77.

Exits with 1 if the mixture is not within 5 points of the adapters alone, over all tasks.
"""

import json
import random
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from json_lines import read_lines, write_lines
from proofs.compared import SHARED, Result, answered, arguments, edgetune, end_with, folder_of, measure_missing

DEMO = Path(__file__).parents[2] / "edgetune" / "demo" / "data"
TASKS = ("snips", "clinc150", "banking77", "home")
TOGETHER = ("together", "repeated", "mixed")
UNSEEN = 'Please handle this: "{prompt}"'
LABELS = {"options": True,
          "templates": ["{prompt}", "What does the user want?\n{prompt}", "One of {options}: {prompt}"],
          "inverted": ["Write a request with the intent {completion}."]}
TEMPLATES = {
    "snips": {"templates": ["{prompt}", "[Turn|Convert] this command into JSON: {prompt}",
                            "{prompt}\nWhich intent and slots?"]},
    "clinc150": LABELS, "banking77": LABELS,
    "home": {"templates": ["{prompt}", "Home command: {prompt}", "{prompt}\nAnswer with the action as JSON."]}}
MIX = {"near": 1, "most_options": 6, "inverted": 0.05, "few_shot": {"share": 0.1, "examples": 1}}
REPEATED = {**MIX, "inverted": 0, "few_shot": {"share": 0}}
TOKENS = 80  # of an answer at most


def files_of(task: str, data: Path, seed: int) -> tuple[Path, Path]:
    if task == "home":
        return DEMO / "home_train.jsonl", DEMO / "home_heldout.jsonl"
    if task == "snips":
        return SHARED / "data" / "snips_train.jsonl", SHARED / "data" / "snips_dev.jsonl"
    return data / f"{task}_prompts_{seed}.jsonl", data / f"{task}_unseen_{seed}.jsonl"


class Case:
    def __init__(self, args, seed):
        self.args = args
        self.seed = seed
        self.folder = folder_of(args) / str(seed)
        self.folder.mkdir(exist_ok=True)
        self.tests = {}
        for task in TASKS:
            learned, test = (read_lines(path) for path in files_of(task, args.data, seed))
            random.Random(seed).shuffle(learned)
            write_lines(self.folder / f"{task}.jsonl", learned[:args.rows])
            self.tests[task] = test[:args.tests]
            write_lines(self.folder / f"{task}-test.jsonl", self.tests[task])

    def rows(self, variant: str) -> Path:
        if variant in TASKS:
            return self.folder / f"{variant}.jsonl"
        path = self.folder / f"{variant}.jsonl"
        path.unlink(missing_ok=True)
        if variant == "together":
            rows = [row for task in TASKS for row in read_lines(self.folder / f"{task}.jsonl")]
            random.Random(self.seed).shuffle(rows)
            return write_lines(path, rows)
        given = {"repeat": 1} if variant == "mixed" else {}
        sources = {task: {"rows": f"{task}.jsonl", **TEMPLATES[task], **given} for task in TASKS}
        held_out = [f"{task}-test.jsonl" for task in TASKS]
        options = REPEATED if variant == "repeated" else MIX
        (self.folder / "mix.json").write_text(json.dumps({**options, "held_out": held_out, "sources": sources}))
        edgetune("mix", self.folder / "mix.json", "-o", path, "--seed", self.seed, "--json")
        return path

    def measured(self, variant: str) -> Result:
        adapter = self.folder / f"{variant}-adapter"
        epochs = ["--epochs", 1.5] if variant == "repeated" else []
        trained = edgetune("train", self.args.model, self.rows(variant), "-o", adapter, "--seed", self.seed, *epochs,
                           "--no-govern", "--no-answers", "--threads", 1, "--json")
        right = {}
        for wording, template in (("as_it_is", "{prompt}"), ("unseen", UNSEEN)):
            asked = [{"prompt": template.replace("{prompt}", row["prompt"])} for task in TASKS
                     for row in self.tests[task]]
            saved = answered(self.args.model, self.folder / f"{variant}-{wording}.jsonl", adapter, asked, TOKENS)
            answers = iter(read_lines(saved))
            right[wording] = {task: [same(row["completion"], next(answers)["text"]) for row in self.tests[task]]
                              for task in TASKS}
        return {"seconds": trained.get("seconds"), "right": right}


def same(expected: str, said: str) -> int:
    """By value for JSON."""
    try:
        return int(json.loads(expected) == json.loads(said))
    except ValueError:
        return int(expected.strip() == said.strip())


def share(result: Result, wording: str, tasks=TASKS) -> float:
    return statistics.fmean(value for task in tasks for value in result["right"][wording][task])


def told(result: Result) -> str:
    shares = [f"{wording}: " + ", ".join(f"{task} {share(result, wording, [task]):.0%}" for task in TASKS)
              for wording in ("as_it_is", "unseen")]
    return f"seed {result['seed']} {result['variant']}: {'; '.join(shares)} ({result['seconds'] or 0:.0f} s)"


def main() -> None:
    parser = arguments(__doc__, "mixtures.jsonl", seeds=True)
    parser.set_defaults(seeds=[0])
    parser.add_argument("--rows", type=int, default=200, help="of each task")
    parser.add_argument("--tests", type=int, default=60, help="rows of each task")
    parser.add_argument("--data", type=Path, default=SHARED / "data", help="rows of CLINC150 and BANKING77")
    args = parser.parse_args()
    cases = [{"seed": seed, "variant": variant} for seed in args.seeds for variant in (*TASKS, *TOGETHER)]
    results = measure_missing(args, cases, lambda seed, variant: Case(args, seed).measured(variant), told)
    alone = [share(result, "as_it_is", [result["variant"]]) for result in results if result["variant"] in TASKS]
    found = {name: [share(result, "as_it_is") for result in results if result["variant"] == name] for name in TOGETHER}
    print(f"alone {statistics.fmean(alone):.1%}", *(f"{name} {statistics.fmean(each):.1%}"
                                                   for name, each in found.items()))
    end_with({"the mixture is within 5 points of the adapters alone":
              statistics.fmean(found["repeated"]) > statistics.fmean(alone) - 0.05})


if __name__ == "__main__":
    main()
