"""How far a job is, and its history, from the events of its process (worker.py)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from .openai_metrics import of_measurement, of_step
from .table import JobTable

TOGETHER_SECONDS = 2.0  # steps are written together: each commit is a sync of the disk
HistoryLine = tuple[str, str, str, Any]  # level, type, message, data


def round_of(steps: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What became of a round of the tutor, from what its steps found: prompts that it asked, right (the share of their
    answers), rows that it learned, held_out and held_out_before (the share of right answers to held-out questions, or
    what these earn, with its adapter and with the one before), questions, published, reason.
    """
    rows = steps["rows"]
    gate = steps.get("gate", {})
    return {"round": rows["round"], "prompts": steps.get("select", {}).get("prompts", 0),
            "right": steps.get("evaluate", {}).get("rate"), "rows": rows["rows"], "held_out": gate.get("held_out"),
            "held_out_before": gate.get("held_out_before"), "questions": gate.get("questions", 0),
            "published": bool(gate.get("passed")), "reason": gate.get("reason") or rows["stop"]}


class JobProgress:
    """Of one job. facts: what is known of it now, as Job.progress."""

    def __init__(self, table: JobTable, job: str) -> None:
        self.table = table
        self.job = job
        self.facts: dict[str, Any] = {}
        self._rounds = table.rounds(job)
        self._steps: dict[str, dict[str, Any]] = {}  # of the tutor's round, what each found
        self._pending: list[HistoryLine] = []
        self._written_at = 0.0

    def take(self, event: dict[str, Any]) -> None:
        """Raises DiskError where the history cannot be written."""
        kind = event["event"]
        if kind == "start":
            self._start(event)
        elif kind == "step":
            self._step(event)
        elif kind == "anchors":
            if not event["done"]:
                self._add("message", f"the base answers {event['of']} questions first", None)
        elif kind == "anchors_missing":
            self._add("message", f"nothing holds the base as it is elsewhere: {event['reason']}", None, "warn")
        elif kind == "expect":
            self._add("metrics", f"before training: mean reward {event['reward']:.3f} of {event['samples']} answers "
                      f"each to {event['prompts']} prompts", event)
        elif kind == "eval":
            self._eval(event)
        elif kind == "served":
            self._add("metrics", f"held-out answers earn {event['reward']:.3f} by llama.cpp, and earned "
                      f"{event['engine_reward']:.3f} by the engine that trained", event)
        elif kind == "resume":
            self._add("metrics", f"resumed after step {event['step']}", event)
        elif kind == "governor":
            self._add("metrics", f"{event['action']}: {event['cause']}", event)
        elif kind == "judging":
            self.facts.update(judged=event["done"], judging=event["of"])
        elif kind == "round":
            self._begin_round(event)
        elif kind == "tutor":
            self._tutor(event)
        elif kind == "end":
            self._add("message", f"the tutor stops: {event['stopped']}", None)
        elif kind == "again":
            self._rounds = []
            self._add("message", f"begins again: {event['what']}", None, "warn")
        elif kind == "trained":
            for name in ("judged", "judging"):
                self.facts.pop(name, None)
            self.facts.update(phase="judging", trained_tokens=event["tokens"], tokens_per_s=None, eta_s=None)
            self._add("message", f"trained on {event['tokens']} tokens, now the gate asks held-out rows",
                      {"run": event["record"]})
        if kind != "step" or time.monotonic() - self._written_at >= TOGETHER_SECONDS:
            self.write()

    def _begin_round(self, event: dict[str, Any]) -> None:
        self._steps = {}
        self.facts = {"phase": "tutor", "round": event["round"], "rounds": event["rounds"]}

    def _tutor(self, event: dict[str, Any]) -> None:
        """A step of a round is done. Where the tutor was stopped, those that were done are told again."""
        self._steps[event["step"]] = event
        self.facts = {name: self.facts[name] for name in ("round", "rounds") if name in self.facts}
        self.facts["phase"] = "tutor"
        if event["step"] == "gate" or event.get("stop"):
            self._end_round()

    def _end_round(self) -> None:
        """The round is decided: kept with the job, and told once."""
        found = round_of(self._steps)
        if found in self._rounds:
            return
        self._rounds = [*(one for one in self._rounds if one["round"] != found["round"]), found]
        self.table.set_rounds(self.job, self._rounds)
        said = "published" if found["published"] else "not published"
        self._add("message", f"round {found['round']} is {said}: {found['reason']}", found)

    def _start(self, event: dict[str, Any]) -> None:
        event["plan"].pop("buffers")
        self.facts.update(step=event["done"], steps=event["steps"], phase="training")
        self._add("metrics", f"training {event['rows']} rows in {event['steps']} steps", event)

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
        self._add("metrics", f"step {event['step']}/{facts['steps']}: loss {event['loss']:.4f}{said}",
                  of_step(event, facts["steps"]))

    def _eval(self, event: dict[str, Any]) -> None:
        reward = event.get("metrics", {}).get("reward")
        if reward is None:
            self.facts["held_out_loss"] = event["loss"]
            said = f"held-out loss {event['loss']:.4f}"
        else:
            self.facts["held_out_reward"] = reward
            said = f"mean reward of held-out answers {reward:.3f}"
        self._add("metrics", f"after step {event['step']}: {said}", of_measurement(event, self.facts.get("steps")))

    def _add(self, kind: str, text: str, data: Any, level: str = "info") -> None:
        self._pending.append((level, kind, text, data))

    def write(self) -> None:
        """What happened goes into the database in one transaction."""
        pending = self._pending
        self._pending = []
        self._written_at = time.monotonic()
        if pending:
            self.table.add_events(self.job, pending)
