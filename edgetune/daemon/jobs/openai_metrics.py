"""OpenAI's names, in events and checkpoints, of the metrics of a run; those of metrics.jsonl are kept with them.

Rewards have the names of the guide to reinforcement fine-tuning (appendix, training metrics).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MEAN = "/mean"
PART = "rewards/"  # TRL's names of the parts of a reward: rewards/NAME/mean


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


def of_checkpoint(event: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the metrics of a checkpoint, from such a measurement. best: the loss, or mean reward, to keep."""
    names = ("step", "valid_loss", "full_valid_loss", "full_valid_mean_reward", "best")
    found = {name: event[name] for name in names if name in event}
    if "full_valid_mean_reward" in found and found["best"] is not None:
        found["best"] = -found["best"]  # a run minimizes
    return found


def _scores(metrics: Mapping[str, float], part: str) -> dict[str, Any]:
    graders = {name.removeprefix(PART).removesuffix(MEAN): value for name, value in metrics.items()
               if name.startswith(PART) and name.endswith(MEAN)}
    return {f"{part}_reward_mean": metrics["reward"],
            "graders": [{"name": name, f"{part}_reward_mean": value} for name, value in graders.items()]}
