"""Training, answers and resuming on the emulated GPU, beside the CPU; minutes in all."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from counting import dataset
from durable import CONFIG, go, stop
from emulated import HERE, WHY_NOT, cuda
from tiny import SHAPES, write_tiny

from edgetune.adapters.bitfit import BitFit
from edgetune.adapters.full import Full
from edgetune.backends import opening
from edgetune.bench.train import random_rows
from edgetune.errors import MismatchError, UnsupportedError
from edgetune.evaluation.native import engine_within, native_loss
from edgetune.formats.gguf import open_gguf
from edgetune.formats.shape import read_shape
from edgetune.llamacpp.sampling import Sampling
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.models.structure import feeds_of, mixers_of
from edgetune.serving.rollouts.texts import Engine, TokenPrompts, answers
from edgetune.training.trainer import Trainer

pytestmark = pytest.mark.skipif(HERE is None, reason=WHY_NOT)
OPTIONS: dict[str, Any] = {"rank": 4, "steps": 2, "batch_size": 2, "max_length": 24, "lr": 1e-2, "threads": 1}


@pytest.fixture
def emulated(monkeypatch):
    """A GPU is there."""
    monkeypatch.setattr(opening, "open_cuda", lambda _say: cuda(registers=True)[0])


def losses(model, backend, **options: Any):
    """Of each step, and the adapter after them."""
    trainer = Trainer(model, backend=backend, **OPTIONS | options)
    trainer.add_examples(random_rows(trainer.model.structure.n_tokens, 4, 20, seed=0))
    return [result.loss for result in trainer.train()], trainer.arena.flat("lora").copy()


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("architecture", SHAPES)
def test_every_network_learns_as_on_the_cpu(architecture, tiny_models):
    """Or what no GPU computes is refused."""
    shape = read_shape(open_gguf(tiny_models[architecture]))
    refused = [f"the sublayer {kind.__name__}" for kind in (*mixers_of(shape), *feeds_of(shape)) if kind.on_cpu_alone]
    if architecture == "gemma4":
        refused.append("wide heads, capped logits or embeddings of each block")
    if refused:
        with pytest.raises(UnsupportedError, match=f"has {refused[0]}, which no GPU computes here"):
            losses(tiny_models[architecture], "cuda")
        return
    found, adapter = losses(tiny_models[architecture], "cuda", precision="exact")
    want, wanted = losses(tiny_models[architecture], "cpu", precision="exact")
    assert found == pytest.approx(want, abs=1e-4)
    assert np.abs(adapter - wanted).mean() < 1e-4


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("weights", ["resident", "streamed"])
def test_experts_learn_as_on_the_cpu(weights, tiny_models):
    options = {"precision": "exact", "targets": "q_proj,gate_proj,up_proj,down_proj", "weights": weights}
    found, adapter = losses(tiny_models["olmoe"], "cuda", **options)
    want, wanted = losses(tiny_models["olmoe"], "cpu", **options)
    assert found == pytest.approx(want, abs=1e-4)
    assert np.abs(adapter - wanted).mean() < 1e-4


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("family", [BitFit(), Full()], ids=lambda family: family.name)
def test_weights_themselves(family, tmp_path):
    """In training, and where the written bytes are measured."""
    model = write_tiny(tmp_path / "q.gguf", "qwen2", "Q4_1")
    found = []
    for backend in ("cuda", "cpu"):
        trainer = Trainer(model, backend=backend, family=family, precision="exact", steps=2, batch_size=2,
                          max_length=24, lr=1e-3, threads=1)
        trainer.add_examples(random_rows(trainer.model.structure.n_tokens, 4, 20, seed=0))
        found.append([trainer.loss(trainer.examples)[0], *(result.loss for result in trainer.train()),
                      trainer.loss(trainer.examples)[0]])
    assert found[0] == pytest.approx(found[1], abs=1e-4)
    assert found[1][-1] < found[1][0]


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("options", [{"precision": "fast"}, {"dropout": 0.5, "precision": "exact"},
                                     {"weights": "streamed", "precision": "exact"},
                                     {"recompute": "block", "optimizer_state": "8bit", "precision": "exact"}], ids=str)
def test_other_ways_to_compute(options, bundle):
    want, _ = losses(bundle, "cpu", **options)
    found, adapter = losses(bundle, "cuda", **options)
    assert found == pytest.approx(want, abs=2e-3 if options["precision"] == "fast" else 1e-4)
    assert np.isfinite(adapter).all()
    again, same = losses(bundle, "cuda", **options)
    assert (again, same.tobytes()) == (found, adapter.tobytes())


@pytest.mark.usefixtures("emulated")
def test_answers_and_losses_are_those_of_the_cpu(tiny_llama, bundle):
    gguf = open_gguf(tiny_llama)
    tokenizer = Tokenizer(gguf)
    prompts = [[1, 5, 9, 40], [1, 5, 9, 41, 7], [3]]
    for sampling in (Sampling(), Sampling(temperature=1.0, top_k=20, top_p=0.9, min_p=0.0, seed=3)):
        asked = TokenPrompts(prompts, [6] * len(prompts), 2, sampling, ends=False)
        made = []
        for backend in ("cpu", "cuda"):
            engine = Engine(2**30, "1G", precision="exact", threads=1, backend=backend)
            found = sorted((a.rollout for a in answers(gguf, tokenizer, {}, asked, engine)),
                           key=lambda r: (r.prompt, r.sample))
            made.append([(r.prompt, r.sample, r.tokens.tolist()) for r in found])
        assert made[0] == made[1]
    rows = dataset(6)
    loss, _ = native_loss(bundle, rows, engine=engine_within(backend="cuda"))
    assert loss == pytest.approx(native_loss(bundle, rows)[0], abs=1e-4)


@pytest.mark.usefixtures("emulated")
def test_a_run_of_the_cpu_is_resumed_on_the_gpu_where_that_is_allowed(bundle, tmp_path):
    on_cpu = replace(CONFIG, backend="cpu")
    stop(bundle, tmp_path / "out", 33, on_cpu)
    on_gpu = replace(CONFIG, backend="cuda")
    with pytest.raises(MismatchError, match=r"not cuda emulated .*--allow-changed isa"):
        go(bundle, tmp_path / "out", on_gpu, resume=True)
    go(bundle, tmp_path / "out", on_gpu, resume=True, allow_changed=("isa",))
    done = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (done["status"], done["isa"]) == ("done", "cuda emulated")


@pytest.mark.usefixtures("emulated")
def test_auto_takes_the_gpu_and_says_so():
    said: list[str] = []
    assert opening.open_backend("auto", 1, said.append).isa == "cuda emulated"
    assert said == ["computing on the GPU (cuda emulated); --backend cpu computes on the CPU"]
    assert opening.open_backend("cpu", 1, said.append).threads == 1
    assert len(said) == 1
