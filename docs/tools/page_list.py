"""llms.txt: the pages of the documentation with a sentence each, for programs that read it (llmstxt.org)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = {"tutorial": "Tutorials", "how-to": "How to", "reference": "Reference", "explanation": "Explanation",
           "experimental": "Experimental", "results": "Results", "development": "Development"}
HEAD = """\
# edgetune

> Fine-tuning of small language models (GGUF) on the device that runs them: a command line, a Python library, and a
> server with OpenAI's API that learns from corrections. Linux, x86-64 and aarch64, no GPU needed."""


def lines() -> Iterator[str]:
    yield HEAD
    for folder, title in FOLDERS.items():
        yield from ("", f"## {title}", "")
        for page in sorted((ROOT / "docs" / folder).glob("*.md")):
            text = page.read_text("utf-8")
            title = text.partition("\n")[0].lstrip("# ")
            sentence = "" if folder == "results" else first_sentence(text)
            yield f"- [{title}]({page.relative_to(ROOT)}): {sentence}".removesuffix(": ")
    yield ""


def first_sentence(page: str) -> str:
    """The first sentence of a page that is no heading, table, program or comment."""
    text = re.sub(r"```.*?```|<!--.*?-->", "", page, flags=re.S)
    paragraph = next((part for part in text.split("\n\n")[1:] if re.match(r"[\w*`\[]", part.strip())), "")
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", " ".join(paragraph.split())).replace("**", "")
    return re.split(r"(?<=\.) (?=[A-Z`])", plain.removeprefix("Experimental. "))[0]
