"""The floors: a module imports only from lower ones; device code never needs torch."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1] / "edgetune"
FLOORS = [
    ["errors"],
    ["config", "llamacpp", "arena", "device", "disk"],
    ["native", "gguf", "safetensors"],
    ["bundle", "tokens", "packing", "lora", "shape", "sampling", "metrics"],
    ["rows", "optim", "adapter", "context"],
    ["data", "peft", "projection", "objectives", "checkpoint", "merge"],
    ["model"],
    ["plan", "serve", "speed"],
    ["trainer", "evaluate"],
    ["identity"],
    ["train", "score"],
    ["demo", "info", "console", "bench"],
    ["cli"],
    ["__main__"],
]
FLOOR = {name: i for i, floor in enumerate(FLOORS) for name in floor}
ALLOWED = {"numpy", "gguf", "llama_cpp", "jinja2", "rich", "click"}


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).parts
        if parts != ("__init__.py",):
            yield path, parts[0].removesuffix(".py"), len(parts)


def test_imports_point_down():
    for path, name, depth in modules():
        assert name in FLOOR, f"{name} has no floor: name it in FLOORS"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == depth:
                for target in [node.module.split(".")[0]] if node.module else [a.name for a in node.names]:
                    if target in FLOOR and target != name:
                        assert FLOOR[target] < FLOOR[name], f"{path.name} imports {target}: not on a lower floor"


def test_device_code_imports_only_what_is_declared():
    for path, _, _ in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            names = ([a.name for a in node.names] if isinstance(node, ast.Import)
                     else [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else [])
            for name in names:
                top = (name or "").split(".")[0]
                assert top in ALLOWED or top in sys.stdlib_module_names, f"{path.name} imports {top}"


def test_training_loads_neither_torch_nor_llama_cpp(tmp_path):
    code = ("import sys, edgetune; edgetune.Trainer; "
            "print([m for m in ('torch', 'transformers', 'peft', 'llama_cpp') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          check=True)
    assert done.stdout.strip() == "[]"
