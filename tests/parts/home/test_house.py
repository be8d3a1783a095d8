"""edgetune home: rows, a training and questions, as commands make them, with a tiny encoder."""

import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from commands import run
from houses import HOUSE, house, named, write_house

from edgetune.adapters.store import read_artifact, save_artifact
from edgetune.cli import cli
from edgetune.errors import NotFoundError
from edgetune.evaluation.acceptance import ALPHA, Paired
from edgetune.formats.bundle import open_bundle
from edgetune.parts.home.entities import home_of
from edgetune.parts.home.house import House
from edgetune.parts.home.language import language_of
from edgetune.parts.home.learning import shopping_list
from edgetune.parts.home.understanding import understanding_of, whole_parts
from edgetune.parts.home.updating import Change, compared
from edgetune.serving.encoder import encoder_of


def test_rows_are_written_and_counted(tmp_path):
    entities = write_house(tmp_path)
    found = json.loads(run("home", "rows", entities, "-o", tmp_path / "rows.jsonl", "--count", 200, "--json"))
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert found["rows"] == len(rows) == 200
    assert sum(found["kinds"].values()) == 200
    assert sum(found["tools"].values()) == sum(len(row["calls"]) for row in rows)
    assert len(found["sample"]) == 20
    assert "exists; name another" in run("home", "rows", entities, "-o", tmp_path / "rows.jsonl", code=2)


@pytest.mark.dev
def test_a_house_is_trained_and_measured(trained):
    folder, said = trained
    opened = House.open(folder)
    assert opened.home == home_of(HOUSE, "house")
    assert (said["asked"], said["rows"]) == (20, 184) == (opened.facts.asked, opened.facts.rows)
    assert json.loads(Path(opened.own).read_text())["sentence"] == "movie time"
    assert said["right"] == opened.facts.right > 0  # by chance none of hundreds of calls is right


def test_a_name_is_not_cut(tmp_path, trained):
    folder = shutil.copytree(trained[0], tmp_path / "house")
    (folder / "own.jsonl").unlink()  # it names what this other house does not have
    home = home_of({"entities": [{"name": "Salt and Pepper", "id": "switch.mill"}]}, "mill")
    house = replace(House.open(folder), home=home)
    with understanding_of(house, threads=1) as understanding:
        assert len(understanding.understand("turn on salt and pepper").wishes) == 1
        assert len(understanding.understand("turn on salt and turn off pepper").wishes) == 2


@pytest.mark.parametrize(("sentence", "parts"), [
    ("turn on the pendant and the kettle", ["turn on the pendant", "turn on the kettle"]),
    ("Pendant, and kettle off", ["pendant off", "kettle off"]),
    ("turn on the pendant and my hall lamp and lock", ["turn on the pendant", "turn on the hall lamp", "lock"]),
    ("lock the door and kettle", ["lock the door", "kettle"]), ("pendant and kettle", ["pendant", "kettle"]),
    ("dim the pendant and open the awning", ["dim the pendant", "open the awning"]), ("", [])])
def test_a_name_alone_means_what_is_said_of_another(sentence, parts):
    assert whole_parts(language_of("en").parts(sentence), ["hall lamp", "pendant", "kettle"]) == parts


def test_serving_a_house_needs_none_of_the_packages_that_draw_rows():
    said = subprocess.run([sys.executable, "-c", "import sys, edgetune.parts.home.source\n"
                           "print('hassil' in sys.modules, 'home_assistant_intents' in sys.modules)"],
                          capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["False", "False"]


def test_sentences_of_a_file_are_asked(tmp_path, trained):
    folder, _ = trained
    sentence = "Turn on the hall lamp, then unlock the front lock"
    with understanding_of(House.open(folder), threads=1) as understanding:
        calls = understanding.understand(sentence).sure_calls
    rows = [{"sentence": sentence, "accepted": [[], [call.to_json() for call in calls]]},
            {"sentence": sentence, "accepted": []}, {"sentence": sentence}]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = json.loads(run("home", "eval", folder, tmp_path / "asked.jsonl", "--save", tmp_path / "said.jsonl",
                           "--threads", 1, "--json"))
    assert (found["asked"], found["judged"], found["right"]) == (3, 2, 1)
    said = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert said == [{"sentence": sentence, "calls": [call.to_json() for call in calls]}] * 3


def test_what_cannot_be_asked_is_refused(tmp_path, trained):
    folder, _ = trained
    (tmp_path / "asked.jsonl").write_text('{"sentence": "on"}\n{"prompt": "on"}\n')
    assert "line 2" in run("home", "eval", folder, tmp_path / "asked.jsonl", code=1)
    with pytest.raises(NotFoundError, match="is no house"):
        House.open(tmp_path)
    assert "no wordings of the language 'xx'" in run("home", "rows", write_house(tmp_path), "-o", tmp_path / "rows",
                                                     "--language", "xx", code=2)


@pytest.mark.dev
def test_a_changed_house_replaces_the_old_one_unless_it_is_worse(tmp_path, trained):
    folder = tmp_path / "house"
    shutil.copytree(trained[0], folder)
    lamp, *others = HOUSE["entities"]
    changed = {**HOUSE, "entities": [{**lamp, "name": "Big Lamp"}, *others[1:], {"name": "Fan", "id": "fan.new"}]}
    entities = tmp_path / "changed.yaml"
    entities.write_text(yaml.safe_dump(changed))
    result = CliRunner().invoke(cli, ["home", "update", str(folder), str(entities), "--threads", "1", "--json"])
    said = json.loads(result.stdout)
    assert (said["added"], said["renamed"], said["removed"]) == (["Fan"], ["Big Lamp"], ["Reading Lamp"])
    assert said["asked"] > 0
    assert said["replaced"] == (Paired(said["better"], said["worse"]).p_worse > ALPHA and said["right"] > 0)
    assert result.exit_code == (0 if said["replaced"] else 3)
    assert bool(named(House.open(folder).home, "Fan")) == said["replaced"]
    made = folder if said["replaced"] else folder.with_name("house.new")
    assert json.loads(Path(House.open(made).own).read_text())["calls"][0]["arguments"]["name"] == "Big Lamp"
    kept = folder.with_name("house.before" if said["replaced"] else "house.new")
    assert bool(named(House.open(kept).home, "Fan")) != said["replaced"]
    if said["replaced"]:
        assert "has the same entities" in run("home", "update", folder, entities, code=2)


@pytest.mark.dev
def test_a_house_learns_further_sentences_of_its_people(tmp_path, trained):
    folder = tmp_path / "house"
    shutil.copytree(trained[0], folder)
    own = tmp_path / "mine.jsonl"
    lock = {"sentence": "Good night", "calls": [{"name": "HassTurnOn", "arguments": {"name": "Front Lock"}}]}
    movie = {"sentence": "movie time", "calls": []}
    own.write_text("".join(json.dumps(row) + "\n" for row in (lock, movie)))
    (tmp_path / "wrong.jsonl").write_text('{"sentence": "on"}\n')
    assert f"line 1 of {tmp_path}/wrong.jsonl has no list of calls" in run(
        "home", "update", folder, "--own", tmp_path / "wrong.jsonl", code=1)
    result = CliRunner().invoke(cli, ["home", "update", str(folder), "--own", str(own), "--threads", "1", "--json"])
    said = json.loads(result.stdout)
    assert (said["added"], said["renamed"], said["removed"], said["own"]) == ([], [], [], 2)
    new = House.open(folder if said["replaced"] else tmp_path / "house.new")
    assert [json.loads(line) for line in Path(new.own).read_text().splitlines()] == [movie, lock]
    assert new.facts.rows == House.open(trained[0]).facts.rows + 4  # that of movie time was learned before, too


@pytest.mark.dev
def test_a_house_that_is_worse_stays_out(trained, tmp_path):
    house = House.open(trained[0])
    change = Change((), (), (), tuple(one.name for one in house.home.entities))
    same = compared(house, house, change, threads=1)
    assert (same.stayed.right.wins, same.stayed.right.losses, same.replaced) == (0, 0, True)
    broken = tmp_path / "broken"
    shutil.copytree(trained[0], broken)
    adapter = broken / "encoder/adapter.gguf"
    bundle = open_bundle(encoder_of(broken / "encoder")).gguf
    found = read_artifact(adapter, bundle)
    zeros = {name: 0 * values for name, values in found.tensors.items()}
    save_artifact(adapter, replace(found, tensors=zeros), bundle)
    worse = compared(house, House.open(broken), change, threads=1)
    assert worse.stayed.right.losses > worse.stayed.right.wins
    assert worse.replaced == (worse.stayed.right.p_worse > ALPHA)


@pytest.mark.dev
@pytest.mark.parametrize(("fails", "replaces"), [
    ((), True), (("new",), False), (("stays",), False), (("new", "stays"), False)])
def test_a_house_must_know_what_it_was_made_for(trained, monkeypatch, fails, replaces):
    """One that fails every sentence about a new entity does not replace the old one, though all else is as before."""
    old = House.open(trained[0])
    new = replace(old, facts=replace(old.facts, seed=old.facts.seed + 1))
    names = [one.name for one in old.home.entities]
    change = Change((names[0],), (), (), tuple(names[1:]))
    monkeypatch.setattr("edgetune.parts.home.updating.understanding_of", lambda house, *_: nullcontext(house))

    def is_right(house, row):
        if row.wishes[0].target.name != names[0]:
            return house is old or "stays" not in fails
        return house is new and "new" not in fails

    monkeypatch.setattr("edgetune.parts.home.updating.is_right", is_right)
    found = compared(old, new, change, threads=1)
    assert found.changed.right.rows > 10
    assert found.replaced == replaces


def test_a_service_for_a_house_is_printed(tmp_path, on_disk, trained, smollm2):
    house = shutil.copytree(trained[0], on_disk / "house")
    (on_disk / "keys").write_text("")
    run("service", "key", "kitchen", "--key-file", on_disk / "keys")
    keys = ["--key-file", on_disk / "keys"]
    for options, place, host in (([], "http://127.0.0.1:8642", ""), (keys, ":8642", "0.0.0.0")):
        said = json.loads(run("home", "install", house, "--model", smollm2, *options, "--print", "--json"))
        assert f"--home {house}" in said["unit"]
        assert host in said["unit"]
        assert place in said["steps"][0]
    assert "is no house" in run("home", "install", tmp_path, "--model", smollm2, "--print", code=1)


def test_of_several_lists_one_is_for_shopping(tmp_path, encoder):
    english = language_of("en")
    assert shopping_list(house(tmp_path), english, "no such encoder").name == "Errands"
    two = home_of({"entities": [{"name": "Errands", "id": "todo.a"}, {"name": "shopping list", "id": "todo.b"}]}, "two")
    assert shopping_list(two, english, encoder).id == "todo.b"
    assert shopping_list(home_of({"entities": HOUSE["entities"][4:5], "areas": HOUSE["areas"]}, "none"), english,
                         encoder) is None
