"""The base's own words about other things, as rows between those of a round, so that they stay as they were."""

from __future__ import annotations

import json
from typing import Any

from ..data.anchors import TOKENS, answered, asked, continued, question
from ..disk import replaced
from .answering import answers_to
from .questions import conversation_tokens
from .setting import Setting

FILE = "anchors.jsonl"
NATURAL = 1.0  # the temperature at which answers are as likely as the base finds them


def anchors(setting: Setting, count: int) -> list[dict[str, Any]]:
    """At least `count` rows by the base, half of them answers and half continued texts; made once for a folder."""
    path = setting.out / FILE
    found = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    if len(found) < count:
        found = _made(setting, -(-count // 2))
        with replaced(path) as beside:
            beside.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found), encoding="utf-8")
    return found


def _made(setting: Setting, questions: int) -> list[dict[str, Any]]:
    tokenizer = setting.tokenizer
    seed = setting.seed(0, "anchors")
    prompts = [tokenizer.encode(question(i), bos=True) for i in range(questions)]
    said = answers_to(setting, prompts, {}, temperature=NATURAL, max_tokens=TOKENS, seed=seed, strip=False)
    rows = [continued(i, of[0].text) for i, of in enumerate(said) if of[0].text.strip()]
    if tokenizer.chat_template is None:
        return rows
    messages = [asked(i, setting.system is not None) for i in range(questions)]
    said = answers_to(setting, [conversation_tokens(of, tokenizer, None) for of in messages], {},
                      temperature=NATURAL, max_tokens=TOKENS, seed=seed)
    return rows + [answered(of, one[0].text, one[0].ended)
                   for of, one in zip(messages, said, strict=True) if one[0].text]
