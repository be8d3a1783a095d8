"""What the tutor makes of 50 labelled rows and 1,000 bare prompts: SmolLM2 on Snips, with and without a rule grader.

    python tests/proofs/tutor.py [--shared ../shared] [--seeds 0,1,2] [--only tutor ...] [--rounds 1]
                                 [--out tutor.jsonl]

A model learns 50 rows by the tutor's own round 0, without a round: "start". From that adapter

    sft continued       learns the 50 again, for as many steps as the tutor took
    tutor               gets the bare prompts of 1,000 others and no grader: the labelled rows, told again with values
                        that its answers have in common, are all that it has; 200 new prompts in a round
    tutor, rules        gets a grader too, that of proofs/methods.py, which knows the schema and no answer
    sft, all labels     learns all 1,050 with their answers, one pass: what a teacher who wrote them would give

300 rows of snips_train from row 8,000 on judge, by the likeliest answers through edgetune's own engine: exact answers,
and right intents. A sign test compares each with sft continued, row by row over all seeds. Of the tutor what is
published counts, or the start where nothing was. Its rounds are shown: pass rate, rows, what the gate said, tokens and
seconds, and what unrelated text (WikiText) says of forgetting. Results are added to --out, and what it has already is
not measured again, so that the proof can run in pieces.

Exits with 1 unless both tutors have more exact answers and more right intents than sft continued, with p below 0.05,
and none has fewer than its start, with p below 0.1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from peers.snips import SYSTEM
from proofs.compared import (
    CONTINUED,
    SHARED,
    START,
    Result,
    against,
    arguments,
    by_variant,
    edgetune,
    mean_interval,
    paired,
    prove,
    unbeaten,
    written,
)
from proofs.methods import MOST_TOKENS, answered, graders, texts_in

from edgetune.evaluation.canary import drift
from edgetune.evaluation.judge import parse_json, same
from edgetune.serving.llama import LlamaModel

FEW = 50
PROMPTS = 1000
HELD = 8000  # the first row that judges
ASKED = 300
WIKI_LINES = 60
LR = "1e-3"
WORSE = 0.1
ROUND = ["--per-round", 200, "--unseen", 1, "--retold", 16, "--lr", LR, "--canary-rise", 0.05]  # as a daemon allows
TUTORS = {"tutor": "", "tutor, rules": "form"}  # the grader of each
LABELS = "sft, all labels"
VARIANTS = (CONTINUED, *TUTORS, LABELS)


def measured(model: Path, folder: Path, variant: str, seed: int, args: argparse.Namespace) -> Result:
    data = args.shared / "data"
    rows = [json.loads(line) for line in (data / "snips_train.jsonl").read_text(encoding="utf-8").splitlines()]
    few = written(folder / "few.jsonl", rows[:FEW])
    prompts = written(folder / "prompts.jsonl", [{"prompt": row["prompt"]} for row in rows[FEW:][:PROMPTS]])
    every = written(folder / "all.jsonl", rows[:FEW + PROMPTS])
    for name, grader in graders(rows).items():
        (folder / f"{name}.json").write_text(json.dumps(grader), encoding="utf-8")
    common = ["--system", SYSTEM, "--seed", seed, "--max-tokens", MOST_TOKENS]
    start = folder / f"start-{seed}"
    adapter = start
    if variant == START:
        taught(model, [], start, "--labelled", few, "--rounds", 0, *common)
    elif variant in TUTORS:
        out = folder / f"{variant.replace(', ', '-')}-{seed}"
        judge = ["--grader", folder / f"{TUTORS[variant]}.json"] if TUTORS[variant] else []
        taught(model, [prompts], out, "--labelled", few, "--start", of(start), "--rounds", args.rounds, *ROUND, *judge,
               *common)
        adapter = out
    else:
        adapter = folder / f"{variant.replace(', ', '-').replace(' ', '-')}-{args.rounds}-{seed}"
        trained(model, every if variant == LABELS else few, adapter, of(start), seed,
                steps_of(folder, seed, args.rounds) if variant == CONTINUED else 0)
    return {"variant": variant, "seed": seed, "steps": args.rounds if variant != START else 0,
            **judged(model, folder, of(adapter), rows[HELD:][:ASKED]), **forgotten(model, of(adapter), data),
            "rounds": rounds_in(adapter)}


def taught(model: Path, prompts: Sequence[Path], out: Path, *options: object) -> None:
    edgetune("tutor", model, *prompts, "-o", out, *options, "--no-govern", "--json")


def of(folder: Path) -> Path:
    """The adapter of a folder: what rounds published, or what round 0 trained where they published nothing."""
    trained = folder / "rounds" / "000" / "train"
    return folder if (folder / "adapter.gguf").exists() else trained


def trained(model: Path, rows: Path, out: Path, start: Path, seed: int, steps: int) -> None:
    if not (out / "adapter.gguf").exists():
        length = ["--steps", steps] if steps else ["--epochs", 1]
        edgetune("train", model, rows, "-o", out, "--start", start, "--system", SYSTEM, "--seed", seed, "--eval",
                 "none", "--batch-size", 8, "--lr", LR, "--no-answers", "--no-govern", *length, "--json")


def steps_of(folder: Path, seed: int, rounds: int) -> int:
    """The most steps that a tutor took after the start, in the first rounds."""
    ledgers = [folder / f"{variant.replace(', ', '-')}-{seed}" / "ledger.jsonl" for variant in TUTORS]
    lines = [[json.loads(line) for line in path.read_text().splitlines()] for path in ledgers if path.exists()]
    if not lines:
        sys.exit(f"{CONTINUED} comes after a tutor, whose steps it takes")
    return max(sum(line["steps"] for line in ledger if line["step"] == "train" and line["round"] <= rounds)
               for ledger in lines)


def judged(model: Path, folder: Path, adapter: Path, rows: list[Result]) -> Result:
    """What the likeliest answers are, a value for each row."""
    saved = folder / f"{adapter.name}.answers"
    texts = texts_in(answered(model, saved, adapter, rows, MOST_TOKENS, "--system", SYSTEM))
    intents = [intent_of(text) for text in texts]
    return {"exact": [int(same(row["completion"], text)) for row, text in zip(rows, texts, strict=True)],
            "intent": [int(intent == json.loads(row["completion"])["intent"])
                       for row, intent in zip(rows, intents, strict=True)]}


def intent_of(text: str) -> str | None:
    answer = parse_json(text)
    return answer.get("intent") if isinstance(answer, dict) else None


def of_rows(runs: Sequence[Result], name: str) -> list[float]:
    return [value for run in runs for value in run[name]]


def forgotten(model: Path, adapter: Path, data: Path) -> Result:
    """From the base, on WikiText: the rise of the perplexity, and KL in nats a token."""
    text = "\n".join((data / "wikitext2_valid.txt").read_text(encoding="utf-8").splitlines()[:WIKI_LINES])
    with LlamaModel(model, context=512) as served:
        served.load_adapter(adapter, "adapter")
        found = drift(served, "adapter", [text])
    return {"rise": found.rise, "kl": found.kl}


def rounds_in(out: Path) -> list[Result]:
    """What the tutor says of its rounds; none of other trainings."""
    return list(edgetune("tutor", "inspect", out, "--json")["rounds"]) if (out / "tutor.json").exists() else []


# ---- what the results say ----


def told(result: Result) -> str:
    return f"{sum(result['exact'])} of {ASKED} exact, {sum(result['intent'])} intents right"


def show(results: Sequence[Result]) -> None:
    found = by_variant(results)
    print("\n| learned | seeds | exact | against sft continued | against its start | intent | against sft continued | "
          "against its start | WikiText | KL |\n" + "|---" * 10 + "|")
    for name, runs in found.items():
        told = [" | ".join(against(runs, found[other], what) if name != other and other in found else ""
                           for other in (CONTINUED, START)) for what in ("exact", "intent")]
        rise = sum(run["rise"] for run in runs) / len(runs)
        kl = sum(run["kl"] for run in runs) / len(runs)
        print(f"| {name} | {len(runs)} | {mean_interval(of_rows(runs, 'exact'))} | {told[0]} | "
              f"{mean_interval(of_rows(runs, 'intent'))} | {told[1]} | {rise:+.1%} | {kl:.3f} |")
    print("\n| tutor, seed | round | answers | tokens | right | rows | steps | s | gate |\n" + "|---" * 9 + "|")
    for run in results:
        for one in run["rounds"]:
            made = one.get("generate", {})
            print(f"| {run['variant']}, {run['seed']} | {one['round']} | {made.get('answers', '')} | "
                  f"{made.get('tokens', '')} | {one.get('evaluate', {}).get('rate', float('nan')):.0%} | "
                  f"{one.get('rows', {}).get('rows', '')} | {one.get('train', {}).get('steps', '')} | "
                  f"{one['seconds']:.0f} | {one.get('gate', {}).get('reason', '')} |")


def missed(results: Sequence[Result]) -> list[str]:
    """What does not hold."""
    found = by_variant(results)
    if CONTINUED not in found or not all(name in found for name in TUTORS):
        return ["sft continued and the tutors are not all measured yet"]
    kinds = [(name, what) for name in TUTORS for what in ("exact", "intent")]
    return [told for name, what in kinds for told in (*unbeaten(name, CONTINUED, found, what),
                                                      *worse_than_start(name, found, what))]


def worse_than_start(name: str, found: dict[str, list[Result]], what: str) -> list[str]:
    both = paired(found[name], found[START], what)
    if both.losses <= both.wins or both.p_two_sided >= WORSE:
        return []
    return [f"{name}, {what}: worse than its start, {both.wins} won, {both.losses} lost, p {both.p_two_sided:.2g}"]


def main() -> None:
    parser = arguments(__doc__, VARIANTS, [*TUTORS, CONTINUED, LABELS], "tutor.jsonl")
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--rounds", type=int, default=1, help="more were not published [1]")
    args = parser.parse_args()
    prove(args, args.rounds, measured, told, show, missed)


if __name__ == "__main__":
    main()
