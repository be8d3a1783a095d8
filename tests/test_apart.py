"""Rows tokenised in another process are the rows tokenised here; what goes wrong there is raised here."""

import json

import numpy as np
import pytest

from edgetune import apart, data
from edgetune.errors import DataError, UnsupportedError
from edgetune.tokens import Tokenizer

OPTIONS = {"max_length": 128, "system": "Be brief.", "overflow": "truncate"}
ROWS = [{"prompt": f"turn on lamp {i}", "completion": "on" * i} for i in range(1, 30)]


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_the_same_examples(tiny_llama, rows, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("turn the lamp on, " * 40)
    tokenizer = Tokenizer(tiny_llama)
    got = apart.load(tiny_llama, (rows, None, text), **OPTIONS)
    assert got[1] is None
    for there, path in ((got[0], rows), (got[2], text)):
        here = data.load(path, tokenizer, **OPTIONS)
        assert [there.kind, there.truncated, there.skipped, there.digest] == [here.kind, here.truncated, here.skipped,
                                                                             here.digest]
        assert (there.tokens, there.supervised) == (here.tokens, here.supervised)
        for a, b in zip(there.examples, here.examples, strict=True):
            assert np.array_equal(a.tokens, b.tokens)
            assert np.array_equal(a.weights, b.weights)


def test_errors_cross_over(tiny_llama, rows, tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*none\.jsonl; check the path"):
        apart.load(tiny_llama, (rows, tmp_path / "none.jsonl"), **OPTIONS)
    with pytest.raises(UnsupportedError, match=r"cannot read the tokenizer of rows\.jsonl"):
        apart.load(rows, (rows,), **OPTIONS)
