"""Ollama's Modelfile: its template makes of a conversation what the model's own template makes of it."""

import json
import re

import jinja2
import pytest
import templates
from commands import run
from random_adapters import SEVEN, random_pairs, write_adapter
from tiny import CHAT_TEMPLATE

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


def as_ollama(go, messages):
    """Go's template in jinja2's words, filled as Ollama fills it."""
    words = {"if .System": "{% if System %}", ".System": "{{ System }}", "else": "{% else %}",
             "range .Messages": "{% for m in Messages %}", 'if eq .Role "user"': "{% if m.role == 'user' %}",
             'else if eq .Role "assistant"': "{% elif m.role == 'assistant' %}", ".Content": "{{ m.content }}"}
    ends = iter(["{% endif %}", "{% endif %}", "{% endfor %}"])
    program = re.sub(r"\{\{ (.*?) \}\}", lambda found: words[found[1]] if found[1] != "end" else next(ends), go)
    system = next((message["content"] for message in messages if message["role"] == "system"), "")
    return jinja2.Environment(keep_trailing_newline=True).from_string(program).render(System=system, Messages=messages)


@pytest.mark.parametrize("template", [templates.CHATML, templates.LLAMA3, templates.QWEN, CHAT_TEMPLATE, GEMMA],
                         ids=["chatml", "llama3", "qwen", "tiny", "gemma"])
def test_a_template_in_gos_words_writes_the_same(tokenizer, template):
    tokenizer.chat_template = template
    frame = frame_of(tokenizer)
    assert frame is not None
    for chat in CHATS:
        messages = [{"role": role, "content": content} for role, content in chat]
        wanted = str(tokenizer.render(messages, add_generation_prompt=True))
        bos = tokenizer.decode([tokenizer.bos]) if tokenizer.add_bos else ""
        assert as_ollama(frame.go(), messages) == wanted.removeprefix(bos)


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
    assert "ollama create out" in run("export", adapter, "--to", "ollama", "-o", tmp_path / "out")
    text = (tmp_path / "out/Modelfile").read_text()
    assert text.startswith(f"FROM {model}\nADAPTER ./adapter.gguf\nTEMPLATE \"\"\"{{{{ if .System }}}}<|im_start|>")
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
    assert "has no place" in run("export", adapter, "--system", "x", code=2)


def test_a_frame_fills_as_its_program_does():
    frame = Frame("<s>", "</s>", "-", "<u>", "</u><a>", "</a>")
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "r"}]
    assert frame.fill(chat) == "-<u>q</u><a>a</a><u>r</u><a>" == as_ollama(frame.go(), chat)
