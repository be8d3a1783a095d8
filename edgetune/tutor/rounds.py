"""The rounds: each a sequence of steps, of which the finished ones are read back when the rounds are continued.

Every round trains again from the adapter that the rounds begin from, on the labelled rows and the answers chosen so
far. Without such an adapter round 0 learns the labelled rows alone, and draws the answers of round 1; its adapter is a
candidate of the first gate too, for where the answers do not help.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from ..errors import Interrupted
from . import answering, gate, training
from .choosing import JUDGED, VERIFIED, Choice, choose_agreed, choose_graded, collapse
from .files import Round, rounds_of
from .folder import keep_start, publish, remove_old
from .gate import LABELS, ROUND, Gated
from .questions import in_turn
from .results import Chosen, Drawn, PromptAnswers, Published, Refit, StepResult, Trained, TrainingRow
from .setting import Setting

R = TypeVar("R", bound=StepResult)


@dataclass(frozen=True)
class TutorState:
    """Between two rounds. published: the adapter that the gate compares with, as it was tested, without the held-out
    rows; None: the base. teacher: the one that answers. refused: rounds in a row that published nothing. stopped: why
    there is no further round, "" while there may be.
    """

    published: Path | None
    teacher: Path | None
    refused: int = 0
    stopped: str = ""


@dataclass
class Tutor:
    """keep: texts on which an adapter is to stay near the base. until: the step after which to stop, so that its result
    can be looked at; "": none.
    """

    setting: Setting
    keep: Sequence[str] = ()
    until: str = ""
    state: TutorState = field(init=False)

    def run(self) -> TutorState:
        """Rounds until one of the reasons to stop. Raises Interrupted, to be continued by the same call."""
        setting = self.setting
        count = setting.options.rounds
        self.state = self._begun()
        for number in range(1, count + 1):
            setting.look()
            setting.on_event({"event": "round", "round": number, "rounds": count})
            round = Round(setting.out, number)
            self.state = self._round(round)
            remove_old(round, {path for path in (self.state.published, self.state.teacher) if path})
            if self.state.stopped:
                break
        else:
            self.state = replace(self.state, stopped=f"{count} round{' is' if count == 1 else 's are'} done")
        setting.on_event({"event": "end", "stopped": self.state.stopped})
        return self.state

    def _begun(self) -> TutorState:
        """The adapter to begin from, or that of the labelled rows alone."""
        setting = self.setting
        if setting.start:
            start = keep_start(setting.out, setting.start, setting.bundle.gguf)
            return TutorState(start, start)
        if not setting.pool.labelled:
            return TutorState(None, None)
        first = Round(setting.out, 0)
        setting.on_event({"event": "round", "round": 0, "rounds": setting.options.rounds})
        rows = training.labelled_rows(setting.pool.labelled)
        self._step(first, Trained, lambda: training.train(setting, 0, rows, first.trained))
        return TutorState(None, first.trained)

    def _round(self, round: Round) -> TutorState:
        setting = self.setting
        drawn = self._step(round, Drawn, lambda: self._draw(round))
        chosen = self._step(round, Chosen, lambda: self._choose(drawn))
        candidates: dict[str, Path] = {}
        if not chosen.stop:
            rows = [*training.labelled_rows(setting.pool.labelled), *chosen_rows(setting.out, round.number)]
            self._step(round, Trained, lambda: training.train(setting, round.number, rows, round.trained))
            candidates[ROUND] = round.trained
        if self.state.teacher and self.state.teacher != self.state.published:
            candidates[LABELS] = self.state.teacher
        if not candidates:
            return replace(self.state, stopped=chosen.stop)
        gated = self._step(round, Gated, lambda: self._gate(round, candidates))
        state = self._published(round, candidates[gated.chosen]) if gated.chosen else self._refused(gated.reason)
        return replace(state, stopped=chosen.stop) if chosen.stop else state

    def _published(self, round: Round, adapter: Path) -> TutorState:
        setting = self.setting
        shown = adapter
        if setting.pool.held_labelled:
            refit = self._step(round, Refit, lambda: self._refit(round, adapter))
            shown = adapter if refit.objection else round.refit
        self._step(round, Published, lambda: publish(setting.out, shown, setting.bundle.gguf, round.number))
        return TutorState(adapter, adapter)

    def _refused(self, reason: str) -> TutorState:
        refused = self.state.refused + 1
        stopped = f"this does not help here, so nothing is published: {reason}"
        return replace(self.state, refused=refused,
                       stopped=stopped if refused >= self.setting.options.stop_after else "")

    def _step(self, round: Round, kind: type[R], make: Callable[[], R]) -> R:
        """The result of a step, now or before, which is an event too."""
        is_new = not round.file(kind.step).exists()
        self.setting.release()
        found = round.step(kind, make)
        self.setting.on_event({"event": "tutor", "round": round.number, "step": kind.step, **found.facts})
        if is_new and kind.step == self.until:
            raise Interrupted(f"stopped after the step {kind.step} of round {round.number}",
                              f"look at {round.file(kind.step)}, and continue with the same command")
        return found

    # ---- the steps -----------------------------------------------------------------------------------------------

    def _draw(self, round: Round) -> Drawn:
        setting = self.setting
        count = setting.options.per_round
        asked = in_turn(setting.pool.bare, round.number, count, setting.config.seed)
        unseen = min(len(asked), max(0, len(setting.pool.bare) - (round.number - 1) * len(asked)))
        answers = answering.draw(setting, round.number, asked, setting.pairs(self.state.teacher))
        prompts = [PromptAnswers(question.key, question.text, of) for question, of in zip(asked, answers, strict=True)]
        return Drawn(setting.seed(round.number, "draw"), unseen, prompts)

    def _choose(self, drawn: Drawn) -> Chosen:
        setting = self.setting
        options = setting.options
        asked = [setting.pool[one.key] for one in drawn.prompts]
        answers = [one.answers for one in drawn.prompts]
        choices: list[Choice]
        if setting.grader:
            source = JUDGED if setting.grader.needs_model else VERIFIED
            grades = answering.graded(setting, asked, answers)
            choices = [choose_graded(question, of, grade, setting.grader.passes_at, source)
                       for question, of, grade in zip(asked, answers, grades, strict=True)]
        else:
            choices = [choose_agreed(question, of, options.agreement)
                       for question, of in zip(asked, answers, strict=True)]
        stop = collapse(answers, [question.reference for question in setting.pool.labelled])
        count = sum(bool(one.label) for one in choices)
        if not stop and count < options.min_rows:
            why = "pass the grader" if setting.grader else "agree"
            stop = (f"this does not help here: the answers to {count} of {len(choices)} prompts {why}, "
                    f"{options.min_rows} are needed")
        return Chosen(stop, choices)

    def _gate(self, round: Round, candidates: dict[str, Path]) -> Gated:
        setting = self.setting
        asked = in_turn(setting.pool.held, round.number, setting.options.questions, setting.config.seed)
        gates = (earlier.read(Gated) for earlier in rounds_of(setting.out) if earlier.number < round.number)
        tests = gate.count_tests(one for one in gates if one)
        return gate.gate(setting, asked, self.state.published, candidates, self.keep, tests)

    def _refit(self, round: Round, adapter: Path) -> Refit:
        """The training of the adapter that is to be published, with the held-out rows as well."""
        setting = self.setting
        trained = Round(setting.out, round.number if adapter == round.trained else 0).read(Trained)
        assert trained is not None
        rows = [*trained.rows, *training.labelled_rows(setting.pool.held_labelled)]
        made = training.train(setting, round.number, rows, round.refit)
        setting.release()
        found = gate.measure(setting, [], {gate.PUBLISHED: self.state.published, gate.REFIT: round.refit}, self.keep)
        return Refit(made.seed, made.steps, made.tokens, made.rows,
                     gate.harm(found[gate.REFIT], found[gate.PUBLISHED], setting.options))


def chosen_rows(out: Path, number: int) -> list[TrainingRow]:
    """The answers chosen in the rounds up to this one; the newest to each prompt counts."""
    found: dict[str, TrainingRow] = {}
    for round in rounds_of(out):
        chosen = round.read(Chosen) if round.number <= number else None
        for one in chosen.choices if chosen else ():
            if one.label:
                found[one.key] = TrainingRow(one.key, one.label, one.source)
    return list(found.values())
