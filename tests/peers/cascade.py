"""Snips: an encoder alone, a model that writes text alone, and the encoder before it, in one service after the other.

    python tests/peers/cascade.py [--rows 1000] [--decoder-epochs 1] [--shares 0.99 0.9] [--shared ../shared]
        [--encoder ADAPTER] [--decoder ADAPTER] [--threads 0] [--only-first] [--foreign FILE]

MiniLM learns the first rows of snips_train with its defaults, so a tenth of them is held out and says when it is sure;
SmolLM2-135M learns the same rows. Both answer held-out questions first, by which it is known who is better. Questions
are the 300 rows of snips_dev, one at a time. Milliseconds are those of `Service.chat`, wall time and processor time of
this process, means over all questions. Adapters that are given are not trained. --only-first: without the two alone.
--foreign: CLINC150's data_full.json, of which the encoder reads 500 questions that belong to no intent. Needs the rows
of make data and edgetune pull minilm.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.service import Service
from edgetune.evaluation.judge import same
from edgetune.serving.classifier import Classifier

DECODER = "smollm2"
MOST_TOKENS = 128


def train(model, rows, out, *options):
    subprocess.run([sys.executable, "-m", "edgetune", "train", model, rows, "-o", out, "--no-answers", "--no-govern",
                    *options], check=True, stdout=sys.stderr)
    return out


def asked_of(service, questions):
    """(answers, who gave them, wall and processor seconds of all)"""
    service.chat([{"role": "user", "content": "hello"}], max_tokens=1).text()
    began = time.monotonic(), time.process_time()
    answers, sources = [], []
    for question in questions:
        answer = service.chat([{"role": "user", "content": question}], max_tokens=MOST_TOKENS)
        answers.append(answer.text())
        sources.append(answer.source)
    return answers, sources, time.monotonic() - began[0], time.process_time() - began[1]


def by_service(questions, decoder, foreign=(), **options):
    with tempfile.TemporaryDirectory() as state, Service(DECODER, DaemonConfig(state=state, **options)) as service:
        service.adapters.promote(service.adapters.add("cascade", decoder, "", {}).id, "for the proof")
        first = service.running.get("first")
        if first and first.encoder.has_kinds:
            began = time.process_time()
            while not first.contest.facts()["compared"]:
                time.sleep(1)
            print(f"{first.contest.facts()}, {time.process_time() - began:.0f} s of the processor", flush=True)
        if foreign:
            print(f"the encoder would answer {sum(map(bool, map(first.encoder.answer, foreign)))} of {len(foreign)} "
                  "foreign questions", flush=True)
        return asked_of(service, questions)


def alone(questions, adapter, threads):
    with Classifier("minilm", adapter, threads) as served:
        served.classify(["hello"])
        began = time.monotonic(), time.process_time()
        answers = [served.classify([question])[0].label for question in questions]
        return answers, ["encoder"] * len(answers), time.monotonic() - began[0], time.process_time() - began[1]


def shown(name, found, right):
    answers, sources, wall, cpu = found
    n = len(answers)
    exact = [same(expected, answer) for expected, answer in zip(right, answers, strict=True)]
    sure = [is_right for is_right, source in zip(exact, sources, strict=True) if source == "encoder"]
    print(f"{name}: {sum(exact)} of {n} exact; {1000 * wall / n:.1f} ms, {1000 * cpu / n:.1f} of the processor; the "
          f"encoder answered {len(sure)}, {sum(sure)} of them right", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--decoder-epochs", default="1")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.99, 0.9])
    parser.add_argument("--only-first", action="store_true")
    parser.add_argument("--foreign", type=Path)
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--decoder", type=Path)
    parser.add_argument("--dev", type=int, default=300)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[3] / "shared")
    args = parser.parse_args()
    data = args.shared / "data"
    dev = [json.loads(line) for line in (data / "snips_dev.jsonl").read_text("utf-8").splitlines()[:args.dev]]
    questions, right = ([row[name] for row in dev] for name in ("prompt", "completion"))
    found = json.loads(args.foreign.read_text("utf-8"))["oos_test"][:500] if args.foreign else []
    foreign = [question for question, _ in found]
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        lines = (data / "snips_train.jsonl").read_text("utf-8").splitlines(keepends=True)
        rows.write_text("".join(lines[:args.rows]))
        encoder = args.encoder or train("minilm", rows, Path(folder) / "encoder")
        decoder = args.decoder or train(DECODER, rows, Path(folder) / "decoder", "--epochs", args.decoder_epochs)
        if not args.only_first:
            shown("encoder alone", alone(questions, encoder, args.threads), right)
            shown(f"{DECODER} alone", by_service(questions, decoder, threads=args.threads), right)
        for share in args.shares:
            options = {"first": str(encoder), "first_share": share, "threads": args.threads}
            shown(f"encoder first, share {share:g}", by_service(questions, decoder, foreign, **options), right)


if __name__ == "__main__":
    main()
