"""Reward functions in Python, with TRL's signature: f(prompts, completions, **columns) -> [float or None].

A function runs in this process, with all its rights: it is code of the person who names it.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data.question import asked_messages
from ...data.rewards import EXPECTED_REWARD, reward_of
from ...errors import EdgetuneError, UsageError, named
from .base import Grade, in_words
from .sample import Sample, choices_of

NAMED = re.compile(r"(?P<module>[^\s:]+):(?P<function>[A-Za-z_]\w*)")  # module:function, or file.py:function
GIVEN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments")
NO_COLUMNS = ("prompt", "completion", "completion_ids", *GIVEN)


@dataclass(frozen=True)
class RewardFunction:
    """Grades as a Grader does. What the function calls not applicable (None) is worth 0 and is left out of means.

    A prompt is a text where the row's is; else a list of messages, and the completions are such lists too. The other
    columns of the rows are lists, with None where a row lacks one. completion_ids are given where they are known.
    """

    name: str
    function: Callable[..., Any]
    passes_at: float = 1.0
    needs_model: bool = False
    process_bytes: int = 0
    compares: bool = False  # it may, but then only it knows

    def check_item(self, item: Mapping[str, Any]) -> None:
        """Raises DataError for a row without a prompt."""
        asked_messages(item)

    def grade(self, samples: Sequence[Sample], items: Sequence[Mapping[str, Any]]) -> list[Grade]:
        """Raises EdgetuneError where the function raises, or does not return a finite number or None for each."""
        grades: list[Grade] = [Grade(0.0)] * len(samples)
        for is_text in (True, False):
            which = [i for i, item in enumerate(items) if isinstance(item.get("prompt"), str) == is_text]
            if which:
                found = self._rewards([samples[i] for i in which], [items[i] for i in which], is_text)
                for i, grade in zip(which, found, strict=True):
                    grades[i] = grade
        return grades

    def _rewards(self, samples: list[Sample], items: list[Mapping[str, Any]], is_text: bool) -> list[Grade]:
        values = self._call(self._arguments(samples, items, is_text))
        if isinstance(values, str) or not hasattr(values, "__len__") or len(values) != len(samples):
            count = f"{len(values)} rewards" if hasattr(values, "__len__") else f"a {type(values).__name__}"
            raise EdgetuneError(f"the reward function {self.name} returned {count} for {len(samples)} completions",
                                "return a list with a number or None for each")
        return [self._grade(value) for value in values]

    def _grade(self, value: Any) -> Grade:
        if value is None:
            return Grade(0.0, applicable=False)
        reward = reward_of(value)
        if reward is None:
            raise EdgetuneError(f"a reward that the function {self.name} returned is {in_words(value)}",
                                f"{EXPECTED_REWARD}, or None where it does not apply")
        return Grade(reward)

    def _call(self, arguments: dict[str, Any]) -> Any:
        try:
            values = self.function(**arguments)
            return _awaited_now(values) if inspect.isawaitable(values) else values
        except (Exception, SystemExit) as error:
            raise EdgetuneError(f"the reward function {self.name} raised {named(error)}",
                                "mend it, or try it with edgetune grade") from error

    def _arguments(self, samples: list[Sample], items: list[Mapping[str, Any]], is_text: bool) -> dict[str, Any]:
        """The arguments that the function takes."""
        given: dict[str, Any] = {
            "prompts": [item["prompt"] if is_text else asked_messages(item) for item in items],
            "completions": [sample.text if is_text else [choices_of(sample)[0]["message"]] for sample in samples],
            "completion_ids": [list(sample.tokens) or None for sample in samples],
            "trainer_state": None, "log_extra": _ignored, "log_metric": _ignored, "environments": None}
        columns = dict.fromkeys(key for item in items for key in item if key not in NO_COLUMNS)
        given |= {key: [item.get(key) for item in items] for key in columns}
        parameters = inspect.signature(self.function).parameters
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            return given
        return {name: value for name, value in given.items() if name in parameters}


def load_reward(name: str) -> RewardFunction:
    """The function of "module:function", or of "file.py:function". Raises UsageError where there is none.

    A module is looked for where Python looks, and then in the current folder.
    """
    found = NAMED.fullmatch(name)
    if not found:
        raise UsageError(f"the reward function is {name!r:.80}", "write module:function, or file.py:function")
    return reward_in(found["module"], found["function"])


def reward_in(module: str, name: str) -> RewardFunction:
    """A function of a module, or of a file of Python. Raises UsageError where there is none."""
    try:
        imported = _module(module)
    except (Exception, SystemExit) as error:
        raise UsageError(f"the module of the reward function {module}:{name} cannot be imported ({named(error)})",
                         "name one that can, or a file: rewards.py:function") from error
    function = getattr(imported, name, None)
    if not callable(function):
        raise UsageError(f"there is no function {name} in {module}", "write module:function, or file.py:function")
    return RewardFunction(name, function)


def _module(named: str) -> Any:
    path = Path(named)
    if path.suffix != ".py":
        with _current_folder_last():
            return importlib.import_module(named)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def _current_folder_last() -> Iterator[None]:
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _awaited_now(values: Any) -> Any:
    import asyncio  # here, since jobs without such a function start more quickly

    async def awaited() -> Any:
        return await values

    return asyncio.run(awaited())


def _ignored(*_: Any, **__: Any) -> None:
    """Ignores the values that TRL lets a function log."""
