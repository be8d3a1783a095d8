"""The programs of examples/notebooks run, cell after cell, as in a notebook that is opened in its folder."""

import json
from pathlib import Path

import pytest
from tiny import write_tiny

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, folder, monkeypatch):
    """Executes all cells in one namespace, which it returns."""
    (folder / "home").symlink_to(EXAMPLES / "home")
    (folder / "notebooks").mkdir(exist_ok=True)
    monkeypatch.chdir(folder / "notebooks")
    notebook = json.loads((EXAMPLES / "notebooks" / name).read_text("utf-8"))
    names = {"__name__": "__main__"}
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{name}, cell {number}", "exec"), names)
    return names


def test_the_first_notebook_runs(tmp_path, monkeypatch, capsys):
    """On a tiny model: a file in the folder comes before a model of that name."""
    (tmp_path / "notebooks").mkdir()
    write_tiny(tmp_path / "notebooks" / "smollm2", formats="Q8_0", n_blocks=1, d_model=32, d_ff=64)
    names = run("first_adapter.ipynb", tmp_path, monkeypatch)
    assert "<table>" in names["result"]._repr_html_()
    assert "it is dark in the hall -> " in capsys.readouterr().out


@pytest.mark.slow  # minutes: a random model never answers as a reward wants it
@pytest.mark.usefixtures("smollm2")  # skips without the package
@pytest.mark.parametrize("name", sorted(path.name for path in (EXAMPLES / "notebooks").glob("*.ipynb")))
def test_notebooks_run_on_a_real_model(name, tmp_path, monkeypatch):
    names = run(name, tmp_path, monkeypatch)
    found = [value for value in names.values() if hasattr(value, "loss_after") and value.loss_after is not None]
    assert found
    assert all(result.loss_after < result.loss_before for result in found if result.reward_after is None)
