"""--learn tutor: what the daemon's tutor is made of, and its jobs over the prompts that people asked.

A job begins from the adapter in service. It asks all prompts that are kept, beside what people said is right, which it
learns on as labelled rows and takes nothing of. One in five prompts judges where a grader can say what an answer to it
is worth; which, the key of the held-out rows decides. Held-out feedback judges as ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...adapters.store import recorded_size
from ...data import prompts as asking
from ...data import rows as supervised_rows
from ...data.dataset import Dataset, load_rows
from ...data.rows import Row, RowParser
from ...errors import DataError, UsageError
from ...evaluation.graders.base import load_grader
from ...llamacpp.tokenizer import Tokenizer
from ...training.config import TrainConfig
from ...tutor.teach import DEFAULTS
from ..jobs.jobs import JobData, Jobs
from ..jobs.rewarded import with_rewards
from ..jobs.table import Job
from ..jobs.tutored import TutorTask
from ..options import DaemonConfig
from ..state.holdout import EDGE, MOST
from .curriculum import JobRows
from .feedback import Feedback
from .method import read_options
from .prompts import KeptPrompt, Prompts

SUFFIX = "tutored"  # of the adapters that its jobs make
LEFT_OUT = ("steps", "eval_every", "patience")  # options of training that rounds do not have


def tutor_task(config: DaemonConfig) -> TutorTask | None:
    """The tutor of a daemon; None where --learn says nothing of one. Raises UsageError for options that are wrong, that
    lack what they need, or that nothing uses.
    """
    if not config.tutors:
        if config.tutor_options:
            raise UsageError(f"tutor-options is given, and learn is {config.learn}",
                             "leave it out, or choose --learn tutor")
        return None
    if not config.keep_prompts:
        raise UsageError(f"learn is {config.learn}, which asks the prompts of people again, and none is kept",
                         "say how many may be kept, such as --keep-prompts 1000")
    grader = None
    if config.learn_grader:
        path = Path(config.learn_grader).expanduser()
        read = load_grader(path, allow_python=config.allow_python_graders)
        try:
            read.check_item({"prompt": "?"})
        except DataError as error:
            raise UsageError(f"learn-grader cannot judge answers to the prompts of people: {error.what}",
                             "a prompt has item.prompt, or item.messages, and no right answer") from None
        grader = read.to_json()
    task = TutorTask(read_options(config.tutor_options), grader)
    task.options  # noqa: B018 (checked)
    with_rewards(task.objective, config.python())
    return task


@dataclass(frozen=True)
class Tutoring:
    """The tutor's jobs of a service. tokenizer: of the model, by which it is known what fits."""

    task: TutorTask
    prompts: Prompts
    feedback: Feedback
    jobs: Jobs
    tokenizer: Tokenizer

    def begin(self) -> Job:
        """A job over the prompts that are kept. Raises UsageError where there is nothing to ask or to judge by, errors
        of Jobs.
        """
        found = [prompt for prompt in self._all() if self._fits(prompt.row)]
        judging = self._judging(found)
        said = self.feedback.answered_rows()
        labelled = [row for row in JobRows(self.feedback, said.new) if self._is_learnable(row)]
        answered = [(row, stored) for row, stored in zip(JobRows(self.feedback, said.held), said.held, strict=True)
                    if self._is_learnable(row)]
        rounds = [stored.job or "" for _, stored in answered if stored in said.established]
        chosen = self.feedback.holdout.lowest([prompt.question for prompt in judging], MOST - len(answered))
        held = [row for row, _ in answered] + [prompt.row for prompt in judging if prompt.question in chosen]
        apart = {prompt.id for prompt in judging}
        rows = [prompt.row for prompt in found if prompt.id not in apart]
        self._check(rows, held)
        serving = self.jobs.adapters.serving
        start = self.jobs.adapters.path(serving) if serving else None
        counts = {"prompts": str(len(rows)), "labelled": str(len(labelled)), "held": str(len(held))}
        data = JobData(rows, held, rounds, labelled=labelled, start=start)
        job = self.jobs.create_tutored(data, self.task.to_method(), suffix=SUFFIX, metadata=counts,
                                       hyperparameters=self._options(start))
        self.prompts.take([prompt.id for prompt in found], job.id)
        return job

    def _options(self, start: Path | None) -> dict[str, object]:
        """Of its trainings: the tutor's own where nobody chose others, and the size of the adapter that is continued.
        """
        plain = TrainConfig()
        train = self.jobs.train
        left_open = {name: value for name, value in DEFAULTS.items() if getattr(train, name) == getattr(plain, name)}
        return {**left_open, **{name: getattr(plain, name) for name in LEFT_OUT}, **recorded_size(start)}

    def _all(self) -> list[KeptPrompt]:
        """The oldest first."""
        return [*reversed(self.prompts.list(limit=max(self.prompts.most, 1)))]

    def _judging(self, found: Iterable[KeptPrompt]) -> list[KeptPrompt]:
        if self.task.grader is None:
            return []
        return [prompt for prompt in found if self.feedback.holdout.rank(prompt.question) < EDGE]

    def _fits(self, row: Row) -> bool:
        """Whether this model's template takes a prompt, and its answer can be learned whole."""
        longest = self.jobs.train.row_limit - self.task.options.max_tokens
        data = self._tokenized(row, asking)
        return data is not None and bool(data.examples[0].tokens.size <= longest)

    def _is_learnable(self, row: Row) -> bool:
        data = self._tokenized(row, supervised_rows)
        return data is not None and not data.truncated

    def _tokenized(self, row: Row, parser: RowParser) -> Dataset | None:
        """None for a row that this model's template does not take."""
        train = self.jobs.train
        try:
            return load_rows([row], self.tokenizer, max_length=train.row_limit, system=train.system or None,
                             parser=parser)
        except DataError:
            return None

    def _check(self, rows: Sequence[Row], held: Sequence[Row]) -> None:
        """Raises UsageError."""
        if not rows:
            raise UsageError("no prompt is kept that the tutor could ask", "ask some, or raise max-length")
        if not held:
            missing = "" if self.task.grader else ", and there is no grader"
            raise UsageError(f"nothing can judge what the tutor's rounds learn: no answer is held out{missing}",
                             "correct some answers, or name a grader with --learn-grader FILE")

