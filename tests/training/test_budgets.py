"""A run of an encoder keeps to its budget: the heads and the answers afterwards too."""

import json
import tracemalloc

import numpy as np
import pytest
from encoders import WORDS, tiny_bert, write_encoder
from json_lines import write_lines
from peaks import peak_of

from edgetune.formats.gguf import open_gguf
from edgetune.machine import device
from edgetune.objectives.labelling import HeadTargets
from edgetune.serving.encoder import Encoder
from edgetune.training import logistic

MIB = 1 << 20
ROWS = [{"prompt": f"turn the {letter} light {word}", "completion": f"{word} {letter}"}
        for word in ("on", "off") for letter in "abcdefghijklmnopqrstuvwxyz"] * 4

@pytest.mark.dev
@pytest.mark.parametrize("evaluated", [True, False], ids=["answers", "no answers"])
def test_a_run_takes_no_more_than_its_budget(tmp_path, evaluated):
    model = write_encoder(tmp_path / "tiny.gguf", tiny_bert(), WORDS)
    rows = write_lines(tmp_path / "rows.jsonl", ROWS)
    out = tmp_path / "out"
    held = [rows] if evaluated else ["none", "--no-answers"]
    command = ["train", model, rows, "--eval", *held, "-o", out, "--steps", 2, "--threads", 1]
    code, _, said = peak_of([*command, "--memory", "10M"])
    assert (code, out.exists()) == (2, False), said
    least = int(said.split("give it --memory ")[1].split("M")[0])
    code, peak, said = peak_of([*command, "--memory", f"{least}M"])
    assert code in (0, 3), said
    assert peak <= least * MIB, f"{peak / MIB:.1f} MiB of {least}"
    record = json.loads((out / "run.json").read_text())
    assert peak <= record["plan"]["peak_mib"] * MIB + MIB or evaluated  # libraries are counted roughly


@pytest.mark.parametrize(("rows", "k"), [(1500, 200), (200, 1000)], ids=["many rows", "many labels"])
def test_a_fit_takes_what_the_plan_counts(rows, k, monkeypatch):
    monkeypatch.setattr(logistic, "MOST_ITERATIONS", 10)
    rng = np.random.default_rng(rows)
    vectors = rng.standard_normal((rows, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    classes = rng.integers(0, k, rows).astype(np.int32)
    tracemalloc.start()
    try:
        logistic.fit(vectors, HeadTargets.of_all(classes), k)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= logistic.fit_bytes(64, k)


def test_a_short_text_takes_little_of_the_memory_for_long_ones(tmp_path):
    """Where the kernel has huge pages too, which would hold activations that nothing computes."""
    encoder = Encoder(open_gguf(write_encoder(tmp_path / "tiny.gguf", tiny_bert(), WORDS)), threads=1, at_once=1 << 14)
    arena = encoder._alone.arena.nbytes
    assert arena > 40 * MIB
    before = device.rss()
    encoder.vectors([encoder.read("turn on the light").encoded.ids])
    assert device.rss() - before < arena / 8


def test_weights_that_have_no_room_are_read_at_every_use(tmp_path):
    model = write_encoder(tmp_path / "wide.gguf", tiny_bert(width=768), WORDS)
    weights = model.stat().st_size
    assert weights > 36 * MIB
    vectors = []
    taken = []
    for budget in (0, device.rss() + 2 * weights):
        encoder = Encoder(open_gguf(model), threads=1, budget=budget)
        before = device.rss()
        vectors.append(encoder.vectors([encoder.read("turn on the light").encoded.ids]))
        taken.append(device.rss() - before)
    assert np.array_equal(*vectors)
    assert taken[0] < weights / 3
    assert taken[1] > weights / 2
