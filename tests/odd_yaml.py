"""Texts in YAML that people do not write: each is small, and does harm to whoever reads it without bounds."""

from itertools import pairwise

NAMES = "abcdefghi"  # of the anchors, one for each level


def bomb(first: str, line: str) -> str:
    """Lists of nine aliases of one another: 9 ** 9 texts. first, line: the lines, with `{value}`."""
    lines = [first.format(value=f"&{NAMES[0]} [{','.join(['x' * 10] * 9)}]")]
    lines += [line.format(value=f"&{here} [{','.join([f'*{before}'] * 9)}]") for before, here in pairwise(NAMES)]
    return "\n".join(lines) + "\n"


VALUES = {
    "anchor": "&a 1", "alias": "*a", "tag": "!!python/object/apply:os.getcwd []", "own tag": "!secret x",
    "brackets": "[" * 3000, "closed brackets": "[" * 3000 + "]" * 3000, "braces": "{a: " * 3000,
    "dashes": "- " * 3000, "digits": "9" * 5000, "hexadecimal digits": "0x" + "f" * 5000,
    "sixtieths": "1" + ":59" * 3000, "sixtieths with a point": "1" + ":59" * 3000 + ".5",
    "half a pair": '"\\ud800"', "no character": '"\\Uffffffff"', "list as a key": "{[a, b]: c}",
    "mapping as a key": "{{a: b}: c}", "key twice": "{a: 1, a: 2}", "not closed": "[a", "control": "\x01",
}
"""Values that cannot be read. A bomb is not among them, as it has several lines."""
