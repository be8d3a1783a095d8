"""Vectors that learn from pairs of texts: the loss of sentence-transformers, and what is served."""

import json
from contextlib import closing

import numpy as np
import pytest
from commands import run
from encoders import WORDS, tiny_bert, write_encoder
from json_lines import write_lines
from labelled import LLAMA_CPP, close, set_random

import edgetune
from edgetune.data.packing import collate
from edgetune.errors import DataError, FormatError, Interrupted, UsageError
from edgetune.evaluation.encoders import grade_vectors
from edgetune.formats.gguf import open_gguf
from edgetune.objectives.embed import Embed
from edgetune.runs.train import train
from edgetune.serving.classifier import Classifier
from edgetune.serving.embedding import EncoderFile
from edgetune.serving.encoder import Encoder
from edgetune.training.callbacks import RunCallbacks
from edgetune.training.trainer import Trainer

PAIRS = [{"anchor": f"turn {letter} on", "positive": f"the {letter} light"} for letter in "abcdefghijkl"]
TRIPLES = [{**row, "negative": f"{other['positive']} off"} for row, other in zip(PAIRS, PAIRS[1:] + PAIRS[:1],
                                                                                 strict=True)]
OPTIONS = {"rank": 4, "precision": "exact", "threads": 1, "lr": 3e-3, "batch_size": 6, "max_length": 16}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder") / "tiny.gguf", tiny_bert(), WORDS)


def opened(encoder, rows, **options):
    trainer = Trainer(encoder, objective=Embed(), **{**OPTIONS, **options})
    set_random(trainer)
    return trainer, trainer.add(rows).examples


@pytest.mark.parametrize(("rows", "columns"), [(PAIRS, 2), (TRIPLES, 3)], ids=["pairs", "triples"])
def test_the_loss_is_that_of_sentence_transformers(encoder, rows, columns):
    """MultipleNegativesRankingLoss with its default, a scale of 20, and its gradient by the vectors."""
    torch = pytest.importorskip("torch")
    losses = pytest.importorskip("sentence_transformers.losses")
    trainer, examples = opened(encoder, rows, batch_size=36)
    batch = collate(examples, share=False)
    vectors = trainer.decoder.pooled(batch).copy()
    parts = [torch.tensor(vectors[column::columns], requires_grad=True) for column in range(columns)]
    loss = losses.MultipleNegativesRankingLoss(model=None).compute_loss_from_embeddings(parts, None) * len(rows)
    loss.backward()
    found = Embed().weights(vectors, batch)
    assert found.loss == pytest.approx(loss.item(), rel=1e-4)
    for column, part in enumerate(parts):  # theirs passes through the length, along which ours is not yet projected
        own = vectors[column::columns]
        a = found.a[column::columns]
        close(-(a - own * (a * own).sum(1, keepdims=True)), part.grad)


def test_the_gradient_is_that_of_the_step_however_it_is_cut(encoder):
    """By finite differences, and the same in micro-batches of one pair, whose passages all others see."""
    gradients = []
    for micro in (64, 1):
        trainer, examples = opened(encoder, PAIRS[:6], micro_batch=micro)
        trainer.arena.flat("dlora").fill(0)
        trainer._learn(1, examples, 6.0)
        gradients.append(trainer.arena.flat("dlora").copy())
    close(*gradients)
    flat = trainer.arena.flat("lora")
    for i in np.argsort(-np.abs(gradients[0]))[:3]:
        found = []
        for step in (1e-3, -1e-3):
            flat[i] += step
            found.append(trainer.loss(examples)[0])
            flat[i] -= step
        assert gradients[0][i] == pytest.approx((found[0] - found[1]) / 2e-3, rel=0.03)


def test_the_same_passage_twice_is_not_wrong(encoder):
    trainer, examples = opened(encoder, [PAIRS[0], PAIRS[0]])
    batch = collate(examples, share=False)
    assert Embed().weights(trainer.decoder.pooled(batch), batch).loss == pytest.approx(0, abs=1e-6)


@pytest.mark.dev
def test_vectors_are_learned_and_served(encoder, tmp_path):
    """By our engine, and by llama.cpp of the merged file."""
    out = tmp_path / "out"
    result = train(encoder, PAIRS, out, PAIRS, objective=Embed(), epochs=30, **OPTIONS)
    assert result.loss_after < 0.5 * result.loss_before
    queries, passages = ([row[key] for row in PAIRS] for key in ("anchor", "positive"))
    before, after = ([edgetune.vectors(encoder, texts, adapter, threads=1) for texts in (queries, passages)]
                     for adapter in (None, out))
    assert np.mean((after[0] @ after[1].T).argmax(1) == np.arange(12)) > 0.9
    assert np.mean((before[0] @ before[1].T).argmax(1) == np.arange(12)) < 0.9
    run("adapters", "merge", encoder, out, "-o", tmp_path / "merged.gguf", "--to", "F32", "--threads", 1)
    with closing(EncoderFile(tmp_path / "merged.gguf", 1)) as file:
        found = np.empty((len(queries), file.embedder.width), np.float32)
        for _ in file.embedder.embed(found, [file.embedder.encode(text) for text in queries]):
            pass
    assert np.abs(found - after[0]).max() < LLAMA_CPP
    for program in ("peft", "ollama"):
        said = run("adapters", "export", out, "--to", program, "-o", tmp_path / program, "--base", encoder, code=2)
        assert "is an encoder" in said
        assert "--to onnx" in said
    with pytest.raises(FormatError, match="has no labels"):
        Classifier(encoder, out)
    with pytest.raises(UsageError, match="empty"):
        edgetune.vectors(encoder, [" "])


def test_the_command_learns_questions_and_answers(encoder, tmp_path):
    rows = write_lines(tmp_path / "rows.jsonl", [{"prompt": row["anchor"], "completion": row["positive"]}
                                                 for row in PAIRS])
    said = run("train", encoder, rows, "-o", tmp_path / "out", "--method", "embed", "--epochs", 2, "--threads", 1)
    assert "edgetune adapters merge" in said
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (record["objective"], record["status"]) == ({"name": "embed", "temperature": 0.05}, "done")


def test_a_stopped_run_ends_with_the_same_bytes(encoder, tmp_path):
    steps = []
    stopping = RunCallbacks(lambda event: steps.append(event["event"] == "step"), lambda: sum(steps) == 2)
    options = {**OPTIONS, "steps": 4, "objective": Embed()}
    train(encoder, TRIPLES, tmp_path / "whole", **options)
    with pytest.raises(Interrupted):
        train(encoder, TRIPLES, tmp_path / "stopped", callbacks=stopping, **options)
    train(encoder, TRIPLES, tmp_path / "stopped", resume=True, **options)
    assert (tmp_path / "whole" / "adapter.gguf").read_bytes() == (tmp_path / "stopped" / "adapter.gguf").read_bytes()


@pytest.mark.parametrize(("rows", "said"), [
    ([{"anchor": "light"}] * 4, "is no pair of texts"),
    ([{"anchor": "light", "positive": " "}] * 4, "positive is empty"),
    ([{"anchor": "light", "positive": ["on"]}] * 4, "positive is a JSON list"),
    (PAIRS[:1], "there is one pair"),
])
def test_other_rows_are_refused(encoder, tmp_path, rows, said):
    with pytest.raises(DataError, match=said):
        train(encoder, rows, tmp_path / "out", "none", objective=Embed(), **OPTIONS)


def test_a_model_that_writes_text_learns_no_vectors(tiny_llama, tmp_path):
    with pytest.raises(UsageError, match="no head for vector"):
        train(tiny_llama, PAIRS, tmp_path / "out", objective=Embed(), threads=1)


def test_held_out_pairs_say_how_good_vectors_are(encoder, tmp_path):
    """The measures are those of sentence-transformers' InformationRetrievalEvaluator by the served vectors."""
    evaluation = pytest.importorskip("sentence_transformers.evaluation")
    held = write_lines(tmp_path / "held.jsonl", TRIPLES)
    out = tmp_path / "out"
    train(encoder, TRIPLES, out, "none", objective=Embed(), epochs=4, **OPTIONS)
    queries = [row["anchor"] for row in TRIPLES]
    passages = sorted({row[key] for row in TRIPLES for key in ("positive", "negative")})
    evaluator = evaluation.InformationRetrievalEvaluator(
        {query: query for query in queries}, {text: text for text in passages},
        {row["anchor"]: {row["positive"]} for row in TRIPLES}, mrr_at_k=[len(passages)], accuracy_at_k=[1])
    compared = json.loads(run("compare", encoder, held, "--adapter", out, "--threads", 1, "--json"))
    graded = json.loads(run("eval", encoder, held, "--adapter", out, "--threads", 1, "--json"))
    assert graded["reciprocal_rank"] == compared["second"]["reciprocal_rank"]
    for adapter, scores in ((None, compared["first"]), (out, compared["second"])):
        q, p = (edgetune.vectors(encoder, texts, adapter, threads=1) for texts in (queries, passages))
        expected = evaluator.compute_metrics([
            [{"corpus_id": text, "score": float(score)} for text, score in zip(passages, line, strict=True)]
            for line in q @ p.T])
        assert scores["reciprocal_rank"] == pytest.approx(expected["mrr@k"][len(passages)])
        assert scores["exact"] == pytest.approx(expected["accuracy@k"][1])
    assert compared["second"]["reciprocal_rank"] > compared["first"]["reciprocal_rank"]
    assert "mean reciprocal rank" in run("eval", encoder, held, "--adapter", out, "--threads", 1)


def test_of_several_passages_of_a_query_each_is_looked_for_without_the_others(encoder):
    opened = Encoder(open_gguf(encoder), 1)
    rows = [{"anchor": "the a light", "positive": text} for text in ("the a light", "turn the a light on")]
    graded = grade_vectors(opened, None, rows)
    assert [(answer.answer, answer.correct) for answer in graded.answers] == [(row["positive"], True) for row in rows]
    with pytest.raises(DataError, match="there are 1 passages"):
        grade_vectors(opened, None, rows[:1])


def test_memory_is_planned_for_texts_together_and_a_longer_one_is_read_whole(encoder):
    base = open_gguf(encoder)
    wide = Encoder(base, 1, at_once=96)
    narrow = Encoder(base, 1, at_once=16)
    assert narrow.busy_bytes == wide.busy_bytes // 6
    texts = [wide.read(text).encoded.ids for text in ("the a light", "the b light " * 15, "turn on", "turn off a")]
    assert 16 < len(texts[1]) < 96
    assert np.abs(narrow.vectors(texts) - wide.vectors(texts)).max() < 1e-6
