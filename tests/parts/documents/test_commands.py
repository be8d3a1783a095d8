"""edgetune documents index and edgetune documents search, as they are typed."""

import json
import sys

import pytest
from commands import run
from indexes import needs_retrieval, small_encoder


@pytest.fixture
def made(tmp_path):
    needs_retrieval()
    encoder = small_encoder(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/lamp.md").write_text("# Lamp\n\nThe lamp in the hall is red.\n")
    (tmp_path / "docs/bad.txt").write_bytes(b"\xff")
    return ["index", tmp_path / "docs", "-o", tmp_path / "i", "--encoder", encoder, "--chunk-tokens", 40,
            "--threads", 1], tmp_path / "i"


def test_index_and_search(made):
    command, path = made
    report = json.loads(run(*command, "--json"))
    assert (report["files"], report["chunks"], report["read"]) == (1, 1, 1)
    assert report["skipped"] == [{"file": "bad.txt", "reason": "bad.txt is no text in UTF-8: byte 0"}]
    shown = run(*command)
    assert "0 read, 1 unchanged" in shown
    assert "left out: bad.txt" in shown
    found = json.loads(run("documents", "search", path, "red lamp", "--least", 0, "--json"))
    assert found["results"] == [{"source": "lamp.md:3 (Lamp)", "text": "The lamp in the hall is red.", "score": 1.0,
                                 "file": "lamp.md", "heading": "Lamp", "page": None, "line": 3}]
    assert "lamp.md:3 (Lamp)" in run("documents", "search", path, "red lamp", "--least", 0)
    assert json.loads(run("documents", "search", path, "red lamp", "--least", 1, "--json"))["results"] == []
    assert "nothing was found" in run("documents", "search", path, "red lamp", "--least", 1)


def test_errors_are_one_sentence(made, tmp_path):
    command, path = made
    assert "there is no index" in run("documents", "search", path, "lamp", code=2)
    assert "there is no folder" in run("documents", "index", tmp_path / "none", *command[2:], code=2)
    assert "needs" in run(*command, "--memory", "1M", code=2)
    run(*command)
    assert "limit is 0" in run("documents", "search", path, "lamp", "--limit", 0, code=2)


def test_a_missing_package_names_the_extra(made, monkeypatch):
    command, _ = made
    monkeypatch.setitem(sys.modules, "apsw", None)
    assert "make install EXTRAS=retrieval" in run(*command, code=1)
