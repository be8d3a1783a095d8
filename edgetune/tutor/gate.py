"""Whether the adapter of a round is published: it and what is published answer the same questions through llama.cpp.

Published is what is surely better on questions that neither learned, and does no harm elsewhere:

- better: an exact one-sided sign test over the questions on which the two differ. With fewer than FEW questions no
  fewer answers right, and a randomization test over how near their answers are to right ones in the mean, told again
  with other values (retelling.py); rather better than worse is enough where all that was learned is known to be right,
  as training on such rows keeps what it made without a test. Where they cannot be told again, a sign test over held-out
  questions to which what is published has answers behind labelled rows that agree (agreed.py), or where there are none
  a randomization test over how likely the right answers are;
- no harm: unrelated text surprises it hardly more than the base, and it expects nearly what the base expects there, or
  at least it is no further from the base in this than what is published already;
- healthy: answers end, are not much longer or shorter, do not repeat themselves more, are no less often JSON;
- sound: its numbers are finite, it changes no weight by much, and llama.cpp computes what the trainer computed.

Tests that are repeated find something by chance in the end. So the k-th test since at least half of the questions were
new may be wrong with probability alpha / k (k + 1) only, which sums to alpha.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..adapters.lora import Lora
from ..adapters.mixed import size_of
from ..data.packing import is_supervised
from ..evaluation.acceptance import Paired, flip_test
from ..evaluation.canary import Drift, drift
from ..evaluation.graders.base import Grade
from ..evaluation.judge import is_json, same
from ..formats.gguf import Gguf
from ..formats.shape import read_shape
from ..runs.answers import CONTEXT, repack_within
from ..serving.llama import LlamaModel
from .agreed import nearness
from .answering import Said, answer_example, mean_logp
from .evaluating import graded
from .options import TutorOptions
from .questions import FEW, Question
from .setting import Setting

ENDED = 0.1  # share by which fewer answers may end
LENGTHS = (0.5, 2.0)  # times the earlier mean length
REPEATED = 0.2  # by which the share of repeated words may rise, and that of different pairs of words fall
GAP = 0.25  # nats a token between our engine and llama.cpp
CHECKED = 4  # answers, for the gap
PUBLISHED = "published"
Asked = Sequence[tuple[Said, float | None]]  # the answer to each question, nats a token of the right one
CANDIDATE = "candidate"


@dataclass(frozen=True)
class Measured:
    """One question under one adapter. value: 1 for a right answer, 0 for a wrong one; where nobody knows the right one,
    its reward, or what it has in common with others (agreed); of one that tells another again (of: its key) what it has
    in common with the right one. logp: nats a token of the right answer, None without one, or where it tells again.
    """

    key: str
    text: str
    value: float
    logp: float | None
    ended: bool
    agreed: bool = False
    of: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Harm:
    """rise: of the canary's perplexity over the base's; kl: from the base, nats a token; both also of what is published
    already. change: the largest change of a weight, relative to its norm. gap: between our engine and llama.cpp, nats a
    token.
    """

    rise: float
    kl: float
    change: float
    gap: float
    rise_before: float = 0.0
    kl_before: float = 0.0


@dataclass(frozen=True)
class Decision:
    """passed: published. worse: surely worse than what is published, so the round is undone. test: sign, retold,
    agreement or likelihood; wins, losses: questions better and worse under the new adapter; p: of that by chance;
    alpha: what p must not exceed.
    """

    passed: bool
    worse: bool
    reason: str
    test: str
    questions: int
    wins: int
    losses: int
    p: float
    alpha: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(setting: Setting, questions: Sequence[Question], published: Path | None, candidate: Path,
            keep: Sequence[str]) -> tuple[list[Measured], list[Measured], Harm]:
    """(what is published, the candidate, its harm); published: None where that is the base. keep: texts on which the
    candidate is to stay near the base. Raises EdgetuneError where memory has no room for llama.cpp.
    """
    gguf = setting.bundle.gguf
    prompts = [question.prompt_tokens(setting.tokenizer, setting.system) for question in questions]
    context = _context(prompts, setting)
    with LlamaModel(gguf, context=context, threads=setting.config.threads or None,
                    repack=repack_within(gguf, context, setting.config.memory_here(), "raise --memory")) as served:
        served.tokenizer.markup = setting.config.markup
        served.cache.before_decode = setting.look
        if published:
            served.load_adapter(published, PUBLISHED)
        served.load_adapter(candidate, CANDIDATE)
        before = _asked(setting, served, PUBLISHED if published else None, questions, prompts)
        after = _asked(setting, served, CANDIDATE, questions, prompts)
        drifted_before = drift(served, PUBLISHED, keep) if published else Drift(0.0, 0.0, 0)
        drifted = drift(served, CANDIDATE, keep)
        served.use(CANDIDATE)
        told = [_logp(setting, served, prompt, one.text) for prompt, (one, _) in
                zip(prompts[:CHECKED], after, strict=False)]
    old, new = (_measured(setting, questions, asked) for asked in (before, after))
    pairs = setting.pairs(candidate)
    ours = mean_logp(setting, prompts[:CHECKED], [one.text for one in new[:CHECKED]], pairs)
    gap = max((abs(a - b) for a, b in zip(told, ours, strict=True)), default=0.0)
    harm = Harm(drifted.rise, drifted.kl, largest_change(pairs, gguf), gap, drifted_before.rise,
                drifted_before.kl)
    return old, new, harm


def _asked(setting: Setting, served: LlamaModel, adapter: str | None, questions: Sequence[Question],
           prompts: Sequence[Sequence[int]]) -> Asked:
    served.use(adapter)
    most = setting.options.max_tokens
    texts = dict(served.complete(prompts, most))
    lengths = [len(served.tokenizer.encode(texts[i], continues=True)) for i in range(len(prompts))]
    setting.drawn.tokens += sum(lengths)
    said = [Said(texts[i].strip(), lengths[i], lengths[i] < most) for i in range(len(prompts))]
    served.reset()
    logps = [_logp(setting, served, prompt, question.reference) if question.reference and not question.of else None
             for question, prompt in zip(questions, prompts, strict=True)]
    return list(zip(said, logps, strict=True))


def _measured(setting: Setting, questions: Sequence[Question], asked: Asked) -> list[Measured]:
    """With what answers earn, when llama.cpp's memory is free again: a grader may ask a model."""
    grades = graded(setting, questions, [[one] for one, _ in asked])
    return [Measured(question.key, one.text, _value(question, one.text, earned), logp, one.ended, bool(question.agreed),
                     question.of) for question, (one, logp), earned in zip(questions, asked, grades, strict=True)]


def _value(question: Question, text: str, earned: Sequence[Grade]) -> float:
    if question.of:
        return nearness(question, text)
    if question.reference:
        return float(same(question.reference, text))
    return nearness(question, text) if question.agreed else earned[0].reward


def _logp(setting: Setting, served: LlamaModel, prompt: Sequence[int], text: str) -> float:
    """Nats a token of an answer, with the adapter in use."""
    example = answer_example(setting, prompt, text)
    wanted = is_supervised(example.weights)
    return float(np.mean(served.logprobs(example.tokens.tolist(), wanted)[wanted], dtype=np.float64))


def _context(prompts: Sequence[Sequence[int]], setting: Setting) -> int:
    """Tokens in which some questions are answered together."""
    return min(read_shape(setting.bundle.gguf).context,
               max(CONTEXT, max(map(len, prompts)) + setting.options.max_tokens + 1))


def largest_change(pairs: Lora, gguf: Gguf) -> float:
    """The largest ||scale * B A|| / ||W|| of all projections; infinite for values that are not finite."""
    if not all(np.isfinite(pair.a).all() and np.isfinite(pair.b).all() for pair in pairs.values()):
        return math.inf
    return max((size / float(np.linalg.norm(gguf.tensors[f"{name}.weight"].f32()))
                for name, size in size_of(pairs).items()), default=0.0)


# ---- the decision, of what was measured ------------------------------------------------------------------------------


def decide(old: Sequence[Measured], new: Sequence[Measured], harm: Harm, alpha: float, options: TutorOptions,
           is_first: bool, is_verified: bool = False) -> Decision:
    """alpha: of this test. is_first: nothing is published yet, so that answers may change as they like. is_verified:
    all that was learned is known to be right.
    """
    pairs = list(zip(old, new, strict=True))
    agreed = [pair for pair in pairs if pair[0].agreed]
    known = [pair for pair in pairs if not pair[0].agreed and not pair[0].of]
    found = _paired(known)
    wins, losses = found.wins, found.losses
    p = found.p_better
    p_worse = found.p_worse
    test = "sign"
    asked = alpha
    told = _told([before for before, _ in known], [after for _, after in known])
    if len(known) < FEW and all(one.logp is not None for pair in known for one in pair):
        told += f", by {len(known)} questions only"
        if retold := _changes(pairs):
            test = "retold"
            wins, losses = sum(change > 0 for change in retold), sum(change < 0 for change in retold)
            p_worse = min(p_worse, flip_test([-change for change in retold]))
            p = flip_test(retold)
            if is_verified:
                asked = max(alpha, options.verified_alpha)
            told += f"; told again with other values, {wins} are answered better in the mean, {losses} worse"
        elif agreed:
            test = "agreement"
            found = _paired(agreed)
            wins, losses = found.wins, found.losses
            p_worse = min(p_worse, found.p_worse)
            p = found.p_better
            told += f"; {wins} other answers are nearer to those behind labelled rows, {losses} further from them"
        else:
            test = "likelihood"
            likelier = [after.logp - before.logp for before, after in known
                        if after.logp is not None and before.logp is not None]
            p = flip_test(likelier)
            told += f"; right answers are {'' if sum(likelier) > 0 else 'not '}likelier"
        p = p if sum(after.value - before.value for before, after in known) >= 0 else 1.0
    objection = harmed(harm, options) or ("" if is_first else unhealthy(old, new))
    sure = "not chance" if p <= alpha else "rather better than worse" if p <= asked else "this may be chance"
    reason = objection or f"{told}: {sure} (p {p:.2g}, asked {asked:.2g})"
    passed = not objection and p <= asked
    return Decision(passed, p_worse <= alpha, reason, test, len(old), wins, losses, p, asked)


def _changes(pairs: Sequence[tuple[Measured, Measured]]) -> list[float]:
    """Of each question that was told again the change of the mean value. Those that tell the same again stand or fall
    together, so each such question is one observation.
    """
    found: dict[str, list[float]] = {}
    for before, after in pairs:
        if before.of:
            found.setdefault(before.of, []).append(after.value - before.value)
    return [float(np.mean(changes)) for changes in found.values()]


def _paired(pairs: Sequence[tuple[Measured, Measured]]) -> Paired:
    return Paired.of([before.value for before, _ in pairs], [after.value for _, after in pairs])


def _told(old: Sequence[Measured], new: Sequence[Measured]) -> str:
    """What questions say whose right answer, or reward, is known."""
    if all(one.value in (0, 1) for one in (*old, *new)):
        before, after = (sum(one.value for one in side) for side in (old, new))
        return f"{after:g} of {len(new)} held-out questions right, {before:g} before"
    return f"held-out questions earn {mean_value(new):.3f}, {mean_value(old):.3f} before"


def mean_value(measured: Sequence[Measured]) -> float:
    """The share of right answers, or the mean reward, of the questions that were asked and that it is known of."""
    values = [one.value for one in measured if not one.agreed and not one.of]
    return sum(values) / len(values)


def alpha_of(alpha: float, judged: Sequence[Sequence[str]], now: Sequence[str]) -> float:
    """What the test of these questions may spend. judged: the questions of each earlier test, the newest last.

    k counts the tests since at least half of the questions were new.
    """
    k = 1
    latest = set(now)
    for keys in reversed(judged):
        if 2 * len(latest - set(keys)) >= len(latest):
            break
        k += 1
        latest = set(keys)
    return alpha / (k * (k + 1))


def harmed(harm: Harm, limits: TutorOptions) -> str:
    """Why what is elsewhere suffers; "" where it does not."""
    if not math.isfinite(harm.change):
        return "its numbers are not finite"
    if harm.change > limits.max_change:
        return f"it changes a weight by {harm.change:.0%} of its norm, {limits.max_change:.0%} are allowed"
    if harm.gap > GAP:
        return f"llama.cpp and the trainer differ by {harm.gap:.2g} nats a token, {GAP:g} are allowed"
    most = max(limits.canary_rise, harm.rise_before)
    if harm.rise > most:
        return f"unrelated text surprises it {harm.rise:.1%} more than the base, {most:.1%} are allowed"
    most = max(limits.max_kl, harm.kl_before)
    if harm.kl > most:
        return f"what it expects of unrelated text is {harm.kl:.3f} nats a token from the base, {most:.3g} are allowed"
    return ""


def unhealthy(old: Sequence[Measured], new: Sequence[Measured]) -> str:
    """What became worse about the answers as texts; "" where nothing did."""
    ended = (np.mean([one.ended for one in old]), np.mean([one.ended for one in new]))
    if ended[1] < ended[0] - ENDED:
        return f"{ended[1]:.0%} of its answers end, {ended[0]:.0%} before"
    lengths = [max(1.0, float(np.mean([len(one.text) for one in side]))) for side in (old, new)]
    if not LENGTHS[0] <= lengths[1] / lengths[0] <= LENGTHS[1]:
        return f"its answers have {lengths[1]:.0f} letters in the mean, {lengths[0]:.0f} before"
    json_lost = [is_json(a.text) and not is_json(b.text) for a, b in zip(old, new, strict=True)]
    json_won = [is_json(b.text) and not is_json(a.text) for a, b in zip(old, new, strict=True)]
    if Paired(sum(json_won), sum(json_lost)).p_worse < 0.05:
        return f"{sum(json_lost)} of its answers are no longer JSON"
    repeated = [repetition([one.text for one in side]) for side in (old, new)]
    if repeated[1] > repeated[0] + REPEATED:
        return f"{repeated[1]:.0%} of its four-word phrases repeat within an answer, {repeated[0]:.0%} before"
    distinct = [variety([one.text for one in side]) for side in (old, new)]
    if distinct[1] < (1 - REPEATED) * distinct[0]:
        return f"{distinct[1]:.0%} of its pairs of words are different ones, {distinct[0]:.0%} before"
    return ""


def repetition(texts: Sequence[str]) -> float:
    """The share of phrases of four words that occur earlier in the same answer."""
    total = 0
    again = 0
    for text in texts:
        words = text.split()
        phrases = Counter(tuple(words[i:i + 4]) for i in range(len(words) - 3))
        total += sum(phrases.values())
        again += sum(phrases.values()) - len(phrases)
    return again / total if total else 0.0


def variety(texts: Sequence[str]) -> float:
    """The share of pairs of words that are different ones, over all answers (distinct-2, Li et al. 2016)."""
    pairs = [pair for text in texts for pair in zip(text.split(), text.split()[1:], strict=False)]
    return len(set(pairs)) / len(pairs) if pairs else 1.0


def texts_of(lines: Sequence[Mapping[str, Any] | str]) -> list[str]:
    """What rows of a file of texts to keep say: text, or what they ask."""
    return [line if isinstance(line, str) else str(line.get("text") or line.get("prompt") or json.dumps(line))
            for line in lines]
