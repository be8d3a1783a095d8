"""Whether llama.cpp loads a file, asked of a small process that forks for each, since llama.cpp aborts on some: to fork
a process of tests, which holds PyTorch, takes longer than to load a tiny model.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from edgetune.llamacpp import library

TAKEN = 11  # exit codes
REFUSED = 10


class Loader:
    """Ends with the block."""

    def __enter__(self) -> Loader:
        self._process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         stderr=subprocess.DEVNULL, text=True)
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.communicate()

    def loads(self, path: Path) -> bool:
        assert self._process.stdin
        assert self._process.stdout
        print(path, file=self._process.stdin, flush=True)
        said = self._process.stdout.readline()
        assert said in ("loaded\n", "not\n"), said
        return said == "loaded\n"


def main() -> None:
    llama = library.load()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            options = llama.llama_model_default_params()
            model = llama.llama_model_load_from_file(os.fsencode(line.rstrip("\n")), options)
            os._exit(TAKEN if model else REFUSED)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print("loaded" if code == TAKEN else "not", flush=True)


if __name__ == "__main__":
    main()
