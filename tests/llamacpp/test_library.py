"""llama.cpp's CPU backend is loaded once, and computes in one process with torch, on the same threads."""

import os
import subprocess
import sys

import pytest
from tiny import write_tiny

from edgetune.llamacpp import library


def test_one_backend_is_registered():
    llama = library.load()
    counted = llama._lib.ggml_backend_reg_count
    assert counted() == 1
    library._pick_variant(llama._lib)
    assert counted() == 1
    assert b"CPU" in llama.llama_print_system_info()


BOTH = """
import sys
import torch
from edgetune.serving.llama import LlamaModel

half = torch.randn(512, 512, dtype=torch.bfloat16)
with LlamaModel(sys.argv[1]) as model:
    for turn in range(3):
        list(model.generate(f"one two {turn} three " * 30, max_tokens=4))
        half @ half
"""


@pytest.mark.slow
def test_llama_answers_after_torch_has_multiplied_in_bf16(tmp_path):
    """Where the CPU has AMX, llama.cpp otherwise ends with an illegal instruction."""
    model = write_tiny(tmp_path / "tiny.gguf", formats="Q8_0")
    limits = ("ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")  # which tests set
    without = {name: value for name, value in os.environ.items() if name not in limits}
    done = subprocess.run([sys.executable, "-c", BOTH, model], capture_output=True, text=True,
                          env={**without, "OMP_NUM_THREADS": "2"})
    assert done.returncode == 0, done.stderr
