"""The progress and the history of a job, from the events of its process (worker.py)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from .table import JobTable

TOGETHER_SECONDS = 2.0  # steps are written together: each commit is a sync of the disk
MEAN = "/mean"
PART = "rewards/"  # TRL's names of the parts of a reward: rewards/NAME/mean
HistoryLine = tuple[str, str, str, Any]  # level, type, message, data


class JobProgress:
    """The progress of one job. facts: all that is known of it now, as Job.progress."""

    def __init__(self, table: JobTable, job: str) -> None:
        self.table = table
        self.job = job
        self.facts: dict[str, Any] = {}
        self._pending: list[HistoryLine] = []
        self._written_at = 0.0

    def take(self, event: dict[str, Any]) -> None:
        """Takes one event. Raises DiskError where the history cannot be written."""
        self.tell(event)
        if event["event"] != "step" or time.monotonic() - self._written_at >= TOGETHER_SECONDS:
            self.write()

    def tell(self, event: dict[str, Any]) -> None:
        """Changes `facts` and adds lines to the history; a kind of job adds its events here."""
        kind = event["event"]
        if kind == "start":
            event["plan"].pop("buffers")
            self.facts.update(step=event["done"], steps=event["steps"], phase="training")
            self.add("metrics", f"training {event['rows']} rows in {event['steps']} steps", event)
        elif kind == "step":
            self._step(event)
        elif kind == "anchors":
            if not event["done"]:
                self.add("message", f"the base answers {event['of']} questions first", None)
        elif kind == "anchors_missing":
            self.add("message", f"nothing holds the base as it is on unrelated text: {event['reason']}", None, "warn")
        elif kind == "expect":
            self.add("metrics", f"before training: mean reward {event['reward']:.3f} of {event['samples']} answers "
                      f"each to {event['prompts']} prompts", event)
        elif kind == "eval":
            self._eval(event)
        elif kind == "served":
            self.add("metrics", f"held-out answers score {event['reward']:.3f} by llama.cpp, and scored "
                      f"{event['engine_reward']:.3f} by the engine that trained", event)
        elif kind == "resume":
            self.add("metrics", f"resumed after step {event['step']}", event)
        elif kind == "governor":
            self.add("metrics", f"{event['action']}: {event['cause']}", event)
        elif kind == "judging":
            self.facts.update(judged=event["done"], judging=event["of"])
        elif kind == "again":
            self.add("message", f"begins again: {event['what']}", None, "warn")
        elif kind == "trained":
            for name in ("judged", "judging"):
                self.facts.pop(name, None)
            self.facts.update(phase="judging", trained_tokens=event["tokens"], tokens_per_s=None, eta_s=None)
            self.add("message", f"trained on {event['tokens']} tokens, now the gate asks held-out rows")

    def _step(self, event: dict[str, Any]) -> None:
        facts = self.facts
        facts["step"] = event["step"]
        facts["loss"] = event["loss"]
        facts["tokens_per_s"] = round(event["tokens_per_s"], 1)
        facts["eta_s"] = round((facts["steps"] - event["step"]) * event["seconds"])
        reward = event.get("metrics", {}).get("reward")
        if reward is not None:
            facts["reward"] = reward
        said = "" if reward is None else f", mean reward {reward:.3f}"
        self.add("metrics", f"step {event['step']}/{facts['steps']}: loss {event['loss']:.4f}{said}",
                  of_step(event, facts["steps"]))

    def _eval(self, event: dict[str, Any]) -> None:
        reward = event.get("metrics", {}).get("reward")
        if reward is None:
            self.facts["held_out_loss"] = event["loss"]
            said = f"held-out loss {event['loss']:.4f}"
        else:
            self.facts["held_out_reward"] = reward
            said = f"mean reward of held-out answers {reward:.3f}"
        self.add("metrics", f"after step {event['step']}: {said}", of_measurement(event, self.facts.get("steps")))

    def add(self, kind: str, text: str, data: Any = None, level: str = "info") -> None:
        """Adds a line to the history; kind: message or metrics."""
        self._pending.append((level, kind, text, data))

    def write(self) -> None:
        """Writes all new lines into the database in one transaction."""
        pending = self._pending
        self._pending = []
        self._written_at = time.monotonic()
        if pending:
            self.table.add_events(self.job, pending)


# ---- OpenAI's names of metrics, those of rewards as in its guide; the names of metrics.jsonl are kept as well -------


def of_step(event: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Returns a step's event with OpenAI's names."""
    found = {**event, "total_steps": steps, "train_loss": event["loss"]}
    metrics = event.get("metrics", {})
    if "reward" not in metrics:
        return found
    return {**found, "train_mean_reward": metrics["reward"],
            "completion_tokens_mean": metrics["completions/mean_length"], "scores": _scores(metrics, "train")}


def of_measurement(event: Mapping[str, Any], steps: int | None) -> dict[str, Any]:
    """Returns a measurement of held-out rows with OpenAI's names."""
    found = {**event, "total_steps": steps}
    metrics = event.get("metrics", {})
    if "reward" not in metrics:
        return {**found, "valid_loss": event["loss"], "full_valid_loss": event["loss"]}
    return {**found, "full_valid_mean_reward": metrics["reward"], "scores": _scores(metrics, "valid")}


def _scores(metrics: Mapping[str, float], part: str) -> dict[str, Any]:
    graders = {name.removeprefix(PART).removesuffix(MEAN): value for name, value in metrics.items()
               if name.startswith(PART) and name.endswith(MEAN)}
    return {f"{part}_reward_mean": metrics["reward"],
            "graders": [{"name": name, f"{part}_reward_mean": value} for name, value in graders.items()]}
