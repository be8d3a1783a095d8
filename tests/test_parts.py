"""The parts: each is whole in its folder, and a new one changes nothing outside of its own."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import structure
from tiny import write_tiny

from edgetune.manifest import manifests

TESTS = Path(__file__).parent
MODULES = structure.modules()
PARTS = {manifest.name: manifest for manifest in manifests()}


@pytest.fixture(scope="module")
def edges():
    return structure.graph()


def part_of(module: str) -> str:
    """The part of a module; "" for one that is in none."""
    names = module.split(".")
    return names[1] if names[0] == "parts" and len(names) > 1 else ""


def test_every_folder_is_a_part():
    folders = {path.parent.name for path in (structure.ROOT / "parts").glob("*/__init__.py")}
    assert folders == PARTS.keys()


@pytest.mark.dev
def test_nothing_outside_imports_a_part(edges):
    assert [(module, target) for module, targets in edges.items() for target in targets
            if part_of(target) and not part_of(module)] == []


def test_a_part_uses_of_another_what_its_manifest_shows(edges):
    hidden = [(module, target) for module, targets in edges.items() for target in targets
              if part_of(target) in PARTS and part_of(module) != part_of(target)
              and target.split(".", 2)[2] not in PARTS[part_of(target)].face]
    assert hidden == []


@pytest.mark.dev
@pytest.mark.parametrize("name", PARTS)
def test_the_code_outside_does_not_name_its_modules(name):
    """Nothing imports it by a text, either."""
    said = re.compile(rf"\bparts[./]{name}\b")
    named = [path.name for module, path in MODULES.items()
             if part_of(module) != name and said.search(path.read_text("utf-8"))]
    assert named == []


@pytest.mark.parametrize("name", PARTS)
def test_a_manifest_names_what_exists(name):
    part = PARTS[name]
    assert part.name == name
    modules = [module for names in part.commands.values() for modules in names.values() for module in modules.split()]
    for place in (*modules, *part.routes, *part.kinds, *part.face, part.options, part.running, part.device,
                  part.status, *part.errors.values(), part.around, *part.purposes.values(), *part.library.values()):
        if place:
            assert part.module(place.partition(":")[0]).removeprefix("edgetune.") in MODULES, place
    for file in ("panel.html", "panel.js"):
        assert part.file(file).exists() == part.panel


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What came through each seam, with the toy beside the parts."""
    folder = tmp_path_factory.mktemp("toy")
    write_tiny(folder / "tiny.gguf", formats="Q8_0")
    done = subprocess.run([sys.executable, TESTS / "toy_part.py", folder / "tiny.gguf", folder], cwd=TESTS,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.dev
def test_a_new_part_has_a_command_an_option_of_the_daemon_and_a_name_of_the_library(said):
    assert said["command"] == "a toy\n"
    assert re.search(r"^Serve:\n(  .*\n)*  toy +Say that it is a toy.$", said["help"], re.MULTILINE)
    assert "--toy" in said["daemon_help"].partition("What it answers with:")[2].partition("\n\n")[0]
    assert said["refused"] == "toy is a/, a folder"
    assert "toy" in said["files"]
    assert said["off"] == [None, False]
    assert said["clocks"] == "toy"
    assert said["dir"]


def test_a_new_part_has_a_route_facts_of_the_device_and_requests_without_a_key(said):
    assert said["route"] == {"time": "late"}
    assert said["error"]["toy"].startswith("there is no GET")
    assert said["device"] == "late"
    assert said["schema"]["description"] == "The time that it tells."
    assert said["admitted"] == [200, 403, 401]
    assert said["scopes"] == [200, 403]  # of a key that is to ask: the second route declares no scope


def test_a_new_part_answers_is_put_around_questions_and_chooses_who_answers(said):
    assert said["time"] == "late"
    assert said["source"]["toy"] == 1
    assert said["chat"]["sources"][0]["source"] == "clock 1"
    assert said["tool"] == "It is late."
    assert re.search(r"--told TEXT +Time that the model is told", said["generate_help"])
    assert "any-time" in said["models"]
    assert said["chosen"]["model"] == "tiny"
    assert said["ticks"]["description"] == "What it has heard of the toy."
    assert said["needed"]


def test_a_new_part_has_a_purpose_of_files(said):
    assert (said["clock"]["purpose"], said["clock"]["filename"]) == ("clocks", "a.clock")
    assert "a.watch is no clock" in said["watch"]["error"]["message"]
    assert said["forgotten"] == [said["clock"]["id"]]


def test_a_new_part_learns_from_what_the_model_answers_by_a_kind_of_job(said):
    """Not from what another source has answered."""
    assert "on" in said["seen"]
    assert "what time is it" not in said["seen"]
    assert said["stores"]
    assert said["learn"][0] == ""
    assert said["learn"][1].startswith("learn is 'toys'")
    assert "toy and toy-nightly also from toys" in " ".join(said["daemon_help"].split())
    assert said["begin"] == "learn is off, and no toys are learned from; there are none"
    assert "toy" in said["kinds"]
    assert said["jobs"] == 0  # of the kind
    assert "\nedgetune_toy_jobs 0.0\n" in said["metrics"]
    assert "toy-jobs" in said["page"]
    assert said["work"] == {"passed": True, "reason": "a toy"}


def test_a_new_part_has_a_thread_health_a_metric_a_row_of_the_status_and_a_panel_of_the_page(said):
    assert said["threads"] == [True, False]
    assert said["health"] == ["the toy is late"]
    assert "\nedgetune_toy 1.0\n" in said["metrics"]
    assert re.search(r"time +late", said["status"])
    assert '<section id="toy" data-tab="Toy" hidden>' in said["page"]
    assert "panels.push(({ toy, toy_jobs: jobs })" in said["page"]
    assert said["page"].index("const panels") < said["page"].index("panels.push") < said["page"].index("watch();")
