"""Sizes against the disk, the knapsack against all choices, the predicted KL against transformers' logits."""

import itertools

import numpy as np
import pytest
from sometimes import mostly_slow

pytest.importorskip("torch")
pytest.importorskip("transformers")

from families import FAMILIES, hf_logits, log_p, make_family

from edgetune.compress.quantize import assign
from edgetune.compress.quantize import sensitivity as importance
from edgetune.compress.quantize import write as quantize
from edgetune.compress.source import floats
from edgetune.compress.source import huggingface as hf
from edgetune.errors import EdgetuneError, Interrupted
from edgetune.formats.gguf import open_gguf

WINDOWS = np.random.default_rng(0).integers(0, 400, (16, 64)).astype(np.int32)


def curvature_of(model, windows=WINDOWS):
    return importance.curvature(model, windows, importance.moments(model, windows))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path, _ = make_family("llama", tmp_path_factory.mktemp("family"), hidden_size=128, intermediate_size=256,
                          num_hidden_layers=2)
    model = floats.read(open_gguf(path))
    return floats.Floats(model.architecture, model.metadata | {"general.alignment": 64},
                         model.types | {"general.alignment": "u32"}, model.tensors)


@pytest.fixture(scope="module")
def costs(model):
    return assign.measure(model, curvature_of(model))


@pytest.mark.dev
@pytest.mark.parametrize("family", mostly_slow(FAMILIES, ["llama"]))
def test_the_predicted_kl_is_what_transformers_measures(family, tmp_path):
    path, _ = make_family(family, tmp_path)
    model = floats.read(open_gguf(path))
    curvature = curvature_of(model)
    rng = np.random.default_rng(1)
    before = [log_p(hf_logits(hf.to_torch(model), window.tolist())) for window in WINDOWS[:6]]
    ratios = []
    for name in ("token_embd.weight", "blk.0.attn_q.weight", "blk.1.attn_v.weight", "blk.2.ffn_down.weight",
                 importance.head_of(model)):
        array = model.tensors[name]
        error = (0.03 * array.std() * rng.standard_normal(array.shape)).astype(np.float32)
        changed = hf.to_torch(model.with_keys(model.tensors | {name: array + error}))
        measured = np.mean([(np.exp(p) * (p - log_p(hf_logits(changed, window.tolist())))).sum(1).mean()
                            for window, p in zip(WINDOWS, before, strict=False)])
        predicted = curvature.cost(name, error, np.arange(len(array))).sum()
        ratios.append(predicted / measured)
    assert 0.25 < min(ratios) <= max(ratios) < 4  # positions do have something in common
    assert 0.6 < np.exp(np.log(ratios).mean()) < 1.6


def test_the_knapsack_is_the_best_of_all_choices():
    rng = np.random.default_rng(2)
    for _ in range(20):
        sizes = rng.integers(1, 40, (5, 4)).tolist()
        costs = rng.random((5, 4)).tolist()
        room = int(rng.integers(sum(map(min, sizes)), 150))
        picks = assign.knapsack(sizes, costs, room)
        assert sum(row[pick] for row, pick in zip(sizes, picks, strict=True)) <= room
        best = min(sum(row[pick] for row, pick in zip(costs, each, strict=True))
                   for each in itertools.product(range(4), repeat=5)
                   if sum(row[pick] for row, pick in zip(sizes, each, strict=True)) <= room)
        assert sum(row[pick] for row, pick in zip(costs, picks, strict=True)) == pytest.approx(best)


@pytest.mark.slow
def test_the_file_is_as_large_as_said_and_larger_ones_cost_less(model, costs, tmp_path):
    whole = sum(2 * array.size for array in model.tensors.values())
    kl = []
    for share in (0.2, 0.25, 0.33, 0.5):
        chosen = assign.choose(model, int(share * whole) + 12000, costs)
        path = tmp_path / f"{share}.gguf"
        done = quantize.write(path, model, chosen.types)
        assert path.stat().st_size == done.bytes == chosen.bytes <= int(share * whole) + 12000
        assert sum(choice.kl for choice in chosen.choices) == pytest.approx(chosen.kl)
        kl.append(chosen.kl)
    assert kl == sorted(kl, reverse=True)
    assert len({choice.type for choice in chosen.choices}) > 1
    assert chosen == assign.choose(model, int(0.5 * whole) + 12000, costs)


@pytest.mark.dev
def test_a_size_that_cannot_be_met_names_the_least(model, costs):
    with pytest.raises(EdgetuneError, match=r"cannot become 9999 bytes, at least (\d+) are needed; .*--vocab") as error:
        assign.choose(model, 9999, costs)
    least = int(error.value.what.split("at least ")[1].split()[0])
    assert assign.choose(model, least, costs).bytes == least
    with pytest.raises(EdgetuneError, match="at least"):
        assign.choose(model, least - 1, costs)


def test_rows_rule_formats_out(tmp_path):
    path, _ = make_family("qwen2", tmp_path, hidden_size=96, intermediate_size=256, num_attention_heads=6,
                          num_key_value_heads=3, num_hidden_layers=1)
    costs = assign.measure(floats.read(open_gguf(path)), curvature_of(floats.read(open_gguf(path)), WINDOWS[:2]))
    assert set(costs.formats["blk.0.attn_q.weight"]) == {"Q8_0", "Q5_1", "Q5_0", "Q4_1", "IQ4_NL"}
    assert {"Q2_0", "Q2_K", "Q6_K"} < set(costs.formats["blk.0.ffn_down.weight"])
    assert all(price > 0 for row in costs.kl.values() for price in row)


def test_it_stops_when_asked(model):
    with pytest.raises(Interrupted):
        assign.measure(model, curvature_of(model, WINDOWS[:1]), should_stop=lambda: True)
