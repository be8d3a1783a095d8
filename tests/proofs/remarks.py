"""Corrections that people make in a chat: found, missed and false alarms, beside the plainest baseline.

    python tests/proofs/remarks.py [--chats tests/proofs/data/remarks.tsv] [--show after] [--rows rows.jsonl ...]

The baseline takes each message that begins with no, nein or non, or has one of the words wrong, falsch and faux. The
chats are made up: some were written before the patterns, some before their revision, and some after it, for which the
patterns were not changed. Commands and sums of public data sets correct nothing.
"""

import argparse
import csv
import json
import re
from pathlib import Path

from edgetune.data.remarks import remark_of

CHATS = Path(__file__).parent / "data" / "remarks.tsv"
BASELINE = re.compile(r"^(no|nope|nein|non)\b|\b(wrong|falsch|faux)\b", re.IGNORECASE)


def read_chats(path: Path = CHATS) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chats", type=Path, default=CHATS)
    parser.add_argument("--show", choices=["before", "revised", "after"])
    parser.add_argument("--rows", type=Path, nargs="*", default=[], help="Rows whose prompts correct nothing.")
    args = parser.parse_args()
    rows = read_chats(args.chats)
    print("chats   method    language  corrections  found  others  false alarms  right answers")
    for part in ("before", "revised", "after"):
        for language in ("en", "de", "fr"):
            of_language = [row for row in rows if (row["language"], row["written"]) == (language, part)]
            told(part, language, of_language, args.show == part)
    for path in args.rows:
        asked = [json.loads(line)["prompt"] for line in path.read_text(encoding="utf-8").splitlines()]
        alarms = [text for text in asked if remark_of("The lamp is on.", text)]
        print(f"{path.name}: {len(asked)} prompts, patterns {len(alarms)} false alarms, baseline "
              f"{sum(bool(BASELINE.search(text)) for text in asked)}")
        if args.show:
            print(*alarms, sep="\n")


def told(part: str, language: str, rows: list[dict[str, str]], show: bool) -> None:
    for method in ("baseline", "patterns"):
        found = 0
        alarms = 0
        right = 0
        for row in rows:
            is_one = row["correction"] == "1"
            remark = remark_of(row["answer"], row["remark"]) if method == "patterns" else None
            says = bool(remark or (method == "baseline" and BASELINE.search(row["remark"])))
            found += says and is_one
            alarms += says and not is_one
            right += bool(is_one and remark and remark.right == row["right"])
            if show and method == "patterns" and (says != is_one or (remark and remark.right != row["right"])):
                print("   ", row["correction"], row["remark"], remark)
        count = sum(row["correction"] == "1" for row in rows)
        print(f"{part:7} {method:9} {language:9} {count:<12} {found:<6} {len(rows) - count:<7} {alarms:<13} {right}")


if __name__ == "__main__":
    main()
