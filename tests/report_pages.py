"""Pages of reports, read back: what they are made of, what they say, and the values that their charts draw."""

import re
import xml.etree.ElementTree as ET
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser

import numpy as np

VOID = {"meta", "path", "line", "circle"}


class Tags(HTMLParser):
    """Elements of a page in order, with what they are in; an end that does not fit is an error."""

    def __init__(self):
        super().__init__()
        self.open = []
        self.found = []
        self.text = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in VOID
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text.append(data)


def parsed(path):
    """The page, checked: well-formed as HTML and as XML, of known elements, without script or anything from outside."""
    page = path.read_text("utf-8")
    assert len(page) < 200_000
    tags = Tags()
    tags.feed(page)
    tags.close()
    assert tags.open == []
    names = {tag for tag, _ in tags.found}
    assert names <= {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "b", "small", "dl", "div", "dt",
                     "dd", "figure", "figcaption", "ul", "li", "table", "tr", "th", "td", "details", "summary", "svg",
                     "g", "path", "line", "circle", "text"}
    attributes = {name for _, given in tags.found for name in given}
    assert not attributes & {"src", "href", "style", "srcset", "action"}
    assert not [name for name in attributes if name.startswith("on")]
    policy = next(given["content"] for tag, given in tags.found if given.get("http-equiv"))
    style = re.search("<style>(.*?)</style>", page, re.S)[1]
    assert f"style-src 'sha256-{b64encode(sha256(style.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none';")
    assert "url(" not in style
    assert "@import" not in style
    return ET.fromstring(page.removeprefix("<!doctype html>\n")), "".join(tags.text)


def figures(root):
    return {found.find("figcaption").text: found for found in root.iter("figure")}


def read_back(found, number=0):
    """Points of a chart's line, by inverting the scales that its ticks give."""
    root = found.find("svg")
    ticks = {"x": [], "y": []}
    for label in root.iter("text"):
        if label.get("class") in ticks:
            at = float(label.get(label.get("class"))) - (4 if label.get("class") == "y" else 0)
            ticks[label.get("class")].append((at, float(label.text.replace(",", ""))))
    invert = {axis: np.polyfit(*zip(*known, strict=True), 1) for axis, known in ticks.items()}
    line = [group for group in root.iter("g") if group.get("class", "").startswith("line")][number]
    places = [tuple(map(float, pair.split())) for pair in re.split("[ML]", line.find("path").get("d"))[1:]]
    return [(float(np.polyval(invert["x"], x)), float(np.polyval(invert["y"], y))) for x, y in places]


def assert_drawn(found, number, wanted):
    points = read_back(found, number)
    assert len(points) == len(wanted)
    span = max(abs(y) for _, y in wanted)
    for (x, y), (wanted_x, wanted_y) in zip(points, wanted, strict=True):
        assert abs(x - wanted_x) < 0.02 * max(1, len(wanted) / 10)
        assert abs(y - wanted_y) < 2e-3 * span
