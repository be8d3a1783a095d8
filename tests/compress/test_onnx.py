"""The second format: the export against transformers, the device's runtime against its greedy answers, int8 close."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from sometimes import mostly_slow

pytest.importorskip("onnxruntime")
pytest.importorskip("torch")
pytest.importorskip("optimum.exporters.onnx")
pytest.importorskip("onnx")

import onnx
import torch
from click.testing import CliRunner
from families import FAMILIES, hf_logits, make_family

from edgetune.cli import cli
from edgetune.compress.onnx import export as export_onnx
from edgetune.compress.onnx import int8 as onnx_int8
from edgetune.compress.source import floats
from edgetune.compress.source import huggingface as hf
from edgetune.errors import DataError, EdgetuneError, FormatError, Interrupted, UnsupportedError, UsageError
from edgetune.formats.bundle import write_manifest
from edgetune.formats.gguf import check_vocabulary, open_gguf
from edgetune.llamacpp import library as llamacpp
from edgetune.llamacpp.sampling import Sampler, Sampling
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.serving import onnx as onnx_runtime
from edgetune.serving.llama import LlamaModel
from edgetune.serving.onnx import OnnxModel, Session

TOKENS = [int(token) for token in np.random.default_rng(0).integers(3, 416, 60)]
WINDOWS = np.random.default_rng(1).integers(3, 416, (10, 52)).astype(np.int32)
SOME = [("llama", "llama3"), ("gemma3", "linear")]  # without and with a tied embedding, normed queries and windows
CASES = [*((family, "none") for family in FAMILIES), ("llama", "llama3"), ("qwen2", "yarn"), ("gemma3", "linear")]


class Made:
    """A random model of a family: transformers' own, its GGUF, and two bundles of it."""

    def __init__(self, family, rope, folder):
        self.gguf, self.source = make_family(family, folder, rope=rope)
        model = floats.read(open_gguf(self.gguf))
        self.floats = folder / "floats.edge"
        self.int8 = folder / "int8.edge"
        for bundle in (self.floats, self.int8):
            bundle.mkdir()
            export_onnx.write_tokenizer(bundle / "tokenizer.gguf", model)
        proto = export_onnx.write_floats(self.floats / "model.onnx", hf.to_torch(model))
        onnx_int8.quantize(proto, tied="output.weight" not in model.tensors)
        onnx.save(proto, str(self.int8 / "model.onnx"))
        write_manifest(self.floats, {})
        write_manifest(self.int8, {})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(family, rope) -> Made, each once."""
    known = {}

    def get(family="llama", rope="llama3"):
        if (family, rope) not in known:
            known[family, rope] = Made(family, rope, tmp_path_factory.mktemp(f"{family}-{rope}"))
        return known[family, rope]

    return get


@pytest.mark.dev
@pytest.mark.parametrize(("family", "rope"), mostly_slow(CASES, SOME))
def test_the_export_computes_what_transformers_does(family, rope, made):
    model = made(family, rope)
    wanted = hf_logits(model.source, TOKENS)
    session = Session(model.floats / "model.onnx", threads=1)
    assert np.abs(session.feed(TOKENS, len(TOKENS)) - wanted).max() < 2e-4
    session.clear()
    one_by_one = np.concatenate([session.feed(TOKENS[: n + 1]) for n in range(len(TOKENS))])
    assert np.abs(one_by_one - wanted).max() < 2e-4


@pytest.mark.dev
@pytest.mark.parametrize(("family", "rope"), mostly_slow(CASES, SOME))
def test_greedy_answers_are_those_of_transformers(family, rope, made):
    model = made(family, rope)
    prompt = TOKENS[:20]
    with OnnxModel(model.floats, threads=1) as served:
        answer = "".join(served.generate(prompt, max_tokens=24))
        ends = [token for token in range(416) if served.tokenizer.is_end(token)]
        with torch.no_grad():
            ids = model.source.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=ends,
                                        pad_token_id=ends[0])[0, len(prompt) :].tolist()
        assert answer == served.tokenizer.decode(token for token in ids if not served.tokenizer.is_control(token))


@pytest.mark.parametrize(("family", "rope"), mostly_slow(CASES, SOME))
def test_int8_is_close_and_small(family, rope, made):
    model = made(family, rope)
    wanted = hf_logits(model.source, TOKENS)
    found = Session(model.int8 / "model.onnx", threads=1).feed(TOKENS, len(TOKENS))
    assert np.abs(found - wanted).max() > 0
    assert np.linalg.norm(found - wanted) < 0.08 * np.linalg.norm(wanted)
    operators = [node.op_type for node in onnx.load(str(model.int8 / "model.onnx")).graph.node]
    assert operators.count("MatMulNBits") == 3 * 7 + 1
    assert operators.count("GatherBlockQuantized") == 1
    largest = max(onnx.load(str(model.int8 / "model.onnx")).graph.initializer, key=lambda tensor: len(tensor.raw_data))
    assert largest.data_type == onnx.TensorProto.UINT8


def test_a_tied_embedding_is_stored_once(made):
    names = [[tensor.name for tensor in onnx.load(str(made(*case).int8 / "model.onnx")).graph.initializer
              if list(tensor.dims)[:1] == [416] and tensor.name.endswith("int8")] for case in SOME]
    assert list(map(len, names)) == [2, 1]


@pytest.mark.parametrize("shape", [(7, 64), (5, 50), (3, 1)])
def test_blocks_hold_the_nearest_of_255_steps(shape):
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    weight[0] = 0
    blocks, scales = onnx_int8.to_blocks(weight)
    assert blocks.dtype == np.uint8
    assert blocks.shape == (shape[0], -(-shape[1] // 32), 32)
    back = ((blocks.astype(np.float32) - 128) * scales[:, :, None]).reshape(shape[0], -1)
    assert not back[0].any()
    assert not back[:, shape[1] :].any()
    assert (np.abs(back[:, : shape[1]] - weight) <= np.repeat(scales, 32, 1)[:, : shape[1]] * 0.5001).all()
    parts = [np.abs(row[at : at + 32]).max() for row in weight for at in range(0, shape[1], 32)]
    np.testing.assert_allclose(scales.reshape(-1), np.array(parts) / 127, rtol=1e-6)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """What `export` says of a random llama, its folder, and the steps that it showed."""
    folder = tmp_path_factory.mktemp("export")
    gguf, _ = make_family("llama", folder)
    steps = []
    (folder / "out").mkdir()
    facts = export_onnx.export(floats.read(open_gguf(gguf)), folder / "out", WINDOWS, threads=1,
                               on_progress=lambda *step: steps.append(step))
    return facts, folder, steps


@pytest.mark.dev
def test_export_measures_agreement(exported):
    facts, folder, _ = exported
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["model.onnx", "tokenizer.gguf"]
    assert sorted(path.name for path in folder.iterdir()) == ["llama-none-0.gguf", "out"]
    assert facts.tokens == WINDOWS.size == 520
    assert facts.floats.top1 == facts.floats.greedy == 1
    assert facts.floats.kl < 1e-8
    assert facts.bytes == (folder / "out" / "model.onnx").stat().st_size
    assert json.loads(json.dumps(facts.to_json()))["int8"]["top1"] == facts.int8.top1
    # the same numbers from transformers' logits and a session, another way
    source = make_family("llama", folder)[1]
    session = Session(folder / "out" / "model.onnx", threads=1)
    wanted = np.stack([hf_logits(source, window) for window in WINDOWS]).astype(np.float64)
    found = np.stack([session.feed(window.tolist(), 52) for window in WINDOWS]).astype(np.float64)
    p, q = (torch.log_softmax(torch.from_numpy(logits), -1) for logits in (wanted, found))
    assert facts.int8.top1 == pytest.approx((p.argmax(-1) == q.argmax(-1)).double().mean().item(), abs=0.003)
    kl = torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum").item() / 520
    assert facts.int8.kl == pytest.approx(kl, rel=1e-3)
    following = torch.from_numpy(WINDOWS[:, 1:]).long()
    loss = torch.nn.functional.nll_loss(p[:, :-1].flatten(0, 1), following.flatten())
    assert facts.source_perplexity == pytest.approx(loss.exp().item(), rel=1e-4)


def test_export_shows_its_steps(exported):
    steps = exported[2]
    assert [done for _, done, _ in steps] == list(range(len(steps)))
    assert {total for _, _, total in steps} == {len(steps)}  # done and total meet at the end
    assert steps[0][0] == "exporting to ONNX"


def test_export_refuses_what_it_cannot_do(tiny_llama, tmp_path, monkeypatch):
    model = floats.read(open_gguf(tiny_llama))
    with pytest.raises(DataError, match="there are 468 tokens to compare on, at least 500 are needed"):
        export_onnx.export(model, tmp_path, WINDOWS[:9])
    monkeypatch.setattr(onnx_int8, "BYTES_PER_WEIGHT", 1e5)
    with pytest.raises(UnsupportedError, match=r"an ONNX file holds 2.1; choose --format gguf"):
        export_onnx.export(model, tmp_path, WINDOWS)
    assert list(tmp_path.iterdir()) == []


def test_export_stops_when_asked(tiny_llama, tmp_path):
    (tmp_path / "out").mkdir()
    shown = []
    with pytest.raises(Interrupted):
        export_onnx.export(floats.read(open_gguf(tiny_llama)), tmp_path / "out", WINDOWS, threads=1,
                           on_progress=lambda *step: shown.append(step), should_stop=lambda: len(shown) == 2)
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]


# ---- on the device ----


def test_the_tokenizer_is_the_sources(made):
    model = made()
    check_vocabulary(open_gguf(model.int8 / "tokenizer.gguf"))
    ours = Tokenizer(model.int8 / "tokenizer.gguf")
    theirs = Tokenizer(model.gguf)
    text = "turn on the light <|im_end|> größer 漢字"
    assert ours.encode(text) == theirs.encode(text)
    assert (ours.bos, ours.eos, ours.chat_template) == (theirs.bos, theirs.eos, theirs.chat_template)


def test_tokens_are_picked_as_llama_cpp_picks_them(tiny_llama):
    llama = llamacpp.load()
    with LlamaModel(tiny_llama, threads=1) as served:
        logits = served.logits(TOKENS)[-1]
        picked = []
        for seed in range(30):
            sampling = Sampling(temperature=0.9, top_k=50, top_p=0.9, min_p=0.02, seed=seed)
            made = [Sampler(llama, sampling, served.tokenizer) for _ in range(2)]
            with made[0] as ours, made[1] as theirs:
                picked.append(ours.pick(logits))
                assert picked[-1] == llama.llama_sampler_sample(theirs._choice, served.cache.handle, -1)
                again = llama.llama_sampler_sample(theirs._choice, served.cache.handle, -1)
                assert ours.pick(logits) == again  # the generator has gone on alike
        assert len(set(picked)) > 10
        with Sampler(llama, Sampling(), served.tokenizer) as greedy:
            assert greedy.pick(logits) == logits.argmax()


def test_a_shorter_beginning_is_used_again(made):
    session = Session(made().floats / "model.onnx", threads=1)
    whole = session.feed(TOKENS, len(TOKENS))
    other = [*TOKENS[:30], 7, 8, 9]
    again = session.feed(other)
    assert session.cached == other
    session.clear()
    np.testing.assert_allclose(again, session.feed(other), atol=1e-4)
    np.testing.assert_allclose(session.feed(TOKENS, 3), whole[-3:], atol=1e-4)


def test_a_long_prompt_goes_in_parts(made, monkeypatch):
    session = Session(made().floats / "model.onnx", threads=1)
    whole = session.feed(TOKENS, 40)
    session.clear()
    monkeypatch.setattr(onnx_runtime, "BATCH", 16)
    parts = session.feed(TOKENS, 40)
    assert parts.shape == (40, 416)
    np.testing.assert_allclose(parts, whole, atol=1e-4)


def test_the_context_is_a_limit(made):
    with OnnxModel(made().floats, threads=1, context=24) as served:
        with pytest.raises(EdgetuneError, match="24 tokens do not fit the context of 24 with an answer"):
            served.generate(TOKENS[:24])
        assert served.context == 24
        list(served.generate(TOKENS[:20], max_tokens=100))
        assert len(served.session.cached) <= 24
        with pytest.raises(UsageError, match="from 0 to 415"):
            served.generate([416])
    with pytest.raises(ValueError, match="closed"):
        served.generate([5])
    with pytest.raises(UsageError, match="context is 513 tokens; choose from 2 to 512"):
        OnnxModel(made().floats, context=513)


def test_a_model_exchanged_while_it_is_opened_is_refused(made, tmp_path, monkeypatch):
    """After its bytes were hashed, before ONNX Runtime reads them: what answers would not be what was checked."""
    folder = tmp_path / "exchanged.edge"
    shutil.copytree(made().int8, folder)

    def exchange(path, threads):
        shutil.copy(path, folder / "other")
        (folder / "other").rename(path)
        return Session(path, threads)

    monkeypatch.setattr("edgetune.serving.onnx.Session", exchange)
    with pytest.raises(EdgetuneError, match=r"exchanged|changed|another file"):
        OnnxModel(folder)


def test_bundles_that_are_not_whole_are_refused(made, tiny_llama, tmp_path):
    folder = tmp_path / "bad.edge"
    shutil.copytree(made().int8, folder)
    with pytest.raises(UnsupportedError, match="holds no ONNX model; leave --runtime out"):
        OnnxModel(tiny_llama)
    raw = bytearray((folder / "model.onnx").read_bytes())
    raw[len(raw) // 2] ^= 1
    (folder / "model.onnx").write_bytes(raw)
    with pytest.raises(FormatError, match="the manifest says"):
        OnnxModel(folder)
    (folder / "model.onnx").write_bytes(b"not a model")
    write_manifest(folder, {})
    with pytest.raises(UnsupportedError, match=r"ONNX Runtime .* cannot run"):
        OnnxModel(folder)
    shutil.copy(made().int8 / "model.onnx", folder)
    export_onnx.write_tokenizer(folder / "tokenizer.gguf", floats.read(open_gguf(tiny_llama)))
    write_manifest(folder, {})
    OnnxModel(folder).close()
    model = floats.read(open_gguf(make_family("llama", tmp_path, vocab_size=420)[0]))
    export_onnx.write_tokenizer(folder / "tokenizer.gguf", model)
    write_manifest(folder, {})
    with pytest.raises(EdgetuneError, match="the model has 416 tokens, its tokenizer 420"):
        OnnxModel(folder)


def run(*args, code=0, text=None):
    result = CliRunner().invoke(cli, [str(arg) for arg in args], input=text)
    assert result.exit_code == code, result.output
    return result.output


def test_generate_and_chat(made, tmp_path):
    model = made()
    short = ["--max-tokens", "6", "--threads", "1", "--json"]
    by_name = json.loads(run("generate", model.floats, "turn on", "--runtime", "onnx", *short))
    assert json.loads(run("generate", model.floats, "turn on", *short)) == by_name
    assert by_name["text"] == json.loads(run("generate", model.gguf, "turn on", *short))["text"]
    lines = run("chat", model.floats, *short, text="hello\nagain\n\n").splitlines()
    assert [set(json.loads(line)) for line in lines] == [{"text"}] * 2
    assert "adapters work with llama.cpp alone" in run("generate", model.floats, "x", "--adapter", tmp_path, code=2)
    assert "here a GGUF is needed" in run("generate", model.floats, "x", "--runtime", "llama", code=1)
    assert "holds no ONNX model" in run("generate", model.gguf, "x", "--runtime", "onnx", code=1)


def test_without_onnxruntime_it_says_what_to_install(made, monkeypatch):
    model = made().floats
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EdgetuneError, match="pip install 'onnxruntime"):
        OnnxModel(model)


def test_the_device_needs_neither_torch_nor_onnx(made, tmp_path):
    code = ("import sys; from edgetune.serving.onnx import OnnxModel; served = OnnxModel(sys.argv[1], threads=1); "
            "''.join(served.generate('turn', max_tokens=2)); served.close(); "
            "print([m for m in ('torch', 'transformers', 'onnx', 'optimum') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code, made().int8], cwd=tmp_path, capture_output=True, text=True,
                          check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""
