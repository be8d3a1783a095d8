"""The demo's rows: held-out ones differ from train in wording, not only in values, and ask for what train has."""

import json
import re
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "edgetune" / "demo" / "data"
ROOMS = {
    "kitchen": "kitchen", "bedroom": "bedroom", "bathroom": "bathroom", "office": "office|study",
    "hall": "hallway|hall", "living room": "living room|lounge", "nursery": "nursery|baby's room", "garage": "garage"}
NOUNS = {
    "light": "lights?|lamps?|brightness",
    "heating": "heating|heater|heat|radiator|thermostat",
    "blinds": "blinds|shutters",
    "fan": "fan",
    "music": "music|songs?|tunes?|speaker|radio|playlist|lullaby",
    "tv": "tv|telly|television",
    "door": "door",
    "vacuum": "vacuum|robot vacuum|robot",
    "coffee": "coffee machine|coffee maker|espresso machine|coffee|espresso|cappuccino",
    "timer": "timer|countdown",
}
NGRAM = 5


def rows(split):
    lines = (FOLDER / f"home_{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["prompt"], json.loads(row["completion"])) for row in map(json.loads, lines)]


def masked(prompt):
    """The sentence's words without what may repeat: every room, device and number is one same word each."""
    text = prompt.lower()
    for names, word in ((ROOMS, "ROOM"), (NOUNS, "DEVICE")):
        alternatives = "|".join(sorted("|".join(names.values()).split("|"), key=len, reverse=True))
        text = re.sub(rf"\b({alternatives})\b", word, text)
    return tuple(re.findall(r"[A-Za-z']+", re.sub(r"\d+", " NUMBER ", text)))


def ngrams(words, n):
    return {words[i : i + n] for i in range(len(words) - n + 1)}


def test_heldout_labels_occur_in_train():
    train = [action for _, action in rows("train")]
    heldout = [action for _, action in rows("heldout")]
    assert {(a["device"], a["action"]) for a in heldout} == {(a["device"], a["action"]) for a in train}
    for key in ("room", "value"):
        assert {a[key] for a in heldout if key in a} <= {a[key] for a in train if key in a}
    assert {(a["device"], a["room"]) for a in heldout if "room" in a} <= {
        (a["device"], a["room"]) for a in train if "room" in a
    }


def test_heldout_wording_is_new():
    """Masked, a held-out sentence is no train sentence and shares no run of NGRAM words with one."""
    train = [masked(prompt) for prompt, _ in rows("train")]
    seen = set().union(*(ngrams(words, NGRAM) for words in train))
    for prompt, _ in rows("heldout"):
        words = masked(prompt)
        assert words not in train, prompt
        assert not ngrams(words, NGRAM) & seen, prompt
