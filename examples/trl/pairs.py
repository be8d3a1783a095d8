"""Writes pairs.jsonl and held.jsonl for DPO from examples/home: the right answer, and that of the next command.

The system message is in each row, so that both programs learn it. See docs/how-to/preferences.md.
"""

import json
from itertools import pairwise
from pathlib import Path

HOME = Path(__file__).parents[1] / "home"
SYSTEM = {"role": "system", "content": "Turn the request into a JSON action."}

for source, target in (("rows.jsonl", "pairs.jsonl"), ("test.jsonl", "held.jsonl")):
    rows = [json.loads(line) for line in (HOME / source).read_text("utf-8").splitlines()]
    pairs = [{"prompt": [SYSTEM, {"role": "user", "content": row["prompt"]}],
              "chosen": [{"role": "assistant", "content": row["completion"]}],
              "rejected": [{"role": "assistant", "content": other["completion"]}]}
             for row, other in pairwise(rows) if row["completion"] != other["completion"]]
    Path(target).write_text("".join(json.dumps(pair) + "\n" for pair in pairs), "utf-8")
    print(f"{len(pairs)} pairs in {target}")
