"""The part of Go's text/template that Modelfiles use, and the values that Ollama gives it.

It was compared with Ollama's own `template` package (fb3076099, Go 1.24) on all that test_ollama.py fills.
"""

import json
import re
from functools import partial

TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[()]|:=|=|,|[^\s()",]+')
OPENING = ("if", "range", "with", "define")


class Struct(dict):
    """A struct: true, whatever is in it; a field that it lacks is an error."""

    def __bool__(self):
        return True


def execute(text, values):
    """What a template writes of these values."""
    pieces = re.split(r"\{\{ (.*?) \}\}", text)
    tokens = [(TOKEN.findall(piece) if i % 2 else piece) for i, piece in enumerate(pieces)]
    body, end = parse(tokens, 0)
    assert end == len(tokens)
    defined = {json.loads(node[1][1]): node[2] for node in body if node[0] == "define"}
    return "".join(run(body, values, [{"$": values}], defined))


def parse(tokens, place):
    """(nodes, place) up to an `else` or `end` that is not theirs. A node is text, a command, or a block."""
    nodes = []
    while place < len(tokens):
        token = tokens[place]
        if isinstance(token, str):
            nodes.append(("text", token))
        elif token[0] in ("else", "end"):
            break
        elif token[0] in OPENING:
            node, place = block(token, tokens, place + 1)
            nodes.append(node)
        else:
            nodes.append(("command", token))
        place += 1
    return nodes, place


def block(head, tokens, place):
    body, place = parse(tokens, place)
    otherwise = []
    if tokens[place][:2] == ["else", "if"]:
        node, place = block(tokens[place][1:], tokens, place + 1)
        return (head[0], head, body, [node]), place  # one `end` closes both
    if tokens[place] == ["else"]:
        otherwise, place = parse(tokens, place + 1)
    assert tokens[place] == ["end"]
    return (head[0], head, body, otherwise), place


def run(nodes, dot, scopes, defined):
    again = partial(run, defined=defined)
    for kind, head, *bodies in nodes:
        if kind == "text":
            yield head
        elif kind == "command":
            yield from command(head, dot, scopes, defined)
        elif kind == "range":
            names, wanted = (head[1:head.index(":=")], head[head.index(":=") + 1:]) if ":=" in head else ([], head[1:])
            found = value(wanted, dot, scopes)
            items = sorted(found.items()) if isinstance(found, dict) else list(enumerate(found or []))
            for key, item in items:
                inner = dict(zip([name for name in names if name != ","], (key, item), strict=False))
                yield from again(bodies[0], item, [*scopes, inner])
            if not items:
                yield from again(bodies[1], dot, [*scopes, {}])
        elif kind in ("if", "with"):
            found = value(head[1:], dot, scopes)
            inner = found if kind == "with" and truth(found) else dot
            yield from again(bodies[0] if truth(found) else bodies[1], inner, [*scopes, {}])


def command(words, dot, scopes, defined):
    """An action: what it writes."""
    if words[1:2] == [":="]:
        scopes[-1][words[0]] = value(words[2:], dot, scopes)
    elif words[1:2] == ["="]:
        next(scope for scope in reversed(scopes) if words[0] in scope)[words[0]] = value(words[2:], dot, scopes)
    elif words[0] == "template":
        given = value(words[2:], dot, scopes)
        yield from run(defined[json.loads(words[1])], given, [{"$": given}], defined)
    else:
        yield str(value(words, dot, scopes))


def value(words, dot, scopes):
    """A function of its arguments, or one operand."""
    operands = []
    words = iter(words)
    for word in words:
        if word == "(":
            depth, inner = 1, []
            for each in words:
                depth += (each == "(") - (each == ")")
                if not depth:
                    break
                inner.append(each)
            operands.append(value(inner, dot, scopes))
        elif not operands and word in FUNCTIONS:
            operands.append(FUNCTIONS[word])
        else:
            operands.append(operand(word, dot, scopes))
    return operands[0](*operands[1:]) if callable(operands[0]) else operands[0]


def operand(word, dot, scopes):
    if word[0] == '"':
        return json.loads(word)
    if word.isdigit():
        return int(word)
    if word in ("true", "false"):
        return word == "true"
    name, *fields = word.split(".")
    found = next(scope[name] for scope in reversed(scopes) if name in scope) if name else dot
    for field in filter(None, fields):
        found = found[field]
    return found


def truth(found):
    return bool(found)


def go_json(found):
    """As json.Marshal: sorted, no spaces, HTML's letters escaped."""
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return re.sub("[<>&]", lambda letter: f"\\u{ord(letter[0]):04x}", text)


def type_of(found):
    return {str: "string", dict: "map[string]interface {}", list: "[]interface {}", float: "float64", bool: "bool",
            int: "float64", type(None): "<nil>"}[type(found)]


def printf(form, found):
    return {"%T": type_of, "%q": partial(json.dumps, ensure_ascii=False)}[form](found)


FUNCTIONS = {
    "eq": lambda first, *others: any(first == other for other in others), "ne": lambda a, b: a != b,
    "not": lambda found: not truth(found), "len": len, "json": go_json, "printf": printf,
    "and": lambda *given: next((each for each in given if not truth(each)), given[-1]),
    "or": lambda *given: next((each for each in given if truth(each)), given[-1]),
    "index": lambda found, *keys: found[keys[0]] if len(keys) == 1 else found[keys[0]][keys[1]],
    "slice": lambda found, begin: found[begin:]}


# ---- what Ollama gives -----------------------------------------------------------------------------------------------


def ollama_values(messages, tools=()):
    """The values of Ollama's template of a chat request: of tools what its API knows."""
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    return Struct(System=system, Tools=list(map(tool_of, tools)), Messages=[
        Struct(Role=message["role"], Content=message.get("content") or "", ToolCalls=[
            Struct(Function=Struct(Name=call["function"]["name"], Arguments=call["function"]["arguments"]))
            for call in message.get("tool_calls", ())]) for message in messages])


def tool_of(tool):
    function = tool["function"]
    given = function.get("parameters", {})
    properties = given.get("properties")
    parameters = Struct(Type=given.get("type", ""), Required=given.get("required"), Properties=properties and {
        key: property_of(each) for key, each in properties.items()})
    if properties == {}:
        parameters["Properties"] = {}
    return Struct(Type=tool["type"], Function=Struct(Name=function["name"], Parameters=parameters,
                                                     Description=function.get("description", "")))


def property_of(schema):
    kinds = schema.get("type", [])
    return Struct(AnyOf=list(map(property_of, schema.get("anyOf", []))), Items=schema.get("items"),
                  Type=[kinds] if isinstance(kinds, str) else kinds, Description=schema.get("description", ""),
                  Enum=schema.get("enum", []))
