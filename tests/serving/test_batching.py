"""The batcher against answers made one by one."""

import json
import random
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from batchers import DEADLINE, opened, started, until
from random_adapters import random_pairs, tokens_of, write_adapter
from tiny import write_tiny

from edgetune.errors import EdgetuneError, MismatchError, TooMuchError, UsageError
from edgetune.llamacpp.json_schema import grammar_of
from edgetune.serving import batcher as batching
from edgetune.serving.batcher import Batcher
from edgetune.serving.completion import Completion
from edgetune.serving.llama import LlamaModel

# ---- the same answers ------------------------------------------------------------------------------------------------


@pytest.mark.dev
@pytest.mark.parametrize("context", [96, 512])
def test_together_with_three_adapters_as_one_by_one(each_known, context, monkeypatch):
    """Where the cache is too small for all that are at work, some are put back and continue later."""
    put_back: list[int] = []
    really = Batcher._put_back
    monkeypatch.setattr(Batcher, "_put_back", lambda self, answer: put_back.append(1) or really(self, answer))
    monkeypatch.setattr(batching, "GROWTH", 1)  # begin as many as there is any room for
    rows = each_known.rows
    with opened(each_known.model, each_known.files, context) as served, started(served) as batcher:
        for _ in range(3):  # the second time from what the first left in the cache
            completions = [batcher.submit(prompt, adapter=adapter, max_tokens=10) for adapter, prompt, _ in rows]
            assert [completion.text() for completion in completions] == [text for _, _, text in rows]
            assert {(completion.finish, completion.completion_tokens) for completion in completions} == {("length", 10)}
    assert bool(put_back) == (context == 96)


@pytest.mark.slow
def test_many_threads_ask_cancel_load_and_unload(each_known):
    """Every answer is whole or, cancelled, the beginning of what it would have been."""
    rows = each_known.rows
    wrong = list[tuple[str, str]]()

    def client(seed):
        rng = random.Random(seed)
        for _ in range(25):
            adapter, prompt, text = rng.choice(rows)
            completion = batcher.submit(prompt, adapter=adapter, max_tokens=10)
            got = ""
            if rng.random() < 0.3:
                got = next(iter(completion), "")
                completion.cancel()
            got += completion.text()
            if not (got == text if completion.finish == "length" else text.startswith(got)):
                wrong.append((got, text))

    with opened(each_known.model, each_known.files, 160) as served, started(served) as batcher:
        with ThreadPoolExecutor(9) as pool:
            clients = [pool.submit(client, seed) for seed in range(8)]
            while not all(one.done() for one in clients):
                batcher.load("c", each_known.files["a"])
                _, prompt, text = next(row for row in rows if row[0] == "a")
                last = batcher.submit(prompt, adapter="c", max_tokens=10)
                batcher.unload("c")  # waits for it
                assert (last.finish, last.text()) == ("length", text)
        for one in clients:
            one.result()
    assert not wrong


def test_a_seed_decides_as_alone(served, batcher):
    prompts = [tokens_of(12, seed) for seed in range(5)]
    options = {"max_tokens": 20, "temperature": 1.3, "top_k": 0}
    together = [batcher.submit(prompt, seed=seed, **options) for seed, prompt in enumerate(prompts)]
    texts = [completion.text() for completion in together]
    free = [batcher.submit(prompts[0], **options).text() for _ in range(3)]
    assert len({texts[0], *free}) == 4  # no seed is any seed
    batcher.stop()
    for seed, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        served.reset()
        assert "".join(served.generate(prompt, seed=seed, **options)) == text
    assert len(set(texts)) == len(texts)


def test_a_grammar_gives_the_same_alone_and_beside_others(tmp_path):
    """Others with other grammars, adapters and no grammar at all; those that are greedy and those that are sampled.
    The weights are floats, and answers are short: sums are rounded otherwise beside others, which may decide a race.
    """
    model = write_tiny(tmp_path / "tiny.gguf", n_context=1024)
    grammars = ["", "root ::= [a-e]{12}", grammar_of({"type": "array", "items": {"enum": ["x", 7]}, "maxItems": 9})]
    asked = [{"prompt": tokens_of(12, seed), "grammar": grammars[seed % 3], "adapter": (None, "a", "b")[seed % 5 % 3],
              "max_tokens": 16, "temperature": (seed % 3 == 1) * 1.0, "seed": seed, "presence_penalty": seed % 4 / 2,
              "logit_bias": ((5, 3.0),) * (seed % 2)} for seed in range(16)]
    with LlamaModel(model, context=1024, threads=1, sequences=32) as served:
        for seed, name in enumerate("ab"):
            served.load_adapter(write_adapter(tmp_path / name, random_pairs(model, {"attn_q": 4}, seed), 8.0), name)
        with started(served, parallel=16) as batcher:
            alone = [batcher.submit(**options).text() for options in asked]
            together = [batcher.submit(**options) for options in asked]
            assert [completion.text() for completion in together] == alone
    assert [completion.finish for completion in together[1::3]] == ["stop"] * 5
    assert all(re.fullmatch("[a-e]{12}", text) for text in alone[1::3])
    for text, completion in zip(alone[2::3], together[2::3], strict=True):
        assert completion.finish == "length" or set(json.loads(text)) <= {"x", 7}


def test_ends(served, batcher, known, monkeypatch):
    adapter, prompt, text = next(row for row in known if len(row[2]) > 4)
    whole = batcher.submit(prompt, adapter=adapter, max_tokens=10)
    assert "".join(whole) == text
    assert (whole.finish, whole.completion_tokens, whole.prompt_tokens) == ("length", 10, len(prompt))
    assert whole.text() == ""  # all was taken
    stopped = batcher.submit(prompt, adapter=adapter, max_tokens=10, stop=[text[2:4], "absent"])
    assert (stopped.text(), stopped.finish) == (text[: text.index(text[2:4])], "stop")
    seen: list[int] = []
    monkeypatch.setattr(served.tokenizer, "is_end", lambda token: seen.append(token) or len(seen) == 4)
    ended = batcher.submit(prompt, adapter=adapter, max_tokens=10)
    assert text.startswith(ended.text())
    assert (ended.finish, ended.completion_tokens) == ("stop", 3)
    monkeypatch.undo()
    full = batcher.submit(tokens_of(500), max_tokens=400)
    full.text()
    assert (full.finish, full.completion_tokens) == ("length", 12)


# ---- asking, waiting, leaving ----------------------------------------------------------------------------------------


def test_wrong_requests_are_refused_at_once(batcher):
    for options, kind, what in (
        ({"prompt": []}, UsageError, "empty"),
        ({"prompt": tokens_of(512)}, EdgetuneError, "do not fit the context of 512 with an answer"),
        ({"prompt": [10**6]}, UsageError, "token ids"),
        ({"max_tokens": 0}, UsageError, "max_tokens is 0"),
        ({"temperature": -1.0}, UsageError, "temperature is -1.0"),
        ({"stop": [""]}, UsageError, "stop string"),
        ({"adapter": "c"}, UsageError, "no adapter named 'c'"),
    ):
        with pytest.raises(kind, match=what):
            batcher.submit(**{"prompt": tokens_of(5), **options})
    assert not batcher.busy


def test_too_many_are_told_to_come_again(served):
    with started(served, parallel=1, queue=2) as batcher:
        first = batcher.submit(tokens_of(9), max_tokens=300)
        until(lambda: batcher.facts()["working"] == 1)
        waiting = [batcher.submit(tokens_of(9), max_tokens=2) for _ in range(2)]
        with pytest.raises(TooMuchError, match="2 requests wait already"):
            batcher.submit(tokens_of(9))
        waiting[0].cancel()  # leaves the queue though the first one goes on
        assert (waiting[0].text(), waiting[0].finish) == ("", "cancelled")
        batcher.submit(tokens_of(9), max_tokens=1)
        first.cancel()
        text = first.text()
        assert first.finish == "cancelled"
        again = batcher.submit(tokens_of(9), max_tokens=first.completion_tokens)
        assert again.text().startswith(text)  # what it gave was right
        assert waiting[1].text()
    with started(served, parallel=3, queue=2) as batcher:
        with batcher._wake:  # none has begun yet, but three could
            completions = [batcher.submit(tokens_of(9), max_tokens=2) for _ in range(5)]
            with pytest.raises(TooMuchError):
                batcher.submit(tokens_of(9))
        assert len({completion.text() for completion in completions}) == 1
    with pytest.raises(UsageError, match="parallel is 16; choose from 1 to 15"):
        Batcher(served, parallel=16, queue=1)


def test_adapters_come_and_go_while_others_answer(batcher, files, tmp_path, known):
    long = batcher.submit(tokens_of(9), max_tokens=400)
    batcher.load("c", files["b"])
    assert not long.finish
    _, prompt, text = next(row for row in known if row[0] == "b")
    assert batcher.submit(prompt, adapter="c", max_tokens=10).text() == text
    with pytest.raises(UsageError, match="'c' is loaded already"):
        batcher.load("c", files["b"])
    with pytest.raises(MismatchError):
        batcher.load("d", write_adapter(tmp_path / "d.gguf", {"blk.9.attn_q": next(iter(random_pairs(
            batcher.served.path, {"attn_q": 2}, 0).values()))}, 1.0))
    with pytest.raises(UsageError, match="no adapter named 'd'"):
        batcher.unload("d")
    begun = threading.Event()
    last = batcher.submit(prompt, adapter="c", max_tokens=100, on_piece=lambda *_: begun.set())
    assert begun.wait(DEADLINE)
    with ThreadPoolExecutor(1) as pool:
        gone = pool.submit(batcher.unload, "c")
        until(lambda: "c" in batcher._leaving)
        with pytest.raises(UsageError, match="'c' is being removed"):
            batcher.submit(prompt, adapter="c")
        assert not gone.done()
        assert last.text().startswith(text)
        gone.result(DEADLINE)
    assert last.finish == "length"
    with pytest.raises(UsageError, match="no adapter named 'c'"):
        batcher.submit(prompt, adapter="c")
    batcher.load("c", files["a"])  # the name may be had again, and nothing of the old one is left in the cache
    _, prompt, text = next(row for row in known if row[0] == "a")
    assert batcher.submit(prompt, adapter="c", max_tokens=10).text() == text
    batcher.unload("c")
    long.cancel()
    assert long.text()


def test_a_failed_decode_ends_those_at_work_and_no_more(served, batcher, known):
    adapter, prompt, text = known[0]
    cache = served.cache
    cache.batch.add(tokens_of(512), 0, 0, np.zeros(512, np.bool_))
    cache.decode()  # behind the batcher's back: all cells are taken
    completions = [batcher.submit(prompt, adapter=adapter, max_tokens=10) for _ in range(3)]
    with pytest.raises(EdgetuneError, match="llama_decode: 1"):
        completions[0].text()
    assert completions[0].finish == "error"
    for completion in completions[1:]:  # at work too, or waiting
        until(lambda completion=completion: completion.finish)
        assert completion.error or completion.text() == text
    assert batcher.submit(prompt, adapter=adapter, max_tokens=10).text() == text


def test_pieces_reach_who_asked(batcher, known):
    adapter, prompt, text = known[0]
    told: list[tuple[Completion, str | None, str | None]] = []
    ended = threading.Event()

    def on_piece(completion, piece):
        told.append((completion, piece, completion.finish))
        if piece is None:
            ended.set()

    completion = batcher.submit(prompt, adapter=adapter, max_tokens=10, on_piece=on_piece)
    assert ended.wait(DEADLINE)
    pieces = list(completion)
    assert [piece for _, piece, _ in told] == [*pieces, None]
    assert "".join(pieces) == text
    assert {of for of, _, _ in told} == {completion}
    assert (told[0][2], told[-1][2]) == (None, "length")

    def broken(_ticket, _piece):
        raise RuntimeError("the loop is closed")

    other = batcher.submit(prompt, adapter=adapter, max_tokens=10)
    lost = batcher.submit(prompt, adapter=adapter, max_tokens=10, on_piece=broken)
    with pytest.raises(RuntimeError, match="the loop is closed"):
        lost.text()
    assert lost.finish == "error"
    assert other.text() == text


def test_it_says_when_it_is_busy(served):
    told: list[bool] = []
    with started(served, parallel=2) as batcher:
        batcher.on_busy = told.append
        before = batcher.idle_since
        with batcher._wake:  # none ends before the last one came
            completions = [batcher.submit(tokens_of(9), max_tokens=30) for _ in range(4)]
        assert batcher.busy
        for completion in completions:
            completion.text()
        until(lambda: told[-1:] == [False])
        assert told == [True, False]
        assert not batcher.busy
        assert batcher.idle_since > before


def test_stopping(served, known):
    adapter, prompt, text = known[0]
    batcher = Batcher(served, parallel=2, queue=9)
    refused = (lambda: batcher.submit(prompt), lambda: batcher.load("c", Path("c")))
    for ask in refused:
        with pytest.raises(EdgetuneError, match="takes no requests"):
            ask()  # it was not started
    batcher.start()
    completions = [batcher.submit(prompt, adapter=adapter, max_tokens=10) for _ in range(6)]
    batcher.stop()
    assert [(completion.finish, completion.text()) for completion in completions] == [("length", text)] * 6
    for ask in refused:
        with pytest.raises(EdgetuneError, match="takes no requests"):
            ask()
    batcher.stop()  # twice is fine
    with started(served, parallel=1) as batcher:
        completions = [batcher.submit(tokens_of(9), max_tokens=400) for _ in range(3)]
        batcher.stop(now=True)
        assert [completion.finish for completion in completions] == ["cancelled"] * 3
