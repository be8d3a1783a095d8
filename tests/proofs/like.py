"""Corrections and the next like question: by vectors alone (`vectors`), and by a daemon (`daemon`), before any training
and after one.

    python tests/proofs/like.py vectors [--data ../shared/data] [--seeds 0 1 2]
    python tests/proofs/like.py daemon [--model smollm2] [--learn] [--labels] [--data ...]

Questions: those of proofs/data/facts_NAME.jsonl, each corrected once and asked again in four other words; two further
ones of each are near and have another answer, that nobody gave. facts_dev was used to choose the rules, facts_test was
not. Labels: 20 intents of CLINC150 and of BANKING77 (rows of make data). `vectors` compares the nearest corrected
question with a plain limit on the cosine, and edgetune.daemon.learning.alike.

`daemon` asks the 100 questions of facts_test of a service with an encoder. right: the answer has the value of the fact.
--learn: then it learns, and is asked the same without recall. Exits with 1 unless 80 of 100 are right before.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from json_lines import read_lines
from peers.snips import model_path
from proofs.compared import SHARED

from edgetune.daemon.learning.alike import UNRELATED, Alike, KnownQuestion, base_of
from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.service import Service
from edgetune.machine.policy import Policy
from edgetune.serving.encoder import vectors
from edgetune.serving.neighbours import Floats

FOLDER = Path(__file__).parent / "data"
RIGHT = 80  # of 100
LIMITS = (0.5, 0.6, 0.7, 0.8, 0.9)  # of the plain cosine
UNLIKE = 300  # sentences of WikiText
Pairs = list[tuple[str, str]]  # a question and its answer


def facts(name: str) -> list[dict[str, object]]:
    return read_lines(FOLDER / f"facts_{name}.jsonl")


def labels(data: Path, name: str, seed: int, each: int) -> tuple[Pairs, Pairs]:
    """Corrections, `each` a label, and other questions of the same labels."""
    found: Pairs = []
    count: Counter[str] = Counter()
    for part in ("labelled", "prompts"):
        for row in read_lines(data / f"{name}_{part}_{seed}.jsonl"):
            if count[row["completion"]] < each:
                count[row["completion"]] += 1
                found.append((row["prompt"], row["completion"]))
    random.Random(seed).shuffle(found)
    return found, [(row["prompt"], row["completion"]) for row in read_lines(data / f"{name}_unseen_{seed}.jsonl")]


def sentences(data: Path) -> list[str]:
    lines = (data / "wikitext2_valid.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if 40 < len(line) < 400 and not line.strip().startswith("=")][:UNLIKE]


class Ways:
    """The ways to answer, of which each gives the index of a correction, or -1."""

    def __init__(self, known: Pairs, made: Floats, base: float) -> None:
        self.known = known
        self.made = made
        self.alike = Alike(base)
        for i, (question, answer) in enumerate(known):
            self.alike.learn(KnownQuestion(str(i), question, answer), made[i])

    def answers(self, asked: Sequence[str], made: Floats) -> Iterator[tuple[str, list[int]]]:
        cosines = made @ self.made.T
        for limit in LIMITS:
            yield f"cosine {limit}", [int(row.argmax()) if row.max() >= limit else -1 for row in cosines]
        found = [self.alike.repeated(text, vector) for text, vector in zip(asked, made, strict=True)]
        yield "ours", [int(each[0].key) if each else -1 for each in found]


def report(name: str, ways: Ways, like: Pairs, others: dict[str, list[str]], embed: dict[str, Floats]) -> None:
    asked = [question for question, _ in like]
    counts = {way: (np.array(found) >= 0, np.array([i >= 0 and ways.known[i][1] == answer for i, (_, answer)
                                                   in zip(found, like, strict=True)]))
              for way, found in ways.answers(asked, np.stack([embed[text] for text in asked]))}
    taken = {kind: {way: float((np.array(found) >= 0).mean()) for way, found in
                    ways.answers(texts, np.stack([embed[text] for text in texts]))} for kind, texts in others.items()}
    for way, (fired, right) in counts.items():
        print(json.dumps({"set": name, "corrections": len(ways.known), "way": way,
                          "answered": round(float(fired.mean()), 3), "right": round(float(right.mean()), 3),
                          "right of answered": round(float(right[fired].mean()), 3) if fired.any() else None,
                          **{kind: round(found[way], 3) for kind, found in taken.items()},
                          **({"limit": round(ways.alike.limit, 2)} if way == "ours" else {})}), flush=True)


def by_vectors(data: Path, seeds: Sequence[int]) -> None:
    wiki = sentences(data)
    sets = []
    for name in ("dev", "test"):
        rows = facts(name)
        known = [(str(row["question"]), str(row["answer"])) for row in rows]
        like = [(text, str(row["answer"])) for row in rows for text in row["like"]]  # type: ignore[attr-defined]
        near = [text for row in rows for text in row["near"]]  # type: ignore[attr-defined]
        sets.append((f"facts_{name}", known, like, {"near": near, "wikitext": wiki}))
        both = known + [(text, f"another {text}") for text in near]
        random.Random(0).shuffle(both)
        sets.append((f"facts_{name}, near ones corrected too", both, like, {"wikitext": wiki}))
    for seed in seeds:
        for name, other in (("clinc150", "banking77"), ("banking77", "clinc150")):
            strange = [text for text, _ in labels(data, other, seed, 1)[1]]
            for each in (1, 3, 18):
                known, like = labels(data, name, seed, each)
                sets.append((f"{name}, seed {seed}", known, like, {other: strange, "wikitext": wiki}))
    texts = [*UNRELATED, *(text for _, known, like, others in sets
                           for text in (*(q for q, _ in known + like), *chain(*others.values())))]
    texts = list(dict.fromkeys(texts))
    embed = dict(zip(texts, vectors("minilm", texts, threads=1), strict=True))
    base = base_of(np.stack([embed[text] for text in UNRELATED]))
    for name, known, like, others in sets:
        report(name, Ways(known, np.stack([embed[q] for q, _ in known]), base), like, others, embed)


# ---- a daemon -------------------------------------------------------------------------------------------------------


def config_of(state: str, **options: object) -> DaemonConfig:
    return DaemonConfig(state=state, embeddings="minilm", threads=1, context=1024, **options)  # type: ignore[arg-type]


def messages_of(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def ask(service: Service, name: str, asked: Sequence[tuple[str, str]], near: Sequence[tuple[str, str]] = ()) -> int:
    """The number of right answers to `asked`: questions with a text that a right answer has."""
    right: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    began = time.process_time()
    for text, value in asked:
        answer = service.chat(messages_of(text), max_tokens=40)
        sources[answer.source] += 0
        if value.casefold() in answer.text().casefold():
            right[answer.source] += 1
        sources[answer.source] += 1
    seconds = time.process_time() - began
    wrong = sum(service.chat(messages_of(text), max_tokens=40).source != "model" for text, _ in near)
    print(json.dumps({"asked": name, "right": sum(right.values()), "of": len(asked), "by": dict(right),
                      "answered by": dict(sources), "CPU seconds": round(seconds, 1),
                      **({"near ones recalled": wrong, "near": len(near)} if near else {})}), flush=True)
    return sum(right.values())


def by_daemon(model: Path, learn: bool) -> int:
    rows = facts("test")
    like = [(text, str(row["value"])) for row in rows for text in row["like"]]  # type: ignore[attr-defined]
    near = [(text, str(row["value"])) for row in rows for text in row["near"]]  # type: ignore[attr-defined]
    policy = Policy(govern=False, nice=19)
    with tempfile.TemporaryDirectory() as state:
        with Service(model, config_of(state, recall_like="off"), policy) as service:
            ask(service, "facts, before any correction", like)
            for row in rows:
                service.feedback.add(messages=messages_of(str(row["question"])), correction=str(row["answer"]))
            ask(service, "facts, exact repeats recalled alone", like)
        with Service(model, config_of(state), policy) as service:
            found = ask(service, "facts, like questions recalled, and shown", like, near)
            if learn:
                job = service.jobs.wait(service.learner.begin().id)
                verdict = job.verdict or {}
                print(json.dumps({"job": job.status, "reason": verdict.get("reason"), "error": job.error}), flush=True)
                if job.result and service.adapters.serving is None:
                    service.adapters.promote(job.result, "for the proof")
        if learn:
            with Service(model, config_of(state, recall=False), policy) as service:
                ask(service, "facts, learned, without recall", like)
                ask(service, "facts, learned, without recall, the corrected words",
                    [(str(row["question"]), str(row["value"])) for row in rows])
            with Service(model, config_of(state), policy) as service:
                ask(service, "facts, learned, with recall", like, near)
    return found


def labels_by_daemon(model: Path, data: Path, name: str, each: int) -> None:
    known, unseen = labels(data, name, 0, each)
    with tempfile.TemporaryDirectory() as state:
        for options in ({"recall_like": "off"}, {}):
            with Service(model, config_of(state, **options), Policy(govern=False, nice=19)) as service:
                if options:
                    for question, label in known:
                        service.feedback.add(messages=messages_of(question), correction=label)
                ask(service, f"{name}, {len(known)} corrections, {options or 'like ones too'}", unseen[:100])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("vectors", "daemon"))
    parser.add_argument("--data", type=Path, default=SHARED / "data")
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--learn", action="store_true")
    parser.add_argument("--labels", type=int, nargs="*", help="Corrections a label, of both sets of intents.")
    args = parser.parse_args()
    if args.part == "vectors":
        by_vectors(args.data, args.seeds)
        return
    model = args.model or model_path()
    for each in args.labels or ():
        for name in ("clinc150", "banking77"):
            labels_by_daemon(model, args.data, name, each)
    if args.labels is None:
        sys.exit(by_daemon(model, args.learn) < RIGHT)


if __name__ == "__main__":
    main()
