"""1,000 simulated devices on Flower's Ray engine, a third of which drop out in each round, while 5 % of them lie.

    build/flower/bin/python tests/proofs/flower_simulation.py [--devices 1000] [--rounds 2] [--seed 0] [--actors 1]
                                                              [--folder DIR] [--out FILE]

The server is edgetune's strategy of Flower's ServerApp, whose rounds end by the command `edgetune fleet aggregate`.
Each device has eight rows that no other has and trains on a tiny model, for real, in the process of a Ray actor. (The
app of a node begins a process for each training, which takes a second to start and a tenth of one to train.) What drops
out raises an error in place of an answer. A liar sends its answer times 100, or values that are not finite, or its
answer of the first round again (in that round one times 100). Hashes and shapes of what it sends are right.

After each round two things must hold of the next adapter. The command with the answers of the honest devices alone
makes the same file, byte for byte. And numpy's weighted sum of their updates, read by another library, is its B.
Exits with 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

os.environ.update({"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"})

import numpy as np
import psutil
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation
from gguf import GGUFReader
from json_lines import write_lines
from safetensors.numpy import load_file, save_file
from tiny import write_tiny

from edgetune.disk import sha256
from edgetune.formats.bundle import open_bundle
from edgetune.parts.fleet.carriers.flower.app.messages import ARRAYS, METRICS, arrays_of, parcel_in
from edgetune.parts.fleet.carriers.flower.app.parcel import ANSWER_FILES, MOST_TASK, TASK_FILES, pack, unpack
from edgetune.parts.fleet.carriers.flower.app.settings import ServerSettings
from edgetune.parts.fleet.carriers.flower.app.strategy import FolderStrategy
from edgetune.parts.fleet.rounds.first_task import make_task
from edgetune.parts.fleet.rounds.options import RoundOptions
from edgetune.parts.fleet.rounds.task import open_task
from edgetune.parts.fleet.rounds.train_round import train_round
from edgetune.python_child import child
from edgetune.training.config import TrainConfig

DROPPED = 1 / 3
LYING = 0.05
LIES = ("scaled", "not finite", "replayed")
AT_ONCE = 8  # messages in Flower's in-memory state, of which it looks at each for each device ten times a second
CONFIG = TrainConfig(rank=2, lr=1e-2, epochs=1.0, batch_size=4, max_length=64, anchors=0)
MODEL = "tiny.gguf"


def drops(seed: int, number: int, device: int) -> bool:
    return random.Random(f"{seed} {number} {device}").random() < DROPPED


def lie_of(device: int, devices: int) -> str:
    """How a device lies, "" for the honest ones."""
    return LIES[device % len(LIES)] if device < LYING * devices else ""


def answers(seed: int, number: int, device: int, devices: int) -> bool:
    """Whether a device sends an answer that names the task of this round, which a replayed one does not."""
    if drops(seed, number, device):
        return False
    return lie_of(device, devices) != "replayed" or all(drops(seed, earlier, device) for earlier in range(1, number))


def rows_of(device: int) -> list[dict[str, str]]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    said = letters[device % 26] + letters[device // 26 % 26] + letters[device // 676 % 26]
    return [{"prompt": f"say {said} {i}", "completion": said * 2} for i in range(8)]


def answered(folder: Path, task: bytes, number: int, device: int, told: str) -> Path:
    """The folder of a device's honest answer. told: the name that it says."""
    place = folder / "tasks" / f"{number}-{os.getpid()}"
    if not place.exists():
        place.parent.mkdir(exist_ok=True)
        unpack(task, place, TASK_FILES, MOST_TASK)
    bundle = open_bundle(folder / MODEL)
    out = folder / "devices" / f"{device:04}-{number}-{told}"
    rows = write_lines(folder / "devices" / f"{device:04}.jsonl", rows_of(device))
    train_round(open_task(place, bundle), bundle, rows, out, told, held_out="none", threads=1)
    return out


def lied(out: Path, lie: str) -> Path:
    """The answer, changed as a liar would, with the digest of what it says now."""
    values = load_file(out / "update.safetensors")
    factor = np.float32(100 if lie == "scaled" else np.inf)
    with np.errstate(all="ignore"):
        wrong = {name: (value.astype(np.float32) * factor).astype(np.float16) for name, value in values.items()}
    save_file(wrong, out / "update.safetensors")
    facts = json.loads((out / "answer.json").read_text())
    facts["update"] = sha256(out / "update.safetensors")
    (out / "answer.json").write_text(json.dumps(facts))
    return out


def client_app(folder: Path, devices: int, seed: int) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        device = int(context.node_config["partition-id"])
        number = int(message.metadata.group_id)
        if drops(seed, number, device):
            raise ConnectionError("dropped out")
        task = parcel_in(message.content)
        lie = lie_of(device, devices)
        name = f"d{device:04}"
        if lie == "replayed":
            before = folder / "devices" / f"{name}-sent"
            out = before if before.exists() else lied(answered(folder, task, number, 0, name), "scaled")
            if not before.exists():
                shutil.copytree(answered(folder, task, number, device, f"{name}-own"), before)
        else:
            out = answered(folder, task, number, device, name)
            out = lied(out, lie) if lie else out
        return Message(RecordDict({ARRAYS: arrays_of(pack(out, ANSWER_FILES)),
                                   METRICS: MetricRecord({"device": device})}), reply_to=message)

    return app


def check(folder: Path, number: int, aggregate: dict[str, Any], words: list[str], devices: int) -> dict[str, Any]:
    """What became of a round: whether the next adapter is the honest ones' sum."""
    rounds = folder / "rounds"
    sent = sorted(path.parent for path in (rounds / f"round-{number:04}" / "answers").glob("*/answer.json"))
    named = {path: json.loads((path / "answer.json").read_text())["device"] for path in sent}
    honest = [path for path, name in named.items() if not lie_of(int(name[1:5]), devices)]
    again = folder / f"again-{number}"
    subprocess.run([*words, str(rounds / f"round-{number:04}" / "task"), *map(str, honest), "-o", str(again)],
                   check=True, stdout=subprocess.DEVNULL, **aggregate)
    task = rounds / f"round-{number + 1:04}" / "task"
    record = json.loads((task / "task.json").read_text())["history"][-1]
    same = (task / "adapter/adapter.gguf").read_bytes() == (again / "adapter/adapter.gguf").read_bytes()
    return {"round": number, "answers": len(sent), "honest": len(honest), "counted": record["devices"],
            "left_out": record["left_out"], "byte_for_byte": same, "up": record["up"],
            "error_of_numpy": round(difference(task, rounds / f"round-{number:04}" / "task", honest), 8)}


def difference(task: Path, before: Path, honest: list[Path]) -> float:
    """The largest difference of B from the weighted sum of the honest updates, of the largest value of B."""
    facts = [json.loads((path / "answer.json").read_text()) for path in honest]
    total = sum(one["tokens"] for one in facts)
    updates = [load_file(path / "update.safetensors") for path in honest]
    now = b_of(task)
    worst = 0.0
    for name, began in b_of(before).items():
        key = f"{name}.b"
        sent = sum(one["tokens"] / total * update[key].astype(np.float64)
                   for one, update in zip(facts, updates, strict=True))
        worst = max(worst, float(np.abs(now[name] - (began + sent)).max() / np.abs(now[name]).max()))
    return worst


def b_of(task: Path) -> dict[str, np.ndarray]:
    """B of each projection, read by the gguf package."""
    found = GGUFReader(task / "adapter" / "adapter.gguf").tensors
    return {one.name.removesuffix(".weight.lora_b"): np.asarray(one.data, np.float64)
            for one in found if one.name.endswith(".lora_b")}


def watched(peaks: dict[str, float], seconds: dict[int, float], stop: threading.Event) -> None:
    """Notes the most memory of this process and its children, the sum of their resident sets, of which some is shared,
    and the CPU seconds of each by its number.
    """
    process = psutil.Process()
    while not stop.wait(2.0):
        sizes = {"server": 0.0, "actors": 0.0, "ray": 0.0}
        for one in [process, *process.children(recursive=True)]:
            try:
                name = " ".join(one.cmdline()[:2])
                kind = "server" if one.pid == process.pid else "actors" if name.startswith("ray::") else "ray"
                sizes[kind] += one.memory_info().rss / 2**20
                seconds[one.pid] = sum(one.cpu_times()[:2])
            except psutil.Error:
                continue
        for kind, size in sizes.items():
            peaks[kind] = max(peaks.get(kind, 0.0), round(size))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--actors", type=int, default=1, help="Ray actors, each on a core")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="flower-"))
    (folder / "devices").mkdir(parents=True)
    write_tiny(folder / MODEL)
    bundle = open_bundle(folder / MODEL)
    options = RoundOptions(aggregation="frozen-a", quorum=asked.devices // 3)
    make_task(bundle, folder / "rounds" / "round-0001" / "task", CONFIG, options)
    launched = child("edgetune.__main__")
    words = [*launched["args"], "fleet", "aggregate", "--model", str(folder / MODEL)]
    os.environ.update(launched["env"])
    answering = [sum(answers(asked.seed, number, device, asked.devices) for device in range(asked.devices))
                 for number in range(1, asked.rounds + 1)]
    settings = ServerSettings(str(folder / "rounds"), words, {}, min(answering), 3600.0, asked.rounds, 1.0,
                              str(folder))
    server = ServerApp()

    @server.main()
    def run(grid: Grid, _context: Context) -> None:
        strategy = FolderStrategy(settings)
        for number in range(1, asked.rounds + 1):  # a round ends with all that answer it
            ended = FolderStrategy(ServerSettings(**{**vars(settings), "devices": answering[number - 1]}),
                                   at_once=AT_ONCE, pause=1e9)
            ended.start(grid, arrays_of(pack(strategy.task(number), TASK_FILES)), number, settings.wait)
            print(f"round {number}: {time.monotonic() - began:.0f} s", flush=True)

    peaks: dict[str, float] = {}
    seconds: dict[int, float] = {}
    stop = threading.Event()
    watcher = threading.Thread(target=watched, args=(peaks, seconds, stop))
    watcher.start()
    began = time.monotonic()
    try:
        run_simulation(server, client_app(folder, asked.devices, asked.seed), asked.devices, backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": asked.actors, "include_dashboard": False}})
    finally:
        stop.set()
        watcher.join()
    wall = time.monotonic() - began
    rounds = [check(folder, number, {"env": launched["env"]}, words, asked.devices)
              for number in range(1, asked.rounds + 1)]
    found = {"devices": asked.devices, "seed": asked.seed, "wall_s": round(wall),
             "cpu_s": round(sum(seconds.values())), "peak_mib": peaks,
             "rounds": rounds}
    print(json.dumps(found, indent=1))
    if asked.out:
        with asked.out.open("a") as file:
            file.write(json.dumps(found) + "\n")
    return 0 if all(one["byte_for_byte"] and one["error_of_numpy"] < 1e-3 and one["counted"] == one["honest"]
                    for one in rounds) else 1


if __name__ == "__main__":
    sys.exit(main())
