"""Random JSON schemas of what grammars can hold to, answers under them by a model that says anything, and whether a
grammar lets a text through.
"""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from edgetune.llamacpp import library
from edgetune.llamacpp.grammar import Grammar
from edgetune.llamacpp.sampling import Sampler, Sampling
from edgetune.llamacpp.tokenizer import Tokenizer

LONGEST = 3000  # tokens
KEYS = st.text('abü "\\\n/{', min_size=1, max_size=4)
CONSTANTS = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.text('aß"\\\n😀', max_size=4),
                      st.lists(st.integers(0, 3), max_size=2))
PATTERNS = (r"^[a-f0-9]{2,4}$", r"^(ab|c\d)+x?$", r"^\w{1,3}@[^@\"]{1,4}$", r'^"\\"[\s\-\]]{2}$', "^$")
FORMATS = ("date", "time", "date-time", "duration", "uuid", "email", "ipv4", "ipv6", "hostname")


def _numbers() -> st.SearchStrategy[Any]:
    bounds = st.tuples(st.integers(-2000, 2000), st.integers(2, 5000))
    whole = bounds.map(lambda b: {"type": "integer", "minimum": b[0], "exclusiveMaximum": b[0] + b[1]})
    real = bounds.map(lambda b: {"type": "number", "exclusiveMinimum": b[0] / 2, "maximum": b[0] / 2 + b[1]})
    return st.one_of(st.just({"type": "integer"}), st.just({"type": "number"}), whole, real,
                     st.just({"type": "number", "minimum": 0, "maximum": 1}))


def _strings() -> st.SearchStrategy[Any]:
    sizes = st.tuples(st.integers(0, 5), st.integers(0, 20))
    return st.one_of(sizes.map(lambda s: {"type": "string", "minLength": s[0], "maxLength": s[0] + s[1]}),
                     st.sampled_from(PATTERNS).map(lambda p: {"type": "string", "pattern": p}),
                     st.sampled_from(FORMATS).map(lambda f: {"type": "string", "format": f}))


def _inner(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def objects(given: tuple[dict[str, Any], bool, set[str]]) -> dict[str, Any]:
        properties, closed, left_out = given
        return {"type": "object", "properties": properties, "additionalProperties": not closed,
                "required": [key for key in properties if key not in left_out]}

    lists = st.tuples(parts, st.integers(0, 2), st.integers(0, 2)).map(
        lambda g: {"type": "array", "items": g[0], "minItems": g[1], "maxItems": g[1] + g[2]})
    tuples = st.lists(parts, min_size=1, max_size=3).map(
        lambda p: {"type": "array", "prefixItems": p, "items": False, "minItems": len(p)})
    keyed = st.tuples(st.dictionaries(KEYS, parts, max_size=4), st.booleans(), st.sets(KEYS, max_size=2)).map(objects)
    return st.one_of(keyed, keyed, lists, tuples, st.lists(parts, min_size=1, max_size=3).map(lambda p: {"anyOf": p}))


LEAVES = st.one_of(_strings(), _numbers(), st.just({"type": ["boolean", "null"]}),
                   CONSTANTS.map(lambda c: {"const": c}),
                   st.lists(CONSTANTS, min_size=1, max_size=4).map(lambda c: {"enum": c}),
                   st.lists(CONSTANTS, min_size=1, max_size=5).map(
                       lambda c: {"type": "array", "items": {"enum": c}, "uniqueItems": True}))
SCHEMAS = st.recursive(LEAVES, _inner, max_leaves=8)


def say_anything(tokenizer: Tokenizer, grammar: str, seed: int, budget: int = LONGEST,
                 haste: float = 5.0) -> tuple[str, bool]:
    """A text that the grammar lets through, by a model whose logits are noise, and whether it came to its end, the
    budget's last token included. haste: added to the logits of tokens that end an answer.
    """
    rng = np.random.default_rng(seed)
    ends = np.array([tokenizer.is_end(token) for token in range(tokenizer.n_vocab)])
    said = b""
    with Sampler(library.load(), Sampling(temperature=1.0, top_k=0, seed=seed, grammar=grammar), tokenizer,
                 budget=budget) as sampler:
        for _ in range(budget):
            logits = rng.standard_normal(tokenizer.n_vocab).astype(np.float32) * 3
            token = sampler.pick(logits + haste * ends.astype(np.float32))
            if ends[token]:
                return said.decode(), True
            said += tokenizer.piece(token)
    return said.decode(errors="replace"), False


def lets_through(tokenizer: Tokenizer, grammar: str, text: str) -> bool:
    """Whether the grammar can be followed along the text to an end."""
    followed = Grammar(tokenizer, grammar)
    for token in tokenizer.encode(text, special=False):
        if not followed.allows(token):
            return False
        followed.accept(token)
    return followed.allows(tokenizer.eot)
