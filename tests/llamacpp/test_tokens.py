"""Tokens against HF tokenizers and llama-cpp-python, chat templates against transformers."""

from __future__ import annotations

import os
import subprocess
import sys

import gguf
import numpy as np
import pytest
import templates
from tiny import write_tiny
from vocabularies import TALK, TOOLS, write_sentencepiece

from edgetune.errors import DataError, UnsupportedError
from edgetune.formats.gguf import open_gguf
from edgetune.llamacpp.tokenizer import Tokenizer

STRANGE = [
    "naïve café 日本語 🙂👩‍👩‍👧 ½ ² it's 'LL", " lead  and trail \t\t ", "\r\n\n\n 1234567 \u00a0\u2028z", "\x02a\x00b",
    "<|im_start|>user\nHi<|im_end|>\n<|im_end|><|endoftext|> <|im_", ""]


@pytest.fixture(scope="module")
def fields(smollm2):
    """Of SmolLM2's GGUF, which formats/test_gguf.py compares with what the gguf package reads, in seconds."""
    return open_gguf(smollm2).metadata


@pytest.fixture(scope="module")
def hf(fields):
    """SmolLM2's tokenizer as HF tokenizers runs it, from the vocabulary and merges in the GGUF."""
    tokenizers = pytest.importorskip("tokenizers")
    tokens, types, merges = (fields[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type", "merges"))
    vocabulary = {token: i for i, token in enumerate(tokens)}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [tuple(merge.split(" ")) for merge in merges]))
    digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
    letters = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([digits, letters])
    specials = [token for token, kind in zip(tokens, types, strict=True) if kind == gguf.TokenType.CONTROL]
    made.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in specials])
    return made


# ---- tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", STRANGE)
def test_smollm2_encodes_as_hf_tokenizers(smol, hf, text):
    assert smol.encode(text) == hf.encode(text).ids
    assert smol.decode(smol.encode(text)) == text


def test_smollm2_encodes_prose_as_hf_tokenizers(smol, hf, shared_data):
    text = (shared_data / "wikitext2_valid.txt").read_text(encoding="utf-8")[:60_000]
    ids = smol.encode(text)
    assert ids == hf.encode(text).ids
    assert smol.decode(ids) == text


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_encodes_as_llama_cpp_python(tiny_models, family, special):
    llama_cpp = pytest.importorskip("llama_cpp")
    truth = llama_cpp.Llama(str(tiny_models[family]), vocab_only=True, verbose=False)
    tokenizer = Tokenizer(tiny_models[family])
    for text in STRANGE:
        ids = tokenizer.encode(text, special=special)
        assert ids == truth.tokenize(text.encode(), add_bos=False, special=special)
        assert tokenizer.decode(ids) == text
    truth.close()


def test_special_text_is_a_token_or_plain(tokenizer):
    assert tokenizer.encode("<|im_end|>") == [tokenizer.eos]
    assert len(tokenizer.encode("<|im_end|>", special=False)) > 1
    assert tokenizer.is_end(tokenizer.eos)
    assert tokenizer.is_control(tokenizer.eos)
    assert not tokenizer.is_end(tokenizer.encode("a")[0])
    assert not tokenizer.is_control(tokenizer.encode("a")[0])


def test_bos_comes_once(tmp_path):
    tokenizer = Tokenizer(write_tiny(tmp_path / "bos.gguf", add_bos=True))
    plain = tokenizer.encode("on")
    assert tokenizer.add_bos
    assert tokenizer.encode("on", bos=True) == [tokenizer.bos, *plain]
    assert tokenizer.encode("<|endoftext|>on", bos=True) == [tokenizer.bos, *plain]
    without = Tokenizer(write_tiny(tmp_path / "none.gguf"))
    assert not without.add_bos
    assert without.encode("on", bos=True) == plain


def test_sentencepiece_continues_without_a_space(tmp_path):
    tokenizer = Tokenizer(write_sentencepiece(tmp_path / "spm.gguf"))
    names = [tokenizer.piece(i).decode() for i in tokenizer.encode("hi")]
    assert names == [" hi"]
    for text in ("hi", " hi", "  ho", "\nho", "é", "", "hi</s>", "</s>\n"):
        assert tokenizer.decode(tokenizer.encode("ho", bos=True) + tokenizer.encode(text, continues=True)) == (
            "<s> ho" + text.replace("</s>\n", "</s> \n")  # after a mark llama.cpp puts its space again
        )
    assert len(tokenizer.encode(" hi", continues=True)) == 1
    assert tokenizer.chat_template is None


def test_byte_pieces_join_to_characters(tokenizer):
    ids = tokenizer.encode("🙂")
    assert len(ids) == 4
    assert b"".join(map(tokenizer.piece, ids)) == "🙂".encode()
    assert tokenizer.decode(ids[:2]) == "\ufffd"


def test_out_of_range_and_closed(tiny_llama):
    tokenizer = Tokenizer(tiny_llama)
    for token in (-1, tokenizer.n_vocab):
        with pytest.raises(ValueError, match=f"token {token} is outside the vocabulary of 416"):
            tokenizer.piece(token)
    with pytest.raises(DataError, match="character 2 of the text is half a surrogate pair"):
        tokenizer.encode("hi\ud83d")
    tokenizer.close()
    tokenizer.close()
    with pytest.raises(ValueError, match="closed"):
        tokenizer.encode("hi")


def test_unknown_tokenizer_is_refused_quietly(tmp_path, capfd):
    path = write_tiny(tmp_path / "odd.gguf", metadata={"tokenizer.ggml.model": "morse"})
    with pytest.raises(UnsupportedError, match=r"cannot read the tokenizer of odd\.gguf .*morse"):
        Tokenizer(path)
    bare = {"tokenizer.ggml.model": "no_vocab"}
    with pytest.raises(UnsupportedError, match=r"bare\.gguf is neither byte-level BPE nor SentencePiece"):
        Tokenizer(write_tiny(tmp_path / "bare.gguf", metadata=bare))
    few = {"tokens": ["<unk>", "<s>", "</s>", "▁", "<0x41>"], "scores": [0.0] * 5, "token_type": [2, 3, 3, 1, 6]}
    path = write_sentencepiece(tmp_path / "few.gguf", **{f"tokenizer.ggml.{key}": few[key] for key in few})
    with pytest.raises(UnsupportedError, match=r"few\.gguf lacks 255 of the 256 byte tokens"):
        Tokenizer(path)
    Tokenizer(write_tiny(tmp_path / "good.gguf")).close()
    assert capfd.readouterr() == ("", "")


# ---- templates -------------------------------------------------------------------------------------------------------


def transformers_render(template, messages, tools=None, add_generation_prompt=False, **names: str):
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    texts, _ = utils.render_jinja_template(
        [messages], tools=tools, chat_template=template, add_generation_prompt=add_generation_prompt, **names
    )
    return texts[0]


@pytest.mark.parametrize("generate", [True, False])
@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("name", ["LLAMA3", "QWEN"])
def test_renders_as_transformers(tokenizer, name, tools, generate):
    tokenizer.chat_template = template = getattr(templates, name)
    expected = transformers_render(template, TALK, tools, generate, bos_token="<|endoftext|>", eos_token="<|im_end|>")
    assert tokenizer.render(TALK, tools, add_generation_prompt=generate) == expected
    assert "Kraków" in expected


@pytest.mark.parametrize("name", ["CHATML", "THINKING", "REASONING", "MOVING", "CLOSING"])
def test_renders_plain_talk_as_transformers(tokenizer, name):
    tokenizer.chat_template = template = getattr(templates, name)
    talk = [message for message in TALK if message["role"] != "tool" and "tool_calls" not in message]
    for messages in (talk, talk[:-1]):
        expected = transformers_render(template, messages, bos_token="<|endoftext|>", eos_token="<|im_end|>")
        assert tokenizer.render(messages) == expected


def test_smollm2_template_as_transformers(smol, fields):
    assert smol.chat_template == fields["tokenizer.chat_template"]
    for messages in (TALK[:2], TALK[1:2], [*TALK[:2], TALK[4], TALK[5]]):
        for generate in (True, False):
            expected = transformers_render(smol.chat_template, messages, None, generate)
            assert smol.render(messages, add_generation_prompt=generate) == expected


def test_generation_marks_and_loop_controls(tokenizer):
    tokenizer.chat_template = template = (
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
        "{{ m.role }}: {% generation %}{{ m.content }}{% endgeneration %};{% endfor %}{{ strftime_now('%%') }}"
    )
    assert tokenizer.render(TALK[:2]) == transformers_render(template, TALK[:2])
    assert tokenizer.render(TALK[:2]) == "user: Weather in Kraków and Ōsaka?;%"


def test_openai_liberties(tokenizer):
    tokenizer.chat_template = templates.QWEN
    loose = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": None},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": "é"}'}}],
        },
    ]
    strict = [
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": "é"}}}]},
    ]
    assert tokenizer.render(loose) == transformers_render(templates.QWEN, strict)


def test_tool_template_is_used_for_tools(tmp_path):
    path = write_tiny(tmp_path / "two.gguf", metadata={"tokenizer.chat_template.tool_use": "{{ tools | tojson }}"})
    tokenizer = Tokenizer(path)
    assert tokenizer.render(TALK[:2], [{"name": "f"}]) == '[{"name": "f"}]'
    assert "Kraków" in tokenizer.render(TALK[:2])


def test_a_model_without_template(tmp_path):
    chatml = Tokenizer(write_tiny(tmp_path / "chatml.gguf", metadata={"tokenizer.chat_template": None}))
    talk = [TALK[0], TALK[1]]
    assert chatml.render(talk, add_generation_prompt=True) == transformers_render(templates.CHATML, talk, None, True)
    plain = Tokenizer(write_sentencepiece(tmp_path / "plain.gguf"))
    with pytest.raises(UnsupportedError, match="the model has no chat template"):
        plain.render(talk)


@pytest.mark.parametrize(("template", "messages", "sentence"), [
    (templates.LLAMA3, [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}] * 2}], "one tool call"),
    ("{{ messages[9].content }}", TALK[:1], "refuses the conversation"),
    ("{{ 1 / 0 }}", TALK[:1], "division by zero"),
    ("{{ messages.__class__.__mro__ }}", TALK[:1], "refuses the conversation .*unsafe"),
    ("{% set x = messages.append(1) %}", TALK[:1], "refuses the conversation .*unsafe"),
    (templates.QWEN, [{"role": "user", "content": [{"type": "image_url"}]}], "part of type 'image_url'"),
    (templates.QWEN, [{"role": "assistant", "tool_calls": "f()"}], "tool_calls is not a list"),
    (templates.QWEN, [{"role": "assistant", "tool_calls": ["f()"]}], "no function with a name"),
    (
        templates.QWEN,
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{x"}}]}],
        r"arguments of tool call 'f' are not JSON \('\{x'\)",
    ),
])
def test_refused_conversations(tokenizer, template, messages, sentence):
    tokenizer.chat_template = template
    with pytest.raises(DataError, match=sentence):
        tokenizer.render(messages)


def test_refused_templates(tokenizer):
    tokenizer.chat_template = "{% for %}"
    with pytest.raises(UnsupportedError, match="chat template does not compile"):
        tokenizer.render(TALK[:1])


def test_prompt_tokens_are_what_llama_cpp_python_feeds(smol, smollm2):
    """Rendered prompt to tokens, as llama-cpp-python's own chat handler does it."""
    llama_cpp = pytest.importorskip("llama_cpp")
    model = llama_cpp.Llama(str(smollm2), vocab_only=True, verbose=False)
    formatter = llama_cpp.llama_chat_format.Jinja2ChatFormatter(smol.chat_template, "<|im_end|>", "<|im_start|>")
    text = formatter(messages=TALK[:2]).prompt
    truth = model.tokenize(text.encode(), add_bos=smol.add_bos, special=True)
    ids = smol.encode(smol.render(TALK[:2], add_generation_prompt=True), bos=True)
    assert np.array_equal(ids, truth)
    model.close()


def test_a_library_for_another_system_is_refused_in_a_sentence(tmp_path):
    """As llama-cpp-python refuses one that needs a newer C library than there is."""
    model = write_tiny(tmp_path / "tiny.gguf")
    package = tmp_path / "packages" / "llama_cpp"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "llama_cpp.py").write_text("raise RuntimeError('version GLIBC_9.9 not found')")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package.parent), os.environ["PYTHONPATH"]])}
    done = subprocess.run([sys.executable, "-m", "edgetune", "generate", str(model), "hello"], env=env,
                          capture_output=True, text=True)
    assert done.returncode == 1
    assert "GLIBC_9.9" in done.stderr
    assert "pip install --force-reinstall" in done.stderr
    assert "Traceback" not in done.stderr
