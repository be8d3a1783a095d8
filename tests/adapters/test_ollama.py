"""Ollama's Modelfile: its template makes of a conversation what the model's own template makes of it."""

import json
import re

import pytest
import templates
from commands import run
from go_template import execute, ollama_values
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


# As Llama 3.2: a line more where there are tools.
LLAMA32 = templates.LLAMA3.replace("{{- bos_token }}", "{{- bos_token }}{% if tools %}{{ 'Environment: ipython\\n' }}"
                                                       "{% endif %}")
# As Qwen 3: no system message of its own.
QWEN3 = templates.QWEN.replace("'Be brief.'", "''").replace(
    "{{- '<|im_start|>system", "{%- if system or tools %}{{- '<|im_start|>system").replace(
    "{{- '<|im_end|>\\n' }}\n{%- for", "{{- '<|im_end|>\\n' }}{%- endif %}\n{%- for")
TEMPLATES = {"chatml": templates.CHATML, "llama3": templates.LLAMA3, "llama32": LLAMA32, "qwen": templates.QWEN,
             "qwen3": QWEN3, "thinking": templates.THINKING, "tiny": CHAT_TEMPLATE, "gemma": GEMMA}
HOUSE = [
    {"type": "function", "function": {"name": "HassTurnOn", "description": "Turns on <x> & \"y\"", "parameters": {
        "type": "object", "required": ["name"], "properties": {
            "name": {"type": "string"}, "area": {"type": "string"},
            "domain": {"type": "array", "items": {"type": "string", "enum": ["light", "fan"]}},
            "level": {"description": "0 to 9", "anyOf": [{"type": "integer"}, {"type": "null"}]},
            "color": {"type": ["string", "null"]}}}}},
    {"type": "function", "function": {"name": "GetDateTime", "description": "Tells the time", "parameters": {
        "type": "object", "required": [], "properties": {}}}},
    {"type": "function", "function": {"name": "HassNevermind", "description": "Nothing"}}]
LOST = {"type": "function", "function": {"name": "Set", "description": "Sets", "parameters": {
    "type": "object", "properties": {"level": {"type": "integer", "minimum": 0}}}}}
DATA = {"name": 'x {{ y "z"', "area": "Küche & <Bad>\n", "domain": ["light"], "level": 0, "color": None,
        "beta": {"b": 0.5, "c": [], "d": {}}, "zeta": 1000000}
CALLED = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "HassTurnOn", "arguments": DATA}}]}
TIMED = {"function": {"name": "GetDateTime", "arguments": {}}}
RESULT = {"role": "tool", "name": "HassTurnOn", "content": '{"ok": "<b>"}\nyes'}
ASKED = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "one"}]
TOOL_CHATS = [
    ASKED, ASKED[1:], [*ASKED, CALLED, RESULT], [*ASKED[1:], CALLED, RESULT],
    [*ASKED, CALLED, RESULT, {"role": "assistant", "content": "done"}, ASKED[1], CALLED, RESULT]]
SEVERAL = [
    [*ASKED, {**CALLED, "tool_calls": [*CALLED["tool_calls"], TIMED, TIMED]}, RESULT, RESULT, RESULT],
    [*ASKED, {**CALLED, "content": "So:"}, RESULT, {"role": "assistant", "content": "done"}, ASKED[1]]]


def as_ollama(go, messages, tools=()):
    return execute(go, ollama_values(messages, tools))


def rendered(tokenizer, messages, tools=None):
    bos = tokenizer.decode([tokenizer.bos]) if tokenizer.add_bos else ""
    return str(tokenizer.render(messages, tools, add_generation_prompt=True)).removeprefix(bos)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_template_in_gos_words_writes_the_same(tokenizer, template):
    tokenizer.chat_template = template
    frame = frame_of(tokenizer)
    assert frame is not None
    for chat in CHATS:
        messages = [{"role": role, "content": content} for role, content in chat]
        assert as_ollama(frame.go(), messages) == frame.fill(messages) == rendered(tokenizer, messages)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_tools_calls_and_results_are_written_the_same(tokenizer, template):
    """In the order of the rows' keys, which Ollama's maps do not have; llama3 refuses several calls in an answer."""
    tokenizer.chat_template = template
    frame = frame_of(tokenizer, HOUSE)
    assert frame is not None
    assert all(frame.tools.keeps(tool) for tool in HOUSE)
    go = frame.go()
    for chat in [*TOOL_CHATS, *([] if "one tool call at a time" in template else SEVERAL)]:
        for tools in (HOUSE, HOUSE[:1], []):
            assert as_ollama(go, chat, tools) == rendered(tokenizer, chat, tools)


def test_packaged_models_have_their_tools(smol):
    go = frame_of(smol, HOUSE).go()
    for chat in [*TOOL_CHATS, *SEVERAL]:
        assert as_ollama(go, chat, HOUSE) == rendered(smol, chat, HOUSE)


@pytest.mark.parametrize(("tag", "template"), [("<tool_call>", templates.QWEN), ("<tool_call>", templates.CHATML),
                                               ("{", templates.LLAMA3)], ids=["qwen", "chatml", "llama3"])
def test_ollama_finds_the_tag_of_calls(tokenizer, tag, template):
    """It is the first text that stands after `if .ToolCalls`, up to a brace."""
    tokenizer.chat_template = template
    _, begins, text = frame_of(tokenizer).go().partition("{{ if .ToolCalls }}{{ with index .ToolCalls 0 }}")
    assert begins
    assert (text.split("{")[0].strip() or "{") == tag


def test_a_base_that_writes_tools_itself_is_left_to_a_newer_ollama(tokenizer):
    """Which fills the base's own template if that has all of this and the Modelfile's has not."""
    tokenizer.chat_template = templates.QWEN
    go = frame_of(tokenizer, HOUSE).go()
    assert ".Tools" in go
    assert "tool_response" not in go
    assert 'eq .Role "tool"' not in go


def test_unknown_orders_are_the_alphabets(tokenizer):
    tokenizer.chat_template = templates.QWEN
    frame = frame_of(tokenizer)
    assert [frame.tools.keeps(tool) for tool in [*HOUSE, LOST]] == [False, False, True, False]
    written = as_ollama(frame.go(), ASKED, HOUSE)
    assert written.index('"area"') < written.index('"domain"') < written.index('"name": {')
    parameters = HOUSE[0]["function"]["parameters"]
    sorted_tool = {"type": "function", "function": {**HOUSE[0]["function"], "parameters": {
        "type": "object", "properties": dict(sorted(parameters["properties"].items())), "required": ["name"]}}}
    assert frame.tools.keeps(sorted_tool)


@pytest.mark.parametrize("template", [
    templates.QWEN.replace("tool | tojson", "tool.function.name"),
    templates.QWEN.replace("call.function.arguments | tojson", "call.function.arguments | length | string"),
    templates.QWEN.replace("<tool_response>\\n' + message.content", "<tool_response>\\n' + loop.index | string"),
    templates.QWEN.replace("tool | tojson", "tool | tojson + loop.index | string"),
    templates.QWEN.replace("for tool in tools", "for tool in tools | reverse")])
def test_tools_that_go_cannot_write_are_left_out(tokenizer, template):
    tokenizer.chat_template = template
    frame = frame_of(tokenizer, HOUSE)
    assert frame is not None
    assert frame.tools is None
    assert ".Tools" not in frame.go()


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
    assert text.startswith(f"FROM {model}\nADAPTER ./adapter.gguf\nTEMPLATE \"\"\"{{{{ if .Tools }}}}{{{{ if .System")
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
    assert "has no place" in run("export", adapter, "--system", "x", code=2)


@pytest.mark.parametrize(("template", "tools", "says", "facts"), [
    (templates.QWEN, HOUSE, None, (True, True, [])), (templates.QWEN, [], None, (True, True, [])),
    (templates.QWEN, [*HOUSE, LOST], "Ollama writes some tools otherwise than training did (Set): of a parameter it "
                                     "keeps type", (True, True, ["Set"])),
    (templates.QWEN, None, "does not say which tools its rows had: the TEMPLATE writes parameters by the alphabet",
     (True, True, None)),
    (templates.QWEN.replace("tool | tojson", "tool.function.name"), HOUSE[1:2],
     "the rows held tools, and Ollama's templates cannot write them as the base's does, so the TEMPLATE has none",
     (True, False, ["GetDateTime"])),
    ("{{ messages | length }}", HOUSE[1:2], "the Modelfile has no TEMPLATE", (False, False, ["GetDateTime"])),
])
def test_what_is_lost_is_said(tmp_path, template, tools, says, facts):
    model = write_tiny(tmp_path / "tiny.gguf", metadata={"tokenizer.chat_template": template})
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    write_adapter(adapter / "adapter.gguf", random_pairs(model, dict.fromkeys(SEVEN, 2), 0), 4.0)
    record = {"base": {"path": str(model)}} | ({} if tools is None else {"tools": tools})
    (adapter / "run.json").write_text(json.dumps(record))
    said = run("export", adapter, "--to", "ollama", "-o", tmp_path / "out").replace("\n", " ")
    assert says in said if says else "tools" not in said
    told = json.loads(run("export", adapter, "--to", "ollama", "-o", tmp_path / "again", "--json"))
    assert (told["template"], told["tools"], told["changed_tools"]) == facts
    assert json.loads((tmp_path / "out/run.json").read_text()).get("tools") == tools


def test_a_training_records_the_tools_of_its_rows(tmp_path):
    model = write_tiny(tmp_path / "tiny.gguf", n_context=4096)
    row = {"messages": [*ASKED, {"role": "assistant", "content": "ok"}]}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in [row, row | {"tools": HOUSE}] * 4))
    run("train", model, tmp_path / "rows.jsonl", "-o", tmp_path / "out", "--eval", "none", "--epochs", 1, code=0)
    assert json.loads((tmp_path / "out/run.json").read_text())["tools"] == HOUSE


def test_a_frame_fills_as_its_program_does():
    frame = Frame("<s>", "</s>", "-", "<u>", "</u><a>", "</a>")
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "r"}]
    assert frame.fill(chat) == "-<u>q</u><a>a</a><u>r</u><a>" == as_ollama(frame.go(), chat)
