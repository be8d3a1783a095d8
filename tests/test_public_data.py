"""Public data sets are brought whole, checked by digests, from a server on this machine."""

import json
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace

import pytest
from lab import public_data
from lab.public_data import DataSet, bring, digest
from local_http import Quiet, served_by

SOURCE = b"question one\nquestion two\n"


def upper(sources):
    return {"rows.txt": b"".join(sources).upper()}


ONE = DataSet("owner/name", "c" * 40, "MIT", {"data/a.txt": digest(SOURCE)}, upper, ["rows.txt"],
              digest(SOURCE.upper()))


@contextmanager
def serving(files):
    """A server of files by path; yields its address and the paths that were read."""
    read = []

    class Handler(Quiet):
        def do_GET(self):
            read.append(self.path)
            self.send_response(200 if self.path in files else 404)
            self.end_headers()
            self.wfile.write(files.get(self.path, b""))

    with served_by(Handler) as url:
        yield url, read


def test_a_data_set_is_brought_once(tmp_path):
    path = f"/owner/name/{'c' * 40}/data/a.txt"
    with serving({path: SOURCE}) as (host, read):
        assert bring(ONE, tmp_path / "new", host)
        assert not bring(ONE, tmp_path / "new", host)
        (tmp_path / "new" / "rows.txt").write_bytes(b"damaged")
        assert bring(ONE, tmp_path / "new", host)
    assert read == [path, path]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["rows.txt"]
    assert (tmp_path / "new" / "rows.txt").read_bytes() == SOURCE.upper()


@pytest.mark.parametrize(("one", "served", "said"), [
    (ONE, {}, r"^http://\S+ cannot be read \([^()]+\); check the network, or name a mirror with --host$"),
    (ONE, {f"/owner/name/{'c' * 40}/data/a.txt": SOURCE + b" "}, "not used"),
    (replace(ONE, made=digest(b"")), {f"/owner/name/{'c' * 40}/data/a.txt": SOURCE}, "another SHA-256"),
], ids=["absent", "changed", "converted otherwise"])
def test_what_has_another_digest_is_refused(one, served, said, tmp_path):
    with serving(served) as (host, _), pytest.raises(ValueError, match=said):
        bring(one, tmp_path / "new", host)
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with serving({f"/owner/name/{'c' * 40}/data/a.txt": SOURCE}) as (host, _), \
            pytest.raises(ValueError, match=r"file cannot be written \(File exists\); name another with --folder$"):
        bring(ONE, tmp_path / "file", host)


def test_rows_of_snips():
    parts = [{"text": "play  "}, {"text": "a", "entity": "track"}, {"text": " or "}, {"text": " b", "entity": "track"}]
    source = json.dumps({"PlayMusic": [{"data": parts}] * 301}).encode()
    made = public_data.snips([source])
    rows = {name: [json.loads(line) for line in data.splitlines()] for name, data in made.items()}
    assert {name: len(found) for name, found in rows.items()} == {"snips_train.jsonl": 1, "snips_dev.jsonl": 300}
    row, = rows["snips_train.jsonl"]
    assert row["prompt"] == "play a or b"
    assert json.loads(row["completion"]) == {"intent": "PlayMusic", "slots": {"track": ["a", "b"]}}


def test_rows_of_intents():
    """Three labelled rows, 15 prompts and 15 unseen rows of each intent, no text in two of them."""
    train = [(f"{i} of {label}", label) for label in "xy" for i in range(30)]
    test = [(f"{i} of {label}, other", label) for label in "xy" for i in range(20)]
    made = public_data.of_intents("set", train, test)
    assert set(made) == set(public_data.files_of_intents("set"))
    rows = {part: [json.loads(line) for line in made[f"set_{part}_10.jsonl"].splitlines()]
            for part in public_data.PER_INTENT}
    assert {part: Counter(row["completion"] for row in found) for part, found in rows.items()} == {
        "labelled": {"x": 3, "y": 3}, "prompts": {"x": 15, "y": 15}, "unseen": {"x": 15, "y": 15}}
    assert len({row["prompt"] for found in rows.values() for row in found}) == 66
    assert made["set_labelled_10.jsonl"] != made["set_labelled_11.jsonl"]


def test_the_files_are_those_that_results_were_measured_with(shared_data):
    for one in public_data.SETS.values():
        paths = [shared_data / name for name in one.files]
        if all(path.exists() for path in paths):
            assert digest(b"".join(path.read_bytes() for path in paths)) == one.made
