"""What stands for a package that only the extra dev brings, where it is missing: a test that uses it is skipped."""

import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest

OF_DEV = ("torch", "transformers", "tokenizers", "sentence_transformers", "optimum", "onnx", "onnxruntime", "peft",
          "sklearn", "scipy", "langchain_core", "langchain_openai", "langchain_typesafe", "pydantic_ai", "typesafe_sdk",
          "jevbench", "schemathesis", "playwright", "axe_playwright_python", "mypy")


def why_not(name: str | None) -> str:
    """Why a test that wants to import this module is skipped; "" for one that is not of such a package."""
    package = (name or "").partition(".")[0]
    return f"needs {package}: make install EXTRAS=dev" if package in OF_DEV else ""


class Absent(ModuleType):
    """A module, or anything in it. While tests are collected it does nothing, so that a file's other tests run."""

    __path__: Sequence[str] = ()
    collecting = True

    def __getattr__(self, name: str) -> "Absent":
        if Absent.collecting and name.startswith("__"):
            raise AttributeError(name)
        return self()

    def __call__(self, *_args: object, **_named: object) -> "Absent":
        if not Absent.collecting:
            pytest.skip(why_not(self.__name__))
        return Absent(self.__name__)

    __or__ = __ror__ = __getitem__ = __call__

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __mro_entries__(self, _bases: object) -> tuple[type, ...]:
        return ()


class Finder:
    """Finds what nothing else finds: it is the last of sys.meta_path, while tests are collected."""

    names = frozenset(name for name in OF_DEV if find_spec(name) is None)

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in self.names else None

    def create_module(self, spec: ModuleSpec) -> Absent:
        return Absent(spec.name)

    def exec_module(self, _module: ModuleType) -> None:
        """There is nothing to run."""

    def __enter__(self) -> None:
        sys.meta_path.append(self)

    def __exit__(self, *_exception: object) -> None:
        """The product finds no stand-ins when tests run."""
        sys.meta_path.remove(self)
        Absent.collecting = False
        for name in [name for name, module in sys.modules.items() if isinstance(module, Absent)]:
            del sys.modules[name]
