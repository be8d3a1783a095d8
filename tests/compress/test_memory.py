"""What a model takes in memory as it is read, beside what is asked for before: peaks of a process, as the kernel counts
them."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from checkpoints import byte_level, write_folder
from transformers import AutoConfig, AutoModelForCausalLM

from edgetune.compress.source import convert

PEAK = """
import json, sys
from pathlib import Path
from edgetune.compress import memory
from edgetune.compress.source import floats, source
from edgetune.machine.device import peak_rss, reset_peak_rss, rss

asked = []
require = memory.require_memory

def note(nbytes, what):
    asked.append(nbytes)
    require(nbytes, what)

memory.require_memory = note
source.open_source(sys.argv[1])  # what is imported, and kept, for any model
asked.clear()
reset_peak_rss()
before = rss()
model = source.open_source(sys.argv[2])
opened = peak_rss() - before
floats.write(Path(sys.argv[3]), model.floats)
print(json.dumps({"asked": asked, "opened": opened, "written": peak_rss() - before}))
"""


def checkpoint(folder, layers, dtype):
    """A llama of 1.6 million weights and 7.9 million a layer, in `dtype`."""
    tokenizer = byte_level()
    config = AutoConfig.for_model("llama", vocab_size=len(tokenizer), hidden_size=1024, intermediate_size=2048,
                                  num_hidden_layers=layers, num_attention_heads=16, num_key_value_heads=4,
                                  max_position_embeddings=128)
    torch.manual_seed(0)
    return write_folder(folder, AutoModelForCausalLM.from_config(config).to(dtype), tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_folder_takes_what_is_asked_for(dtype, tmp_path):
    small = checkpoint(tmp_path / "small", 1, dtype)
    large = checkpoint(tmp_path / "large", 4, dtype)
    child = subprocess.run([sys.executable, "-c", PEAK, small, large, tmp_path / "floats.gguf"], check=True,
                           capture_output=True, text=True)
    found = json.loads(child.stdout)
    assert len(found["asked"]) == 1
    weights = sum(array.size for array in convert.convert(large).tensors.values())
    assert 4 * weights < found["asked"][0] < 5 * weights  # float32 and a tensor more
    assert found["opened"] < found["asked"][0]
    assert found["written"] < found["asked"][0]  # halves are made one tensor at a time
