"""What docs/how-to/integrations.md says of Ollama's API, done: its program, and a task of Home Assistant."""

import json
import re
from pathlib import Path

import jsonschema_rs
import ollama
import yaml
from daemons import PATIENCE

PAGE = (Path(__file__).parents[3] / "docs" / "how-to" / "integrations.md").read_text("utf-8")
SHAPE = {"n_context": 1024}
DAEMON = {"context": 1024}


def test_the_program_runs(running, capsys):
    program = re.search(r"## Ollama's clients\n\n```python\n(.*?)```", PAGE, re.S)[1]
    here = program.replace("http://127.0.0.1:8642", running.url).replace('"model"', '"tiny"')
    exec(compile(here, "program", "exec", dont_inherit=True), {})
    assert "64 numbers in a vector" in capsys.readouterr().out


def schema_of(fields):
    """As Home Assistant makes a schema of a task's structure (homeassistant/helpers/llm.py)."""
    def of(selector):
        (kind, options), = selector.items()
        if kind == "boolean":
            return {"type": "boolean"}
        assert kind == "select"
        one = {"type": "string", "enum": options["options"]}
        return {"type": "array", "items": one, "uniqueItems": True} if options.get("multiple") else one

    return {"type": "object", "properties": {name: of(field["selector"]) for name, field in fields.items()}}


def test_a_task_of_home_assistant_is_answered_in_its_form(running):
    text = re.search(r"```yaml\n(actions:.*?)```", PAGE, re.S)
    task = yaml.safe_load(text[1])["actions"][0]
    assert task["action"] == "ai_task.generate_data"
    schema = schema_of(task["data"]["structure"])
    assert set(schema["properties"]) == {"device", "on", "rooms"}
    with ollama.Client(running.url, timeout=PATIENCE) as client:
        assert "tiny:latest" in [found.model for found in client.list().models]
        for seed in range(3):
            stream = client.chat("tiny:latest", [{"role": "user", "content": task["data"]["instructions"]}],
                                 tools=None, stream=True, keep_alive=-1, think=False, format=schema,
                                 options={"num_ctx": 8192, "temperature": 2.0, "seed": seed})
            said = "".join(part.message.content for part in stream)
            jsonschema_rs.validator_for(schema).validate(json.loads(said))
