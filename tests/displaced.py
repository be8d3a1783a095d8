"""The same request to a model, with a seed, where the cache's cells before it differ: displaced.py MODEL THREADS.

It writes JSON: {what came before: [text, log-probabilities]}. A program, as pytest's process has one thread of OpenMP.
"""

import json
import sys

from edgetune.serving.batcher import KEPT, Batcher
from edgetune.serving.llama import LlamaModel

PARALLEL = 2
CELLS = (0, 215, 230, 350)  # before it; with two threads the 257th begins the second one's part
STORY = "Once upon a time there was a lamp that knew the house, its blinds and its heating, and also the garden. "


def answers(model, threads):
    found = {}
    with LlamaModel(model, context=2048, threads=threads, sequences=PARALLEL + KEPT) as served:
        asked = served.tokenizer.encode(STORY * 2, bos=True)[:33]  # two pieces, and a token that is read by itself
        for count in CELLS:
            batcher = Batcher(served, parallel=PARALLEL, queue=9)
            batcher.start()
            if count:
                batcher.submit([5] * count, max_tokens=1).text()
            found[f"before {count}, read"] = ask(batcher, asked)
            other = batcher.submit([7] * 40, max_tokens=24, temperature=1.0, seed=3)
            found[f"before {count}, kept, in company"] = ask(batcher, asked)
            other.text()
            batcher.stop()
    return found


def ask(batcher, tokens):
    answer = batcher.submit(tokens, max_tokens=28, seed=42, temperature=0.8, logprobs=0)
    return answer.text(), [token.logprob for token in answer.logprobs]


if __name__ == "__main__":
    json.dump(answers(sys.argv[1], int(sys.argv[2])), sys.stdout)
