"""The kernels' text, what NVRTC makes of it, and its cache."""

import re
import shutil
from pathlib import Path

import pytest
from sometimes import mostly_slow

from edgetune.backends import _native, cuda_driver
from edgetune.backends.cuda_driver import SHARED, Compiler, compile_unit, find_nvrtc
from edgetune.errors import DeviceError


def why_no_nvrtc():
    try:
        find_nvrtc()
    except DeviceError as error:
        return str(error)
    return ""


needs_nvrtc = pytest.mark.skipif(bool(why_no_nvrtc()), reason=f"needs NVRTC: {why_no_nvrtc()}")
NATIVE = Path(__file__).parents[2] / "native"
UNITS = sorted({(unit, "Q4_1" if for_weights else "") for unit, _, for_weights in _native.KERNELS})
EVERYWHERE = [(*unit, architecture) for unit in UNITS for architecture in ("sm_87", "sm_90")]


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edgetune" / "kernels"


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """As the package has them: what native/CMakeLists.txt installs, and nothing beside it."""
    root = tmp_path / "cuda_sources"
    rules = (NATIVE / "CMakeLists.txt").read_text()
    for name in re.findall(r"install\(FILES (.*) DESTINATION edgetune/backends/cuda_sources\)", rules)[0].split():
        root.mkdir(exist_ok=True)
        shutil.copy(NATIVE / name, root)
    assert {path.name for path in root.iterdir()} == set(SHARED)
    of_cuda = shutil.ignore_patterns("*.c", "*.cc")
    shutil.copytree(NATIVE / "cuda", root / "cuda", ignore=of_cuda)
    monkeypatch.setattr(cuda_driver, "INSTALLED", root)
    cuda_driver.sources.cache_clear()
    yield root
    cuda_driver.sources.cache_clear()


@needs_nvrtc
@pytest.mark.parametrize(("unit", "fmt", "architecture"), mostly_slow(EVERYWHERE, [
    one for one in EVERYWHERE if one[2] == "sm_87" or one[0] == "exact"]))  # no kernel asks which card it is for
def test_nvrtc_compiles_what_is_installed_without_a_warning(unit, fmt, architecture, installed):
    binary, said = compile_unit(unit, fmt, architecture)
    assert binary.startswith(b"\x7fELF")
    assert said.strip() == ""
    assert cuda_driver.sources() == installed
    names = [name + (f"_{fmt}" if fmt else "") for of, name, for_weights in _native.KERNELS
             if of == unit and for_weights == bool(fmt)]
    assert all(name.encode() + b"\0" in binary for name in names)


@needs_nvrtc
def test_what_cannot_be_compiled_is_a_sentence(monkeypatch, tmp_path):
    (tmp_path / "cuda").mkdir()
    (tmp_path / "cuda" / "plain.cu").write_text("not C")
    monkeypatch.setattr(cuda_driver, "sources", lambda: tmp_path)
    with pytest.raises(DeviceError, match=r"the kernels of plain\.cu cannot be compiled for sm_87: .*error"):
        compile_unit("plain", "", "sm_87")
    assert re.fullmatch(r"1[23]\.\d+", find_nvrtc())


@pytest.mark.skipif("cuda-core" not in why_no_nvrtc(), reason="the package is installed")
def test_without_the_packages_it_says_what_to_install():
    with pytest.raises(DeviceError, match=r"cuda-core is missing \(.*\); install the extra cuda"):
        find_nvrtc()


def test_the_cache_gives_what_was_made_for_the_same_text_card_and_compiler(monkeypatch, cache):
    made: list[tuple[str, ...]] = []

    def compiled(*of: str):
        made.append(of)
        return f"{len(made)}".encode(), ""

    monkeypatch.setattr(cuda_driver, "compile_unit", compiled)
    said: list[str] = []
    first = Compiler("sm_87", "12.6", said.append)
    assert first.binary("weight", "Q4_1") == b"1"
    assert first.binary("weight", "Q4_K") == b"2"
    assert said == [f"compiling the GPU's kernels for sm_87; later runs find them in {cache}"]
    assert Compiler("sm_87", "12.6", said.append).binary("weight", "Q4_1") == b"1"
    assert len(said) == 1
    assert Compiler("sm_90", "12.6", said.append).binary("weight", "Q4_1") == b"3"
    assert Compiler("sm_87", "12.9", said.append).binary("weight", "Q4_1") == b"4"
    monkeypatch.setattr(cuda_driver, "sources_digest", lambda: "another text")
    assert first.binary("weight", "Q4_1") == b"5"
    assert len(list(cache.iterdir())) == 5
    monkeypatch.setattr(cuda_driver, "CACHED", 2)
    assert first.binary("weight", "Q5_K") == b"6"
    assert len(list(cache.iterdir())) == 2


def test_without_a_cache_it_compiles_each_time(monkeypatch, cache):
    monkeypatch.setattr(cuda_driver, "compile_unit", lambda *_: (b"made", ""))
    cache.parent.mkdir(parents=True)
    cache.write_text("a file is where the folder would be")
    assert Compiler("sm_87", "12.6", lambda _: None).binary("plain", "") == b"made"
