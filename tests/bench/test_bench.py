"""bench and what plan predicts from it: FLOP counted by hand, every op and kernel set measured, files read back."""

import json

import numpy as np
import pytest
from commands import run

from edgetune.backends import cpu, native
from edgetune.bench import generate, kernels, train
from edgetune.formats.gguf import open_gguf
from edgetune.models.decoder import Model
from edgetune.training.config import TrainConfig
from edgetune.training.sizing import make_plan
from edgetune.training.trainer import Trainer

SMALL = ["--rank", "4", "--threads", "1", "--batch-size", "2"]
# The tiny llama: D 64, H 4, G 2, C 16, F 128, V 416, two blocks. Weights of a block's projections:
QKV = 64 * 64 + 2 * 32 * 64
OUT = 64 * 64
GATE_UP = 2 * 128 * 64
DOWN = 64 * 128
BLOCK = QKV + OUT + GATE_UP + DOWN


def run_json(*args, code=0):
    return json.loads(run(*args, "--json", code=code))


def flops_of(path, lengths, **options):
    opened = Model(open_gguf(path))
    return opened.structure.flops(make_plan(opened, TrainConfig(threads=1, **options)).run, lengths)


@pytest.mark.parametrize(("options", "backward"), [
    ({}, 16 * (2 * BLOCK - QKV) + 2 * 2 * 5376),  # the last products of the first block would give dx of the embedding
    ({"blocks": "last:1"}, 16 * (BLOCK - QKV) + 2 * 5376),
    ({"blocks": "last:1", "targets": "o_proj"}, 16 * (DOWN + GATE_UP)),
    ({"blocks": "last:1", "targets": "down_proj"}, 0),
])
def test_flops_by_hand(model, options, backward):
    """Two documents, 3 and 5 tokens: 3 * 4 / 2 + 5 * 6 / 2 = 21 pairs that see each other, 6 supervised tokens."""
    attention = 4 * 4 * 16 * 21
    head = 2 * 6 * 416 * 64
    assert attention == 5376
    flops = flops_of(model, [3, 5], **options)
    assert flops.forward == 2 * 8 * 2 * BLOCK + 2 * attention + head
    assert flops.backward == backward + head


def test_flops_of_windows(tiny_models):
    """gemma3's first block sees 24 tokens back, its second all: by counting pairs."""
    t = np.arange(40)
    causal = t[:, None] >= t
    pairs = int((causal & (t[:, None] - t < 24)).sum()) + int(causal.sum())
    block = 2 * 64 * 4 * 32 + 2 * 64 * 2 * 32 + 3 * 64 * 128
    assert flops_of(tiny_models["gemma3"], [40]).forward == (2 * 40 * 2 * block + 4 * 4 * 32 * pairs
                                                             + 2 * 39 * 416 * 64)


def test_the_clock_counts_what_the_shapes_say(model):
    """Two ways to the same number: calls of ops as they happen, and the model's shape. No block is computed twice."""
    trainer = Trainer(model, rank=4, batch_size=2, max_length=20, steps=1, threads=1, recompute="none")
    trainer.add_examples(train.random_rows(416, 2, 20, seed=0))
    with train.clocked(trainer.ops) as spent:
        trainer.step()
    done = {name: op.flops for name, op in spent.items()}
    flops = trainer.model.structure.flops(trainer.plan.run, [20, 20])
    head = done["head_backward Q8_0"] // 2
    assert done["matmul_forward Q8_0"] + done["attention_forward"] + head == flops.forward
    assert done["matmul_backward Q8_0"] + done["attention_backward"] * 4 // 5 + head == flops.backward


def test_clocked_puts_the_ops_back():
    x = np.ones(8, np.float32)
    opened = cpu.Cpu(1)
    before = opened.add
    with train.clocked(opened) as spent:
        assert opened.add != before
        opened.add(x, x)
        opened.add(x, y=x)
        with pytest.raises(ValueError, match="y"):
            opened.add(x, x[:4])
    assert opened.add == before
    assert spent["add"].calls == 2
    assert (x == 4).all()
    with pytest.raises(KeyError), train.clocked(opened):
        raise KeyError
    assert opened.add == before


def test_train(model, tmp_path, monkeypatch):
    peaks = {False: 1e9, True: 4e9}
    monkeypatch.setattr(cpu.Cpu, "peak", lambda _ops, _precision, backward=False: peaks[backward])
    result = run_json("lab", "bench", "train", model, "--length", 32, "--steps", 3, *SMALL, "--save",
                      tmp_path / "speed.json")
    assert json.loads((tmp_path / "speed.json").read_text()) == result
    flops = flops_of(model, [32, 32], rank=4)
    assert result["mfu"] * result["step_s"] == pytest.approx(flops.forward / 1e9 + flops.backward / 4e9)
    assert result["flops_per_s"] * result["step_s"] == pytest.approx(flops.total)
    assert result["tokens_per_s"] * result["step_s"] == pytest.approx(64)
    assert result["step_s_least"] <= result["step_s"] < result["first_step_s"]
    assert result["peak_rss_mib"] > 10
    assert {"matmul_forward Q8_0", "matmul_backward Q8_0", "attention_backward", "adamw"} <= set(result["ops"])
    assert 0 < sum(op["share"] for op in result["ops"].values()) <= 1
    assert all(op["calls"] > 0 and op["seconds"] > 0 for op in result["ops"].values())
    assert result["ops"]["adamw"]["calls"] == 2  # A and B
    assert (result["threads"], result["options"]["max_length"], result["isa"]) == (1, 32, cpu.Cpu(1).isa)


def test_train_shows_tables(model):
    text = run("lab", "bench", "train", model, "--length", 16, "--steps", 1, *SMALL)
    for words in ("tokens/s", "first step", "peak memory", "FLOP utilisation", "matmul_backward Q8_0", "outside of"):
        assert words in text


def test_plan_predicts_from_a_saved_speed(model, tmp_path):
    file = tmp_path / "speed.json"
    made = run_json("lab", "bench", "train", model, "--length", 32, "--steps", 1, *SMALL, "--save", file)
    args = ["plan", model, "--speed", file, *SMALL, "--max-length"]
    same = run_json(*args, 32)["predicted"]
    assert same["step_s"] == pytest.approx(made["step_s"])
    assert same["tokens_per_s"] == pytest.approx(made["tokens_per_s"])
    longer = run_json(*args, 64)["predicted"]  # as the rule of speed.work says
    unpacked = 32 * (2 * 2 * BLOCK + 416 * 64)  # FLOP a micro-batch, here a step: up and down, and the head
    long, short = (flops_of(model, [n, n], rank=4).total for n in (64, 32))
    assert longer["step_s"] / same["step_s"] == pytest.approx(long / short * (long + unpacked) / (long + 2 * unpacked))
    assert f"{same['tokens_per_s']:.0f} tokens/s" in run(*args, 32)


def test_plan_refuses_another_speed(model, tmp_path):
    file = tmp_path / "speed.json"
    measured = {"device": "d", "isa": "i", "precision": "exact", "kept": 1, "blocks": 2, "threads": 3,
                "micro_batch": 64, "flops_per_s": 1e9}
    for content in ("[]", "{}", '{"flops_per_s": "x"}', "oops", json.dumps(measured | {"flops_per_s": 0})):
        file.write_text(content)
        assert "holds no measured speed; make it with" in run("plan", model, "--speed", file, code=1)
    file.write_text(json.dumps(measured))
    other = run("plan", model, "--speed", file, "--precision", "exact", "--threads", 2, code=1)
    assert "the speed was measured with threads 3, the plan has 2; plan with --threads 3" in other


def test_saved_without_a_name_it_is_found_by_itself(model, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    plan = ["plan", model, *SMALL, "--max-length", 32, "--steps", 10]
    assert "no speed is known" in run(*plan, "--no-measure")
    made = run_json("lab", "bench", "train", model, "--length", 32, "--steps", 1, *SMALL, "--save")
    assert json.loads((tmp_path / "state" / "edgetune" / "speed.json").read_text()) == made
    found = run_json(*plan)["predicted"]
    assert found["tokens_per_s"] == pytest.approx(made["tokens_per_s"])
    assert found["seconds"] == pytest.approx(10 * made["step_s"])
    assert found["measured"] is True
    assert found["source"] == "saved"
    other = [*plan, "--precision", "exact"]  # than was measured
    assert run_json(*other, "--no-measure")["predicted"] is None
    assert run_json(*other)["predicted"]["source"] == "two steps"


def test_plan_for_a_board(model, tmp_path, monkeypatch):
    """Four cores at 2.4 GHz, 16 FLOP a cycle, of which 40 % are reached; 2 GiB, less a quarter and what it reserves."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    made = run_json("plan", model, "--device", "pi 5", "--rank", 4, "--max-length", 32, "--batch-size", 2)
    assert 1000 << 20 < made["budget_bytes"] < int(0.75 * 1536 * 2**20)
    flops = flops_of(model, [32], rank=4).total / 32
    assert made["predicted"]["speed"]["flops_per_s"] == pytest.approx(4 * 2.4e9 * 16 * 0.4)
    assert made["predicted"]["tokens_per_s"] < 4 * 2.4e9 * 16 * 0.4 / flops * 1.001
    assert "nothing was measured" in run("plan", model, "--device", "pi 5", "--rank", 4)
    assert "choose from" in run("plan", model, "--device", "toaster", code=2)
    assert "memory of the device" in run("plan", model, "--device", "generic x86-64", code=2)
    assert run_json("plan", model, "--device", "generic x86-64", "--memory", "1G")["budget_bytes"] == 1 << 30


@pytest.fixture
def tiny_sizes(monkeypatch):
    sizes = {"q": (64, 256), "down": (256, 512), "head": (320, 256)}  # blocks of all formats divide 256
    for name, value in {"MODELS": {"SmolLM2-135M": sizes}, "TOKENS": 16, "LEAST_SECONDS": 0.0}.items():
        monkeypatch.setattr(kernels, name, value)
    monkeypatch.setattr(cpu.Cpu, "peak", lambda _ops, _precision, backward=False: 1e12 if backward else 1e11)


@pytest.mark.usefixtures("tiny_sizes")
def test_kernels_measures_every_format_and_kernel_set():
    sets = [(isa, "Q4_1") for isa in cpu.isa_names() if cpu.usable(isa)]
    for isa, fmt in [*sets, *((sets[0][0], fmt) for fmt in native.FORMATS)]:
        result = kernels.run(isa, native.PRECISIONS, "SmolLM2-135M", fmt, 1)
        assert len(result["results"]) == 6 * len(native.PRECISIONS)


@pytest.mark.usefixtures("tiny_sizes")
def test_kernels_rates_by_hand():
    result = run_json("lab", "bench", "kernels", "--threads", 1, "--precision", "exact", "--format", "Q8_0")
    found = {(r["op"], r["of"]): r for r in result["results"]}
    flop = {("matmul_forward", "q"): 2 * 16 * 64 * 256, ("matmul_backward", "down"): 2 * 16 * 256 * 512,
            ("head_forward", "head"): 2 * 16 * 320 * 256, ("head_backward", "head"): 4 * 16 * 320 * 256}
    for key, flops in flop.items():
        r = found[key]
        assert r["gflops"] * r["seconds"] == pytest.approx(flops / 1e9), key
        assert r["peak_share"] == pytest.approx(r["gflops"] / (1000 if key[0].endswith("backward") else 100))
    text = run("lab", "bench", "kernels", "--threads", 1, "--format", "Q8_0")
    for words in ("exact", "fast", "int8", "matmul_backward", "down", "16 x 256 x 512"):
        assert words in text


@pytest.mark.usefixtures("tiny_sizes")
def test_kernels_are_compared_with_the_best_that_the_loop_reached(monkeypatch):
    """A machine whose clock rises after the loop was first measured: no share is of the slow moment's rate."""
    rates = iter([1e11] * 2 + [4e11] * 1000)
    monkeypatch.setattr(cpu.Cpu, "peak", lambda _ops, _precision, _backward=False: next(rates))
    result = run_json("lab", "bench", "kernels", "--threads", 1, "--precision", "exact", "--format", "Q8_0")
    assert [(p["forward_gflops"], p["backward_gflops"]) for p in result["peaks"]] == [(400, 400)]
    assert all(r["peak_share"] == pytest.approx(r["gflops"] / 400) for r in result["results"])


def test_peak_is_a_rate():
    """FLOP/s, of every precision both ways."""
    for precision in native.PRECISIONS:
        assert all(1e7 < cpu.Cpu(1).peak(precision, backward) < 1e15 for backward in (False, True))


def test_weights_of_every_format_are_ordinary_numbers():
    for fmt in native.FORMATS:
        out = np.empty((4, 256), np.float32)
        cpu.Cpu(1).dequantize(out, kernels.weight(fmt, 4, 256), fmt)
        assert np.isfinite(out).all()
        assert (np.abs(out[out != 0]) > 1e-30).all()


def test_generate_reads_every_token_once(model, monkeypatch):
    seen = []
    plain = generate.LlamaModel.generate
    monkeypatch.setattr(generate.LlamaModel, "generate", lambda self, ids, **o: (seen.append(list(ids)),
                                                                             plain(self, ids, **o))[1])
    result = run_json("lab", "bench", "generate", model, "--prompt-tokens", 20, "--tokens", 3, "--threads", 1)
    assert [len(ids) for ids in seen] == [1, 20, 21, 22, 23]
    assert all(ids == seen[-1][:len(ids)] for ids in seen)
    assert result["options"] == {"prompt_tokens": 20, "tokens": 3, "seed": 0}
    assert min(result[key] for key in ("prompt_tokens_per_s", "tokens_per_s", "load_s", "peak_rss_mib")) > 0
    assert "generated" in run("lab", "bench", "generate", model, "--prompt-tokens", 4, "--tokens", 1)


@pytest.mark.parametrize("engine", ["native", "llama.cpp"])
def test_generate_many(model, engine, monkeypatch):
    """All tokens of all answers are made, whatever the model would end with."""
    made = []
    take = generate.Batcher._take
    monkeypatch.setattr(generate.Batcher, "_take", lambda self, *args: (made.append(1), take(self, *args))[1])
    result = run_json("lab", "bench", "generate", model, "--engine", engine, "--answers", 20, "--prompts", 5,
                      "--prompt-tokens", 9, "--tokens", 7, "--threads", 1)
    assert (result["engine"], result["options"]["answers"], result["options"]["prompts"]) == (engine, 20, 5)
    assert result["tokens_per_s"] * result["seconds"] == pytest.approx(20 * 7)
    assert len(made) == (20 * 7 + 1 if engine == "llama.cpp" else 0)  # and one that brings the weights into memory
    assert "20 of 7 tokens to 5 prompts of 9" in run(
        "bench", "generate", model, "--engine", engine, "--answers", 20, "--prompts", 5, "--prompt-tokens", 9,
        "--tokens", 7, "--threads", 1)


@pytest.mark.parametrize(("args", "words"), [
    (["generate", "{model}", "--answers", "20", "--prompts", "8"], ["20", "no multiple of the 8 prompts"]),
    (["kernels", "--isa", "mmx"], ["isa", "mmx", "scalar"]),
    (["kernels", "--model", "GPT-5"], ["GPT-5", "Qwen3-0.6B"]),
    (["kernels", "--format", "Q9"], ["Q9", "Q4_K"]),
    (["kernels", "--save", "/nowhere/at/all.json"], ["/nowhere/at"]),
    (["train", "{model}", "--rank", "0"], ["rank is 0"]),
    (["generate", "{model}", "--tokens", "100000"], ["context"]),
])
def test_errors_are_one_sentence(model, args, words):
    text = run("lab", "bench", *(a.format(model=model) for a in args), code=2)
    assert len(text.splitlines()) == 1, text
    assert all(word in text for word in words), text
