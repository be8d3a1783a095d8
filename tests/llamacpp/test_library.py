"""llama.cpp's library, loaded."""

import os
import subprocess
import sys

from tiny import write_tiny


def test_a_library_for_another_system_is_refused_in_a_sentence(tmp_path):
    """As llama-cpp-python refuses one that needs a newer C library than there is."""
    model = write_tiny(tmp_path / "tiny.gguf")
    package = tmp_path / "packages" / "llama_cpp"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "llama_cpp.py").write_text("raise RuntimeError('version GLIBC_9.9 not found')")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package.parent), os.environ["PYTHONPATH"]])}
    done = subprocess.run([sys.executable, "-m", "edgetune", "generate", str(model), "hello"], env=env,
                          capture_output=True, text=True)
    assert done.returncode == 1
    assert "GLIBC_9.9" in done.stderr
    assert "pip install --force-reinstall" in done.stderr
    assert "Traceback" not in done.stderr
