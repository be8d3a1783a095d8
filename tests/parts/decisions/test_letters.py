"""Typed questions to a model that writes text: letters, read beside llama.cpp without a daemon."""

import json
from itertools import islice
from zlib import crc32

import httpx
import llama_cpp
import numpy as np
import pytest
from daemons import PATIENCE, daemon
from thread_workers import ThreadWorker
from tiny import write_tiny
from typed_asks import PASSED, STATE, ask, decide, sentence, teach
from typed_rows import LETTERS, QUESTIONS, typed_rows

from edgetune.adapters.store import FILE, read_description
from edgetune.data.decisions import conversation, read_questions
from edgetune.data.letters import asked, read_asked, spelled
from edgetune.formats.bundle import open_bundle
from edgetune.machine.policy import Policy
from edgetune.runs.train import train
from edgetune.training.config import TrainConfig

ANSWERS = {"lamp": ["goes on: there is light", "goes off", "stays"], "kitchen": ["no", "yes"],
           "place": ["near", "there", "far"]}
MOST = {"many": {"type": "choice", "instructions": "Which?", "criteria": dict.fromkeys(f"{n}" for n in range(27))}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", formats="F32")


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory):
    """What it learned of some rows, of which a tenth was held out, and the rows held out."""
    folder = tmp_path_factory.mktemp("adapter") / "letters"
    found = train(open_bundle(model), typed_rows(30), folder, eval=typed_rows(30, first=100), answers=False, rank=4,
                  threads=1, batch_size=8, steps=12, lr=0.01)
    assert found.loss_after < found.loss_before
    return folder


@pytest.fixture(scope="module")
def running(model, tmp_path_factory):
    with daemon(model, tmp_path_factory.mktemp("state"), TrainConfig(threads=1), Policy(nice=19, govern=False),
                start_process=ThreadWorker, learn="off") as made:
        yield made


@pytest.fixture(scope="module")
def client(running):
    with httpx.Client(base_url=running.url, timeout=PATIENCE) as made:
        yield made


class Plain:
    """llama.cpp itself."""

    def __init__(self, model, adapter=None):
        lora = str(adapter / FILE) if adapter else None
        self.llama = llama_cpp.Llama(str(model), n_ctx=1024, logits_all=True, verbose=False, lora_path=lora)
        self.render = llama_cpp.llama_chat_format.Jinja2ChatFormatter(
            self.llama.metadata["tokenizer.chat_template"], eos_token="", bos_token="", add_generation_prompt=True)

    def p(self, text, count):
        """The soft-max over letters, [count]."""
        prompt = self.render(messages=[{"role": "user", "content": text}]).prompt
        self.llama.reset()
        self.llama.eval(self.llama.tokenize(prompt.encode(), add_bos=True, special=True))
        letters = [self.llama.tokenize(letter.upper().encode(), add_bos=False)[-1] for letter in LETTERS[:count]]
        z = self.llama.scores[self.llama.n_tokens - 1][letters].astype(np.float64)
        return np.exp(z - z.max()) / np.exp(z - z.max()).sum()

    def both(self, state, name):
        """By hand: in the order of the options, and backwards."""
        options = ANSWERS[name]
        p, other = (self.p("\n".join([state, "", f"Question: {QUESTIONS[name]['instructions']}",
                                      *(f"{letter.upper()}. {option}" for letter, option in zip(LETTERS, order,
                                                                                              strict=False)),
                                      "", "Answer with one letter."]), len(options))
                    for order in (options, options[::-1]))
        return (p + other[::-1]) / 2


def read(said):
    """The probabilities of an answer in TypeSafe's form, in the order of its options."""
    found = {name: [*answer["probabilities"].values()] if "probabilities" in answer else
             [1 - answer["noul"], answer["noul"]] for name, answer in said.json()["answers"].items()}
    return {name: np.array(p) for name, p in found.items()}


def headers(said, name):
    return json.loads(said.headers[f"X-Edgetune-{name}"])


def test_both_orders_of_the_letters_are_averaged_and_not_tuned(model, client):
    plain = Plain(model)
    said = ask(client)
    for name, p in read(said).items():
        assert p == pytest.approx(plain.both(STATE, name), abs=2e-3)
    assert headers(said, "Untuned") == ["lamp", "kitchen", "place"]
    assert headers(said, "Sure") == []
    listed = decide(client).json()["answers"]
    assert [one["probability"] for one in listed[0]["probabilities"]] == pytest.approx(read(said)["lamp"], abs=1e-6)


def test_what_is_held_out_says_how_far_the_letters_of_an_adapter_hold(model, adapter, running, client):
    plain = Plain(model, adapter)
    rows = typed_rows(30, first=100)
    p, right = [], []
    for row in rows:
        for name, question in read_questions(QUESTIONS).items():
            p.append(np.pad(plain.both(row["state"], name), (0, 3 - len(question.labels))))
            answer = row["expected"][name]
            right.append(question.labels.index(answer if isinstance(answer, str) else json.dumps(answer)))
    p, right = np.array(p), np.eye(3)[right]
    known = read_description(adapter).facts["letters"]
    found = known["calibration"]
    assert known["questions"] == sorted(question["instructions"] for question in QUESTIONS.values())
    assert found["rows"] == 90
    ordered = np.sort(p, 1)
    undecided = (ordered[:, -1] - ordered[:, -2] < 5e-3).mean()  # which one is likelier depends on the kernels
    assert found["accuracy"] == pytest.approx((p.argmax(1) == right.argmax(1)).mean(), abs=undecided + 1e-6)

    def tempered(t):
        cooled = np.maximum(p, 1e-30) ** (1 / t)
        return cooled / cooled.sum(1, keepdims=True)

    def loss(t):
        return -np.log(tempered(t)[right == 1]).sum() + np.log(t) ** 2 / (2 * 0.5 ** 2)

    t = found["temperature"]
    assert loss(t) < min(loss(t * 1.05), loss(t / 1.05))
    assert found["brier"] == pytest.approx(((tempered(t) - right) ** 2).sum(1).mean(), abs=2e-3)

    made = running.service.adapters.add("ftjob-letters", adapter, "letters", PASSED)
    said = ask(client, model=made.id)
    assert headers(said, "Untuned") == []
    for name, one in read(said).items():
        cooled = plain.both(STATE, name) ** (1 / t)
        assert one == pytest.approx(cooled / cooled.sum(), abs=3e-3)
    boat = {"boat": {"type": "noul", "instructions": "Is it a boat?"}, "place": QUESTIONS["place"]}
    assert headers(ask(client, questions=boat, model=made.id), "Untuned") == ["boat"]


def test_a_correction_is_recalled_in_both_orders_of_the_options(client):
    state = "turn the light, recall this one"
    said = ask(client, state)
    given = teach(client, said, "lamp", correction="goes off")
    assert given["answer"] == "B"
    after = ask(client, state)
    assert read(after)["lamp"].tolist() == [0, 1, 0]
    assert headers(after, "Recalled") == {"lamp": given["id"]}
    assert headers(after, "Untuned") == ["kitchen", "place"]
    turned = {"lamp": {**QUESTIONS["lamp"], "criteria": dict(reversed(QUESTIONS["lamp"]["criteria"].items()))}}
    assert ask(client, state, turned).json()["answers"]["lamp"]["choice"] == "goes off"
    other = ask(client, "turn the light, recall this two")  # a like state is no reason to recall it
    assert headers(other, "Recalled") == {}
    wrong = teach(client, said, "lamp", status=400, correction="explodes")
    assert wrong["error"]["message"] == ("the correction is 'explodes', which is no option; choose from goes on, goes "
                                         "off, stays")
    assert teach(client, said, "kitchen", correction="true")["answer"] == "B"
    liked = teach(client, said, "place", rating="up")
    assert liked["answer"] == "ABC"[int(read(said)["place"].argmax())]


def test_more_options_than_letters_are_refused(client):
    assert sentence(ask(client, questions=MOST, status=400)) == (
        "the question 'Which?' has 27 options, and a model that writes text chooses from at most 26; take an encoder, "
        "such as minilm")


def test_a_row_is_learned_as_a_conversation_for_each_of_its_questions():
    rows = typed_rows(60)
    found = [each for row in rows for each in spelled(conversation(row))]
    assert len(found) == 180
    letters = [each["messages"][1]["content"] for each in found]
    for (row, name), each in zip(((row, name) for row in rows for name in QUESTIONS), found, strict=True):
        question = read_asked(each["messages"][0]["content"])
        assert (question.state, question.instructions) == (row["state"], QUESTIONS[name]["instructions"])
        right = row["expected"][name]
        texts = {False: "no", True: "yes", "goes on": "goes on: there is light"} if name != "place" else dict(
            enumerate(ANSWERS["place"]))
        assert question.options["ABC".index(each["messages"][1]["content"])] == texts.get(right, right)
    backwards = [read_asked(each["messages"][0]["content"]).options[0] in ("stays", "yes", "far") for each in found]
    assert 60 < sum(backwards) < 120
    assert {*letters} == {"A", "B", "C"}


def test_only_whole_questions_are_read_as_such():
    question = asked("one\n\nQuestion: no\nA. x\n\nAnswer with one letter.\n\ntwo", read_questions(
        QUESTIONS)["place"])
    assert read_asked(question.text) == question
    assert crc32(question.text.encode()) != crc32(question.backwards.text.encode())
    for text in (question.text + " ", question.text.replace("B. there\n", ""), question.text.replace("A. ", "B. "),
                 "Answer with one letter.", "", None, [{"type": "text", "text": question.text}]):
        assert read_asked(text) is None


def test_a_soft_label_teaches_the_most_probable_letter():
    [row] = spelled(conversation({"state": "x", "questions": {"place": QUESTIONS["place"]},
                                  "gold": {"place": [0.2, 0.7, 0.1]}}))
    assert row["messages"][1]["content"] == "B"  # in the middle, in both orders
    assert list(islice(spelled({"prompt": "a", "completion": "b"}), 2)) == [{"prompt": "a", "completion": "b"}]
