"""A house that edgetune of December 2026 wrote still opens."""

import json

from commands import run
from json_lines import write_lines
from old_states import extracted


def test_a_house_of_an_earlier_version_answers(tmp_path):
    house = extracted(tmp_path, "house")
    for file in (house / "house.json", house / "encoder" / "run.json"):  # they name a place of their device
        file.write_text(file.read_text().replace("/tmp/edgetune-states", str(tmp_path)))
    asked = write_lines(tmp_path / "asked.jsonl", [{"sentence": "movie time", "accepted": [
        [{"name": "HassTurnOff", "arguments": {"name": "Hall Lamp"}}]]}])
    said = json.loads(run("home", "eval", house, asked, "--threads", 1, "--json"))
    assert said["right"] == said["judged"] == 1
