"""What docs/how-to/integrations.md says, done: its programs run against a real daemon, what it has for Home Assistant,
Node-RED and Prometheus is read and sent, and Grafana's board names metrics and labels that the daemon exports. The
programs and requests of the pages about feedback and JSON are put to the same daemon.
"""

import json
import re
import sys
from pathlib import Path

import httpx
import pytest
import yaml
from daemons import PATIENCE, daemon
from json_lines import write_lines
from part_tables import options_of_parts
from prometheus_client.parser import text_string_to_metric_families
from tiny import write_tiny

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "how-to" / "integrations.md").read_text("utf-8")
BOARD = json.loads((DOCS.parent / "examples" / "grafana.json").read_text("utf-8"))
DAEMON = {"context": 1024}
HERE = "http://127.0.0.1:8642"  # as the page has it


@pytest.fixture(scope="module")
def running(model, tmp_path_factory):
    """With the parts whose metrics the board has, too."""
    folder = tmp_path_factory.mktemp("daemon")
    with daemon(model, folder / "state", **options_of_parts(model, folder), **DAEMON) as made:
        yield made


def blocks(language):
    """The page's blocks by the title above them; where there are several below one title, the last one."""
    found = {}
    for part in re.split(r"^## ", PAGE, flags=re.M)[1:]:
        for block in re.findall(rf"```{language}\n(.*?)```", part, re.S):
            found[part.splitlines()[0]] = block
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Called as on the page."""
    return write_tiny(tmp_path_factory.mktemp("model") / "model.gguf", n_context=1024)


@pytest.mark.dev
@pytest.mark.parametrize("title", [title for title in blocks("python") if title != "Ollama's clients"])  # a part's
def test_programs_run(title, running, capsys):
    program = blocks("python")[title]
    assert HERE in program
    for package in re.findall(r"^(?:from|import) (\w+)", program, re.M):
        pytest.importorskip(package)
    exec(compile(program.replace(HERE, running.url), title, "exec", dont_inherit=True), {"__name__": "__main__"})
    said = capsys.readouterr().out
    if "Action" in program:
        assert re.search(r"device='(lamp|fan|radio)' on=(True|False)", said)
    if "vector" in program:
        assert "64 numbers in a vector" in said


def page(name):
    return (DOCS / "how-to" / f"{name}.md").read_text("utf-8")


@pytest.mark.parametrize("program", re.findall(r"```python\n(.*?)```", page("learn-from-feedback"), re.S))
def test_programs_that_send_feedback_run(program, running, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "rows.jsonl", [{"prompt": f"fan {state}", "completion": state} for state in ("on", "off")])
    before = running.service.feedback.waiting()
    exec(compile(program.replace(HERE, running.url), "program", "exec", dont_inherit=True), {})
    assert running.service.feedback.waiting() > before


def test_the_program_of_the_tutorial_corrects_answers(running, tmp_path, monkeypatch, capsys):
    home = DOCS.parent / "examples" / "home"
    rows = (home / "corrections.jsonl").read_text("utf-8").splitlines()
    assert len({json.loads(row)["prompt"] for row in rows}) == 30  # what the page says
    (tmp_path / "rows.jsonl").write_text("\n".join(rows[:2]))
    monkeypatch.setattr(sys, "argv", ["correct.py", str(tmp_path / "rows.jsonl")])
    exec(compile((home / "correct.py").read_text("utf-8").replace(HERE, running.url), "correct.py", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 2
    given = httpx.get(f"{running.url}/v1/feedback", timeout=PATIENCE).json()["data"]
    assert {piece["answer"] for piece in given} >= {json.loads(row)["completion"] for row in rows[:2]}


@pytest.mark.parametrize("name", ["learn-from-feedback", "valid-json"])
def test_requests_are_accepted(name, running):
    """Those of the page's curl commands, with the ids of an answer and of a proposed correction that there are."""
    said = [("user", "capital of Australia?"), ("assistant", "Sydney."), ("user", "No, it is Canberra.")]
    question = {"messages": [{"role": role, "content": text} for role, text in said], "max_tokens": 4}
    answer = httpx.post(f"{running.url}/v1/chat/completions", json=question, timeout=PATIENCE).json()
    proposed = httpx.get(f"{running.url}/v1/proposals", timeout=PATIENCE).json()["data"]
    requests = re.findall(r"^curl -s (\S+) -H 'content-type: application/json' -d '(.*?)'$", page(name), re.M | re.S)
    assert len(requests) >= 3
    for url, body in requests:
        answered = httpx.post(local(url.replace("prop-...", proposed[0]["id"]), running), timeout=PATIENCE,
                              content=body.replace("chatcmpl-...", answer["id"]),
                              headers={"content-type": "application/json"})
        assert answered.status_code == 200, answered.text


def test_the_command_of_home_assistant_is_answered(running):
    from jinja2 import Environment
    command = yaml.load(blocks("yaml")["Home Assistant"], Loader=_Secrets)["rest_command"]["ask_edgetune"]
    environment = Environment()
    environment.filters["to_json"] = json.dumps
    payload = environment.from_string(command["payload"]).render(request='the "lamp"')
    said = httpx.request(command["method"], local(command["url"], running), content=payload, timeout=PATIENCE, headers={
        **command["headers"], "content-type": command["content_type"]})
    assert said.json()["choices"][0]["message"]["content"]
    assert "response.content.choices[0].message.content" in PAGE


class _Secrets(yaml.SafeLoader):
    """Knows Home Assistant's !secret."""


_Secrets.add_constructor("!secret", lambda _, node: "Bearer " + node.value)


def local(url, running):
    """The same at this daemon."""
    found = re.fullmatch(r"http://(?:DEVICE|127\.0\.0\.1):8642(/.*)?", url)
    assert found, url
    return running.url + (found[1] or "")


def test_the_flow_of_node_red_asks_and_takes_the_answer(running):
    nodes = {node["id"]: node for node in json.loads(blocks("json")["Node-RED"])}
    assert all(to in nodes for node in nodes.values() for wires in node["wires"] for to in wires)
    message = {prop["p"]: json.loads(prop["v"]) for prop in nodes["ask"]["props"]}
    send = nodes[nodes["ask"]["wires"][0][0]]
    said = httpx.request(send["method"], local(send["url"], running), json=message["payload"],
                         headers=message["headers"], timeout=PATIENCE)
    assert said.status_code == 200, said.text
    rule, = nodes[send["wires"][0][0]]["rules"]
    value = {"payload": said.json()}
    for key in re.findall(r"\w+", rule["to"]):
        value = value[int(key) if key.isdigit() else key]
    assert value == said.json()["choices"][0]["message"]["content"] != ""


def samples(running):
    """name of a metric -> its labels, of all that the daemon exports."""
    config, = yaml.safe_load(blocks("yaml")["Prometheus and Grafana"])["scrape_configs"]
    target, = config["static_configs"][0]["targets"]
    text = httpx.get(local(f"http://{target}/metrics", running), timeout=PATIENCE).text
    found = {}
    for family in text_string_to_metric_families(text):
        if not family.samples:
            found[family.name] = set()
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def expressions():
    return [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]


def test_the_board_names_all_metrics_and_labels_that_exist(running):
    """What the daemon exports and nobody sees is of no use; what Prometheus' client adds is not meant."""
    httpx.post(f"{running.url}/v1/completions", json={"prompt": "on", "max_tokens": 2}, timeout=PATIENCE)
    exported = samples(running)
    scraped = {"instance", "job"}  # labels that Prometheus adds
    assert len(expressions()) > 20
    for expression in (*expressions(), *(variable["query"]["query"] for variable in BOARD["templating"]["list"]
                                         if variable["type"] == "query")):
        names = re.findall(r"\bedgetune_\w+", expression)
        assert names, expression
        for name in names:
            assert name in exported, f"{name} in {expression}"
        matched = " ".join(re.findall(r"\{(.*?)\}", expression))
        labels = {*re.findall(r"(\w+)\s*[=!]", matched),
                  *re.findall(r"\w+", " ".join(re.findall(r"\bby \((.*?)\)", expression)))}
        labels |= set(re.findall(r"label_values\(\w+, (\w+)\)", expression))
        assert labels <= scraped | {label for name in names for label in exported[name]}, expression
        assert expression.count("(") == expression.count(")")
    shown = {name for expression in expressions() for name in re.findall(r"\bedgetune_\w+", expression)}
    hidden = {"edgetune_http_first_byte_seconds_count", "edgetune_http_first_byte_seconds_sum"}
    assert {name for name in exported if not name.endswith("_created")} - hidden == shown
    panels = BOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        x, y, width, height = (panel["gridPos"][name] for name in "xywh")
        cells = {(x + right, y + down) for right in range(width) for down in range(height)}
        assert not cells & taken, panel["title"]
        assert x + width <= 24
        taken |= cells
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert all("instance=~" in target["expr"] for target in panel["targets"]), panel["title"]
    assert {variable["name"] for variable in BOARD["templating"]["list"]} == {"datasource", "instance"}
