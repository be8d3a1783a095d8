"""The part of Go's text/template that Modelfiles use: texts, fields, `if`, `else`, `range` and `eq`.

It was compared with Ollama's own `template` package (fb3076099, Go 1.24) on all that test_ollama.py fills.
"""

import json
import re


def execute(text, messages):
    """What a template writes of a chat, as Ollama gives it: .System and .Messages with .Role and .Content."""
    pieces = re.split(r"\{\{ (.*?) \}\}", text)
    nodes, end = parse([(piece, i % 2 == 1) for i, piece in enumerate(pieces)], 0)
    assert end == len(pieces)
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    return "".join(run(nodes, {".System": system, ".Messages": [
        {".Role": message["role"], ".Content": message["content"]} for message in messages]}))


def parse(pieces, place):
    """(nodes, place) up to an `else` or `end` that is not theirs. A node is (head, its body, its other body)."""
    nodes = []
    while place < len(pieces):
        head, is_action = pieces[place]
        if not is_action:
            nodes.append((json.dumps(head), [], []))
        elif head.startswith(("else", "end")):
            break
        elif head.startswith(("if ", "range ")):
            node, place = block(head, pieces, place + 1)
            nodes.append(node)
        else:
            nodes.append((head, [], []))
        place += 1
    return nodes, place


def block(head, pieces, place):
    body, place = parse(pieces, place)
    otherwise = []
    if pieces[place][0].startswith("else if "):
        node, place = block(pieces[place][0].removeprefix("else "), pieces, place + 1)
        return (head, body, [node]), place  # one `end` closes both
    if pieces[place][0] == "else":
        otherwise, place = parse(pieces, place + 1)
    assert pieces[place][0] == "end"
    return (head, body, otherwise), place


def run(nodes, dot):
    for head, body, otherwise in nodes:
        if head.startswith("range "):
            for item in dot[head.removeprefix("range ")]:
                yield from run(body, item)
        elif head.startswith("if "):
            yield from run(body if is_true(head.removeprefix("if "), dot) else otherwise, dot)
        else:
            yield value(head, dot)


def is_true(condition, dot):
    equal = re.fullmatch(r'eq (\S+) (\S+)', condition)
    return value(equal[1], dot) == value(equal[2], dot) if equal else bool(value(condition, dot))


def value(operand, dot):
    return json.loads(operand) if operand.startswith('"') else dot[operand]
