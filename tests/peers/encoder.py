"""MiniLM learns Snips by edgetune and in PyTorch: the same rows, tags and decoding, one after the other in one run.

    python tests/peers/encoder.py [--rows 50 200 1000] [--seeds 0 1 2] [--epochs 15] [--shared ../shared]

edgetune trains LoRA on the Q8_0 of `edgetune pull minilm`, with its defaults, as a command. PyTorch trains the whole
network of the package's checkpoint in float32, AdamW lr 2e-4 falling to 0, batches of 8 padded rows, as many passes.
Both learn the same tags of the same tokens, and their answers are decoded by the same function; so what differs is the
training. Exact answers to the 300 rows of snips_dev. Seconds and memory are those of processes of their own, after
importing; needs the rows of make data.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np

from edgetune.data import labelled
from edgetune.data.slots import Form, form_of
from edgetune.data.tags import best_tags
from edgetune.evaluation.judge import same
from edgetune.formats.named import find_model
from edgetune.formats.packaged import archive
from edgetune.llamacpp.wordpiece import WordPiece

RATE = 2e-4
BATCH = 8


def read(path, first, count):
    lines = path.read_text("utf-8").splitlines()[first:first + count]
    return [(row["prompt"].strip(), row["completion"]) for row in map(json.loads, lines)]


def by_edgetune(rows, dev, seed, epochs):
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "rows.jsonl", Path(folder) / "out"
        data.write_text("".join(json.dumps({"prompt": q, "completion": a}) + "\n" for q, a in rows))
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "edgetune", "train", "minilm", data, "-o", out, "--eval", "none",
                        "--no-answers", "--seed", str(seed), "--epochs", str(epochs)], check=True, capture_output=True)
        seconds = time.monotonic() - began
        peak = json.loads((out / "run.json").read_text())["peak_rss_mib"]
        from edgetune.serving.classifier import Classifier
        with Classifier("minilm", out) as served:
            said = [found.label for found in served.classify([question for question, _ in dev])]
    return said, seconds, peak


def in_pytorch(rows, dev, seed, epochs):
    import torch
    from transformers import BertModel
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(archive()) as packed:
        packed.extractall(folder)
        bert = BertModel.from_pretrained(folder)
    torch.manual_seed(seed)
    began = time.monotonic()
    tokenizer = WordPiece(find_model("minilm"))
    form = form_of([(question, json.loads(answer)) for question, answer in rows])
    sizes = [*(len(field.values) for field in form.closed), form.tags]
    heads = torch.nn.ModuleList(torch.nn.Linear(bert.config.hidden_size, size) for size in sizes)
    made = [example(form, tokenizer, *row) for row in rows]
    steps = epochs * -(-len(made) // BATCH)
    optimizer = torch.optim.AdamW([*bert.parameters(), *heads.parameters()], RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    bert.train()
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(made))
        for begin in range(0, len(order), BATCH):
            loss(torch, bert, heads, [made[i] for i in order[begin:begin + BATCH]]).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    seconds = time.monotonic() - began
    bert.eval()
    with torch.no_grad():
        said = [answer(torch, bert, heads, form, tokenizer, question) for question, _ in dev]
    return said, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def example(form, tokenizer, question, written):
    encoded = tokenizer.encode_places(question)
    found = json.loads(written)
    tags = form.tagged(found, question, encoded.places)
    return encoded.ids, form.classes(found), [tag if begin < end else -100 for tag, (begin, end) in
                                              zip(tags, encoded.places, strict=True)]


def states(torch, bert, ids):
    """The states of padded rows, and the vector of each: the mean of its tokens."""
    longest = max(map(len, ids))
    tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
    found = bert(tokens, attention_mask=mask).last_hidden_state
    vectors = (found * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return found, vectors


def loss(torch, bert, heads, batch):
    ids, classes, tags = zip(*batch, strict=True)
    found, vectors = states(torch, bert, ids)
    longest = found.shape[1]
    padded = torch.tensor([[*row, *[-100] * (longest - len(row))] for row in tags])
    entropy = torch.nn.functional.cross_entropy
    total = entropy(heads[-1](found).transpose(1, 2), padded)
    for number, head in enumerate(heads[:-1]):
        total = total + entropy(head(vectors), torch.tensor([row[number] for row in classes]))
    return total


def answer(torch, bert, heads, form: Form, tokenizer, question):
    encoded = labelled.encode(tokenizer, question, 512)
    found, vectors = states(torch, bert, [encoded.ids])
    logp = torch.log_softmax(heads[-1](found[0]), -1).numpy()
    classes = [int(head(vectors)[0].argmax()) for head in heads[:-1]]
    return form.answer(classes, best_tags(logp, question, encoded.places), question, encoded.places)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[50, 200, 1000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[3] / "shared")
    parser.add_argument("--one", nargs=3, metavar=("WHO", "SEED", "ROWS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    data = args.shared / "data"
    if args.one:
        who, seed, count = args.one[0], *map(int, args.one[1:])
        dev = read(data / "snips_dev.jsonl", 0, 300)
        rows = read(data / "snips_train.jsonl", 1000 * seed, count)
        said, seconds, peak = (by_edgetune if who == "edgetune" else in_pytorch)(rows, dev, seed, args.epochs)
        exact = [same(right, one) for (_, right), one in zip(dev, said, strict=True)]
        intents = [json.loads(right)["intent"] == json.loads(one).get("intent")
                   for (_, right), one in zip(dev, said, strict=True)]
        print(json.dumps({"exact": sum(exact), "intent": sum(intents), "of": len(dev), "seconds": round(seconds, 1),
                          "peak_mib": round(peak)}))
        return
    for seed in args.seeds:
        for count in args.rows:
            for who in ("edgetune", "pytorch"):
                done = subprocess.run([sys.executable, __file__, "--one", who, str(seed), str(count), "--epochs",
                                       str(args.epochs), "--shared", args.shared], check=True, capture_output=True,
                                      text=True)
                print(f"seed {seed}, {count} rows, {who}: {done.stdout.splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    main()
