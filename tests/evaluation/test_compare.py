"""edgetune.evaluation.compare: two random adapters, whose answers are what they say when asked one by one."""


import pytest
from random_adapters import SEVEN, random_pairs, write_adapter

from edgetune.data.dataset import load_rows
from edgetune.evaluation.acceptance import Paired
from edgetune.evaluation.compare import Comparison, compare, in_words
from edgetune.evaluation.served import grade, served_loss
from edgetune.serving.llama import LlamaModel

QUESTIONS = ["turn the light on", "set the light to 10", "turn off the light", "system off", "tool to set", "light 10"]


@pytest.fixture(scope="module")
def served(tiny_llama, tmp_path_factory):
    with LlamaModel(tiny_llama, threads=1) as served:
        for seed, name in enumerate("AB"):
            pairs = random_pairs(tiny_llama, dict.fromkeys(SEVEN, 4), seed)
            served.load_adapter(write_adapter(tmp_path_factory.mktemp(name) / "adapter.gguf", pairs, 8.0), name)
        yield served


def says(served, name, question):
    served.use(name)
    return "".join(served.chat([{"role": "user", "content": question}], max_tokens=6))


def test_of_known_answers(served):
    """A is right on rows 0, 1 and 2, B on 3, neither on 4; on 5 each may say what it likes."""
    authors = ["A", "A", "A", "B", "", ""]
    expected = [says(served, author, question) if author else "wrong"
                for author, question in zip(authors, QUESTIONS, strict=True)]
    assert [says(served, "B" if author == "A" else "A", question) == answer
            for author, question, answer in zip(authors, QUESTIONS, expected, strict=True)] == [False] * 6
    rows = [{"prompt": question, "completion": answer} for question, answer in zip(QUESTIONS, expected, strict=True)]
    data = load_rows(rows, served.tokenizer, max_length=200)
    graded = []
    lower = []
    for name in "AB":
        served.use(name)
        graded.append(grade(served, data, max_tokens=6))
        lower.append([served_loss(served, load_rows([row], served.tokenizer, max_length=200))[0] for row in rows])
    found = compare(*graded)
    assert (found.right.losses, found.right.wins) == (3, 1)
    assert [(a.question, a.correct, b.correct) for a, b in found.discordant] == [
        (question, author == "A", author == "B") for author, question in zip(authors[:4], QUESTIONS[:4], strict=True)]
    assert found.lower == Paired(sum(a > b for a, b in zip(*lower, strict=True)),
                                 sum(a < b for a, b in zip(*lower, strict=True)))
    assert [pair[0].question for pair in found.some(2)] == [QUESTIONS[0], QUESTIONS[1], QUESTIONS[3]]
    assert compare(graded[0], graded[0]) == Comparison(Paired(0, 0, 6), Paired(0, 0, 6),
                                                       [(a, a) for a in graded[0].answers])


@pytest.mark.parametrize(("first", "second", "p", "said"), [
    (0, 0, 1.0, "no difference"),
    (3, 1, 0.625, "this may be chance (exact sign test, p = 0.62)"),
    (5, 0, 0.0625, "this may be chance (exact sign test, p = 0.062)"),
    (6, 0, 0.03125, "not chance (exact sign test, p = 0.031), better with A"),
    (1, 9, 22 / 1024, "not chance (exact sign test, p = 0.021), better with B"),
])
def test_the_verdict_in_words(first, second, p, said):
    found = Paired(second, first)
    assert found.p_two_sided == p
    assert in_words(found, "with A", "with B") == said
