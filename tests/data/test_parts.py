"""DATA that is more than one file: several, a folder, Parquet, and data sets of a hub on this machine."""

import hashlib
import io
import json
import sys
from pathlib import Path

import pytest
from commands import run
from hubs import REPO, Hub, serving
from json_lines import write_lines
from tiny import write_tiny

import edgetune
from edgetune.data.dataset import load
from edgetune.data.files import digest_of_files, read_rows
from edgetune.data.parts import absolute
from edgetune.errors import DataError, EdgetuneError, NotFoundError, UsageError
from edgetune.llamacpp.tokenizer import Tokenizer

ROWS = [{"prompt": f"turn on lamp {i}", "completion": f"lamp {i}"} for i in range(12)]
SMALL = {"steps": 2, "rank": 4, "threads": 1, "precision": "exact"}


@pytest.fixture
def parts(tmp_path):
    """all.jsonl, and its halves in a folder."""
    (tmp_path / "parts").mkdir()
    write_lines(tmp_path / "all.jsonl", ROWS)
    write_lines(tmp_path / "parts" / "a.jsonl", ROWS[:5])
    write_lines(tmp_path / "parts" / "b.jsonl", ROWS[5:])
    (tmp_path / "parts" / "README.md").write_text("no rows")
    return tmp_path


def rows_of(name):
    return [row for _, row in read_rows(Path(name))]


@pytest.mark.parametrize("name", ["parts", "parts/a.jsonl,parts/b.jsonl", "./parts/a.jsonl, parts/b.jsonl"])
def test_several_files_are_read_as_one(parts, monkeypatch, name):
    monkeypatch.chdir(parts)
    assert rows_of(name) == ROWS
    assert digest_of_files(Path(name)) == hashlib.sha256((parts / "all.jsonl").read_bytes()).hexdigest()


def test_names_stay_valid_in_another_folder(parts, monkeypatch):
    monkeypatch.chdir(parts)
    names = absolute(Path("parts/a.jsonl,parts/b.jsonl"))
    monkeypatch.chdir("/")
    assert rows_of(names) == ROWS


def test_a_file_may_have_a_comma_in_its_name(parts):
    assert rows_of(write_lines(parts / "a,b.jsonl", ROWS[:2])) == ROWS[:2]


@pytest.mark.slow  # two trainings; what they read is compared above
def test_training_on_parts_is_training_on_the_whole(parts):
    """Also when it is resumed, and from Python; run.json has names that any folder can open."""
    model = write_tiny(parts / "model.gguf", formats="Q8_0")
    files = [parts / "parts" / "a.jsonl", parts / "parts" / "b.jsonl"]
    edgetune.train(model, parts / "all.jsonl", parts / "one", eval="none", answers=False, **SMALL)
    edgetune.train(model, files, parts / "two", eval="none", answers=False, **SMALL)
    edgetune.train(model, parts / "parts", parts / "three", eval="none", answers=False, **SMALL)
    one, two, three = ((parts / name / "adapter.gguf").read_bytes() for name in ("one", "two", "three"))
    assert one == two == three
    record = json.loads((parts / "two" / "run.json").read_text())
    assert record["origin"]["data"] == ",".join(map(str, files))
    assert record["data"]["digest"] == json.loads((parts / "one" / "run.json").read_text())["data"]["digest"]
    assert edgetune.resume(parts / "two", more=1, answers=False).steps > 2


def test_a_row_is_named_by_its_file_and_line(parts, tiny_llama):
    (parts / "parts" / "b.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": 1, "completion": "c"}\n')
    with pytest.raises(DataError, match=r"line 2 of .*b\.jsonl: prompt"):
        load(parts / "parts", Tokenizer(tiny_llama), max_length=64)
    said = " ".join(run("data", "check", parts / "parts", code=1).split())
    assert f"{parts / 'parts' / 'b.jsonl'}:2)" in said


def test_what_cannot_be_meant_is_refused(parts):
    write_lines(parts / "parts" / "test.jsonl", ROWS[:2])
    with pytest.raises(DataError, match=r"a\.jsonl, b\.jsonl, test\.jsonl.*--eval .*test\.jsonl"):
        rows_of(parts / "parts")
    (parts / "empty").mkdir()
    with pytest.raises(DataError, match="no files of rows"):
        rows_of(parts / "empty")
    with pytest.raises(DataError, match="standard input"):
        rows_of("-,all.jsonl")
    with pytest.raises(DataError, match=r"there is no file .*none\.jsonl"):
        rows_of(f"{parts}/all.jsonl,{parts}/none.jsonl")


# ---- Parquet ---------------------------------------------------------------------------------------------------------


def parquet_of(rows):
    """The bytes of a file that pyarrow writes."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


CHATS = [{"messages": [{"role": "user", "content": f"hi {i}"}, {"role": "assistant", "content": f"ho {i}"}]}
         for i in range(600)]


@pytest.mark.parametrize("rows", [ROWS, CHATS])
def test_parquet_is_what_was_written(tmp_path, rows):
    path = tmp_path / "rows.parquet"
    path.write_bytes(parquet_of(rows))
    found = list(read_rows(path))
    assert [row for _, row in found] == rows
    assert [line for line, _ in found[:3]] == [1, 2, 3]
    assert digest_of_files(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_values_that_json_does_not_have_are_left_out(tmp_path):
    from datetime import datetime
    path = tmp_path / "rows.parquet"
    path.write_bytes(parquet_of([{"prompt": "a", "completion": "b", "image": b"\x89PNG", "at": datetime(2026, 1, 2),
                                  "score": 0.5, "tools": None}]))
    assert rows_of(path) == [{"prompt": "a", "completion": "b", "score": 0.5}]


def test_broken_parquet_is_refused(tmp_path):
    path = tmp_path / "rows.parquet"
    path.write_bytes(parquet_of(ROWS)[:-9])
    with pytest.raises(DataError, match=r"rows\.parquet cannot be read as Parquet"):
        rows_of(path)


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"rows\.parquet .*install the extra rows"):
        rows_of(path)


# ---- the hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Of a data set with the configuration `default`, two splits, and files whose bytes are their names."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names = ["default/train/0000.parquet", "default/train/0001.parquet", "default/test/0000.parquet"]
    with serving(Hub({".gitattributes": b"", **{name: name.encode() for name in names}})) as made:
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        yield made


def files_of(name):
    from edgetune.data.parts import parts_of
    return [path.read_bytes().decode() for path in parts_of(Path(name))]


def test_a_data_set_of_the_hub_is_downloaded_once(hub):
    both = ["default/train/0000.parquet", "default/train/0001.parquet"]
    assert files_of(f"hf:{REPO}") == both
    gets = len(hub.gets)
    assert files_of(f"hf:{REPO}:train") == both
    assert len(hub.gets) == gets
    assert files_of(f"hf:{REPO}:default/test") == ["default/test/0000.parquet"]
    hub.refusal = (404, "RepoNotFound")
    assert files_of(f"hf:{REPO}") == both  # of the cache, without the hub


def test_its_rows_are_read(hub):
    content = parquet_of(ROWS)
    hub.files = {"default/train/0000.parquet": content}
    assert rows_of(f"hf:{REPO}") == ROWS


def test_a_split_that_is_not_there_and_names_that_are_none(hub):
    with pytest.raises(DataError, match=f"no split valid; name one: hf:{REPO}:default/train"):
        files_of(f"hf:{REPO}:valid")
    hub.files = {"en/train/0.parquet": b"en", "de/train/0.parquet": b"de"}
    with pytest.raises(DataError, match=f"2 splits of that name; name one: hf:{REPO}:en/train, hf:{REPO}:de/train"):
        files_of(f"hf:{REPO}")
    assert files_of(f"hf:{REPO}:de/train") == ["de"]
    for name in ("hf:", "hf:one", "hf:a/b:c/d/e", "hf:../..:train"):
        with pytest.raises(UsageError, match="hf:ORG/NAME"):
            files_of(name)


def test_a_refusal_and_a_download_that_breaks_off(hub):
    hub.breaks = 5
    with pytest.raises(EdgetuneError, match=f"hf:{REPO} is not downloaded"):
        files_of(f"hf:{REPO}")
    assert len(files_of(f"hf:{REPO}")) == 2  # again
    hub.refusal = (401, "GatedRepo")
    with pytest.raises(NotFoundError, match="HF_TOKEN"):
        files_of(f"hf:{REPO}:test")
