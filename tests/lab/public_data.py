"""The public data sets of docs/results, brought by address and SHA-256, as the rows that the lab reads: `make data`.

Every source is a file of a public repository at one commit. A file whose digest is another is refused, and what is in
the folder with the right digest is not fetched again. --host names a mirror with the same paths.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import random
import sys
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

HOST = "https://raw.githubusercontent.com"
FOLDER = Path(__file__).parents[3] / "shared" / "data"
TIMEOUT = 60  # seconds without a byte
SNIPS_HELD_OUT = 300  # rows
INTENTS = 20  # of CLINC150 and of BANKING77
INTENTS_SEED = 1234  # chooses them
PER_INTENT = {"labelled": 3, "prompts": 15, "unseen": 15}  # rows
SEEDS = (0, 1, 2, 10, 11, 12)  # of docs/results/prompts.md
Files = dict[str, bytes]


@dataclass(frozen=True)
class DataSet:
    """A public data set. sources: path in the repository -> SHA-256. files: what is made of them. made: the SHA-256 of
    these files, one after the other.
    """

    repository: str  # owner/name
    commit: str
    licence: str
    sources: Mapping[str, str]
    convert: Callable[[Sequence[bytes]], Files]
    files: Sequence[str]
    made: str


def jsonl(rows: Iterable[tuple[str, str]]) -> bytes:
    return "".join(json.dumps({"prompt": prompt, "completion": completion}, ensure_ascii=False) + "\n"
                   for prompt, completion in rows).encode()


def snips(sources: Sequence[bytes]) -> Files:
    """Commands to intent and slots as JSON, shuffled. Some bytes are no UTF-8; a slot that occurs twice is a list."""
    rows = []
    for source in sources:
        (intent, utterances), = json.loads(source.decode("utf-8", "replace")).items()
        for utterance in utterances:
            found: dict[str, list[str]] = defaultdict(list)
            for part in utterance["data"]:
                if "entity" in part:
                    found[part["entity"]].append(part["text"].strip())
            slots = {name: values[0] if len(values) == 1 else values for name, values in found.items()}
            text = " ".join("".join(part["text"] for part in utterance["data"]).split())
            rows.append((text, json.dumps({"intent": intent, "slots": slots}, ensure_ascii=False)))
    random.Random(0).shuffle(rows)
    return {"snips_train.jsonl": jsonl(rows[:-SNIPS_HELD_OUT]), "snips_dev.jsonl": jsonl(rows[-SNIPS_HELD_OUT:])}


def clinc150(sources: Sequence[bytes]) -> Files:
    data = json.loads(sources[0])
    return of_intents("clinc150", data["train"], data["test"])


def banking77(sources: Sequence[bytes]) -> Files:
    train, test = ([(row["text"], row["category"]) for row in csv.DictReader(io.StringIO(source.decode(), newline=""))]
                   for source in sources)
    return of_intents("banking77", train, test)


def of_intents(name: str, train: Sequence[Sequence[str]], test: Sequence[Sequence[str]]) -> Files:
    """For each seed the rows of `make lab NAME=tutor`: labelled ones and prompts from one set, unseen ones from the
    other.
    """
    intents = sorted({intent for _, intent in train})
    random.Random(INTENTS_SEED).shuffle(intents)
    files = {}
    for seed in SEEDS:
        chance = random.Random(seed)
        drawn: dict[str, list[tuple[str, str]]] = {part: [] for part in PER_INTENT}
        for intent in intents[:INTENTS]:
            learned, others = (list(dict.fromkeys(text for text, label in rows if label == intent))
                               for rows in (train, test))
            chance.shuffle(learned)
            chance.shuffle(others)
            first = PER_INTENT["labelled"]
            drawn["labelled"] += [(text, intent) for text in learned[:first]]
            drawn["prompts"] += [(text, intent) for text in learned[first:first + PER_INTENT["prompts"]]]
            drawn["unseen"] += [(text, intent) for text in others[:PER_INTENT["unseen"]]]
        for part, rows in drawn.items():
            chance.shuffle(rows)
            files[f"{name}_{part}_{seed}.jsonl"] = jsonl(rows)
    return files


def files_of_intents(name: str) -> list[str]:
    return [f"{name}_{part}_{seed}.jsonl" for seed in SEEDS for part in PER_INTENT]


SETS = {
    "snips": DataSet(
        "sonos/nlu-benchmark", "b86ac7f1577868c42158d0dec77db50956046696", "CC0 1.0",
        {
            "2017-06-custom-intent-engines/AddToPlaylist/train_AddToPlaylist_full.json":
                "fee1b4645352e70ed8a40f1f87c3b53fc3bf75f8ebc82252a22b82c107e75b01",
            "2017-06-custom-intent-engines/BookRestaurant/train_BookRestaurant_full.json":
                "7677e82cd6e9a8191f0a4502568c786278c984900b4796d3628e46f1abf73ef4",
            "2017-06-custom-intent-engines/GetWeather/train_GetWeather_full.json":
                "86f414b2ad8a993134d85d16e25e5d337beae47cef993c0af2a5f440405c60f6",
            "2017-06-custom-intent-engines/PlayMusic/train_PlayMusic_full.json":
                "901ddbe9781d1fdb8196e789c543f80df3d29ca6e237da64947905adcc0312e4",
            "2017-06-custom-intent-engines/RateBook/train_RateBook_full.json":
                "bb43e4b74134300d5766f6b420d0357a63402987a225f6dc92c806c9c040ce04",
            "2017-06-custom-intent-engines/SearchCreativeWork/train_SearchCreativeWork_full.json":
                "87b3432de48c71c205aa5238b41d9e3f2d70bdfcd0bea2427544fb9e4bd5e5bb",
            "2017-06-custom-intent-engines/SearchScreeningEvent/train_SearchScreeningEvent_full.json":
                "5447e9440c02e2fb08c3ae16b9f58a4d1332b4bc77fd34691402b02aa4399765",
        },
        snips, ["snips_train.jsonl", "snips_dev.jsonl"],
        "3c2df861b48f6f52efead9cc1c446bb47f360c78a0b47252b00aea01df6a19ed"),
    "wikitext2": DataSet(
        "pytorch/examples", "77f55b912142e11fcfdf5b530231fb9c52f181e8", "CC BY-SA 3.0",
        {
            "word_language_model/data/wikitext-2/valid.txt":
                "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
        },
        lambda sources: {"wikitext2_valid.txt": sources[0]}, ["wikitext2_valid.txt"],
        "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8"),
    "clinc150": DataSet(
        "clinc/oos-eval", "828f8093932c8fe6ca7936c3d2e52903b1c523de", "CC BY 3.0",
        {
            "data/data_full.json":
                "36923c3705a59e08fe9c3883d8bc2dd966ef93e22cb78ac41171782a698d56e0",
        },
        clinc150, files_of_intents("clinc150"),
        "b00d4e960f8035e19f0868ab81ec3e8211dccfbcb495ef7959e126de5cfbc803"),
    "banking77": DataSet(
        "PolyAI-LDN/task-specific-datasets", "57ec275d8078af65b7731c2a98be812d844a6d6b", "CC BY 4.0",
        {
            "banking_data/train.csv":
                "b06e26ac675513959a63135f11b94ea7786ed02da65db93a5650d8838cbc664b",
            "banking_data/test.csv":
                "d12d6e3bc4c3103966ae786dc435913c0c563dfa328f5a3646d0e62cfeeb474d",
        },
        banking77, files_of_intents("banking77"),
        "d8805bfb38d6b1805e2f3905e09aaf4ae19d366738660fae5fe579e2273a5498"),
}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def in_words(error: Exception) -> object:
    """The system's words for an error, also for one that urllib wraps, without its number."""
    reason = getattr(error, "reason", None) or error
    return getattr(reason, "strerror", None) or reason


def fetched(url: str, expected: str) -> bytes:
    """What the address gives. Raises ValueError where that is nothing, or has another digest."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            data: bytes = answer.read()
    except (OSError, HTTPException) as error:
        raise ValueError(f"{url} cannot be read ({in_words(error)}); check the network, or name a mirror with "
                         "--host") from error
    if digest(data) != expected:
        raise ValueError(f"{url} has the SHA-256 {digest(data)}, not {expected}: it is not used")
    return data


def written(path: Path, data: bytes) -> None:
    """Writes a file that appears whole or not at all."""
    part = path.with_suffix(".part")
    part.write_bytes(data)
    part.replace(path)


def bring(one: DataSet, folder: Path, host: str) -> bool:
    """Makes the files of a data set that are missing or differ; False if none are. Raises ValueError."""
    paths = [folder / name for name in one.files]
    if all(path.is_file() for path in paths) and digest(b"".join(path.read_bytes() for path in paths)) == one.made:
        return False
    made = one.convert([fetched(f"{host}/{one.repository}/{one.commit}/{path}", expected)
                        for path, expected in one.sources.items()])
    if digest(b"".join(made[name] for name in one.files)) != one.made:
        raise ValueError("the rows have another SHA-256 than those that the results were measured with")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            written(path, made[path.name])
    except OSError as error:
        raise ValueError(f"{folder} cannot be written ({in_words(error)}); name another with --folder") from error
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--only", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--host", default=HOST)
    args = parser.parse_args()
    failed = False
    for name in args.only:
        one = SETS[name]
        try:
            new = bring(one, args.folder, args.host.rstrip("/"))
        except ValueError as error:
            failed = True
            print(f"{name}: {error}", file=sys.stderr)
            continue
        print(f"{name}: {len(one.files)} files {'made' if new else 'are there'} ({one.repository}, {one.licence})")
    sys.exit(failed)


if __name__ == "__main__":
    main()
