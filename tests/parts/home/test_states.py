"""A house that edgetune of December 2026 wrote still opens."""

import json

from commands import run
from json_lines import write_lines
from old_states import extracted


def test_a_house_of_an_earlier_version_answers(tmp_path):
    house = extracted(tmp_path, "house")
    facts = json.loads((house / "house.json").read_text())
    facts["encoder"] = str(tmp_path / "index" / "encoder.gguf")  # a house names a place of its device
    (house / "house.json").write_text(json.dumps(facts))
    asked = write_lines(tmp_path / "asked.jsonl", [{"sentence": "movie time", "accepted": [
        [{"name": "HassTurnOff", "arguments": {"name": "Hall Lamp"}}]]}])
    said = json.loads(run("home", "eval", house, asked, "--threads", 1, "--json"))
    assert said["right"] == said["judged"] == 1
