"""Python processes beside this one that have its modules, whatever lies in the folder where it was started.

`python -m` would look there first: in a clone of edgetune it would find sources without their compiled kernels.
"""

from __future__ import annotations

import os
import sys
from typing import Any


def child(module: str) -> dict[str, Any]:
    """Arguments `args` and `env` of subprocess.Popen for a process that calls module.main()."""
    code = f"import sys; sys.path = [path for path in sys.path if path]; from {module} import main; main()"
    return {"args": [sys.executable, "-c", code],
            "env": os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}}
