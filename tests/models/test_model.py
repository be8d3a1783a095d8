"""The decoder against transformers, PEFT and autograd: logits, log-probabilities, and gradients of A and B."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from decoder_cases import (
    ALL,
    LIMIT,
    SCALE,
    Case,
    branching_examples,
    check,
    compare,
    distance,
    in_parts,
    keeping,
    make_case,
    pass_once,
    train_once,
    truth,
)
from families import ALL_FAMILIES, ROPES_OF, VARIANTS, hf_logits, logits_of
from sometimes import SOME_FORMATS, mostly_slow

from edgetune.adapters.base import Artifact
from edgetune.adapters.lora import Pair
from edgetune.data.packing import Example, collate
from edgetune.data.trees import Tree, micro_batches
from edgetune.errors import FormatError, UnsupportedError
from edgetune.formats.gguf import FORMATS
from edgetune.models.stream import HEAD_TOKENS
from edgetune.objectives.sft import Sft
from edgetune.training.passes import Gradient, measure
from edgetune.training.trainer import Trainer

OPTIONS = {"steps": 1, "batch_size": 2, "max_length": HEAD_TOKENS, "threads": 2}


@pytest.mark.dev
@pytest.mark.parametrize(("name", "rope"), [(name, rope) for name in ALL_FAMILIES for rope in ROPES_OF[name]])
def test_gradients_equal_autograd_in_every_family(name, rope, tmp_path):
    """Where activations of one block are kept, of some, and of all."""
    check(make_case(name, tmp_path, rope=rope), 2, 9)


@pytest.mark.dev
@pytest.mark.parametrize("name", ALL_FAMILIES)
def test_gradients_of_a_forest_equal_autograd_on_its_rows(name, tmp_path):
    """Where rows begin alike, with windows too, and what they share is computed once."""
    case = make_case(name, tmp_path)
    case = replace(case, examples=branching_examples(case.decoder.shape.n_vocab))
    assert case.batch.tokens.size < 0.6 * case.batch.row_tokens
    check(case, 2)


WITH_STATES = ("lfm2", "lfm2moe", "qwen35", "granitehybrid", "granitehybridmoe")  # whose blocks keep no prefixes


@pytest.mark.dev
@pytest.mark.parametrize(("name", "alike"), [
    *((name, True) for name in ALL_FAMILIES if name not in WITH_STATES), ("gemma3", False)])
def test_gradients_of_a_tree_in_parts_equal_autograd_on_its_rows(name, alike, tmp_path):
    """A group of rows, where one block's activations are kept, and all; what all begin with is supervised, too. Where
    the inputs of its blocks are kept, it is passed through the others once.
    """
    case = make_case(name, tmp_path)
    assert case.decoder.model.structure.keeps_prefixes
    rows = [replace(row, group=1) for row in branching_examples(case.decoder.shape.n_vocab)]
    case = replace(case, examples=[row for row in rows if row.tokens.size > 2 or not alike])
    _, _, wanted = truth(case)
    gradients = []
    for kept, prefix_inputs in ((1, False), (1, True), (2, True), (9, False)):
        parts = in_parts(case, 48, 20, kept, prefix_inputs)
        tree, = micro_batches(case.examples, 48, prefix=20)
        assert isinstance(tree, Tree)
        assert tree.parted
        assert len(tree.branches) > 1
        assert (tree.prefix is None) == (not alike)
        assert tree.prefix is None or (tree.prefix.batch.computed > 8 and tree.prefix.entries.size > 20)
        parts.decoder.arena.flat("dlora").fill(0.0)
        signal = Gradient(parts.decoder, Sft(), 1.0).add(tree)
        gradients.append(parts.decoder.arena.flat("dlora").copy())
        errors = {}
        for key, pair in parts.decoder.adapter.adapted.items():
            for kind, ours, theirs in zip("AB", (pair.da, pair.db), wanted[key], strict=True):
                errors[f"{key} {kind}"] = distance(ours, theirs)
        assert {what: error for what, error in errors.items() if not error < 1e-5} == {}
        n = Sft().count(case.examples)
        measured = measure(parts.decoder, Sft(), [tree])
        assert measured.loss * n == pytest.approx(signal.loss, rel=1e-6)
        assert measure(case.decoder, Sft(), [case.batch]).loss * n == pytest.approx(signal.loss, rel=1e-5)
    assert all(np.array_equal(gradients[0], others) for others in gradients[1:3])


@pytest.mark.dev
@pytest.mark.parametrize("name", ALL_FAMILIES)
def test_the_last_block_computes_what_is_predicted_from(name, tmp_path, monkeypatch):
    """Of rows whose last tokens alone are supervised: its MLP takes these, where one block is kept, and all."""
    case = make_case(name, tmp_path)
    rows = [replace(row, weights=np.where(np.arange(row.tokens.size) < row.tokens.size - 3, 0, row.weights))
            for row in case.examples]
    case = replace(case, examples=rows)
    found = truth(case)
    for kept in (1, 9):
        of = keeping(case, kept)
        compare(of, *found)
        tokens = []
        shape = of.decoder.shape
        glu = of.decoder.ops.glu_forward
        others = {shape.d_block, *((shape.recurrent.inner, shape.d_q) if shape.recurrent.heads else ())}  # gated, too
        with monkeypatch.context() as patched:
            patched.setattr(of.decoder.ops, "glu_forward", lambda out, *rest, glu=glu, tokens=tokens, others=others:
                            (tokens.extend([len(out)] * (out.shape[1] not in others)), glu(out, *rest)))
            of.decoder.score(of.batch)
        n_used = {"experts": [shape.n_used], "shared experts": [1, shape.n_used]}
        taken = [n_used.get(shape.feed(layer), [1]) for layer in range(shape.n_layer)]
        alone = shape.n_layer - shape.last_maker
        needed = [*[of.batch.computed] * shape.last_maker, *[np.unique(of.batch.supervised).size] * alone]
        assert tokens == [by_each * n for each, n in zip(taken, needed, strict=True) for by_each in each]
        assert needed[-1] < 0.1 * needed[0]


@pytest.mark.dev
@pytest.mark.parametrize(("name", "overrides"), [*VARIANTS, ("gemma3", {"sliding_window": 3})])
def test_gradients_equal_autograd_in_every_variant(name, overrides, tmp_path):
    check(make_case(name, tmp_path, **overrides))


@pytest.mark.parametrize("blocks", [None, range(2, 6)], ids=["all", "last"])
def test_gradients_of_embeddings_of_blocks_equal_autograd(blocks, tmp_path):
    embeddings = ("per_layer_input_gate", "per_layer_projection")
    check(make_case("gemma4", tmp_path, (*ALL, *embeddings), blocks), 2, 9)
    check(make_case("gemma4", tmp_path, embeddings, blocks))


@pytest.mark.parametrize(
    ("rope", "key"),
    [("linear", "rope.scaling.type"), ("none", "attention.key_length"), ("none", "rope.dimension_count")],
)
def test_keys_that_files_leave_out(rope, key, tmp_path):
    """A factor alone means linear scaling; a head is D / H wide, and all of it rotated, unless said."""
    case = make_case("llama", tmp_path, rope=rope, metadata={f"llama.{key}": None})
    assert distance(case.decoder.logits(case.batch), truth(case)[0]) < LIMIT


@pytest.mark.dev
@pytest.mark.parametrize(("name", "rope", "key", "value", "refused"), [
    ("llama", "yarn", "rope.scaling.yarn_beta_fast", 4.0, None),
    ("llama", "yarn", "rope.scaling.yarn_beta_slow", 4.0, None),
    ("llama", "yarn", "rope.scaling.attn_factor", 1.5, None),
    ("llama", "yarn", "rope.scaling.original_context_length", None, None),
    ("llama", "linear", "rope.scaling.type", "none", None),
    ("llama", "linear", "rope.scaling.factor", 0.0, None),
    ("llama", "none", "rope.scaling.type", "longrope", "edgetune knows none, linear, llama3 and yarn"),
    ("llama", "none", "rope.scale_linear", 4.0, None),
    ("llama", "none", "attention.causal", False, "trains models where it is True"),
    ("llama", "none", "attention.sliding_window", 8, None),
    ("llama", "none", "rope.dimension_count", 8, "allowed are even numbers from 32 to 32"),
    ("llama", "none", "logit_scale", 0.5, None),
    ("qwen2", "none", "rope.dimension_count", 8, "allowed are even numbers from 32 to 32"),
    ("qwen3", "none", "attention.head_count_kv", [2, 2, 2], None),
    ("qwen3", "none", "attention.value_length", 16, "take a model with equal widths"),
    ("gemma3", "none", "final_logit_softcapping", 3.0, "trains models where it is 0.0"),
    ("gemma3", "none", "attn_logit_softcapping", 3.0, "trains models where it is 0.0"),
    ("gemma3", "none", "attention.sliding_window", 0, None),
    ("gemma3", "none", "attention.sliding_window_pattern", None, None),
    ("gemma3", "none", "attention.sliding_window_pattern", 0, None),
    ("gemma3", "none", "attention.sliding_window_pattern", 1, "must be at least 1"),
    ("gemma3", "none", "rope.dimension_count_swa", 16, "allowed is 32"),
    ("gemma3", "none", "attention.key_length_swa", 16, "allowed is 32"),
    ("granite", "none", "embedding_scale", 0.0, None),
    ("granite", "none", "residual_scale", None, None),
    ("granite", "none", "attention.scale", None, None),
    ("granite", "none", "logit_scale", -2.0, "takes positive ones"),
    ("granite", "none", "rope.scaling.finetuned", False, None),
    ("mistral3", "yarn", "rope.scaling.yarn_beta_fast", 4.0, None),
    ("mistral3", "yarn", "rope.scaling.yarn_log_multiplier", 1.0, None),
    ("mistral3", "yarn", "attention.temperature_scale", 0.1, None),
    ("olmo2", "none", "attention.sliding_window", 24, None),
    ("smollm3", "linear", "rope.scaling.factor", 3.0, None),
    ("glm4", "none", "rope.dimension_sections", [8, 8, 0, 0], r"trains models where it is \[0, 0, 0, 0\]"),
    ("glm4", "none", "rope.dimension_count", 8, None),
])
def test_rare_keys(name, rope, key, value, refused, tmp_path):
    """What a key does in llama.cpp it does here, or the file is refused: it is trained as it is served."""
    if refused:
        with pytest.raises((FormatError, UnsupportedError), match=refused):
            make_case(name, tmp_path, rope=rope, head_dim=32, metadata={f"{name}.{key}": value})
        return
    width = 16 if name == "olmo2" else 32  # as wide as the model together
    case = make_case(name, tmp_path, rope=rope, head_dim=width, metadata={f"{name}.{key}": value})
    case.decoder.adapter.load(Artifact({k: Pair(pair.a, 0 * pair.b, SCALE) for k, pair in case.pairs.items()}), "pairs")
    example = max(case.examples, key=lambda e: e.tokens.size)
    served = logits_of(case.decoder.model.gguf.path, example.tokens.tolist())
    assert distance(case.decoder.logits(collate([example])), served) < 5e-4  # llama.cpp looks GELU up in 16 bits


@pytest.mark.dev
def test_gemma3_27b_scales_attention_by_width(tmp_path):
    sizes = {"num_hidden_layers": 62, "query_pre_attn_scalar": 16, "hidden_size": 64, "intermediate_size": 64}
    case = make_case("gemma3", tmp_path, blocks=range(61, 62), **sizes)
    assert distance(case.decoder.logits(case.batch), truth(case)[0]) < LIMIT


PARTS = [range(1), range(2), range(1, 2), range(1, 3), range(2, 3)]


@pytest.mark.dev
@pytest.mark.parametrize(("name", "blocks"), mostly_slow(itertools.product(("gemma3", "llama"), PARTS), [
    *(("gemma3", blocks) for blocks in PARTS), ("llama", PARTS[-1])]))
def test_block_subsets(name, blocks, tmp_path):
    check(make_case(name, tmp_path, blocks=blocks), 2, 9)


SUBSETS = [*((t,) for t in ALL), ("q_proj", "v_proj"), ("o_proj", "down_proj"), ("k_proj", "gate_proj")]


@pytest.mark.dev
@pytest.mark.parametrize(("name", "targets"), mostly_slow(itertools.product(("gemma3", "qwen3"), SUBSETS), [
    *(("gemma3", targets) for targets in SUBSETS), ("qwen3", SUBSETS[0]), ("qwen3", SUBSETS[-1])]))
def test_target_subsets(name, targets, tmp_path):
    """In the lowest trained block, backward stops below the last trained projection."""
    check(make_case(name, tmp_path, targets=targets, blocks=range(1, 3)))


@pytest.mark.dev
@pytest.mark.parametrize("format", mostly_slow(sorted(FORMATS.keys() - {"F32"}), SOME_FORMATS))
def test_quantized(format, tmp_path):
    """Against transformers on the dequantized weights, with another format for embedding and tied head."""
    sizes = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "num_hidden_layers": 2}
    formats = {"token_embd": "Q6_K" if format != "Q6_K" else "Q8_0", "blk": format}
    check(make_case("llama", tmp_path, formats=formats, tie_word_embeddings=True, **sizes))


def test_packing_equals_documents_alone(tmp_path):
    """A packed batch gives the logits of each document alone, and its gradients add up."""
    case = make_case("gemma3", tmp_path)
    whole = case.decoder.logits(case.batch)
    train_once(case)
    together = case.decoder.arena.flat("dlora").copy()
    alone = []
    grads = np.zeros_like(together)
    for example in case.examples:
        one = Case(case.decoder, case.model, case.pairs, [example])
        alone.append(case.decoder.logits(one.batch))
        train_once(one)
        grads += case.decoder.arena.flat("dlora")
    assert distance(whole, np.concatenate(alone)) < 1e-6
    assert distance(together, grads) < 1e-5


def test_gradients_accumulate(tmp_path):
    case = make_case("llama", tmp_path)
    train_once(case)
    once = case.decoder.arena.flat("dlora").copy()
    pass_once(case)
    assert distance(case.decoder.arena.flat("dlora"), 2 * once) < 1e-6


def test_threads_and_repetition_change_no_bit(tmp_path):
    results = []
    for threads in (1, 2, 3):
        case = make_case("qwen2", tmp_path, threads=threads)
        for _ in range(2):
            results.append((train_once(case).tobytes(), case.decoder.arena.flat("dlora").tobytes()))
    assert len(set(results)) == 1


@pytest.mark.dev
@pytest.mark.parametrize("kept", [1, 2, 9], ids=["recompute", "some", "keep"])
def test_dropout_gradients_by_finite_differences(kept, tmp_path):
    """The masks are a pure function of the seed, so the loss is one too; its slope along dL is |dL|^2."""
    case = make_case("gemma3", tmp_path, dropout=0.3, kept=kept)
    case.decoder.adapter.before_pass(11)
    lora = case.decoder.arena.flat("lora")
    weights = case.batch.supervised_weights
    masked = train_once(case)
    gradient = case.decoder.arena.flat("dlora").copy()
    start = lora.copy()
    step = 1e-2 / np.linalg.norm(gradient)
    loss = {}
    for sign in (1, -1):
        lora[:] = start + np.float32(sign * step) * gradient
        loss[sign] = -float(weights.astype(np.float64) @ train_once(case).astype(np.float64))
    lora[:] = start
    slope = (loss[1] - loss[-1]) / (2 * step)
    assert slope == pytest.approx(float(gradient.astype(np.float64) @ gradient.astype(np.float64)), rel=5e-3)
    case.decoder.adapter.before_pass(12)
    assert distance(train_once(case), masked) > 1e-2
    case.decoder.adapter.before_pass(None)
    assert distance(train_once(case), truth(case)[1]) < LIMIT


def test_no_supervised_token(tmp_path):
    case = make_case("llama", tmp_path)
    for example in case.examples:
        example.weights[:] = 0
    assert train_once(case).size == 0
    assert not case.decoder.arena.flat("dlora").any()


def test_adapter_off_is_the_base_model(tmp_path):
    case = make_case("qwen3", tmp_path)
    base = np.concatenate([hf_logits(case.model, example.tokens) for example in case.examples])
    assert distance(case.decoder.logits(case.batch), base) > 0.05
    without = {key: Pair(pair.a, 0 * pair.b, SCALE) for key, pair in case.pairs.items()}
    case.decoder.adapter.load(Artifact(without), "pairs")
    assert distance(case.decoder.logits(case.batch), base) < LIMIT


@pytest.fixture
def some_pass(tiny_models):
    """Opens a model, and returns its trainer, a batch of more tokens than the head takes at once, and its signal."""
    def open_model(architecture, precision):
        trainer = Trainer(tiny_models[architecture], precision=precision, **OPTIONS)
        rng = np.random.default_rng(0)
        trainer.arena.flat("lora")[:] = rng.standard_normal(trainer.arena.flat("lora").size, np.float32) * 0.02
        rows = [Example(rng.integers(0, 200, n).astype(np.int32), np.ones(n, np.float32)) for n in (250, 40)]
        batch = collate(rows, share=False)
        assert batch.supervised.size > HEAD_TOKENS
        return trainer, batch, rng.standard_normal(batch.supervised.size, np.float32)
    return open_model


def passed_back(trainer, batch, a):
    """log p and the gradient, after `forward`, and perhaps `head_forward`."""
    gradient = trainer.arena.flat("dlora")
    gradient.fill(0)
    logp = trainer.decoder.backward(batch, a).copy()
    return logp.tobytes(), gradient.tobytes()


@pytest.mark.parametrize("precision", ["exact", "fast", "int8"])
@pytest.mark.parametrize("architecture", ["llama", "gemma4"])  # gemma4 caps logits
def test_log_p_before_the_gradient_changes_no_byte(architecture, precision, some_pass, monkeypatch):
    trainer, batch, a = some_pass(architecture, precision)
    trainer.decoder.forward(batch, keep=True)
    wanted = passed_back(trainer, batch, a)
    entries = []
    head_backward = trainer.decoder.ops.head_backward

    def noted(*args, **kwargs):
        entries.append(args[10])
        head_backward(*args, **kwargs)

    monkeypatch.setattr(trainer.decoder.ops, "head_backward", noted)
    monkeypatch.setattr(trainer.decoder.ops, "head_forward", None)
    trainer.decoder.forward(batch, keep=True)
    logp = trainer.decoder.head_forward(batch).tobytes()
    assert passed_back(trainer, batch, a) == wanted
    assert logp == wanted[0]
    n = trainer.model.shape.n_vocab
    assert entries == [(0, n), (0, n), (n, n), (n, n)]


def test_sums_of_an_earlier_pass_are_not_taken(some_pass):
    """Where the adapter has changed since."""
    trainer, batch, a = some_pass("llama", "exact")
    trainer.decoder.forward(batch, keep=True)
    trainer.decoder.head_forward(batch)
    trainer.arena.flat("lora")[:] *= 2
    trainer.decoder.forward(batch, keep=True)
    found = passed_back(trainer, batch, a)
    trainer.decoder.forward(batch, keep=True)
    assert passed_back(trainer, batch, a) == found
    trainer.decoder.forward(batch, keep=True)
    trainer.decoder.head_forward(batch)
    assert passed_back(trainer, batch, a) == found
