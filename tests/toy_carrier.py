"""Run as a program: a fleet with one carrier more, the box of tests/fixtures/carriers, which takes a device through a
round. It prints what came through each seam, as JSON, for tests/parts/fleet/test_carriers.py. Argument: an empty
folder.
"""

import json
import sys
from pathlib import Path

import edgetune.parts.fleet.carriers

edgetune.parts.fleet.carriers.__path__.append(str(Path(__file__).parent / "fixtures" / "carriers"))

from commands import run  # noqa: E402 (what imports edgetune must do so after the box is there)
from edgetune.parts.fleet.carriers.box.server import SAID  # noqa: E402
from json_lines import write_lines  # noqa: E402
from tiny import write_tiny  # noqa: E402

from edgetune.daemon.api.app import routes  # noqa: E402
from edgetune.formats.bundle import open_bundle  # noqa: E402
from edgetune.parts.fleet.membership.requests import Devices  # noqa: E402
from edgetune.parts.fleet.rounds.lead import RoundLead, make_task  # noqa: E402
from edgetune.parts.fleet.rounds.options import RoundOptions  # noqa: E402
from edgetune.parts.fleet.rounds.places import newest  # noqa: E402
from edgetune.training.config import TrainConfig  # noqa: E402

CONFIG = TrainConfig(rank=2, lr=1e-2, epochs=2.0, batch_size=4, max_length=64, anchors=0)


def main(folder):
    model = write_tiny(folder / "tiny.gguf", formats="Q8_0")
    bundle = open_bundle(model)
    rounds = folder / "rounds"
    make_task(bundle, rounds / "round-0001" / "task", CONFIG, RoundOptions(aggregation="frozen-a"))
    rows = write_lines(folder / "rows.jsonl", [{"prompt": f"say {i}", "completion": "on"} for i in range(8)])
    followed = run("fleet", "follow", f"box:{rounds}", rows, "--model", model, "--rounds", 1, "--threads", 1,
                   "--no-govern", "--json")
    ended = RoundLead(rounds, bundle, devices=1, seconds=1e9, key=None).end_round()
    print(json.dumps({
        "followed": json.loads(followed.splitlines()[-1]), "asked": SAID, "devices": ended.record.devices,
        "left_out": ended.record.left_out, "newest": newest(rounds).number, "command": run("fleet", "box"),
        "help": run("fleet", "--help"), "follow": run("fleet", "follow", "--help"),
        "routes": [route.path for route in routes() if "box" in route.path],
        "rights": [right.pattern for right in Devices(rounds)._rights]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
