"""Questions of rows: digests that are stored must stay, and texts are for people."""

from typing import Any

import pytest

from edgetune.data.question import asked_messages, asked_text, question_digest, question_key, question_of, question_text
from edgetune.errors import DataError

PROMPT = "Is the  lamp ON?"
USER = {"role": "user", "content": PROMPT}
PARTS = {"role": "user", "content": [{"type": "text", "text": "Is the"}, {"type": "text", "text": " lamp on?"}]}
SYSTEM = {"role": "system", "content": "Be brief. Größe 你"}
SURE = {"role": "user", "content": "sure?"}
YES = {"role": "assistant", "content": "yes"}
NO = {"role": "assistant", "content": "no"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{}]}
ROWS: dict[str, Any] = {
    "prompt": {"prompt": PROMPT, "completion": "yes"},
    "empty prompt": {"prompt": " ", "completion": "yes"},
    "messages": {"messages": [USER, YES]},
    "system": {"messages": [SYSTEM, USER, YES], "tools": [{"type": "function"}]},
    "parts": {"messages": [PARTS, YES]},
    "conversation": {"messages": [USER, {**YES, "weight": 0}, SURE, YES]},
    "asks again": {"messages": [USER, YES, SURE]},
    "asks": {"prompt": [SYSTEM, USER]},
    "text": {"text": "a verse"},
    "plain text": "a verse",
    "pair": {"prompt": PROMPT, "chosen": "yes", "rejected": "no"},
    "pair of an empty prompt": {"prompt": "", "chosen": "yes", "rejected": "no"},
    "OpenAI's pair": {"input": {"messages": [SYSTEM, USER]}, "preferred_output": [YES], "non_preferred_output": [NO]},
    "pair without a prompt": {"chosen": [USER, YES], "rejected": [USER, NO]},
    "answer alone": {"messages": [YES]},
    "of an objective": {"prompt": "which lamp 1", "better": "a", "worse": "b"},
}


@pytest.mark.parametrize(("name", "digest"), [
    ("prompt", "0d444d724cb80ee0a14faf8b7c767a03b68f94e6f0c7e4b6a69b277420781955"),
    ("empty prompt", "a6a6369b2436060d28ca0c6146214e8b3ce10221536af7566629455b4e80d7fd"),
    ("messages", "97ffba7352144cafd0c47d6537740ab43c95767116a328cdd02af8740c4ae1dc"),
    ("system", "114fe1011da80b1a761af3a331a04b78d5022c61ac1453703f219de91f282ab1"),
    ("parts", "fa664d92509109af94b4b5ff22b115cf4e28e9c6555d70bf9a8a107a3b4b3a28"),
    ("conversation", "06d71fdbd1646b38c8acc9c215108e2cd728042195f86342153971eb832821fa"),
    ("asks again", "97ffba7352144cafd0c47d6537740ab43c95767116a328cdd02af8740c4ae1dc"),
    ("asks", "114fe1011da80b1a761af3a331a04b78d5022c61ac1453703f219de91f282ab1"),
    ("text", "bb77f1051797ca7fdfde1ed339b74a30ffd1fb9c3801e77badc27560355059c6"),
    ("plain text", "d793ecde886e41b5ed8704ab97e8a3fcc97228972fd371a3a09540711b5503d5"),
    ("pair", "0d444d724cb80ee0a14faf8b7c767a03b68f94e6f0c7e4b6a69b277420781955"),
    ("pair of an empty prompt", "12ae32cb1ec02d01eda3581b127c1fee3b0dc53572ed6baf239721a03d82e126"),
    ("OpenAI's pair", "114fe1011da80b1a761af3a331a04b78d5022c61ac1453703f219de91f282ab1"),
    ("pair without a prompt", "97ffba7352144cafd0c47d6537740ab43c95767116a328cdd02af8740c4ae1dc"),
    ("answer alone", "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"),
    ("of an objective", "4ec663fb687aaa7b8190fa1f33c7f6a21f77bbb6c0dacb816440648bab2667ec"),
])
def test_the_held_out_rows_of_a_file_stay(name, digest):
    """As version 0.1.0 divided files."""
    assert question_digest(ROWS[name]) == digest


@pytest.mark.parametrize(("name", "digest"), [
    ("prompt", "700fd3355bd995fd4ac2fc3974b7b95a464adb3b412553994fe4eb83d911e005"),
    ("empty prompt", "2c414888037ec0b3aac2444f252c9cfb668d4597e3cc8206c9be042c4472c123"),
    ("messages", "b321fb8edd51a1894531f8e76ecbfce866a82880e5728e27bb2387222dd5a723"),
    ("system", "083b20722a5cf09b49648973f9069818c5d876fba2de4ec059b08af7730dcc63"),
    ("parts", "124238bb7b53dad6d733cf020f8e450f1fbac59eaa4712398ca9327a0875a102"),
    ("conversation", "53a6a61e8b13a7b5fe4787d3e8b2626b02afb77aadddba8966eab0eabfcd35fa"),
    ("answer alone", "d10f2d0e3138ea8af8797d6730f03f2016e1857beae33132ac16b3ce446853ea"),
])
def test_the_questions_of_feedback_stay(name, digest):
    """As the daemon's database has them in its column `question`."""
    assert question_digest(ROWS[name], by_shape=True) == digest


@pytest.mark.parametrize(("name", "key"), [
    ("prompt", "d858f2c247d93a3c1fc30d19962f06ea"), ("messages", "d858f2c247d93a3c1fc30d19962f06ea"),
    ("system", "c9ec0bed76ce6dce5d844cb4f5a6f990"), ("parts", "ac010417a0da49383114668276422234"),
    ("conversation", "e40470ffbe62f18bc647dec71cea14ad"), ("asks again", "e40470ffbe62f18bc647dec71cea14ad"),
    ("asks", "c9ec0bed76ce6dce5d844cb4f5a6f990")])
def test_the_questions_of_the_tutor_stay(name, key):
    """As the folders of its rounds name them."""
    assert question_key(ROWS[name]) == key


@pytest.mark.parametrize(("row", "text"), [
    (ROWS["prompt"], PROMPT),
    (ROWS["parts"], "Is the lamp on?"),
    (ROWS["conversation"], "sure?"),
    (ROWS["asks again"], PROMPT),
    (ROWS["asks"], PROMPT),
    ({"messages": [USER, YES, SURE, NO, USER]}, "sure?"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "o"}, {"type": "image"}, "n?"]}, YES]}, "on?"),
    ({"messages": [USER, CALL, YES]}, ""),
    (ROWS["empty prompt"], ""),
    (ROWS["answer alone"], ""),
    (ROWS["text"], ""),
])
def test_a_person_reads_the_last_message_before_the_answer(row, text):
    assert question_text(row) == text


def test_a_row_that_asks_ends_with_its_question_and_a_row_to_learn_with_its_answer():
    row = ROWS["asks again"]
    assert asked_messages(row) == [USER, YES, SURE]
    assert asked_text(row) == f"{PROMPT}\nyes\nsure?"
    assert question_of(row) == [USER]
    for asks_nothing in ({"messages": [YES]}, {"messages": []}, {"text": "a verse"}, {"prompt": 3}):
        with pytest.raises(DataError, match="asks nothing"):
            asked_messages(asks_nothing)
