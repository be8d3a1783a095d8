"""What was written as JSON comes back as its dataclass, or says in a sentence why it cannot."""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pytest
from durable import go, refused

from edgetune.errors import FormatError
from edgetune.persisted import from_json
from edgetune.training import checkpoint
from edgetune.training.config import TrainConfig


@dataclass(frozen=True)
class Run:
    steps: int
    rate: float
    name: str | None
    kind: Literal["a", "b"] = "a"
    notes: dict[str, Any] = field(default_factory=dict)
    passes: int = field(default=1, metadata={"was": ("epochs", "rounds")})
    sure: bool = False


def test_what_was_written_comes_back():
    run = Run(3, 0.5, None, "b", {"x": [1]}, 2, True)
    assert from_json(Run, json.loads(json.dumps(asdict(run))), "run.json") == run
    config = TrainConfig(rank=2, lr=1e-3, memory="100M")
    assert from_json(TrainConfig, json.loads(json.dumps(config.to_json())), "run.json") == config


def test_defaults_and_earlier_names():
    least = {"steps": 3, "rate": 1, "name": "x"}
    assert from_json(Run, least, "run.json") == Run(3, 1, "x")
    for earlier in ("epochs", "rounds", "passes"):
        assert from_json(Run, {**least, earlier: 4}, "run.json").passes == 4


@dataclass(frozen=True)
class Base:
    name: str
    sizes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    answered: list[int] = field(default_factory=list)
    rings: tuple[str, ...] = ()
    span: tuple[int, float] = (0, 0.0)
    base: Base | None = None
    bases: list[Base] = field(default_factory=list)
    words: list[Literal["a", 1]] = field(default_factory=list)
    deep: dict[str, list[int | None]] | None = None
    kept: list[int] | str = ""


@pytest.mark.parametrize(("kind", "found", "match"), [
    (Run, {"colour": "red"}, "a.json has the field 'colour', which this edgetune does not know; use the edgetune that"),
    (Run, {"steps": "3"}, 'a.json: steps is "3", a whole number is expected'),
    (Run, {"steps": True}, "a.json: steps is true, a whole number is expected"),
    (Run, {"sure": 1}, "a.json: sure is 1, true or false is expected"),
    (Run, {"rate": None}, "a.json: rate is null, a number is expected"),
    (Run, {"name": 3}, "a.json: name is 3, text or null is expected"),
    (Run, {"kind": "c"}, 'a.json: kind is "c", "a" or "b" is expected'),
    (Run, {"rounds": "x"}, 'a.json: rounds is "x", a whole number is expected'),
    (Run, {"notes": []}, "a.json: notes is a list, an object is expected"),
    (Request, {"answered": ["a", 1]}, 'a.json: answered[0] is "a", a whole number is expected'),
    (Request, {"answered": [1, 2, True]}, "a.json: answered[2] is true, a whole number is expected"),
    (Request, {"answered": [1, [2]]}, "a.json: answered[1] is a list, a whole number is expected"),
    (Request, {"rings": ["all", 3]}, "a.json: rings[1] is 3, text is expected"),
    (Request, {"rings": "all"}, 'a.json: rings is "all", a list is expected'),
    (Request, {"span": [1]}, "a.json: span is a list, a list of 2 items is expected"),
    (Request, {"span": [1, "x"]}, 'a.json: span[1] is "x", a number is expected'),
    (Request, {"base": {"name": 3}}, "base in a.json: name is 3, text is expected"),
    (Request, {"base": {"name": "x", "sizes": {"of a": "1"}}},
     'base in a.json: sizes["of a"] is "1", a whole number is expected'),
    (Request, {"base": [3]}, "a.json: base is a list, an object or null is expected"),
    (Request, {"base": {}}, "base in a.json lacks the field 'name'"),
    (Request, {"bases": [{"name": "a"}, {"name": "b", "sizes": []}]}, "bases[1] in a.json: sizes is a list, an object"),
    (Request, {"bases": [{"name": "a", "b": 1}]}, "bases[0] in a.json has the field 'b', which this edgetune does not"),
    (Request, {"words": ["a", 1.0]}, 'a.json: words[1] is 1.0, "a" or 1 is expected'),
    (Request, {"words": ["a", True]}, 'a.json: words[1] is true, "a" or 1 is expected'),
    (Request, {"deep": {"x": [1, None, "y"]}}, 'a.json: deep["x"][2] is "y", a whole number or null is expected'),
    (Request, {"deep": {"x": 1}}, 'a.json: deep["x"] is 1, a list is expected'),
    (Request, {"kept": [1, "x"]}, 'a.json: kept[1] is "x", a whole number is expected'),
    (Request, {"kept": None}, "a.json: kept is null, a list or text is expected"),
])
def test_items_are_checked_to_any_depth_and_the_place_is_named(kind, found, match):
    least = {"steps": 3, "rate": 1.0, "name": None} if kind is Run else {}
    with pytest.raises(FormatError) as caught:
        from_json(kind, {**least, **found}, "a.json")
    assert match in str(caught.value)
    assert "\n" not in str(caught.value)


def test_items_come_back_as_their_types():
    request = Request([1, 2], ("1", "all"), (1, 0.5), Base("x", {"a": 1}), [Base("y")], ["a", 1], {"x": [1, None]}, [3])
    assert from_json(Request, json.loads(json.dumps(asdict(request))), "request.json") == request
    assert from_json(Request, {"kept": "all", "base": None}, "request.json") == Request(kept="all")


@pytest.mark.parametrize("family", ["gone", "peft", "../full", 5])
def test_an_unknown_family_is_told_in_a_sentence(family):
    written = {**TrainConfig().to_json(), "family": family}
    with pytest.raises(FormatError, match=f"run.json has the adapter family '{family}', which this edgetune does not"):
        from_json(TrainConfig, written, "run.json")


def test_what_is_missing_or_no_object():
    with pytest.raises(FormatError, match=r"run\.json lacks the field 'rate'"):
        from_json(Run, {"steps": 3, "name": None}, "run.json")
    with pytest.raises(FormatError, match=r"run.json is \[1\], no JSON object"):
        from_json(Run, [1], "run.json")


def rewrite(path, change):
    """Change what a checkpoint says of its run, with a checksum that is right."""
    head, _, rest = path.read_bytes()[:-32].partition(b"\n")
    said = json.loads(head)
    change(said["meta"])
    content = json.dumps(said).encode() + b"\n" + rest
    path.write_bytes(content + hashlib.sha256(content).digest())


@pytest.mark.parametrize("part", ["plan", "state"])
def test_a_run_of_another_edgetune_is_refused_by_the_field(paused, bundle, part):
    for path in checkpoint.found(paused):
        rewrite(path, lambda meta: meta[part].update(colour="red"))
    said = refused(bundle, paused, f"the {part} in .*checkpoint-5 has the field 'colour'", resume=True)
    assert said.endswith("use the edgetune that wrote it")
    assert len(checkpoint.found(paused)) == 2


def test_a_run_of_an_earlier_edgetune_resumes_with_defaults(paused, bundle, wanted):
    for path in checkpoint.found(paused):
        rewrite(path, lambda meta: (meta["plan"].pop("optimizer_state"), meta["state"].pop("changed")))
    assert go(bundle, paused, resume=True) == wanted


@pytest.mark.parametrize("held", ["many", 3, [], {"loss_before": "x"}, None, {}])
def test_an_adapter_whose_record_says_something_else_is_described(finished, tmp_path, held):
    from commands import run as command
    shutil.copytree(finished, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**record, "held_out": held}))
    assert json.loads(command("models", "info", tmp_path / "run", "--json"))["kind"] == "adapter"
