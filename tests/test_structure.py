"""The rooms: a module imports only from lower rooms, no circle joins modules; device code never needs torch."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import structure

from edgetune.manifest import manifests

MODULES = structure.modules()
ALLOWED = {"numpy", "gguf", "llama_cpp", "jinja2", "rich", "click", "psutil", "tomli", "safetensors",
           "typing_extensions"}  # the last for type checkers alone
COMPRESS = {"torch", "transformers", "tokenizers", "optimum", "onnx", "onnxruntime", "huggingface_hub",
            "cryptography"}  # extra: host
OPTIONAL = {"onnxruntime", "cryptography", "huggingface_hub", "rapidfuzz", "rouge_score", "nltk", "sacrebleu",
            "jsonschema", "referencing", "cuda", "pyarrow", "yaml", "apsw", "sqlite_vec",
            "pypdf"}  # a device's extras, imported where they are used
DAEMON = {"fastapi", "starlette", "pydantic", "pydantic_core", "uvicorn", "h11", "prometheus_client", "sdnotify",
          "httpx", "backports", "compression"}  # extra: daemon; the last is of Python 3.14 itself


@pytest.fixture(scope="module")
def edges():
    return structure.graph()


def test_no_large_file_is_in_the_project():
    """A result of a measurement that was added by mistake is larger than any text."""
    root = structure.ROOT.parent
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no checkout of this user's")
    large = [name for name in listed.stdout.split("\0") if name and (root / name).is_file()
             and (root / name).stat().st_size > 1 << 20]
    assert large == []


def test_every_box_has_a_floor():
    boxes = {structure.box(name) for name in MODULES} - {structure.FACE}
    assert boxes == structure.FLOOR.keys()


def test_imports_point_down_and_never_at_the_face(edges):
    assert structure.upward(edges) == []
    below = [name for name, targets in edges.items() if "" in targets and name]
    assert below == []


def test_no_circles(edges):
    assert structure.circle(edges) == []


def test_the_daemons_service_alone_puts_its_parts_together(edges):
    """None of them knows it, not even by its type; the jobs' table knows only the database, and names."""
    imports = {module: targets for module, targets in edges.items() if module.startswith("daemon.")}
    knowing = {module for module, targets in imports.items() if "daemon.service" in targets}
    parts = {module for module in imports if module.split(".")[1] in ("state", "jobs", "learning", "kinds")}
    assert len(parts) > 15
    assert not knowing & parts
    assert "daemon.api.app" in knowing  # what stands before it does
    assert {target for target in imports["daemon.jobs.table"] if target.startswith("daemon.")} == {
        "daemon.state.database", "daemon.kinds.registry"}


@pytest.mark.dev
def test_code_imports_only_what_is_declared():
    for name, path in MODULES.items():
        room = structure.box(name)
        allowed = ALLOWED | OPTIONAL
        if room in ("daemon", "cli"):
            allowed |= DAEMON
        if room == "compress":
            allowed |= COMPRESS
        if room == "parts":
            allowed |= DAEMON
            allowed |= {package for part in manifests() if name.startswith(f"parts.{part.name}.")
                        for package in part.packages}
        for node in ast.walk(structure.tree(path)):
            found = []
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found = [node.module or ""]
            for module in found:
                first = module.split(".")[0]
                assert first in allowed or first in sys.stdlib_module_names, f"{path.name} imports {first}"


HEAVY = {"numpy", "gguf", "llama_cpp", "torch", "jinja2", "safetensors", "psutil", "fastapi", "httpx"}
NOT_LOADED = {"import edgetune; dir(edgetune)": HEAVY | {"rich", "click"}, "import edgetune.cli": HEAVY,
              "import edgetune; edgetune.Trainer": {"torch", "transformers", "peft", "llama_cpp", "psutil"},
              # a training's least memory is counted from what is loaded: neither graders nor what answers
              "import edgetune.runs.train": {"html", "edgetune.evaluation.graders.base", "edgetune.serving.llama",
                                             "rich"}}


@pytest.mark.parametrize("statement", NOT_LOADED)
def test_what_is_imported_loads_little(statement, tmp_path):
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert NOT_LOADED[statement] & set(done.stdout.split()) == set()


def test_no_module_is_long():
    lines = {str(path): len(path.read_text("utf-8").splitlines())
             for folder in (structure.ROOT, Path(__file__).parent) for path in folder.rglob("*.py")}
    long = {name: count for name, count in lines.items() if count > 450}
    assert long == {}, "divide it: one idea a file"


@pytest.mark.dev
def test_class_names_are_unique():
    """A name says which class is meant without its module."""
    names = Counter(node.name for path in MODULES.values() for node in ast.walk(structure.tree(path))
                    if isinstance(node, ast.ClassDef))
    assert [name for name, count in names.items() if count > 1] == []
