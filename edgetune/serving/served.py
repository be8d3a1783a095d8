"""The contract of a model that a service answers with: what it asks for, whichever engine computes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..llamacpp.tokenizers import AnyTokenizer
from .embedding import Vectors
from .question import Question
from .tool_calls import CallReader


class Prepared(Protocol):
    """A checked request. tokens: of the prompt, at first; budget: tokens that the answer may have."""

    @property
    def tokens(self) -> list[int]: ...
    @property
    def budget(self) -> int: ...


class Served(Protocol):
    """A model opened for answers, with adapters. `writes`: it writes text, so any form of answer can be required of it,
    and it can score others' answers.
    """

    writes: bool

    @property
    def tokenizer(self) -> AnyTokenizer: ...

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together."""

    @property
    def busy_bytes(self) -> int:
        """Bytes that answers and vectors add to a process that has answered none."""

    @property
    def chat_template(self) -> str:
        """The template that messages are rendered by; "" for none."""

    @property
    def calls_tools(self) -> bool:
        """Whether the template shows tools."""

    def close(self) -> None:
        """Frees the model; closing twice is fine."""

    # ---- adapters -----------------------------------------------------------------------------------------------

    def bytes_to_load(self, path: Path) -> int:
        """Bytes that loading an adapter takes at most. Errors: those of `load_adapter`."""

    def load_adapter(self, path: str | Path, name: str) -> None:
        """Loads an adapter (a folder, or its adapter.gguf) under a name. Raises FormatError or UnsupportedError for
        what cannot answer, MismatchError for an adapter of another base.
        """

    def unload(self, name: str) -> None:
        """Frees an adapter."""

    def check_adapter(self, name: str | None) -> None:
        """Raises UsageError unless an adapter of this name is loaded, or it is None."""

    def adapters(self) -> list[str]:
        """Returns the names of the adapters that are loaded."""

    def system_of(self, name: str | None) -> str:
        """Returns the system message that an adapter was trained with; "" without one."""

    def grammar_of(self, name: str | None) -> str:
        """Returns the grammar of the answers that an adapter learned; "" where its answers have no other form."""

    def labels_of(self, name: str | None) -> tuple[str, ...]:
        """Returns the labels that an adapter answers with. Raises UnsupportedError for a model that writes text."""

    # ---- requests, for any thread -------------------------------------------------------------------------------

    @property
    def thinks(self) -> bool:
        """Whether the model thinks before it answers, between marks."""

    def render(self, messages: Sequence[Any], tools: Sequence[Any] | None, adapter: str | None,
               enable_thinking: bool | None = None) -> str:
        """Returns the prompt of a conversation. enable_thinking: of a template that knows it; None: its default."""

    def form_of(self, question: Question) -> str:
        """Returns the grammar that the answers to a question obey; "" where it asks for none. Raises UsageError for a
        form that no answer can have.
        """

    def call_reader(self, names: set[str]) -> CallReader:
        """Returns a reader of calls of these tools."""

    def prepare(self, prompt: str | Sequence[int], max_tokens: int, stop: str | Iterable[str],
                logprobs: int | None = None, echo: bool = False, among: Sequence[int] = (),
                **sampling: Any) -> Prepared:
        """Returns the checked request. Raises UsageError for an option out of its range."""

    def count(self, text: str) -> int:
        """Returns the tokens of an answer."""

    def embedder(self) -> Vectors:
        """Returns what makes vectors of texts, by the model without its adapters. Close it before this."""
