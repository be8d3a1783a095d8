"""ModernBERT on its weights, compared with transformers, autograd and llama.cpp: states, vectors, gradients."""

import numpy as np
import pytest
from encoder_checkpoints import N_VOCAB, gguf_name, tiny_modern, write_modern
from encoders import vectors
from labelled import LLAMA_CPP, TEXTS, at_first, classes, close, open_trainer, our_gradient, set_random

from edgetune.adapters.heads import VECTOR
from edgetune.bench.train import clocked
from edgetune.data.packing import collate
from edgetune.errors import FormatError, UnsupportedError, UsageError
from edgetune.formats.gguf import open_gguf
from edgetune.llamacpp.tokenizers import open_tokenizer
from edgetune.models.networks import open_network

torch = pytest.importorskip("torch", reason="torch is the truth here")

N_CLASSES = 5
SIZES = (7, 2, 40, 3, 19)  # some within the window of 10 tokens, some not


@pytest.fixture(scope="module")
def modern():
    return tiny_modern()


@pytest.fixture(scope="module")
def model(modern, tmp_path_factory):
    return write_modern(tmp_path_factory.mktemp("modern") / "m.gguf", modern)


def documents(sizes=SIZES):
    rng = np.random.default_rng(len(sizes))
    return [at_first(rng.integers(3, N_VOCAB, n).astype(np.int32), i % N_CLASSES) for i, n in enumerate(sizes)]


def states(network, example, merged=None):
    """The hidden states [T, D] by transformers; merged: weights in place of its own."""
    tokens = torch.from_numpy(example.tokens.astype(np.int64))[None]
    return torch.func.functional_call(network, merged or {}, (tokens,)).last_hidden_state[0]


def pooled(found, pooling):
    return torch.nn.functional.normalize(found.mean(0) if pooling == "mean" else found[0], dim=0)


@pytest.mark.dev
@pytest.mark.parametrize(("pooling", "number"), [("mean", 1), ("first", 2)])
@pytest.mark.parametrize("sizes", [{}, {"hidden_activation": "silu"}, {"local_attention": 7},
                                   {"global_attn_every_n_layers": 2}])
def test_states_and_vectors(tmp_path, pooling, number, sizes):
    """Of documents of several sizes in one batch, none of which sees another."""
    network = tiny_modern(**sizes)
    trainer = open_trainer(write_modern(tmp_path / "m.gguf", network, pooling_type=number), VECTOR)
    rows = documents()
    batch = collate(rows, share=False)
    with torch.no_grad():
        truth = [states(network, row) for row in rows]
    close(trainer.decoder.hidden(batch), torch.cat(truth))
    close(trainer.decoder.pooled(batch), torch.stack([pooled(found, pooling) for found in truth]))


@pytest.mark.dev
@pytest.mark.parametrize("options", [{}, {"recompute": "block"}, {"weights": "streamed"}, {"blocks": "last:2"},
                                     {"blocks": "last:2", "targets": "down_proj"},
                                     {"blocks": "last:2", "targets": "up_proj"}, {"targets": "o_proj"}])
@pytest.mark.parametrize("format", ["F32", "Q8_0"])
def test_gradient(tmp_path, modern, options, format):
    """Of the adapter and of a head for classes. The truth is transformers' network with the dequantized values."""
    path = write_modern(tmp_path / "m.gguf", modern, format)
    file = open_gguf(path)
    trainer = open_trainer(path, classes(N_CLASSES), **options)
    set_random(trainer)
    own = {name: torch.from_numpy(np.array(file.tensors[gguf_name(name)].f32())).reshape(values.shape)
           for name, values in modern.named_parameters()}
    pairs = {name: (leaf(pair.a), leaf(pair.b), pair.scale) for name, pair in trainer.decoder.adapter.adapted.items()}
    (head,) = trainer.decoder.head.by_name.values()
    weight, bias = leaf(head.weight), leaf(head.bias)
    merged = dict(own)
    for name in own:
        if (pair := pairs.get(gguf_name(name).removesuffix(".weight"))) is not None:
            merged[name] = own[name] + pair[2] * pair[1] @ pair[0]
    rows = documents()
    logp = torch.stack([(weight @ pooled(states(modern, row, merged), "mean") + bias).log_softmax(0)[row.labels[0]]
                        for row in rows])
    a = np.arange(1, 6, dtype=np.float32) / 5
    found, gradient = our_gradient(trainer, collate(rows, share=False), a)
    close(found, logp.detach())
    (-(logp * torch.from_numpy(a)).sum()).backward()
    parts = [*(pair[0] for pair in pairs.values()), *(pair[1] for pair in pairs.values()), weight, bias]
    close(gradient, torch.cat([part.grad.ravel() for part in parts]))


def leaf(array):
    return torch.from_numpy(np.array(array)).requires_grad_()


def test_vectors_equal_llama_cpp(model):
    tokenizer = open_tokenizer(model)
    rows = [at_first(np.array(tokenizer.encode(text), np.int32), 0) for text in TEXTS]
    found = open_trainer(model, VECTOR, max_length=128).decoder.pooled(collate(rows, share=False))
    close(found, vectors(model, TEXTS), LLAMA_CPP)


def test_attention_in_windows_is_counted_as_such(model):
    """Pairs of tokens whose distance is at most 5, in two of four blocks: by the structure, and as ops are called."""
    structure = open_network(open_gguf(model)).structure
    trainer = open_trainer(model, VECTOR)
    whole = sum(2 * n * k for n, k in structure.linear_shapes(0).values())
    pairs = sum(abs(s - t) <= 5 for n in (40, 3) for s in range(n) for t in range(n))
    attention = 4 * 64 * (2 * (1600 + 9) + 2 * pairs)
    assert structure.flops(trainer.plan.run, [40, 3]).blocks == 4 * 43 * whole + attention
    with clocked(trainer.ops) as spent:
        trainer.decoder.pooled(collate(documents((40, 3)), share=False))
    assert spent["attention_forward"].flops == attention


def test_what_another_architecture_has_is_refused(model):
    with pytest.raises(UsageError, match="no ffn_gate"):
        open_trainer(model, classes(2), targets="gate_proj")


@pytest.mark.parametrize(("key", "value", "message"), [
    ("hidden_activation", "relu", "hidden_activation = relu"), ("rope.scaling.type", "yarn", "rope.scaling.type"),
    ("block_count", 5, r"lacks the tensor blk\.4\."), ("attention.causal", True, "see both ways"),
    ("attention.sliding_window_pattern", [True, False], "lists 2 windows|has 2 values")])
def test_other_variants_are_refused(modern, tmp_path, key, value, message):
    with pytest.raises((UnsupportedError, FormatError), match=message):
        open_network(open_gguf(write_modern(tmp_path / "m.gguf", modern, **{key: value})))
