"""Encoders on their weights, compared with transformers and autograd: hidden states, vectors, losses, gradients."""

import re
from dataclasses import replace

import numpy as np
import pytest
from encoders import EMBEDDINGS, NAMES, WORDS, Bert, in_transformers, tiny_bert, write_encoder
from labelled import OPTIONS, at_first, classes, close, documents, open_trainer, our_gradient, set_random, tags
from tiny import write_gguf
from variants import variant

from edgetune.adapters.heads import VECTOR
from edgetune.adapters.store import read_artifact
from edgetune.data.packing import collate
from edgetune.errors import DataError, FormatError, UnsupportedError, UsageError
from edgetune.formats.gguf import open_gguf
from edgetune.models.networks import open_network
from edgetune.serving.rollouts.forward import open_passes
from edgetune.training.trainer import Trainer

torch = pytest.importorskip("torch", reason="torch is the truth here")

POOLINGS = ("mean", "first")
N_CLASSES = 5
N_TAGS = 3


@pytest.fixture(scope="module")
def bert():
    return tiny_bert()


@pytest.fixture(scope="module")
def models(bert, tmp_path_factory):
    """By the name of a pooling."""
    folder = tmp_path_factory.mktemp("berts")
    return {pooling: write_encoder(folder / f"{pooling}.gguf", bert, WORDS, pooling) for pooling in POOLINGS}


@pytest.fixture
def model(models):
    return models["mean"]


def states_by(model):
    """A function of an example: its hidden states [T, D] by transformers."""
    return lambda example: model(torch.from_numpy(example.tokens.astype(np.int64))[None]).last_hidden_state[0]


def pooled(states, example, pooling):
    """Of length 1."""
    found = states(example)
    return torch.nn.functional.normalize(found.mean(0) if pooling == "mean" else found[0], dim=0)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_states_and_vectors(bert, models, pooling):
    """Of documents of several sizes in one batch, none of which sees another."""
    trainer = open_trainer(models[pooling], VECTOR)
    rows = documents((7, 1, 40, 3, 19))
    batch = collate(rows, share=False)
    states = states_by(in_transformers(bert))
    with torch.no_grad():
        close(trainer.decoder.hidden(batch), torch.cat([states(row) for row in rows]))
        want = torch.stack([pooled(states, row, pooling) for row in rows])
    close(trainer.decoder.pooled(batch), want)
    close(trainer.decoder.score(batch), want)


# ---- gradients ----


def leafs(array):
    return torch.from_numpy(np.array(array)).requires_grad_()


class Autograd:
    """The network of a trainer in transformers: adapter and heads are leafs."""

    def __init__(self, trainer, bert: Bert) -> None:
        self.pairs = {name: (leafs(pair.a), leafs(pair.b), pair.scale)
                      for name, pair in trainer.decoder.adapter.adapted.items()}
        self.heads = {name: (leafs(head.weight), leafs(head.bias))
                      for name, head in trainer.decoder.head.by_name.items()}
        self.network = in_transformers(bert)
        ours = {ours: theirs for theirs, ours in NAMES.items()}
        self.places = {name: f"encoder.layer.{name.split('.')[1]}.{ours[name.split('.')[2]]}.weight"
                       for name in self.pairs}

    def states(self, example):
        own = dict(self.network.named_parameters())
        merged = {place: own[place].detach() + self.pairs[name][2] * self.pairs[name][1] @ self.pairs[name][0]
                  for name, place in self.places.items()}
        tokens = torch.from_numpy(example.tokens.astype(np.int64))[None]
        return torch.func.functional_call(self.network, merged, (tokens,)).last_hidden_state[0]

    def gradients(self):
        """As the arena has them: all A, all B, then each head."""
        parts = [[a.grad for a, _, _ in self.pairs.values()], [b.grad for _, b, _ in self.pairs.values()],
                 *self.heads.values()]
        parts[2:] = [[weight.grad, bias.grad] for weight, bias in parts[2:]]
        return torch.cat([part.ravel() for group in parts for part in group]).numpy()


def check_gradient(trainer, batch, a, truth, want, loss):
    found, gradient = our_gradient(trainer, batch, a)
    close(found, want)
    loss.backward()
    close(gradient, truth.gradients())


@pytest.mark.dev
@pytest.mark.parametrize("options", [{}, {"recompute": "block"}, {"weights": "streamed"}, {"blocks": "last:1"},
                                     {"blocks": "last:1", "targets": "down_proj"},
                                     {"blocks": "last:1", "targets": "up_proj"}, {"targets": "o_proj"},
                                     {"targets": "q_proj,v_proj"}])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradient_of_classes(bert, models, pooling, options):
    trainer = open_trainer(models[pooling], classes(N_CLASSES), **options)
    set_random(trainer)
    rows = documents((7, 2, 40, 3, 19), label=lambda i, _: i % N_CLASSES)
    truth = Autograd(trainer, bert)
    weight, bias = truth.heads["classes"]
    logp = torch.stack([(weight @ pooled(truth.states, row, pooling) + bias).log_softmax(0)[row.labels[0]]
                        for row in rows])
    a = np.arange(1, 6, dtype=np.float32) / 5
    check_gradient(trainer, collate(rows, share=False), a, truth, logp.detach(), -(logp * torch.from_numpy(a)).sum())


def test_gradient_of_several_heads(bert, model):
    """Tags at every token but the first, a class there, and another at the last."""
    trainer = open_trainer(model, tags(N_TAGS), classes(N_CLASSES, "intent"), classes(2, "polite"))
    set_random(trainer)
    rows = documents((7, 2, 30), "others", lambda i, t: (i + t) % N_TAGS)
    for i, row in enumerate(rows):
        row.weights[0] = 1
        row.labels[0] = N_TAGS + i % N_CLASSES
        row.labels[-1] = N_TAGS + N_CLASSES + i % 2
    truth = Autograd(trainer, bert)
    logps = []
    for row in rows:
        h = truth.states(row)
        vector = pooled(truth.states, row, "mean")
        for t, label in enumerate(row.labels):
            name, x, first = (("tags", h[t], 0) if label < N_TAGS else ("classes.intent", vector, N_TAGS)
                              if label < N_TAGS + N_CLASSES else ("classes.polite", vector, N_TAGS + N_CLASSES))
            weight, bias = truth.heads[name]
            logps.append((weight @ x + bias).log_softmax(0)[label - first])
    logp = torch.stack(logps)
    a = np.linspace(-1, 2, len(logp)).astype(np.float32)
    batch = collate(rows, share=False)
    check_gradient(trainer, batch, a, truth, logp.detach(), -(logp * torch.from_numpy(a)).sum())
    every = trainer.decoder.labels(batch)
    best = np.empty(len(logp), np.int32)
    close(trainer.decoder.score(batch, best), logp.detach())
    assert (best == every.argmax(1)).all()
    sizes = np.repeat([N_TAGS, N_CLASSES, 2], [N_TAGS, N_CLASSES, 2])
    assert (np.isfinite(every).sum(1) == sizes[batch.targets]).all()
    assert np.exp(every).sum(1) == pytest.approx(1)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradient_of_vectors(bert, models, pooling):
    trainer = open_trainer(models[pooling], VECTOR)
    set_random(trainer)
    rows = documents((7, 2, 30))
    truth = Autograd(trainer, bert)
    vectors = torch.stack([pooled(truth.states, row, pooling) for row in rows])
    a = np.random.default_rng(0).standard_normal(vectors.shape, dtype=np.float32)
    check_gradient(trainer, collate(rows, share=False), a, truth, vectors.detach(),
                   -(vectors * torch.from_numpy(a)).sum())


# ---- training ----


def test_it_learns_and_its_heads_are_a_part_of_the_adapter(model, tmp_path):
    """Which of five letters a text is mostly made of."""
    def rows(n, seed):
        rng = np.random.default_rng(seed)
        made = []
        for i in range(n):
            tokens = np.where(rng.random(12) < 0.5, 20 + i % N_CLASSES, rng.integers(30, 60, 12)).astype(np.int32)
            made.append(at_first(tokens, i % N_CLASSES))
        return made

    trainer = open_trainer(model, classes(N_CLASSES), steps=60, lr=1e-2)
    trainer.add_examples(rows(40, 0))
    held = rows(20, 1)
    before = trainer.loss(held)[0]
    trainer.train()
    after = trainer.loss(held)[0]
    assert after < before / 2
    trainer.save(tmp_path / "out")
    assert read_artifact(tmp_path / "out", open_gguf(model)).tensors["head.classes"].size == N_CLASSES * (64 + 1)
    again = open_trainer(model, classes(N_CLASSES))
    again.load(tmp_path / "out")
    assert again.loss(held)[0] == pytest.approx(after, rel=1e-5)
    streamed = open_trainer(model, classes(N_CLASSES), weights="streamed")
    streamed.load(tmp_path / "out")
    assert streamed.loss(held)[0] == again.loss(held)[0]
    batch = collate(held, share=False)
    alone = open_passes(open_network(open_gguf(model)), read_artifact(tmp_path / "out", open_gguf(model)), threads=1,
                        max_tokens=batch.tokens.size, max_length=12, heads=(classes(N_CLASSES),))
    close(alone.score(batch), again.decoder.score(batch), 1e-5)
    bare = open_passes(open_network(open_gguf(model)), {}, threads=1, max_tokens=batch.tokens.size, max_length=12,
                       heads=(VECTOR,))
    close(bare.pooled(batch), open_trainer(model, VECTOR).decoder.pooled(batch), 1e-5)
    with pytest.raises(DataError, match=r"label outside 0\.\.4"):
        trainer.add_examples(documents((3,), label=lambda *_: N_CLASSES))


def test_documents_are_no_longer_than_the_positions(model):
    trainer = open_trainer(model, classes(N_CLASSES), max_length=4000)
    assert trainer.plan.longest == trainer.config.max_length == 96
    with pytest.raises(DataError, match="97 tokens"):
        trainer.add_examples(documents((97,)))


def test_only_rows_of_the_embedding_are_in_memory(model):
    """Nothing else reads it, as there is no head over the vocabulary."""
    plan = open_trainer(model, classes(N_CLASSES)).plan
    tensors = open_gguf(model).tensors
    blocks = sum(tensor.data.nbytes for name, tensor in tensors.items() if name.startswith("blk."))
    blocks += sum(tensors[f"{name}.weight"].data.nbytes for name in ("position_embd", "token_types"))
    assert plan.weight_bytes < blocks + 4096 + min(plan.run.max_tokens, len(WORDS)) * 64 * 4


# ---- refusals ----


@pytest.mark.parametrize("heads", [(VECTOR, classes(3)), (classes(3), VECTOR)])
def test_a_vector_head_stands_alone(model, heads):
    with pytest.raises(UsageError, match="no head for vector with others"):
        open_trainer(model, *heads)


def test_other_heads_and_families_are_refused(model):
    with pytest.raises(UsageError, match="no head for vocabulary"):
        Trainer(model, **OPTIONS)
    with pytest.raises(UsageError, match="no ffn_gate"):
        open_trainer(model, classes(2), targets="gate_proj")


@pytest.mark.parametrize(("key", "value", "message"), [
    ("bert.attention.causal", True, "see both ways"), ("bert.pooling_type", 3, "pooling_type 3"),
    ("bert.attention.layer_norm_epsilon", 0.0, "norm epsilon of 0"), ("bert.attention.head_count", 5, "5 heads"),
    ("bert.block_count", 3, r"lacks the tensor blk\.2\.")])
def test_other_variants_are_refused(model, tmp_path, key, value, message):
    with pytest.raises((UnsupportedError, FormatError), match=message):
        open_network(open_gguf(variant(tmp_path / "other.gguf", open_gguf(model), {key: value})))


def test_a_fused_projection_is_the_three(model, tmp_path):
    """Queries, keys and values as one matrix with one bias, as other converters write them."""
    file = open_gguf(model)
    tensors = {}
    for name, tensor in file.tensors.items():
        fused = re.sub(r"attn_[qkv]\.", "attn_qkv.", name)
        tensors.setdefault(fused, []).append(np.array(tensor.f32()))
    path = write_gguf(tmp_path / "fused.gguf", "bert", file.metadata,
                      {name: np.concatenate(parts) for name, parts in tensors.items()})
    rows = documents((7, 2, 30), label=lambda i, _: i % N_CLASSES)
    batch = collate(rows, share=False)
    trainers = [open_trainer(each, classes(N_CLASSES)) for each in (model, path)]
    hidden = [trainer.decoder.hidden(batch) for trainer in trainers]
    close(*hidden, 1e-6)
    a = np.ones(3, np.float32)
    three, one = ({}, {})
    for trainer, found in zip(trainers, (three, one), strict=True):
        for pair in trainer.decoder.adapter.adapted.values():
            pair.a.fill(0.125)  # alike in all, so that the gradients of B are those of the three
            pair.b.fill(0)
        found.update(zip(trainer.decoder.adapter.adapted, gradients_of_b(trainer, batch, a), strict=True))
    close(one["blk.0.attn_qkv"], np.concatenate([three[f"blk.0.attn_{name}"] for name in "qkv"]))


def gradients_of_b(trainer, batch, a):
    _, gradient = our_gradient(trainer, batch, a)
    lora = trainer.arena.flat("lora")
    for pair in trainer.decoder.adapter.adapted.values():
        begin = (pair.b.__array_interface__["data"][0] - lora.__array_interface__["data"][0]) // 4
        yield gradient[begin:begin + pair.b.size].reshape(pair.b.shape).copy()


# ---- weights in other formats, and other precisions ----


def dequantized(path):
    """The file's network with the values of its weights, to be one of transformers'."""
    ours = {ours: theirs for theirs, ours in NAMES.items()}
    outside = {ours: theirs for theirs, ours in EMBEDDINGS.items()}
    tensors = {}
    for name, tensor in open_gguf(path).tensors.items():
        parts = name.split(".")
        theirs = (f"encoder.layer.{parts[1]}.{ours[parts[2]]}" if parts[0] == "blk"
                  else f"embeddings.{outside[parts[0]]}")
        tensors[f"{theirs}.{parts[-1]}"] = np.array(tensor.f32())
    return tensors


@pytest.mark.parametrize("format", ["Q8_0", "Q4_1", "F16"])
def test_gradient_on_other_weights(bert, model, tmp_path, format):
    """The truth is transformers' network with the dequantized values."""
    file = open_gguf(model)
    path = write_gguf(tmp_path / "other.gguf", "bert", file.metadata, {
        name: np.array(tensor.f32()) for name, tensor in file.tensors.items()}, {
        "attn_": format, "ffn_": format, "token_embd": format})
    trainer = open_trainer(path, classes(N_CLASSES))
    set_random(trainer)
    rows = documents((7, 2, 40, 3, 19), label=lambda i, _: i % N_CLASSES)
    truth = Autograd(trainer, replace(bert, tensors=dequantized(path)))
    weight, bias = truth.heads["classes"]
    logp = torch.stack([(weight @ pooled(truth.states, row, "mean") + bias).log_softmax(0)[row.labels[0]]
                        for row in rows])
    a = np.ones(5, np.float32)
    check_gradient(trainer, collate(rows, share=False), a, truth, logp.detach(), -logp.sum())
