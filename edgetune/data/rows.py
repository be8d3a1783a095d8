"""One row of data to token ids and token weights. A row has one of three shapes, or is plain text (a str):

    {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}, ...], "tools": [...]}
    {"prompt": ..., "completion": ...}
    {"text": ...}

Chat rows, and prompt rows where the model has a chat template, become exactly the tokens of serving: for each assistant
turn the prompt that `Tokenizer.render` writes for the conversation before it, then the answer, tokenized apart from the
prompt because a model answers after the prompt's tokens. Supervised (weight 1) are the answer's tokens up to and
including the first that ends generation (<|im_end|>, </s>, ...), nothing else; an example ends with its last supervised
token. `"weight": 0` on an assistant message leaves it out of the loss, as in OpenAI's format.

Where the next prompt continues the text of the last answer, all turns share one example. Where the template rewrites
history (Qwen3 drops earlier reasoning, Mistral moves the system text to the last question), the row becomes several
examples, each with the prompt of its turn: every answer is still learnt once, from what the model will see.

Text rows end with EOS; all their tokens but the first are supervised. With "open": true a text would continue: it has
no EOS.
Text that spells a special token becomes that token (see `llamacpp.tokenizer`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ..errors import DataError
from ..llamacpp.tokenizer import Tokenizer
from .around import Instruction, flat_prompt, instructed
from .calls import check_calls
from .letters import measurable
from .packing import Example, is_supervised
from .thoughts import DROP, MASK, answer_alone, thought_tokens, without_thoughts

Row = Mapping[str, Any] | str  # a str is plain text of any length
SHAPES = {"messages": ("messages",), "prompt": ("prompt", "completion"), "text": ("text",)}
ROLES = ("system", "user", "assistant", "tool")
EXPECTED = "messages, prompt with completion, or text"
_UNWRITTEN = "\x02"  # replaces an answer, to find where a template puts it; templates neither write nor trim it


class RowParser(Protocol):
    """A module that reads the rows of an objective, as this one does: the shapes that exist, and their examples.

    Examples of one row that belong together have one `group`, 1, 2, ... in that row.
    """

    EXPECTED: str

    def shape_of(self, row: Row, /) -> str: ...

    def check_learnable(self, row: Row, /) -> str:
        """The row's shape; DataError for one of which nothing can be learned. Needs no tokenizer."""

    def examples_of(self, row: Row, shape: str, tokenizer: Tokenizer, system: Instruction, max_length: int,
                    /) -> Iterable[Example]: ...


def shape_of(row: Row) -> str:
    """messages, prompt or text; DataError for a row of no shape or of several."""
    if isinstance(row, str):
        return "text"
    if not isinstance(row, Mapping):
        raise DataError(f"the row is a JSON {json_type(row)}, not an object", f"expected is {EXPECTED}")
    found = [shape for shape, keys in SHAPES.items() if all(key in row for key in keys)]
    if len(found) != 1:
        what = "fits several shapes" if found else "has an unknown shape"
        raise DataError(f"the row {what} (its keys: {keys_of(row)})", f"expected is {EXPECTED}")
    return found[0]


def check_row(row: Row) -> str:
    """Its shape, after checking that its values have the right types. Raises DataError. Needs no tokenizer."""
    shape = shape_of(row)
    if isinstance(row, str):
        return shape
    if shape == "text":
        row_text(row, "text")
    else:
        _conversation(row, shape, None)
    return shape


def check_learnable(row: Row) -> str:
    """`check_row`, and that each answer to learn says something, and calls what the row's tools take: an empty answer
    would teach to say nothing.
    """
    shape = check_row(row)
    if isinstance(row, str):
        return shape
    if shape == "messages":
        for i, message in enumerate(row["messages"]):
            learned = message["role"] == "assistant" and message.get("weight", 1) and not message.get("tool_calls")
            if learned and is_blank(message["content"]):
                raise DataError(f"messages[{i}], an answer to learn, is empty", "write the answer, or give it weight 0")
            check_calls(f"messages[{i}]", message, row.get("tools"))
    elif is_blank(row["completion" if shape == "prompt" else "text"]):
        raise DataError(f"the {'completion' if shape == 'prompt' else 'text'} is empty", "write it, or remove the row")
    elif shape == "prompt":
        check_calls("the completion", as_messages("", row["completion"])[1], row.get("tools"))
    return shape


def is_blank(content: str | list[Any]) -> bool:
    """Text, or a list of parts, without a visible character."""
    if isinstance(content, str):
        return not content.strip()
    return all(isinstance(part, dict) and part.get("type") == "text" and is_blank(str(part.get("text", "")))
               for part in content)


def examples_of(row: Row, shape: str, tokenizer: Tokenizer, system: Instruction, max_length: int) -> Iterable[Example]:
    """The row's examples, at full length but for plain text, which is cut at max_length. Raises DataError."""
    if isinstance(row, str):
        return _documents(tokenizer, row, max_length)
    if shape == "text":
        return [_document(tokenizer, row_text(row, "text"), bool(row.get("open")))]
    if tokenizer.chat_template is not None:
        messages, tools = _read(tokenizer, row, shape, system)
        return (measurable(found, messages, tokenizer) for found in _turns(tokenizer, messages, tools))
    if shape == "messages":
        what = "the model has no chat template, which rows of messages need"
        raise DataError(what, "use rows of prompt and completion or text, or a chat model")
    prompt, completion = _pair(row, system)
    return [_continuation(tokenizer, prompt, answer_alone(completion) if tokenizer.thoughts == DROP else completion)]


def prompt_of(row: Row, tokenizer: Tokenizer, system: Instruction = None) -> tuple[str, str]:
    """What to ask a model for this row, and its answer: (prompt text, expected text).

    The prompt is the text up to the last assistant turn with the generation prompt; feed it as
    `encode(prompt, bos=True)`. The answer is as the template writes it (with tool calls, say), without the token that
    ends it and without space around it: compare it with a generated text after `strip()`.
    Raises DataError for a text row.
    """
    shape = shape_of(row)
    if isinstance(row, str) or shape == "text":
        raise DataError("a row of text has no question and answer", "use rows of messages, or prompt and completion")
    if shape == "prompt" and tokenizer.chat_template is None:
        prompt, answer = _pair(row, system)
        return prompt, answer.strip()
    messages, tools = _read(tokenizer, row, shape, system)
    last = last_answer(messages)
    prompt, answer = _turn(tokenizer, messages[:last], messages[last], tools)
    return prompt, tokenizer.decode(t for t in _answer(tokenizer, answer) if not tokenizer.is_end(t)).strip()


# ---- one row to tokens and weights -----------------------------------------------------------------------------------


def example(tokens: Sequence[int] | np.ndarray, weights: Sequence[float] | np.ndarray) -> Example:
    """An example that ends with the last supervised token; later tokens would not change the loss."""
    w = np.array(weights, np.float32)
    w[0] = 0
    end = int(np.flatnonzero(is_supervised(w)).max(initial=0)) + 1
    return Example(np.array(tokens[:end], np.int32), w[:end])


def _documents(tokenizer: Tokenizer, text: str, max_length: int) -> list[Example]:
    """Text as documents of max_length tokens, without EOS, as the text continues; a lone last token is dropped."""
    ids = tokenizer.encode(text)
    start = [tokenizer.bos] if tokenizer.add_bos and tokenizer.bos is not None else []
    size = max_length - len(start)
    pieces = [start + ids[i : i + size] for i in range(0, len(ids), size)]
    documents = [example(piece, [1.0] * len(piece)) for piece in pieces if len(piece) > 1]
    if not documents:
        raise DataError(f"the text has {len(ids)} tokens, training needs 2 or more", "add text")
    return documents


def _document(tokenizer: Tokenizer, text: str, is_open: bool) -> Example:
    ids = tokenizer.encode(text, bos=True)
    if not is_open:
        ids = _ended(tokenizer, ids)
    if not text or len(ids) < 2:
        raise DataError(f"the text {text!r} has fewer than 2 tokens", "remove the row or write more text")
    return example(ids, [1.0] * len(ids))


def _continuation(tokenizer: Tokenizer, prompt: str, completion: str) -> Example:
    """Tokens without a chat template: the completion straight after the prompt, then EOS."""
    asked = tokenizer.encode(prompt, bos=True)
    answer = _ended(tokenizer, tokenizer.encode(completion, continues=bool(prompt)))
    if len(asked) + len(answer) < 2:
        raise DataError("prompt and completion have fewer than 2 tokens together", "remove the row or write more text")
    return example(asked + answer, [0.0] * len(asked) + _weights(tokenizer, answer, 1.0))


def _weights(tokenizer: Tokenizer, answer: list[int], weight: float) -> list[float]:
    """The weights of an answer's tokens: none of its thoughts, where they are masked."""
    masked = thought_tokens(tokenizer, answer) if tokenizer.thoughts == MASK else 0
    return [0.0] * masked + [weight] * (len(answer) - masked)


def _turns(tokenizer: Tokenizer, messages: list[dict[str, Any]],
           tools: list[dict[str, Any]] | None) -> Iterator[Example]:
    """One example, or one for each stretch in which every prompt continues the text before it."""
    tokens: list[int] = []
    weights: list[float] = []
    seen: str | None = None  # the text of `tokens`
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt, text = _turn(tokenizer, messages[:i], message, tools)
        answer = _answer(tokenizer, text)
        if seen is not None and prompt.startswith(seen):
            # After a mark such as </s> llama.cpp tokenizes as at the start of a text.
            new = tokenizer.encode(prompt[len(seen) :], continues=not tokenizer.is_control(tokens[-1]))
        else:
            if any(weights):
                yield example(tokens, weights)
            tokens = []
            weights = []
            new = tokenizer.encode(prompt, bos=True)
        tokens += new + answer
        weights += [0.0] * len(new) + _weights(tokenizer, answer, float(message.get("weight", 1)))
        written = tokenizer.decode(answer)
        seen = prompt + written if text.startswith(written) else None
    if any(weights):
        yield example(tokens, weights)


def _turn(tokenizer: Tokenizer, history: list[dict[str, Any]], message: dict[str, Any],
          tools: list[dict[str, Any]] | None) -> tuple[str, str]:
    """(prompt, answer): what the model is given after `history`, and what the template makes of its message."""
    prompt = tokenizer.render(history, tools, add_generation_prompt=True)
    whole = tokenizer.render([*history, message], tools)
    if whole.startswith(prompt):
        return prompt, whole[len(prompt) :]
    # The template writes history differently once it is answered: find where it puts the answer.
    marked = tokenizer.render([*history, {"role": "assistant", "content": _UNWRITTEN}], tools)
    before, mark, _ = marked.rpartition(_UNWRITTEN)
    if not mark or not whole.startswith(before):
        what = "the model's chat template rewrites the conversation so that the answer cannot be found in it"
        raise DataError(what, "use rows of text that are written out as the model needs them")
    space = before[len(before.rstrip()) :]
    given = prompt.startswith(before) or prompt.endswith(space)
    return prompt, whole[len(before) :] if given else space + whole[len(before) :]


def _answer(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens that a model should generate: up to the first that ends generation, or all."""
    ids = tokenizer.encode(text, continues=True)
    return next((ids[: k + 1] for k, token in enumerate(ids) if tokenizer.is_end(token)), ids)


def _ended(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    if tokenizer.eos is None or (ids and tokenizer.is_end(ids[-1])):
        return ids
    return [*ids, tokenizer.eos]


# ---- what rows must look like ----------------------------------------------------------------------------------------


def _pair(row: Mapping[str, Any], system: Instruction) -> tuple[str, str]:
    completion = row_text(row, "completion")
    return flat_prompt(row_text(row, "prompt"), completion, system), completion


def _read(tokenizer: Tokenizer, row: Mapping[str, Any], shape: str,
          system: Instruction) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """(messages, tools), without thoughts where they are to be left out."""
    messages, tools = _conversation(row, shape, system)
    if tokenizer.thoughts == DROP:
        messages = [without_thoughts(message) if message["role"] == "assistant" else message for message in messages]
    return messages, tools


def _conversation(row: Mapping[str, Any], shape: str,
                  system: Instruction) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """(messages, tools) with the instruction around them."""
    tools = row.get("tools")
    if shape == "prompt":
        messages = as_messages(row_text(row, "prompt"), row_text(row, "completion"))
    else:
        messages = row["messages"]
        check_messages(messages)
        if all(message["role"] != "assistant" for message in messages):
            raise DataError("no message is the assistant's", "add the answer to learn")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise DataError(f"tools is a JSON {json_type(tools)}", "write a list of objects")
    messages = instructed(messages, system)
    if messages[0]["role"] == "assistant":
        raise DataError("the conversation begins with an assistant message", "put a user message before it")
    return messages, tools


def common_system(rows: Iterable[Row]) -> str:
    """The system message that all rows have, but for plain text; "" where they differ or one has none."""
    found = set()
    for row in rows:
        if isinstance(row, str) or "text" in row:
            continue
        asked = row.get("messages", row.get("prompt"))
        messages = [message for message in asked if isinstance(message, Mapping)] if isinstance(asked, list) else []
        content = next((message.get("content") for message in messages if message.get("role") == "system"), "")
        found.add(content if isinstance(content, str) else "")
    return found.pop() if len(found) == 1 else ""


def as_messages(prompt: str, completion: str) -> list[dict[str, Any]]:
    """A prompt and its completion as a conversation of one turn."""
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]


def answered_messages(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages of a row with a question and an answer, up to its last answer."""
    if "messages" not in row:
        return as_messages(str(row["prompt"]), str(row["completion"]).strip())
    messages = [dict(message) for message in row["messages"]]
    return messages[:last_answer(messages) + 1]


def last_answer(messages: Sequence[Mapping[str, Any]]) -> int:
    """The index of the last message of an assistant, of which there is one."""
    return max(i for i, message in enumerate(messages) if message["role"] == "assistant")


def check_messages(messages: Any, key: str = "messages") -> None:
    """Raises DataError for what is no list of messages. key: its name in the row."""
    if not isinstance(messages, list) or not messages:
        what = "is empty" if messages == [] else f"is a JSON {json_type(messages)}"
        raise DataError(f"{key} {what}", "write a list of objects with role and content")
    for i, message in enumerate(messages):
        check_message(f"{key}[{i}]", message)


def check_message(name: str, message: Any) -> None:
    """Raises DataError, which calls it `name`, for what is no message of a conversation."""
    if not isinstance(message, dict):
        raise DataError(f"{name} is a JSON {json_type(message)}", "write an object with role and content")
    role = message.get("role")
    content = message.get("content")
    if role not in ROLES:
        raise DataError(f"{name} has the role {role!r}", f"use one of {', '.join(ROLES)}")
    calls = role == "assistant" and message.get("tool_calls")
    if not isinstance(content, (str, list)) and not (content is None and calls):
        raise DataError(f"{name} has content of JSON type {json_type(content)}", "write text")
    if message.get("weight", 1) not in (0, 1):
        raise DataError(f"{name} has the weight {message['weight']!r}", "use 0 or 1")


def row_text(row: Mapping[str, Any], key: str) -> str:
    """The text under a key. Raises DataError."""
    if not isinstance(row[key], str):
        raise DataError(f"{key} is a JSON {json_type(row[key])}", "write text")
    return str(row[key])


def keys_of(row: Row) -> str:
    """The keys of a row that is none of the expected, for an error."""
    return ", ".join(map(str, list(row)[:8])) or "none"


def json_type(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
