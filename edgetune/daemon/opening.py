"""Opens the model of a service by its architecture: llama.cpp for one that writes text, our engine for an encoder."""

from __future__ import annotations

import logging
from typing import Any, cast

from ..errors import UsageError
from ..formats.gguf import ENCODERS, Gguf
from ..machine.device import rss
from ..serving.answering import Answering
from ..serving.batcher import KEPT, Batcher
from ..serving.encoder_model import Classifying, EncoderModel
from ..serving.llama import LlamaModel
from ..serving.memory import may_repack, memory_needed
from . import memory
from .jobs.room import small_job_bytes
from .options import OFF, DaemonConfig, part_options

CONTEXT = 4096  # tokens, unless another number is given or the model was trained for fewer,
NEED_TEXT = ("prompt",)  # options of which a model that writes text alone makes use
LEAST_CONTEXT = 1024  # or for this many or more, where memory has no room for more with a small job

log = logging.getLogger("edgetune.daemon")


def open_answering(gguf: Gguf, name: str, config: DaemonConfig, budget: int, markup: str) -> Answering[Any]:
    """Opens what answers, with its model as `served`. name: of the model. budget: bytes that the daemon may use.
    markup: of what people say, as of a Tokenizer. Raises the errors of either model, and UsageError for options that
    an encoder cannot follow.
    """
    if gguf.architecture in ENCODERS:
        return _open_encoder(gguf, name, config)
    trained = cast(int, gguf.metadata[f"{gguf.architecture}.context_length"])
    context = config.context or _context(gguf, min(CONTEXT, trained), budget)
    judging = memory_needed(gguf, min(CONTEXT, trained), repack=False)  # by the process of a job
    served = LlamaModel(gguf, context=context, threads=config.threads or None, sequences=config.parallel + KEPT,
                        small_batch=True, repack=may_repack(gguf, context, budget - judging))
    served.tokenizer.markup = markup
    return Batcher(served, parallel=config.parallel, queue=config.queue)


def least_memory(gguf: Gguf, config: DaemonConfig, process: int) -> int:
    """Returns the bytes of a daemon that answers with this model in the smallest context that its options allow, and,
    where it learns, trains a small job. process: bytes that it takes before it opens a model.
    """
    context = config.context or min(LEAST_CONTEXT, cast(int, gguf.metadata[f"{gguf.architecture}.context_length"]))
    learns = small_job_bytes(gguf) if config.learn != OFF else 0
    return process + memory_needed(gguf, context, repack=False) + memory.for_answers(gguf, context) + learns


def _open_encoder(gguf: Gguf, name: str, config: DaemonConfig) -> Classifying:
    for option in (*NEED_TEXT, *(name for own in part_options() for name in own.needs_text)):
        if given := getattr(config, option):
            raise UsageError(f"{option} is {given}, and {name} is an encoder itself", "leave it out, or serve a model "
                             "that writes text")
    if config.context:
        raise UsageError(f"context is {config.context}, and {name} is an encoder, which keeps no answers in progress",
                         "leave it out")
    return Classifying(EncoderModel(gguf, name, config.threads), queue=config.queue)


def _context(base: Gguf, most: int, budget: int) -> int:
    """Returns `most` tokens, or half as many or fewer where only these leave memory for a small job."""
    left = budget - rss() - small_job_bytes(base)
    size = most
    while size // 2 >= LEAST_CONTEXT and (
            memory_needed(base, size, repack=False) + memory.for_answers(base, size) > left):
        size //= 2
    if size < most:
        log.info("prompts and answers in progress may have %d tokens together, not %d, so that training has memory",
                 size, most)
    return size
