"""edgetune.serving.llama: what a model leaves behind: descriptors, maps, words, the file that says that it answers."""

import gc
import os
from pathlib import Path

import pytest
from random_adapters import random_pairs, tokens_of, write_adapter

from edgetune.errors import EdgetuneError
from edgetune.machine.sensors import Sensors, answering
from edgetune.serving.llama import LlamaModel


def test_close_gives_everything_back(tiny_llama, tmp_path):
    adapter = write_adapter(tmp_path / "a.gguf", random_pairs(tiny_llama, {"attn_q": 2}, 6), 2.0)

    def held():
        gc.collect()
        maps = Path("/proc/self/maps").read_text().splitlines()
        return len(list(Path("/proc/self/fd").iterdir())), sum(line.endswith(str(tiny_llama)) for line in maps)

    def once():
        with LlamaModel(tiny_llama, threads=1) as served:
            served.load_adapter(adapter, "a")
            served.use("a")
            list(served.generate(tokens_of(4), max_tokens=3))
            return served

    once()
    before = held()
    refuses_all_work(once(), adapter)
    assert held() == before


def refuses_all_work(closed, adapter):
    for use in (lambda: list(closed.generate([5])), lambda: closed.logits([5]), closed.reset, lambda: closed.use(None),
                lambda: closed.load_adapter(adapter, "b"), lambda: list(closed.complete([[5]], 1))):
        with pytest.raises(ValueError, match="closed"):
            use()
    closed.close()


def test_nothing_is_printed(tiny_llama, capfd):
    with LlamaModel(tiny_llama, threads=1) as served:
        list(served.generate("the light", max_tokens=3))
        with pytest.raises(EdgetuneError):
            served.load_adapter(tiny_llama, "x")
    assert capfd.readouterr() == ("", "")


def test_a_busy_file_exists_while_it_answers(tiny_llama, tmp_path):
    file = tmp_path / "busy"
    with LlamaModel(tiny_llama, threads=1, busy_file=file) as served:
        pieces = served.generate("turn on the light", max_tokens=8)
        assert not file.exists()
        next(pieces)
        assert file.read_text() == f"{os.getpid()}\n"
        assert Sensors(busy_file=str(file)).read().foreground
        list(pieces)
        assert not file.exists()
        pieces = served.generate("turn on the light", max_tokens=8)
        next(pieces)
        pieces.close()  # the listener has gone
        assert not file.exists()
    with answering(file):
        with answering(file):
            assert file.read_text() == f"{os.getpid()}\n" * 2
        assert Sensors(busy_file=str(file)).read().foreground  # the first to finish leaves the other's
        file.write_text(f"1{os.getpid()}\n{file.read_text()}")
    assert file.read_text() == f"1{os.getpid()}\n"
    with LlamaModel(tiny_llama, threads=1, busy_file=tmp_path / "none" / "busy") as served, pytest.raises(
            EdgetuneError, match="cannot write"):
        next(served.generate("turn", max_tokens=1))
