"""What compression costs and what distillation gives back: SmolLM2 by the commands that a person types.

    python tests/proofs/compressed.py [--only NAME ...] [--out compressed.jsonl]

types        llama.cpp's types with importance matrix, and --target-size at the bytes of each
narrow       a quarter fewer weights, as cut and fitted, and after distillation on WikiText-2
trimmed      8,192 tokens from Snips and the whole vocabulary: file, seconds and held-out loss of a training
board        compressed for a Raspberry Pi Zero 2 W, trained in the memory that it has, Snips answered before and after
onnx         int8 in ONNX and llama.cpp's Q8_0: size and agreement with the source

Each row of the table is a bundle with its size and what it costs (KL to the source, perplexity, agreement). The source
of `types` is SmolLM2 with the residue that Q4_1 once took from it, in F16. Needs ../shared. Results are
added to --out, and what it already holds is not measured again.

Exits with 1 unless KL at llama.cpp's sizes is at least 25 % below that of its own types, distillation takes away half
of the KL that narrowing adds, and the board's training keeps to its memory.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from peers.snips import SYSTEM
from proofs.compared import Result, add_result, arguments, edgetune, end, folder_of, read_results

from edgetune.compress.source import floats
from edgetune.formats.gguf import open_gguf

TYPES = ("Q4_K_M", "Q3_K_M", "Q2_K")
BOARD = "raspberry-pi-zero-2w"
VOCABULARY = 8192
ROWS = 1000
ANSWERS = 100


def write_residue(path: Path, out: Path, seed: int = 0) -> None:
    """The Q4_1 GGUF at `path` as F16; each weight gets a uniform residue within half its block's step, as what
    quantization once took from it. Without it the model goes back into Q4_1 without loss, and any comparison is a sham.
    """
    stored = open_gguf(path)
    model = floats.read(stored)
    rng = np.random.default_rng(seed)
    tensors = dict(model.tensors)
    for name, tensor in stored.tensors.items():
        if tensor.format == "Q4_1":
            blocks = tensor.data.reshape(-1, 20)
            steps = np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float32)  # [n, 1]
            residue = steps * rng.uniform(-0.5, 0.5, (len(blocks), 32)).astype(np.float32)
            tensors[name] = tensors[name] + residue.reshape(tensor.shape)
    floats.write(out, model.with_keys(tensors))


class Proof:
    """Files of one run. made: the bundles of this run by name, each with what `compress` says of it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.model = args.model
        self.folder = folder_of(args)
        data = args.shared / "data"
        self.text = data / "wikitext2_valid.txt"
        self.train = data / "snips_train.jsonl"
        self.dev = data / "snips_dev.jsonl"
        self.out = args.out
        self.results = read_results(args.out)

    def bundle(self, name: str, source: Path, *options: object) -> Result:
        """Of a compression, which is made where it is not there yet."""
        for result in self.results:
            if result["name"] == name:
                return result
        path = self.folder / f"{name.replace(' ', '-')}.edge"
        made = edgetune("compress", source, "-o", path, *options, "--json")
        result = {"name": name, "path": str(path), "bytes": sum(file.stat().st_size for file in path.glob("model.*")),
                  "cost": made["cost"], "device": made.get("device"), **self.trained(name, path, made.get("device"))}
        add_result(self.out, self.results, result)
        print(f"{name}: {line_of(result)}", flush=True)
        return result

    def trained(self, name: str, bundle: Path, board: dict[str, Any] | None) -> Result:
        """What a training on Snips says of the bundle: for a board, and where two vocabularies are compared."""
        if not name.startswith(("trimmed", "board")):
            return {}
        rows = self.folder / "rows.jsonl"
        rows.write_text("".join(self.train.read_text("utf-8").splitlines(keepends=True)[:ROWS]), encoding="utf-8")
        out = self.folder / f"{name.replace(' ', '-')}-adapter"
        memory = ["--memory", f"{board['budget_bytes'] >> 20}M"] if board else []
        run = edgetune("train", bundle, rows, "-o", out, "--system", SYSTEM, "--max-length", 256, "--epochs", 1,
                       "--no-answers", *memory, "--json")
        asked = ["--system", SYSTEM, "--limit", ANSWERS, "--json"]
        before = edgetune("eval", bundle, self.dev, *asked)
        after = edgetune("eval", bundle, self.dev, "--adapter", out, *asked)
        return {"train": {"seconds": run["seconds"], "peak_mib": run["peak_rss_mib"],
                          "loss": [before["loss"], after["loss"]], "exact": [before["exact"], after["exact"]]}}


def types(proof: Proof) -> Iterator[str]:
    source = proof.folder / "residue.gguf"
    if not source.exists():
        write_residue(proof.model, source)
    for kind in TYPES:
        theirs = proof.bundle(f"types {kind}", source, "--calibrate", proof.text, "--type", kind)
        ours = proof.bundle(f"types {kind} bytes", source, "--calibrate", proof.text, "--target-size", theirs["bytes"])
        if ours["cost"]["kl"] > 0.75 * theirs["cost"]["kl"]:
            yield f"{kind}: KL {ours['cost']['kl']:.3f} at its bytes, {theirs['cost']['kl']:.3f} of its own"


def narrow(proof: Proof) -> Iterator[str]:
    options = ["--calibrate", proof.text, "--width", 0.7, "--type", "F16"]
    cut = proof.bundle("narrow", proof.model, *options)
    healed = proof.bundle("narrow distilled", proof.model, *options, "--distill", proof.text)
    if healed["cost"]["kl"] > 0.5 * cut["cost"]["kl"]:
        yield f"distilled: KL {healed['cost']['kl']:.3f} of {cut['cost']['kl']:.3f}"


def trimmed(proof: Proof) -> Iterator[str]:
    options = ["--calibrate", proof.train, "--type", "Q4_1"]
    proof.bundle("trimmed not", proof.model, *options)
    proof.bundle("trimmed", proof.model, *options, "--vocab", VOCABULARY, "--vocab-from", proof.train)
    yield from ()


def board(proof: Proof) -> Iterator[str]:
    found = proof.bundle("board", proof.model, "--calibrate", proof.train, "--vocab", VOCABULARY, "--vocab-from",
                         proof.train, "--device", BOARD)
    limit = found["device"]["budget_bytes"] >> 20
    if found["train"]["peak_mib"] > limit:
        yield f"{BOARD}: {found['train']['peak_mib']:.0f} MiB of {limit}"


def onnx(proof: Proof) -> Iterator[str]:
    proof.bundle("onnx", proof.model, "--calibrate", proof.text, "--format", "onnx")
    proof.bundle("onnx not, Q8_0", proof.model, "--calibrate", proof.text, "--type", "Q8_0")
    yield from ()


PROOFS = {"types": types, "narrow": narrow, "trimmed": trimmed, "board": board, "onnx": onnx}


def line_of(result: Result) -> str:
    cost = result["cost"] or {}
    said = f"{result['bytes'] / 1e6:.1f} MB"
    said += f", KL {cost['kl']:.4f}, perplexity {cost['perplexity']:.2f}, top-1 {cost['top1']:.1%}" if cost else ""
    if train := result.get("train"):
        said += (f"; trained in {train['seconds']:.0f} s and {train['peak_mib']:.0f} MiB, loss {train['loss'][0]:.3f} "
                 f"to {train['loss'][1]:.4f}, exact {train['exact'][0]:.0%} to {train['exact'][1]:.0%}")
    return said


def main(words: Sequence[str] | None = None) -> None:
    args = arguments(__doc__, "compressed.jsonl", PROOFS).parse_args(words)
    proof = Proof(args)
    end([what for name in args.only for what in PROOFS[name](proof)])


if __name__ == "__main__":
    main()
