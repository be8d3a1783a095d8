"""The programs of examples/notebooks run, cell after cell, as in a notebook that is opened in its folder."""

import json
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


@pytest.mark.slow  # minutes; the pages have much the same programs, which are run on a tiny model
@pytest.mark.usefixtures("smollm2")  # skips without the package
@pytest.mark.parametrize("name", sorted(path.name for path in (EXAMPLES / "notebooks").glob("*.ipynb")))
def test_notebooks_run_on_a_real_model(name, tmp_path, monkeypatch):
    names = run(name, tmp_path, monkeypatch)
    found = [value for value in names.values() if hasattr(value, "loss_after") and value.loss_after is not None]
    assert found
    assert all(result.loss_after < result.loss_before for result in found if result.reward_after is None)
