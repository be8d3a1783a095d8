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


@pytest.mark.parametrize(("found", "match"), [
    ({"colour": "red"}, "run.json has the field 'colour', which this edgetune does not know; use the edgetune that"),
    ({"steps": "3"}, "steps in run.json is '3', not of type int"),
    ({"steps": True}, "steps in run.json is True, not of type int"),
    ({"sure": 1}, "sure in run.json is 1, not of type bool"),
    ({"rate": None}, "rate in run.json is None, not of type float"),
    ({"name": 3}, "name in run.json is 3, not of type str or null"),
    ({"kind": "c"}, "kind in run.json is 'c', not of type 'a' or 'b'"),
    ({"rounds": "x"}, "rounds in run.json is 'x', not of type int"),
    ({"notes": []}, r"notes in run.json is \[\], not of type dict"),
])
def test_what_does_not_fit_is_told_in_a_sentence(found, match):
    with pytest.raises(FormatError, match=match) as caught:
        from_json(Run, {"steps": 3, "rate": 1.0, "name": None, **found}, "run.json")
    assert "\n" not in str(caught.value)


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
    assert json.loads(command("info", tmp_path / "run", "--json"))["kind"] == "adapter"
