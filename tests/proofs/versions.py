"""The time of a training step in two versions of edgetune, whose processes step in turn, so that load meets both alike.

    python tests/proofs/versions.py OLD NEW MODEL.gguf [--steps 40] [--length 256] [--batch 4] [--precision fast]

OLD and NEW are checkouts with built kernels. Prints the median of the ratios new / old of neighbouring steps, with a
bootstrap interval of 95 %, and whether all losses are the same.
"""

import argparse
import random
import statistics
import subprocess
import sys
import time

READY = "ready"


def child(tree: str, model: str, batch: str, length: str, precision: str) -> None:
    """Steps once for each line of stdin, and prints seconds and loss."""
    sys.path.insert(0, tree)
    from edgetune.bench.train import random_rows
    from edgetune.training.trainer import Trainer
    trainer = Trainer(model, steps=10_000, batch_size=int(batch), max_length=int(length), threads=2,
                      precision=precision, lr=1e-5)
    trainer.add_examples(random_rows(400, 2 * int(batch), int(length), seed=1))
    for _ in range(2):
        trainer.step()
    print(READY, flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        loss = trainer.step().loss
        print(time.perf_counter() - began, loss, flush=True)


def step_of(process: "subprocess.Popen[str]") -> tuple[float, float]:
    """The seconds and the loss of one step."""
    assert process.stdin
    assert process.stdout
    process.stdin.write("\n")
    process.stdin.flush()
    seconds, loss = map(float, process.stdout.readline().split())
    return seconds, loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("model")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--precision", default="fast")
    args = parser.parse_args()
    options = [args.model, str(args.batch), str(args.length), args.precision]
    both = [subprocess.Popen([sys.executable, __file__, "--child", tree, *options], text=True, stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE) for tree in (args.old, args.new)]
    for process in both:
        assert process.stdout
        assert process.stdout.readline().strip() == READY
    ratios = []
    same = True
    for number in range(args.steps):
        order = both if number % 2 else both[::-1]
        found = {process: step_of(process) for process in order}
        (old, old_loss), (new, new_loss) = (found[process] for process in both)
        ratios.append(new / old)
        same = same and old_loss == new_loss
    for process in both:
        process.communicate()
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(2000))
    print(f"new / old: {statistics.median(ratios):.4f}, 95 % {medians[50]:.4f} to {medians[-51]:.4f}, "
          f"{args.steps} steps; losses {'the same' if same else 'differ'}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
