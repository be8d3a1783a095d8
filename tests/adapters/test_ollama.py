"""Ollama's Modelfile: its template makes of a conversation what the model's own template makes of it."""

import json
import re

import pytest
import templates
from commands import run
from go_template import execute
from random_adapters import SEVEN, random_pairs, write_adapter
from tiny import CHAT_TEMPLATE, write_tiny

from edgetune.adapters.ollama import Frame, export_ollama, frame_of
from edgetune.errors import UsageError
from edgetune.formats.gguf import open_gguf

# As Gemma's: the system message stands before the first question, in its turn.
GEMMA = """\
{{ bos_token }}{% set first = '' %}{% set rest = messages %}
{%- if messages[0].role == 'system' %}{% set first = messages[0].content + '\\n\\n' %}{% set rest = messages[1:] %}
{%- endif %}{% for message in rest %}
{{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}
{{- (first if loop.first else '') + message.content | trim + '<end_of_turn>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""
CHATS = [
    [("user", "one")], [("system", "be kind"), ("user", "one")],
    [("user", "one"), ("assistant", "{\"a\": 1}"), ("user", "two\n\nlines"), ("assistant", "x"), ("user", "three")],
    [("system", "s"), ("user", "q {{ .System }}"), ("assistant", "a"), ("user", "q")],
]


# As Qwen 3: no system message of its own.
QWEN3 = templates.QWEN.replace("'Be brief.'", "''").replace(
    "{{- '<|im_start|>system", "{%- if system or tools %}{{- '<|im_start|>system").replace(
    "{{- '<|im_end|>\\n' }}\n{%- for", "{{- '<|im_end|>\\n' }}{%- endif %}\n{%- for")
TEMPLATES = {"chatml": templates.CHATML, "llama3": templates.LLAMA3, "qwen": templates.QWEN,
             "qwen3": QWEN3, "thinking": templates.THINKING, "tiny": CHAT_TEMPLATE, "gemma": GEMMA}


def rendered(tokenizer, messages):
    bos = tokenizer.decode([tokenizer.bos]) if tokenizer.add_bos else ""
    return str(tokenizer.render(messages, add_generation_prompt=True)).removeprefix(bos)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_template_in_gos_words_writes_the_same(tokenizer, template):
    tokenizer.chat_template = template
    frame = frame_of(tokenizer)
    assert frame is not None
    for chat in CHATS:
        messages = [{"role": role, "content": content} for role, content in chat]
        assert execute(frame.go(), messages) == frame.fill(messages) == rendered(tokenizer, messages)


@pytest.mark.parametrize("template", [
    "{{ messages | length }}", "{{ raise_exception('no') }}",
    "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
    "{% for m in messages %}{{ loop.index }}{{ m.content }};{% endfor %}",
    "{% for m in messages %}{{ '{{' + m.content }}{% endfor %}"])
def test_what_go_cannot_say_is_left_to_ollama(tokenizer, template):
    tokenizer.chat_template = template
    assert frame_of(tokenizer) is None


def test_the_folder(model, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    pairs = random_pairs(model, dict.fromkeys(SEVEN, 2), 0)
    write_adapter(adapter / "adapter.gguf", pairs, 4.0)
    record = {"options": {"system": "Be a lamp."}, "origin": {"data": "/secret"}, "base": {"path": str(model)}}
    (adapter / "run.json").write_text(json.dumps(record))
    assert "ollama create out" in run("adapters", "export", adapter, "--to", "ollama", "-o", tmp_path / "out")
    text = (tmp_path / "out/Modelfile").read_text()
    assert text.startswith(f"FROM {model}\nADAPTER ./adapter.gguf\nTEMPLATE \"\"\"{{{{ if .System")
    assert not re.search("^(RENDERER|PARSER)", text, re.MULTILINE)
    assert 'SYSTEM """Be a lamp."""\nPARAMETER temperature 0\nPARAMETER repeat_penalty 1\n' in text
    assert 'PARAMETER stop "<|im_end|>"\n' in text
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"Modelfile", "adapter.gguf", "README.md", "run.json"}
    assert "secret" not in (tmp_path / "out/run.json").read_text()
    base = open_gguf(model)
    export_ollama(adapter, base, tmp_path / "named", model="smollm2:135m", system="")
    text = (tmp_path / "named/Modelfile").read_text()
    assert text.startswith("FROM smollm2:135m\n")
    assert "SYSTEM \"" not in text
    with pytest.raises(UsageError, match="ends a text in a Modelfile"):
        export_ollama(adapter, base, tmp_path / "no", system='a """ b')
    assert "has no place" in run("adapters", "export", adapter, "--system", "x", code=2)


@pytest.mark.parametrize(("template", "is_written"), [(templates.QWEN, True), ("{{ messages | length }}", False)])
def test_a_template_that_is_left_out_is_said(tmp_path, template, is_written):
    model = write_tiny(tmp_path / "tiny.gguf", metadata={"tokenizer.chat_template": template})
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    write_adapter(adapter / "adapter.gguf", random_pairs(model, dict.fromkeys(SEVEN, 2), 0), 4.0)
    (adapter / "run.json").write_text(json.dumps({"base": {"path": str(model)}}))
    said = run("adapters", "export", adapter, "--to", "ollama", "-o", tmp_path / "out").replace("\n", " ")
    assert ("the Modelfile has no TEMPLATE" in said) != is_written
    told = json.loads(run("adapters", "export", adapter, "--to", "ollama", "-o", tmp_path / "again", "--json"))
    assert told["template"] == is_written
    assert ("TEMPLATE" in (tmp_path / "out/Modelfile").read_text()) == is_written


def test_a_frame_fills_as_its_program_does():
    frame = Frame("<s>", "</s>", "-", "<u>", "</u><a>", "</a>")
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "r"}]
    assert frame.fill(chat) == "-<u>q</u><a>a</a><u>r</u><a>" == execute(frame.go(), chat)
