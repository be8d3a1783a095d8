"""The track record names tests that exist, and says of each defect what a reader asks first."""

import ast
import datetime
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOL = ROOT / "docs" / "tools" / "track_record.py"
spec = importlib.util.spec_from_file_location("track_record", TOOL)
track_record = importlib.util.module_from_spec(spec)
spec.loader.exec_module(track_record)
DEFECTS = track_record.defects()


def functions_of(path):
    return {node.name for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)}


@pytest.mark.dev
@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect["what"][:40])
def test_a_defect_has_a_sentence_a_day_a_way_and_a_test(defect):
    assert defect.keys() in ({"what", "since", "found", "test"}, {"what", "since", "found", "open"})
    assert defect["what"].endswith(".")
    assert "|" not in defect["what"] + defect["found"]
    day = datetime.date.fromisoformat(defect["since"])
    assert datetime.date(2026, 11, 1) <= day <= datetime.date(2030, 1, 1)
    if "test" in defect:
        path, _, name = defect["test"].partition("::")
        assert name.partition("[")[0] in functions_of(ROOT / path)


def test_no_defect_is_written_twice():
    assert len({defect["what"] for defect in DEFECTS}) == len(DEFECTS)
