"""Text made of tokens comes as soon as it is certain; log_softmax and divergences are PyTorch's in float64."""

from itertools import pairwise

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from edgetune.llamacpp.divergence import divergence
from edgetune.llamacpp.sampling import TextStream, log_softmax


def split(data, cuts):
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(places)]


@examples(100)
@given(st.text("abä€😀", max_size=20), st.lists(st.text("abä😀", min_size=1, max_size=3), max_size=3),
       st.lists(st.integers(0, 100), max_size=20))
def test_text_does_not_depend_on_where_tokens_cut(text, stop, cuts):
    stream = TextStream(stop)
    pieces = [stream.push(part) for part in split(text.encode(), cuts)]
    pieces.append(stream.flush())
    ends = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    assert "".join(pieces) == (text[: min(ends)[1]] if ends else text)
    assert stream.stopped == bool(ends)
    assert stream.push(b"x") + stream.flush() == ("" if ends else "x")


def test_text_comes_as_soon_as_it_is_certain():
    stream = TextStream(["end"])
    parts = (b"b", b"e", b"e\xe2", b"\x82", b"\xacn", b"en", b"x\xff", b"\xf0")
    assert [stream.push(part) for part in parts] == ["b", "", "e", "", "e€n", "", "enx\ufffd", ""]
    assert stream.flush() == "\ufffd"


def test_log_softmax():
    torch = pytest.importorskip("torch")
    logits = np.random.default_rng(0).normal(0, 30, (5, 1000)).astype(np.float32)
    truth = torch.log_softmax(torch.from_numpy(logits).double(), -1).numpy()
    assert np.abs(log_softmax(logits) - truth).max() < 1e-5
    assert np.abs(log_softmax(logits[2]) - truth[2]).max() < 1e-5
    assert np.isfinite(log_softmax(np.array([1e30, -1e30], np.float32))).all()


@pytest.mark.parametrize("positions", [1, 64, 150])
@pytest.mark.parametrize("shorter", [0, 1])
def test_divergence(positions, shorter):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(positions)
    source = rng.normal(0, 3, (positions, 50)).astype(np.float32)
    model = source + rng.normal(0, 0.5, source.shape).astype(np.float32)
    following = rng.integers(0, 50, positions - shorter).astype(np.int32)
    found = divergence(source, model, following)
    p, q = (torch.log_softmax(torch.from_numpy(logits).double(), -1) for logits in (source, model))
    kl = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    tokens = torch.from_numpy(following).long()

    def loss(logp):
        return float(torch.nn.functional.nll_loss(logp[: len(tokens)], tokens, reduction="sum")) if len(tokens) else 0.0

    wanted = (loss(p), loss(q), kl.sum(), kl.square().sum(), (p.argmax(-1) == q.argmax(-1)).sum())
    assert found == pytest.approx([float(value) for value in wanted], rel=1e-4)
