"""An encoder with its adapter as ONNX: ONNX Runtime gives what edgetune's own engine gives."""

import json
import re
from itertools import pairwise

import numpy as np
import pytest
from commands import run
from encoders import WORDS, tiny_bert, write_encoder
from tiny import write_gguf

import edgetune
from edgetune.errors import UnsupportedError
from edgetune.formats.gguf import open_gguf
from edgetune.objectives.base import read_objective
from edgetune.objectives.embed import Embed
from edgetune.runs.train import train
from edgetune.serving.classifier import Classifier
from edgetune.serving.encoder import Encoder

onnxruntime = pytest.importorskip("onnxruntime")
transformers = pytest.importorskip("transformers")
export = pytest.importorskip("edgetune.compress.onnx.encoder")

TEXTS = [f"{word} {place} light {state}" for word in ("turn", "the") for place in ("kitchen", "a", "b c d")
         for state in ("on", "off")]
COMPLETIONS = {"classify": lambda text: text.rpartition(" ")[2],
               "multilabel": lambda text: json.dumps(sorted({*text.split()} & {"turn", "kitchen", "on"})),
               "tag": lambda text: json.dumps({"state": text.rpartition(" ")[2], "what": text.split()[1],
                                          "is_turned": text.startswith("turn")})}
OPTIONS = {"rank": 4, "threads": 1, "lr": 1e-2, "steps": 8, "precision": "exact"}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder") / "tiny.gguf", tiny_bert(), WORDS)


def outputs(folder, file="model.onnx"):
    """Those of TEXTS together, padded, and the tokens of each."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    given = tokenizer(TEXTS, padding=True, return_tensors="np")
    session = onnxruntime.InferenceSession(str(folder / file))
    names = [spec.name for spec in session.get_outputs()]
    found = session.run(names, {name: given[name].astype(np.int64) for name in ("input_ids", "attention_mask")})
    return dict(zip(names, found, strict=True)), tokenizer(TEXTS)["input_ids"]


@pytest.mark.dev
@pytest.mark.parametrize("method", COMPLETIONS)
def test_it_gives_what_our_engine_gives(encoder, tmp_path, method):
    rows = [{"prompt": text, "completion": COMPLETIONS[method](text)} for text in TEXTS]
    train(encoder, rows, tmp_path / "out", "none", **OPTIONS)
    run("adapters", "export", tmp_path / "out", "--to", "onnx", "-o", tmp_path / "onnx")
    found, tokens = outputs(tmp_path / "onnx")
    written = json.loads((tmp_path / "onnx" / "labels.json").read_text())
    assert (written["objective"]["name"], written["outputs"]) == (method, [*found])
    assert np.abs(found["vector"] - edgetune.vectors(encoder, TEXTS, tmp_path / "out", threads=1)).max() < 1e-4
    with Classifier(encoder, tmp_path / "out", threads=1, precision="exact") as served:
        own = served.classify(TEXTS)
    reads = [*map(Encoder(open_gguf(encoder), 1).read, TEXTS)]
    assert tokens == [read.encoded.ids for read in reads]
    if method != "tag":
        assert np.abs(found["probabilities"] - np.stack([one.probabilities for one in own])).max() < 1e-4
        return
    objective = read_objective(written["objective"])
    for number, (read, one) in enumerate(zip(reads, own, strict=True)):
        p = np.zeros((len(objective.heads) - 1 + read.tokens, sum(head.size for head in objective.heads)), np.float32)
        first = 0
        for place, head in enumerate(objective.heads):
            part = found[head.parameters][number]
            p[place if part.ndim == 1 else slice(place, None), first:first + head.size] = part[:read.tokens] if (
                part.ndim > 1) else part
            first += head.size
        answer = objective.answer(read, p)
        assert answer.label == one.label
        assert answer.probability == pytest.approx(one.probability, rel=1e-3)


def test_eight_bits_give_nearly_the_same(encoder, tmp_path):
    rows = [{"prompt": text, "completion": COMPLETIONS["classify"](text)} for text in TEXTS]
    train(encoder, rows, tmp_path / "out", "none", **OPTIONS)
    export.export_onnx(tmp_path / "out", open_gguf(encoder), tmp_path / "onnx")
    whole, rounded = (outputs(tmp_path / "onnx", name)[0] for name in ("model.onnx", "model-int8.onnx"))
    assert 0 < np.abs(whole["vector"] - rounded["vector"]).max() < 0.1
    assert (whole["probabilities"].argmax(1) == rounded["probabilities"].argmax(1)).mean() >= 0.9


def test_vectors_without_a_head(encoder, tmp_path):
    rows = [{"anchor": text, "positive": other} for text, other in pairwise(TEXTS)]
    train(encoder, rows, tmp_path / "out", "none", objective=Embed(), **OPTIONS)
    assert export.export_onnx(tmp_path / "out", open_gguf(encoder), tmp_path / "onnx")["outputs"] == ["vector"]
    found, _ = outputs(tmp_path / "onnx")
    assert np.abs(found["vector"] - edgetune.vectors(encoder, TEXTS, tmp_path / "out", threads=1)).max() < 1e-4


def test_an_adapter_of_a_model_that_writes_text_is_refused(tiny_llama, tmp_path):
    rows = [{"prompt": text, "completion": "on"} for text in TEXTS]
    train(tiny_llama, rows, tmp_path / "texts", "none", steps=1, threads=1)
    assert "adapters of encoders alone" in run("adapters", "export", tmp_path / "texts", "--to", "onnx", code=2)


def test_one_matrix_for_queries_keys_and_values_is_refused(encoder, tmp_path):
    file = open_gguf(encoder)
    tensors = {}
    for name, tensor in file.tensors.items():
        tensors.setdefault(re.sub(r"attn_[qkv]\.", "attn_qkv.", name), []).append(np.array(tensor.f32()))
    path = write_gguf(tmp_path / "fused.gguf", "bert", file.metadata,
                      {name: np.concatenate(parts) for name, parts in tensors.items()})
    rows = [{"prompt": text, "completion": COMPLETIONS["classify"](text)} for text in TEXTS]
    train(path, rows, tmp_path / "out", "none", **OPTIONS | {"steps": 1})
    with pytest.raises(UnsupportedError, match="in one matrix"):
        export.export_onnx(tmp_path / "out", open_gguf(path), tmp_path / "onnx")
