"""Jobs whose objective reads rows of its own shape: uploaded, trained, and judged by rows that the gate can ask."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PAIRS = """
import json, sys
from pathlib import Path
import pytest
from services import ROWS, SMALL, open_service, upload
from edgetune.errors import DataError, UsageError
PAIRS = [{"prompt": f"lamp {i}", "better": f"on {i}", "worse": f"off {i}"} for i in range(12)]
METHOD = {"type": "pairs", "pairs": {"hyperparameters": {**SMALL, "steps": 2, "beta": 0.5}}}
with open_service(Path(sys.argv[1])) as service:
    pairs = upload(service, PAIRS)
    create = service.jobs.create
    for rows, says in ((PAIRS + [{"completion": "on"}], "line 13: the row is no pair; expected is prompt with better"),
                       ([*PAIRS, {**PAIRS[0], "better": ""}], "line 13: the better answer is empty; write it"),
                       (ROWS[:1] + PAIRS, "line 2: the row has an unknown shape")):
        with pytest.raises(DataError, match=says):
            upload(service, rows)
    with pytest.raises(DataError, match="row 1: it cannot be held out, .*; name a validation file"):
        create("tiny", pairs, method=METHOD)
    with pytest.raises(DataError, match="row 1: the row is no pair; expected is prompt with better and worse"):
        create("tiny", upload(service), validation_file=upload(service), method=METHOD)
    with pytest.raises(UsageError, match="no hyperparameter 'gamma'; there are n_epochs, .*beta.*rank"):
        create("tiny", pairs, method={"type": "pairs", "pairs": {"hyperparameters": {"gamma": 1.0}}})
    assert service.jobs.list() == []
    assert list(service.jobs.folder.iterdir()) == []
    job = service.jobs.wait(create("tiny", pairs, validation_file=upload(service, ROWS[:5]), method=METHOD).id, 60)
    run = json.loads((service.adapters.path(job.result) / "run.json").read_text())
    verdict = service.adapters.get(job.result).verdict
    print(json.dumps([job.status, run["objective"], verdict["new"]["rows"], len(verdict["scores"])]))
"""


@pytest.mark.dev
def test_pairs(tmp_path):
    """Every process knows the toys, as each knows the files of edgetune/objectives."""
    (tmp_path / "sitecustomize.py").write_text("import toy_objectives\n")
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1]), *sys.path])
    done = subprocess.run([sys.executable, "-c", PAIRS, str(tmp_path)], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == ["succeeded", {"name": "pairs", "beta": 0.5}, 5, 5]
