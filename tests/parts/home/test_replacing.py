"""A house is replaced by a trained one: whenever that is killed, and whoever else wants to, a house is at its path."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import yaml
from click.testing import CliRunner
from commands import run
from full_disks import full_disk
from houses import HOUSE, write_house

from edgetune.cli import cli
from edgetune.disk import exchange
from edgetune.errors import DiskError, Interrupted, NotFoundError, UsageError
from edgetune.parts.home import house
from edgetune.parts.home.house import ENTITIES, FACTS, Facts, House, replace_house, write_facts
from edgetune.parts.home.learning import make_house
from edgetune.parts.home.recipe import Recipe
from edgetune.training.callbacks import RunCallbacks


def write_empty(folder, seed):
    """A house that opens; its seed is its name."""
    folder.mkdir()
    write_house(folder.parent).rename(folder / ENTITIES)
    write_facts(folder, Facts("en", 200, seed, "minilm", 200))
    return folder


def seed_of(folder):
    return House.open(folder).facts.seed


@pytest.fixture(params=["in one step", "in two steps"])
def swap(request, monkeypatch, tmp_path):
    """How two folders change places: by the system's call, or without it, as on some file systems."""
    if request.param == "in two steps":
        monkeypatch.setattr(house, "exchange", lambda _one, _other: False)
    else:
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        if not exchange(tmp_path / "a", tmp_path / "b"):
            pytest.skip("this file system cannot")
    return request.param


def killed_at(number, replace):
    """Whether a process was killed before the line of this number that it runs in house.py: between two steps."""
    child = os.fork()
    if child == 0:
        left = number

        def trace(frame, event, _argument):
            nonlocal left
            if frame.f_code.co_filename != house.__file__:
                return None
            left -= event == "line"
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        replace()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.dev
@pytest.mark.usefixtures("swap")
@pytest.mark.parametrize("has_before", [False, True])
def test_a_house_is_there_after_a_kill_at_any_line(tmp_path, has_before):
    seen = set()
    number = 0
    while True:
        place = tmp_path / str(number)
        place.mkdir()
        folder = write_empty(place / "house", seed=1)
        if has_before:
            write_empty(place / "house.before", seed=0)
        made = write_empty(place / "house.new", seed=2)
        was_killed = killed_at(number, lambda folder=folder, made=made: replace_house(folder, made))
        now = seed_of(folder)
        assert now in (1, 2)
        seen.add(now)
        if not was_killed:
            break
        shutil.rmtree(place / "house.new", ignore_errors=True)  # as an update does before it trains
        replace_house(folder, write_empty(place / "house.new", seed=3))
        assert (seed_of(folder), seed_of(place / "house.before")) == (3, now)
        assert sorted(path.name for path in place.iterdir()) == ["house", "house.before"]
        number += 1
    assert number > 10
    assert seen == {1, 2}
    assert (now, seed_of(place / "house.before")) == (2, 1)


def test_what_a_killed_update_left_is_put_back_and_named(tmp_path, trained):
    folder = tmp_path / "house"
    shutil.copytree(trained[0], tmp_path / "house.before")
    shutil.copytree(trained[0], tmp_path / "house.new")
    (tmp_path / "asked.jsonl").write_text('{"sentence": "turn on the hall lamp"}\n')
    for command in (["eval", folder, tmp_path / "asked.jsonl", "--threads", 1], ["update", folder, folder / ENTITIES],
                    ["update", folder, trained[0] / ENTITIES]):
        if folder.exists():
            folder.rename(tmp_path / "house.before")
        done = CliRunner().invoke(cli, ["home", *map(str, command)])
        assert isinstance(done.exception, SystemExit | None), done.exception
        assert f"an update of {folder} was killed" in done.stderr.replace("\n", " ")
        assert (folder / FACTS).exists()
        assert not (tmp_path / "house.before").exists()
        assert done.exit_code == (0 if command[0] == "eval" else 2), done.output
    assert House.open(trained[0]).facts == House.open(folder).facts


def test_a_house_is_not_put_back_while_an_update_runs(tmp_path):
    folder = write_empty(tmp_path / "house", seed=1)
    with house.alone(folder):
        folder.rename(tmp_path / "house.before")
        with pytest.raises(UsageError, match="another process is writing"):
            House.open(folder)
    assert seed_of(folder) == 1


def test_what_is_no_house_is_not_put_back(tmp_path, monkeypatch):
    (tmp_path / "house.before").mkdir()
    with pytest.raises(NotFoundError, match="is no house"):
        House.open(tmp_path / "house")
    assert (tmp_path / "house.before").exists()
    folder = write_empty(tmp_path / "other", seed=1)
    monkeypatch.chdir(folder)
    assert House.open(".").facts.seed == House.open("../other").facts.seed == 1


UPDATE = """
import sys
from edgetune.parts.home.updating import update_house

def wait(step):
    print(step, flush=True)
    if "learns" in step:
        sys.stdin.readline()

update_house(sys.argv[1], sys.argv[2], threads=1, on_step=wait)
"""


@pytest.mark.dev
def test_a_second_update_is_refused_until_the_first_one_is_killed(tmp_path, trained):
    folder = shutil.copytree(trained[0], tmp_path / "house")
    entities = tmp_path / "changed.yaml"
    entities.write_text(yaml.safe_dump({**HOUSE, "entities": HOUSE["entities"][:-1]}))
    first = subprocess.Popen([sys.executable, "-c", UPDATE, folder, entities], text=True, stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE)
    while "learns" not in (step := first.stdout.readline()):
        assert step
    made = sorted(tmp_path.iterdir())
    assert f"house.new.{first.pid}.tmp" in [path.name for path in made]
    command = ["home", "update", str(folder), str(entities), "--threads", "1", "--json"]
    said = run(*command, code=2)
    assert f"another process is writing to {folder}" in said
    assert sorted(tmp_path.iterdir()) == made
    first.kill()
    first.communicate()
    assert House.open(folder).home == House.open(trained[0]).home
    said = json.loads(CliRunner().invoke(cli, command).stdout)
    assert said["removed"] == ["Study Warmth"]
    other = "house.before" if said["replaced"] else "house.new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["changed.yaml", "house", other]
    counts = {len(House.open(path).home.entities) for path in (folder, tmp_path / other)}
    assert counts == {len(HOUSE["entities"]), len(HOUSE["entities"]) - 1}


@pytest.mark.dev
def test_a_training_that_is_stopped_says_that_nothing_is_kept(tmp_path, encoder):
    stopped = RunCallbacks(should_stop=lambda: True)
    with pytest.raises(Interrupted) as caught:
        make_house(write_house(tmp_path), tmp_path / "house", Recipe(count=200, encoder=str(encoder)), threads=1,
                   callbacks=stopped)
    assert "nothing is kept" in str(caught.value)
    assert "continue" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["house.yaml"]


# ---- full disks ----


@pytest.mark.dev
def test_rows_and_answers_are_written_whole_or_not_at_all(tmp_path, trained):
    rows, said = tmp_path / "rows.jsonl", tmp_path / "said.jsonl"
    asked = tmp_path / "asked.jsonl"
    asked.write_text(json.dumps({"sentence": "turn on the hall lamp"}) + "\n")
    commands = {rows: ["rows", write_house(tmp_path), "-o", rows, "--count", 200],
                tmp_path / "chats.jsonl": ["rows", tmp_path / "house.yaml", "-o", tmp_path / "chats.jsonl", "--count",
                                           200, "--for", "2026.11"],
                said: ["eval", trained[0], asked, "--save", said, "--threads", 1]}
    before = {*tmp_path.iterdir()}
    for path, command in commands.items():
        with full_disk(10):
            refused = run("home", *command, code=1)
        assert "cannot write" in refused
        assert {*tmp_path.iterdir()} == before
        run("home", *command)
        assert path.stat().st_size > 10
        before.add(path)


def test_a_training_on_a_full_disk_leaves_nothing(tmp_path, encoder):
    command = ["train", write_house(tmp_path), "-o", tmp_path / "house", "--count", 200, "--encoder", encoder,
               "--threads", 1]
    with full_disk(10):
        said = run("home", *command, code=1)
    assert f"cannot write {tmp_path}" in said.replace("\n", " ")
    assert "continue" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["house.yaml"]


@pytest.mark.dev
@pytest.mark.parametrize("folder", ["/proc", "/sys"])
def test_a_folder_that_takes_nothing(folder, tmp_path, trained):
    out = f"{folder}/edgetune"
    asked = tmp_path / "asked.jsonl"
    asked.write_text(json.dumps({"sentence": "turn on the hall lamp"}) + "\n")
    for command in (["rows", write_house(tmp_path), "-o", out, "--count", 200],
                    ["train", tmp_path / "house.yaml", "-o", out, "--count", 200],
                    ["eval", trained[0], asked, "--save", out, "--threads", 1]):
        assert f"cannot write {out}" in run("home", *command, code=1)


def test_facts_are_replaced_whole(tmp_path):
    folder = write_empty(tmp_path / "house", seed=1)
    with full_disk(10), pytest.raises(DiskError):
        write_facts(folder, Facts("en", 200, 2, "minilm", 200))
    assert seed_of(folder) == 1
    assert sorted(path.name for path in folder.iterdir()) == [ENTITIES, FACTS]
