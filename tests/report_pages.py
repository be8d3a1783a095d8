"""Folders of runs that were never trained, and pages of reports read back: what they say, what their charts draw."""

import json
import re
import xml.etree.ElementTree as ET
from base64 import b64encode
from hashlib import sha256

import numpy as np


def parsed(path):
    """The page, checked: well-formed as HTML and as XML, of known elements, without script or anything from outside."""
    page = path.read_text("utf-8")
    assert len(page) < 200_000
    assert not re.search(r"<(?!meta|path|line|circle)[^<>]*/>", page)  # HTML would not end another element there
    root = ET.fromstring(page.removeprefix("<!doctype html>\n"))
    assert {part.tag for part in root.iter()} <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "b", "small", "dl", "div", "dt", "dd",
        "figure", "figcaption", "ul", "li", "table", "tr", "th", "td", "details", "summary", "svg", "g", "path", "line",
        "circle", "text"}
    attributes = {name for part in root.iter() for name in part.attrib}
    assert not attributes & {"src", "href", "style", "srcset", "action"}
    assert not [name for name in attributes if name.startswith("on")]
    policy = next(part.get("content") for part in root.iter("meta") if part.get("http-equiv"))
    style = root.find("head/style").text
    assert f"style-src 'sha256-{b64encode(sha256(style.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none';")
    assert "url(" not in style
    assert "@import" not in style
    return root, "".join(root.itertext()).replace(style, "", 1)


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


# ---- folders of runs that were never trained -------------------------------------------------------------------------


def step(number, **changes):
    line = {"event": "step", "step": number, "loss": 1 / number, "lr": 1e-3, "grad_norm": 0.5, "tokens": 10,
            "supervised": 5, "tokens_per_s": 20.0, "seconds": 0.5, "rss_mib": 64.0}
    return {**line, **changes}


def measured(number, loss):
    return {"event": "eval", "step": number, "loss": loss, "tokens": 3, "best": None}


def write(folder, *lines, **run):
    """The folder, with these lines of metrics.jsonl, as text or JSON, and where fields are given run.json."""
    folder.mkdir(exist_ok=True, parents=True)
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "metrics.jsonl").write_text("".join(f"{text}\n" for text in texts))
    if run:
        (folder / "run.json").write_text(json.dumps(run))
    return folder
