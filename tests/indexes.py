"""Documents, and what reads them, for tests of indexes."""

from pathlib import Path

import pytest
from encoders import WORDS, tiny_bert, write_encoder


def needs_retrieval() -> None:
    """Skips where the packages of the extra are not installed."""
    for name in ("apsw", "sqlite_vec", "pypdf"):
        pytest.importorskip(name)


def small_encoder(folder: Path) -> Path:
    """A random encoder that reads any text by its letters."""
    return write_encoder(folder / "encoder.gguf", tiny_bert(), WORDS)


def write_pdf(path: Path, pages: list[str]) -> Path:
    """A PDF with a line of text a page, each object written by hand."""
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
               "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    for number, text in enumerate(pages):
        content = f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET"
        objects += [f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 400 200] /Contents {5 + 2 * number} 0 R "
                    "/Resources << /Font << /F1 3 0 R >> >> >>",
                    f"<< /Length {len(content)} >>\nstream\n{content}\nendstream"]
    whole = b"%PDF-1.4\n"
    places = []
    for number, each in enumerate(objects, 1):
        places.append(len(whole))
        whole += f"{number} 0 obj\n{each}\nendobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    whole += (f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer\n<< /Size {len(objects) + 1} "
              f"/Root 1 0 R >>\nstartxref\n{len(whole)}\n%%EOF\n").encode()
    path.write_bytes(whole)
    return path


def small_index(folder: Path, texts: dict[str, str]) -> Path:
    """An index of these files by the random encoder, in which every question finds something."""
    from edgetune.parts.documents.building import build
    from edgetune.parts.documents.options import IndexOptions
    from edgetune.parts.documents.search import Encoding
    from edgetune.parts.documents.store import IndexStore
    needs_retrieval()
    documents = folder / "documents"
    documents.mkdir(parents=True)
    for name, text in texts.items():
        (documents / name).write_text(text)
    encoding = Encoding(small_encoder(folder), 1)
    build(documents, folder / "small.index", encoding, IndexOptions(chunk_tokens=90))
    encoding.close()
    store = IndexStore(folder / "small.index", writes=True)
    store.begin()
    store.set_facts({"least_evidence": 0.0})
    store.commit()
    store.close()
    return folder / "small.index"
