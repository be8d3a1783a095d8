"""The public data sets of docs/results, brought by address and SHA-256, as the rows that the proofs read: `make data`.

    python tests/proofs/public_data.py [--folder ../shared/data] [--only snips gsm8k] [--host URL]

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
import re
import sys
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HOST = "https://raw.githubusercontent.com"
FOLDER = Path(__file__).parents[3] / "shared" / "data"
TIMEOUT = 60  # seconds without a byte
SNIPS_HELD_OUT = 300  # rows
GSM8K_ROWS = 1000
INTENTS = 20  # of CLINC150 and of BANKING77
INTENTS_SEED = 1234  # chooses them
PER_INTENT = {"labelled": 3, "prompts": 15, "unseen": 15}  # rows
SEEDS = (10, 11, 12)
Files = dict[str, bytes]


@dataclass(frozen=True)
class DataSet:
    """A public data set. sources: path in the repository -> SHA-256. made: file in the folder -> SHA-256."""

    repository: str  # owner/name
    commit: str
    licence: str
    sources: Mapping[str, str]
    convert: Callable[[Sequence[bytes]], Files]
    made: Mapping[str, str]


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


def gsm8k(sources: Sequence[bytes]) -> Files:
    """Word problems with worked answers, without the marks of a calculator."""
    rows = [json.loads(line) for line in sources[0].decode().splitlines()[:GSM8K_ROWS]]
    return {"gsm8k_train.jsonl": jsonl((row["question"], re.sub("<<.*?>>", "", row["answer"])) for row in rows)}


def wikitext2(sources: Sequence[bytes]) -> Files:
    return {"wikitext2_valid.txt": sources[0]}


def clinc150(sources: Sequence[bytes]) -> Files:
    data = json.loads(sources[0])
    return of_intents("clinc150", data["train"], data["test"])


def banking77(sources: Sequence[bytes]) -> Files:
    train, test = ([(row["text"], row["category"]) for row in csv.DictReader(io.StringIO(source.decode(), newline=""))]
                   for source in sources)
    return of_intents("banking77", train, test)


def of_intents(name: str, train: Sequence[Sequence[str]], test: Sequence[Sequence[str]]) -> Files:
    """For each seed the rows of `make tutor`: labelled ones and prompts from one set, unseen ones from the other."""
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
        snips,
        {
            "snips_train.jsonl": "e5498eca8c376aadd31bceaa1269e3a81821d83842b3eb1f42b72a61251f8d25",
            "snips_dev.jsonl": "22c4b8c49d0b3799a761641a2c2f209cf5f4651d863e03c5b4593d5201ca1b32",
        }),
    "gsm8k": DataSet(
        "openai/grade-school-math", "3101c7d5072418e28b9008a6636bde82a006892c", "MIT",
        {
            "grade_school_math/data/train.jsonl":
                "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
        },
        gsm8k,
        {
            "gsm8k_train.jsonl": "7ce923f07fc0ebb516540830c27896b0a54b8ba12b7218ccb35d397397fb0b4e",
        }),
    "wikitext2": DataSet(
        "pytorch/examples", "77f55b912142e11fcfdf5b530231fb9c52f181e8", "CC BY-SA 3.0",
        {
            "word_language_model/data/wikitext-2/valid.txt":
                "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
        },
        wikitext2,
        {
            "wikitext2_valid.txt": "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
        }),
    "clinc150": DataSet(
        "clinc/oos-eval", "828f8093932c8fe6ca7936c3d2e52903b1c523de", "CC BY 3.0",
        {
            "data/data_full.json":
                "36923c3705a59e08fe9c3883d8bc2dd966ef93e22cb78ac41171782a698d56e0",
        },
        clinc150,
        {
            "clinc150_labelled_10.jsonl": "0ed53423ea61c7a2c05d88abe0432b555ea54bb3641d43b6128244a76836e3c3",
            "clinc150_prompts_10.jsonl": "28b8264310eb936619a0f47afcf2538f0520b6076851737c568a2db8636df682",
            "clinc150_unseen_10.jsonl": "b6a140c096aa4c0d445005292acbade337db78c723d81f11dcf4d90ef809b211",
            "clinc150_labelled_11.jsonl": "b0af7801e606a63c94c424c9c9b6b5625bea44eb4ce7887e9e1486752c1315e4",
            "clinc150_prompts_11.jsonl": "20771d9469e3f31ea5b0e0bddb784b53a155e1deb6d4a33744a03631efa30d02",
            "clinc150_unseen_11.jsonl": "1c41b0f8bf51b15c4c2bb6c575f190fc5fb237ed99d9b44a7d51495c760e76bd",
            "clinc150_labelled_12.jsonl": "118bffb8c1a7382e05f905c29ae759db960c104333e3b7a160730c6f1d0a7804",
            "clinc150_prompts_12.jsonl": "b055dddde4b34cc4d923b171015b34bc16aa5eb6f5ac2b3070820be3de165234",
            "clinc150_unseen_12.jsonl": "fcdd7a09d7924d51c484a250eb31741c40df7dadf27ab46d5ec71046fcbe65c0",
        }),
    "banking77": DataSet(
        "PolyAI-LDN/task-specific-datasets", "57ec275d8078af65b7731c2a98be812d844a6d6b", "CC BY 4.0",
        {
            "banking_data/train.csv":
                "b06e26ac675513959a63135f11b94ea7786ed02da65db93a5650d8838cbc664b",
            "banking_data/test.csv":
                "d12d6e3bc4c3103966ae786dc435913c0c563dfa328f5a3646d0e62cfeeb474d",
        },
        banking77,
        {
            "banking77_labelled_10.jsonl": "408a376fae16da3a7d8c953b0c2d1ab3fb607ec7e7ddf0eadaace6f7b90844b0",
            "banking77_prompts_10.jsonl": "c7390628897b510a030b436db87c5ff24117bbc147795bae3d59269b0b4a02c5",
            "banking77_unseen_10.jsonl": "3db87166b70d64a04e6e5bc3352816c6d783e5a231a948511e799370526d0483",
            "banking77_labelled_11.jsonl": "1027f0f48567abc8118d64328f460d48d3a70684d610a2a919697531f4d5d53e",
            "banking77_prompts_11.jsonl": "c2fda633b9c0d5a4069f857138e9d211fe6cc21896e95dc87cb772592d94010d",
            "banking77_unseen_11.jsonl": "1887e14439faf7864c5e68721ff8c67f0ac81fe6961e9b62b2b3a286c5ba4e3f",
            "banking77_labelled_12.jsonl": "c1c62abf9f606f317f58386794341bf1ac5d4faa98800fb9d3c8d339bcef0f34",
            "banking77_prompts_12.jsonl": "d9eaa2012a382105c9f74adcedce25cc17320c63fae3c3bc432917d0eeab1939",
            "banking77_unseen_12.jsonl": "379096c9492adbc7994ead5d44261302619d2daacb60db976c31f266529652d4",
        }),
}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def fetched(url: str, expected: str) -> bytes:
    """What the address gives. Raises ValueError where that is nothing, or has another digest."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            data: bytes = answer.read()
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        raise ValueError(f"{url} gives nothing: {error}") from error
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
    there = {name: folder / name for name in one.made}
    if all(path.is_file() and digest(path.read_bytes()) == one.made[name] for name, path in there.items()):
        return False
    made = one.convert([fetched(f"{host}/{one.repository}/{one.commit}/{path}", expected)
                        for path, expected in one.sources.items()])
    wrong = [name for name, expected in one.made.items() if digest(made[name]) != expected]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} came out with another SHA-256 than the results were measured with")
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in made.items():
        written(there[name], data)
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
        print(f"{name}: {len(one.made)} files {'made' if new else 'are there'} ({one.repository}, {one.licence})")
    sys.exit(failed)


if __name__ == "__main__":
    main()
