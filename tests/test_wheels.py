"""A wheel as `make wheels` writes it: its name says what its extension needs, and pip installs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
TOP = Path(__file__).parents[1]


def test_a_wheel_for_this_machine_installs_and_computes(tmp_path):
    for needed in ("elftools", "scikit_build_core", "wheel"):
        pytest.importorskip(needed)
    machine = subprocess.run(["uname", "-m"], capture_output=True, text=True, check=True).stdout.strip()
    command = [sys.executable, "packaging/wheels.py", "--out", tmp_path, "--machine", machine, "--", sys.executable]
    subprocess.run(command, cwd=TOP, check=True)
    (wheel,) = tmp_path.glob(f"edgetune-*-manylinux_2_*_{machine}.whl")
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path / "site", wheel],
                   check=True)
    program = ("import numpy as np; from edgetune.backends.cpu import Cpu\n"
               "from edgetune.machine.device import board_named; print(board_named('Raspberry Pi 5').cores)\n"
               "values = np.empty((1, 32), np.float32); Cpu(1).dequantize(values, np.ones(34, np.uint8), 'Q8_0')\n"
               "print(float(values[0, 0]) == float(np.array([257], np.uint16).view(np.float16)[0]))")
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site")},
                          capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["4", "True"], done.stderr
