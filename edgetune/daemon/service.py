"""A model that answers and learns, without HTTP, for the daemon, and for apps that embed it.

    with Service("model.gguf", DaemonConfig(state="state", learn="idle")) as service:
        text = "".join(service.chat([{"role": "user", "content": "lamp on"}]))

It has three phases: start (open the state, load the model and the active adapter, resume what was running), work
(threads of the batcher, of the jobs and of learning) and stop (finish answers, save training).
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from .. import disk
from ..data.around import Instruction, instructed, sourced, together
from ..errors import NotFoundError, UsageError, size_text
from ..formats.bundle import open_bundle
from ..formats.named import find_model, name_of
from ..formats.slot import opened_side, slot_of
from ..llamacpp.sampling import SEED_LIMIT
from ..machine.device import read_device, rss
from ..machine.governor import Governor
from ..machine.policy import Policy
from ..machine.sensors import Sensors
from ..models.networks import network_of
from ..objectives.base import objectives
from ..serving.completion import MODEL, Completion, OnPiece
from ..serving.llama import LlamaModel
from ..serving.prompt_file import opened_around
from ..serving.question import Question
from ..serving.served import Served
from ..serving.tool_calls import CallReader
from ..training.config import TrainConfig
from . import memory
from .embeddings import Embedded, Embeddings, Text
from .grading import Grading
from .jobs.jobs import FOLDER as RUNS
from .jobs.jobs import NAMES as RUN_NAMES
from .jobs.jobs import Jobs, check_suffix
from .jobs.process import JobProcess, WorkerProcess
from .jobs.queue import Queue, WorkerOptions
from .jobs.room import Room
from .jobs.table import Job, JobTable
from .kinds.evaluation import EvaluationRequest, begin_evaluation
from .kinds.registry import kinds
from .learning.feedback import Feedback
from .learning.learner import Learner
from .learning.like import LikeRecall
from .learning.method import learn_method
from .learning.proposals import Proposals
from .learning.recall import Recall
from .learning.traffic import DrawnTraffic
from .opening import open_answering
from .options import DaemonConfig, model_name
from .probation import Probations
from .running import Chooser, RunningPart, running_parts
from .sources import EARLIER, AnswerSource, AskedQuestion, ModelSource, continued, first_answer, thinking_of
from .state.adapters import LATEST, Adapters, RegisteredAdapter
from .state.database import Store
from .state.files import Files
from .state.holdout import open_holdout
from .state.shelf import LOST, Shelf, lost_things
from .threads import Threaded, health_of

log = logging.getLogger("edgetune.daemon")


class Service:
    """The daemon without HTTP. Use it as a context manager. model: a GGUF, a bundle or a name. config: its options.
    policy: rules by which training yields. train: options of a job that its request leaves open. start_process: starts
    the process of a job.

    The app may use its parts from any thread: files, jobs, adapters, feedback, batcher, embeddings, grading.
    Raises UsageError for options out of their range and where another process has the state folder.
    """

    def __init__(self, model: str | Path, config: DaemonConfig | None = None, policy: Policy | None = None,
                 train: TrainConfig | None = None, start_process: Callable[[], JobProcess] = WorkerProcess) -> None:
        self.config = (config or DaemonConfig()).check()
        self.policy = (policy or Policy(nice=19)).check()
        self.train = train or TrainConfig(threads=self.config.threads)
        if self.config.prompt:  # what is learned is asked with it, too
            self.train = replace(self.train, prompt=str(Path(self.config.prompt).expanduser().absolute()))
        self.train.check()
        learn_method(self.config)  # raises for options that are wrong
        self.start_process = start_process
        self.slot = slot_of(Path(model))
        self.path = opened_side(find_model(model))
        self.name = model_name(self.slot.path if self.slot else self.path)
        self.stopping = threading.Event()
        self.running: dict[str, RunningPart] = {}
        self.answered = Counter[str]()  # answers by their source
        self._counting = threading.Lock()
        self._reading = memory.MemoryReading()
        self._opened = ExitStack()

    # ---- start and stop -----------------------------------------------------------------------------------------

    @disk.refusals()
    def start(self) -> Service:
        """Opens the state and the model. Raises EdgetuneError if one cannot be opened, or memory is too small."""
        folder = self.config.folder()
        disk.private_folder(folder)
        with ExitStack() as opened:
            opened.enter_context(disk.alone(folder))
            self.bundle = open_bundle(self.path)
            self.objective = objectives()[network_of(self.bundle.gguf).objective]  # by which it learns right answers
            self.method = learn_method(self.config, self.objective.name)
            self.store = Store(folder)
            opened.callback(self.store.close)
            self.running = running_parts(self.config, opened)
            self._open_model()
            opened.callback(self.served.close)
            self._put_around(opened)
            self.embeddings = Embeddings(self.batcher, self.config, (self.name, self.name + LATEST))
            opened.callback(self.embeddings.close)
            given = self.slot.path if self.slot else self.path
            called = name_of(given)
            self.short_name = self.name if called == str(given) else called  # a path is no name
            self._known = {name_of(file): model_name(file) for file in (given, self.embeddings.file) if file}
            self.grading = Grading(self.batcher, self.name, self.config.allow_python_graders, self._left)
            self.files = Files(self.store, folder, self.config)
            self.adapters = Adapters(self.store, folder, self.batcher, self.config, self.name, self._left,
                                     self.bundle.fingerprint, may_differ=self.slot is not None)
            self.holdout = open_holdout(folder, in_use=self.store.holds_feedback())
            self.feedback = Feedback(self.store, self.holdout, self.config, self.method.kind)
            self.traffic = DrawnTraffic(self.store, self.holdout, self.config.drawn_days,
                                   lambda: self.adapters.serving or self.adapters.base)
            self.feedback.on_deleted.append(self.traffic.forget)
            self.proposals = Proposals(self.store, self.feedback,
                                       any(running.keeps_questions for running in self.running.values()))
            names = ("", self.name + LATEST)
            self.model = ModelSource(self.batcher, self.adapters, self.served, self.config)
            self.recall = Recall(self.feedback, self.adapters, self.served, names, self.method.imitates)
            for running in self.running.values():
                running.join(self)
            self.sources = self._sources()
            self.jobs = self._jobs(folder)
            starters = [starter for kind in kinds().values() for starter in kind.starters(self)]
            self.learner = Learner(starters, self.jobs, self.batcher, Governor(self.policy, read_device().profile),
                                   self.config, self.store, self.stopping)
            self._used_at_start = memory.in_use(self.bundle.gguf.path.resolve())[0]
            self.probations = Probations(self.adapters, self.store)
            self.feedback.on_added.append(self.probations.look)
            for part in (self.batcher, self.adapters, self.jobs, self.learner):
                part.start()
                if not isinstance(part, Adapters):
                    opened.callback(part.stop)
            for running in self.running.values():
                running.start()
                opened.callback(running.stop)
            self.probations.look()  # the daemon may have ended before it could
            self.parts: Sequence[Threaded] = (self.batcher, self.jobs, self.learner, *self.running.values())
            self._opened = opened.pop_all()
        return self

    def _sources(self) -> list[AnswerSource]:
        """Returns the sources of answers in order; an app may insert others."""
        has_likes = self.config.recall and self.config.recall_like != "off" and self.embeddings.encoder
        self.likes = LikeRecall(self.recall, self.embeddings) if has_likes else None
        found: list[AnswerSource] = [self.recall] if self.config.recall else []
        if self.likes:
            found.append(self.likes)
        found += [source for running in self.running.values() for source in running.sources()]
        return [*sorted(found, key=lambda source: source.place), self.model]

    def _answer(self, asked: AskedQuestion) -> Completion:
        try:
            found = first_answer(self.sources, asked)
        except NotFoundError:  # of a question that the adapter did not learn; people ask it all the same
            self._see(asked)
            raise
        if found.source == MODEL:
            self._see(asked)
        with self._counting:
            self.answered[found.source] += 1
        return found

    def _see(self, asked: AskedQuestion) -> None:
        """Lets the traffic draw a question of the active model."""
        if asked.may_be_kept and self.recall.serves(asked):
            self.traffic.see(asked.content)

    def _jobs(self, folder: Path) -> Jobs:
        table = JobTable(self.store)
        runs = Shelf(folder, RUNS, RUN_NAMES)
        options = WorkerOptions(self.path, self.policy, self.config.canary, self.config.limits(), self.room,
                                self.config.python())
        queue = Queue(table, runs, self.files, self.adapters, self.batcher, options, self.stopping,
                      self.start_process)
        return Jobs(table, runs, queue, self.files, self.adapters, self.train, self.holdout, self.config.python(),
                    self.objective.method)

    def _open_model(self) -> None:
        here = read_device()
        self.sensors = Sensors(zones=here.profile.zones if here.profile else ())
        self.budget = TrainConfig(memory=self.config.memory).memory_here()
        self.bare = rss()  # bytes of this process without a model
        self.batcher = open_answering(self.bundle.gguf, self.name, self.config, self.budget, self.train.markup)
        self.served: Served = self.batcher.served

    def _put_around(self, opened: ExitStack) -> None:
        """Puts around every chat what the options say."""
        prompt = Path(self.config.prompt).expanduser() if self.config.prompt else None
        around = opened.enter_context(opened_around(prompt, self.config.threads))
        if found := together(around, *(running.around for running in self.running.values())):
            cast(LlamaModel, self.served).around = found

    def sources_of(self, question: Question) -> Sequence[dict[str, Any]] | None:
        """Returns the sources of what is put around a question: none if nothing was found, None if nothing has any."""
        found = sourced(question.around) or sourced(getattr(self.served, "around", None))
        return found.sources(question.messages or ()) if found else None

    def tool(self, given: Mapping[str, Any]) -> Instruction:
        """Returns what a tool that the daemon itself runs puts around a question. Raises UsageError if no part knows
        the tool, and the part's errors.
        """
        for running in self.running.values():
            if found := running.tool(given):
                return found
        raise UsageError(f"this daemon has no tool of type {given['type']}", "leave it out")

    def stop(self) -> None:
        """Finishes the answers in progress, saves the training, closes. A second call does nothing."""
        self.stopping.set()
        self._opened.close()

    def __enter__(self) -> Service:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.stop()

    # ---- answers ------------------------------------------------------------------------------------------------

    def models(self) -> Sequence[str]:
        """Returns names for requests: the base, the base with the active adapter, every adapter, and `choosing`."""
        return [*self.adapters.models(), *self.choosing()]

    def choosing(self) -> Sequence[str]:
        """Returns names by which a part chooses a model for each question."""
        return [name for running in self.running.values() for name in running.models()]

    def _chooser(self, model: str) -> Chooser | None:
        return next((found for running in self.running.values() if (found := running.chooser(model))), None)

    def spelled(self, model: str) -> str:
        """Returns the name in `models` of a model that a request calls as commands do: "smollm2:latest", say."""
        known, colon, rest = model.partition(":")
        return self._known.get(known, known) + colon + rest

    def adapter_for(self, model: str) -> str | None:
        """Returns the adapter that answers for a model's name now; None: the base alone, or whatever a part chooses.
        Raises NotFoundError.
        """
        model = self.spelled(model)
        return None if self._chooser(model) else self.adapters.named(model)

    def chat(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None = None, *,
             model: str = "", **options: Any) -> Completion:
        """Returns the assistant's next message, as a Completion that yields pieces of text; options are
        Batcher.submit's.

        model: a name of `models`; "": the base with the active adapter.
        """
        content = {"messages": messages, "tools": tools}
        model = self.chosen(model, content)
        prompt = self._rendered(messages, tools, model)
        return self._answer(AskedQuestion(content, prompt, model, bool(tools), options))

    def generate(self, prompt: str | Sequence[int], *, model: str = "", **options: Any) -> Completion:
        """Returns the continuation of a prompt."""
        content = {"prompt": prompt} if isinstance(prompt, str) else {}
        return self._answer(AskedQuestion(content, prompt, self.chosen(model, content), options=options))

    def ask(self, question: Question, on_piece: OnPiece | None = None, number: int = 0) -> Completion:
        """Returns one of the answers to a question; number: which of its `n`, each of which has another seed."""
        model = self.chosen(question.model, question.content)
        options = dict(question.options)
        if number and options.get("seed") is not None:
            options["seed"] = (options["seed"] + number) % SEED_LIMIT
        if grammar := self.served.form_of(question):
            options["grammar"] = grammar
        if question.echo:
            options["echo"] = True
        if question.logprobs is not None:
            options["logprobs"] = question.logprobs
        prompt = question.prompt or ""
        if question.messages is not None:
            earlier = EARLIER if question.after else ()
            messages = instructed([dict(message) for message in (*earlier, *question.messages)], question.around)
            thinks = thinking_of(question, self.served, self.name, options)
            prompt = self._rendered(messages, question.shown_tools, model, thinks)
            if question.after:
                prompt = continued(question.after, prompt, self.served)
        content = question.content if question.is_free and isinstance(prompt, str) else {}
        options["on_piece"] = on_piece
        is_free = question.free or bool(question.shown_tools)
        return self._answer(AskedQuestion(content, prompt, model, is_free, options, question.may_be_kept))

    def chosen(self, model: str, content: Mapping[str, Any]) -> str:
        """Returns the model that answers a question; that which a part chooses, if the name is one of `choosing`."""
        model = self.spelled(model)
        if not (choose := self._chooser(model)):
            return model
        found = choose(content)
        return self.name + LATEST if found == self.adapters.serving else found  # its sources count for it

    def _rendered(self, messages: Sequence[Any], tools: Sequence[Any] | None, model: str,
                  thinks: bool | None = None) -> str:
        """The prompt of a conversation, with corrections of like questions before the last message."""
        if self.likes and self.served.writes:
            examples = self.likes.examples({"messages": messages, "tools": tools}, model)
            messages = [*messages[:-1], *examples, *messages[-1:]]
        return self.served.render(messages, tools, self.adapter_for(model), *(() if thinks is None else (thinks,)))

    def call_reader(self, question: Question) -> CallReader | None:
        """Returns a reader of calls in the answers to a question; None where there are no tools."""
        names = {tool["function"]["name"] for tool in question.shown_tools or ()}
        return self.served.call_reader(names) if names else None

    def embed(self, texts: Sequence[Text], model: str = "") -> Embedded:
        """Returns vectors of texts; errors as Embeddings.embed's."""
        return self.embeddings.embed(texts, self.spelled(model))

    def classify(self, texts: Sequence[str], model: str = "",
                 on_piece: OnPiece | None = None) -> tuple[Sequence[str], Sequence[Completion]]:
        """Returns the labels that an adapter knows, and its answer to each text, whose `among` is log p of each label
        when its text is there. Raises UnsupportedError for a model that writes text, UsageError where no adapter is
        active; errors of `submit`.
        """
        adapter = self.adapter_for(model)
        labels = self.served.labels_of(adapter)
        return labels, [self.batcher.submit(text, adapter=adapter, on_piece=on_piece) for text in texts]

    # ---- adapters -----------------------------------------------------------------------------------------------

    def add_adapter(self, source: Path, suffix: str = "") -> RegisteredAdapter:
        """Keeps an adapter that no job here made, as a candidate. source: its folder; suffix: a part of its id. Raises
        UsageError for another suffix than of a job; errors of Adapters.add_foreign.
        """
        check_suffix(suffix)
        return self.adapters.add_foreign(source, suffix)

    def evaluate_adapter(self, id: str, request: EvaluationRequest | None = None) -> Job:
        """Begins a job in which the gate evaluates an adapter by this device's held-out questions. Raises NotFoundError
        for no such adapter, UsageError for the active one, where nothing can decide, and errors of jobs.
        """
        return begin_evaluation(self, id, request or EvaluationRequest())

    def file_of(self, adapter: RegisteredAdapter) -> str:
        """Returns the file of rows that an adapter learned. Raises UsageError where it learned none, or another place
        made it, and NotFoundError where its job is gone.
        """
        file = self.jobs.get(adapter.job).training_file if adapter.job else None
        if file is None:
            raise UsageError(f"{adapter.id} was not made of a file here", "name a file of rows with its questions")
        return file

    # ---- status -------------------------------------------------------------------------------------------------

    def health(self) -> dict[str, Any]:
        """Returns {"status": "ok" or "degraded", "reasons": a sentence each}. A degraded service still answers."""
        parts = () if self.stopping.is_set() else self.parts
        reasons = [*health_of(parts), *self.store.reasons(), *self.adapters.reasons(), *self.holdout.reasons()]
        if lost := lost_things(self.store.folder):
            counted = " and ".join(f"{count} of {kind}" for kind, count in lost.items())
            reasons.append(f"no row of the database names {counted}: set aside in {self.store.folder / LOST}; edgetune "
                           "adapters recover takes adapters back, remove what you do not need")
        if (used := self._reading.bytes()) > self.budget:
            reasons.append(f"{size_text(used)} of memory are used, the budget is {size_text(self.budget)}")
        return {"status": "degraded" if reasons else "ok", "reasons": reasons}

    def memory(self) -> int:
        """Returns bytes of the whole daemon: of this process and of all that it started; shared memory counts once."""
        return memory.of_all_processes()

    def _left(self) -> int:
        """Returns bytes of the budget that are free now."""
        return self.budget - self.memory()

    def room(self, has_begun: bool) -> Room:
        """Returns the memory that a job's process may have now. A job that has not begun leaves memory to answers, so
        that the daemon stays within its own, and the job can resume when the daemon is larger.
        """
        used, weights = memory.in_use(self.bundle.gguf.path.resolve())
        busy = self.served.busy_bytes + sum(running.busy_bytes for running in self.running.values())
        least = self._used_at_start + (0 if has_begun else memory.OBJECTS + busy)
        later = max(used - least, 0) if self.batcher.busy else 0
        left = self.budget - max(used, least)
        return Room(self.budget, left, left - weights, later, self.served.writes)

    def device(self) -> dict[str, Any]:
        """Returns the content of /v1/device."""
        here = read_device()
        readings = self.sensors.read()
        job = self.jobs.running
        return {"model": self.name, "short_name": self.short_name, "fingerprint": self.bundle.fingerprint,
                "adapter": self.adapters.serving,
                "device": {**asdict(here), "kind": here.kind, "profile": here.profile.name if here.profile else None},
                "memory": {"budget": self.budget, "used": self._reading.bytes(), "available": here.memory_available},
                "temperature": readings.temperature, "serving": self.batcher.facts(),
                "answered": dict(self.answered),
                "learning": self.learner.state(),
                "drawn": self.traffic.facts(), "proposals": self.proposals.count(),
                "job": job and {"id": job.id, "status": job.status, "progress": job.progress},
                "governor": self.jobs.governor,
                **{name: value for running in self.running.values() for name, value in running.device().items()}}
