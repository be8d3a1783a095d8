"""What is said of a request that does not fit: in words of ours, with the place, the value and what is expected."""

import re

import pytest

SHAPE = {"n_context": 64}
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
JOBS = "/v1/fine_tuning/jobs"
FEEDBACK = "/v1/feedback"
USER = [{"role": "user", "content": "a"}]
JOB = {"model": "tiny", "training_file": "file-1"}


def said(http, path, body):
    refused = http.post(path, json=body)
    assert refused.status_code == 400, refused.text
    error = refused.json()["error"]
    return error["message"], error["param"]


@pytest.mark.parametrize(("path", "body", "says"), [
    (CHAT, {"messages": []}, "messages has 0 items; it must have 1 item or more"),
    (CHAT, {"messages": USER, "stop": ["a"] * 17}, "stop has 17 items; it must have 16 items or fewer"),
    (CHAT, {"messages": USER, "stop": 3}, "stop is 3; it must be text or a list"),
    (CHAT, {"messages": USER, "n": 0}, "n is 0; it must be 1 or more"),
    (CHAT, {"messages": USER, "temperature": "1"}, "temperature is '1'; it must be a number"),
    (CHAT, {"messages": USER, "seed": 1.5}, "seed is 1.5; it must be an integer"),
    (CHAT, {"messages": USER, "stream": 1}, "stream is 1; it must be true or false"),
    (CHAT, {"messages": USER, "logprobs": 1}, "logprobs is 1; it must be true or false"),
    (CHAT, {"messages": USER, "stream_options": 3}, "stream_options is 3; it must be an object"),
    (CHAT, {"messages": USER, "tools": [1]}, "tools.0 is 1; it must be an object"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages.0.content is 5; it must be text or a list"),
    (CHAT, {"messages": [{"content": "a"}]}, "messages.0.role is missing; /openapi.json says what can be given"),
    (COMPLETIONS, {"prompt": 7}, "prompt is 7; it must be text or a list"),
    (JOBS, {**JOB, "integrations": [1]}, "integrations has 1 item; it must be empty"),
    (JOBS, {**JOB, "hyperparameters": {"rank": 0}}, "hyperparameters.rank is 0; it must be 1 or more"),
    (JOBS, {**JOB, "hyperparameters": {"batch_size": "x"}},
     "hyperparameters.batch_size is 'x'; it must be an integer or 'auto'"),
    (JOBS, {**JOB, "hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs is 0; it must be 1 or more"),
    (JOBS, {**JOB, "hyperparameters": {"epochs": "many"}},
     "hyperparameters.epochs is 'many'; it must be a number or 'auto'"),
    (JOBS, {**JOB, "hyperparameters": {"patience": -1}}, "hyperparameters.patience is -1; it must be 0 or more"),
    (JOBS, {**JOB, "hyperparameters": {"learning_rate_multiplier": 0}},
     "hyperparameters.learning_rate_multiplier is 0; it must be more than 0"),
    (FEEDBACK, {"prompt": "a", "rating": "good"}, "rating is 'good'; it must be 'up' or 'down'"),
    (JOBS, {**JOB, "metadata": {str(i): "x" for i in range(17)}},
     "metadata has 17 items; it must have 16 items or fewer"),
    (JOBS, {**JOB, "metadata": {"k" * 65: "x"}},
     "a key of metadata has 65 characters; it must have 64 characters or fewer"),
    (JOBS, {**JOB, "metadata": {"key": "x" * 513}},
     "metadata.key has 513 characters; it must have 512 characters or fewer"),
    (JOBS, {**JOB, "metadata": {"key": 1}}, "metadata.key is 1; it must be text"),
])
def test_one_sentence_says_what_and_what_is_expected(http, path, body, says):
    message, param = said(http, path, body)
    assert message == says
    assert param in (says.split(" ")[0], "metadata." + "k" * 65)


@pytest.mark.parametrize(("path", "body", "wrong", "known"), [
    (FEEDBACK, {"prompt": "a", "answr": "b"}, "answr", ["answer", "correction", "completion_id"]),
    (CHAT, {"messages": USER, "max_token": 3}, "max_token", ["max_tokens", "temperature"]),
    (CHAT, {"messages": USER, "stream_options": {"usage": True}}, "usage", ["include_usage"]),
    (JOBS, {**JOB, "hyperparameters": {"ranks": 3}}, "ranks", ["rank", "n_epochs", "lr"]),
])
def test_a_wrong_field_is_told_the_right_ones(http, path, body, wrong, known):
    message, _ = said(http, path, body)
    assert message.startswith(f"there is no '{wrong}'")
    assert all(re.search(rf"\b{name}\b", message) for name in known), message


def test_queries_and_bodies_of_too_many_values_are_refused_in_the_same_words(http):
    for path in ("/v1/files?limit=x", "/v1/files?limit=0", "/v1/feedback?limit=101",
                 "/v1/fine_tuning/jobs?limit=1e30", "/v1/files?limit=" + "9" * 5000):
        refused = http.get(path)
        assert refused.status_code == 400
        said = refused.json()["error"]["message"]
        assert re.match(r"limit is .*; it must be (an integer|1 or more|100 or less)$", said)
    refused = http.post(CHAT, content=b'{"messages": [' + b",".join([b"0"] * 40_000) + b"]}",
                        headers={"Content-Type": "application/json"})
    assert refused.status_code == 413
    assert "32768 values" in refused.json()["error"]["message"]  # before each is complained of
