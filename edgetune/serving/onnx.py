"""A model served by ONNX Runtime: a result of `edgetune compress --format onnx`, run without llama.cpp's weights.

model.onnx computes; tokenizer.gguf, a GGUF without tensors, brings vocabulary, chat template and sizes. Letters: V
vocabulary, G key heads, C head width, P tokens in the cache, T tokens of a call.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import EdgetuneError, MismatchError, UnsupportedError, lacking
from ..formats import bundle
from ..formats.gguf import check_vocabulary, open_gguf
from ..llamacpp.context import BATCH, check_tokens, common, context_size
from ..llamacpp.sampling import Sampler
from ..llamacpp.tokenizer import Tokenizer
from ..machine.device import thread_count
from .model import ServedModel

LOGITS = "logits_to_keep"  # the input that says after how many of the last tokens logits are computed


def load() -> ModuleType:
    """The `onnxruntime` module; EdgetuneError where it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise lacking(error) or EdgetuneError("this bundle needs ONNX Runtime, which is not installed",
                            "install it by pip install 'onnxruntime>=1.23'") from None
    return onnxruntime  # type: ignore[no-any-return]


class Session:
    """An ONNX decoder: token ids in, logits out, keys and values kept between calls.

    threads: 0 for one a physical core. Raises UnsupportedError for a file that ONNX Runtime cannot run, or that has
    other inputs than a decoder with a cache.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        ort = load()
        self._ort = ort
        options = ort.SessionOptions()
        options.intra_op_num_threads = thread_count(threads)
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # nothing on stderr
        options.enable_mem_pattern = False  # a pattern is kept for every length that was seen
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others want the cores too
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common class but this
            reason = " ".join(str(error).split())[:200]
            raise UnsupportedError(f"ONNX Runtime {ort.__version__} cannot run {path} ({reason})",
                                   "copy the bundle again, or pip install -U onnxruntime") from None
        inputs = {spec.name: spec for spec in self._session.get_inputs()}
        outputs = {spec.name: spec for spec in self._session.get_outputs()}
        self._past = [name for name in inputs if name.startswith("past_key_values.")]
        self._present = [name.replace("past_key_values", "present") for name in self._past]
        self._positions = "position_ids" in inputs
        needed = {"input_ids", "attention_mask", LOGITS}
        if not self._past or not needed <= inputs.keys() or not {"logits", *self._present} <= outputs.keys():
            raise UnsupportedError(f"{path} is not a decoder with a cache", "make it with edgetune compress")
        self.n_vocab = int(outputs["logits"].shape[2])
        self._empty = {name: self._value(np.zeros((1, inputs[name].shape[1], 0, inputs[name].shape[3]), np.float32))
                       for name in self._past}
        self.clear()

    def clear(self) -> None:
        self.cached: list[int] = []  # tokens whose keys and values are held
        self._cache = dict(self._empty)  # name -> [1, G, P, C]

    def feed(self, tokens: list[int], wanted: int = 1) -> NDArray[np.float32]:
        """Make the cache hold exactly `tokens`; the logits after the last `wanted` of them, float32 [wanted, V].

        A beginning that the cache holds is not computed again.
        """
        done = min(common(self.cached, tokens), len(tokens) - wanted)
        if done < len(self.cached):
            del self.cached[done:]
            self._cache = {name: self._value(value.numpy()[:, :, :done]) for name, value in self._cache.items()}
        parts = []
        while done < len(tokens):
            end = min(done + BATCH, len(tokens))
            kept = max(0, end - max(done, len(tokens) - wanted))
            logits = self._run(tokens[done:end], max(kept, 1))
            parts.append(logits[len(logits) - kept :])
            done = end
        return np.concatenate(parts)

    def _run(self, tokens: list[int], kept: int) -> NDArray[np.float32]:
        """Compute T tokens more; the logits [kept, V] after the last of them."""
        start = len(self.cached)
        end = len(self.cached) + len(tokens)
        feeds = {"input_ids": np.array([tokens], np.int64), "attention_mask": np.ones((1, end), np.int64),
                 LOGITS: np.array([kept], np.int64)}
        if self._positions:
            feeds["position_ids"] = np.arange(start, end, dtype=np.int64)[None]
        values = {name: self._value(array) for name, array in feeds.items()} | self._cache
        try:
            logits, *present = self._session.run_with_ort_values(["logits", *self._present], values)
        except Exception as error:
            self.clear()
            reason = " ".join(str(error).split())[:200]
            raise EdgetuneError(f"ONNX Runtime could not compute {len(tokens)} tokens ({reason})",
                                "free memory or choose a smaller context") from None
        self._cache = dict(zip(self._past, present, strict=True))
        self.cached.extend(tokens)
        found: NDArray[np.float32] = logits.numpy()[0]
        return found

    def _value(self, array: NDArray[Any]) -> Any:
        return self._ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


class OnnxModel(ServedModel):
    """A bundle in ONNX format opened for answers, with Served's face but for adapters and measures.

    context, threads, seed, busy_file: as for Served. Raises FormatError or UnsupportedError for a bundle that is not
    whole or not in this format, MismatchError where model and tokenizer do not belong together.
    """

    def __init__(self, path: str | Path, *, context: int | None = None, threads: int | None = None, seed: int = 0,
                 busy_file: str | Path | None = None) -> None:
        self.path = Path(path)
        self.busy_file = Path(busy_file) if busy_file else None
        self.seed = seed
        files = bundle.open_files(self.path)[1] if self.path.is_dir() else {}
        if bundle.ONNX not in files:
            raise UnsupportedError(f"{path} holds no ONNX model",
                                   "leave --runtime out, or make one with edgetune compress --format onnx")
        file = open_gguf(self.path / bundle.TOKENIZER, files[bundle.TOKENIZER])
        check_vocabulary(file)
        self._size = context_size(context, cast(int, file.metadata[f"{file.architecture}.context_length"]))
        with ExitStack() as opened:
            self.tokenizer = Tokenizer(file)
            opened.callback(self.tokenizer.close)
            self._session: Session | None = Session(self.path / bundle.ONNX, threads or 0)
            files[bundle.ONNX].check(strictly=True)  # ONNX Runtime takes a path, for the data next to it
            files[bundle.ONNX].check_path()
            if self._session.n_vocab != self.tokenizer.n_vocab:
                raise MismatchError(f"{path}: the model has {self._session.n_vocab} tokens, its tokenizer "
                                    f"{self.tokenizer.n_vocab}", "copy the bundle again")
            opened.pop_all()

    def __enter__(self) -> OnnxModel:
        return self

    @property
    def context(self) -> int:
        return self._size

    @property
    def session(self) -> Session:
        """The session that computes; raises ValueError after `close`."""
        if self._session is None:
            raise ValueError("the model is closed")
        return self._session

    def close(self) -> None:
        self._session = None
        self.tokenizer.close()

    def reset(self) -> None:
        self.session.clear()

    def _check(self, tokens: list[int], room: int = 0) -> None:
        check_tokens(tokens, room, self._size, self.session.n_vocab)

    def _next(self, tokens: list[int], sampler: Sampler) -> int:
        return sampler.pick(self.session.feed(tokens)[0])


def holds_onnx(path: Path) -> bool:
    """Whether the folder is a bundle in ONNX format; nothing is checked."""
    return (path / bundle.ONNX).is_file() and not (path / bundle.MODEL).exists()
