"""What is predicted for a board: as `edgetune plan --device` plans it; and a file of the largest size trains there."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from tiny import write_tiny

from edgetune.backends.cpu import Cpu
from edgetune.compress import memory
from edgetune.compress.source.floats import read
from edgetune.errors import UsageError
from edgetune.formats.gguf import open_gguf
from edgetune.machine.device import profile_named
from edgetune.models.stream import WeightBytes
from edgetune.models.structure import DecoderStructure
from edgetune.training import plan
from edgetune.training.config import TrainConfig

ZERO = "raspberry-pi-zero-2w"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("fits") / "tiny.gguf", formats="Q8_0")


def planned(model, *options: str):
    """What a person sees: by a process of its own, as large as it is, not as these tests are."""
    command = [sys.executable, "-m", "edgetune", "plan", model, *options, "--no-measure", "--json"]
    done = subprocess.run(command, check=True, cwd="/", capture_output=True, text=True)
    return json.loads(done.stdout)


def test_the_prediction_is_what_plan_says_where_nothing_is_traded(tiny):
    said = memory.on_device(open_gguf(tiny), "pi 5")
    there = planned(tiny, "--device", "pi 5")
    assert said["traded"] == there["traded"] == []
    assert said["budget_bytes"] == there["budget_bytes"]
    assert said["file_bytes"] == tiny.stat().st_size
    assert said["predicted_peak_bytes"] == there["peak_bytes"]
    assert said["predicted_tokens_per_second"] == there["predicted"]["tokens_per_s"]
    here = planned(tiny)["process_bytes"]
    assert abs(there["process_bytes"] - here) < 16 << 20  # what Python takes differs by machine and page cache


def test_a_model_that_does_not_fit_whole_is_planned_with_trades(smollm2):
    said = memory.on_device(open_gguf(smollm2), ZERO)
    there = planned(smollm2, "--device", ZERO)
    assert (said["name"], said["memory_bytes"]) == ("Raspberry Pi Zero 2 W", 512 << 20)
    assert said["predicted_peak_bytes"] <= said["budget_bytes"] == there["budget_bytes"]
    assert len(said["traded"]) == len(there["traded"]) == 3
    assert said["predicted_tokens_per_second"] == there["predicted"]["tokens_per_s"]
    assert said == memory.on_device(open_gguf(smollm2), ZERO)


def test_the_largest_file_trains_there_and_a_larger_one_does_not(tiny):
    model = read(open_gguf(tiny))
    most = memory.largest_file(model, ZERO)
    board = profile_named(ZERO)
    budget = TrainConfig().memory_bytes(board.available)

    def trained_with(nbytes):
        """All of them in memory."""
        weights = WeightBytes((0, 0), int(nbytes), 0, 0)
        return plan.make(DecoderStructure(model.shape), TrainConfig(weights="resident"), ops=Cpu(4), sizes=weights,
                         limits=plan.MemoryLimits(plan.PROCESS, budget=budget))

    assert trained_with(most).peak_bytes <= budget
    trained_with(most + memory.RESERVE * budget)
    with pytest.raises(UsageError):
        trained_with(most + memory.RESERVE * budget + 2 * memory.STEP)
    assert memory.largest_file(model, "pi 4 2gb") > memory.largest_file(model, "pi 4") > most


def test_refused(tiny, monkeypatch):
    gguf = open_gguf(tiny)
    for call, model in ((memory.on_device, gguf), (memory.largest_file, read(gguf))):
        with pytest.raises(UsageError, match=r"'abacus' is not known; choose from .*Raspberry Pi Zero 2 W"):
            call(model, "abacus")
        with pytest.raises(UsageError, match="memory of the device 'generic arm64' is not known"):
            call(model, "generic arm64")
    small = replace(profile_named(ZERO), memory_mib=(150,))
    monkeypatch.setattr(memory, "board_named", lambda _: small)
    with pytest.raises(UsageError, match=r"has 48 MiB for training, which .* drop blocks, make it narrower"):
        memory.largest_file(read(gguf), ZERO)
