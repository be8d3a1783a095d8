"""A daemon whose tiny encoder learned three typed questions; another adapter of it learned label rows."""

import httpx
import pytest
from daemons import PATIENCE, daemon
from encoder_daemon import OPTIONS, labelled, write_adapter, write_tiny_encoder
from thread_workers import ThreadWorker
from typed_asks import PASSED, STATE
from typed_rows import KEYS, typed_rows

from edgetune.data.decisions import prompt_of
from edgetune.formats.gguf import open_gguf
from edgetune.machine.policy import Policy
from edgetune.serving.encoder import Encoder
from edgetune.training.config import TrainConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_encoder(tmp_path_factory.mktemp("encoder") / "enc.gguf")


@pytest.fixture(scope="module")
def adapters(model, tmp_path_factory):
    """Adapters of typed questions, and of label rows, by name."""
    folder = tmp_path_factory.mktemp("adapters")
    return {"typed": write_adapter(model, folder / "typed", typed_rows()),
            "plain": write_adapter(model, folder / "plain", labelled())}


@pytest.fixture(scope="module")
def running(model, adapters, tmp_path_factory):
    with daemon(model, tmp_path_factory.mktemp("state"), TrainConfig(**OPTIONS), Policy(nice=19, govern=False),
                start_process=ThreadWorker, learn_options="steps=1", log_prompts=True) as made:
        for name, folder in adapters.items():
            made.service.adapters.rename(made.service.adapters.add(f"ftjob-{name}", folder, name, PASSED).id, name)
        made.service.adapters.promote(made.service.adapters.of_job("ftjob-typed").id, "for the test")
        yield made


@pytest.fixture(scope="module")
def client(running):
    with httpx.Client(base_url=running.url, timeout=PATIENCE) as made:
        yield made


@pytest.fixture(scope="module")
def expected(model, adapters):
    """{name of a question: the probabilities of its labels}, by the engine without a daemon."""
    reader = Encoder(open_gguf(model), threads=1).adapter(adapters["typed"])

    def of(state=STATE):
        found = {}
        for name, key in KEYS.items():
            [one] = reader.classify([reader.encoder.read(prompt_of(key, state))])
            options = reader.learned.options_of(key)
            found[name] = {label: float(one.probabilities[options.first + i])
                           for i, label in enumerate(options.labels)}
        return found
    return of
