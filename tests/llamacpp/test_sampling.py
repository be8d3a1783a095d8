"""Text made of tokens: it does not depend on where they cut it, and comes as soon as it is certain."""

from itertools import pairwise

from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from edgetune.llamacpp.sampling import TextStream


def split(data, cuts):
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(places)]


@examples(100)
@given(st.text("abä€😀", max_size=20), st.lists(st.text("abä😀", min_size=1, max_size=3), max_size=3),
       st.lists(st.integers(0, 100), max_size=20))
def test_text_does_not_depend_on_where_tokens_cut(text, stop, cuts):
    stream = TextStream(stop)
    pieces = [stream.push(part) for part in split(text.encode(), cuts)]
    pieces.append(stream.flush())
    ends = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    assert "".join(pieces) == (text[: min(ends)[1]] if ends else text)
    assert stream.stopped == bool(ends)
    assert stream.push(b"x") + stream.flush() == ("" if ends else "x")


def test_text_comes_as_soon_as_it_is_certain():
    stream = TextStream(["end"])
    parts = (b"b", b"e", b"e\xe2", b"\x82", b"\xacn", b"en", b"x\xff", b"\xf0")
    assert [stream.push(part) for part in parts] == ["b", "", "e", "", "e€n", "", "enx\ufffd", ""]
    assert stream.flush() == "\ufffd"
