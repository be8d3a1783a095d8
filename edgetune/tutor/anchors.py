"""The base's own words about other things, as rows between those of a round, so that they stay as they were."""

from __future__ import annotations

import json
from typing import Any

from ..data.anchors import TOKENS, question
from ..data.rows import with_system
from ..disk import replaced
from .answering import answers_to
from .questions import conversation_tokens
from .setting import Setting

FILE = "anchors.jsonl"
NATURAL = 1.0  # the temperature at which answers are as likely as the base finds them
SYSTEM = "Answer the question."  # of answers, where the tutor's rows have a system message


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
    asked = [question(i) for i in range(questions)]
    tokenizer = setting.tokenizer
    seed = setting.seed(0, "anchors")
    prompts = [tokenizer.encode(text, bos=True) for text in asked]
    said = answers_to(setting, prompts, {}, 1, NATURAL, TOKENS, seed, strip=False)
    rows: list[dict[str, Any]] = [{"text": text + of[0].text, "open": True}
                                  for text, of in zip(asked, said, strict=True) if of[0].text.strip()]
    if tokenizer.chat_template is None:
        return rows
    messages = [with_system([{"role": "user", "content": text}], SYSTEM if setting.system else None) for text in asked]
    said = answers_to(setting, [conversation_tokens(of, tokenizer, None) for of in messages], {}, 1, NATURAL, TOKENS,
                      seed)
    return rows + [{"messages": [*of, {"role": "assistant", "content": one[0].text}],
                    **({} if one[0].ended else {"open": True})}
                   for of, one in zip(messages, said, strict=True) if one[0].text]
