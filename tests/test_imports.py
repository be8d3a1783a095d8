"""The floors: a module imports only from lower ones; device code never needs torch."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1] / "edgetune"
FLOORS = [
    ["errors", "version", "meter"],
    ["options", "persisted", "llamacpp", "backend", "disk", "sandbox", "procfs", "toml", "families"],
    ["arena", "native", "lora_options"],
    ["config", "child", "template", "device", "gguf", "safetensors", "signature", "markup"],
    ["bundle", "tokens", "packing", "lora", "quantizer", "shape", "sampling", "tickets", "stream",
     "metrics", "sensors", "policy"],
    ["rows", "family", "adapter", "context", "governor", "answers"],
    ["data", "optim", "low_rank", "peft", "projection", "objectives", "checkpoint", "merge"],
    ["network"],
    ["structure", "passes"],
    ["model"],
    ["networks"],
    ["speed", "serve", "onnx_runtime", "sequences"],
    ["plan", "batching"],
    ["trainer", "evaluate", "divergence", "apart"],
    ["pace", "identity"],
    ["train", "score"],
    ["demo", "info", "console", "bench"],
    ["host", "daemon"],
    ["cli"],
    ["__main__"],
]
FLOOR = {name: i for i, floor in enumerate(FLOORS) for name in floor}
ALLOWED = {"numpy", "gguf", "llama_cpp", "jinja2", "rich", "click", "safetensors", "tomli",
           "typing_extensions"}  # the last: type checkers only
HOST_ALLOWED = ALLOWED | {"torch", "transformers", "tokenizers", "optimum", "onnx", "onnxruntime",
                          "huggingface_hub", "matplotlib", "cryptography"}  # extra: host
OPTIONAL = {"onnxruntime", "cryptography"}  # the device's own extras, imported where they are used
DAEMON = {"fastapi", "starlette", "pydantic", "pydantic_core", "uvicorn", "h11", "prometheus_client", "sdnotify",
          "httpx"}  # extra: daemon


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
    for path, room, _ in modules():
        daemon = DAEMON if room in ("daemon", "cli") else set()
        allowed = HOST_ALLOWED if room == "host" else ALLOWED | OPTIONAL | daemon
        for node in ast.walk(ast.parse(path.read_text())):
            names = ([a.name for a in node.names] if isinstance(node, ast.Import)
                     else [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else [])
            for name in names:
                top = (name or "").split(".")[0]
                assert top in allowed or top in sys.stdlib_module_names, f"{path.name} imports {top}"


def test_training_loads_neither_torch_nor_llama_cpp(tmp_path):
    code = ("import sys, edgetune; edgetune.Trainer; "
            "print([m for m in ('torch', 'transformers', 'peft', 'llama_cpp') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          check=True)
    assert done.stdout.strip() == "[]"
