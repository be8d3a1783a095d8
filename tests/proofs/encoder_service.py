"""A daemon of minilm: lessons of 40 corrections from request to service, answers a second, latency and memory.

    python tests/proofs/encoder_service.py [--labels FILE] [--json FILE] [--clients 64] [--memory 250M]

--labels, --json: rows of prompt and completion, of which the first 40 of a random order are corrections, and 300 others
are asked. By default labels are the 20 intents of CLINC150, JSON is that of Snips, from make data. Prints, for each
lesson, seconds and CPU seconds of the job, and how many corrections the adapter answers and the daemon answers, with
those that it recalls. Then answers a second through a Service, and through a daemon's HTTP.

Exits with 1 unless the daemon answers at least 38 of 40 corrections in each lesson.
"""

import argparse
import http.client
import json
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from daemons import process
from json_lines import read_lines
from proofs.compared import SHARED

from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.service import Service
from edgetune.evaluation.judge import same
from edgetune.machine.policy import Policy
from edgetune.training.config import TrainConfig

COUNT = 40
LEAST = 38
ASKED = 300
EACH = 20  # requests of a client


def divided(path: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    rows = [*read_lines(path)]
    order = np.random.default_rng(0).permutation(len(rows))
    return [rows[i] for i in order[:COUNT]], [rows[i] for i in order[COUNT:COUNT + ASKED]]


def lesson(name: str, path: Path, state: Path, **train: int) -> int:
    """Prints the lesson; returns how many corrections the daemon answers."""
    learned, others = divided(path)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with Service("minilm", DaemonConfig(state=str(state)), Policy(govern=False), TrainConfig(**train)) as service:
        for row in learned:
            service.feedback.add(prompt=row["prompt"], correction=row["completion"])
        began = time.monotonic()
        job = service.jobs.wait(service.learner.begin().id)
        seconds = time.monotonic() - began
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert job.verdict
        service.adapters.promote(job.result, "for the proof")

        def right(rows: Sequence[dict[str, str]], model: str) -> int:
            return sum(same(row["completion"], service.generate(row["prompt"], model=model).text()) for row in rows)

        answered = right(learned, "")
        print(f"{name}: {seconds:.1f} s ({after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime:.1f} CPU "
              f"s); {'passed' if job.verdict['passed'] else 'not passed'}; {job.verdict['corrected']['kept']} of "
              f"{job.verdict['corrected']['rows']} learned ones kept; of {COUNT} the adapter answers "
              f"{right(learned, job.result)}, the daemon {answered}; of {len(others)} others "
              f"{right(others, job.result)}", flush=True)
    return answered


def at_once(name: str, clients: int, questions: Sequence[str], open_one: Callable[[], Callable[[str], object]]) -> None:
    """Prints answers a second of clients at once, each of which asks EACH questions."""
    latencies: list[float] = []

    def work(number: int) -> None:
        ask = open_one()
        for i in range(EACH):
            began = time.monotonic()
            ask(questions[(number * EACH + i) % len(questions)])
            latencies.append(time.monotonic() - began)

    threads = [threading.Thread(target=work, args=[number]) for number in range(clients)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - began
    print(f"{name}, {clients} at once: {len(latencies) / seconds:.0f} answers a second, median latency "
          f"{1000 * float(np.median(latencies)):.1f} ms, least {1000 * min(latencies):.1f}", flush=True)


def speed(state: Path, questions: Sequence[str], clients: int) -> None:
    with Service("minilm", DaemonConfig(state=str(state), recall=False)) as service:
        for count in (1, clients):
            began = time.process_time()
            at_once("Service", count, questions, lambda: lambda question: service.generate(question).text())
            print(f"  {1000 * (time.process_time() - began) / (count * EACH):.2f} CPU ms an answer")


def over_http(folder: Path, questions: Sequence[str], clients: int, memory: str) -> None:
    with process(Path("minilm"), folder, "--memory", memory, "--threads", 0) as running:
        def open_one() -> Callable[[str], object]:
            connection = http.client.HTTPConnection(*running.place)

            def ask(question: str) -> object:
                connection.request("POST", "/v1/classify", json.dumps({"input": question}),
                                   {"content-type": "application/json"})
                return json.loads(connection.getresponse().read())["data"][0]

            return ask

        for count in (1, clients):
            at_once("HTTP, /v1/classify", count, questions, open_one)
        connection = http.client.HTTPConnection(*running.place)
        connection.request("GET", "/v1/device")
        used = json.loads(connection.getresponse().read())["memory"]["used"]
        print(f"memory of the daemon: {used >> 20} MiB, at most {running.memory('VmHWM') >> 20} MiB resident")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, default=SHARED / "data/clinc150_labelled_0.jsonl")
    parser.add_argument("--json", type=Path, default=SHARED / "data/snips_train.jsonl")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--memory", default="250M")
    args = parser.parse_args()
    questions = [row["prompt"] for row in divided(args.json)[1]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kept = [lesson("labels, heads alone", args.labels, folder / "heads", steps=1),
                lesson("labels", args.labels, folder / "labels"),
                lesson("JSON", args.json, folder / "state")]
        speed(folder / "labels", questions, args.clients)
        over_http(folder, questions, args.clients, args.memory)
    return 0 if min(kept) >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
