"""A run for the tests of durability: a tiny model, a state saved after every step, and ways to disturb it."""


import pytest
from counting import dataset
from json_lines import read_lines

from edgetune.errors import EdgetuneError, Interrupted
from edgetune.training.callbacks import RunCallbacks
from edgetune.training.config import TrainConfig
from edgetune.training.run import run

STEPS = 8
CONFIG = TrainConfig(rank=4, lr=2e-2, batch_size=4, max_length=48, threads=2, warmup=2, steps=STEPS, dropout=0.1,
                     micro_batch=64, eval_every=3, checkpoint_every="0.000001")  # after every step


def go(bundle, out, config=CONFIG, **options):
    run(bundle, dataset(24), out, config, held_out=dataset(6, 1), **options)
    return (out / "adapter.gguf").read_bytes()


def stop(bundle, out, answers, config=CONFIG, **options):
    """Start it, and stop it when it has asked so many times; the model's blocks ask."""
    with pytest.raises(Interrupted, match="continue it with resume=True"):
        go(bundle, out, config, callbacks=stopping(answers), **options)


def stopping(answers):
    """Callbacks of a run that is to stop when it has asked so many times."""
    asked = iter([False] * answers)
    return RunCallbacks(should_stop=lambda: next(asked, True))


def check_resumes(start, folder, *stops):
    """Stopped when it has asked so many times, and resumed, a run ends in the bytes of one that nobody stopped. start:
    of (folder, options of a run). Returns the folder of the latter.
    """
    start(folder / "whole")
    for answers in stops:
        out = folder / f"stopped-{answers}"
        with pytest.raises(Interrupted):
            start(out, callbacks=stopping(answers))
        start(out, resume=True)
        assert (out / "adapter.gguf").read_bytes() == (folder / "whole" / "adapter.gguf").read_bytes()
    return folder / "whole"


def stop_after(step, bundle, out, config=CONFIG, **options):
    """Start it, and stop it between this step and the next."""
    done = [0] if step == 0 else []
    with pytest.raises(Interrupted, match=f"after step {step} of"):
        go(bundle, out, config, callbacks=RunCallbacks(
            should_stop=lambda: step in done,
            on_event=lambda e: done.extend([e["step"]] if e["event"] == "step" else [])), **options)


def refused(bundle, out, match, **options):
    """It ends in an error of one sentence, which is returned, and leaves no half file."""
    with pytest.raises(EdgetuneError, match=match) as caught:
        go(bundle, out, **options)
    assert "\n" not in str(caught.value)
    assert not list(out.glob("*.tmp"))
    return str(caught.value)


def metrics(out):
    return read_lines(out / "metrics.jsonl")


def check_metrics(out):
    """No step twice, none missing, and the same for measurements."""
    lines = metrics(out)
    assert [line["step"] for line in lines if line["event"] == "step"] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if line["event"] == "eval"] == [0, 3, 6, 8]
