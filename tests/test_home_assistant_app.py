"""packaging/home-assistant: what its configuration says, and what its start does with a hub that answers as they do."""

import copy
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import fake_hub
import httpx
import pytest
import yaml
from daemons import PATIENCE
from ingress import ADDRESS, client_from

from edgetune.daemon.keys import hash_of, read_keys
from edgetune.daemon.options import DaemonConfig
from edgetune.errors import UsageError
from edgetune.parts.home.language import languages
from edgetune.training.config import TrainConfig
from edgetune.version import __version__

TOP = Path(__file__).parents[1]
APP = TOP / "packaging" / "home-assistant"
CONFIG = yaml.safe_load((APP / "config.yaml").read_text("utf-8"))
DEFAULTS = CONFIG["options"]

# by developers.home-assistant.io/docs/apps/configuration, August 2026
REQUIRED = {"name", "version", "slug", "description", "arch"}
OPTIONAL = {"url", "startup", "boot", "ports", "ports_description", "homeassistant", "homeassistant_api", "map",
            "environment", "options", "schema", "timeout", "ingress", "ingress_port", "ingress_entry", "ingress_stream",
            "panel_icon", "panel_title", "panel_admin", "backup", "backup_exclude", "stage", "init"}
TYPE = re.compile(r"(bool|url|port|(str|int)(\(\d*,\d*\))?|match\((?P<match>.+)\)|list\((?P<list>.+)\))\??")
TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
         for name in ("HassTurnOn", "HassTurnOff", "GetLiveContext")]


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


start = load(APP / "run.py")
packed = load(TOP / "packaging" / "home_assistant.py")


@pytest.fixture
def places(tmp_path):
    (tmp_path / "edgetune").mkdir()
    return start.Places(tmp_path / "edgetune")


@pytest.fixture
def exposed(monkeypatch):
    """What the hub has exposed, to change."""
    monkeypatch.setattr(fake_hub, "RESULTS", copy.deepcopy(fake_hub.RESULTS))
    return fake_hub


# ---- the configuration ----------------------------------------------------------------------------------------------


def test_the_configuration_has_keys_of_the_documentation_and_what_they_must_agree_with():
    assert REQUIRED <= CONFIG.keys() <= REQUIRED | OPTIONAL
    assert set(CONFIG["arch"]) == {"aarch64", "amd64"}
    assert CONFIG["version"] == __version__
    assert CONFIG["ingress_port"] == DaemonConfig.port
    assert CONFIG["ports"] == {f"{DaemonConfig.port}/tcp": None}
    assert CONFIG["ports"].keys() == CONFIG["ports_description"].keys()
    assert 10 <= CONFIG["timeout"] <= 300
    assert CONFIG["homeassistant_api"] is CONFIG["ingress"] is True
    assert {"host_network", "privileged", "full_access", "hassio_api"}.isdisjoint(CONFIG)


def test_options_fit_the_schema_and_have_a_name_for_people():
    texts = yaml.safe_load((APP / "translations" / "en.yaml").read_text("utf-8"))
    assert texts["configuration"].keys() == CONFIG["schema"].keys() == {one.name for one in fields(start.Options)}
    assert texts["network"].keys() == CONFIG["ports"].keys()
    for name, kind in CONFIG["schema"].items():
        assert (name in DEFAULTS) != str(kind).endswith("?"), "an option is required, or has no value of ours"
        for one in DEFAULTS.get(name, []) if isinstance(kind, list) else [DEFAULTS[name]] if name in DEFAULTS else []:
            assert is_of(one, kind[0] if isinstance(kind, list) else kind), name


def is_of(value, kind):
    found = TYPE.fullmatch(kind)
    assert found, kind
    if found["list"]:
        return value in found["list"].split("|")
    return isinstance(value, str) and (not found["match"] or re.match(found["match"], value) is not None)


def test_what_the_schema_lets_through_edgetune_takes():
    schema = CONFIG["schema"]
    assert TYPE.fullmatch(schema["language"])["list"].split("|") == languages()
    for learn in TYPE.fullmatch(schema["learn"])["list"].split("|"):
        DaemonConfig(learn=learn).check()
    for memory in ("400M", "25%", "1G", "1.5G", "400", "lots", "M", "25 %"):
        try:
            TrainConfig(memory=memory).memory_bytes(2**30)
        except UsageError:
            assert not is_of(memory, schema["memory"]), memory
    assert is_of("400M", schema["memory"])
    assert is_of("25%", schema["memory"])


# ---- what the start does --------------------------------------------------------------------------------------------


def test_keys_are_made_shown_once_and_end_with_their_name(places, capfd):
    start.keep_keys(places, ("home-assistant", "kitchen"))
    shown = re.findall(r"the key of ([\w-]+), shown this once: (et-\S+)", capfd.readouterr().out)
    kept = read_keys(places.keys)
    assert {hash_of(key): name for name, key in shown} == {digest: key.name for digest, key in kept.items()}
    assert [name for name, _ in shown] == ["home-assistant", "kitchen"]
    start.keep_keys(places, ("kitchen", "garage"))
    again = capfd.readouterr().out
    assert re.findall(r"the key of ([\w-]+)", again) == ["garage"]
    assert {key.name for key in read_keys(places.keys).values()} == {"kitchen", "garage"}
    assert read_keys(places.keys)[hash_of(shown[1][1])].name == "kitchen"
    assert places.keys.stat().st_mode & 0o777 == 0o600


@pytest.mark.dev
def test_entities_are_read_with_a_token_that_no_command_line_shows(places, exposed, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(TOP))
    lines = []
    with exposed.fake_hub(exposed.SUPERVISOR, on_call=lambda: lines.extend(command_lines())) as place:
        hub = f"ws://{place}{exposed.SUPERVISOR}"
        assert start.read_entities(places, hub, dict(os.environ), exposed.RIGHT, tries=1, pause=0)
        assert not start.read_entities(places, hub, dict(os.environ), "another", tries=2, pause=0)
    assert any(hub in line for line in lines)
    assert not any(exposed.RIGHT in line for line in lines)
    assert [one["name"] for one in yaml.safe_load(places.entities.read_text())["entities"]] == ["Hall Lamp", "Skylight"]


def command_lines():
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield process.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue


def test_a_house_is_updated_where_something_changed_and_not_again_where_that_was_worse(places, capfd, monkeypatch):
    asked = []
    options = start.Options(**DEFAULTS)
    monkeypatch.setattr(start, "edgetune", lambda *words, env: asked.append((words, env)) or 0)
    house = {"entities": [{"name": "Hall Lamp", "id": "light.hall"}]}
    renamed = {"entities": [{"name": "Hall Light", "id": "light.hall"}]}
    places.house.mkdir()
    (places.house / "entities.yaml").write_text(yaml.safe_dump(house))
    places.entities.write_text(json.dumps(house))  # the same in other letters
    start.update(places, options, {})
    assert "the entities are those" in capfd.readouterr().out
    places.entities.write_text(yaml.safe_dump(renamed))
    places.refused.mkdir()
    (places.refused / "entities.yaml").write_text(yaml.safe_dump(renamed))
    start.update(places, options, {})
    assert "it was worse" in capfd.readouterr().out
    assert asked == []
    (places.refused / "entities.yaml").write_text(yaml.safe_dump(house))
    start.update(places, options, {})
    assert asked == [(("home", "update", places.house, places.entities, "--memory", "400M"), {})]


def test_another_language_and_other_sentences_train_again_and_keep_the_house_until_then(places, tmp_path, monkeypatch):
    trained = []

    def edgetune(*words, env):  # noqa: ARG001
        trained.append(words)
        Path(words[4]).mkdir()
        return 0

    monkeypatch.setattr(start, "edgetune", edgetune)
    monkeypatch.setattr(start, "update", lambda *_: trained.append("update"))
    own = tmp_path / "own.jsonl"
    own.write_text("{}\n")
    options = {**DEFAULTS, "clients": ()}
    for changed, expected in ((options, "train"), (options, "update"), ({**options, "language": "de"}, "train"),
                              ({**options, "language": "de", "own_sentences": str(own)}, "train"),
                              ({**options, "language": "de", "own_sentences": str(own)}, "update")):
        start.keep_house(places, start.Options(**changed), {})
        assert expected in trained[-1]
        assert places.house.is_dir()
    own.write_text("{ }\n")
    monkeypatch.setattr(start, "edgetune", lambda *_, env: 1)  # noqa: ARG005 - a training that fails
    start.keep_house(places, start.Options(**changed), {})
    assert places.house.is_dir()
    assert json.loads(places.recipe.read_text())["language"] == "de"


def test_what_serves_has_no_token_and_says_who_may_ask(places):
    options = start.Options(**{**DEFAULTS, "clients": ()})
    given = start.daemon_options(places, options, {"EDGETUNE_DAEMON_PORT": "1"})
    assert given["EDGETUNE_DAEMON_TRUSTED_PROXY"] == "172.30.32.2"
    assert given["EDGETUNE_DAEMON_PORT"] == "1"
    config = DaemonConfig(**{name.removeprefix("EDGETUNE_DAEMON_").lower(): value for name, value in given.items()
                             if not name.endswith("PORT")})
    assert config.check().home == str(places.house)


# ---- the whole -------------------------------------------------------------------------------------------------------


@contextmanager
def started(data, hub):
    """A start with its daemon's URL and its log. It must end by itself when it is asked to."""
    env = {**os.environ, "PYTHONPATH": str(TOP), "SUPERVISOR_TOKEN": fake_hub.RIGHT, "EDGETUNE_DAEMON_PORT": "0",
           "EDGETUNE_DAEMON_TRUSTED_PROXY": ADDRESS, "EDGETUNE_DAEMON_HOST": "127.0.0.1"}
    command = [sys.executable, APP / "run.py", "--data", data, "--hub", hub, "--tries", "1"]
    log = []
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        for line in process.stdout:
            log.append(line)
            if " answers at " in line:
                break
        assert " answers at " in log[-1], "".join(log)
        assert fake_hub.RIGHT.encode() not in Path(f"/proc/{process.pid}/environ").read_bytes()
        yield log[-1].split()[-1], "".join(log)
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_hub_is_served_from_its_first_start_and_after_a_lamp_was_added(tmp_path, exposed):
    (tmp_path / "options.json").write_text(json.dumps(DEFAULTS))
    with exposed.fake_hub(exposed.SUPERVISOR) as place:
        hub = f"ws://{place}{exposed.SUPERVISOR}"
        with started(tmp_path, hub) as (url, log):
            (key,) = re.findall(r"the key of home-assistant, shown this once: (et-\S+)", log)
            assert calls(url, key, "turn off the hall lamp") == [("HassTurnOff", "Hall Lamp")]
            assert httpx.get(f"{url}/v1/models").status_code == 401
            with client_from(ADDRESS, url) as ingress:
                assert "edgetune" in ingress.get("/").text
                assert ingress.get("/v1/models").status_code == 200
        with started(tmp_path, hub) as (url, log):
            assert "the entities are those that the house knows" in log
            assert "shown this once" not in log
            assert calls(url, key, "turn off the hall lamp") == [("HassTurnOff", "Hall Lamp")]
        exposed.expose("light.attic", "Attic Star")
        with started(tmp_path, hub) as (url, log):
            assert "added: Attic Star" in log
            assert calls(url, key, "turn on the attic star") == [("HassTurnOn", "Attic Star")]
    with started(tmp_path, hub) as (url, log):  # Home Assistant is away
        assert "does not answer as Home Assistant" in log
        assert calls(url, key, "turn off the hall lamp") == [("HassTurnOff", "Hall Lamp")]


def calls(url, key, sentence):
    """Tools and names that a sentence calls, as Home Assistant's Ollama integration asks."""
    with httpx.Client(base_url=url, timeout=PATIENCE, headers={"Authorization": f"Bearer {key}"}) as http:
        model = http.get("/api/tags").json()["models"][0]["name"]
        asked = {"model": model, "stream": False, "tools": TOOLS, "messages": [{"role": "user", "content": sentence}]}
        message = http.post("/api/chat", json=asked).json()["message"]
    found = [call["function"] for call in message.get("tool_calls") or ()]
    return [(call["name"], call["arguments"]["name"]) for call in found]


# ---- the folder that a hub builds ------------------------------------------------------------------------------------


def test_the_folder_has_wheels_that_the_image_can_install(tmp_path):
    dist = tmp_path / "dist"
    dist.mkdir()
    ours = [f"edgetune-{__version__}-cp3{minor}-cp3{minor}-manylinux_2_34_{machine}.whl"
            for minor in (11, 13) for machine in ("x86_64", "aarch64")]
    other = "llama_cpp_python-0.3.36-py3-none-manylinux_2_34_aarch64.whl"
    with pytest.raises(SystemExit, match=r"no wheel of edgetune for Python 3\.13: make wheels PYTHONS=python3\.13"):
        packed.fill(tmp_path / "app", dist)
    for name in (*ours, other):
        (dist / name).touch()
    wheels = packed.fill(tmp_path / "app", dist)
    assert {path.name for path in wheels.iterdir()} == {*ours[2:], other, packed.LLAMA}
    assert {"config.yaml", "Dockerfile", "run.py", "DOCS.md"} <= {path.name for path in (tmp_path / "app").iterdir()}
    dockerfile = (APP / "Dockerfile").read_text("utf-8")
    assert f"edgetune[{packed.EXTRAS}]" in dockerfile
    assert packed.ENCODER in dockerfile
