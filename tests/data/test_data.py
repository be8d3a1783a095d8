"""Rows to tokens and masks, batches and packs; everything that a data file can get wrong."""

import json
from itertools import chain
from typing import Any

import numpy as np
import pytest
import templates
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from tiny import write_tiny
from vocabularies import TOOLS, write_sentencepiece

from edgetune.data.dataset import load, load_rows
from edgetune.data.rows import prompt_of
from edgetune.errors import DataError, UsageError
from edgetune.llamacpp.tokenizer import Tokenizer

CALL = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Ōsaka"}'}}
WRITTEN_CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ōsaka"}}\n</tool_call>'
TOOL_TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather in Ōsaka and\nagain?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
    {"role": "tool", "name": "weather", "content": "3 °C"}, {"role": "tool", "name": "weather", "content": "4 °C"},
    {"role": "assistant", "content": "\n\n It is 3 °C.  \n"}, {"role": "user", "content": "Thanks 🙂"},
    {"role": "assistant", "content": "<b>any time</b>"}, {"role": "user", "content": "unanswered"}]
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."}, {"role": "user", "content": "one"},
    {"role": "assistant", "content": "1"}, {"role": "user", "content": "two"}, {"role": "assistant", "content": "2"}]


@pytest.fixture
def bare(tmp_path):
    """A SentencePiece tokenizer that wants BOS, of a model without chat template."""
    tokenizer = Tokenizer(write_sentencepiece(tmp_path / "bare.gguf"))
    yield tokenizer
    tokenizer.close()


def spans(tokenizer, example):
    """The texts of the runs of supervised tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], example.weights > 0, [0]]).astype(int)))
    return [tokenizer.decode(example.tokens[a:b].tolist()) for a, b in edges.reshape(-1, 2)]


def fed(tokenizer, messages, tools=None):
    """The tokens that serving feeds for the next answer."""
    return tokenizer.encode(tokenizer.render(messages, tools, add_generation_prompt=True), bos=True)


def only(dataset):
    assert len(dataset.examples) == 1
    return dataset.examples[0]


# ---- the mask --------------------------------------------------------------------------------------------------------


def test_mask_of_a_tool_calling_talk(tokenizer):
    tokenizer.chat_template = templates.QWEN
    row = {"messages": TOOL_TALK, "tools": TOOLS}
    dataset = load_rows([row], tokenizer, max_length=10_000)
    example = only(dataset)
    assert spans(tokenizer, example) == [
        f"{WRITTEN_CALL}\n{WRITTEN_CALL}<|im_end|>",
        "\n\n It is 3 °C.  \n<|im_end|>",
        "<b>any time</b><|im_end|>",
    ]
    written = tokenizer.render(TOOL_TALK[:7], TOOLS)
    assert tokenizer.decode(example.tokens.tolist()) + "\n" == written
    assert "# Tools" in written
    assert set(example.weights.tolist()) == {0.0, 1.0}
    assert dataset.supervised == int(example.weights.sum())
    assert (dataset.kind, dataset.rows, dataset.truncated, dataset.skipped) == ("messages", [row], 0, 0)


def test_prompts_are_what_serving_feeds(tokenizer):
    tokenizer.chat_template = templates.QWEN
    example = only(load_rows([{"messages": TOOL_TALK, "tools": TOOLS}], tokenizer, max_length=10_000))
    starts = np.flatnonzero(np.diff(example.weights) > 0) + 1
    for turn, start in zip((1, 4, 6), starts, strict=True):
        assert example.tokens[:start].tolist() == fed(tokenizer, TOOL_TALK[:turn], TOOLS)


def test_smollm2_mask_is_the_answers_and_their_ends(smol):
    example = only(load_rows([{"messages": TALK}], smol, max_length=512))
    assert spans(smol, example) == ["1<|im_end|>", "2<|im_end|>"]
    assert example.tokens.tolist() == smol.encode(smol.render(TALK).removesuffix("\n"))
    default = only(load_rows([{"prompt": "one", "completion": "1"}], smol, max_length=512))
    assert "named SmolLM" in smol.decode(default.tokens.tolist())


@pytest.mark.parametrize(("template", "expected"), [
    ("THINKING", [["<think>\n\n</think>\n\n1<|im_end|>"], ["<think>\n\n</think>\n\n2<|im_end|>"]]),
    ("REASONING", [["1<|im_end|>"], ["2<|im_end|>"]]),
    ("MOVING", [[" 1<|im_end|>"], [" 2<|im_end|>"]]),
    ("CLOSING", [["1<|im_end|>", "2<|im_end|>"]]),
    ("CHATML", [["1<|im_end|>", "2<|im_end|>"]]),
])
def test_answers_are_learnt_from_the_prompts_of_serving(tokenizer, template, expected):
    """Templates that rewrite history give an example for each turn, others one for all."""
    tokenizer.chat_template = getattr(templates, template)
    dataset = load_rows([{"messages": TALK}], tokenizer, max_length=512)
    assert [spans(tokenizer, example) for example in dataset.examples] == expected
    assert dataset.rows == [{"messages": TALK}]
    prompts = [example.tokens[: int(np.flatnonzero(example.weights)[0])].tolist() for example in dataset.examples]
    assert prompts == [fed(tokenizer, TALK[:turn]) for turn in ((2, 4) if len(expected) == 2 else (2,))]


def test_reasoning_is_learnt_in_its_turn(tokenizer):
    tokenizer.chat_template = templates.THINKING
    talk = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\n1"}]
    example = only(load_rows([{"messages": talk}], tokenizer, max_length=512))
    assert spans(tokenizer, example) == ["<think>\nhm\n</think>\n\n1<|im_end|>"]


def test_weight_0_leaves_an_answer_out(tokenizer):
    first = [*TALK[:2], {**TALK[2], "weight": 0}, *TALK[3:]]
    last = [*TALK[:4], {**TALK[4], "weight": 0}]
    both = [*first[:4], last[4]]
    assert spans(tokenizer, only(load_rows([{"messages": first}], tokenizer, max_length=512))) == ["2<|im_end|>"]
    example = only(load_rows([{"messages": last}], tokenizer, max_length=512))
    assert spans(tokenizer, example) == ["1<|im_end|>"]
    assert tokenizer.decode(example.tokens[-1:].tolist()) == "<|im_end|>"
    dataset = load_rows([{"messages": both}, {"messages": last}], tokenizer, max_length=512)
    assert (len(dataset.examples), dataset.skipped, len(dataset.rows)) == (1, 1, 1)


def test_an_answer_ends_where_generation_would(tokenizer):
    row = {"prompt": "a <|im_end|> b", "completion": "c <|im_end|> d"}
    tokenizer.markup = "parse"
    example = only(load_rows([row], tokenizer, max_length=512))
    assert spans(tokenizer, example) == ["c <|im_end|>"]
    user = [{"role": "user", "content": row["prompt"]}]
    assert example.tokens.tolist()[: -len(tokenizer.encode("c <|im_end|>"))] == fed(tokenizer, user)


def test_bos_comes_once_with_and_without_the_template(tmp_path):
    tokenizer = Tokenizer(write_tiny(tmp_path / "bos.gguf", add_bos=True))
    for template in (templates.CHATML, "{{ bos_token }}" + templates.CHATML):
        tokenizer.chat_template = template
        tokens = only(load_rows([{"prompt": "a", "completion": "b"}], tokenizer, max_length=512)).tokens.tolist()
        assert tokens[0] == tokenizer.bos
        assert tokens.count(tokenizer.bos) == 1


def test_sentencepiece_answers_keep_their_text(bare):
    bare.chat_template = (
        "{% for m in messages %}{{ '<' + m.role + '>\\n' + m.content + eos_token + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant>\\n' }}{% endif %}"
    )
    talk = [message | {"content": "hi ho"} for message in TALK]
    example = only(load_rows([{"messages": talk}], bare, max_length=512))
    assert spans(bare, example) == ["hi ho</s>", "hi ho</s>"]
    starts = np.flatnonzero(np.diff(example.weights) > 0) + 1
    for turn, start in zip((2, 4), starts, strict=True):
        assert example.tokens[:start].tolist() == fed(bare, talk[:turn])


# ---- prompt, text, plain text ----------------------------------------------------------------------------------------


def test_prompt_rows_are_a_question_and_an_answer(tokenizer):
    row = {"prompt": "one", "completion": "1", "id": 7}
    talk = {"messages": TALK[:3]}
    given_system = load_rows([row], tokenizer, max_length=512, system="Be brief.")
    assert only(given_system).tokens.tolist() == only(load_rows([talk], tokenizer, max_length=512)).tokens.tolist()
    assert given_system.kind == "prompt"
    own_system = load_rows([talk], tokenizer, max_length=512, system="Another.")
    assert only(own_system).tokens.tolist() == only(given_system).tokens.tolist()


def test_prompt_rows_without_a_template(bare):
    row = {"prompt": "hi", "completion": " ho"}
    example = only(load_rows([row], bare, max_length=512))
    # a space is put before each
    hi = bare.encode("hi")
    ho = bare.encode("ho")
    assert example.tokens.tolist() == [bare.bos, *hi, *ho, bare.eos]
    assert example.weights.tolist() == [0.0] * (1 + len(hi)) + [1.0] * (len(ho) + 1)
    longer = only(load_rows([row], bare, max_length=512, system="hi"))
    assert bare.decode(longer.tokens.tolist()) == "<s> hi\n\nhi ho</s>"
    assert prompt_of(row, bare, "hi") == ("hi\n\nhi", "ho")


def test_text_rows_end_with_eos(tokenizer, bare):
    for one, start in ((tokenizer, []), (bare, [bare.bos])):
        end = one.decode([one.eos])
        plain, ended = load_rows([{"text": "hi ho"}, {"text": "hi ho" + end}], one, max_length=512).examples
        assert plain.tokens.tolist() == ended.tokens.tolist() == [*start, *one.encode("hi ho"), one.eos]
        assert plain.weights.tolist() == [0.0] + [1.0] * (plain.tokens.size - 1)


@pytest.mark.parametrize("wants_bos", [False, True])
def test_plain_text_is_cut_into_documents(tmp_path, wants_bos):
    tokenizer = Tokenizer(write_tiny(tmp_path / "model.gguf", add_bos=wants_bos))
    text = "turn the light on\r\n\n" * 30 + "é"
    path = tmp_path / "prose.TXT"
    path.write_bytes(text.encode())
    dataset = load(path, tokenizer, max_length=16)
    pieces = [example.tokens.tolist() for example in dataset.examples]
    assert {len(piece) for piece in pieces[:-1]} == {16}
    if wants_bos:
        assert {piece.pop(0) for piece in pieces} == {tokenizer.bos}
    assert list(chain(*pieces)) == tokenizer.encode(text)
    assert all(example.weights.tolist() == [0.0] + [1.0] * (len(example.tokens) - 1) for example in dataset.examples)
    assert (dataset.kind, dataset.rows, dataset.truncated) == ("text", [text], 0)
    assert dataset.tokens == sum(example.tokens.size for example in dataset.examples)
    assert [e.tokens.tolist() for e in load_rows([text], tokenizer, max_length=16).examples] == [
        e.tokens.tolist() for e in dataset.examples
    ]


# ---- files -----------------------------------------------------------------------------------------------------------


def test_file_and_rows_are_the_same(tokenizer, tmp_path):
    rows = [{"prompt": "a\u2028b", "completion": "1"}, {"prompt": "c", "completion": "2", "note": None}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n\n".join(lines).encode() + b"\n\n")
    dataset = load(path, tokenizer, max_length=512)
    twin = load_rows(rows, tokenizer, max_length=512)
    assert dataset.rows == twin.rows == rows
    assert [e.tokens.tolist() for e in dataset.examples] == [e.tokens.tolist() for e in twin.examples]
    assert dataset.digest == load(path, tokenizer, max_length=64).digest
    assert dataset.digest.startswith("sha256:")
    assert twin.digest == load_rows([dict(reversed(row.items())) for row in rows], tokenizer, max_length=512).digest
    assert twin.digest != load_rows(rows[:1], tokenizer, max_length=512).digest


def test_long_rows_are_truncated_or_skipped(tokenizer):
    short = {"prompt": "a", "completion": "b"}
    long = {"prompt": "a", "completion": "turn the light on " * 9}
    endless = {"prompt": "turn the light on " * 9, "completion": "b"}
    n = only(load_rows([short], tokenizer, max_length=512)).tokens.size
    rows = [short, long, endless]
    cut = load_rows(rows, tokenizer, max_length=n + 4)
    assert (len(cut.examples), cut.truncated, cut.skipped, cut.rows) == (2, 1, 1, [short, long])
    assert cut.examples[1].tokens.size == n + 4
    whole = load_rows([long], tokenizer, max_length=512).examples[0]
    assert cut.examples[1].tokens.tolist() == whole.tokens.tolist()[: n + 4]
    skipped = load_rows(rows, tokenizer, max_length=n, overflow="skip")
    assert (len(skipped.examples), skipped.truncated, skipped.skipped, skipped.rows) == (1, 0, 2, [short])
    with pytest.raises(DataError, match="no row has a supervised token within 4 tokens; raise max-length"):
        load_rows(rows, tokenizer, max_length=4)


@pytest.mark.parametrize(("lines", "sentence"), [
    ([b"{'prompt': 1}"], r"line 2 of rows\.jsonl is not JSON \(\"\{'prompt': 1\}\"\); write one JSON object"),
    ([b"[" * 100_000], "line 2 .* is not JSON"),
    ([b"[1]"], "line 2 .* is a JSON list, not an object"),
    ([b'"hello"'], "line 2 .* is a JSON string, not an object"),
    ([b'{"ask": "a", "answer": "b"}'], r"unknown shape \(its keys: ask, answer\); expected is messages"),
    ([b"{}"], r"line 2 .*unknown shape \(its keys: none\)"),
    ([b'{"text": "a", "messages": []}'], "line 2 .*fits several shapes"),
    ([b'{"text": "a"}', b'{"messages": []}'],
     r"line 3 .*: a row of messages among rows of prompt \(line 1 of rows\.jsonl\)"),
    ([b'{"prompt": "a", "completion": {"x": 1}}'], "line 2 .*completion is a JSON object; write text"),
    ([b'{"prompt": null, "completion": "a"}'], "line 2 .*prompt is a JSON null"),
    ([b'{"prompt": "\xe9", "completion": "a"}'], r"line 2 of rows\.jsonl is not UTF-8; save the file as UTF-8"),
    ([b'{"prompt": "\\ud800", "completion": "a"}'], "line 2 .*half a surrogate pair"),
])
def test_bad_lines(tokenizer, tmp_path, lines, sentence):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([b'{"prompt": "a", "completion": "b"}', *lines]))
    with pytest.raises(DataError, match=sentence):
        load(path, tokenizer, max_length=512)


@pytest.mark.parametrize(("messages", "sentence"), [
    ("hello", "messages is a JSON string; write a list"),
    ([], "messages is empty"),
    (["hello"], r"messages\[0\] is a JSON string"),
    ([{"role": "bot", "content": "a"}], r"the role 'bot'; use one of system, user, assistant, tool"),
    ([{"content": "a"}], r"messages\[0\] has the role None"),
    ([{"role": ["user"], "content": "a"}], r"messages\[0\] has the role \['user'\]"),
    ([{"role": "user", "content": 5}], r"messages\[0\] has content of JSON type number"),
    ([{"role": "user"}], r"messages\[0\] has content of JSON type null"),
    ([{"role": "user", "content": [{"type": "image_url"}]}, TALK[2]], "part of type 'image_url'"),
    ([TALK[1]], "no message is the assistant's; add the answer to learn"),
    ([TALK[2]], "begins with an assistant message; put a user message before it"),
    ([TALK[1], {**TALK[2], "weight": 0.5}], r"messages\[1\] has the weight 0\.5; use 0 or 1"),
    ([TALK[1], {**TALK[2], "tool_calls": ["f()"]}], "a tool call has no function with a name"),
])
def test_bad_messages(tokenizer, messages, sentence):
    rows = [{"messages": TALK}, {"messages": messages}]
    with pytest.raises(DataError, match=f"^row 2: .*{sentence}"):
        load_rows(rows, tokenizer, max_length=512)


def test_bad_tools_and_templates(tokenizer, bare):
    with pytest.raises(DataError, match="row 1: tools is a JSON string; write a list of objects"):
        load_rows([{"messages": TALK, "tools": "f"}], tokenizer, max_length=512)
    with pytest.raises(DataError, match=r"row 1: the model has no chat template.*; use rows of prompt and completion"):
        load_rows([{"messages": TALK}], bare, max_length=512)
    tokenizer.chat_template = "{{ raise_exception('only poems') }}"
    with pytest.raises(DataError, match=r"row 1: the model's chat template refuses the conversation \(only poems\)"):
        load_rows([{"messages": TALK}], tokenizer, max_length=512)
    tokenizer.chat_template = "{{ messages | length }} messages"
    with pytest.raises(DataError, match=r"row 1: .* rewrites the conversation so that the answer cannot be found"):
        load_rows([{"messages": TALK}], tokenizer, max_length=512)


def test_bad_files_and_options(tokenizer, tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*none\.jsonl"):
        load(tmp_path / "none.jsonl", tokenizer, max_length=512)
    with pytest.raises(DataError, match="has no files of rows"):
        load(tmp_path, tokenizer, max_length=512)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n \n")
    with pytest.raises(DataError, match=r"empty\.jsonl holds no rows; expected are rows of messages, prompt with"):
        load(empty, tokenizer, max_length=512)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(DataError, match=r"a\.txt: the text has 1 tokens, training needs 2 or more"):
        load(tmp_path / "a.txt", tokenizer, max_length=512)
    with pytest.raises(DataError, match="the data holds no rows"):
        load_rows([], tokenizer, max_length=512)
    with pytest.raises(DataError, match="row 1: the text '' has fewer than 2 tokens"):
        load_rows([{"text": ""}], tokenizer, max_length=512)
    with pytest.raises(DataError, match="not what JSON can hold"):
        load_rows([{"text": {1, 2}}], tokenizer, max_length=512)
    with pytest.raises(UsageError, match="max-length is 1; choose 2 tokens or more"):
        load_rows([{"text": "a"}], tokenizer, max_length=1)
    with pytest.raises(UsageError, match="overflow is 'wrap'; choose truncate or skip"):
        load_rows([{"text": "a"}], tokenizer, max_length=8, overflow="wrap")


KEYS = st.sampled_from(
    ["messages", "prompt", "completion", "text", "tools", "role", "content", "tool_calls", "function", "name", "weight"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
ROLES = st.sampled_from(["system", "user", "assistant", "tool"])
MESSAGE = st.fixed_dictionaries(
    {"role": ROLES | JSON, "content": st.text(max_size=8) | JSON}, optional={"tool_calls": JSON, "weight": JSON}
)
ROW = JSON | st.fixed_dictionaries({"messages": st.lists(MESSAGE, max_size=4)}, optional={"tools": JSON})


@examples(60)
@given(rows=st.lists(ROW, max_size=2), name=st.sampled_from(["QWEN", "THINKING", "MOVING"]))
def test_any_json_gives_data_or_one_sentence(tokenizer, rows, name):
    tokenizer.chat_template = getattr(templates, name)
    try:
        dataset = load_rows(rows, tokenizer, max_length=64)
    except DataError:
        return
    for example in dataset.examples:
        assert example.tokens.shape == example.weights.shape
        assert 2 <= example.tokens.size <= 64
        assert example.weights[0] == 0
        assert example.weights[-1] == 1


# ---- evaluation by generation ----------------------------------------------------------------------------------------


def test_prompt_of_is_the_question_and_the_answer(tokenizer):
    prompt, answer = prompt_of({"messages": TALK}, tokenizer)
    assert prompt == tokenizer.render(TALK[:4], add_generation_prompt=True)
    assert answer == "2"
    assert prompt_of({"prompt": "one", "completion": " {} "}, tokenizer, "Be brief.") == (
        tokenizer.render(TALK[:2], add_generation_prompt=True),
        "{}",
    )
    tokenizer.chat_template = templates.QWEN
    assert prompt_of({"messages": TOOL_TALK[:2], "tools": TOOLS}, tokenizer)[1] == f"{WRITTEN_CALL}\n{WRITTEN_CALL}"
    with pytest.raises(DataError, match="a row of text has no question and answer"):
        prompt_of({"text": "a"}, tokenizer)


def test_snips_answers_are_what_is_learnt(smol, shared_data):
    lines = (shared_data / "snips_train.jsonl").read_text().splitlines()[:100]
    rows = [json.loads(line) for line in lines]
    for row, example in zip(rows, load_rows(rows, smol, max_length=512).examples, strict=True):
        assert spans(smol, example) == [row["completion"] + "<|im_end|>"]


def test_text_among_other_rows(tokenizer):
    row = {"prompt": "lamp", "completion": "on"}
    for rows in ([{"text": "the light"}, row, "on the"], [row, "on the", {"text": "the light"}]):
        found = load_rows(rows, tokenizer, max_length=100)
        assert found.kind == "prompt"
        assert found.rows == rows
        assert found.asking == [row]
    assert load_rows(["on the", {"text": "the light"}], tokenizer, max_length=100).kind == "text"


def test_an_open_text_does_not_end(tokenizer):
    ended, is_open = (load_rows([{"text": "the light", "open": how}], tokenizer, max_length=100).examples[0]
                      for how in (False, True))
    assert tokenizer.is_end(ended.tokens[-1])
    assert ended.tokens[:-1].tolist() == is_open.tokens.tolist()
    assert np.array_equal(ended.weights[:-1], is_open.weights)
