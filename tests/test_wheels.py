"""Wheels as `make wheels` writes them: their names say what they need, pip installs them, and they compute."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
TOP = Path(__file__).parents[1]


@pytest.mark.timeout(1800)  # all kernels are compiled
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


def test_llamas_wheels_have_what_their_names_say():
    """Those that `make wheels` has left in dist/, as auditwheel judges them."""
    pytest.importorskip("auditwheel")
    wheels = sorted((TOP / "dist").glob("llama_cpp_python-*.whl"))
    if not wheels:
        pytest.skip("dist/ has none: make wheels")
    for wheel in wheels:
        done = subprocess.run([sys.executable, "-m", "auditwheel", "show", "--json", wheel], capture_output=True,
                              text=True, check=True)
        assert wheel.name.endswith(f"-py3-none-{json.loads(done.stdout)['overall_tag']}.whl")


def test_a_build_with_variants_answers_as_one_without(smollm2, tmp_path):
    machine = os.uname().machine
    wheels = sorted((TOP / "dist").glob(f"llama_cpp_python-*_{machine}.whl"))
    if not wheels:
        pytest.skip("dist/ has no wheel of llama-cpp-python for this machine: make wheels")
    with zipfile.ZipFile(wheels[-1]) as wheel:
        wheel.extractall(tmp_path)
    program = ("import sys; from edgetune.serving.llama import LlamaModel; from edgetune.llamacpp import library\n"
               "with LlamaModel(sys.argv[1]) as model:\n"
               "    print(''.join(model.generate('The capital of France is', max_tokens=8)))\n"
               "print(library.load()._lib._name)")
    answers = {}
    for folder in ("", str(tmp_path / "llama_cpp" / "lib")):
        done = subprocess.run([sys.executable, "-c", program, smollm2], capture_output=True, text=True, check=True,
                              env={**os.environ, **({"LLAMA_CPP_LIB_PATH": folder} if folder else {})})
        answer, library = done.stdout.rsplit("\n", 2)[:2]
        assert Path(library).is_relative_to(tmp_path) == bool(folder)
        answers[folder] = answer
    assert len(set(answers.values())) == 1
