"""Folders of runs that were never trained, for tests of what is read of them and shown."""

import json


def step(number, **changes):
    line = {"event": "step", "step": number, "loss": 1 / number, "lr": 1e-3, "grad_norm": 0.5, "tokens": 10,
            "supervised": 5, "tokens_per_s": 20.0, "seconds": 0.5, "rss_mib": 64.0}
    return {**line, **changes}


def measured(number, loss):
    return {"event": "eval", "step": number, "loss": loss, "tokens": 3, "best": None}


def write(folder, *lines, **run):
    """The folder, with these lines of metrics.jsonl, as text or JSON, and where fields are given run.json."""
    folder.mkdir(exist_ok=True, parents=True)
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "metrics.jsonl").write_text("".join(f"{text}\n" for text in texts))
    if run:
        (folder / "run.json").write_text(json.dumps(run))
    return folder
