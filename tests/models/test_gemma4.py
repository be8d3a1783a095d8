"""What blocks of different sizes, lent keys, embeddings of each block and capped logits add to a decoder: gradients
against differences of losses, forests, streaming, refusals. transformers 5 is compared with by `make lab
NAME=families5`.
"""

from dataclasses import replace

import numpy as np
import pytest
from decoder_cases import branching_examples, make_decoder, random_example, random_pair
from durable import go, stop
from families import logits_of
from random_adapters import distance
from small_families import trained
from tiny import write_tiny
from variants import variant

from edgetune.adapters.base import Artifact
from edgetune.adapters.low_rank import LoraFamily
from edgetune.adapters.merge import merge
from edgetune.adapters.store import save_gguf
from edgetune.data.packing import collate
from edgetune.errors import EdgetuneError, UsageError
from edgetune.formats.bundle import open_bundle
from edgetune.formats.gguf import check_model, open_gguf
from edgetune.formats.shape import read_shape
from edgetune.models.decoder import Model
from edgetune.models.linear import RunShape
from edgetune.objectives.sft import Sft
from edgetune.serving.llama import LlamaModel
from edgetune.training.passes import Gradient

STEP = 1e-2
FORMS = {"E2B": {}, "31B": {"keyed": True, "shared": 0, "d_block": 0}}


def opened(path, kept=1, max_tokens=180, blocks=None):
    """A decoder with a strong random adapter of all projections, and its pairs."""
    model = Model(open_gguf(path))
    structure = model.structure
    blocks = blocks or range(model.shape.n_layer)
    run = RunShape(max_tokens=max_tokens, max_length=64, family=LoraFamily(rank=4, alpha=3.0),
                   targets=(*structure.targets(), *structure.named_targets()), blocks=blocks,
                   kept=min(kept, model.shape.n_layer - blocks[0]),
                   threads=1, precision="exact")
    decoder = make_decoder(model, run)
    rng = np.random.default_rng(3)
    pairs = {key: random_pair(rng, pair.a.shape, pair.b.shape) for key, pair in decoder.adapter.adapted.items()}
    decoder.adapter.load(Artifact(pairs), "pairs")
    return decoder, pairs


def gradient(decoder, batch, a):
    decoder.arena.flat("dlora").fill(0.0)
    decoder.forward(batch, keep=True)
    decoder.backward(batch, a)
    return decoder.arena.flat("dlora").copy()


def slope(decoder, batch, a, direction):
    """-sum a log p, derived along a direction of all parameters, by a central difference of fourth order."""
    flat = decoder.arena.flat("lora")
    start = flat.copy()
    found = []
    for times in (-2, -1, 1, 2):
        flat[:] = start + times * STEP * direction
        found.append(-(a * decoder.score(batch).astype(np.float64)).sum())
    flat[:] = start
    return (found[0] - 8 * found[1] + 8 * found[2] - found[3]) / (12 * STEP)


def documents(n_vocab):
    rng = np.random.default_rng(4)
    return [random_example(rng, n, n_vocab) for n in (40, 1, 33)]


@pytest.mark.dev
@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_the_slopes_of_the_loss(form, tmp_path):
    """Of each projection, of blocks that lend keys and of those that take them, whichever blocks are computed again."""
    decoder, _ = opened(write_tiny(tmp_path / "m.gguf", "gemma4", **FORMS[form]))
    batch = collate(documents(decoder.shape.n_vocab))
    a = np.random.default_rng(5).standard_normal(batch.supervised.size).astype(np.float32)
    found = gradient(decoder, batch, a)
    flat = decoder.arena.flat("lora")
    rng = np.random.default_rng(6)
    for key, pair in decoder.adapter.adapted.items():
        direction = np.zeros_like(flat)
        for part in (pair.a, pair.b):
            begin = (part.__array_interface__["data"][0] - flat.__array_interface__["data"][0]) // 4
            draw = rng.standard_normal(part.size).astype(np.float32)
            direction[begin:begin + part.size] = draw / np.linalg.norm(draw)
        want = slope(decoder, batch, a, direction)
        assert found @ direction == pytest.approx(want, rel=2e-2, abs=2e-2), key
    all_kept, _ = opened(decoder.model.gguf.path, kept=decoder.shape.n_layer)
    assert np.array_equal(gradient(all_kept, batch, a), found)


def test_choices_of_capped_logits_have_the_slopes_of_the_loss(tmp_path):
    """At another temperature than 1, too. The cap is so low that it decides."""
    decoder, _ = opened(write_tiny(tmp_path / "m.gguf", "gemma4", cap=1.5))
    batch = collate(documents(decoder.shape.n_vocab))
    rng = np.random.default_rng(7)
    n = batch.supervised.size
    batch = replace(batch, choices=rng.integers(0, decoder.shape.n_vocab, (n, 3)).astype(np.int32))
    a = rng.standard_normal((n, 4)).astype(np.float32)
    for temperature in (1.0, 2.5):
        decoder.temperature = temperature
        found = gradient(decoder, batch, a)
        direction = found / np.linalg.norm(found)
        assert found @ direction == pytest.approx(slope(decoder, batch, a, direction), rel=5e-3)


def summed(decoder, rows):
    """The gradient of rows in one batch."""
    decoder.arena.flat("dlora").fill(0.0)
    Gradient(decoder, Sft(), 1.0).add(collate(rows))
    return decoder.arena.flat("dlora").copy()


@pytest.mark.parametrize("form", FORMS)
def test_a_forest_equals_its_rows_alone(form, tmp_path):
    decoder, _ = opened(write_tiny(tmp_path / "m.gguf", "gemma4", **FORMS[form]))
    rows = branching_examples(decoder.shape.n_vocab)
    assert collate(rows).computed < 0.6 * sum(row.tokens.size for row in rows)
    assert distance(summed(decoder, rows), np.sum([summed(decoder, [row]) for row in rows], axis=0)) < 1e-5


def test_later_blocks_alone_have_the_same_gradients(tmp_path):
    """Where blocks that lend their keys are below the trained ones, and where they are the lowest of them."""
    path = write_tiny(tmp_path / "m.gguf", "gemma4")
    whole, pairs = opened(path)
    rows = documents(whole.shape.n_vocab)
    for first in (2, 3, 4, 5):
        upper = {key: pair for key, pair in pairs.items() if int(key.split(".")[1]) >= first}
        lower = {key: replace(pair, b=0 * pair.b) for key, pair in pairs.items() if key not in upper}
        whole.adapter.load(Artifact(upper | lower), "pairs")
        some, _ = opened(path, blocks=range(first, 6))
        some.adapter.load(Artifact(upper), "pairs")
        summed(whole, rows)
        summed(some, rows)
        for key in upper:
            for name in ("da", "db"):
                ours, all_blocks = (getattr(each.adapter.adapted[key], name) for each in (some, whole))
                assert np.array_equal(ours, all_blocks), key


@pytest.mark.parametrize("form", FORMS)
def test_an_adapter_does_what_it_does_in_llama_cpp(form, tmp_path):
    path = write_tiny(tmp_path / "m.gguf", "gemma4", **FORMS[form])
    decoder, pairs = opened(path)
    small = {key: replace(pair, a=np.float32(pair.a), b=np.float32(0.2 * pair.b)) for key, pair in pairs.items()}
    decoder.adapter.load(Artifact(small), "pairs")
    save_gguf(tmp_path / "a.gguf", small, open_gguf(path))
    example = random_example(np.random.default_rng(8), 50, decoder.shape.n_vocab)
    ours = decoder.logits(collate([example]))
    theirs = logits_of(path, example.tokens.tolist(), tmp_path / "a.gguf")
    assert distance(ours, theirs) < 1e-3
    assert distance(theirs, logits_of(path, example.tokens.tolist())) > 0.05


EMBEDDINGS = "q_proj,down_proj,per_layer_input_gate,per_layer_projection"


def test_embeddings_of_blocks_are_trained_where_they_are_named(tmp_path):
    """Their gate needs one more activation, which no other adapter keeps; what was trained is served and merged."""
    path = write_tiny(tmp_path / "m.gguf", "gemma4")
    usual, named = (trained(path, LoraFamily(rank=4), lr=0.05, targets=targets) for targets in ("all", EMBEDDINGS))
    assert {name.split(".", 2)[2] for name in usual.pairs}.isdisjoint({"inp_gate", "proj"})
    assert {name.split(".", 2)[2] for name in named.pairs} == {"attn_q", "ffn_down", "inp_gate", "proj"}
    assert ("block_taken" in usual.arena.buffers, "block_taken" in named.arena.buffers) == (False, True)
    named.save(tmp_path / "out")
    example = random_example(np.random.default_rng(8), 24, named.model.shape.n_vocab)
    tokens = example.tokens.tolist()
    ours = named.decoder.logits(collate([example]))
    assert distance(logits_of(path, tokens, tmp_path / "out" / "adapter.gguf"), ours) < 2e-3
    merge(open_gguf(path), named.pairs, tmp_path / "merged.gguf", "F32")
    assert distance(logits_of(tmp_path / "merged.gguf", tokens), ours) < 2e-3
    assert distance(logits_of(path, tokens), ours) > 0.01


@pytest.mark.dev
@pytest.mark.parametrize("targets", ["all", EMBEDDINGS])
@pytest.mark.parametrize("precision", ["exact", "fast", "int8"])
def test_memory_changes_no_bit(precision, targets, tmp_path):
    """Weights streamed, and where inputs of blocks are float32 anyway, blocks computed again."""
    path = write_tiny(tmp_path / "m.gguf", "gemma4", formats="Q8_0")
    found = {}
    for recompute in ("none", "block"):
        for weights in ("resident", "streamed"):
            trainer = trained(path, LoraFamily(rank=4), recompute=recompute, weights=weights, precision=precision,
                              targets=targets)
            found[recompute, weights] = trainer.arena.flat("lora").tobytes()
    assert found["none", "resident"] == found["none", "streamed"]
    assert found["block", "resident"] == found["block", "streamed"]
    assert precision != "exact" or len(set(found.values())) == 1


def test_stopped_it_resumes_to_the_same_bytes(tmp_path):
    bundle = open_bundle(write_tiny(tmp_path / "m.gguf", "gemma4", formats="Q8_0"))
    undisturbed = go(bundle, tmp_path / "undisturbed")
    stop(bundle, tmp_path / "out", 90)
    assert go(bundle, tmp_path / "out", resume=True) == undisturbed


def test_the_table_of_embeddings_is_read_by_rows(tmp_path):
    """Its bytes are planned for, and read, as those of a batch's tokens alone."""
    path = write_tiny(tmp_path / "m.gguf", "gemma4", formats="Q8_0", d_block=256, n_vocab=4000)
    trainer = trained(path, LoraFamily(rank=2))
    table = trainer.model.gguf.tensors["per_layer_token_embd.weight"]
    assert table.data.nbytes > 6_000_000
    assert trainer.plan.sizes.total < trainer.model.gguf.data.nbytes - table.data.nbytes + 100_000
    assert trainer.arena.buffers["block_rows"].nbytes < 0.05 * table.data.nbytes


@pytest.mark.parametrize(("keys", "said"), [
    ({"expert_count": 8, "expert_used_count": 2}, "take a dense model"),
    ({"attention.shared_kv_layers": 3}, "a block with a window and one without"),
    ({"attention.shared_kv_layers": 5}, "allowed are 0 to 4"),
    ({"attention.key_length_swa": 18}, "value_length_swa is 16, allowed is 18"),
    ({"attention.sliding_window_pattern": [True] * 5}, "has 5 values, it must have 6"),
    ({"feed_forward_length": [128] * 5}, "has 5 values, it must have 6"),
    ({"attention.head_count_kv": [2, 2, 2, 2, 1, 2]}, "takes"),
    ({"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}, "rotary"),
    ({"embedding_length_per_layer_input": None}, "embedding_length_per_layer_input"),
    ({"final_logit_softcapping": -1.0}, "softcapping"),
])
def test_other_forms_are_refused(keys, said, tmp_path):
    base = open_gguf(write_tiny(tmp_path / "m.gguf", "gemma4"))
    path = variant(tmp_path / "x.gguf", base, {f"gemma4.{key}": value for key, value in keys.items()})
    with pytest.raises(EdgetuneError, match=said):
        check_and_read(path)


def check_and_read(path):
    gguf = open_gguf(path)
    check_model(gguf)
    read_shape(gguf)


def test_virtual_tokens_are_refused(tmp_path):
    model = Model(open_gguf(write_tiny(tmp_path / "m.gguf", "gemma4")))
    with pytest.raises(UsageError, match="virtual tokens"):
        model.structure.parts("keys", 0)


def test_keys_that_a_block_does_not_use_may_be_in_the_file(tmp_path):
    """As in files made from checkpoints that have them."""
    path = write_tiny(tmp_path / "m.gguf", "gemma4")
    base = open_gguf(path)
    rng = np.random.default_rng(9)
    unused = {f"blk.4.attn_{name}.weight": rng.standard_normal((32, 64)).astype(np.float32) for name in "kv"}
    unused["blk.4.attn_k_norm.weight"] = np.ones(16, np.float32)
    other = variant(tmp_path / "x.gguf", base, tensors=unused)
    tokens = rng.integers(10, 400, 30).tolist()
    assert np.array_equal(logits_of(path, tokens), logits_of(other, tokens))
    batch = collate([random_example(rng, 30, 416)])
    ours = [opened(each)[0].logits(batch) for each in (path, other)]
    assert np.array_equal(*ours)


def test_a_vocabulary_of_gemma_4_is_read(tmp_path):
    """Its tokens are characters, a space a mark, and bytes where there is no character."""
    base = open_gguf(write_tiny(tmp_path / "m.gguf", "gemma4"))
    letters = [chr(code) for code in range(0x21, 0x7F)] + ["\u2581"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    merges = ["\u2581 t", "h e", "\u2581t he"]
    merged = [merge.replace(" ", "") for merge in merges]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *bytes_, *letters, *merged]
    kinds = [3] * 3 + [6] * 256 + [1] * (len(tokens) - 259)
    spare = 416 - len(tokens)
    keys = {"tokenizer.ggml.model": "gemma4", "tokenizer.ggml.pre": None, "tokenizer.ggml.merges": merges,
            "tokenizer.ggml.tokens": tokens + [f"<unused{i}>" for i in range(spare)],
            "tokenizer.ggml.token_type": kinds + [5] * spare}
    path = variant(tmp_path / "x.gguf", base, keys)
    check_model(open_gguf(path))
    with LlamaModel(path) as served:
        ids = served.tokenizer.encode("the the \u00e9", special=False)
        assert [tokens[i] for i in ids] == ["t", "he", "\u2581the", "\u2581", "<0xC3>", "<0xA9>"]
        assert served.tokenizer.decode(ids) == "the the \u00e9"
    for key in ("tokenizer.ggml.merges", "tokenizer.ggml.tokens"):
        with pytest.raises(EdgetuneError, match=key):
            check_model(open_gguf(variant(tmp_path / "y.gguf", base, keys | {key: None})))
