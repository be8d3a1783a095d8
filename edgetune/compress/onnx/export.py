"""The second format: a model as ONNX in int8, for devices with ONNX Runtime.

optimum exports transformers' model with a cache of keys and values, onnx_int8 rounds its weights, and the device's own
runtime then answers like the source: what is measured will run. Letters: T tokens of a window, V vocabulary.
"""

from __future__ import annotations

import io
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from optimum.exporters.onnx import onnx_export_from_model
from transformers import PreTrainedModel

from ...disk import replaced
from ...errors import DataError, EdgetuneError, UnsupportedError
from ...formats.bundle import ONNX, TOKENIZER
from ...formats.gguf import write_gguf
from ...llamacpp.divergence import DivergenceSums, divergence
from ...serving.onnx import Session
from ..progress import Progress, ignore, never, raise_if_stopped
from ..source import huggingface as hf
from ..source.floats import Floats
from . import int8 as onnx_int8

LEAST_TOKENS = 500  # on which agreement is measured
MOST_TOKENS = 2048
# windows that are continued, and tokens by which
CONTINUED = 8
CONTINUATION = 32
MAX_BYTES = 2**31 - 1  # of a protobuf, and so of an ONNX file without others next to it
LEAST_AGREEMENT = 0.99  # of the export in floats; less is not rounding


@dataclass(frozen=True)
class ExportAgreement:
    """An exported model compared with its source, over the same tokens.

    top1: share of tokens after which both give the same one the highest probability. greedy: share of a greedy
    continuation before the first token in which they differ. kl: mean KL(source || model), nats a token.
    """

    top1: float
    greedy: float
    kl: float
    perplexity: float


@dataclass(frozen=True)
class Exported:
    """bytes: of model.onnx; tokens, greedy_tokens: on how many agreement was measured. floats: before int8."""

    bytes: int
    tokens: int
    greedy_tokens: int
    source_perplexity: float
    int8: ExportAgreement
    floats: ExportAgreement
    opset: int
    onnxruntime: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def export(model: Floats, folder: Path, windows: NDArray[np.int32], *, threads: int = 0,
           on_progress: Progress = ignore, should_stop: Callable[[], bool] = never) -> Exported:
    """Write model.onnx and tokenizer.gguf into `folder`, and measure them on windows [N, T] of token ids.

    Whoever calls removes the folder after an error. UnsupportedError for a model that does not fit one ONNX file,
    DataError for fewer than 500 tokens, EdgetuneError where the export does not compute what the model does.
    """
    if (nbytes := int(model.weights * onnx_int8.BYTES_PER_WEIGHT)) > MAX_BYTES - 2**26:
        raise UnsupportedError(f"{model.weights / 1e9:.1f} billion weights need {nbytes / 1e9:.1f} GB in int8, an ONNX "
                               "file holds 2.1", "choose --format gguf")
    if windows.size < LEAST_TOKENS or windows.shape[1] < 4:
        raise DataError(f"there are {windows.size} tokens to compare on, at least {LEAST_TOKENS} are needed",
                        "give a longer text")
    windows = windows[: max(1, MOST_TOKENS // windows.shape[1])]
    steps = _Steps(on_progress, should_stop, 3 + 2 * (len(windows) + _continued(windows)))
    source = hf.to_torch(model)
    with tempfile.TemporaryDirectory(dir=folder) as beside:  # if this is killed, it goes with the folder
        steps.step("exporting to ONNX")
        proto = write_floats(Path(beside) / ONNX, source)
        floats, perplexity = _compare(source, Session(Path(beside) / ONNX, threads), windows, steps)
    if floats.top1 < LEAST_AGREEMENT:
        raise EdgetuneError(f"the ONNX export agrees with its source on {floats.top1:.1%} of {windows.size} tokens, at "
                            f"least {LEAST_AGREEMENT:.0%} are expected", "choose --format gguf")
    steps.step("rounding to int8")
    onnx_int8.quantize(proto, tied="output.weight" not in model.tensors)
    with replaced(folder / ONNX) as target:
        onnx.save(proto, str(target))
    write_tokenizer(folder / TOKENIZER, model)
    int8, _ = _compare(source, Session(folder / ONNX, threads), windows, steps)
    steps.step("exported to ONNX")
    return Exported((folder / ONNX).stat().st_size, windows.size, CONTINUATION * _continued(windows), perplexity, int8,
                    floats, proto.opset_import[0].version, onnxruntime.__version__)


def write_floats(path: Path, source: PreTrainedModel) -> onnx.ModelProto:
    """Write the model in float32, its weights in PATH.data next to it; what was written, weights included."""
    with tempfile.TemporaryDirectory(dir=path.parent) as made:
        with silent():
            onnx_export_from_model(source, Path(made), task="text-generation-with-past", do_validation=False,
                                   no_post_process=True)  # it would join tied weights, which onnx_int8 does
        proto = onnx.load(str(Path(made) / "model.onnx"))  # optimum's name for it
    onnx_int8.keep_last_logits(proto)
    onnx.save(proto, str(path), save_as_external_data=True, location=f"{path.name}.data")
    onnx.load_external_data_for_model(proto, str(path.parent))
    return proto


def write_tokenizer(path: Path, model: Floats) -> None:
    """A GGUF without tensors: vocabulary, chat template and sizes for the device."""
    write_gguf(path, model.architecture, model.metadata, {}, model.types)


class _Steps:
    def __init__(self, on_progress: Progress, should_stop: Callable[[], bool], total: int) -> None:
        self._on_progress = on_progress
        self._should_stop = should_stop
        self._done = 0
        self._total = total

    def step(self, what: str) -> None:
        raise_if_stopped(self._should_stop)
        self._on_progress(what, self._done, self._total)
        self._done += 1


def _continued(windows: NDArray[np.int32]) -> int:
    return min(CONTINUED, len(windows))


@contextmanager
def silent() -> Iterator[None]:
    """Silences optimum, transformers and torch, which warn of a model that is known to trace well."""
    loggers = [logging.getLogger(name) for name in ("optimum", "transformers", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.filterwarnings("ignore", "Converting a tensor to a Python")
        warnings.filterwarnings("ignore", "Exporting aten::index operator", UserWarning)
        warnings.filterwarnings("ignore", "You are using the legacy TorchScript", DeprecationWarning)
        warnings.filterwarnings("ignore", "The feature will be removed", DeprecationWarning)
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _compare(source: PreTrainedModel, session: Session, windows: NDArray[np.int32],
             steps: _Steps) -> tuple[ExportAgreement, float]:
    sums = np.zeros(5)
    for window in windows:
        steps.step("comparing with the source")
        session.clear()
        ids = window.tolist()
        sums += divergence(_logits(source, ids), session.feed(ids, len(ids)), window[1:])
    greedy = 0
    for window in windows[: _continued(windows)]:
        steps.step("continuing as the source")
        greedy += _same(source, session, window.tolist()[: windows.shape[1] // 2])
    total = DivergenceSums(*sums.tolist())
    predicted = windows.size - len(windows)
    perplexity = math.exp(total.loss / predicted)
    source_perplexity = math.exp(total.source_loss / predicted)
    share = greedy / (_continued(windows) * CONTINUATION)
    found = ExportAgreement(total.agreed / windows.size, share, total.kl / windows.size, perplexity)
    return found, source_perplexity


def _same(source: PreTrainedModel, session: Session, prompt: list[int]) -> int:
    """Tokens of the session's greedy continuation before the first that the source would not choose."""
    session.clear()
    tokens = list(prompt)
    for _ in range(CONTINUATION):
        tokens.append(int(session.feed(tokens)[0].argmax()))
    choices = _logits(source, tokens[:-1])[len(prompt) - 1 :].argmax(1)
    wrong = np.flatnonzero(choices != tokens[len(prompt) :])
    return int(wrong[0]) if len(wrong) else CONTINUATION


def _logits(source: PreTrainedModel, tokens: list[int]) -> NDArray[np.float32]:
    with torch.inference_mode():
        found: NDArray[np.float32] = source(torch.tensor([tokens]), use_cache=False).logits[0].numpy()
    return found
