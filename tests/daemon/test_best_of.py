"""best_of: more answers are made than are given, which are those with the greatest mean log-probability."""

import pytest

ASK = {"prompt": "turn the light", "max_tokens": 6, "temperature": 1.0, "seed": 3}


def choices(http, **options):
    said = http.post("/v1/completions", json={**ASK, **options})
    assert said.status_code == 200, said.text
    return said.json()["choices"], said.json()["usage"]


def test_the_likeliest_of_all_are_given(http):
    every, _ = choices(http, n=6, logprobs=0)
    means = {each["text"]: sum(each["logprobs"]["token_logprobs"]) / len(each["logprobs"]["token_logprobs"])
             for each in every}
    expected = sorted(means, key=means.get, reverse=True)
    found, usage = choices(http, best_of=6, n=2)
    assert [each["text"] for each in found] == expected[:2]
    assert [each["index"] for each in found] == [0, 1]
    assert all(each["logprobs"] is None for each in found)
    assert usage["completion_tokens"] == sum(len(each["logprobs"]["tokens"]) for each in every)
    [one], _ = choices(http, best_of=6, logprobs=1)
    assert one["text"] == expected[0]
    assert one["logprobs"]["top_logprobs"]
    two, _ = choices(http, prompt=["turn the light", "set"], best_of=3)
    assert len(two) == 2


@pytest.mark.parametrize(("options", "says"), [
    ({"best_of": 2, "n": 3}, "best_of is 2, and n is 3"), ({"best_of": 2, "stream": True}, "known at the end"),
    ({"best_of": 2, "temperature": 0}, "all answers are the same"), ({"best_of": 2, "echo": True}, "with echo"),
    ({"best_of": 200}, "best_of")])
def test_what_is_refused(http, options, says):
    said = http.post("/v1/completions", json={**ASK, **options})
    assert said.status_code == 400
    assert says in said.json()["error"]["message"]
