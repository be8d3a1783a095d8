"""--learn-method: what feedback teaches by each kind of rows, on a real service and a tiny model."""

import json
from contextlib import contextmanager
from dataclasses import replace

import pytest
from services import same_holdout, until

from edgetune import TrainConfig
from edgetune.adapters.store import read_run
from edgetune.daemon.jobs.process import WorkerProcess
from edgetune.daemon.jobs.recipe import CORRECTED, HELD, MEASURED, TRAIN
from edgetune.daemon.learning.feedback import Feedback
from edgetune.daemon.learning.method import learn_method
from edgetune.daemon.learning.row_kinds import KINDS, kind_of
from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.service import Service
from edgetune.daemon.state.database import Store
from edgetune.daemon.state.holdout import open_holdout
from edgetune.data import preferences, prompts, unpaired
from edgetune.errors import UsageError
from edgetune.machine.policy import Policy
from edgetune.objectives.base import objectives

GRADER = {"type": "text_similarity", "name": "like", "evaluation_metric": "fuzzy_match",
          "input": "{{ sample.output_text }}", "reference": "the light is on"}
SHAPE = {"n_context": 128}
TRAINING = TrainConfig(rank=4, lr=1e-3, epochs=2.0, batch_size=4, max_length=120, threads=1)
ASKED = [{"role": "user", "content": "lamp on"}]


def grader_file(folder, grader=GRADER):
    path = folder / "grader.json"
    path.write_text(json.dumps(grader))
    return str(path)


def test_methods_follow_from_the_rows_that_objectives_read(tmp_path):
    """Each objective whose rows feedback can give is taken with what it needs, and no other."""
    file = grader_file(tmp_path)
    for name, kind in objectives().items():
        rows = None if kind.needs_files else kind_of(kind.rows)
        graded = rows is not None and rows.parser is prompts
        config = DaemonConfig(learn_method=name, learn_grader=file if graded else "",
                              learn_options="warmup_epochs=0" if name == "reft" else "")
        if rows is None:
            with pytest.raises(UsageError, match=r"does not learn from feedback; choose from sft, dpo, "):
                learn_method(config)
        else:
            assert learn_method(config).objective.name == name
    assert {kind.parser for kind in KINDS} <= {kind.rows for kind in objectives().values()}


@pytest.mark.parametrize(("options", "says"), [
    ({"learn_method": "magic"}, "learn-method is 'magic', which does not learn from feedback; choose from "),
    ({"learn_method": "grpo"}, "learn-method grpo needs learn-grader"),
    ({"learn_method": "grpo", "learn_grader": "nowhere.json"}, "nowhere.json"),
    ({"learn_method": "dpo", "learn_grader": "FILE"}, "learn-grader is given, and dpo learns from pairs"),
    ({"learn_method": "reft", "learn_grader": "FILE"}, "reft, which imitates rows of prompt and completion first"),
    ({"learn_method": "dpo", "learn_options": "lr=1"}, "learn-options names 'lr', which is no option of dpo"),
    ({"learn_options": "beta=1"}, "'beta', which is no option of sft"),
    ({"learn_method": "dpo", "learn_options": "beta"}, "learn-options has 'beta'; write beta=0.2"),
    ({"learn_method": "dpo", "learn_options": "beta=-1"}, "beta is -1"),
    ({"learn_method": "dpo", "learn_options": "loss-type=none"}, "loss-type is 'none'"),
    ({"learn_method": "grpo", "learn_grader": "PYTHON"}, "a python grader is not allowed here")])
def test_a_method_without_what_it_needs_is_refused_at_the_start(tmp_path, options, says):
    python = {"type": "python", "name": "own", "source": "def grade(sample, item):\n    return 0.5"}
    files = {"FILE": GRADER, "PYTHON": python}
    if (named := options.get("learn_grader")) in files:
        options = {**options, "learn_grader": grader_file(tmp_path, files[named])}
    with pytest.raises(UsageError, match=says):
        Service(tmp_path / "none.gguf", DaemonConfig(**options))


def test_a_job_asks_for_the_method_with_its_options(tmp_path):
    dpo = learn_method(DaemonConfig(learn_method="dpo", learn_options="beta=0.2, sft-weight=1,loss_type=hinge"))
    assert dpo.asked["type"] == "dpo"
    assert dpo.asked["dpo"]["hyperparameters"] == {"beta": 0.2, "sft_weight": 1, "loss_type": "hinge",
                                                   "label_smoothing": 0.0}
    assert dpo.train(TrainConfig()).lr == 2e-4
    grpo = learn_method(DaemonConfig(learn_method="grpo", learn_grader=grader_file(tmp_path)))
    assert grpo.asked["type"] == "reinforcement"
    assert grpo.asked["reinforcement"]["grader"]["reference"] == GRADER["reference"]
    assert not {"grader", "unsafe_python"} & grpo.asked["reinforcement"]["hyperparameters"].keys()


def opened(folder, name="sft"):
    found = kind_of(objectives()[name].rows)
    assert found
    return Feedback(Store(folder), open_holdout(folder), DaemonConfig(), found)


def test_a_piece_is_what_each_kind_of_rows_needs_of_it(tmp_path):
    feedback = opened(tmp_path, "grpo")
    tools = [{"type": "function", "function": {"name": "lamp"}}]
    chat = feedback.add(messages=ASKED, tools=tools, answer="off", correction="on")
    choice = feedback.add(prompt="a", answer="b", rejected="c")
    up = feedback.add(prompt="d", answer="e", rating="up")
    down = feedback.add(prompt="f", answer="g", rating="down")

    def said(text):
        return [{"role": "assistant", "content": text}]

    answers, labelled, pairs, labels, asked = KINDS
    chat_pair = {"prompt": ASKED, "chosen": said("on"), "rejected": said("off"), "tools": tools}
    plain_pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert [pairs.learned(item) for item in (chat, choice, up, down)] == [[chat_pair], [plain_pair], [], []]
    assert [pairs.for_gate(item) for item in (chat, choice, up)] == [chat.row, plain_pair, up.row]
    assert [labels.learned(item) for item in (chat, choice, up, down)] == [
        [{"prompt": ASKED, "completion": said("on"), "label": True, "tools": tools},
         {"prompt": ASKED, "completion": said("off"), "label": False, "tools": tools}],
        [{"prompt": "a", "completion": "b", "label": True}, {"prompt": "a", "completion": "c", "label": False}],
        [{"prompt": "d", "completion": "e", "label": True}], [{"prompt": "f", "completion": "g", "label": False}]]
    assert [asked.learned(item) for item in (chat, down)] == [
        [{"prompt": ASKED, "completion": "on", "tools": tools}], [{"prompt": "f"}]]
    assert [asked.for_gate(item) for item in (chat, down)] == [chat.row, {"prompt": "f"}]
    assert answers.learned(chat) == [answers.for_gate(chat)] == [chat.row]
    assert labelled.learned(chat) == [labelled.for_gate(chat)] == [chat.row]
    for parser, kind in ((preferences, pairs), (unpaired, labels), (prompts, asked)):
        assert kind.parser is parser
        assert all(parser.check_learnable(row) for item in (chat, choice, up, down) for row in kind.learned(item))


def test_what_a_method_cannot_use_waits_for_one_that_can(tmp_path):
    """And takes a side of the held-out questions only then, and keeps it."""
    sft = opened(tmp_path)
    for i in range(15):
        sft.add(prompt=f"right {i}", answer="on", rating="up")
        sft.add(prompt=f"wrong {i}", answer="on", rating="down")
        sft.add(prompt=f"corrected {i}", answer="on", correction="off")
    assert (sft.waiting(), sft.unusable()) == (30, 15)
    assert sum(item.held for item in sft.list()) == 6
    sides = {item.id: item.held for item in sft.list() if item.learns}
    for name, waiting, unusable, held in (("dpo", 15, 30, None), ("kto", 45, 0, 9), ("sft", 30, 15, 6)):
        sft.store.close()
        feedback = opened(tmp_path, name)
        assert (feedback.waiting(), feedback.unusable()) == (waiting, unusable)
        found = {item.id: item.held for item in feedback.list() if item.learns}
        assert {id: found[id] for id in found.keys() & sides} == {id: sides[id] for id in found.keys() & sides}
        assert held is None or sum(found.values()) == held
        sides |= found
    assert learn_method(DaemonConfig(learn_method="dpo")).unused(3) == (
        "3 pieces of feedback wait: dpo learns from pairs of a right or better answer and a wrong or worse one")


def test_what_was_learned_by_one_method_is_learned_again_by_another_that_can(tmp_path):
    sft = opened(tmp_path)
    for i in range(20):
        sft.add(prompt=f"corrected {i}", answer="on", correction="off")
        sft.add(prompt=f"right {i}", answer="on", rating="up")
    sft.assign(sft.training_rows().taken, "job")
    sft.settle("job", "used")
    sft.store.close()
    dpo = opened(tmp_path, "dpo")
    rows = dpo.training_rows()
    assert all(dpo.item(row).rejected == "on" for row in rows.earlier)
    assert 10 <= len(rows.earlier) < 20
    assert len(rows.established) == 8  # thumbs up judge by their answer as before


@contextmanager
def served(model, folder, **options):
    same_holdout(folder / "state")
    config = DaemonConfig(state=str(folder / "state"), context=128, parallel=2, threads=1, canary_rise="off",
                          max_kl="off")
    start_process = options.pop("start_process", WorkerProcess)
    with Service(model, replace(config, **options), Policy(govern=False), TRAINING, start_process) as service:
        yield service


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def question(row):
    asked = row["messages"] if "messages" in row else row["prompt"]
    return str([message for message in asked if message["role"] == "user"][-1]["content"])


@pytest.mark.dev
@pytest.mark.parametrize("name", ["dpo", "kto", "orpo", "grpo"])
def test_rows_of_a_job(model, tmp_path, workers, name):
    """Corrections, choices and thumbs are learned by the method and settled; held-out questions are not learned."""
    options = {"learn_grader": grader_file(tmp_path)} if name == "grpo" else {}
    with served(model, tmp_path, learn_method=name, start_process=workers, **options) as service:
        feedback = service.feedback
        for i in range(10):
            feedback.add(messages=[{"role": "user", "content": f"corrected {i}"}], answer="the turn", correction="on")
            feedback.add(messages=[{"role": "user", "content": f"better {i}"}], answer="on", rejected="set to")
        down = feedback.add(messages=[{"role": "user", "content": "wrong"}], answer="the turn", rating="down")
        held = {item.row["messages"][-2]["content"] for item in feedback.list() if item.held and item.row}
        job = service.learner.begin()
        folder = service.jobs.folder / job.id
        assert held
        assert {question(row) for row in lines(folder / TRAIN) + lines(folder / CORRECTED)}.isdisjoint(held)
        assert {question(row) for row in lines(folder / HELD) + lines(folder / MEASURED)} <= held
        pairs = [row for row in lines(folder / HELD) if "chosen" in row]
        assert bool(pairs) == (name != "grpo")
        assert all(question(row).startswith("better") for row in pairs)
        assert job.method["type"] == objectives()[name].method
        assert job.config["anchors"] == 0  # they are for right answers
        workers.next().judge()
        service.jobs.wait(job.id, 60)
        until(lambda: not feedback.unsettled())
        by_pairs = name in ("dpo", "orpo")
        assert {item.state for item in feedback.list() if item.id != down.id} == {"used"}
        assert feedback.get(down.id).state == ("counted" if by_pairs else "used")
        assert ("1 piece of feedback waits: " in service.learner.state()["unused"]) == by_pairs


@pytest.mark.slow
def test_thumbs_are_learned_by_kto(model, tmp_path):
    with served(model, tmp_path, learn_method="kto") as service:
        for i in range(20):
            answer, rating = (("on", "up"), ("the turn", "down"))[i % 2]
            service.feedback.add(messages=[{"role": "user", "content": f"lamp {i}"}], answer=answer, rating=rating)
            service.feedback.add(messages=[{"role": "user", "content": f"door {i}"}], answer="the", correction="on")
        job = service.jobs.wait(service.learner.begin().id, 120)
        assert job.status == "succeeded", job.error
        adapter = service.adapters.get(str(job.result))
        run = read_run(service.adapters.path(adapter.id))
        assert run["objective"]["name"] == "kto"
        assert run["held_out"]["loss_after"] < run["held_out"]["loss_before"]
        assert adapter.verdict["new"]["loss"] < adapter.verdict["old"]["loss"]


def test_a_grader_that_names_the_right_answer_takes_what_has_one(tmp_path):
    def method(reference):
        file = grader_file(tmp_path, {**GRADER, "reference": reference})
        return learn_method(DaemonConfig(learn_method="grpo", learn_grader=file))

    feedback = Feedback(Store(tmp_path), open_holdout(tmp_path), DaemonConfig(), method("{{ item.completion }}").kind)
    assert feedback.add(messages=ASKED, answer="the turn", rating="down").state == "counted"
    assert feedback.add(messages=ASKED, answer="the turn", correction="on").state == "new"
    assert method("{{ item.prompt }}").kind.usable == "TRUE"
    match = {"type": "json_match", "name": "fields", "reference": "{{ item.completion }}"}
    fields = learn_method(DaemonConfig(learn_method="grpo", learn_grader=grader_file(tmp_path, match))).kind
    assert [len(fields.learned(feedback.add(prompt="x", correction=text))) for text in ('{"a": 1}', "on")] == [1, 0]
    with pytest.raises(UsageError, match=r"the row has no item.word, which the grader names; feedback has item.prompt"):
        method("{{ item.word }}")


@pytest.mark.slow
def test_a_grader_may_ask_the_model(model, tmp_path):
    judge = {"type": "score_model", "name": "good", "model": "self", "range": [0, 5],
             "input": [{"role": "user", "content": "{{ sample.output_text }}"}]}
    with served(model, tmp_path, learn_method="rloo", learn_grader=grader_file(tmp_path, judge),
                learn_options="max_completion_length=6,num_generations=2,temperature=2.0") as service:
        for i in range(20):
            service.feedback.add(messages=[{"role": "user", "content": f"lamp {i}"}], answer="the turn", rating="down")
        job = service.jobs.wait(service.learner.begin().id, 120)
        assert job.status == "succeeded", job.error
        verdict = service.adapters.get(str(job.result)).verdict
        assert verdict["new"]["rows"] == 4
        assert all(0 < verdict[side]["reward"] < 5 for side in ("old", "new"))
