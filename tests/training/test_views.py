"""NLFT from rows to an adapter: evidence is asked for once a row and adapter, and not again by a resume or a second
run; a stopped run ends with the same bytes; the plan holds what is read.
"""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from counting import OPTIONS
from durable import check_resumes, metrics, stopping

from edgetune.data import privileged, tutored
from edgetune.data.dataset import load_rows
from edgetune.data.packing import collate
from edgetune.disk import cache_folder
from edgetune.errors import DataError, Interrupted
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.models.networks import open_network
from edgetune.objectives.nlft import Nlft
from edgetune.objectives.self_distill import SelfDistill
from edgetune.training.config import TrainConfig
from edgetune.training.reference import FILE, Reference
from edgetune.training.run import run
from edgetune.training.sizing import make_plan
from edgetune.training.trainer import Trainer

ROWS = [{"prompt": f"set the light {i}", "completion": f"the turn {i}" if i % 2 else f"light on {i}",
         "reference": f"light on {i}", "judgment": "it must be the light" if i % 2 else None} for i in range(8)]
LENGTH = 160
CONFIG = TrainConfig(**{**OPTIONS, "steps": 6, "batch_size": 3, "dropout": 0.1, "max_length": LENGTH})
NLFT = Nlft(core=0.01, ratio=1.0, least=0.0)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def asked(monkeypatch):
    """The documents that the reference has read, of each example."""
    found: list[int] = []
    read = Reference._read

    def spy(self, example):
        value = read(self, example)
        found.append(value.size // example.supervised)
        return value

    monkeypatch.setattr(Reference, "_read", spy)
    return found


@pytest.fixture
def sets(bundle):
    tokenizer = Tokenizer(bundle.gguf.path)
    learned, held = (load_rows(part, tokenizer, max_length=LENGTH, parser=tutored) for part in (ROWS[:6], ROWS[6:]))
    return learned, held


def forget():
    for path in cache_folder().rglob("*.npz"):
        path.unlink()


@pytest.mark.dev
@pytest.mark.parametrize("calls", [5, 80], ids=["while it reads", "in training"])
@pytest.mark.parametrize("started", [False, True], ids=["base", "adapter"])
def test_evidence_is_asked_for_once(bundle, sets, tmp_path, asked, calls, started):
    learned, held = sets
    start = tmp_path / "start" if started else None
    if start:
        run(bundle, learned, start, replace(CONFIG, seed=3, lr=0.05, steps=2), objective=NLFT)
        asked.clear()
    options: dict[str, Any] = {"held_out": held, "objective": NLFT, "start": start}
    run(bundle, learned, tmp_path / "whole", CONFIG, **options)
    assert sorted(asked) == [2] * 4 + [3] * 4  # of right and of wrong rows
    run(bundle, learned, tmp_path / "again", CONFIG, **options)
    assert len(asked) == 8
    forget()
    with pytest.raises(Interrupted):
        run(bundle, learned, tmp_path / "out", CONFIG, callbacks=stopping(calls), **options)
    assert (tmp_path / "out" / FILE).exists()
    forget()
    run(bundle, learned, tmp_path / "out", CONFIG, **(options | {"start": None}), resume=True)
    assert len(asked) == 16
    whole, *others = [(tmp_path / name / "adapter.gguf").read_bytes() for name in ("whole", "again", "out")]
    assert others == [whole, whole]
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["held_out"]["loss_after"] < record["held_out"]["loss_before"]


def test_a_plan_of_little_memory_reads_one_document_after_another(bundle, sets):
    """A micro-batch takes the longest document, not all of a row; evidence is the same but for rounding."""
    examples = sets[0].examples
    longest = max(one.longest for one in examples)
    lengths = NLFT.lengths(examples, max_length=LENGTH, share=True)
    small = Trainer(bundle, replace(CONFIG, micro_batch=longest), objective=NLFT, lengths=lengths)
    large = Trainer(bundle, CONFIG, objective=NLFT)
    assert small.plan.run.max_tokens == small.plan.run.max_length == longest < large.plan.run.max_tokens
    sizes: list[list[int]] = []
    for trainer in (small, large):
        computed: list[int] = []
        score = trainer.decoder.score

        def spy(batch, best=None, score=score, computed=computed):
            computed.append(batch.computed)
            return score(batch, best)

        trainer.decoder.score = spy
        trainer.add_examples(examples)
        trainer.refer(examples)
        sizes.append(computed)
    assert max(sizes[0]) <= longest
    assert len(sizes[1]) == len(examples) < len(sizes[0])
    one, other = ([*trainer.reference._known.values()] for trainer in (small, large))
    np.testing.assert_allclose(np.concatenate(one), np.concatenate(other), atol=1e-4)


def test_a_trainer_takes_rows(bundle):
    trainer = Trainer(bundle, CONFIG, objective=NLFT)
    trainer.add(ROWS)
    before = trainer.evaluate(ROWS)
    results = trainer.train()
    assert trainer.evaluate(ROWS) < before
    assert {"core", "bad"} <= set(results[0].metrics)
    with pytest.raises(DataError, match="row 1: the reference is empty"):
        trainer.add([{**ROWS[0], "reference": ""}])
    (example,) = tutored.examples_of(ROWS[0], "tutored", trainer.tokenizer, None, LENGTH)
    with pytest.raises(DataError, match=f"example 0 has {LENGTH + 1} tokens, this trainer takes 2 to {LENGTH}"):
        trainer.add_examples([replace(example, prompts=(np.zeros(LENGTH + 1 - example.supervised, np.int32),))])
    with pytest.raises(DataError, match="example 0 holds a token id outside"):
        trainer.add_examples([replace(example, prompts=(np.array([-1], np.int32),))])


# ---- self-distillation -----------------------------------------------------------------------------------------------

TAUGHT = [{"prompt": f"set the light {i}", "completion": f"light on {i}", "privileged_context": f"the turn {i % 3}"}
          for i in range(8)]
DISTILL = SelfDistill(distillation_topk=8)


@pytest.fixture
def taught(bundle):
    return load_rows(TAUGHT, Tokenizer(bundle.gguf.path), max_length=LENGTH, parser=privileged)


@pytest.mark.dev
@pytest.mark.learning
@pytest.mark.parametrize("weights", ["resident", "streamed"])
def test_a_student_approaches_its_teacher_and_resumes_to_the_same_bytes(bundle, taught, tmp_path, weights):
    config = replace(CONFIG, weights=weights, steps=12)

    def start(out, **options):
        forget()
        return run(bundle, taught, out, config, held_out=taught, objective=DISTILL, **options)

    whole = check_resumes(start, tmp_path, 150)
    losses = json.loads((whole / "run.json").read_text())["held_out"]
    assert losses["loss_after"] < losses["loss_before"] - 0.01
    assert {"divergence", "clip_ratio", "teacher_agreement"} <= set(metrics(whole)[-1]["metrics"])


def test_what_a_teacher_says_is_kept_for_each_number_of_tokens(bundle, taught, tmp_path):
    """A second run with another number asks again; streamed weights and resident ones say the same."""
    config = replace(CONFIG, steps=2)
    for number, top in enumerate((8, 4)):
        run(bundle, taught, tmp_path / f"{number}", config, objective=replace(DISTILL, distillation_topk=top))
    assert len([*cache_folder().rglob("*.npz")]) == 2
    batches = []
    for weights in ("resident", "streamed"):
        trainer = Trainer(bundle, replace(config, weights=weights), objective=DISTILL)
        trainer.add_examples(taught.examples)
        trainer.refer(taught.examples)
        batches.append(trainer.reference.add_to(collate(taught.examples)))
    for name in ("choices", "choices_reference"):
        assert np.array_equal(getattr(batches[0], name), getattr(batches[1], name))


def test_a_plan_counts_what_is_known_of_the_rows(bundle, taught):
    lengths = DISTILL.lengths(taught.examples, max_length=LENGTH, share=True)
    assert lengths.known == 8 * 2 * 8 * taught.supervised
    few, many = (make_plan(open_network(bundle.gguf), CONFIG, lengths=replace(lengths, known=known), objective=DISTILL)
                 for known in (0, 1 << 30))
    assert many.process_bytes - few.process_bytes == pytest.approx(1 << 30, rel=0.05)
