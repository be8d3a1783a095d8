"""The rounds, each a sequence of steps; finished steps are read back when the rounds are continued.

Every round trains again from the start adapter, on the labelled rows and the answers chosen so far. Without a start
adapter the first round first learns the labelled rows alone, and that adapter draws its answers. It is also a candidate
of the gate, in case the answers do not help.

Few labels are too valuable to hold out: an adapter of four fifths of them answers worse, and so teaches worse. If the
held-out rows are labelled ones, the steps before the gate are repeated with them, and that result is published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from ....adapters import store
from ....data.dataset import load_rows
from ....errors import Interrupted
from ....formats.shape import read_shape
from ....training.length import reading_limit, steps_per_epoch
from ....training.run import run
from . import gate
from .answers import (
    JUDGED,
    LABELLED,
    VERIFIED,
    Choice,
    choose_agreed,
    choose_graded,
    choose_sure,
    collapse,
    draw,
    graded,
    named,
)
from .folder import Round, keep_start, publish, remove_old, rounds_of
from .gate import LABELS, PUBLISHED, ROUND, GateResult
from .questions import TutorQuestion, in_turn
from .results import Chosen, DrawnAnswers, Labels, PromptAnswers, Published, RoundResult, Trained, TrainingRow
from .setting import CONTINUE, RoundSetting

T = TypeVar("T", bound=Trained)


def labelled_rows(questions: Iterable[TutorQuestion]) -> list[TrainingRow]:
    return [TrainingRow(question.key, question.reference, LABELLED) for question in questions]


def train(setting: RoundSetting, number: int, rows: Sequence[TrainingRow], out: Path, kind: type[T]) -> T:
    """Learns the rows from the rounds' start; one that was stopped continues. Raises Interrupted and `run`'s errors."""
    seed = setting.seed(number, "train")
    config = replace(setting.config, seed=seed)
    setting.look()
    data = load_rows([setting.pool[row.key].with_answer(row.text) for row in rows], setting.tokenizer,
                     max_length=reading_limit(config.max_length, read_shape(setting.bundle.gguf).context),
                     system=setting.system)
    record = store.read_run(out)
    if record.get("status") != "done":  # else it was killed between this and the step's file
        calls = replace(setting.callbacks, name=f"round {number}", resume_by=CONTINUE,
                        on_event=lambda event: setting.callbacks.on_event({**event, "round": number}))
        record = run(setting.bundle, data, out, config, start=setting.start, resume=out.exists(), callbacks=calls)
    store.save_schema(out, data.schema)
    passes = record["steps"] / steps_per_epoch(config, len(rows))
    return kind(seed, record["steps"], round(passes * record["data"]["tokens"]), rows)


R = TypeVar("R", bound=RoundResult)
SAID = {  # of a step that is done, by its facts
    "labels": "{rows} labelled rows learned",
    "draw": "{answers} answers to {prompts} prompts, of which {unseen} were never asked before",
    "choose": "{chosen} answers to learn", "train": "{rows} rows learned, {verified} of them verified",
    "gate": "{reason}"}


@dataclass(frozen=True)
class TutorState:
    """The state between two rounds. published: the adapter in the folder, None: the base. tested: the same as the gate
    tested it, without the held-out rows. refused: rounds in a row that published nothing. stopped: why there is no
    further round, "" while there may be one.
    """

    published: Path | None = None
    tested: Path | None = None
    refused: int = 0
    stopped: str = ""


@dataclass
class Tutor:
    """The tutor of a folder. keep: texts to stay near the base on. until: the step after which to stop, or ""."""

    setting: RoundSetting
    keep: Sequence[str] = ()
    until: str = ""
    state: TutorState = field(default_factory=TutorState)

    def run(self) -> TutorState:
        """Makes rounds until there is a reason to stop. Raises Interrupted; the same call continues."""
        setting = self.setting
        count = setting.options.rounds
        if setting.start:
            start = keep_start(setting.out, setting.start, setting.bundle.gguf)
            self.state = TutorState(start, start)
        for number in range(1, count + 1):
            setting.look()
            setting.callbacks.on_event({"event": "round", "round": number, "rounds": count})
            round = Round(setting.out, number)
            self.state = self._round(round)
            remove_old(round, {path for path in (self.state.published, self.state.tested) if path})
            if self.state.stopped:
                break
        else:
            self.state = replace(self.state, stopped=f"{count} round{' is' if count == 1 else 's are'} done")
        setting.callbacks.on_event({"event": "end", "stopped": self.state.stopped})
        return self.state

    def _round(self, round: Round) -> TutorState:
        candidates, stop = self._learn(round, self.setting.pool.labelled, self.state.tested)
        if not candidates:
            return replace(self.state, stopped=stop)
        gated = self._step(round, GateResult, lambda: self._gate(round, candidates))
        if gated.chosen:
            state = self._publish(round, gated.chosen, candidates[gated.chosen])
        else:
            refused = self.state.refused + 1
            is_last = refused >= self.setting.options.stop_after
            stopped = f"this does not help here, so nothing is published: {gated.reason}" if is_last else ""
            state = replace(self.state, refused=refused, stopped=stopped)
        return replace(state, stopped=stop) if stop else state

    def _learn(self, round: Round, labelled: Sequence[TutorQuestion],
               teacher: Path | None) -> tuple[dict[str, Path], str]:
        """Returns (the candidates for the gate, why no answers are learned or ""). teacher: the adapter that draws
        answers; None: that of the labelled rows alone, or the base without any.
        """
        setting = self.setting
        candidates: dict[str, Path] = {}
        rows = labelled_rows(labelled)
        if teacher is None and rows and not (setting.judge and round.part):
            teacher = candidates[LABELS] = self._learn_labels(round, labelled)
        drawn = self._step(round, DrawnAnswers, lambda: self._draw(round, labelled, teacher))
        chosen = self._step(round, Chosen, lambda: self._choose(drawn))
        if chosen.stop:
            return candidates, chosen.stop
        rows += chosen_rows(round)
        self._step(round, Trained, lambda: train(setting, round.number, rows, round.trained, Trained))
        return {ROUND: round.trained, **candidates}, ""

    def _learn_labels(self, round: Round, labelled: Sequence[TutorQuestion]) -> Path:
        rows = labelled_rows(labelled)
        self._step(round, Labels, lambda: train(self.setting, round.number, rows, round.labels, Labels))
        return round.labels

    def _publish(self, round: Round, chosen: str, tested: Path) -> TutorState:
        """Publishes a round's adapter. chosen, tested: name and folder of the candidate that passed the gate."""
        pool = self.setting.pool
        labelled = [*pool.labelled, *pool.held_labelled]
        final = tested
        if pool.held_labelled and chosen == LABELS:
            final = self._learn_labels(round.refit, labelled)
        elif pool.held_labelled:
            candidates, _ = self._learn(round.refit, labelled, self.state.published)
            final = candidates.get(ROUND, tested)
        published = self._step(round, Published, lambda: self._checked(round, tested, final))
        return TutorState(self.setting.out / published.adapter, tested)

    def _checked(self, round: Round, tested: Path, final: Path) -> Published:
        """Publishes the final adapter, or the tested one where the final one does harm."""
        setting = self.setting
        objection = ""
        if final != tested:
            found = gate.measure(setting, [], {PUBLISHED: self.state.published, ROUND: final}, self.keep)
            objection = gate.harm(found[ROUND], found[PUBLISHED], setting.options)
        return publish(setting.out, tested if objection else final, setting.bundle.gguf, round.number, objection)

    def _step(self, round: Round, kind: type[R], make: Callable[[], R]) -> R:
        """The result of a step, made now or read back; it is reported as an event."""
        is_new = not round.file(kind.step).exists()
        self.setting.release()
        found = round.step(kind, make)
        said = SAID.get(kind.step, "").format(**found.facts)
        part = "with the held-out rows: " if round.part else ""
        self.setting.callbacks.on_event({"event": "tutor", "round": round.number, "step": round.name(kind.step),
                                         **({"says": f"  {part}{said}"} if said else {}), **found.facts})
        if is_new and kind.step == self.until:
            raise Interrupted(f"stopped after the step {kind.step} of round {round.number}",
                              f"look at {round.file(kind.step)}, and continue with the same command")
        return found

    # ---- the steps -----------------------------------------------------------------------------------------------

    def _draw(self, round: Round, labelled: Sequence[TutorQuestion], teacher: Path | None) -> DrawnAnswers:
        setting = self.setting
        count = setting.options.per_round
        asked = in_turn(setting.pool.bare, round.number, count, setting.config.seed)
        unseen = min(len(asked), max(0, len(setting.pool.bare) - (round.number - 1) * len(asked)))
        sure_from = None
        if setting.judge:
            found, sure_from = named(setting.judge, setting, labelled, asked)
            answers = [[one] for one in found]
        else:
            answers = draw(setting, round.number, asked, setting.pairs(teacher))
        prompts = [PromptAnswers(question.key, question.text, of) for question, of in zip(asked, answers, strict=True)]
        return DrawnAnswers(setting.seed(round.number, "draw"), unseen, prompts, sure_from)

    def _choose(self, drawn: DrawnAnswers) -> Chosen:
        setting = self.setting
        options = setting.options
        asked = [setting.pool[one.key] for one in drawn.prompts]
        answers = [one.answers for one in drawn.prompts]
        choices: list[Choice]
        if setting.grader:
            source = JUDGED if setting.grader.needs_model else VERIFIED
            grades = graded(setting, asked, answers)
            choices = [choose_graded(question, of, grade, setting.grader.passes_at, source)
                       for question, of, grade in zip(asked, answers, grades, strict=True)]
        elif drawn.sure_from is not None:
            choices = [choose_sure(question, of[0], drawn.sure_from)
                       for question, of in zip(asked, answers, strict=True)]
        else:
            choices = [choose_agreed(question, of, options.agreement)
                       for question, of in zip(asked, answers, strict=True)]
        stop = collapse(answers, [question.reference for question in setting.pool.labelled])
        count = sum(bool(one.label) for one in choices)
        if not stop and count < options.min_rows:
            why = "pass the grader" if setting.grader else "are sure" if setting.judge else "agree"
            stop = (f"this does not help here: the answers to {count} of {len(choices)} prompts {why}, "
                    f"{options.min_rows} are needed")
        return Chosen(stop, choices)

    def _gate(self, round: Round, candidates: dict[str, Path]) -> GateResult:
        setting = self.setting
        asked = in_turn(setting.pool.held, round.number, setting.options.questions, setting.config.seed)
        gates = (earlier.read(GateResult) for earlier in rounds_of(setting.out) if earlier.number < round.number)
        tests = gate.count_tests(one for one in gates if one)
        return gate.gate(setting, asked, self.state.tested, candidates, self.keep, tests)


def chosen_rows(now: Round) -> list[TrainingRow]:
    """The answers chosen in this part of the rounds up to now; the newest to each prompt counts."""
    found: dict[str, TrainingRow] = {}
    for round in rounds_of(now.out):
        chosen = replace(round, part=now.part).read(Chosen) if round.number <= now.number else None
        for one in chosen.choices if chosen else ():
            if one.label:
                found[one.key] = TrainingRow(one.key, one.label, one.source)
    return list(found.values())
