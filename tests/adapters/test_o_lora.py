"""edgetune.adapters.o_lora: what an earlier adapter reads is not read, after any step, and after a resume."""

import json

import numpy as np
import pytest
from commands import run as command
from small_families import OPTIONS, data, small, trained

from edgetune.adapters.o_lora import OrthogonalLora
from edgetune.adapters.store import open_adapter
from edgetune.daemon.jobs import recipe
from edgetune.errors import FormatError, Interrupted, MismatchError, UsageError
from edgetune.training.callbacks import RunCallbacks
from edgetune.training.config import TrainConfig
from edgetune.training.run import run
from edgetune.training.trainer import Trainer


@pytest.fixture(scope="module")
def earlier(bundle, tmp_path_factory):
    """The folder of a LoRA of some projections alone."""
    out = tmp_path_factory.mktemp("earlier") / "out"
    trained(bundle, small("lora"), lr=0.05, targets="q_proj,down_proj", blocks="last:1").save(out)
    return out


def overlap(pairs, earlier):
    """The largest |A . A_earlier^T|, with rows of length 1, and of how many projections."""
    found = [np.abs(pairs[name].a @ pair.a.T / np.linalg.norm(pair.a, axis=1)).max()
             / np.linalg.norm(pairs[name].a, axis=1).max() for name, pair in open_adapter(earlier).pairs.items()]
    return max(found), len(found)


def test_nothing_of_the_earlier_subspace_is_read(bundle, earlier, tmp_path):
    family = OrthogonalLora(rank=4, alpha=4.0, orthogonal_to=str(earlier))
    trainer = Trainer(bundle, family=family, **{**OPTIONS, "steps": 6, "lr": 0.05})
    assert overlap(trainer.pairs, earlier)[0] < 1e-5, "before the first step"
    trainer.add_examples(data(6).examples)
    before = trainer.loss(trainer.examples)[0]
    trainer.train()
    found, projections = overlap(trainer.pairs, earlier)
    assert projections == 2
    assert found < 1e-5
    assert trainer.loss(trainer.examples)[0] < before
    plain = trained(bundle, small("lora"), lr=0.05)
    assert overlap(plain.pairs, earlier)[0] > 1e-2, "nothing to avoid"
    for name, pair in open_adapter(earlier).pairs.items():
        inp = np.random.default_rng(0).standard_normal((5, pair.rank)) @ pair.a  # in the earlier subspace
        new = trainer.pairs[name]
        assert np.abs(new.scale * inp @ new.a.T @ new.b.T).max() < 1e-5 * np.abs(inp).max()
        assert np.abs(new.b).max() > 0
    trainer.save(tmp_path / "out")
    assert overlap(open_adapter(tmp_path / "out").pairs, earlier)[0] < 1e-5


def test_without_an_earlier_one_it_is_a_lora(bundle):
    found, plain = (trained(bundle, small(name), lr=0.05).pairs for name in ("o-lora", "lora"))
    assert all(np.array_equal(found[name].a, pair.a) and np.array_equal(found[name].b, pair.b)
               for name, pair in plain.items())


def test_a_stopped_run_resumes_to_the_same_bytes(bundle, earlier, tmp_path):
    family = OrthogonalLora(rank=4, orthogonal_to=str(earlier))
    config = TrainConfig(steps=6, optimizer_state="float", family=family, **OPTIONS)
    left = iter(range(10**6))
    run(bundle, data(9), tmp_path / "whole", config)
    with pytest.raises(Interrupted):
        run(bundle, data(9), tmp_path / "out", config, callbacks=RunCallbacks(should_stop=lambda: next(left) > 8))
    run(bundle, data(9), tmp_path / "out", config, resume=True)
    assert (tmp_path / "out" / "adapter.gguf").read_bytes() == (tmp_path / "whole" / "adapter.gguf").read_bytes()


def test_what_does_not_fit_is_refused(bundle, earlier, tmp_path):
    with pytest.raises(MismatchError, match="ranks 61 and 4"):
        Trainer(bundle, family=OrthogonalLora(rank=61, orthogonal_to=str(earlier)), **OPTIONS)
    with pytest.raises(UsageError, match="no hyperparameter 'orthogonal_to'"):
        recipe.options(TrainConfig(), {"family": "o-lora", "orthogonal_to": str(earlier)})
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "on", "completion": "off"}) + "\n")
    said = command("train", bundle.path, rows, "-o", tmp_path / "out", "--family", "o-lora", "--orthogonal-to",
                   tmp_path / "nowhere", "--eval", "none", code=FormatError.exit_code)
    assert "nowhere" in said
