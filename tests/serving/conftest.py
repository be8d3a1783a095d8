"""Models with known answers, and batchers over them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from batchers import Known, make_known, opened, started

from edgetune.serving.batcher import Batcher
from edgetune.serving.llama import LlamaModel


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def each_known(request: pytest.FixtureRequest, tiny_models: dict[str, Path],
               tmp_path_factory: pytest.TempPathFactory) -> Known:
    """gemma3: every other block sees a window."""
    return make_known(tiny_models[request.param], tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def the_known(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Known:
    return make_known(tiny_llama, tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def known(the_known: Known) -> list[tuple[str | None, list[int], str]]:
    return the_known.rows


@pytest.fixture(scope="module")
def files(the_known: Known) -> dict[str, Path]:
    return the_known.files


@pytest.fixture(scope="module")
def served(the_known: Known) -> Iterator[LlamaModel]:
    with opened(the_known.model, the_known.files, 512) as served:
        yield served


@pytest.fixture
def batcher(served: LlamaModel) -> Iterator[Batcher]:
    with started(served) as batcher:
        yield batcher


@pytest.fixture
def decoded(served: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str | None, int]]:
    """(adapter, tokens) of every decode from now on."""
    sizes: list[tuple[str | None, int]] = []
    decode = served.cache.decode
    monkeypatch.setattr(served.cache, "decode",
                        lambda: sizes.append((served.active, served.cache.batch.size)) or decode())
    return sizes
