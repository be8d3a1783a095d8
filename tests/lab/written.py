"""What `kills.py` kills: actions that write, each with what it needs and what differs from run to run."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from houses import HOUSE, write_house
from indexes import small_encoder
from lab.crash import database_of
from learners import give, opened
from services import ROWS, learned_state, open_service, until
from tiny import write_tiny

from edgetune import Trainer
from edgetune.adapters.store import FILE as ADAPTER
from edgetune.adapters.store import save_schema
from edgetune.cli import cli
from edgetune.daemon.jobs.table import ENDED, Job
from edgetune.daemon.kinds.evaluation import EvaluationRequest
from edgetune.daemon.service import Service
from edgetune.disk import sha256
from edgetune.parts.documents import vector_stores
from edgetune.parts.documents.store_records import COMPLETED
from edgetune.parts.documents.vector_stores import PURPOSE as DOCUMENT

HERE = Path()  # each runs in a folder of its own
STATE = frozenset({"state", "canary.txt"})  # of a daemon, whose ids and times differ
RECORDS = frozenset({"run.json", "metrics.jsonl", "metrics.csv", "report.html"})  # of a training
PATIENCE = 120.0  # seconds
PAIRS = [{"prompt": f"turn the lamp {i}", "chosen": "off", "rejected": "on"} for i in range(20)]
SMALL = {"rank": 4, "batch_size": 4, "threads": 1, "max_length": 64, "lr": 0.01, "steps": 4}


@dataclass(frozen=True)
class Action:
    """prepare: writes what is there before. run: what is killed; returns what it says, a command its exit code. hidden:
    names in the folder whose bytes are not compared. between: outputs that may also hold something else after a kill.
    records: names of files with times. is_done: whether what is hidden has all that was asked for, given the folder.
    """

    prepare: Callable[[], object]
    run: Callable[[], Any]
    hidden: frozenset[str] = frozenset()
    between: frozenset[str] = frozenset()
    records: frozenset[str] = frozenset()
    is_done: Callable[[Path], bool] | None = None


def typed(line: str) -> Callable[[], int]:
    """A command."""
    def run() -> int:
        try:
            cli(line.split(), prog_name="edgetune")
        except SystemExit as end:
            return int(end.code or 0)
        raise AssertionError("a command exits")

    return run


def after(*commands: Callable[[], object]) -> Callable[[], None]:
    def prepare() -> None:
        for command in commands:
            assert not command()

    return prepare


# ---- models and adapters ---------------------------------------------------------------------------------------------


def source() -> None:
    """A model to be made smaller, and text."""
    write_tiny(HERE / "model.gguf", formats="F16", n_blocks=3, d_model=256, d_ff=256)
    rng = np.random.default_rng(0)
    words = ["the", "light", "off", "on", "set", "to", "turn", "user", "tool", "10"]
    write_rows([{key: " ".join(rng.choice(words, 12)) for key in ("prompt", "completion")} for _ in range(150)])


def write_rows(rows: Sequence[dict[str, Any]]) -> None:
    (HERE / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def adapters() -> None:
    """A model, and two adapters of it; those of answers that a schema describes have one."""
    write_tiny(HERE / "model.gguf", formats="Q8_0")
    write_rows(ROWS)
    for name, family in (("on", "lora"), ("off", "lora"), ("cut", "dylora")):
        trainer = Trainer(HERE / "model.gguf", lr=2e-2, rank=4, steps=3, max_length=96, threads=1, family=family)
        trainer.add([{"prompt": f"turn the light {i}", "completion": name} for i in range(8)])
        trainer.train()
        trainer.save(HERE / name)
        save_schema(HERE / name, {"type": "object"})
    (HERE / "prompt.txt").write_text("You turn the light on.")


COMPRESS = ("compress model.gguf -o small.edge --calibrate rows.jsonl --measure-tokens 512 --calibrate-tokens 1024 "
            "--threads 1 --type Q8_0 --drop-blocks 1 --width 0.75 --distill rows.jsonl --steps 4 --distill-length 64 "
            "--distill-batch 2")


# ---- houses and documents --------------------------------------------------------------------------------------------


def house() -> None:
    write_house(HERE)
    small_encoder(HERE)


def changed_house() -> None:
    (HERE / "changed.yaml").write_text(yaml.safe_dump({**HOUSE, "entities": HOUSE["entities"][:-1]}))


def documents() -> None:
    small_encoder(HERE)
    (HERE / "papers").mkdir()
    for number in range(12):
        write_paper(number, "the lamp of the kitchen ")


def write_paper(number: int, text: str) -> None:
    (HERE / "papers" / f"{number}.md").write_text(f"# Paper {number}\n\n{text * 40}\n")


def other_documents() -> None:
    (HERE / "papers" / "3.md").unlink()
    for number in (1, 12, 13):
        write_paper(number, "the light in the hall ")


TRAIN_HOUSE = "home train house.yaml -o house --count 200 --encoder encoder.gguf --threads 1"
INDEX = "index papers -o papers.index --encoder encoder.gguf --threads 1 --chunk-tokens 64"


# ---- a daemon --------------------------------------------------------------------------------------------------------


def served() -> None:
    write_tiny(HERE / "tiny.gguf", formats="Q8_0")


def stored() -> Any:
    """Two documents of a client in a vector store: it looks what there is, and does the rest."""
    vector_stores.ENCODER = "encoder.gguf"
    with open_service(HERE) as service:
        stores = service.running["documents"].stores
        for number in range(2):
            name = f"{number}.md"
            if name not in [file.name for file in service.files.list()]:
                service.files.add(name, DOCUMENT, [(HERE / "papers" / name).read_bytes()])
            [file] = [file.id for file in service.files.list() if file.name == name]
            store = stores.list()[0] if stores.list() else stores.create("papers", {}, [file])
            if file not in [each.id for each in store.files]:
                stores.add(store.id, file, {})  # while it indexes the first
        [store] = stores.list()
        until(lambda: stores.get(store.id).status == "completed", PATIENCE)
        found = stores.search([store.id], "the lamp", 5)
        store = stores.get(store.id)
        return {"files": [[file.name, file.status, file.error] for file in store.files], "bytes": store.usage,
                "found": [[passage.text, round(passage.score, 4)] for passage in found.passages]}


def indexed(folder: Path) -> bool:
    """Whether the store has both documents."""
    with database_of(folder / "state"):
        stores = (folder / "state" / "vector_stores").glob("vs_*/store.json")
        found = [json.loads(path.read_text())["files"] for path in stores]
    return [[file["status"] for file in files] for files in found] == [[COMPLETED] * 2]


def has_ended(folder: Path) -> bool:
    """Whether the job has."""
    with database_of(folder / "state") as db:
        made = db and db.execute("SELECT 1 FROM sqlite_master WHERE name = 'jobs'").fetchall()
        return bool(db and made and db.execute("SELECT 1 FROM jobs WHERE finished_at").fetchall())


def waiting(service: Service, begin: Callable[[], Job]) -> dict[str, Any]:
    """The only job, begun if there is none, and what came of it."""
    job = service.jobs.wait((service.jobs.list() or [begin()])[0].id, PATIENCE)
    assert job.status in ENDED, job
    until(lambda: not [*service.jobs.folder.iterdir()], PATIENCE, "a run is left")
    [adapter] = service.adapters.list()
    verdict = adapter.verdict
    file = service.adapters.path(adapter.id) / ADAPTER
    return {"status": job.status, "error": job.error, "sha256": [adapter.sha256, sha256(file)], "state": adapter.state,
            "passed": verdict["passed"], "new": verdict["new"], "health": service.health()}


def model() -> None:
    write_tiny(HERE / "model.gguf", formats="Q8_0")


def learning() -> Any:
    with opened(HERE / "model.gguf", HERE, learn_rows=10, canary_rise="off") as service:
        give(service, range(len(service.feedback.list()), 20))
        said = waiting(service, service.learner.begin)
        until(lambda: service.learner.tick() or not service.feedback.unsettled(), PATIENCE)
        return {**said, "feedback": service.feedback.counts()}


def evaluating() -> Any:
    with opened(HERE / "model.gguf", HERE, learn_rows=100, canary_rise="off") as service:
        give(service, range(len(service.feedback.list()), 30))
        if not service.adapters.list():
            service.add_adapter(HERE / "on")
        id = service.adapters.list()[0].id
        return waiting(service, lambda: service.evaluate_adapter(id, EvaluationRequest(promote=True)))


def preferring() -> Any:
    with opened(HERE / "model.gguf", HERE, canary_rise="off") as service:
        if not service.files.list():
            service.files.add("pairs.jsonl", "fine-tune", ["".join(json.dumps(row) + "\n" for row in PAIRS).encode()])
        file = service.files.list()[0].id
        method = {"type": "dpo", "dpo": {"hyperparameters": SMALL}}
        return waiting(service, lambda: service.jobs.create("model", file, method=method, seed=1))


def learned() -> None:
    model()
    learned_state(HERE / "learned", lessons=1)
    (HERE / "canary").write_text("turn the light on")


REBASE = ("rebase model.gguf --from learned -o moved --lr 0.02 --epochs 1 --batch-size 4 --max-length 96 --threads 1 "
          "--context 512 --canary canary --canary-rise off --max-kl off")

TASK = ("fleet task model.gguf -o task --aggregation frozen-a --rank 2 --lr 0.01 --epochs 1 --batch-size 4 "
        "--max-length 96 --anchors 0")
ROUND = "fleet train-round task rows.jsonl -o answer --model model.gguf --device kitchen --threads 1"

ACTIONS = {
    "compress": Action(source, typed(COMPRESS)),
    "merge": Action(adapters, typed("merge model.gguf on -o merged.gguf --to Q4_K_M --threads 1")),
    "merge-keep": Action(adapters, typed("merge model.gguf on -o merged.gguf --to keep")),
    "merge-adapters": Action(adapters, typed("merge-adapters on off -o both --rank 4")),
    "export-peft": Action(adapters, typed("export on -o out")),
    "export-ollama": Action(adapters, typed("export on --to ollama -o out")),
    "export-rank": Action(adapters, typed("export cut --rank 2 -o out")),
    "import": Action(after(adapters, typed("export on -o peft")), typed("import peft --base model.gguf -o out")),
    "compile-prompt": Action(adapters, typed("compile-prompt model.gguf prompt.txt -o out --threads 1")),
    "home-rows": Action(house, typed("home rows house.yaml -o rows.jsonl --count 200")),
    "home-train": Action(house, typed(TRAIN_HOUSE), records=RECORDS),
    "home-update": Action(after(house, typed(TRAIN_HOUSE), changed_house),
                          typed("home update house changed.yaml --threads 1"),
                          between=frozenset({"house.before", "house.new"}), records=RECORDS),
    "index": Action(documents, typed(INDEX)),
    "index-again": Action(after(documents, typed(INDEX), other_documents), typed(INDEX)),
    "rebase": Action(learned, typed(REBASE), records=RECORDS),
    "fleet-round": Action(after(adapters, typed(TASK)), typed(ROUND), records=frozenset({"answer.json"})),
    "documents": Action(after(documents, served), stored, STATE, is_done=indexed),
    "feedback": Action(model, learning, STATE, is_done=has_ended),
    "evaluation": Action(adapters, evaluating, STATE, is_done=has_ended),
    "pairs": Action(model, preferring, STATE, is_done=has_ended),
}
