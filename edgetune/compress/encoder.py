"""The way from an encoder to a bundle: converted, stored in one of llama.cpp's types, and its vectors compared.

It takes seconds, so nothing is kept for a later run. What compress does to decoders alone is refused.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..data.files import read_rows
from ..data.question import question_text
from ..disk import new_folder, read_small
from ..errors import FormatError, UsageError
from ..formats import bundle as bundles
from ..formats import signature
from ..formats.bert import is_bert, write_bert
from ..formats.checkpoint import weight_files
from ..formats.gguf import ENCODERS, TABLE, Gguf, Tensor, open_gguf, write_gguf
from ..llamacpp.wordpiece import WordPiece
from ..serving.embedding import EncoderFile
from . import report
from .options import CompressConfig
from .progress import Progress
from .quantize import write as quantize
from .source.convert import licence_of, name_of
from .source.source import FLOAT_FORMATS, Located

DEFAULT_TYPE = "Q8_0"  # docs/results/encoders.md
TEXTS = 1000  # that vectors are compared of, at most
MAX_TEXT = 64 << 20
_FOR_ENCODERS = ("type", "measure", "static", "measure_tokens", "calibrate_tokens", "seed", "threads", "format")
_A = 1e-4  # model2vec's coefficient
BATCH = 512  # tokens between two reports of progress
_KEPT = ("general.name", "general.license", "tokenizer.ggml.model", "tokenizer.ggml.pre",
         "tokenizer.ggml.normalizer.lowercase", "tokenizer.ggml.normalizer.strip_accents")
_MARK_TOKENS = tuple(f"tokenizer.ggml.{name}_token_id"
                     for name in ("bos", "eos", "seperator", "unknown", "padding", "mask"))


def is_encoder(place: Located) -> bool:
    """Whether a folder, a GGUF or a bundle holds an encoder. Raises FormatError for what cannot be read."""
    if place.kind in ("folder", "hub"):
        return is_bert(place.path)
    file = place.path / bundles.MODEL if place.path.is_dir() else place.path
    return file.is_file() and open_gguf(file).architecture in ENCODERS


def compress(place: Located, out: Path, config: CompressConfig, key: Path | None, resume: bool,
             on_progress: Progress) -> dict[str, Any]:
    """Make the bundle `out`; what its manifest says. Raises as pipeline.compress does."""
    _refuse(config, resume)
    private = signature.private_key(key) if key else None
    with new_folder(out) as beside:
        on_progress("quantizing", 0, 1)
        floats, source = _read(place, beside)
        step = _stored(floats, beside / bundles.MODEL, config, on_progress)
        gguf = open_gguf(beside / bundles.MODEL)
        cost = None
        if config.measure:
            cost = _compared(floats, beside / bundles.MODEL, config, on_progress)
        if floats.parent == beside:
            floats.unlink()
        parts = report.parts(gguf)
        step |= {"weights": sum(part["weights"] for part in parts), "cost": cost}
        facts = {"source": source, "options": config.to_json(), "steps": [step], "cost": cost, "healing": [],
                 "answers": [], "tensors": [], "parts": parts, "device": None}
        report.write(beside / report.FILE, facts)
        manifest = bundles.write_manifest(beside, facts)
        if private is not None:
            signature.sign(beside / bundles.MANIFEST, private)
    return manifest


def _stored(floats: Path, path: Path, config: CompressConfig, on_progress: Progress) -> dict[str, Any]:
    """What the manifest says of the step that wrote `path`."""
    if config.static:
        with closing(EncoderFile(floats, 1)) as opened:  # for three tokens at a time a second thread only waits
            return {"name": "static", **write_table(path, opened, config.static, on_progress)}
    chosen = config.type or DEFAULT_TYPE
    made = asdict(quantize.stock(floats, path, chosen, threads=config.threads))
    return {"name": "quantize", "type": chosen, **made, "importance": False}


def _refuse(config: CompressConfig, resume: bool) -> None:
    for spec in fields(config):
        if spec.name not in _FOR_ENCODERS and getattr(config, spec.name) != spec.default:
            raise UsageError(f"--{spec.name.replace('_', '-')} is given, and the source is an encoder",
                             "leave it out: encoders take --type, --measure and --static")
    if config.format != "gguf":
        raise UsageError("--format onnx is given, and the source is an encoder", "leave it out: it becomes a GGUF")
    if config.static and (config.type or config.measure):
        raise UsageError(f"--{'type' if config.type else 'measure'} is given with --static",
                         "leave it out: a table is int8, and its vectors are others than the encoder's")
    if resume:
        raise UsageError("--resume is given, and the source is an encoder, of which nothing is kept",
                         "leave it out: it takes seconds")


def _read(place: Located, beside: Path) -> tuple[Path, dict[str, Any]]:
    """A GGUF of the source in floats, and what the manifest says of the source."""
    if place.kind in ("folder", "hub"):
        path = beside / "floats.gguf"
        general = {"name": name_of(place.path), "license": licence_of(place.path)}
        write_bert(path, place.path, "F16", {f"general.{key}": value for key, value in general.items() if value})
        files = weight_files(place.path)
    else:
        bundle = bundles.open_bundle(place.path)
        path = bundle.gguf.path
        files = [path]
    gguf = open_gguf(path)
    formats = {tensor.format for tensor in gguf.tensors.values() if len(tensor.shape) > 1}
    return path, {"name": place.name, "kind": place.kind, "revision": place.revision,
                  "licence": gguf.metadata.get("general.license", ""), "quantized": not formats <= set(FLOAT_FORMATS),
                  "sha256": {file.name: bundles.sha256(file) for file in files}}


def _compared(source: Path, made: Path, config: CompressConfig, on_progress: Progress) -> dict[str, Any]:
    """Cosines of the vectors of texts before and after."""
    texts = _texts(Path(config.measure))
    before, after = (_vectors(path, texts, config.threads, on_progress) for path in (source, made))
    cosines = (before * after).sum(1)
    return {"texts": len(texts), "cosine": float(cosines.mean()), "least_cosine": float(cosines.min())}


def _texts(path: Path) -> list[str]:
    """Lines of a .txt file, or the questions of rows."""
    if path.suffix == ".txt":
        try:
            found = read_small(path, MAX_TEXT).decode("utf-8", "replace").splitlines()
        except OSError as error:
            raise FormatError(f"cannot read {path}: {error.strerror}", "check the path") from None
    else:
        found = [question_text(row) for _, row in read_rows(path)]
    kept = [text for text in found if text.strip()]
    if not kept:
        raise UsageError(f"--measure names {path}, which holds no text", "name one with a text a line, or rows")
    step = max(1, len(kept) // TEXTS)
    return kept[::step][:TEXTS]


def _vectors(path: Path, texts: list[str], threads: int, on_progress: Progress) -> NDArray[np.float32]:
    """[n, D], each of length 1."""
    with closing(EncoderFile(path, threads)) as opened:
        embedder = opened.embedder
        out = np.empty((len(texts), embedder.width), np.float32)
        tokens = [embedder.truncate(embedder.encode(text)) for text in texts]
        for done, _ in enumerate(embedder.embed(out, tokens)):
            on_progress("measuring", min(done, len(texts)), len(texts))
    return out


def write_table(path: Path, encoder: EncoderFile, width: int, on_progress: Progress) -> dict[str, Any]:
    """Write the GGUF of a table of one vector a token: model2vec's recipe (Tulkens and van Dongen, 2024). Returns its
    facts. Raises UsageError for a width above the encoder's.

    Each token passes through the encoder alone, between [CLS] and [SEP]. Of these vectors the principal components are
    kept, and a token weighs a / (a + p), where p is its frequency by Zipf's law: vocabularies are sorted by it. Tokens
    that no text can hold are left out. Vectors are int8 with one scale, which a vector of length 1 does not need.
    """
    if width > encoder.embedder.width:
        raise UsageError(f"static is {width}, the encoder's vectors have {encoder.embedder.width} numbers",
                         f"give at most {encoder.embedder.width}")
    gguf = encoder.gguf
    tokenizer = WordPiece(gguf)
    marks = {cast(int, gguf.metadata[key]) for key in _MARK_TOKENS if key in gguf.metadata}
    kept = [i for i in range(tokenizer.n_vocab) if i in marks or tokenizer.is_reached(i)]
    vectors = _of_tokens(encoder, tokenizer, kept, on_progress)
    reduced, explained = _principal(vectors, width)
    weighted = reduced * _weights(len(kept))[:, None]
    weighted[np.isin(kept, list(marks))] = 0
    table = np.round(weighted * (127 / np.abs(weighted).max())).astype(np.int8)
    tensor = Tensor("token_embd.weight", table.shape, "I8", table.reshape(-1).view(np.uint8))
    metadata = {"general.type": "model", f"{TABLE}.embedding_length": width, **_keys(gguf, kept)}
    write_gguf(path, TABLE, metadata, {tensor.name: tensor})
    return {"tokens": len(kept), "width": width, "variance_kept": explained}


def _of_tokens(encoder: EncoderFile, tokenizer: WordPiece, kept: list[int], on_progress: Progress) -> NDArray[
        np.float32]:
    """[n, D] by the encoder, each of length 1."""
    out = np.empty((len(kept), encoder.embedder.width), np.float32)
    for begin in range(0, len(kept), BATCH):
        on_progress("computing tokens", begin, len(kept))
        texts = [[tokenizer.cls, token, tokenizer.sep] for token in kept[begin : begin + BATCH]]
        for _ in encoder.embedder.embed(out[begin : begin + BATCH], texts):
            pass
    return out


def _principal(vectors: NDArray[np.float32], width: int) -> tuple[NDArray[np.float64], float]:
    """[n, width], the first principal components; their share of the variance."""
    centred = vectors - vectors.mean(0, dtype=np.float64)
    values, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1][:, :width]
    signs = np.sign(axes[np.abs(axes).argmax(0), np.arange(width)])  # of an axis either would do
    return centred @ (axes * signs), float(values[::-1][:width].sum() / values.sum())


def _weights(count: int) -> NDArray[np.float64]:
    shares = 1 / np.arange(2, count + 2)
    shares /= shares.sum()
    return _A / (_A + shares)


def _keys(gguf: Gguf, kept: list[int]) -> dict[str, Any]:
    """The keys of the vocabulary of these tokens."""
    new = {old: i for i, old in enumerate(kept)}
    keys = {key: gguf.metadata[key] for key in _KEPT if key in gguf.metadata}
    tokens = cast(list[str], gguf.metadata["tokenizer.ggml.tokens"])
    keys["tokenizer.ggml.tokens"] = [tokens[i] for i in kept]
    return keys | {key: new[cast(int, gguf.metadata[key])] for key in _MARK_TOKENS if key in gguf.metadata}
