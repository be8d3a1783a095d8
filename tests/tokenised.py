"""Rows tokenised in this process, for tests of what is done with them."""

import io
from contextlib import closing
from pathlib import Path

import pytest

from edgetune.data import loader
from edgetune.data.parts import STDIN
from edgetune.llamacpp.tokenizers import open_tokenizer

by_process = loader.load


def here(asked, _reads_stdin):
    """What the process would send, through the same format."""
    pipe = io.BytesIO()
    with closing(open_tokenizer(asked["model"])) as tokenizer:
        loader.send(pipe, loader._sets(asked, tokenizer))
    pipe.seek(0)
    return loader.receive(pipe)


def load(model, paths, config, *given, **more):
    if config.memory or Path(STDIN) in paths:
        return by_process(model, paths, config, *given, **more)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "_by_process", here)
        return by_process(model, paths, config, *given, **more)
