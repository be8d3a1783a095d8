"""edgetune.evaluation.chosen: one of several answers, with no more of them than can change the choice."""

import json
import random
from itertools import permutations

import pytest
from commands import run
from json_lines import write_lines

from edgetune.evaluation.chosen import Choosing, LikeliestAnswer, Majority, Preferred, chosen, chosen_of, part_of
from edgetune.evaluation.graders.base import read_grader
from edgetune.serving.draws import DrawnAnswer

NUMBER = read_grader({"type": "numeric", "name": "sum", "reference": "{{ item.completion }}"})


def answer(text, index=0, logprob=-1.0, finish="stop"):
    return DrawnAnswer(index, text, max(len(text), 1), logprob, finish)


class Given:
    """Answers that come in an order, as Draws gives them."""

    def __init__(self, made):
        self.made = iter(made)
        self.tokens = 0
        self.closed = False

    def __iter__(self):
        for each in self.made:
            self.tokens += each.tokens
            yield each

    def close(self):
        self.closed = True


def test_a_majority_is_found_in_any_order_with_the_fewest_answers():
    made = [answer("7", 0, -3.0), answer("7.0", 1, -1.0), answer("8", 2, -0.1), answer("7", 3, -2.0),
            answer("", 4, 0.0)]
    for order in permutations(made):
        given = Given(order)
        choice = chosen(given, 5, Majority())
        assert choice.drawn.text in ("7", "7.0")
        assert given.closed
        assert choice.tokens == given.tokens
        assert choice.ended <= 5
    assert chosen(Given([made[0], made[1], made[3]]), 5, Majority()).ended == 3, "two more cannot overtake three"
    assert chosen_of(made, Majority()).drawn == made[1], "the likeliest of those that say it"
    assert chosen_of(made, Majority()).share == pytest.approx(0.6)


def test_stopping_never_changes_what_the_majority_says():
    dice = random.Random(0)
    stopped = 0
    for _ in range(300):
        made = [answer(dice.choice("1123"), i, -dice.random()) for i in range(8)]
        early = chosen(Given(made), 8, Majority())
        whole = chosen_of(made, Majority())
        counts = {text: sum(each.text == text for each in made) for text in "123"}
        if sorted(counts.values())[-1] > sorted(counts.values())[-2]:
            assert early.drawn.text == whole.drawn.text
        stopped += early.ended < 8
    assert stopped > 100


def test_a_pattern_says_which_part_counts():
    made = [answer("3 + 4 = 7, so 7", 0), answer("it is 9", 1), answer("7", 2, finish="length"), answer("I say 7", 3)]
    assert chosen_of(made, Majority(r"(\d+)")).drawn.index in (0, 3)
    assert chosen_of(made, Majority()).share == 0.25
    assert chosen_of([answer("no number")], Majority(r"\d+")).share == 0.0
    assert part_of("a 1 b 2", None) == "a 1 b 2"


def test_an_answer_that_was_cut_is_chosen_only_where_all_were():
    cut = [answer("12", 0, -0.1, "length"), answer("13", 1, -0.2, "length")]
    assert chosen_of(cut, Majority()).drawn == cut[0]
    assert chosen_of([*cut, answer("14", 2, -9.0)], LikeliestAnswer()).drawn.text == "14"
    assert chosen_of([*cut, answer("14", 2, -9.0)], Majority()).drawn.text == "14"


def test_the_likeliest_is_by_the_mean_of_its_tokens():
    short, long = answer("1", 0, -1.0), answer("1234567890", 1, -2.0)
    assert chosen_of([short, long], LikeliestAnswer()).drawn == long
    assert chosen(Given([short, long]), 2, LikeliestAnswer()).ended == 2


def test_a_grader_ends_it_with_the_first_right_answer():
    made = [answer("5", 0), answer("7", 1, -2.0), answer("7", 2, -1.0)]
    found = chosen(Given(made), 3, Preferred(NUMBER, {"completion": "7"}))
    assert (found.drawn, found.ended, found.score) == (made[1], 2, 1.0)
    assert chosen_of(made, Preferred(NUMBER, {"completion": "7"})).drawn == made[2]
    assert chosen_of(made, Preferred(NUMBER, {"completion": "8"})).score == 0.0
    several = read_grader({"type": "multi", "name": "m", "graders": {"sum": NUMBER.to_json()},
                         "calculate_output": "2 * sum"})
    assert chosen(Given(made), 3, Preferred(several, {"completion": "7"})).ended == 3, "it may give more than 1"


def test_the_commands_choose(tiny_llama, tmp_path):
    shared = ("--threads", 1)
    answered = json.loads(run("generate", tiny_llama, "say a", "--samples", 5, "--max-tokens", 6, "--json", *shared))
    assert set(answered) == {"prompt", "text", "samples", "share", "score", "tokens", "finish_reason"}
    assert 1 <= answered["samples"] <= 5
    rows = write_lines(tmp_path / "rows.jsonl", [{"prompt": "say a", "completion": "a"},
                                                 {"prompt": "say b", "completion": "b"}])
    lines = [json.loads(line) for line in run(
        "generate", tiny_llama, rows, "--engine", "native", "--samples", 4, "--choose", "likelihood", "--temperature",
        1, "--max-tokens", 6, *shared).splitlines()]
    assert [line["prompt"] for line in lines] == ["say a", "say b"]
    assert all(line["samples"] == 4 and line["tokens"] >= 4 for line in lines)
    (tmp_path / "grader.json").write_text(json.dumps({
        "type": "string_check", "name": "same", "operation": "eq", "input": "{{ sample.output_text }}",
        "reference": "{{ item.completion }}"}))
    graded = json.loads(run("eval", tiny_llama, rows, "--samples", 3, "--grader", tmp_path / "grader.json", "--json",
                            *shared))
    assert graded["exact_rows"] == 2
    assert graded["sampled_tokens"] >= 1
    assert json.loads(run("eval", tiny_llama, rows, "--json", *shared))["sampled_tokens"] is None


@pytest.mark.parametrize(("words", "says"), [
    (("generate", "MODEL", "hi", "--choose", "majority"), "of which there is nothing to choose"),
    (("generate", "MODEL", "hi", "--samples", "3", "--choose", "grader"), "needs --grader"),
    (("generate", "MODEL", "hi", "--samples", "3", "--choose", "likelihood", "--pattern", "a"), "is for a majority"),
    (("generate", "MODEL", "hi", "--samples", "3", "--pattern", "("), "no regular expression"),
    (("generate", "MODEL", "hi", "--samples", "3", "--temperature", "0"), "all answers would be the same"),
    (("generate", "MODEL", "hi", "--samples", "300"), "choose from 1 to 256"),
    (("eval", "MODEL", "DATA", "--seed", "3"), "without --samples"),
    (("eval", "MODEL", "DATA", "--samples", "3", "--engine", "native"), "given with --engine native"),
])
def test_what_is_refused(tiny_llama, tmp_path, words, says):
    data = write_lines(tmp_path / "rows.jsonl", [{"prompt": "say a", "completion": "a"}])
    words = [{"MODEL": tiny_llama, "DATA": data}.get(word, word) for word in words]
    assert says in " ".join(run(*words, code=2).split())


def test_a_choosing_makes_its_own_chooser():
    assert isinstance(Choosing(3).chooser({}), Majority)
    assert isinstance(Choosing(3, "likelihood").chooser({}), LikeliestAnswer)
    assert isinstance(Choosing(3, "grader", grader=NUMBER).chooser({}), Preferred)
