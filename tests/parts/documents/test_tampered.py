"""An index that somebody changed answers or is refused in a sentence, within memory and time, and is made anew."""

import json
import subprocess
import sys

import pytest
import tampered_indexes
from indexes import needs_retrieval
from tampered_indexes import ATTACKS

NO_INDEX = {"only 0 bytes", "only 50 bytes", "only 99 bytes", "another application", "another version",
            "no file, a pipe", "no file, a device", "no file, a folder"}  # what is none is not replaced by one
REFUSED = [name for name in ATTACKS if name.startswith(("endless", "computed", "a computed", "a trigger", "no chunk"))]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    needs_retrieval()
    folder = tmp_path_factory.mktemp("tampered")
    subprocess.run([sys.executable, tampered_indexes.__file__, folder], check=True)
    return {attack: json.loads(path.read_text()) for number, attack in enumerate(ATTACKS)
            if (path := folder / f"{number}.json").exists()}


@pytest.mark.dev
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_tampered_index_answers_or_is_refused_and_is_made_anew(found, attack):
    assert attack in found, "its process was killed"
    said = found[attack]
    assert "traceback" not in said, said["traceback"]
    assert (said["index"].get("error") is not None) == (attack in NO_INDEX)
    if attack not in NO_INDEX:
        assert (said["index"]["files"], said["index"]["chunks"]) == (2, 4)
        assert said["search after it"] == found["nothing"]["search"]


@pytest.mark.parametrize("attack", REFUSED)
def test_what_never_ends_or_is_not_ours_is_refused(found, attack):
    assert found[attack]["search"]["error"] == "FormatError"
    assert found[attack]["index"]["read"] == 2


def test_an_index_that_nobody_changed_is_current(found):
    assert (found["nothing"]["index"]["read"], found["nothing"]["index"]["unchanged"]) == (0, 2)
