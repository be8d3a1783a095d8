"""Writes the generated pages and tables of docs/ from the code; a file of this folder makes each.

`make docs` runs it, `python docs/tools/generate.py --check` says whether the files are current.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import command_page
import family_tables
import file_tables
import fits
import method_tables as methods
import option_tables as options
import page_list
import python_page
import track_record

from edgetune.formats.named import KNOWN
from edgetune.objectives.base import objectives

FOLDER = Path(__file__).parents[1]
sys.path.insert(0, str(FOLDER.parent / "tests"))  # tables that tests ask a daemon for
NOTE = "<!-- Written by docs/tools/generate.py; `make docs` writes it again. -->"


def with_tables(page: str, tables: Mapping[str, Iterable[str]]) -> str:
    """A page as it is, but what stands between the marks of each table, written again."""
    text = (FOLDER / page).read_text("utf-8")
    for kind, lines in tables.items():
        begin = f"<!-- {kind}, written by docs/tools/generate.py -->\n"
        before, _, rest = text.partition(begin)
        text = before + begin + "\n".join(lines) + "\n<!-- end -->" + rest.partition("<!-- end -->")[2]
    return text


def models_page() -> str:
    terms: dict[str, list[str]] = {}
    for name, source in KNOWN.items():
        if source.terms:
            terms.setdefault(source.terms, []).append(f"`{name}`")
    names = [*(f"- `{name}`: " + (f"`{source.package.name}` of PyPI" if source.package else f"`{source.repo}`")
               for name, source in KNOWN.items()),
             "", "Terms that limit their use:", "",
             *(f"- {', '.join(of_these)}: {text}" for text, of_these in terms.items())]
    return with_tables("how-to/choose-a-model.md", {"names": names, "boards": fits.table()})


def http_page() -> str:
    import http_api
    return page("HTTP API", http_api.lines())


def cli_page() -> str:
    return page("Commands and options", command_page.lines())


def page(title: str, lines: Iterable[str]) -> str:
    return "\n".join([f"# {title}", "", NOTE, "", *lines])


def methods_page() -> str:
    kinds = {**objectives(), **{kind.__name__: kind for kind in methods.SHARED}}
    found = {name: [*methods.inherited(kind), *options.listed(methods.options_of(kind))]
             for name, kind in kinds.items()}
    tables = {f"options of {name}": ["", *lines] for name, lines in found.items() if lines}
    return with_tables("reference/methods.md", {"methods": methods.summary(), "rows": methods.row_shapes(), **tables})


def families_page() -> str:
    return with_tables("reference/families.md", {"families": family_tables.lines()})


def names_page() -> str:
    return with_tables("reference/python.md", {"names": python_page.lines()})


def files_page() -> str:
    return with_tables("reference/files.md", {"exit codes": file_tables.exit_codes(),
                                              "environment": file_tables.environment()})


def record_page() -> str:
    return with_tables("development/track-record.md", {"defects": track_record.lines()})


def list_page() -> str:
    return "\n".join(page_list.lines())


PAGES = {"reference/http-api.md": http_page, "reference/cli.md": cli_page, "reference/methods.md": methods_page,
         "reference/families.md": families_page,
         "reference/files.md": files_page, "reference/python.md": names_page, "how-to/choose-a-model.md": models_page,
         "development/track-record.md": record_page,
         "../llms.txt": list_page}  # the last one reads the others


def stale() -> list[str]:
    """The pages that differ from what this program would write."""
    return [name for name, make in PAGES.items()
            if not (FOLDER / name).exists() or (FOLDER / name).read_text("utf-8") != make()]


def main() -> None:
    if "--check" in sys.argv:
        if names := stale():
            sys.exit(f"{', '.join(names)} in docs/: no longer what the code says; run make docs")
    else:
        for name, make in PAGES.items():
            (FOLDER / name).write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
