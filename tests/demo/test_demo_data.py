"""The demo's rows: schema, balance, and that held-out differs from train in wording, not only in values."""

import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "edgetune" / "demo" / "data"
SPLITS = {"train": (320, 400), "heldout": (60, 60)}

# device -> its actions; "set" carries a value
ACTIONS = {
    "light": {"on", "off", "set"}, "heating": {"on", "off", "set"}, "blinds": {"open", "close"}, "fan": {"on", "off"},
    "music": {"on", "off", "up", "down"}, "tv": {"on", "off", "up", "down"}, "door": {"lock", "unlock"},
    "vacuum": {"start", "stop"}, "coffee": {"start", "stop"}, "timer": {"set", "stop"}}
VALUES = {"light": range(10, 101, 10), "heating": range(16, 26), "timer": range(1, 91)}
NO_ROOM = {"coffee", "timer"}
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


@pytest.mark.parametrize("split", SPLITS)
def test_lines_and_sizes(split):
    path = FOLDER / f"home_{split}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    low, high = SPLITS[split]
    assert low <= len(lines) <= high
    assert path.stat().st_size < 64 * 1024
    for line in lines:
        row = json.loads(line)
        assert list(row) == ["prompt", "completion"]
        assert 3 <= len(row["prompt"].split()) <= 16, row["prompt"]
        assert row["prompt"] == row["prompt"].strip()
        action = json.loads(row["completion"])
        assert row["completion"] == json.dumps(action, separators=(",", ":"))


@pytest.mark.parametrize("split", SPLITS)
def test_schema(split):
    for prompt, action in rows(split):
        device = action["device"]
        room = [] if device in NO_ROOM else ["room"]
        value = ["value"] if action["action"] == "set" else []
        assert list(action) == ["device", *room, "action", *value], prompt
        assert action["action"] in ACTIONS[device], prompt
        assert not room or action["room"] in ROOMS, prompt
        assert not value or (type(action["value"]) is int and action["value"] in VALUES[device]), prompt


@pytest.mark.parametrize("split", SPLITS)
def test_label_agrees_with_sentence(split):
    """Room and number are what the sentence names; a sentence that names one device is about that device."""
    for prompt, action in rows(split):
        text = prompt.lower()
        assert [r for r, names in ROOMS.items() if re.search(rf"\b({names})\b", text)] == (
            [action["room"]] if "room" in action else []
        ), prompt
        assert [int(n) for n in re.findall(r"\d+", text)] == ([action["value"]] if "value" in action else []), prompt
        nouns = [d for d, names in NOUNS.items() if re.search(rf"\b({names})\b", text)]
        assert len(nouns) != 1 or nouns == [action["device"]], prompt


def test_heldout_labels_occur_in_train():
    train = [action for _, action in rows("train")]
    heldout = [action for _, action in rows("heldout")]
    pairs = {(a["device"], a["action"]) for a in train}
    assert pairs == {(d, a) for d, actions in ACTIONS.items() for a in actions}
    assert {(a["device"], a["action"]) for a in heldout} == pairs
    for key in ("room", "value"):
        assert {a[key] for a in heldout if key in a} <= {a[key] for a in train if key in a}
    assert {(a["device"], a["room"]) for a in heldout if "room" in a} <= {
        (a["device"], a["room"]) for a in train if "room" in a
    }


@pytest.mark.parametrize("split", SPLITS)
def test_no_sentence_twice(split):
    words = [tuple(re.findall(r"[a-z0-9']+", prompt.lower())) for prompt, _ in rows(split)]
    assert len(set(words)) == len(words)


def test_heldout_wording_is_new():
    """Masked, a held-out sentence is no train sentence and shares no run of NGRAM words with one."""
    train = [masked(prompt) for prompt, _ in rows("train")]
    seen = set().union(*(ngrams(words, NGRAM) for words in train))
    for prompt, _ in rows("heldout"):
        words = masked(prompt)
        assert words not in train, prompt
        assert not ngrams(words, NGRAM) & seen, prompt


def test_masking_sees_a_changed_value():
    assert masked("Dim the living room lights to 30 percent") == masked("dim the hall lamp to 5 percent!")
    assert masked("Dim the hall lamp") != masked("Darken the hall lamp")
