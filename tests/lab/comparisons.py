"""The table of comparisons that `learning.py` runs: their tasks, their ways to train, and what must hold."""

import json
import random
import re
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from json_lines import read_lines
from lab.common import DEMO, SNIPS, Result, Row, grouped, joined, paired, served, snips, wins
from lab.learning import MAX_LENGTH, START, Comparison, Setting, Task, Way, on_wiki
from own_sets import SETS

from edgetune.demo.run import SYSTEM as DEMO_SYSTEM
from edgetune.evaluation.judge import is_json, same

# ---- tasks -----------------------------------------------------------------------------------------------------------


def sums(seed: int) -> list[Row]:
    numbers = [(a, b) for a in range(2, 50) for b in range(2, 50)]
    random.Random(seed).shuffle(numbers)
    return [{"prompt": f"What is {a} + {b}? Answer with the number only.", "completion": str(a + b)}
            for a, b in numbers]


def only_intent(rows: list[Row]) -> list[Row]:
    return [{**row, "completion": json.loads(row["completion"])["intent"]} for row in rows]


def labelled(name: str) -> Task:
    """20 intents of a public set, by the draws of `make data`."""
    def part(shared: Path, seed: int, *parts: str) -> list[Row]:
        return [row for part in parts for row in read_lines(shared / "data" / f"{name}_{part}_{seed}.jsonl")]

    return Task(lambda shared, seed: part(shared, seed, "labelled", "prompts"),
                lambda shared, seed: part(shared, seed, "unseen"), model="minilm", asked=300)


def demo(part: str) -> list[Row]:
    return read_lines(DEMO / f"home_{part}.jsonl")


def in_pairs(rows: Sequence[Row], rejected: Sequence[str]) -> list[Row]:
    return [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": wrong}
            for row, wrong in zip(rows, rejected, strict=True)]


def intents(shared: Path, _seed: int) -> list[Row]:
    """The intent, and another one."""
    rows = only_intent(snips(shared)[:2000])
    every = sorted({row["completion"] for row in rows})
    rng = random.Random(0)
    return in_pairs(rows, [rng.choice([other for other in every if other != row["completion"]]) for row in rows])


def commands(_shared: Path, _seed: int) -> list[Row]:
    """The demonstration's JSON, and one with a value of another row's."""
    rows = demo("train") + demo("heldout")
    rng = random.Random(0)

    def changed(right: dict[str, object]) -> str:
        while True:
            other = json.loads(rng.choice(rows)["completion"])
            if names := [name for name in right if name in other and other[name] != right[name]]:
                return json.dumps({**right, names[0]: other[names[0]]}, separators=(",", ":"))

    return in_pairs(rows, [changed(json.loads(row["completion"])) for row in rows])


def form_graders(rows: list[Row]) -> dict[str, Row]:
    """A grader that knows the schema of Snips and no answer: a tenth for JSON with an intent and slots, two for an
    intent of the list, three for names that belong to it, four for the share of values that stand in the prompt.
    """
    names: dict[str, set[str]] = {}
    for row in rows:
        answer = json.loads(row["completion"])
        names.setdefault(answer["intent"], set()).update(answer["slots"])
    branches = [{"properties": {"intent": {"const": intent},
                                "slots": {"type": "object", "properties": {name: {} for name in sorted(slots)},
                                          "additionalProperties": False}}} for intent, slots in sorted(names.items())]
    answer = {"type": "object", "required": ["intent", "slots"], "properties": {"slots": {"type": "object"}}}
    schemas = {"json": answer, "intent": answer | {"properties": {"intent": {"enum": sorted(names)}}},
               "names": answer | {"anyOf": branches}}
    parts: dict[str, Row] = {name: {"type": "json_schema", "name": name, "schema": schema}
                             for name, schema in schemas.items()}
    parts["values"] = {"type": "grounded", "name": "values", "ignore": ["intent"]}
    return {"grader": {"type": "multi", "name": "form", "graders": parts,
                       "calculate_output": "(json + 2 * intent + 3 * names + 4 * json * values) / 10"}}


SUM = {"grader": {"type": "numeric", "name": "sum", "reference": "{{ item.completion }}"}}
SNIPS_TASK = Task(lambda shared, _: snips(shared), lambda shared, _: snips(shared, "dev"), SNIPS, (1000,), 300)

# ---- methods: from a start, on further rows --------------------------------------------------------------------------


def bare(setting: Setting) -> list[Row]:
    """The questions; a grader that knows the right answers reads them in "completion"."""
    return setting.further if setting.task.drawn else [{"prompt": row["prompt"]} for row in setting.further]


def own_pairs(setting: Setting) -> list[Row]:
    """The right answer, and the first wrong one of four of the start's own."""
    wrong = [next((text for text in texts if text.strip() and not same(row["completion"], text)), None)
             for row, texts in zip(setting.further, setting.own(4), strict=True)]
    return [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": text}
            for row, text in zip(setting.further, wrong, strict=True) if text]


def judged(setting: Setting) -> list[Row]:
    """One answer of the start's own to each question; of a wrong one a judgment says what is right."""
    made = []
    for row, (text,) in zip(setting.further, setting.own(1), strict=True):
        right = same(row["completion"], text)
        judgment = None if right else f"The answer {text} is wrong. The right answer is {row['completion']}."
        made += [{"prompt": row["prompt"], "completion": text, "reference": row["completion"],
                  "judgment": judgment}] if text.strip() else []
    return made


def verified(setting: Setting) -> list[Row]:
    """Those of the start's own answers that are right."""
    return [{"prompt": row["prompt"], "completion": row["completion"]} for row in judged(setting)
            if row["judgment"] is None]


CONTINUED = "sft continued"
METHODS = {
    CONTINUED: Way(from_start=True),
    "labels": Way((), lambda setting: setting.further, True, knows_answers=True),
    **{name: Way(["--method", name, *more], bare, True, "grader") for name, more in (
        ("grpo", ["--num-generations", 8]), ("rloo", ["--num-generations", 8]), ("p3o", []),
        ("rest", ["--num-generations", 8, "--steps-per-generation", 20]))},
    "verified": Way((), verified, True),
    "nlft": Way(["--method", "nlft", "--lr", "3e-4"], judged, True, knows_answers=True),
    "dpo": Way(["--method", "dpo"], own_pairs, True, knows_answers=True),
    "dpo + sft": Way(["--method", "dpo", "--sft-weight", 0.2], own_pairs, True, knows_answers=True),
    "orpo": Way(["--method", "orpo"], own_pairs, True, knows_answers=True)}


def of_methods(args: Namespace, task: str, _size: int) -> dict[str, Way]:
    args.steps = args.steps or {"sums": 60, "snips": 40}[task]
    return {START: Way(None), **{name: METHODS[name] for name in args.only}}


def methods_hold(results: Sequence[Result], _args: Namespace) -> dict[str, bool]:
    found = {}
    for task, runs in grouped(results, "task").items():
        of_way = grouped(runs, "way")
        by_rewards = [name for name in of_way if name in METHODS and not METHODS[name].knows_answers]
        best = max(by_rewards, key=lambda name: sum(joined(of_way[name], "right")), default=CONTINUED)
        found[f"{task}: {best} beats {CONTINUED}"] = best != CONTINUED and wins(
            paired(of_way[best], of_way.get(CONTINUED, []), "right"))
    return found


# ---- families: the same rows, a learning rate each -------------------------------------------------------------------

LAST = ["--blocks", "last:4"]
RECIPE = ["--epochs", 1, "--batch-size", 8, "--warmup", 10, "--max-length", 256, "--anchors", 0, "--eval", "none"]
FAMILIES = {
    "lora": ["--rank", 8, "--alpha", 16], "lora r=4": ["--rank", 4, "--alpha", 16],
    "rslora": ["--rank", 8, "--alpha", 16, "--rslora"], "lora+": ["--rank", 8, "--alpha", 16, "--lora-plus", 16],
    **{name: ["--family", name] for name in ("adalora", "dylora", "sora", "lora-dropout", "lora-fa", "bitfit", "full")},
    "full last:4": ["--family", "full", *LAST], "lora last:4": ["--rank", 8, "--alpha", 16, *LAST]}


def families_hold(results: Sequence[Result], _args: Namespace) -> dict[str, bool]:
    of_way = grouped(results, "way")
    plain = of_way.get("lora", [])
    better = [name for name, runs in of_way.items() if plain and name != "lora"
              and runs[0]["parameters"] <= 1.1 * plain[0]["parameters"] and wins(paired(runs, plain, "right"))]
    return {f"a family wins at LoRA's parameters: {', '.join(better) or 'none does'}": bool(better)}


# ---- preferences: rates and strengths of methods that learn from pairs -----------------------------------------------

PAIRED = {"dpo": (2e-4, [5e-5, 1e-4, 2e-4, 5e-4, 1e-3]), "kto": (5e-5, [5e-5, 2e-4, 5e-4, 1e-3]),
          "orpo": (5e-4, [2e-4, 5e-4, 1e-3, 2e-3])}  # the default rate, and those that are tried
BETAS = (0.03, 0.3)
COST = 0.03  # of perplexity: what a daemon's gate allows, roughly


def as_learned(method: str, setting: Setting) -> list[Row]:
    """The rows that a method makes of pairs."""
    if method not in ("sft", "kto"):
        return setting.rows
    labels = {"chosen": True} if method == "sft" else {"chosen": True, "rejected": False}
    return [{"prompt": row["prompt"], "completion": row[name], **({"label": label} if method == "kto" else {})}
            for row in setting.rows for name, label in labels.items()]


def of_preferences(args: Namespace, _task: str, _size: int) -> dict[str, Way]:
    def way(method: str, rate: float, beta: float) -> Way:
        own = [] if method == "sft" else ["--beta", beta]
        return Way(["--method", method, "--lr", rate, *own, "--epochs", 1, "--batch-size", 8, "--eval", "none"],
                   lambda setting: as_learned(method, setting))

    cases = [("sft", 1e-3, 0.1)]
    cases += [(name, rate, 0.1) for name in args.only for rate in PAIRED[name][1]]
    cases += [(name, PAIRED[name][0], beta) for name in args.only for beta in BETAS]
    return {f"{name} lr {rate:g} beta {beta:g}": way(name, rate, beta) for name, rate, beta in cases}


def in_order(setting: Setting, adapter: Path) -> Result:
    """Of held-out pairs, the share in the right order, and the margin."""
    from json_lines import write_lines
    from lab.common import edgetune
    pairs = write_lines(setting.folder / f"{setting.name}.pairs", setting.held)
    found = edgetune("eval", setting.model, pairs, "--adapter", adapter, *setting.system, "--json")
    return {"pairs": found["preference_accuracy"], "margin": found["margin"]}


def preferences_hold(results: Sequence[Result], args: Namespace) -> dict[str, bool]:
    """Of runs that cost little elsewhere, if there are any, the one with most pairs in the right order has the
    default.
    """
    best = {}
    for (task, name), runs in grouped([{**one, "method": one["way"].split()[0]} for one in results], "task",
                                      "method").items():
        cheap = [run for run in runs if run["rise"] <= COST] or runs
        best[task, name] = max(cheap, key=lambda run: (run["pairs"], sum(run["right"])))["way"]
    return {f"{name}: the default rate is the best on a task": any(
        way.startswith(f"{name} lr {PAIRED[name][0]:g} ") for (_, found), way in best.items() if found == name)
        for name in args.only}


# ---- recipes: small data sets, trained without an option -------------------------------------------------------------

RATES = (5e-4, 1e-3, 2e-3)
PASSES = {20: (8, 16), 60: (8, 16), 200: (8,), 400: (4,), 1000: (2,), 5000: (1,)}  # of the grid, by the number of rows
RIGHT = 0.8  # of the held-out answers, or 2 points less than the best of a grid
POINTS = 0.02
OWN = {name: Task(lambda _, __, own=own: own.rows("train"), lambda _, __, own=own: own.rows("heldout"), own.system,
                  right=own.right) for name, own in SETS.items()}
DEMO_TASK = Task(lambda *_: demo("train"), lambda *_: demo("heldout"), DEMO_SYSTEM, (60,), 60)


def of_recipes(args: Namespace, _task: str, size: int) -> dict[str, Way]:
    grid = {f"lr {rate:g}, {passes} passes, batch {batch}": Way(
        ["--lr", rate, "--epochs", passes, "--batch-size", batch, "--eval", "none"])
        for rate, passes, batch in product(RATES, PASSES[size], (4, 8) if size < 100 else (8,))} if args.grid else {}
    return {"default": Way(), args.memory: Way(["--memory", args.memory]),
            "no anchors": Way(["--anchors", 0]), **grid}


def held_to_schema(setting: Setting, adapter: Path) -> Result:
    """How many answers are valid and right when they are held to the schema that training derived from the rows."""
    import jsonschema_rs

    from edgetune.data.dataset import load_rows
    from edgetune.evaluation.served import exact_match
    if not (adapter / "schema.json").is_file():
        return {"schema": False, "valid": 0, "held_right": 0}
    judge = jsonschema_rs.validator_for(json.loads((adapter / "schema.json").read_text()))
    with served(Path(setting.model), adapter) as opened:
        data = load_rows(setting.held, opened.tokenizer, max_length=MAX_LENGTH, system=setting.task.system)
        found = exact_match(opened, data, system=setting.task.system, grammar=opened.grammar_of("adapter"))
    valid = [is_json(one.answer) and judge.is_valid(json.loads(one.answer)) for one in found]
    return {"schema": True, "valid": sum(valid),
            "held_right": sum(setting.task.right(one.expected, one.answer) for one in found)}


def recipes_hold(results: Sequence[Result], args: Namespace) -> dict[str, bool]:
    found = {}
    for (task, size), runs in grouped(results, "task", "rows").items():
        shares = {way: sum(joined(of, "right")) / len(joined(of, "right")) for way, of in grouped(runs, "way").items()}
        grid = [share for way, share in shares.items() if way.startswith("lr ")]
        enough = min(max(grid) - POINTS if grid else RIGHT if size == 60 else 0, RIGHT)
        where = f"{task}, {size} rows"
        found[f"{where}: {shares['default']:.1%} right"] = shares["default"] >= enough
        budget = int(re.sub(r"\D", "", args.memory))
        found[f"{where}: within {args.memory}"] = all(
            run["peak_rss_mib"] <= budget for run in runs if run["way"] == args.memory)
        found[f"{where}: in 5 minutes"] = size != 60 or all(run["seconds"] <= 300 for run in runs)
        held = [run for run in runs if run["schema"]]
        found[f"{where}: valid, and no fewer right, held to the schema"] = all(
            run["valid"] == len(run["right"]) and run["held_right"] >= sum(run["right"]) for run in held)
    return found


# ---- encoders --------------------------------------------------------------------------------------------------------


def tfidf(rows: list[Row], held: list[Row]) -> list[str]:
    """Counts of words and pairs of words, and logistic regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    known = words.fit_transform([row["prompt"] for row in rows])
    model = LogisticRegression(C=10, max_iter=1000).fit(known, [row["completion"] for row in rows])
    return [str(label) for label in model.predict(words.transform([row["prompt"] for row in held]))]


def labels_hold(results: Sequence[Result], _args: Namespace) -> dict[str, bool]:
    return {f"{task}: {way} beats TF-IDF": wins(paired(of[way], of["TF-IDF"], "right"))
            for task, runs in grouped(results, "task").items() for of in [grouped(runs, "way")]
            for way in ("head", "default")}


COMPARISONS = {
    "methods": Comparison(
        {"sums": Task(lambda _, seed: sums(seed), lambda _, seed: sums(seed)[660:], sizes=(60,), further=600, drawn=4,
                      max_tokens=12, start=["--epochs", 4, "--eval", "none"], graders=lambda _: SUM),
         "snips": replace(SNIPS_TASK, sizes=(50,), further=600, graders=form_graders)},
        of_methods, methods_hold, CONTINUED, only=[*METHODS], chosen=(CONTINUED, "labels", "grpo", "rest")),
    "families": Comparison(
        {"snips": SNIPS_TASK}, lambda args, *_: {name: Way([*FAMILIES[name], *RECIPE]) for name in args.only},
        families_hold, "lora", only=[*FAMILIES]),
    "preferences": Comparison(
        {"intents": Task(intents, lambda *of: intents(*of)[-150:], SNIPS, (256,), 150),
         "commands": Task(commands, lambda *of: commands(*of)[-150:], DEMO_SYSTEM, (256,), 150)},
        of_preferences, preferences_hold, "sft lr 0.001 beta 0.1", (in_order, on_wiki), only=[*PAIRED]),
    "recipes": Comparison(
        {**OWN, "demo": DEMO_TASK, "snips": replace(SNIPS_TASK, sizes=(60,), asked=100)}, of_recipes, recipes_hold,
        "default", (held_to_schema, on_wiki), options={"grid": False, "memory": "300M"}),
    "encoder": Comparison({"snips": replace(SNIPS_TASK, sizes=(50, 200, 1000), model="minilm")},
                          lambda *_: {"default": Way()}),
    "labels": Comparison(
        {"clinc150": labelled("clinc150"), "banking77": labelled("banking77"),
         "snips": replace(SNIPS_TASK, train=lambda shared, _: only_intent(snips(shared)), model="minilm", sizes=(60,),
                          held=lambda shared, _: only_intent(snips(shared, "dev")))},
        lambda *_: {"TF-IDF": Way(answers=tfidf), "head": Way(["--steps", 1, "--eval", "none"]),
                    "default": Way(["--eval", "none"])}, labels_hold, "TF-IDF"),
}
