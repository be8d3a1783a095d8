"""OpenAI's text_similarity, by rapidfuzz, which OpenAI names for fuzzy_match, and by well-kept libraries for the rest.

- fuzzy_match: rapidfuzz's WRatio after its default_process, as in OpenAI's own example. It reads the first
  FUZZY_CHARACTERS of each text: 24,000 and 12,000 characters take 150 s, which nobody can interrupt;
- bleu: sacrebleu's sentence BLEU, smoothed and of effective order. That of nltk is 0 for fewer than four words;
- gleu, meteor: those of nltk, on words divided by sacrebleu's 13a. meteor lacks WordNet's synonyms, a download;
- rouge: the F-measure of rouge-score, without its stemmer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

from .base import OneByOne, needing, register, template
from .sample import Sample

FUZZY_CHARACTERS = 3000  # 0.6 s
Similarity = Callable[[str, str], float]


@register
@dataclass(frozen=True, kw_only=True)
class TextSimilarity(OneByOne):
    """A similarity from 0 to 1. pass_threshold: the lowest reward that passes; it does not change the reward."""

    type: ClassVar[str] = "text_similarity"
    input: str = template()
    reference: str = template()
    evaluation_metric: Literal["fuzzy_match", "bleu", "gleu", "meteor", "rouge_1", "rouge_2", "rouge_3", "rouge_4",
                               "rouge_5", "rouge_l", "cosine"]
    pass_threshold: float | None = None

    def check(self) -> None:
        super().check()
        if self.evaluation_metric == "cosine":
            raise self.wrong("evaluation_metric", "is cosine, which needs a second model for embeddings",
                             "choose fuzzy_match, meteor or rouge_l")
        similarity(self.evaluation_metric)

    def score(self, sample: Sample, item: Mapping[str, Any]) -> float:
        text = self.rendered(self.input, sample, item)
        return similarity(self.evaluation_metric)(text, self.rendered(self.reference, sample, item))


@cache
def similarity(metric: str) -> Similarity:
    """(text, reference) -> from 0 to 1. Raises EdgetuneError where its library is not installed."""
    with needing("text_similarity"):
        if metric == "fuzzy_match":
            from rapidfuzz import fuzz, utils
            return lambda text, reference: fuzz.WRatio(text[:FUZZY_CHARACTERS], reference[:FUZZY_CHARACTERS],
                                                       processor=utils.default_process) / 100
        if metric == "bleu":
            from sacrebleu.metrics import BLEU
            bleu = BLEU(effective_order=True)
            return lambda text, reference: min(1.0, bleu.sentence_score(text, [reference]).score / 100)
        if metric == "gleu":
            from nltk.translate.gleu_score import sentence_gleu
            words = _words()
            return lambda text, reference: float(sentence_gleu([words(reference)], words(text)))
        return _meteor() if metric == "meteor" else _rouge(metric)


def _words() -> Callable[[str], list[str]]:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
    tokenize = Tokenizer13a()
    return lambda text: str(tokenize(text)).split()


class _NoSynonyms:
    """WordNet without entries."""

    def synsets(self, _word: str) -> list[Any]:
        return []


def _meteor() -> Similarity:
    from nltk.translate.meteor_score import single_meteor_score
    words = _words()
    wordnet = _NoSynonyms()
    return lambda text, reference: float(single_meteor_score(words(reference), words(text), wordnet=wordnet))


def _rouge(metric: str) -> Similarity:
    from rouge_score.rouge_scorer import RougeScorer
    if metric == "rouge_l":
        return _rouge_l()
    name = metric.replace("_", "")
    scorer = RougeScorer([name])
    return lambda text, reference: float(scorer.score(reference, text)[name].fmeasure)


def _rouge_l() -> Similarity:
    """ROUGE-L by rapidfuzz's longest common subsequence: rouge-score's own fills a table of all pairs of words."""
    from rapidfuzz.distance import LCSseq
    from rouge_score.tokenize import tokenize

    def similar(text: str, reference: str) -> float:
        words = tokenize(text, None)
        wanted = tokenize(reference, None)
        common = LCSseq.similarity(words, wanted)
        if not common:
            return 0.0
        precision = common / len(words)
        recall = common / len(wanted)
        return 2 * precision * recall / (precision + recall)

    return similar
