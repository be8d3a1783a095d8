"""Rows tokenised in this process, for tests of what is done with them."""

import io
import threading
from contextlib import closing
from pathlib import Path

from edgetune.data import loader
from edgetune.data.parts import STDIN
from edgetune.llamacpp.tokenizers import open_tokenizer

load_by_process = loader.load
by_process = loader._by_process
asks_here = threading.local()  # .yes: a daemon trains in one thread while a test reads rows in another


def here(asked, reads_stdin):
    """What the process would send, through the same format, where `load` of this thread wants it."""
    if not getattr(asks_here, "yes", False):
        return by_process(asked, reads_stdin)
    pipe = io.BytesIO()
    with closing(open_tokenizer(asked["model"], asked["markup"], asked["thinking"])) as tokenizer:
        loader.send(pipe, loader._sets(asked, tokenizer))
    pipe.seek(0)
    return loader.receive(pipe)


def load(model, paths, config, *given, **more):
    asks_here.yes = not config.memory and Path(STDIN) not in paths
    try:
        return load_by_process(model, paths, config, *given, **more)
    finally:
        asks_here.yes = False
