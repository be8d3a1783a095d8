"""The answers that a step learns from: drawn by the adapter in the arena, rewarded, and compared with one another.

A generation is the prompts of `steps_per_generation` steps. The adapter answers them at once before the first of these
steps, and they are learned from `num_iterations` times. The answers are a pure function of that adapter, the seed and
the number of the generation. Until its end they are part of the run's state, because the adapter has changed since.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..data import rows
from ..data.around import Instruction
from ..data.lengths import Lengths
from ..data.packing import Batch, Example, order
from ..data.rewards import EXPECTED_REWARD, reward_of
from ..data.trees import Tree
from ..errors import DataError, EdgetuneError, UsageError
from ..llamacpp.sampling import SEED_LIMIT, Sampling
from ..models.base import Passes
from ..models.decoder import Decoder
from ..objectives.drawn import Drawn, Rewarded
from ..serving.rollouts.draws import candidates_of
from ..serving.rollouts.engine import Rollout, Rollouts, Wanted
from ..serving.rollouts.plan import AnswerPlan
from .passes import LossMeasurement, scores
from .rewards import PASS, EngineJudge, Expectation, JudgedRewards, Reward, RewardedAnswer, RewardedGroups, Rewards

if TYPE_CHECKING:
    from ..llamacpp.tokenizer import Tokenizer

PARALLEL = 64  # answers in progress at once, where memory has room
REDRAWS = 3  # times that prompts whose answers all have the same worth are replaced
SOME = 16  # prompts that `expect` answers
EXCHANGED = 1 << 14  # floats
GREEDY = Sampling()
LEARNING, REDRAWING, EXPECTING = range(3)  # purposes of a draw, each with its own seed
SECOND = 1 << 16  # ends the words of a seed of second answers
Known = dict[int, dict[str, np.ndarray]]  # {field of an Example: its value} by the identity of an example


@dataclass(frozen=True)
class _Place:
    """The place of a step. slice: of its generation; iteration: earlier passes over that slice; per: slices of a
    generation; first: the number of its first batch.
    """

    generation: int
    iteration: int
    slice: int
    per: int
    first: int


@dataclass
class _Slice:
    """The part of a generation that one step learns from. examples: of all its answers, also of those without signal.
    """

    examples: list[Example]
    metrics: dict[str, float]


class Roller:
    """Answers prompts for a trainer; one call at a time, between two micro-batches.

    rewards: None for an objective that learns from none.
    batch: number -> the prompts of a step, counted from 1; per_epoch: steps in which every prompt comes once.
    """

    def __init__(self, decoder: Passes, plan: AnswerPlan, objective: Drawn, rewards: Rewards | None,
                 tokenizer: Tokenizer, seed: int, max_length: int, system: Instruction = None) -> None:
        if not isinstance(decoder, Decoder):
            raise UsageError(f"{objective.name} needs a model that answers", "choose another method")
        self.decoder = decoder
        self.plan = plan
        self.objective = objective
        if isinstance(rewards, JudgedRewards) and rewards.needs_model:
            rewards.use_model(EngineJudge(decoder, decoder.run, tokenizer))
        self.rewards = rewards
        self.tokenizer = tokenizer
        self.seed = seed
        self.max_length = max_length
        self.system = system
        self._generation = -1
        self._slices: list[_Slice] = []
        self._referred: dict[int, NDArray[np.float32]] = {}  # log p by the reference, by the identity of an example

    # ---- the answers of a step ----------------------------------------------------------------------------------

    def of_step(self, step: int, batch: Callable[[int], list[Example]], others: Sequence[Example],
                per_epoch: int) -> tuple[list[Example], dict[str, float]]:
        """Returns (answers to learn from, their metrics) of step 1, 2, ...; batch: its prompts; others: all prompts."""
        place = self._place(step, per_epoch)
        if place is None:
            return self.completions(batch(step)), {}
        if place.generation != self._generation:
            batches = [batch(place.first + i) for i in range(place.per)]
            self._slices = self._generate(place, batches, others, per_epoch)
            self._generation = place.generation
        chosen = self._slices[place.slice]
        return chosen.examples, {} if place.iteration else chosen.metrics

    def _place(self, step: int, per_epoch: int) -> _Place | None:
        """The place of a step; None for a step that imitates."""
        imitated = round(self.objective.imitated_epochs * per_epoch)
        if step <= imitated:
            return None
        per = self.objective.steps_per_generation or per_epoch
        generation, within = divmod(step - imitated - 1, per * self.objective.num_iterations)
        return _Place(generation, *divmod(within, per), per, imitated + generation * per + 1)

    def completions(self, prompts: Sequence[Example]) -> list[Example]:
        """The rows' answers, to be imitated. Raises DataError for a row without one."""
        found = []
        for prompt in prompts:
            row = json.loads(prompt.item)
            if not isinstance(row.get("prompt"), str) or not isinstance(row.get("completion"), str):
                raise DataError("a row has no completion to imitate before answers are rewarded",
                                "give rows of prompt and completion, or set warmup-epochs to 0")
            asked = {"prompt": row["prompt"], "completion": row["completion"]}
            made = rows.examples_of(asked, "prompt", self.tokenizer, self.system, self.max_length)
            found += [replace(one, reward=1.0) for one in made if one.tokens.size <= self.max_length]
        return found

    def learned(self, step: int, per_epoch: int, known: Mapping[int, Mapping[str, Any]]) -> None:
        """Stores log p and values of answers after their first step, if later steps learn from them again.

        known: {field: values} by the identity of an example.
        """
        place = self._place(step, per_epoch)
        if self.objective.compares_updates and self.objective.num_iterations > 1 and place and not place.iteration:
            chosen = self._slices[place.slice]
            chosen.examples = [replace(one, **known[id(one)]) if id(one) in known else one for one in chosen.examples]

    def _generate(self, place: _Place, batches: Sequence[list[Example]], others: Sequence[Example],
                  per_epoch: int) -> list[_Slice]:
        generation = place.generation
        prompts = [prompt for batch in batches for prompt in batch]
        answered = self.answer(prompts, self.objective.num_generations, LEARNING, generation)
        slices = []
        begin = 0
        for number, batch in enumerate(batches):
            of_step = answered.chosen(range(begin, begin + len(batch)))
            begin += len(batch)
            if self.objective.redraws:
                of_step = self._redrawn(of_step, others, generation, number)
            slices.append(_Slice(self._examples(of_step, (place.first + number - 1) / per_epoch), of_step.metrics()))
        return slices

    def _redrawn(self, answered: RewardedGroups, others: Sequence[Example], generation: int,
                 number: int) -> RewardedGroups:
        """Replaces prompts whose answers all have the same worth by others, as far as there are any."""
        taken = {id(prompt) for prompt in answered.prompts}
        wanted = len(answered.prompts)
        numbers = order(len(others), generation, self.seed + 1 + number)
        waiting = [others[i] for i in numbers if id(others[i]) not in taken]
        for again in range(REDRAWS):
            flat = answered.flat
            missing = wanted - int((~flat).sum())
            if not missing or not waiting:
                break
            more = self.answer(waiting[:missing], self.objective.num_generations, REDRAWING, generation, number, again)
            waiting = waiting[missing:]
            answered = answered.with_others(more)
        telling = [int(i) for i in np.argsort(answered.flat, kind="stable")]  # those that differ first
        return answered.chosen(telling[:wanted])

    def _examples(self, answered: RewardedGroups, epochs: float) -> list[Example]:
        worth = self.objective.worth(answered.penalized, answered.repeated, epochs)
        held = self.objective.held(worth.shape, epochs)
        return [self._example(prompt, rollout, float(worth[p, i]), float(held[p, i]), p + 1)
                for p, (asked, rollouts) in enumerate(zip(answered.asked, answered.answers, strict=True))
                for i, (prompt, rollout) in enumerate(zip(asked, rollouts, strict=True))]

    def _example(self, prompt: Example, rollout: Rollout, worth: float, held: float, group: int) -> Example:
        objective = self.objective
        weight = 0.0 if objective.mask_truncated_completions and not rollout.ended else 1.0
        weights = np.concatenate([np.zeros(prompt.tokens.size), np.full(rollout.tokens.size, weight)])
        return Example(np.concatenate([prompt.tokens, rollout.tokens]), weights.astype(np.float32),
                       group if objective.keeps_groups else 0, worth, held=held)

    # ---- answers ------------------------------------------------------------------------------------------------

    def answer(self, prompts: Sequence[Example], samples: int, *numbers: int) -> RewardedGroups:
        """Draws and rewards `samples` answers to each prompt in each turn. numbers: seed the draw; without any, the
        answers are greedy. Raises EdgetuneError for a reward that is NaN or infinite.
        """
        budgets = [self.objective.answer_tokens(prompt.longest, self.max_length) for prompt in prompts]
        first = self._answer(prompts, budgets, samples, self._sampling(*numbers))
        if self.objective.again is None:
            return first
        again = [self._again(prompt, rollout, budget) for prompt, rollouts, budget in
                 zip(prompts, first.answers, budgets, strict=True) for rollout in rollouts]
        numbers = (*numbers, SECOND) if numbers else ()
        second = self._answer(again, np.repeat(budgets, samples).tolist(), 1, self._sampling(*numbers))
        return first.with_second(second)

    def _answer(self, prompts: Sequence[Example], budgets: Sequence[int], samples: int,
                sampling: Sampling) -> RewardedGroups:
        wanted = Wanted([prompt.tokens for prompt in prompts], samples, budgets, sampling, self.tokenizer.is_end)
        plan = replace(self.plan, candidates=candidates_of(sampling, self.decoder.shape.n_vocab))
        found: list[list[Any]] = [[None] * samples for _ in prompts]
        for rollout in Rollouts(self.decoder, plan, wanted):
            found[rollout.prompt][rollout.sample] = rollout
        asked = [[prompt] * samples for prompt in prompts]
        if self.rewards is None:
            none = np.zeros((len(prompts), samples), np.float32)
            return RewardedGroups(prompts, asked, found, [[] for _ in prompts], none)
        flat = [RewardedAnswer(self._text(rollout), prompt.item, rollout.ended, rollout.tokens.tolist())
                for prompt, rollouts in zip(prompts, found, strict=True) for rollout in rollouts]
        rewards = _checked(self.rewards(flat), len(flat))
        values = np.array([reward.value for reward in rewards], np.float32).reshape(len(prompts), samples)
        tokens = np.array([[rollout.tokens.size for rollout in rollouts] for rollouts in found])
        assert isinstance(self.objective, Rewarded)
        return RewardedGroups(prompts, asked, found, [rewards[i:i + samples] for i in range(0, len(rewards), samples)],
                              self.objective.penalized(values, tokens))

    def _again(self, prompt: Example, first: Rollout, budget: int) -> Example:
        """The prompt of the second answer. The first answer may take more tokens here than were drawn, for instance if
        it was cut within a character; then its end is left out.
        """
        assert self.objective.again
        kept = first.tokens.size - int(first.ended)
        while True:
            text = self.tokenizer.decode(first.tokens[:kept].tolist())
            tokens = self.objective.again.second_prompt(prompt.item, text, self.tokenizer, self.system)
            over = tokens.size - (prompt.longest + budget)
            if over <= 0 or not kept:
                return Example(tokens, np.zeros(tokens.size, np.float32), item=prompt.item)
            kept = max(kept - over, 0)

    def _text(self, rollout: Rollout) -> str:
        tokens = rollout.tokens.tolist()
        return self.tokenizer.decode(tokens[:-1] if rollout.ended else tokens)

    def _sampling(self, *numbers: int) -> Sampling:
        if not numbers:
            return GREEDY
        words = np.random.SeedSequence([self.seed, *numbers]).generate_state(1)
        return sampling_of(self.objective, int(words[0]) % SEED_LIMIT)

    def measure(self, prompts: Sequence[Example]) -> LossMeasurement:
        """Measures the rewards of greedy answers, of the last turn; the loss is minus the mean reward."""
        answered = self.answer(prompts, 1)
        rewards = [float(reward) for reward in answered.penalized[:, -1]]
        tokens = sum(rollout.tokens.size for rollouts in answered.answers for rollout in rollouts)
        return LossMeasurement(-float(np.mean(rewards)), tokens, answered.metrics(),
                               tuple(-reward for reward in rewards))

    def greedy(self, prompts: Sequence[Example]) -> list[Example]:
        """The likeliest answer to each prompt, to be learned from or measured."""
        return self._examples(self.answer(prompts, 1), 0.0)

    def expect(self, prompts: Sequence[Example]) -> Expectation:
        """The expectation from SOME prompts, spread over all. Raises UsageError if their answers teach nothing."""
        objective = self.objective
        some = [prompts[i] for i in order(len(prompts), 0, self.seed)[:SOME]]
        answered = self.answer(some, objective.num_generations, EXPECTING)
        last = answered.by_turn[:, -1]
        passed = last >= PASS
        found = Expectation(len(some), objective.num_generations, float(last.mean()),
                            float(passed.mean()), float(passed.any(axis=1).mean()), float(answered.flat.mean()))
        if not any(objective.teaches(example) for example in self._examples(answered, math.inf)):
            raise UsageError(*_nothing_to_learn(found, answered))
        return found

    # ---- the reference ------------------------------------------------------------------------------------------

    def refer(self, micro_batches: Sequence[Batch | Tree]) -> None:
        """Computes the reference model's log p of answers, for the step that learns from them."""
        with self._as_it_started():
            self._referred = scores(self.decoder, micro_batches)

    @contextmanager
    def _as_it_started(self) -> Iterator[None]:
        """Holds the adapter that training started from in the arena within the context."""
        lora, start = (self.decoder.arena.flat(name) for name in ("lora", "start"))
        exchange(lora, start)
        try:
            yield
        finally:
            exchange(lora, start)

    def add_to(self, batch: Batch) -> Batch:
        return replace(batch, reference=np.concatenate([self._referred[id(one)] for one in batch.examples]))

    # ---- in the midst of a generation ---------------------------------------------------------------------------

    def state(self, step: int, per_epoch: int) -> dict[str, Any] | None:
        """The state that is no function of the adapter after `step` steps, as JSON; None if there is none."""
        place = self._place(step + 1, per_epoch)
        if place is None or place.generation != self._generation:
            return None
        return {"generation": self._generation,
                "slices": [{"examples": [_written(one) for one in each.examples], "metrics": each.metrics}
                           for each in self._slices]}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        self._generation = -1
        self._slices = []
        if state:
            self._generation = int(state["generation"])
            self._slices = [_Slice([_read(one) for one in each["examples"]], dict(each["metrics"]))
                            for each in state["slices"]]


def answer_plan(objective: Drawn, prompts: int, lengths: Lengths, max_length: int, n_vocab: int) -> AnswerPlan:
    """The plan with the most memory that answers to `prompts` prompts at once can use."""
    g = objective.num_generations
    prompt = lengths.prompt or max_length - 1
    live = min(PARALLEL, prompts * g, lengths.longest or max_length)
    return AnswerPlan(live, g if objective.turns == 1 else 1, prompt, objective.max_completion_length,
                      candidates_of(sampling_of(objective), n_vocab))


def sampling_of(objective: Drawn, seed: int = 0) -> Sampling:
    return Sampling(objective.temperature, objective.top_k, objective.top_p, objective.min_p, seed)


def _nothing_to_learn(found: Expectation, answered: RewardedGroups) -> tuple[str, str]:
    """(what is wrong, the way out)"""
    tried = f"{found.samples} answers each to {found.prompts} prompts"
    if found.pass_at_1 == 1:
        return f"{tried} are all right already, and what is right teaches nothing new", "ask what is harder"
    if answered.flat.all():
        what = f"{tried} teach nothing: all answers to a prompt have the same reward, {found.reward:.3g} in the mean"
    else:
        what = f"{tried} teach nothing: none is worth learning, with a mean reward of {found.reward:.3g}"
    return what, ("let it learn some right answers first (--method sft, then --start ADAPTER), use a grader that gives "
                  "partial rewards, or raise --num-generations")


def exchange(a: NDArray[np.float32], b: NDArray[np.float32]) -> None:
    """Exchanges the values of two arrays, a part at a time, because memory has no room for a copy."""
    for begin in range(0, a.size, EXCHANGED):
        part = slice(begin, begin + EXCHANGED)
        kept = a[part].copy()
        a[part] = b[part]
        b[part] = kept


def _checked(rewards: Sequence[Reward], count: int) -> list[Reward]:
    if len(rewards) != count:
        raise EdgetuneError(f"{count} answers were given {len(rewards)} rewards", "return one for each")
    for reward in rewards:
        if reward_of(reward.value) is None:
            raise EdgetuneError(f"the reward of an answer is {reward.value}", EXPECTED_REWARD)
    return list(rewards)


def _written(example: Example) -> dict[str, Any]:
    return {"tokens": example.tokens.tolist(), "weights": example.weights.tolist(), "group": example.group,
            "reward": example.reward, "held": example.held, "logp": example.logp.tolist(),
            "values": example.values.tolist()}


def _read(written: Mapping[str, Any]) -> Example:
    return Example(np.array(written["tokens"], np.int32), np.array(written["weights"], np.float32),
                   int(written["group"]), float(written["reward"]), held=float(written.get("held", 0.0)),
                   logp=np.array(written["logp"], np.float32), values=np.array(written["values"], np.float32))


def keep(known: Known, batch: Batch, logp: np.ndarray) -> None:
    """Stores log p and values of each example of a batch, by its identity."""
    for example, part in batch.parts():
        known[id(example)] = {"logp": logp[part].copy()}
        if batch.values is not None:
            known[id(example)]["values"] = batch.values[part].astype(np.float32)
