"""The report: values are in it, other people's text is escaped, nothing outside is named, the bytes are the same."""

import io
import math
import random
import re

import numpy as np
import pytest
from report_pages import figures, parsed, read_back
from rich.console import Console
from sometimes import mostly_slow
from tiny import write_tiny

from edgetune.compress import report
from edgetune.formats.gguf import open_gguf

EVIL = '<script>alert("x")</script>&amp;'


def smollm2_facts():
    """Made up, with the sizes of SmolLM2-135M: 30 blocks, 211 matrices."""
    rng = random.Random(0)
    shapes = {"attn_q": 576 * 576, "attn_k": 192 * 576, "attn_v": 192 * 576, "attn_output": 576 * 576,
              "ffn_gate": 1536 * 576, "ffn_up": 1536 * 576, "ffn_down": 1536 * 576}
    bits = {"Q2_0": 2.25, "Q3_K": 3.4375, "IQ4_NL": 4.5, "Q4_1": 5.0, "Q5_1": 6.0, "Q8_0": 8.5}
    tensors = [{"name": "token_embd.weight", "type": "Q4_1", "bytes": 17694720, "sensitivity": 4.1e-3, "kl": 0.0041}]
    for block in range(30):
        for kind, count in shapes.items():
            worth = math.exp(rng.gauss(-9 + 2.5 * (block in (0, 1, 29)) + 1.2 * (kind in ("attn_v", "ffn_down")), 0.5))
            chosen = list(bits)[min(5, max(0, int(6.4 + 0.62 * math.log(worth))))]
            tensors.append({"name": f"blk.{block}.{kind}.weight", "type": chosen, "sensitivity": worth, "kl": worth / 3,
                            "bytes": int(count * bits[chosen] / 8)})
    return {
        "source": {"name": "HuggingFaceTB/SmolLM2-135M-Instruct", "kind": "hub", "revision": "12fd25f77366fa6b3b4b",
                   "licence": "apache-2.0", "sha256": {"model.safetensors": "9f1c" * 16}, "quantized": False},
        "options": {"calibrate": "/home/me/wikitext2_train.txt", "vocab": 32768, "drop_blocks": 4, "width": 1.0,
                    "target_size": "75M", "device": "raspberry-pi-zero-2w", "seed": 0, "type": ""},
        "steps": [
            {"name": "trim", "tokens_before": 49152, "tokens_after": 32768, "weights": 125_077_824,
             "cost": {"perplexity": 17.31, "kl": 0.0021, "top1": 0.991, "tokens": 4096}},
            {"name": "drop_blocks", "dropped": [22, 24, 25, 26], "influence": [0.051, 0.043, 0.048, 0.056],
             "weights": 110_917_440, "cost": {"perplexity": 41.8, "kl": 0.912, "top1": 0.614, "tokens": 4096}},
            {"name": "heal", "steps": 400, "rows": 1600, "loss_first": 0.931, "loss_last": 0.284, "seconds": 1123.4,
             "weights": 110_917_440, "cost": {"perplexity": 22.6, "kl": 0.301, "top1": 0.756, "tokens": 4096}},
            {"name": "quantize", "types": {"Q3_K": 41, "IQ4_NL": 98, "Q4_1": 31, "Q5_1": 12, "Q8_0": 1},
             "importance": True, "target_bytes": 75_000_000, "weights": 110_917_440, "cost": None}],
        "parts": [
            {"part": "embedding", "weights": 18_874_368, "bytes": 11_796_480, "bits_per_weight": 5.0},
            {"part": "attention", "weights": 22_999_040, "bytes": 13_225_000, "bits_per_weight": 4.6},
            {"part": "mlp", "weights": 69_009_408, "bytes": 46_650_000, "bits_per_weight": 5.41},
            {"part": "norms", "weights": 30_528, "bytes": 122_112, "bits_per_weight": 32.0},
            {"part": "metadata", "weights": 0, "bytes": 1_290_880, "bits_per_weight": None}],
        "cost": {"perplexity": 24.12, "source_perplexity": 17.25, "kl": 0.3713, "kl_error": 0.0082, "top1": 0.728,
                 "tokens": 4096},
        "tensors": tensors,
        "healing": [{"step": step, "kl": 0.29 + 0.62 * math.exp(-step / 60), "perplexity": 22 + math.exp(3 - step / 70)}
                    for step in range(0, 401, 20)],
        "device": {"name": "Raspberry Pi Zero 2 W", "memory_bytes": 512 << 20, "budget_bytes": 252 << 20,
                   "predicted_peak_bytes": 243 << 20, "predicted_tokens_per_second": 18.6, "file_bytes": 73_084_472,
                   "traded": ["512 tokens are computed at a time, not 1024, for the same batch: 438 -> 317 MiB"]},
        "answers": [{"prompt": f"{i + 1}. What is the capital of France?", "before": "The capital of France is Paris.",
                     "after": "The capital of France is Paris. It is known for\n- the Eiffel Tower\n- the Louvre"}
                    for i in range(9)] + [{"prompt": EVIL, "before": "/etc/passwd", "after": EVIL + "x" * 300}]}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    report.write(path, smollm2_facts())
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    return path


def test_what_was_measured_is_there(file):
    text = " ".join(" ".join(parsed(file)[0].itertext()).split())
    for said in ("SmolLM2-135M-Instruct, compressed", "licence apache-2.0", "73.1 MB", "Q8_0",
                 "110.9 M weights, 5.18 bits each",
                 "24.12 the source has 17.25", "0.3713 ± 0.0082", "72.8% of 4,096 tokens", "dropped 22, 24, 25, 26",
                 "0.9120", "61.4%", "243 MiB", "19 tokens/s", "All 211 tensors", "blk.29.ffn_down.weight",
                 "drop-blocks 4", "tokens before 49,152", "the Eiffel Tower"):
        assert said in text, said
    assert " distill " in text
    assert "heal" not in text
    assert text.index("0.3713 72.8%") > text.index("quantize")  # the last step's cost is the file's


def test_other_peoples_text_is_text(file):
    """And nothing outside is asked for, which `parsed` checks."""
    _, text = parsed(file)
    assert EVIL in text
    assert "/etc/passwd" in text  # an answer, not a path of ours


def test_distillation_is_drawn(file):
    drawn = figures(parsed(file)[0])
    assert drawn.keys() == {"mean KL to the source", "perplexity"}
    wanted = [(row["step"], row["kl"]) for row in smollm2_facts()["healing"]]
    assert read_back(drawn["mean KL to the source"]) == pytest.approx(np.array(wanted), rel=0.02, abs=0.02)


def test_the_same_facts_give_the_same_bytes(file, tmp_path):
    facts = smollm2_facts()
    facts["options"]["calibrate"] = "/elsewhere/wikitext2_train.txt"
    facts["source"] |= {"quantized": np.False_}
    report.write(tmp_path / "report.html", dict(reversed(facts.items())))
    assert (tmp_path / "report.html").read_text() == file.read_text()
    assert "elsewhere" not in file.read_text()


@pytest.mark.parametrize("absent", mostly_slow([
    ["steps"], ["parts", "answers"], ["tensors", "device"], ["cost", "healing"], ["source", "options"],
    list(smollm2_facts())], [["steps"], ["tensors", "device"]]), ids=" ".join)
def test_what_is_absent_is_left_out(absent, tmp_path):
    facts = smollm2_facts() | {"tensors": smollm2_facts()["tensors"][:3]}
    facts = {name: value for name, value in facts.items() if name not in absent}
    report.write(tmp_path / "report.html", facts)
    page = (tmp_path / "report.html").read_text()
    parsed(tmp_path / "report.html")
    heads = {"answers": "Answers before", "device": "Training on", "steps": "<h2>Steps", "parts": "Parts of the file",
             "options": "<summary>Options", "tensors": "tensors</summary>", "healing": "<h2>Distillation"}
    for name, head in heads.items():
        assert (head in page) == (name not in absent), name
    assert "None" not in page
    report.lines(facts)


def test_values_that_are_not_known(tmp_path):
    facts = smollm2_facts()
    facts["device"] |= {"predicted_tokens_per_second": None, "traded": []}
    facts["cost"] |= {"kl": float("nan"), "kl_error": None, "top1": None}
    facts["healing"] = [{"step": 0, "kl": 1.0, "perplexity": None}, {"step": 10, "kl": 0.5}]
    facts["tensors"] = [{"name": "blk.0.attn_q.weight", "type": "F32", "bytes": 5, "sensitivity": 0.0, "kl": None},
                        {"name": "blk.0.attn_k.weight", "type": "NEW_1", "bytes": 5, "sensitivity": 1e-5, "kl": None}]
    for step in facts["steps"]:
        step["cost"] = None
    report.write(tmp_path / "report.html", facts)
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r"\bnan\b|None", page)
    assert "NEW_1" in page


def test_lines_for_a_terminal():
    facts = smollm2_facts()
    facts["steps"][0]["name"] = "[red]trim"
    console = Console(width=100, file=io.StringIO())
    for line in report.lines(facts):
        console.print(line, highlight=False)
    text = console.file.getvalue()
    for said in ("[red]trim", "110.9 M", "41.80", "0.9120", "61.4%", "metadata", "5.18 bits each",
                 "perplexity: 24.12, the source has 17.25",
                 "to train on Raspberry Pi Zero 2 W: 243 MiB, of 252 MiB, about 19 tokens/s"):
        assert said in text, text


@pytest.mark.parametrize(("architecture", "tied"), [("llama", True), ("qwen2", False), ("gemma3", True)])
def test_parts_are_the_whole_file(tmp_path, architecture, tied):
    path = write_tiny(tmp_path / "tiny.gguf", architecture, "Q8_0", tied=tied)
    gguf = open_gguf(path)
    found = {row["part"]: row for row in report.parts(gguf)}
    assert sum(row["bytes"] for row in found.values()) == path.stat().st_size
    assert sum(row["weights"] for row in found.values()) == sum(math.prod(t.shape) for t in gguf.tensors.values())
    assert ("output" in found) != tied
    assert found["embedding"] == {"part": "embedding", "weights": 416 * 64, "bytes": 416 * 64 * 34 // 32,
                                  "bits_per_weight": 8.5}
    assert found["mlp"]["weights"] == 2 * 3 * 64 * 128
    assert found["norms"]["bits_per_weight"] == 32
    assert found["metadata"]["bits_per_weight"] is None
