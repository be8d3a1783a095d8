"""A model served by llama.cpp: adapters switched at run time, text generated, log-probabilities measured. Adapters that
llama.cpp cannot apply are computed by our own engine (own_engine.py), and served alike.

The weights are mapped once (llama.cpp copies those that it repacks for this CPU); LoRA adapters are loaded with them
and switched without touching them.
The results of the last call stay in the cache, and a call that begins with the same tokens continues from there.
The cache depends on the adapter, so switching clears it. Answers of `generate` and `chat` may differ in rounding with
the content of the cache; those of `complete`, `logprobs` and `logits` repeat to the last digit.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..adapters.base import Artifact
from ..adapters.store import Adapter, open_served
from ..data.around import Instruction, instructed
from ..errors import FormatError, MismatchError, UnsupportedError, UsageError
from ..formats.gguf import Gguf, check_model, open_gguf
from ..formats.shape import read_shape
from ..llamacpp import library as llamacpp
from ..llamacpp.context import BATCH, PARALLEL, SMALL_BATCH, Context, IsEnough, check_tokens, context_size
from ..llamacpp.embedding import Embedder
from ..llamacpp.json_schema import grammar_of
from ..llamacpp.kv_state import KeyValues, KvPrefix, saved_keys
from ..llamacpp.sampling import Sampler, Sampling, log_softmax
from ..llamacpp.tokenizer import Tokenizer
from . import tool_calls
from .memory import busy_bytes, bytes_to_read
from .model import ServedModel
from .prompt_file import OpenPrompt, prompt_of
from .question import Question
from .tool_calls import CallForm, CallReader, call_form

if TYPE_CHECKING:
    from .own_engine import OwnEngine


@dataclass(frozen=True)
class _Loaded:
    pointer: Any  # of llama_adapter_lora; None: it has no pairs, or is our own engine's
    scale: float
    grammar: str  # of its schema.json; "" without
    system: str  # the message that it was trained with; "" without
    prompt: OpenPrompt | None = None  # the prompt that it was trained with
    prefix: KvPrefix | None = None
    is_own: bool = False  # whether our own engine computes with it


class LlamaModel(ServedModel):
    """A base model opened for answers. Close it, or use it as a context manager. For one thread at a time.

    context: tokens that prompt and answer may have together (None: 2048, or fewer if the model was trained on
    fewer). threads: None for one a physical core. seed: of sampling, where a call names none. busy_file: exists while
    `generate` or `chat` streams an answer, so that training that was given the same file pauses.
    sequences: how many a Batcher may keep in the cache. repack: whether llama.cpp may copy weights to an order that is
    quicker here; without, the file's pages are all that the weights take. small_batch: compute few
    tokens at once, which takes less memory, and longer to read a prompt. path: may be what `open_gguf` or a Bundle has
    open: then llama.cpp is given that very file, whatever its path names by now.
    Raises FormatError or UnsupportedError for a file that cannot be served, before llama.cpp sees it.
    """

    def __init__(self, path: str | Path | Gguf, *, context: int | None = None, threads: int | None = None,
                 seed: int = 0, busy_file: str | Path | None = None, sequences: int = PARALLEL,
                 repack: bool = True, small_batch: bool = False) -> None:
        self.busy_file = Path(busy_file) if busy_file else None
        self.seed = seed
        self.active: str | None = None  # the adapter in use
        self.structured = False  # whether `generate` and `chat` obey the schema of its rows, if it has one
        self.base = path if isinstance(path, Gguf) else open_gguf(path)
        self.path = self.base.path
        check_model(self.base)
        self._adapters: dict[str, _Loaded] = {}
        self._threads = threads or 0
        self._own: OwnEngine | None = None  # opened for the first adapter that needs it
        llama = llamacpp.load()
        self._llama = llama
        with ExitStack() as opened:
            self._model = self._load_model(repack)
            opened.callback(llama.llama_model_free, self._model)
            opened.callback(self._free_adapters)
            size = context_size(context, int(llama.llama_model_n_ctx_train(self._model)))
            self.cache = Context(llama, self._model, size, threads or 0, max(sequences, PARALLEL) + 1,
                                 SMALL_BATCH if small_batch else BATCH)
            opened.callback(self.cache.close)
            self.tokenizer = Tokenizer(self.base, self._model)
            opened.callback(self.tokenizer.close)
            self._opened = opened.pop_all()

    def _load_model(self, repack: bool) -> int:
        model = llamacpp.open_model(self.base.file.link, self.path, repack=repack)
        try:
            self.base.file.check(strictly=True)  # the loaded file is the hashed and checked one
        except FormatError:
            self._llama.llama_model_free(model)
            raise
        return model

    def close(self) -> None:
        """Free all memory of llama.cpp; closing twice is fine."""
        self._opened.close()

    def _free_adapters(self) -> None:
        for loaded in self._adapters.values():
            self._free(loaded)
        self._adapters.clear()

    def __enter__(self) -> LlamaModel:
        return self

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together, with any of the adapters."""
        return self.cache.size - max((loaded.prefix.virtual for loaded in self._adapters.values() if loaded.prefix),
                                     default=0)

    # ---- for a service ------------------------------------------------------------------------------------------

    writes = True

    @property
    def busy_bytes(self) -> int:
        return busy_bytes(self.base, self.context) + (self._own.nbytes if self._own else 0)

    @property
    def chat_template(self) -> str:
        return self.tokenizer.chat_template or ""

    @property
    def calls_tools(self) -> bool:
        return "tools" in (self.tokenizer.tool_template or self.chat_template)

    def labels_of(self, name: str | None) -> tuple[str, ...]:  # noqa: ARG002 - no adapter of it has some
        raise UnsupportedError("the model writes text, and no labels", "serve an encoder, such as minilm")

    @property
    def thinks(self) -> bool:
        return self.thinking is not None

    def render(self, messages: Sequence[Any], tools: Sequence[Any] | None, adapter: str | None,
               enable_thinking: bool | None = None) -> str:
        """Puts `around` around the messages; without a system message they are given that of the adapter."""
        whole = instructed(instructed(messages, self.around), self.instruction_of(adapter))
        return self.tokenizer.render(whole, tools, add_generation_prompt=True, enable_thinking=enable_thinking)

    @cached_property
    def call_form(self) -> CallForm:
        """The form in which the model writes calls of tools."""
        return call_form(self.tokenizer)

    def form_of(self, question: Question) -> str:
        return tool_calls.grammar_of(question, self.call_form)

    def call_reader(self, names: set[str]) -> CallReader:
        return CallReader(self.call_form.begin, self.call_form.end, names)

    def count(self, text: str) -> int:
        return len(self.tokenizer.encode(text, continues=True))

    def embedder(self) -> Embedder:
        """Vectors of texts by these weights, without an adapter: means of the hidden states. Close it before this."""
        self.cache.handle  # noqa: B018 - refuses a closed model
        return Embedder(self._model, self.context, whole=False, threads=self._threads)

    # adapters

    def bytes_to_load(self, path: Path) -> int:
        from .own_engine import own_memory
        own = own_memory(self.base, [path], self.cache.size, self.cache.sequences, self._threads)
        return bytes_to_read(path) + own - (self._own.shared_bytes if own and self._own else 0)

    def load_adapter(self, path: str | Path, name: str, scale: float = 1.0) -> None:
        """Load an adapter (a folder, or its adapter.gguf) under a name; `use` switches to it.

        scale: factor on the adapter's effect. Raises FormatError for a file that is no adapter and MismatchError
        for one that was trained on another base.
        """
        if name in self._adapters:
            raise UsageError(f"an adapter named {name!r} is loaded already", "unload it first or choose another name")
        self.cache.handle  # noqa: B018 - refuses a closed model
        adapter = open_served(path, self.base, self._computed)
        grammar = grammar_of(adapter.schema) if adapter.schema is not None else ""
        if adapter.own:
            self._own_engine().load(name, _unscaled(adapter.own, scale))
            self._adapters[name] = _Loaded(None, scale, grammar, adapter.system, prompt_of(path), is_own=True)
            return
        pointer = None if adapter.keys else self._load_pairs(adapter.path)
        self._adapters[name] = _Loaded(pointer, scale, grammar, adapter.system, prompt_of(path), self._prefix(adapter))

    def _own_engine(self) -> OwnEngine:
        if self._own is None:
            from .own_engine import OwnEngine  # only now: few adapters need the network
            self._own = OwnEngine(self.base, self.cache.size, self.cache.sequences, self._threads)
            self.cache.other = self._own
        return self._own

    def _computed(self, found: Artifact) -> KeyValues:
        from .virtual_keys import virtual_keys  # only now: few adapters need the network
        return virtual_keys(self.base, found, self._threads)

    def _load_pairs(self, file: Path) -> Any:
        llamacpp.complaint()
        pointer = self._llama.llama_adapter_lora_init(self._model, os.fsencode(file))
        if not pointer:
            reason = llamacpp.complaint() or "no reason given"
            raise UnsupportedError(f"llama.cpp cannot load the adapter {file} ({reason})", "train or convert it again")
        return pointer

    def _prefix(self, adapter: Adapter) -> KvPrefix | None:
        if not adapter.keys:
            return None
        shape = read_shape(self.base)
        size = len(next(iter(adapter.keys.values()))[0])
        expected = dict.fromkeys(range(shape.n_layer), (size, shape.d_kv))
        if {block: keys.shape for block, (keys, _) in adapter.keys.items()} != expected:
            raise MismatchError(f"{adapter.path} has keys of other blocks or widths than {self.path}",
                                "give the model that it was trained on, or train it again")
        if size >= self.cache.size and adapter.tokens:
            return None  # no text that begins with them fits
        if size >= self.cache.size:
            raise UsageError(f"the adapter has {size} virtual tokens, the context {self.cache.size}",
                             "choose a larger context")
        return KvPrefix(size, adapter.tokens, saved_keys(self.cache.magic, shape.windows, adapter.keys))

    def use(self, name: str | None) -> None:
        """Answer with this adapter from now on; None for the base alone."""
        self.check_adapter(name)
        prefix = self.prefix_of(name)
        if self.switch(name) or prefix is not self.cache.prefix:
            self.cache.prefix = prefix
            self.reset()

    def switch(self, name: str | None) -> bool:
        """Does what `use` does, but keeps the cache, whose user keeps adapters apart. Returns whether it changed."""
        if name == self.active:
            return False
        llama = self._llama
        handle = self.cache.handle
        if self._own:
            self._own.use(name if name is not None and self._adapters[name].is_own else None)
        if name is None or self._adapters[name].pointer is None:
            llama.llama_set_adapters_lora(handle, None, 0, None)
        else:
            loaded = self._adapters[name]
            pointers = (llama.llama_adapter_lora_p_ctypes * 1)(loaded.pointer)
            llama.llama_set_adapters_lora(handle, pointers, 1, (ctypes.c_float * 1)(loaded.scale))
        self.active = name
        return True

    @property
    def engine(self) -> str:
        """What computes with the adapter in use: "llama.cpp", or "native", our own engine."""
        return "native" if self._own and self._own.computes else "llama.cpp"

    def check_adapter(self, name: str | None) -> None:
        """Raises UsageError unless an adapter of this name is loaded, or it is None."""
        if name is not None and name not in self._adapters:
            raise UsageError(f"no adapter named {name!r} is loaded",
                             f"loaded are {', '.join(self._adapters)}" if self._adapters else "load it first")

    def unload(self, name: str) -> None:
        """Free an adapter; if it is in use, the base answers alone from now on."""
        self.check_adapter(name)
        if name == self.active:
            self.use(None)
        loaded = self._adapters.pop(name)
        self._free(loaded)
        if self._own and loaded.is_own:
            self._own.unload(name)

    def _free(self, loaded: _Loaded) -> None:
        if loaded.pointer is not None:
            self._llama.llama_adapter_lora_free(loaded.pointer)

    def prefix_of(self, name: str | None) -> KvPrefix | None:
        """What texts with an adapter begin with, unless it is computed."""
        loaded = None if name is None else self._adapters.get(name)
        return loaded.prefix if loaded else None

    def grammar_of(self, name: str | None) -> str:
        """The grammar of the answers that an adapter learned, where all were JSON; "" for others, and for the base."""
        self.check_adapter(name)
        loaded = None if name is None else self._adapters.get(name)
        return loaded.grammar if loaded else ""

    def system_of(self, name: str | None) -> str:
        """The system message that an adapter was trained with; "" without one, for the base, or if it is not loaded."""
        loaded = None if name is None else self._adapters.get(name)
        return loaded.system if loaded else ""

    def instruction_of(self, name: str | None) -> Instruction:
        """What chats without a system message are given with an adapter: its prompt, or its system message."""
        loaded = None if name is None else self._adapters.get(name)
        return (loaded.prompt or loaded.system) if loaded else None

    def _instruction(self) -> Instruction:
        return self.instruction_of(self.active)

    def _form(self) -> str:
        return self.grammar_of(self.active) if self.structured else ""

    def adapters(self) -> list[str]:
        """Returns the names of the adapters that are loaded."""
        return list(self._adapters)

    # answers

    def reset(self) -> None:
        """Clear the cache: the next call computes all of its tokens."""
        self.cache.clear()

    def _check(self, tokens: list[int], room: int = 0) -> None:
        check_tokens(tokens, room, self.context, self.cache.n_vocab)

    def _next(self, tokens: list[int], sampler: Sampler) -> int:
        wanted = np.zeros(len(tokens), np.bool_)
        wanted[-1] = True
        token = -1
        for _, logits in self.cache.feed(tokens, wanted):
            token = sampler.pick(logits[-1])
        return token

    def complete(self, prompts: Sequence[str | Sequence[int]],
                 max_tokens: int | Sequence[int] = 256) -> Iterator[tuple[int, str]]:
        """Greedy answers to many prompts, as `complete_tokens` gives them, as text."""
        return ((i, self.printed_text(answer)) for i, answer in self.complete_tokens(prompts, max_tokens))

    def complete_tokens(self, prompts: Sequence[str | Sequence[int]], max_tokens: int | Sequence[int] = 256,
                        grammar: str = "", is_enough: IsEnough | None = None) -> Iterator[tuple[int, list[int]]]:
        """Greedy answers to many prompts, computed together; yields (index of the prompt, its answer) when done.
        grammar: GBNF that all obey. is_enough: whether the tokens of an answer so far are all of it, by its index.

        It is several times as fast as one by one. The same prompt gives the same answer with any others. It must be
        exhausted before any other call.
        """
        budgets = [max_tokens] * len(prompts) if isinstance(max_tokens, int) else list(max_tokens)
        if min(budgets, default=1) < 1:
            raise UsageError(f"max_tokens is {min(budgets)}", "choose 1 or more")
        asked = [self._tokens(prompt) for prompt in prompts]
        samplers = [Sampler(self._llama, Sampling(grammar=grammar), self.tokenizer,
                            budget=min(budget, self.context - len(tokens)))
                    for tokens, budget in zip(asked, budgets, strict=True)]
        return self.cache.greedy(asked, budgets, self.tokenizer.is_end,
                                 lambda index, logits: samplers[index].pick(logits), is_enough)

    def printed_text(self, answer: Sequence[int]) -> str:
        """What a reader sees of an answer."""
        return b"".join(map(self.printed, answer)).decode("utf-8", "replace")

    def obeys(self, answer: Sequence[int], grammar: str, budget: int) -> bool:
        """Whether a greedy answer that had no grammar follows this one, and ended within its budget of tokens. Then it
        is the answer with the grammar, too.
        """
        from ..llamacpp.grammar import Grammar
        form = Grammar(self.tokenizer, grammar, budget)
        follows = all(form.allows(token) and form.accept(token) == token for token in answer)
        return follows and form.whole and len(answer) < budget

    # measures

    def logprobs(self, tokens: Sequence[int], wanted: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        """Natural log-probability of each token given those before it, float32 [T]; [0] is 0.

        wanted: bool [T], where to compute it (else 0; None: everywhere). Never holds more than 64 rows of logits.
        """
        ids = [int(token) for token in tokens]
        self.cache.check(ids)
        out = np.zeros(len(ids), np.float32)
        need = np.ones(len(ids), np.bool_) if wanted is None else wanted
        end = int(np.flatnonzero(need).max(initial=0))  # the tokens after the last wanted one need not be computed
        for positions, logits in self.cache.feed(ids[:end], need[1 : end + 1], repeats=True):
            for position, row in zip(positions, logits, strict=True):
                out[position + 1] = log_softmax(row)[ids[position + 1]]
        return out

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits after each token, float32 [T, V]: for a few tokens, since all of them are held."""
        ids = [int(token) for token in tokens]
        parts = [logits.copy() for _, logits in self.cache.feed(ids, np.ones(len(ids), np.bool_), repeats=True)]
        return np.concatenate(parts) if parts else np.empty((0, self.cache.n_vocab), np.float32)


def _unscaled(found: Artifact, scale: float) -> Artifact:
    """Raises UnsupportedError for a scale: no formula of these families has one."""
    if scale != 1.0:
        raise UnsupportedError(f"an adapter of the family {found.family} has no scale, and {scale:g} is given",
                               "leave it out")
    return found
