"""edgetune.serving.draws: several answers to one prompt, made together."""

import numpy as np
import pytest

from edgetune.errors import UsageError
from edgetune.llamacpp.sampling import log_softmax
from edgetune.serving.draws import MOST, Draws
from edgetune.serving.llama import LlamaModel

PROMPT = [3, 4, 5, 6, 7]


@pytest.fixture(scope="module")
def served(tiny_llama):
    with LlamaModel(tiny_llama, threads=1) as served:
        yield served


def drawn(served, count=6, **options):
    return sorted(Draws(served, PROMPT, count, **{"temperature": 1.0, "max_tokens": 8, **options}),
                  key=lambda each: each.index)


def test_each_answer_is_that_of_its_seed_alone(served):
    found = drawn(served, seed=5)
    assert [each.index for each in found] == [*range(6)]
    assert len({each.text for each in found}) > 1
    for each in found:
        [alone] = Draws(served, PROMPT, 1, temperature=1.0, max_tokens=8, seed=5 + each.index)
        assert (alone.text, alone.tokens, alone.finish) == (each.text, each.tokens, each.finish)
    assert drawn(served, seed=5) == found
    assert [each.text for each in drawn(served, seed=6)][:5] == [each.text for each in found][1:]


def test_log_probabilities_are_those_of_the_whole_text(served):
    """Computed again for the greedy answer, token by token."""
    [found] = Draws(served, PROMPT, 1, max_tokens=6)
    tokens = [*PROMPT]
    total = 0.0
    for _ in range(found.tokens + (found.finish == "stop")):
        logp = log_softmax(served.logits(tokens)[-1])
        tokens.append(int(np.argmax(logp)))
        total += float(logp.max())
    assert found.logprob == pytest.approx(total, abs=0.02)
    assert found.likelihood == pytest.approx(found.logprob / (len(tokens) - len(PROMPT)))


def test_the_prompt_is_read_once_and_unfinished_answers_can_be_left(served, monkeypatch):
    prompt = PROMPT * 20  # more than all that is answered to it, with rows of filling
    before = [*served.generate(prompt, max_tokens=2)]
    sizes = []
    decode = served.cache.decode
    monkeypatch.setattr(served.cache, "decode", lambda: sizes.append(served.cache.batch.size) or decode())
    served.reset()
    draws = Draws(served, prompt, 4, temperature=1.0, max_tokens=8, logit_bias=((served.tokenizer.eos, -100.0),))
    first = next(iter(draws))
    assert sum(sizes) <= len(prompt) + 4 * 8 + 8 * len(sizes) < 3 * len(prompt), "rows of filling included"
    assert draws.tokens >= first.tokens
    draws.close()
    assert [*draws] == []
    assert [*served.generate(prompt, max_tokens=2)] == before, "the model answers on"


def test_a_stop_string_ends_an_answer(served):
    [whole] = Draws(served, PROMPT, 1, max_tokens=8, logit_bias=((served.tokenizer.eos, -100.0),))
    assert len(whole.text) > 3
    stop = whole.text[2:4]
    [cut] = Draws(served, PROMPT, 1, max_tokens=8, stop=stop, logit_bias=((served.tokenizer.eos, -100.0),))
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish == "stop"
    assert whole.finish == "length"


@pytest.mark.parametrize(("count", "options", "says"), [
    (0, {}, "samples is 0"), (MOST + 1, {}, "samples is"), (2, {"temperature": -1.0}, "temperature is -1"),
    (2, {"max_tokens": 0}, "max_tokens is 0")])
def test_what_is_refused(served, count, options, says):
    with pytest.raises(UsageError, match=says):
        Draws(served, PROMPT, count, **options)
