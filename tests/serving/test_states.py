"""A model whose blocks have a state of all earlier tokens, which cannot become that of fewer: answers are those that it
gives alone, whatever was answered before or is answered beside.
"""

import llama_cpp
import numpy as np
import pytest
from batchers import started
from random_adapters import random_updates, tokens_of
from tiny import write_tiny

from edgetune.adapters.store import save_gguf
from edgetune.errors import UnsupportedError
from edgetune.formats.bundle import open_bundle
from edgetune.formats.gguf import open_gguf
from edgetune.formats.shape import read_shape
from edgetune.serving.compiled import CompiledPrompt, compile_prompt
from edgetune.serving.llama import LlamaModel

ANSWER = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("lfm2") / "tiny.gguf", "lfm2")


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory):
    base = open_gguf(model)
    names = [f"blk.{i}.{name}" for i in range(3) for name in read_shape(base).linear_shapes(i)]
    path = tmp_path_factory.mktemp("adapter") / "a.gguf"
    save_gguf(path, random_updates(base, names, size=0.3), base)
    return path


@pytest.fixture
def served(model, adapter):
    with LlamaModel(model, context=512, threads=1, sequences=8) as served:
        served.load_adapter(adapter, "a")
        yield served


def alone(served, prompt):
    """A greedy answer by llama_cpp's own class, which computes each prompt anew."""
    own = llama_cpp.Llama(str(served.path), n_ctx=512, n_threads=1, verbose=False, logits_all=True, flash_attn=True)
    own.eval(prompt)
    found = []
    for _ in range(ANSWER):
        found.append(int(np.argmax(own.scores[len(prompt) + len(found) - 1])))
        own.eval(found[-1:])
    own.close()
    return b"".join(served.printed(token) for token in found).decode(errors="replace")


def prompts():
    """Some begin others, some begin alike, one comes twice."""
    stem = tokens_of(40, 1)
    return [stem, stem[:25], [*stem[:25], *tokens_of(9, 2)], stem, [*stem, *tokens_of(5, 3)], tokens_of(7, 4)]


def test_answers_are_those_of_llama_cpp_whatever_came_before(served):
    for prompt in prompts():
        text = "".join(served.generate(prompt, max_tokens=ANSWER, temperature=0))
        assert text == alone(served, prompt)


def test_many_together_as_one_by_one(served):
    found = dict(served.complete(prompts(), [ANSWER] * len(prompts())))
    for number, prompt in enumerate(prompts()):
        assert found[number] == alone(served, prompt)


def decided(served, prompt):
    """The beginning of a greedy answer up to the first close race, which other tokens beside it may turn."""
    ids = list(prompt)
    while len(ids) < len(prompt) + ANSWER:
        logits = served.logits(ids)[-1]
        second, first = np.sort(logits)[-2:]
        if first - second < 0.02:
            break
        ids.append(int(logits.argmax()))
    served.reset()
    said = b"".join(served.printed(token) for token in ids[len(prompt):])
    return said.decode(errors="replace").rstrip("\ufffd"), len(ids) - len(prompt)


def test_a_batcher_with_an_adapter_and_without(served):
    wanted = {}
    count = 0
    for adapter in (None, "a"):
        served.use(adapter)
        for number, prompt in enumerate(prompts()):
            wanted[adapter, number], tokens = decided(served, prompt)
            count += tokens
    assert wanted[None, 0] != wanted["a", 0]
    assert count > 0.5 * ANSWER * len(wanted)
    served.use(None)
    with started(served) as batcher:
        for _ in range(3):  # the second time from what the first left in the cache
            asked = {(adapter, number): batcher.submit(prompt, adapter=adapter, max_tokens=ANSWER, temperature=0)
                     for number, prompt in enumerate(prompts()) for adapter in (None, "a")}
            said = {key: answer.text() for key, answer in asked.items()}
            assert [key for key, text in said.items() if not text.startswith(wanted[key])] == []


def test_what_needs_its_keys_is_refused(model, tmp_path):
    with pytest.raises(UnsupportedError, match="blocks without keys, whose memory of a prompt cannot be stored yet"):
        compile_prompt(open_bundle(model), CompiledPrompt("Be brief."), tmp_path / "out")
