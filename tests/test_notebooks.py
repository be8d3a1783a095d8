"""The programs of examples/notebooks run, cell after cell, as in a notebook that is opened in its folder.

Their outputs are those of `jupyter nbconvert --execute --inplace` on SmolLM2.
"""

import json
import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, folder, monkeypatch):
    """Executes all cells in one namespace, which it returns."""
    (folder / "home").symlink_to(EXAMPLES / "home")
    (folder / "notebooks").mkdir()
    monkeypatch.chdir(folder / "notebooks")
    notebook = json.loads((EXAMPLES / "notebooks" / name).read_text("utf-8"))
    names = {"__name__": "__main__"}
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{name}, cell {number}", "exec"), names)
    return names


NOTEBOOKS = sorted((EXAMPLES / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_there_and_name_no_place_of_a_machine(path):
    text = path.read_text("utf-8")
    assert len(text) < 10_000
    assert not re.search(r"(?<![\w.])/(?:home|root|tmp|usr|opt|work)/|GiB|avx|neon", text)
    code = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    for cell in code:
        assert cell["metadata"] == {}
        assert len(cell["outputs"]) == 1
        assert cell["outputs"][0]["output_type"] in ("stream", "execute_result")
    assert any("Learned: the held-out loss fell from" in json.dumps(cell["outputs"]) for cell in code)


@pytest.mark.slow  # minutes; the pages have much the same programs, which are run on a tiny model
@pytest.mark.usefixtures("smollm2")  # skips without the package
@pytest.mark.parametrize("name", [path.name for path in NOTEBOOKS])
def test_notebooks_run_on_a_real_model(name, tmp_path, monkeypatch):
    names = run(name, tmp_path, monkeypatch)
    found = [value for value in names.values() if hasattr(value, "loss_after") and value.loss_after is not None]
    assert found
    assert all(result.loss_after < result.loss_before for result in found if result.reward_after is None)
