"""Prompts with their log-probabilities, as lm-evaluation-harness and others ask for them, from a real daemon."""

import llama_cpp
import numpy as np
import openai
import pytest
from tiny import write_tiny
from vocabularies import write_sentencepiece

# lm-evaluation-harness's model local-completions asks for a log-likelihood by these
HARNESS = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
TEXT = "the light 日本 is on"


@pytest.fixture(scope="module", params=["bpe", "sentencepiece"])
def model(request, tmp_path_factory):
    write = write_tiny if request.param == "bpe" else write_sentencepiece
    return write(tmp_path_factory.mktemp("model") / "Tiny.gguf")


@pytest.fixture(scope="module")
def truth(model):
    made = llama_cpp.Llama(str(model), n_ctx=128, logits_all=True, verbose=False)
    yield made
    made.close()


def loglikelihoods(truth, tokens):
    """Of all tokens but the first, and whether each is the likeliest, by llama-cpp-python."""
    truth.reset()
    truth.eval(tokens)
    logits = truth.scores[: len(tokens) - 1].astype(np.float64)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    found = logp[np.arange(len(logits)), tokens[1:]]
    return list(found), list(found == logp.max(-1))


def test_lists_of_token_ids_as_the_harness_asks(client, truth):
    prompts = [truth.tokenize(text.encode(), add_bos=False) for text in (TEXT, "hi ho", TEXT + " hi")]
    said = client.completions.create(model="tiny", prompt=prompts, **HARNESS)
    assert said.usage.prompt_tokens == sum(map(len, prompts))
    for prompt, choice in zip(prompts, said.choices, strict=True):
        found = choice.logprobs
        assert len(found.tokens) == len(prompt) + 1  # the harness cuts the last one off
        assert found.token_logprobs[0] is None
        assert found.top_logprobs[0] is None
        expected, likeliest = loglikelihoods(truth, prompt)
        np.testing.assert_allclose(found.token_logprobs[1:-1], expected, atol=0.01)
        tops = [max(top.values()) for top in found.top_logprobs[1:]]
        assert [top == own for top, own in zip(tops, found.token_logprobs[1:-1], strict=False)] == likeliest
        assert choice.text.startswith(truth.detokenize(prompt, special=True).decode())


def test_text_its_tokens_and_their_places(client, truth):
    options = {"model": "tiny", "prompt": TEXT, "logprobs": 2, "echo": True}
    said = client.completions.create(**options, max_tokens=0)
    choice, = said.choices
    assert (choice.text, choice.finish_reason, said.usage.completion_tokens) == (TEXT, "length", 0)
    expected, _ = loglikelihoods(truth, truth.tokenize(TEXT.encode(), add_bos=True))
    np.testing.assert_allclose(choice.logprobs.token_logprobs[1:], expected, atol=0.01)
    for token, place in zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True):
        assert "\ufffd" in token or choice.text[place:].startswith(token)
    answered = client.completions.create(**options, max_tokens=4, n=2)
    plain = client.completions.create(model="tiny", prompt=TEXT, max_tokens=4).choices[0].text
    assert [each.text for each in answered.choices] == [TEXT + plain] * 2
    chunks = [chunk.choices[0] for chunk in client.completions.create(**options, max_tokens=4, stream=True)]
    assert "".join(chunk.text for chunk in chunks) == TEXT + plain
    streamed = [place for chunk in chunks if chunk.logprobs for place in chunk.logprobs.text_offset]
    assert streamed[: len(choice.logprobs.tokens)] == choice.logprobs.text_offset
    without = client.completions.create(model="tiny", prompt=[TEXT, "hi"], max_tokens=0, extra_body={"echo": True})
    assert [each.text for each in without.choices] == [TEXT, "hi"]
    assert without.choices[0].logprobs is None


@pytest.mark.parametrize(("wrong", "says"), [
    ({"max_tokens": 0}, "max_tokens is 0"), ({"echo": 1}, "echo"),
    ({"prompt": [[5] * 120] * 40, "echo": True, "logprobs": 20, "max_tokens": 0}, "100000 at once")])
def test_what_cannot_be_is_refused_in_a_sentence(client, wrong, says):
    with pytest.raises(openai.BadRequestError, match=says):
        client.completions.create(**{"model": "tiny", "prompt": "hi", **wrong})
