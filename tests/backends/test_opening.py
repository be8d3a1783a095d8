"""Which backend is opened, and why a GPU is not."""

from __future__ import annotations

import pytest

from edgetune.backends import opening
from edgetune.errors import UsageError


def test_without_a_gpu_auto_is_silent_and_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgetune.backends.opening.DRIVER", "libcuda-that-is-missing.so")
    said: list[str] = []
    assert opening.open_backend("auto", 1, said.append).threads == 1
    assert said == []
    with pytest.raises(UsageError, match="--backend cuda: no NVIDIA driver is installed"):
        opening.open_backend("cuda", 1, said.append)
