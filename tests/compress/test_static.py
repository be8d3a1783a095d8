"""Tables of one vector a token: beside numpy's own principal components of the encoder's vectors of tokens."""

import json
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from commands import run
from encoders import WORDS, tiny_bert, vectors, write_checkpoint

from edgetune.errors import FormatError, UnsupportedError, UsageError
from edgetune.formats.bundle import open_bundle
from edgetune.formats.gguf import open_gguf, write_gguf
from edgetune.llamacpp.wordpiece import WordPiece
from edgetune.serving.embedding import EncoderFile, open_vectors
from edgetune.serving.llama import LlamaModel

UNREACHED = "[unused1]"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(table, the encoder as the same command stores it)"""
    folder = tmp_path_factory.mktemp("static")
    words = [*WORDS[:-1], UNREACHED]
    source = write_checkpoint(folder / "tiny", tiny_bert(), words)
    run("compress", source, "-o", folder / "f16.edge", "--type", "F16")
    run("compress", source, "-o", folder / "table.edge", "--static", 8)
    return folder / "table.edge/model.gguf", folder / "f16.edge/model.gguf"


def test_vectors_are_principal_components_by_frequency(made):
    """A text's vector is the sum of its tokens', of length 1; numpy's decomposition tells them."""
    table, encoder = made
    tokens = [word for word in WORDS[:-1] if word not in WORDS[:5]]
    tokenizer = WordPiece(encoder)
    file = EncoderFile(encoder, threads=1)
    of_tokens = np.empty((len(WORDS) - 1, 64), np.float32)
    for _ in file.embedder.embed(of_tokens, [[tokenizer.cls, i, tokenizer.sep] for i in range(len(WORDS) - 1)]):
        pass
    file.close()
    centred = of_tokens - of_tokens.mean(0)
    _, _, axes = np.linalg.svd(centred)
    shares = 1 / np.arange(2, len(WORDS) + 1)
    weighted = centred @ axes[:8].T * (1e-4 / (1e-4 + shares / shares.sum()))[:, None]
    texts = [["turn", "the", "light"], ["kitchen"], ["on", "off", "on"]]
    expected = np.array([sum(weighted[WORDS.index(word)] for word in text) for text in texts])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = vectors(table, [" ".join(text) for text in texts])
    gap = np.abs(found @ found.T - expected @ expected.T).max()  # an axis may point either way
    assert gap < 0.05  # by int8
    assert len(open_gguf(table).metadata["tokenizer.ggml.tokens"]) == len(tokens) + 5 == len(WORDS) - 1


def test_what_no_text_holds_is_left_out_and_marks_weigh_nothing(made):
    gguf = open_bundle(made[0].parent).gguf
    assert "▁" + UNREACHED not in gguf.metadata["tokenizer.ggml.tokens"]
    assert "▁" + UNREACHED in open_gguf(made[1]).metadata["tokenizer.ggml.tokens"]
    file = open_vectors(made[0])
    embedder = file.embedder
    texts = [embedder.encode(text) for text in ("light", "Light zß", "ß")]
    out = np.empty((3, embedder.width), np.float32)
    for _ in embedder.embed(out, texts):
        pass
    assert np.abs(out[0] - out[1]).max() < 1e-6  # [UNK] has zeros
    assert not out[2].any()
    with pytest.raises(UsageError, match="a token id is 99"):
        embedder.check([99])
    assert embedder.truncate(texts[0]) == texts[0]


def test_numpy_alone_serves_it(made):
    code = ("import sys; from pathlib import Path; from edgetune.serving.embedding import open_vectors; "
            f"open_vectors(Path({str(made[0])!r})); print(*{{'torch', 'llama_cpp', 'gguf'}} & set(sys.modules))")
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True,
                          timeout=120).stdout.strip() == ""


def test_it_answers_nothing(made):
    with pytest.raises(UnsupportedError, match="makes vectors and no text"):
        LlamaModel(made[0])


@pytest.mark.parametrize(("options", "says"), [
    (("--static", 65), "static is 65, the encoder's vectors have 64"),
    (("--static", 8, "--type", "Q8_0"), "--type is given with --static")])
def test_what_makes_no_table_is_refused(made, tmp_path, options, says):
    assert says in run("compress", made[1], "-o", tmp_path / "t.edge", *options, code=2)


def test_decoders_make_none(tiny_llama, tmp_path):
    assert "no encoder" in run("compress", tiny_llama, "-o", tmp_path / "t.edge", "--static", 8, code=2)


def test_damaged_tables_are_refused(made, tmp_path):
    gguf = open_gguf(made[0])
    keys = {key: gguf.metadata[key] for key in gguf.metadata}
    wrong = tmp_path / "wrong.gguf"
    write_gguf(wrong, "static", keys | {"static.embedding_length": 9}, dict(gguf.tensors))
    with pytest.raises(FormatError, match=r"it must have \[65, 9\]"):
        open_vectors(wrong)
    write_gguf(wrong, "static", keys, {"token_embd.weight": np.zeros((65, 8), np.float32)})
    with pytest.raises(UnsupportedError, match="F32"):
        open_vectors(wrong)
    write_gguf(wrong, "static", keys, {"output.weight": np.zeros((65, 8), np.float32)})
    with pytest.raises(FormatError, match="1 tensors"):
        open_vectors(wrong)
    manifest = json.loads((made[0].parent / "manifest.json").read_text())
    assert manifest["steps"][0]["tokens"] == 65
