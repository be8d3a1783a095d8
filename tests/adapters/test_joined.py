"""Sums of LoRAs, exact and cut, and how alike they are: compared with dense matrices of numpy."""

import json

import numpy as np
import pytest
from commands import run as command
from small_families import OPTIONS, data, small, trained

from edgetune.adapters.fusion import Fusion
from edgetune.adapters.joined import cut, most_similar, similarity, stacked
from edgetune.adapters.lora import Pair
from edgetune.adapters.store import open_adapter, read_run
from edgetune.errors import UsageError
from edgetune.training.trainer import Trainer

SHAPES = {"blk.0.attn_q": (24, 16), "blk.0.ffn_down": (16, 40), "blk.1.attn_q": (24, 16)}


def random_lora(seed, rank=4, names=tuple(SHAPES), like=None):
    rng = np.random.default_rng(seed)
    found = {}
    for name in names:
        n, k = SHAPES[name]
        a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((rank, k), (n, rank)))
        pair = Pair(a, b, 0.5 + seed)
        if like:
            pair = Pair(like[name].a + pair.a / 10, like[name].b + pair.b / 10, pair.scale)
        found[name] = pair
    return found


def dense(lora):
    return {name: lora[name].scale * lora[name].b.astype(np.float64) @ lora[name].a if name in lora
            else np.zeros(shape) for name, shape in SHAPES.items()}


def test_a_stack_is_the_weighted_sum():
    loras = [random_lora(0), random_lora(1, rank=2), random_lora(2, names=("blk.0.attn_q",))]
    weights = (0.5, 2.0, -1.0)
    found = stacked(loras, weights)
    assert {pair.rank for pair in found.values()} == {12}
    parts = [dense(lora) for lora in loras]
    for name, matrix in dense(found).items():
        np.testing.assert_allclose(matrix, sum(w * part[name] for w, part in zip(weights, parts, strict=True)),
                                   atol=1e-4)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_a_cut_is_that_of_a_dense_svd(rank):
    whole = stacked([random_lora(0), random_lora(1)], (1.0, 0.3))
    found = dense(cut(whole, rank))
    for name, matrix in dense(whole).items():
        u, singular, vt = np.linalg.svd(matrix)
        np.testing.assert_allclose(found[name], u[:, :rank] * singular[:rank] @ vt[:rank], atol=1e-4)


def test_similarity_is_the_cosine_of_the_dense_updates():
    one = random_lora(0)
    near = random_lora(1, like=one)
    far = random_lora(2, rank=2)
    other = random_lora(3, names=("blk.1.attn_q",))

    def flat(lora):
        return np.concatenate([matrix.ravel() for matrix in dense(lora).values()])

    for lora in (near, far, other):
        x, y = flat(one), flat(lora)
        assert similarity(one, lora) == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), abs=1e-6)
    assert most_similar({"far": far, "one": one, "other": other, "near": near}) == ("one", "near")
    assert similarity(one, {name: Pair(pair.a, pair.b * 0, 1.0) for name, pair in one.items()}) == 0


@pytest.fixture(scope="module")
def saved(bundle, tmp_path_factory):
    """Two trained adapters."""
    folder = tmp_path_factory.mktemp("saved")
    for seed in (0, 1):
        trained(bundle, small("lora"), lr=0.05, seed=seed).save(folder / f"{seed}")
    return folder


def test_the_command_writes_the_sum(saved, bundle, tmp_path):
    parts = [open_adapter(saved / name).pairs for name in ("0", "1")]
    said = json.loads(command("adapters", "combine", saved / "0", saved / "1", "-o", tmp_path / "whole", "--json"))
    assert (said["rank"], said["similarity"]) == (8, [pytest.approx(similarity(*parts))])
    both = (saved / "0", saved / "1")
    command("adapters", "combine", *both, "-o", tmp_path / "cut", "--rank", 4, "--weight", 1, "--weight", 2)
    truth = cut(stacked(parts, (1.0, 2.0)), 4)
    for expected, name in ((stacked(parts, (0.5, 0.5)), "whole"), (truth, "cut")):
        found = open_adapter(tmp_path / name, bundle.gguf).pairs
        assert found.keys() == expected.keys()
        for projection, pair in found.items():
            other = expected[projection]
            np.testing.assert_allclose(pair.scale * pair.b @ pair.a, other.scale * other.b @ other.a, atol=1e-5)
    for wrong, why in ((both[:1], "1 adapters"), ((*both, "--rank", 8), "the sum has 8"),
                       ((*both, "--weight", 1), "1 times")):
        said = command("adapters", "combine", *wrong, "-o", tmp_path / "out", code=UsageError.exit_code)
        assert why in " ".join(said.split())


def test_weights_are_trained_from_the_sum(saved, bundle, tmp_path):
    """Two numbers; A and B stay."""
    command("adapters", "combine", saved / "0", saved / "1", "-o", tmp_path / "whole")
    assert read_run(tmp_path / "whole")["options"]["family"] == "fusion"
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "on", "completion": "off"}\n' * 3)
    command("train", bundle.path, rows, "-o", tmp_path / "fused", "--start", tmp_path / "whole", "--steps", 3, "--eval",
            "none", "--threads", 1, "--anchors", 0, "--lr", 0.1)
    options = read_run(tmp_path / "fused")["options"]
    assert (options["family"], options["rank"], options["sources"]) == ("fusion", 8, 2)
    before = open_adapter(tmp_path / "whole").pairs
    weights = []
    for name, pair in open_adapter(tmp_path / "fused").pairs.items():
        np.testing.assert_allclose(pair.b * pair.scale, before[name].b * before[name].scale, rtol=1e-5)
        for part in (slice(0, 4), slice(4, 8)):
            ratio = pair.a[part] / before[name].a[part]
            weights.append(float(np.median(ratio)))
            np.testing.assert_allclose(ratio, weights[-1], rtol=1e-3)
    first, second = set(np.round(weights[::2], 4)), set(np.round(weights[1::2], 4))
    assert len(first) == len(second) == 1, "one weight an adapter"
    assert first != second
    assert 1.0 not in first | second


def test_a_trained_weight_lowers_the_loss(saved, bundle, tmp_path):
    """Of the rows that one of the adapters learned."""
    command("adapters", "combine", saved / "0", saved / "1", "-o", tmp_path / "whole")
    trainer = Trainer(bundle, family=Fusion(rank=8, sources=2), steps=20, **{**OPTIONS, "lr": 0.1})
    trainer.load(tmp_path / "whole")
    trainer.add_examples(data(6).examples)
    before = trainer.loss(trainer.examples)[0]
    trainer.train()
    assert trainer.loss(trainer.examples)[0] < before
    assert trainer.record()["parameters"] == 2


def test_a_training_continues_from_a_cut_sum(saved, bundle, tmp_path):
    command("adapters", "combine", saved / "0", saved / "1", "-o", tmp_path / "cut", "--rank", 4)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "on", "completion": "off"}\n' * 3)
    command("train", bundle.path, rows, "-o", tmp_path / "out", "--start", tmp_path / "cut", "--steps", 1, "--eval",
            "none", "--threads", 1, "--anchors", 0, "--lr", 1e-9)
    options = read_run(tmp_path / "out")["options"]
    assert (options["family"], options["rank"], options["alpha"]) == ("lora", 4, 4.0)
    before = open_adapter(tmp_path / "cut").pairs
    for name, pair in open_adapter(tmp_path / "out").pairs.items():
        np.testing.assert_allclose(pair.scale * pair.b @ pair.a, before[name].b @ before[name].a, atol=1e-5)
