"""Asks a daemon all that docs/reference/http-api.md shows, and keeps the answers, shortened: tests/api_examples.json,
and tests/parts/NAME/api_examples.json of each part. It takes a minute, and needs the models smollm2 and minilm. Then
run `make docs`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from api_examples import told  # noqa: E402
from daemons import daemon  # noqa: E402
from services import same_holdout  # noqa: E402

from edgetune.formats.named import find_model  # noqa: E402
from edgetune.machine.policy import Policy  # noqa: E402


@contextmanager
def served(model: Path, **options: object) -> Iterator[str]:
    """Runs a daemon with a state of its own, and yields its URL."""
    state = Path(mkdtemp(prefix="state-", dir=model.parent))
    same_holdout(state)
    with daemon(model, state, policy=Policy(govern=False), **options) as running:
        yield running.url


def main() -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        for model, beside in (("smollm2", "model.gguf"), ("minilm", "minilm")):
            (folder / beside).symlink_to(find_model(model).resolve())
        os.chdir(folder)
        os.environ["XDG_STATE_HOME"] = str(folder / "home")
        for file, examples, _ in told(folder, served):
            lines = [json.dumps({name: value for name, value in asdict(example).items() if value},
                                ensure_ascii=False) for example in examples]
            file.write_text("[\n" + ",\n".join(lines) + "\n]\n", "utf-8")
            print(f"{len(examples):3} examples in {file.relative_to(ROOT)}", flush=True)


if __name__ == "__main__":
    main()
