"""The rounds: each a sequence of steps, of which those that are done are not done again.

Round 0 learns the labelled rows, where there is no adapter to begin from. What serves is `published`; what learns is
`current`, which continues from a round that published nothing as long as it is not surely worse, and goes back to what
is published, at half the learning rate, where it is.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import disk
from ..adapters import store
from ..data.retold import Values
from ..errors import Interrupted, MismatchError, UsageError
from ..evaluation.graders.base import Grade
from ..formats.gguf import Gguf
from ..objectives.sft import Sft
from ..persisted import from_json
from . import correcting, gate, lesson, questions
from .agreed import with_agreed
from .answering import Said
from .evaluating import (
    AGREEMENT,
    NOBODY,
    SELF,
    VERIFIED,
    Evaluated,
    auc,
    collapse,
    evaluate,
    graded,
    judge_of,
    probabilities_of_yes,
)
from .files import BEGUN, MEND, Found, Round, rounds_of, write_object
from .generating import generate
from .lesson import AGREED, ANSWERED, REVISED, WRONG, Taught, read_taught
from .questions import DEV, FEW, JUDGE, Question
from .retelling import judging, known_values, retold
from .search import MOST, search
from .setting import Setting

DRAWING = ("generate", "correct", "search", "gate")  # steps in which the model answers
KEPT = 3  # published adapters, to which one can go back
PUBLISHED_RECORD = "published"  # of run.json: the round
CALIBRATION = 16  # labelled questions of a round, by whose answers it is measured how well the model judges


@dataclass(frozen=True)
class Standing:
    """Between two rounds. published, current: folders of adapters, None: the base. barren: rounds in a row that
    published nothing; lr_scale: of the learning rate; stopped: why there is no further round, "" while there may be.
    """

    published: Path | None
    current: Path | None
    barren: int = 0
    lr_scale: float = 1.0
    stopped: str = ""


@dataclass
class Tutor:
    """start: the adapter to begin from, None: the base. keep: texts on which an adapter is to stay near the base.
    until: the step after which to stop, so that what it found can be looked at; "": none.
    """

    setting: Setting
    start: Path | None = None
    keep: Sequence[str] = ()
    until: str = ""
    standing: Standing = field(init=False)

    def run(self) -> Standing:
        """Rounds until one of the reasons to stop. Raises Interrupted, to be continued by the same call."""
        setting = self.setting
        start = _kept_start(setting, self.start) if self.start else None
        self.standing = Standing(start, start)
        first = 0 if self.start is None and setting.pool.labelled else 1
        for number in range(first, setting.options.rounds + 1):
            setting.look()
            setting.on_event({"event": "round", "round": number, "rounds": setting.options.rounds})
            self.standing = self._round(Round(setting.out, number))
            if not self.standing.stopped and (why := _frozen(setting.out, number)):
                self.standing = replace(self.standing, stopped=why)
            if self.standing.stopped:
                break
        else:
            count = setting.options.rounds
            self.standing = replace(self.standing, stopped=f"{count} round{' is' if count == 1 else 's are'} done")
        setting.on_event({"event": "end", "stopped": self.standing.stopped})
        return self.standing

    def _round(self, of: Round) -> Standing:
        new, stop = self._found(of) if of.number else ([], "")
        rows = self._step(of, "rows", lambda: self._rows(of, new, stop))
        if rows["stop"]:
            return replace(self.standing, stopped=rows["stop"])
        taught = read_taught(rows["rows"], of.file("rows"))
        self._step(of, "train", lambda: self._train(of, taught))
        is_verified = all(one.is_verified for one in taught)
        self._step(of, "search", lambda: self._search(of, is_verified))
        found = self._step(of, "gate", lambda: self._gate(of, is_verified))
        decision = from_json(gate.Decision, found["decision"], str(of.file("gate")))
        standing = self._after(of, decision)
        _remove_old(of, standing)
        return standing

    def _after(self, of: Round, decision: gate.Decision) -> Standing:
        was = self.standing
        if decision.passed:
            self._step(of, "publish", lambda: self._publish(of))
            return replace(was, published=of.candidate, current=of.candidate, barren=0)
        barren = was.barren + 1
        stopped = f"{barren} rounds in a row published nothing" if barren >= self.setting.options.stop_after else ""
        if decision.worse:
            return replace(was, current=was.published, barren=barren, lr_scale=was.lr_scale / 2, stopped=stopped)
        return replace(was, current=of.trained, barren=barren, stopped=stopped)

    def _step(self, of: Round, step: str, make: Callable[[], Found]) -> Found:
        """What a step found, now or before; whoever watches is told of it."""
        is_new = of.read(step) is None
        self.setting.release()
        found = of.step(step, lambda: self._counted(step, make))
        self.setting.on_event({"event": "tutor", "round": of.number, "step": step, **found["facts"]})
        if is_new and step == self.until:
            raise Interrupted(f"stopped after the step {step} of round {of.number}",
                              f"look at {of.file(step)}, and continue with the same command")
        return found

    def _counted(self, step: str, make: Callable[[], Found]) -> Found:
        """What a step finds, with the tokens of the answers that it drew, where it draws any."""
        self.setting.drawn.tokens = 0
        found = make()
        return {**found, "facts": {**found["facts"], "drawn": self.setting.drawn.tokens}} if step in DRAWING else found

    # ---- the steps -----------------------------------------------------------------------------------------------

    def _found(self, of: Round) -> tuple[list[Taught], str]:
        """(the answers that a round found to learn, why it learns nothing, "" where it does)"""
        chosen = self._step(of, "select", lambda: self._select(of))
        said = self._step(of, "generate", lambda: self._generate(of, chosen["keys"]))
        evaluated = self._step(of, "evaluate", lambda: self._evaluate(said))
        corrected = self._step(of, "correct", lambda: self._correct(of, said, evaluated))
        new = _new_rows(self.setting, evaluated, corrected)
        if again := retold(self.setting, of.number, self._values(of)):  # in the place of what nobody verified
            new = [*(one for one in new if one.is_verified), *again]
        stop = evaluated["collapse"]
        least = self.setting.options.min_rows
        right = sum(one.source != WRONG for one in new)
        if not stop and right < least:
            stop = f"round {of.number} found {right} answers to learn, {least} are needed"
        return new, stop

    def _values(self, of: Round) -> Values:
        """With which rows are told again: of labelled rows, and what answers of this round and all before agree on."""
        setting = self.setting
        made = [found for one in (*_before(of), of) if (found := one.read("generate"))]
        return known_values(setting, (told for found in made for told in zip(*_said(setting, found), strict=True)))

    def _rows(self, of: Round, new: Sequence[Taught], stop: str) -> Found:
        setting = self.setting
        rows = lesson.lesson(setting, of.number, new, list(_earlier(of)))
        tokens = {source: sum(one.tokens for one in rows if one.source == source)
                  for source in dict.fromkeys(one.source for one in rows)}
        facts = {"seed": setting.seed(of.number, "rows"), "rows": len(rows), "tokens": tokens, "stop": stop}
        return {"facts": facts, "stop": stop, "rows": [one.to_json() for one in rows]}

    def _select(self, of: Round) -> Found:
        setting = self.setting
        options = setting.options
        seed = setting.seed(of.number, "select")
        rates = dict(_rates(of))
        chosen = questions.select(setting.pool, rates, options.per_round, options.unseen, [seed])
        if setting.grader is None and options.min_auc <= 1:
            more = [question for question in setting.pool.labelled if question not in chosen]
            asked = sum(bool(question.reference) for question in chosen)
            chosen += more[:max(0, CALIBRATION - asked)]
        keys = [question.key for question in chosen]
        unseen = sum(key not in rates for key in keys)
        return {"facts": {"seed": seed, "prompts": len(keys), "unseen": unseen}, "keys": keys}

    def _generate(self, of: Round, keys: Sequence[str]) -> Found:
        setting = self.setting
        said = generate(setting, of.number, [setting.pool[key] for key in keys], setting.pairs(self.standing.current))
        flat = [one for of_question in said for one in of_question]
        facts = {"seed": setting.seed(of.number, "generate"), "answers": len(flat),
                 "shown": sum(bool(one.shown) for one in flat), "tokens": sum(one.tokens for one in flat),
                 "ended": sum(one.ended for one in flat)}
        return {"facts": facts, "answers": [{"key": key, "asked": setting.pool[key].text,
                                             "said": [one.to_json() for one in of_question]}
                                            for key, of_question in zip(keys, said, strict=True)]}

    def _evaluate(self, found: Found) -> Found:
        setting = self.setting
        asked, said = _said(setting, found)
        passes_at = setting.grader.passes_at if setting.grader else 1.0
        grades = graded(setting, asked, said)
        told = [evaluate(question, of_question, grade, passes_at, setting.options, form=setting.form)
                for question, of_question, grade in zip(asked, said, grades, strict=True)]
        told, measured = self._judged(asked, said, grades, told)
        by = {name: sum(one.by == name for one in told) for name in dict.fromkeys(one.by for one in told)}
        rate = sum(one.rate for one in told) / len(told)
        why = collapse(asked, said)
        facts = {"by": by, "rate": rate, "labels": sum(bool(one.label) for one in told), "auc": measured,
                 "collapse": why}
        return {"facts": facts, "collapse": why, "evaluated": [one.to_json() for one in told]}

    def _judged(self, asked: Sequence[Question], said: Sequence[Sequence[Said]], grades: Sequence[Sequence[Grade]],
                told: Sequence[Evaluated]) -> tuple[list[Evaluated], float | None]:
        """With what the model says of answers that nobody else can judge, if it judges well; and how well it does."""
        setting = self.setting
        nobody = [i for i, one in enumerate(told) if one.by == NOBODY]
        known = [i for i, one in enumerate(told) if asked[i].reference]
        if setting.grader or not nobody or not known or setting.options.min_auc > 1:
            return list(told), None
        judge = judge_of(setting)
        yes = probabilities_of_yes(judge, [asked[i] for i in known], [said[i] for i in known])
        measured = auc([p for of in yes for p in of], [bool(right) for i in known for right in told[i].right])
        if measured is None or measured < setting.options.min_auc:
            return list(told), measured
        found = list(told)
        for i, of in zip(nobody, probabilities_of_yes(judge, [asked[i] for i in nobody], [said[i] for i in nobody]),
                         strict=True):
            found[i] = evaluate(asked[i], said[i], grades[i], 1.0, setting.options, of, setting.form)
        return found, measured

    def _correct(self, of: Round, found: Found, evaluated: Found) -> Found:
        setting = self.setting
        asked, said = _said(setting, found)
        told = _evaluated(evaluated, of.file("evaluate"))
        wrong = [(question, of_question[one.right.index(False)]) for question, of_question, one in
                 zip(asked, said, told, strict=True) if question.reference and not one.label and False in one.right]
        wrong = [(question, one) for question, one in wrong if one.text][:setting.options.corrections]
        made = correcting.correct(setting, of.number, wrong, setting.pairs(self.standing.current))
        facts = {"wrong": len(wrong), "helpful": sum(bool(one.judgment) for one in made),
                 "leaked": sum(one.leaked for one in made),
                 "revised": sum(one.kept and not one.hinted for one in made),
                 "hinted": sum(one.kept and one.hinted for one in made)}
        return {"facts": facts, "corrections": [one.to_json() for one in made]}

    def _train(self, of: Round, rows: Sequence[Taught]) -> Found:
        setting = self.setting
        record = lesson.train(setting, of.number, rows, self.standing.current, self.standing.lr_scale, of.trained)
        facts = {"seed": setting.seed(of.number, "train"), "steps": record["steps"],
                 "tokens": sum(one.tokens for one in rows), "trained": record["data"]["tokens"],
                 "lr_scale": self.standing.lr_scale}
        return {"facts": facts}

    def _search(self, of: Round, is_verified: bool) -> Found:
        """Bare prompts are asked only of what nobody verified: what is published judges them, and favours itself."""
        setting = self.setting
        published = self.standing.published
        bare = [] if is_verified else setting.pool.bare[DEV][:MOST]
        agreed = with_agreed(setting, of.number, bare, published)
        found = search(setting, agreed, published, of.trained, of.candidate)
        return {"facts": found}

    def _gate(self, of: Round, is_verified: bool) -> Found:
        setting = self.setting
        options = setting.options
        seed = setting.config.seed
        published = self.standing.published
        asked = questions.of_round(setting.pool.judge, max(1, of.number), options.questions, seed)
        bare = questions.of_round(setting.pool.bare[JUDGE], max(1, of.number), options.questions, seed)
        again = judging(asked, self._values(of), setting.seed(of.number, "judge")) if len(asked) < FEW else []
        asked += again or with_agreed(setting, of.number, bare, published)
        keys = [question.key for question in asked if not question.of]
        alpha = gate.alpha_of(options.gate_alpha, _judged_before(of), keys)
        old, new, harm = gate.measure(setting, asked, published, of.candidate, self.keep)
        decision = gate.decide(old, new, harm, alpha, options, is_first=published is None,
                               is_verified=is_verified)
        held_out = {"held_out_before": gate.mean_value(old), "held_out": gate.mean_value(new)}
        facts = {**decision.to_json(), **held_out, **asdict(harm)}
        return {"facts": facts, "decision": decision.to_json(), "keys": keys,
                "published": [one.to_json() for one in old], "candidate": [one.to_json() for one in new]}

    def _publish(self, of: Round) -> Found:
        """A step, so that what a person took back later is not published again by a run that is continued."""
        _write_published(self.setting.out, of.candidate, self.setting.bundle.gguf, of.number)
        return {"facts": {}}


# ---- what earlier steps found ----------------------------------------------------------------------------------------


def _said(setting: Setting, found: Found) -> tuple[list[Question], list[list[Said]]]:
    asked = [setting.pool[one["key"]] for one in found["answers"]]
    return asked, [[Said(**told) for told in one["said"]] for one in found["answers"]]


def _evaluated(found: Found, path: Path) -> list[Evaluated]:
    return [from_json(Evaluated, one, str(path)) for one in found["evaluated"]]


def _before(of: Round) -> Iterator[Round]:
    for earlier in rounds_of(of.out):
        if earlier.number < of.number:
            yield earlier


def _rates(of: Round) -> Iterator[tuple[str, float]]:
    """(question, share of right answers) of all rounds before, the newest last."""
    for earlier in _before(of):
        for one in _evaluated(earlier.read("evaluate") or {"evaluated": []}, earlier.file("evaluate")):
            yield one.key, one.rate


def _earlier(of: Round) -> Iterator[Taught]:
    """What rounds before learned of what they found, the newest last."""
    for earlier in _before(of):
        for one in read_taught((earlier.read("rows") or {"rows": []})["rows"], earlier.file("rows")):
            if one.source in (ANSWERED, REVISED, AGREED):
                yield one


def _judged_before(of: Round) -> list[list[str]]:
    """The questions of each gate before, the newest last."""
    found = (earlier.read("gate") for earlier in _before(of))
    return [one["keys"] for one in found if one]


def _new_rows(setting: Setting, evaluated: Found, corrected: Found) -> list[Taught]:
    """What a round found: the trusted answer to each question, right revisions of wrong ones, and, where they are
    learned too, wrong ones with what was said of them.
    """
    rows = []
    for one in evaluated["evaluated"]:
        if one["label"]:
            source = ANSWERED if one["by"] in VERIFIED else AGREED
            assert source == ANSWERED or one["by"] in (AGREEMENT, SELF)
            rows.append(lesson.taught(setting, setting.pool[one["key"]], one["label"], one["weight"], source))
    for one in corrected["corrections"]:
        question = setting.pool[one["key"]]
        if one["kept"]:
            rows.append(lesson.taught(setting, question, one["revision"], 1.0, REVISED))
        if one["judgment"] and setting.options.objective != Sft.name:
            rows.append(lesson.taught(setting, question, one["wrong"], 1.0, WRONG, one["judgment"]))
    return rows


def _frozen(out: Path, number: int) -> str:
    """Why a further round would learn what only seems right: twice in a row more of what it asks is right, and less of
    what judges it. "" where that is not so.
    """
    rates = []
    values = []
    for earlier in (Round(out, n) for n in range(max(number - 2, 1), number + 1)):
        evaluated = earlier.read("evaluate")
        judged = earlier.read("gate")
        if not evaluated or not judged:
            return ""
        rates.append(evaluated["facts"]["rate"])
        values.append(judged["facts"].get("held_out", 0.0))
    if len(rates) < 3 or not (rates[0] < rates[1] < rates[2] and values[0] > values[1] > values[2]):
        return ""
    return "more of what it asks is right from round to round, and less of what judges it: the judges may be cheated"


# ---- the folder ------------------------------------------------------------------------------------------------------


def begin(out: Path, begun: Mapping[str, Any]) -> None:
    """Makes the folder, or continues the rounds in it. begun: what they depend on, as JSON.

    Raises MismatchError where the rounds were begun with something else, UsageError for a folder of another kind.
    """
    earlier = disk.read_object(out / BEGUN, MEND)
    if earlier is None:
        if out.exists() and any(out.iterdir()):
            raise UsageError(f"the output folder {out} exists", "name another with -o, or remove it")
        write_object(out / BEGUN, begun)
        return
    earlier = {"objective": Sft.name, "retold": 0, "verified_alpha": 0.0, **earlier}  # before there was a choice
    different = [name for name in {**earlier, **begun} if earlier.get(name) != json.loads(json.dumps(begun)).get(name)]
    if different:
        name = different[0]
        raise MismatchError(f"the rounds in {out} were begun with another {name.replace('_', '-')}",
                            "give the same to continue them, or name another folder with -o")


def _kept_start(setting: Setting, start: Path) -> Path:
    """A copy of the adapter to begin from, which is published until a round is, in the place of round 0's."""
    kept = Round(setting.out, 0).candidate
    if not kept.exists():
        store.save_adapter(kept, setting.pairs(start), setting.bundle.gguf, store.read_run(start))
    store.save_schema(kept, store.read_schema(start))
    if not (setting.out / store.FILE).exists():
        _write_published(setting.out, kept, setting.bundle.gguf, 0)
    return kept


def _was_published(of: Round) -> bool:
    found = of.read("gate")
    return bool(found["decision"]["passed"]) if found else of.number == 0 and of.candidate.is_dir()


def _write_published(out: Path, adapter: Path, gguf: Gguf, number: int) -> None:
    """Makes an adapter the one in the folder itself, which others open."""
    found = store.open_adapter(adapter, gguf)
    store.save_schema(out, found.schema)
    store.save_run(out, found.pairs, gguf, {**found.run, PUBLISHED_RECORD: number})


def _remove_old(now: Round, standing: Standing) -> None:
    """Adapters up to a round that nobody can want again: all but those in use and the last that were published."""
    rounds = [*_before(now), now]
    published = [of for of in rounds if _was_published(of)]
    wanted = {standing.published, standing.current, *(of.candidate for of in published[-KEPT:])}
    for of in rounds:
        for folder in (of.trained, of.candidate):
            if folder not in wanted:
                shutil.rmtree(folder, ignore_errors=True)


def roll_back(out: Path, gguf: Gguf) -> int:
    """Makes the adapter that was published before the present one the one in the folder again; its round.

    Raises UsageError where there is none.
    """
    now = store.read_run(out).get(PUBLISHED_RECORD, 0)
    earlier = [of for of in rounds_of(out) if of.number < now and of.candidate.is_dir() and _was_published(of)]
    if not earlier:
        raise UsageError(f"nothing was published in {out} before round {now}", "only the last three are kept")
    last = earlier[-1]
    with disk.alone(out):
        _write_published(out, last.candidate, gguf, last.number)
    return last.number
