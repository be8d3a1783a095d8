"""The system message that an adapter was trained with, in its record and in commands that answer with it."""

from typing import Any

import pytest
from commands import run
from json_lines import write_lines

from edgetune.adapters import store
from edgetune.adapters.published import public_record
from edgetune.data.dataset import load_rows
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.runs.train import train
from edgetune.serving.llama import LlamaModel

SYSTEM = "Be brief."
OPTIONS: dict[str, Any] = {"rank": 2, "threads": 1, "max_length": 64, "steps": 2, "lr": 1e-3, "anchors": 0}
ROWS = [{"prompt": f"lamp {i}", "completion": f"on {i}"} for i in range(4)]
ASK = [{"role": "user", "content": "lamp 1"}]


def conversation(i, *systems: str):
    return {"messages": [*({"role": "system", "content": system} for system in systems),
                         {"role": "user", "content": f"lamp {i}"}, {"role": "assistant", "content": "on"}]}


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory):
    """Trained with SYSTEM, as an option."""
    out = tmp_path_factory.mktemp("adapter") / "learned"
    train(model, ROWS, out, eval="none", answers=False, system=SYSTEM, **OPTIONS)
    return out


def test_it_is_in_the_record_of_a_run(adapter):
    assert store.read_system(adapter) == store.read_system(adapter / store.FILE) == SYSTEM
    assert store.open_adapter(adapter).system == SYSTEM
    assert public_record(store.read_run(adapter))["system"] == SYSTEM
    assert store.read_system(None) == ""


def test_one_that_all_rows_have_is_kept_too(model, tmp_path):
    train(model, [conversation(i, SYSTEM) for i in range(4)], tmp_path / "out", eval="none", answers=False, **OPTIONS)
    assert store.read_system(tmp_path / "out") == SYSTEM


@pytest.mark.parametrize(("rows", "found"), [
    ([conversation(1, SYSTEM), conversation(2, SYSTEM)], SYSTEM),
    ([conversation(1, SYSTEM), "text of any length"], SYSTEM), ([conversation(1, SYSTEM), conversation(2)], ""),
    ([conversation(1, SYSTEM), conversation(2, "Be kind.")], ""), (ROWS, "")])
def test_rows_that_differ_have_none(model, rows, found):
    assert load_rows(rows, Tokenizer(model), max_length=64).system == found


def test_adapters_of_earlier_versions_open(model, adapter, tmp_path):
    """They have the option alone, no message or no record."""
    pairs = store.open_adapter(adapter).pairs
    with LlamaModel(model) as served:
        for name, record, found in (("option", {"options": {"system": SYSTEM}}, SYSTEM), ("none", {"options": {}}, ""),
                                    ("bare", {}, "")):
            store.save_adapter(tmp_path / name, pairs, served.base, record)
            served.load_adapter(tmp_path / name, name)
            assert served.system_of(name) == found
        bare = (tmp_path / "bare" / store.FILE).rename(tmp_path / "lora.gguf")
        assert store.read_system(bare) == store.open_adapter(bare).system == ""


def test_a_chat_without_one_is_answered_with_it(model, adapter, monkeypatch):
    asked: list[list[int]] = []
    prepare = LlamaModel.prepare

    def noted(self, *args: Any, **options: Any):
        request = prepare(self, *args, **options)
        asked.append(list(request.tokens))
        return request

    monkeypatch.setattr(LlamaModel, "prepare", noted)
    own = [{"role": "system", "content": "Be kind."}, *ASK]
    with LlamaModel(model) as served:
        served.load_adapter(adapter, "learned")
        for name in (None, "learned"):
            served.use(name)
            for messages in (ASK, [{"role": "system", "content": SYSTEM}, *ASK], own):
                "".join(served.chat(messages, max_tokens=2))
    bare, with_it, with_own, *of_adapter = asked
    assert bare != with_it != with_own
    assert of_adapter == [with_it, with_it, with_own]


@pytest.mark.parametrize("engine", ["llama.cpp", "native"])
def test_commands_use_it(engine, model, adapter, tmp_path):
    data = write_lines(tmp_path / "rows.jsonl", ROWS)
    prompt = "lamp 1" if engine == "llama.cpp" else data
    of_adapter = ("--adapter", adapter, "--engine", engine, "--threads", 1, "--json")
    for command in (("generate", model, prompt, "--max-tokens", 12, "--temperature", 2), ("eval", model, data)):
        said = [run(*command, *of_adapter, *system) for system in ((), ("--system", SYSTEM), ("--system", "Be kind."))]
        assert said[0] == said[1]
        assert said[0] != said[2]
