"""An encoder of another order, RoBERTa-PreLayerNorm, which norms inputs and not sums: what a new one needs.

Its network is this file's; the package would have it as a file of models/, a row of ORDERS and one of
ENCODER_TOKENIZERS: three files. The truth is transformers.
"""

import json
import re

import numpy as np
import pytest
from commands import run
from encoders import NAMES, WORDS, tiny_bert, write_encoder
from json_lines import write_lines
from labelled import classes, close, documents, open_trainer, our_gradient, set_random

from edgetune.adapters.heads import VECTOR
from edgetune.data.packing import collate
from edgetune.formats import encoder
from edgetune.formats.gguf import check, open_gguf, write_gguf
from edgetune.formats.gguf.check import check_network
from edgetune.models.base import NETWORKS, register
from edgetune.models.encoder import Bert, EncoderPasses
from edgetune.serving.encoder import Encoder

torch = pytest.importorskip("torch", reason="torch is the truth here")

TOY = "toy-bert"
RENAMED = {"attn_output_norm": "attn_norm", "layer_output_norm": "ffn_norm"}  # of a BERT's tensors
SIZES = (7, 2, 30, 3, 19)


class ToyPasses(EncoderPasses):
    """x += attention(norm(x)); x += mlp(norm(x)); the head reads norm(x)."""

    def _embedded(self, x):
        super()._embedded(x)
        self.norms.forward(x, x, "token_embd_norm")

    def _norm_before(self, layer):
        return "output_norm" if layer == self.shape.n_layer else f"blk.{layer}.attn_norm"

    def _block_forward(self, layer, x, rebuild=False):
        self.stream.enter(layer, layer - 1 if rebuild else layer + 1)
        k = self.kept.of(layer, len(x))
        self._attention_forward(layer, self._normed(x, self._norm_before(layer)), k)
        self.linear.forward(x, k["att"], layer, "attn_output", k, accumulate=True)
        self.ops.copy(k["mid"], x)
        self._up_forward(layer, self._normed(x, f"blk.{layer}.ffn_norm"), k)
        self._down_forward(layer, x, k, rebuild)

    def _mlp_backward(self, layer, dx, k, deepest):
        grads = self._down_backward(layer, dx, k, deepest)
        self._inputs_backward(layer, dx, k, (k["mid"], f"blk.{layer}.ffn_norm"), grads, deepest > 1)

    def _attention_backward(self, layer, dx, datt, k):
        grads = self._attend_backward(layer, datt, k)
        normed = (self.kept.block_x(layer, len(dx)), self._norm_before(layer))
        self._inputs_backward(layer, dx, k, normed, grads, layer > self.run.lowest)

    def _inputs_backward(self, layer, dx, k, normed, grads, is_needed):
        """dx: plus the gradient of what was normed, and by which norm, before these projections read it."""
        norm = self._normed(*normed)
        dnorm = self.arena.view("x", *dx.shape)
        dnorm[:] = 0
        for target, grad in grads.items():
            self.linear.backward(dnorm if is_needed else None, grad, layer, target, k, accumulate=True)
            self.linear.finish(norm, layer, target)
        if is_needed:
            self.norms.add_backward(dx, dnorm, *normed)

    def _normed(self, x, name):
        norm = self.arena.view("norm", *x.shape)
        self.norms.forward(norm, x, name)
        return norm


class ToyBert(Bert):
    architectures = (TOY,)

    def build(self, run, ops, arena, streamed, seed):
        return ToyPasses(self, run, ops, arena, streamed, seed)


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    """What a real one adds: its network, its order and its tokenizers."""
    monkeypatch.setitem(encoder.ORDERS, TOY, encoder.EncoderOrder("gelu", norms_inputs=True))
    monkeypatch.setitem(check.ENCODER_TOKENIZERS, TOY, ("bert",))
    register(ToyBert)
    yield
    del NETWORKS[TOY]


@pytest.fixture(scope="module")
def bert():
    return tiny_bert()


@pytest.fixture
def model(tmp_path, bert):
    """A BERT's tensors by the toy's names, with one norm more."""
    file = open_gguf(write_encoder(tmp_path / "bert.gguf", bert, WORDS))
    tensors = {re.sub("attn_output_norm|layer_output_norm", lambda found: RENAMED[found[0]], name): tensor
               for name, tensor in file.tensors.items()}
    tensors |= {f"output_norm.{part}": file.tensors[f"token_embd_norm.{part}"] for part in ("weight", "bias")}
    keys, types = ({re.sub("^bert", TOY, key): value for key, value in found.items()}
                   for found in (file.metadata, file.types))
    write_gguf(tmp_path / "toy.gguf", TOY, keys, tensors, types)
    return tmp_path / "toy.gguf"


def truth(bert):
    """The toy in transformers."""
    from transformers import RobertaPreLayerNormConfig, RobertaPreLayerNormModel
    positions = bert.sizes["max_position_embeddings"] + 1  # it counts them from 1
    config = RobertaPreLayerNormConfig(**{**bert.sizes, "max_position_embeddings": positions, "pad_token_id": 0})
    found = RobertaPreLayerNormModel(config, add_pooling_layer=False).eval()
    tensors = {}
    for name, values in bert.tensors.items():
        name = re.sub(r"attention\.output\.LayerNorm", "attention.LayerNorm", name)
        name = re.sub(r"(\d)\.output\.LayerNorm", r"\1.intermediate.LayerNorm", name)
        tensors[name] = torch.from_numpy(np.pad(values, ((1, 0), (0, 0))) if "position" in name else values)
    tensors |= {f"LayerNorm.{part}": tensors[f"embeddings.LayerNorm.{part}"] for part in ("weight", "bias")}
    found.load_state_dict(tensors)
    return lambda row, merged: torch.func.functional_call(
        found, merged, (torch.from_numpy(row.tokens.astype(np.int64))[None],)).last_hidden_state[0]


def leaf(array):
    return torch.from_numpy(np.array(array)).requires_grad_()


def test_states_and_vectors(bert, model):
    check_network(open_gguf(model))
    trainer = open_trainer(model, VECTOR)
    rows = documents(SIZES)
    states = truth(bert)
    with torch.no_grad():
        wanted = [states(row, {}) for row in rows]
    close(trainer.decoder.hidden(collate(rows, share=False)), torch.cat(wanted))
    means = torch.stack([torch.nn.functional.normalize(found.mean(0), dim=0) for found in wanted])
    close(Encoder(open_gguf(model), threads=1).vectors([row.tokens for row in rows]), means)


@pytest.mark.parametrize("options", [{}, {"recompute": "block"}, {"blocks": "last:1"}, {"targets": "o_proj"}])
def test_gradient(bert, model, options):
    trainer = open_trainer(model, classes(5), **options)
    set_random(trainer)
    pairs = {name: (leaf(pair.a), leaf(pair.b), pair.scale) for name, pair in trainer.decoder.adapter.adapted.items()}
    (head,) = trainer.decoder.head.by_name.values()
    weight, bias = leaf(head.weight), leaf(head.bias)
    merged = {}
    for theirs, ours in NAMES.items():
        for layer in range(2):
            if pair := pairs.get(f"blk.{layer}.{ours}"):
                name = f"encoder.layer.{layer}.{theirs}.weight"
                merged[name] = torch.from_numpy(bert.tensors[name]) + pair[2] * pair[1] @ pair[0]
    rows = documents(SIZES, label=lambda i, _: i)
    states = truth(bert)
    logp = torch.stack([(weight @ torch.nn.functional.normalize(states(row, merged).mean(0), dim=0)
                         + bias).log_softmax(0)[row.labels[0]] for row in rows])
    a = np.arange(1, 6, dtype=np.float32) / 5
    found, gradient = our_gradient(trainer, collate(rows, share=False), a)
    close(found, logp.detach())
    (-(logp * torch.from_numpy(a)).sum()).backward()
    parts = [*(pair[0] for pair in pairs.values()), *(pair[1] for pair in pairs.values()), weight, bias]
    close(gradient, torch.cat([part.grad.ravel() for part in parts]))


def test_the_commands_plan_and_train_it(model, tmp_path):
    rows = write_lines(tmp_path / "rows.jsonl", [{"prompt": text, "completion": text[:1]} for text in "abcabc"])
    said = json.loads(run("train", model, rows, "-o", tmp_path / "out", "--method", "classify", "--steps", 2,
                          "--threads", 1, "--json").splitlines()[-1])
    assert said
    assert (tmp_path / "out" / "adapter.gguf").exists()
    assert json.loads(run("models", "info", model, "--json"))["trainable"]
