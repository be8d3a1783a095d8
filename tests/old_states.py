"""What edgetune of December 2026 wrote, for tests that later versions open it."""

import tarfile
from pathlib import Path

ARCHIVE = Path(__file__).parent / "fixtures" / "states-2026-12.tar.xz"


def extracted(folder: Path, name: str) -> Path:
    """A copy of one of its folders, and of the models, in a folder; returns the copy."""
    with tarfile.open(ARCHIVE) as archive:
        wanted = [member for member in archive.getmembers()
                  if member.name.startswith((f"./{name}", "./index/encoder.gguf", "./tiny.gguf"))]
        archive.extractall(folder, wanted, filter="data")
    return folder / name
