"""A trimmed vocabulary, judged by llama.cpp's tokenizer and logits of the whole model."""

import itertools
import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from json_lines import read_lines
from sometimes import mostly_slow
from tiny import CHAT_TEMPLATE, SPECIALS, byte_letters, write_tiny

pytest.importorskip("tokenizers")
pytest.importorskip("torch")

import tokenizers
from families import logits_of

from edgetune import Trainer, open_bundle
from edgetune.compress.shrink.trim import tokenizer_of, trim
from edgetune.compress.source import floats
from edgetune.data.packing import Example
from edgetune.errors import DataError, UnsupportedError, UsageError
from edgetune.formats.gguf import open_gguf
from edgetune.llamacpp.tokenizer import Tokenizer

PROSE = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")
TEXTS = PROSE[: len(PROSE) // 2].split("\n\n")
TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the light"}]
AT = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
GEMMA = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}" \
        "<start>{{ m.role }}\n{{ m.content }}<end>\n{% endfor %}{% if add_generation_prompt %}<start>model\n{% endif %}"
KINDS = ["gpt2", "llama"]
LEAST = 320  # tiny.py's models have no fewer tokens


def write_bpe(path, merges, more=(), **metadata: object):
    """A llama with byte-level BPE: specials, bytes, products of the merges, `more` tokens with their types, unused."""
    products = [merge.replace(" ", "", 1) for merge in merges]
    tokens = [*SPECIALS, *byte_letters(), *dict.fromkeys(products), *(text for text, _ in more)]
    kinds = [CONTROL] * 3 + [NORMAL] * (len(tokens) - 3 - len(more)) + [kind for _, kind in more]
    spare = [f"<spare{i}>" for i in range(LEAST - len(tokens))]
    fields = {f"{AT}tokens": tokens + spare, f"{AT}token_type": kinds + [UNUSED] * len(spare), f"{AT}merges": merges}
    return write_tiny(path, n_vocab=len(tokens + spare), tied=False, metadata=fields | metadata)


def write_pieces(path, pieces, **metadata: object):
    """A gemma3 with SentencePiece's tokens {text: score}, the marks of its template and two placeholders."""
    marks = ["<unk>", "<bos>", "<eos>", "<start>", "<end>", "<unused0>", "<unused1>"]
    tokens = [*marks, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    spare = [f"<spare{i}>" for i in range(LEAST - len(tokens))]
    fields = {
        f"{AT}model": "llama", f"{AT}pre": None, f"{AT}merges": None, f"{AT}tokens": tokens + spare,
        f"{AT}scores": [0.0] * (len(marks) + 256) + list(pieces.values()) + [0.0] * len(spare),
        f"{AT}token_type": [UNKNOWN] + [CONTROL] * (len(marks) - 1) + [BYTE] * 256 + [NORMAL] * len(pieces)
        + [UNUSED] * len(spare),
        f"{AT}bos_token_id": 1, f"{AT}eos_token_id": 2, f"{AT}padding_token_id": None, f"{AT}add_bos_token": True,
        "tokenizer.chat_template": GEMMA,
    }
    return write_tiny(path, "gemma3", n_vocab=len(tokens + spare), metadata=fields | metadata)


def learned(kind):
    """The merges that Hugging Face's trainer finds in our prose."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = (tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False) if kind == "gpt2"
                          else tokenizers.pre_tokenizers.Metaspace())
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet() if kind == "gpt2" else []
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=1200, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([PROSE], trainer)
    return [tuple(merge) for merge in json.loads(made.to_str())["model"]["merges"]]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A model of each kind of tokenizer, its tokens learned from prose."""
    folder = tmp_path_factory.mktemp("sources")
    pieces = learned("llama")
    letters = dict.fromkeys(letter for pair in pieces for letter in "".join(pair))
    scores = {"".join(pair): -float(rank) for rank, pair in enumerate(pieces)}
    return {"gpt2": write_bpe(folder / "bpe.gguf", [" ".join(pair) for pair in learned("gpt2")]),
            "llama": write_pieces(folder / "spm.gguf", scores | dict.fromkeys(letters, -1e4))}


@pytest.fixture(scope="module")
def pairs(sources, tmp_path_factory):
    """kind -> (path and tokenizer of the source, of the trimmed model, what trim said)."""
    made = {}
    for kind, path in sources.items():
        cut = tmp_path_factory.mktemp(kind) / "cut.gguf"
        model, facts = trim(floats.read(open_gguf(path)), TEXTS, 700)
        floats.write(cut, model)
        made[kind] = path, Tokenizer(path), cut, Tokenizer(cut), facts
    return made


def all_kept(ids, kept):
    return bool(np.isin(ids, kept).all())


# ---- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(max_size=60) | st.text("etains\n\t <|m_d>é▁\x00\x7f\x80", max_size=60))
@examples(100)
def test_no_text_is_lost(pairs, kind, text):
    _, source, _, cut, facts = pairs[kind]
    for special in (True, False):
        before = source.encode(text, special=special)
        after = cut.encode(text, special=special)
        assert cut.decode(after) == source.decode(before)
        if kind == "gpt2":
            assert cut.decode(after) == text
        if all_kept(before, facts.kept):
            assert facts.kept[after].tolist() == before


@pytest.mark.parametrize("kind", KINDS)
def test_every_byte_survives(pairs, kind):
    _, source, _, cut, _ = pairs[kind]
    text = "".join(map(chr, [*range(1, 0x800), *range(0x800, 0xD800, 97), *range(0xE000, 0x110000, 997)]))
    assert cut.decode(cut.encode(text)) == source.decode(source.encode(text))
    assert cut.decode(cut.encode(text)).removeprefix(" ") == text
    pieces = {cut.piece(token) for token in range(cut.n_vocab)}
    assert pieces >= {bytes([byte]) for byte in range(256)}


@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_kept_tokens_keep_their_ids(pairs, kind):
    _, source, _, cut, facts = pairs[kind]
    words = sorted(set(PROSE.split(" ")) | set(PROSE.split("\n")) | set(PROSE.split("\n\n")) | set(PROSE.split()))
    same = 0
    for word in words:
        before = source.encode(word)
        after = cut.encode(word)
        assert cut.decode(after) == source.decode(before)
        if all_kept(before, facts.kept):
            assert facts.kept[after].tolist() == before
            same += 1
    assert 200 < same < len(words)


@pytest.mark.dev
@pytest.mark.parametrize("seed", mostly_slow(range(6), [0, 1]))
@pytest.mark.parametrize("kind", KINDS)
def test_any_merges_whatever_their_order(tmp_path, kind, seed):
    """Merges that nobody learned: many tokens have several ways to be built, or none that their letters take."""
    rng = np.random.default_rng(seed)
    tokens = list("abc")
    merges = []
    while len(merges) < 40:
        left, right = rng.choice(tokens, 2).tolist()
        if len(left + right) <= 5 and f"{left} {right}" not in merges:
            merges.append(f"{left} {right}")
            tokens = list(dict.fromkeys([*tokens, left + right]))
    merges = rng.permutation(merges).tolist()
    bare = {"tokenizer.chat_template": None}
    if kind == "gpt2":
        path = write_bpe(tmp_path / "any.gguf", merges, **bare)
    else:
        scores = rng.integers(-9, 0, len(tokens)).astype(float).tolist()  # some are equal
        path = write_pieces(tmp_path / "any.gguf", dict(zip(tokens, scores, strict=True)), **bare,
                            **{f"{AT}add_space_prefix": False})
    model = floats.read(open_gguf(path))
    words = ["".join(letters) for n in range(1, 8) for letters in itertools.product("abc", repeat=n)]
    used = len(model.metadata[f"{AT}tokens"]) - model.metadata[f"{AT}token_type"].count(UNUSED)
    with tokenizer_of(model) as tokenizer:
        before = [tokenizer.encode(word) for word in words]
    cut, facts = trim(model, rng.choice(words, 8).tolist(), used - len(tokens) // 2)
    with tokenizer_of(cut) as tokenizer:
        after = [tokenizer.encode(word) for word in words]
        assert list(map(tokenizer.decode, after)) == words
    kept = [all_kept(ids, facts.kept) for ids in before]
    assert 50 < sum(kept) < len(words)
    assert [facts.kept[ids].tolist() for ids in itertools.compress(after, kept)] == list(
        itertools.compress(before, kept))


# ---- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_facts(pairs, kind):
    path, source, cut, trimmed, facts = pairs[kind]
    assert trimmed.n_vocab == len(facts.kept) == facts.tokens_after == 700
    assert facts.tokens_before == source.n_vocab
    assert (np.diff(facts.kept) > 0).all()
    ids = [source.encode(text) for text in TEXTS]
    assert facts.coverage == pytest.approx(np.isin(np.concatenate(ids), facts.kept).mean())
    assert facts.length_before == pytest.approx(np.mean(list(map(len, ids))))
    assert facts.length_after == pytest.approx(np.mean([len(trimmed.encode(text)) for text in TEXTS]))
    assert 0.7 < facts.coverage < 1
    assert facts.length_before < facts.length_after < 1.6 * facts.length_before
    merges = [len(fields[f"{AT}merges"].contents()) if f"{AT}merges" in fields else 0
              for fields in (gguf.GGUFReader(path).fields, gguf.GGUFReader(cut).fields)]
    assert [facts.merges_before, facts.merges_after] == merges
    assert "kept" not in json.loads(json.dumps(facts.to_json()))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_kept_tokens_stay(pairs, kind):
    path, _, cut, _, facts = pairs[kind]
    tokens = np.random.default_rng(1).integers(0, 700, 40)
    before = logits_of(path, facts.kept[tokens].tolist())[:, facts.kept]
    model = floats.read(open_gguf(path))  # in F16 too, as the trimmed one is stored
    floats.write(cut.with_name("whole.gguf"), model)
    stored = logits_of(cut.with_name("whole.gguf"), facts.kept[tokens].tolist())[:, facts.kept]
    after = logits_of(cut, tokens.tolist())
    np.testing.assert_allclose(after, stored, rtol=0, atol=1e-5)
    np.testing.assert_allclose(after, before, rtol=0, atol=0.05)  # what F16 costs


@pytest.mark.parametrize("kind", KINDS)
def test_the_trimmed_model_trains(pairs, kind):
    _, _, cut, tokenizer, _ = pairs[kind]
    bundle = open_bundle(cut)  # asks check_model
    trainer = Trainer(bundle, rank=4, lr=2e-2, batch_size=2, max_length=48, threads=2, steps=3)
    tokens = np.array(tokenizer.encode("the terms of this License, in every row")[:40], np.int32)
    trainer.add_examples([Example(tokens, np.ones(tokens.size, np.float32))] * 4)
    losses = [result.loss for result in trainer.train()]
    assert losses[-1] < losses[0] < np.log(700) + 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_template_and_its_marks(pairs, kind):
    _, source, _, cut, facts = pairs[kind]
    talk = TALK if kind == "gpt2" else TALK[1:]
    text = cut.render(talk, add_generation_prompt=True)
    assert text == source.render(talk, add_generation_prompt=True)
    assert cut.chat_template == (CHAT_TEMPLATE if kind == "gpt2" else GEMMA)
    for mark in SPECIALS if kind == "gpt2" else ["<bos>", "<eos>", "<start>", "<end>"]:
        assert facts.kept[cut.encode(mark, continues=True)].tolist() == source.encode(mark, continues=True)
        assert len(cut.encode(mark, continues=True)) == 1
    frame = cut.encode(cut.render([{**turn, "content": "Hi"} for turn in talk], add_generation_prompt=True), bos=True)
    assert len(frame) == len(source.encode(source.render([{**turn, "content": "Hi"} for turn in talk],
                                                         add_generation_prompt=True), bos=True))
    assert facts.kept[[cut.bos, cut.eos]].tolist() == [source.bos, source.eos]
    assert cut.add_bos == source.add_bos


def test_placeholders_go_unless_the_text_has_them(sources):
    model = floats.read(open_gguf(sources["llama"]))
    cut, _ = trim(model, ["the <unused1> work"], 400)
    tokens = cut.metadata[f"{AT}tokens"]
    assert "<unused1>" in tokens
    assert "<unused0>" not in tokens


def test_room_that_is_left_goes_to_the_first_merges(sources):
    for kind, first in (("gpt2", 259), ("llama", 263)):
        cut, facts = trim(floats.read(open_gguf(sources[kind])), ["a"], 500)
        texts = cut.metadata[f"{AT}tokens"]
        assert len(texts) == 500
        made = np.array([old - first for text, old in zip(texts, facts.kept, strict=True)
                         if old >= first and len(text) > 1])
        assert len(made) > 100
        assert np.mean(made < len(made)) > 0.85  # in both files the tokens lie in the order of their merges


def test_keys_that_name_tokens(tmp_path):
    merges = ["a b", "q r", "ab c", "d e", "x y"]  # tokens 259 to 263
    named = {f"{AT}{name}_token_id": token for name, token in
             {"bos": None, "padding": 264, "fim_pre": 262, "unknown": 9999, "eot": 263}.items()}
    more = {f"{AT}suppress_tokens": [5, 260, 261, 265], "tokenizer.huggingface.json": "{}",
            "tokenizer.chat_template": None}
    path = write_bpe(tmp_path / "keys.gguf", merges, (("<think>", USER_DEFINED),), **named, **more)
    model = floats.read(open_gguf(path))
    cut, facts = trim(model, ["abc"], 264)
    keys = cut.metadata
    tokens = model.metadata[f"{AT}tokens"]
    assert facts.kept.tolist() == [*range(260), 261, 262, 263, 264]
    assert keys[f"{AT}tokens"] == [*tokens[:260], *tokens[261:265]]
    assert {name: keys[f"{AT}{name}_token_id"] for name in ("padding", "fim_pre", "eot", "eos")} == {
        "padding": 263, "fim_pre": 261, "eot": 262, "eos": 2}
    assert f"{AT}unknown_token_id" not in keys
    with tokenizer_of(model) as before, tokenizer_of(cut) as after:
        assert facts.kept[after.bos] == before.bos  # llama.cpp's own choice, as no key says it
    assert keys[f"{AT}suppress_tokens"] == [5, 260]
    assert "tokenizer.huggingface.json" not in keys
    assert keys["llama.vocab_size"] == 264
    for name in ("token_embd.weight", "output.weight"):
        np.testing.assert_array_equal(cut.tensors[name], model.tensors[name][facts.kept])


def test_tokens_that_are_not_utf8_survive(tmp_path):
    raw = b"\xe3\x81ab".decode("utf-8", "surrogateescape")
    path = write_bpe(tmp_path / "raw.gguf", ["a b", "c d", "e f"], ((b"<\xff>", USER_DEFINED),),
                     **{"tokenizer.chat_template": None})
    pieces = write_pieces(tmp_path / "raw-spm.gguf", {"a": -3.0, "b": -4.0, "ab": -1.0, b"\xe3\x81ab": -2.0})
    for source, text in ((path, b"<\xff>".decode("utf-8", "surrogateescape")), (pieces, raw)):
        model = floats.read(open_gguf(source))
        assert text in model.metadata[f"{AT}tokens"]
        cut, _ = trim(model, ["ab"], len(model.metadata[f"{AT}tokens"]) - 1)
        floats.write(tmp_path / "cut.gguf", cut)
        assert text in open_gguf(tmp_path / "cut.gguf").metadata[f"{AT}tokens"]
        (tmp_path / "cut.gguf").unlink()


def test_refusals(sources):
    model = floats.read(open_gguf(sources["gpt2"]))
    total = len(model.metadata[f"{AT}tokens"])
    with pytest.raises(UsageError, match=rf"have {total} tokens, the model has {total}; ask for fewer"):
        trim(model, TEXTS, total)
    with pytest.raises(UsageError, match=r"100 tokens, but \d+ must stay .*; ask for \d+ or more") as no:
        trim(model, TEXTS, 100)
    least = int(no.value.hint.split()[2])
    assert trim(model, TEXTS, least)[1].tokens_after == least
    with pytest.raises(UsageError, match=f"but {least} must stay"):
        trim(model, TEXTS, least - 1)
    for nothing in ([], [""]):
        with pytest.raises(DataError, match="texts whose tokens are to be kept are empty"):
            trim(model, nothing, 500)
    with pytest.raises(UnsupportedError, match="tokenizer 'bert' cannot be trimmed"):
        trim(floats.Floats("llama", model.metadata | {f"{AT}model": "bert"}, model.types, {}), TEXTS, 500)


def test_no_merge_is_left(tmp_path):
    """At the least size without a template: llama.cpp wants merges all the same."""
    model = floats.read(open_gguf(write_bpe(tmp_path / "m.gguf", ["a b", "c d", "e f"],
                                            **{"tokenizer.chat_template": None})))
    cut, facts = trim(model, ["xyz"], 260)
    assert cut.metadata[f"{AT}merges"] == ["a b"]
    assert facts.merges_after == 1


# ---- a real tokenizer ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_smollm2_on_real_text(smollm2, shared_data, tmp_path):
    whole = open_gguf(smollm2)
    tensors = {name: np.ascontiguousarray(tensor.f32()) for name, tensor in whole.tensors.items()
               if not name.startswith("blk.") or name.startswith("blk.0.")}
    model = floats.Floats("llama", dict(whole.metadata), whole.types, tensors).with_keys(block_count=1)
    rows = read_lines(shared_data / "snips_dev.jsonl")
    texts = [row[part] for row in rows for part in ("prompt", "completion")]
    cut, facts = trim(model, texts, 4096)
    assert facts.coverage == 1.0
    assert facts.length_after == facts.length_before
    prose = (shared_data / "wikitext2_valid.txt").read_text(encoding="utf-8")
    words = sorted({f" {word}" for word in prose.split()})
    with tokenizer_of(model) as before, tokenizer_of(cut) as after:
        same = 0
        for text in [*words[::3], *prose.split("\n")[:200]]:
            ids = before.encode(text)
            new = after.encode(text)
            assert after.decode(new) == text
            if all_kept(ids, facts.kept):
                assert facts.kept[new].tolist() == ids
                same += 1
        assert 700 < same < len(words) / 3
        tokens = after.encode(after.render([{"role": "user", "content": texts[0]}], add_generation_prompt=True))
        floats.write(tmp_path / "whole.gguf", model)
        floats.write(tmp_path / "cut.gguf", cut)
        wanted = logits_of(tmp_path / "whole.gguf", facts.kept[tokens].tolist())[:, facts.kept]
        np.testing.assert_allclose(logits_of(tmp_path / "cut.gguf", tokens), wanted, rtol=0, atol=1e-4)
