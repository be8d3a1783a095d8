"""Two properties under random damage.

models: whatever becomes of a model's file, plan, train, info and serve agree on whether it can be used, and the losses
of those that train and those that serve are equal. states: whatever becomes of a file in a daemon's state, nothing is
deleted, what is lost is told in a sentence, and the rest serves. `fuzz-daemon` has random requests.
"""

import argparse
import json
import logging
import math
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner
from counting import one_step
from services import ROWS, contents, make_state, open_service
from tiny import SHAPES, write_tiny
from variants import known_keys, variant

from edgetune.cli import cli
from edgetune.cli.info import describe
from edgetune.errors import EdgetuneError, NumericsError, UnsupportedError
from edgetune.formats.gguf import Gguf, open_gguf
from edgetune.serving.llama import LlamaModel

Wrong = list[str]
"""A sentence for each case in which a property does not hold."""

# ---- models ---------------------------------------------------------------------------------------------------------

CASE_SECONDS = 60
CASE_BYTES = 8 << 30  # of address space
NUMBERS = [0, 1, 2, 3, 7, 8, 16, 24, 31, 32, 33, 64, 65, 128, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1]
FLOATS = [0.0, -1.0, 1e-30, 0.5, 1.0, 2.0, 1e4, 1e30, math.inf, math.nan]
WORDS = ["", "x", "yarn", "linear", "longrope", "none", "gpt2", "llama", "smollm", "qwen2"]
OBEYED = ("general.architecture", "general.alignment")  # by the writer of the file, too: bytes are changed there
OF_TYPE: dict[str, list[Any]] = {"u32": NUMBERS, "i32": [-1, 0, 1, 8, 2**31 - 1], "u64": [*NUMBERS, 2**63],
                                 "f32": FLOATS, "bool": [False, True], "str": WORDS}


def fuzz_models(folder: Path, count: int, seed: int) -> Wrong:
    names = list(SHAPES)
    plain = [open_gguf(write_tiny(folder / f"{name}.gguf", name, n_vocab=384)) for name in names]
    packed = [write_tiny(folder / f"{name}-q8.gguf", name, formats="Q8_0", n_vocab=384).read_bytes() for name in names]
    path = folder / "case.gguf"
    met = Counter[str]()
    wrong = []
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        if rng.random() < 0.4:
            changed = change_bytes(path, rng.choice(packed), rng)
        else:
            changed = change_fields(path, rng.choice(plain), rng)
        found = apart(judge, path)
        met["taken" if isinstance(found, dict) and not found["train"] else "refused"] += 1
        wrong += [f"model {number} of seed {seed} ({changed}): {what}" for what in disagreements(found)]
    print(f"models: {dict(met)}")
    return wrong


def change_bytes(path: Path, raw: bytes, rng: random.Random) -> str:
    """Overwrites one to three numbers of the header, or cuts the file."""
    path.write_bytes(raw)
    end = open_gguf(path).data_start
    changed = bytearray(raw)
    told = []
    for _ in range(rng.randint(1, 3)):
        place = rng.choice([rng.randrange(min(1500, end) - 8), rng.randrange(end - 3000, end - 8)])
        width = rng.choice([1, 1, 4, 8])
        value = rng.choice([*NUMBERS, rng.getrandbits(64)]) % 256**width
        changed[place : place + width] = value.to_bytes(width, "little")
        told.append(f"{value} at {place}")
    if rng.random() < 0.1:
        del changed[rng.randrange(len(changed)):]
        told.append(f"cut to {len(changed)}")
    path.write_bytes(changed)
    return ", ".join(told)


def change_fields(path: Path, base: Gguf, rng: random.Random) -> str:
    """One or two keys that llama.cpp knows, a key that exists, or a tensor: others, added or gone."""
    keys: dict[str, Any] = {}
    types: dict[str, str] = {}
    tensors: dict[str, Any] = {}
    for _ in range(rng.randint(1, 2)):
        kind = rng.randrange(4)
        if kind == 0:
            name = rng.choice([key for key in known_keys(base.architecture) if key not in OBEYED])
            types[name] = rng.choice(list(OF_TYPE))
            keys[name] = rng.choice(OF_TYPE[types[name]])
        elif kind == 1:
            name = rng.choice([key for key, held in base.types.items() if held in OF_TYPE and key not in OBEYED])
            keys[name] = rng.choice([None, *OF_TYPE[base.types[name]]])
        elif kind == 2:
            name = rng.choice(list(base.tensors))
            values = base.tensors[name].f32()
            tensors[name] = rng.choice([None, values[1:], values.T.copy(), values * 3, np.zeros_like(values)])
        else:
            name = rng.choice([f"blk.{rng.randrange(3)}.{part}" for part in (
                "attn_q.bias", "attn_output.bias", "ffn_up.bias", "attn_q_norm.weight", "post_ffw_norm.weight")])
            name = rng.choice([name, "rope_freqs.weight", "output.weight", "token_types.weight"])
            shape = rng.choice([8, 16, 32, 64, 160, (384, 64)])
            tensors[name] = np.full(shape, rng.choice([0.5, 1.0, 0.0, math.nan]), np.float32)
    variant(path, base, keys, tensors, types)
    return f"{base.architecture} {keys} {({name: getattr(t, 'shape', None) for name, t in tensors.items()})}"


def judge(path: Path) -> dict[str, Any]:
    """Who refuses the file, and why ("" for who does not), and the losses of those that take it."""
    losses: dict[str, float] = {}

    def train() -> None:
        trainer = one_step(path, precision="exact")
        trainer.tokenizer.close()
        losses["train"] = trainer.step().loss

    def plan() -> None:
        done = CliRunner().invoke(cli, ["plan", str(path), "--threads", "1", "--no-measure"])
        if isinstance(done.exception, Exception):
            raise done.exception
        if done.exit_code:
            raise EdgetuneError(done.output)

    def info() -> None:
        facts = describe(path)
        if not facts.get("trainable"):
            raise EdgetuneError(facts.get("why_not", f"it is a {facts.get('kind')}"))

    def serve() -> None:
        with LlamaModel(path, threads=1) as model:
            if model.context >= 12:
                logp = [model.logprobs(range(begin, begin + 12))[1:] for begin in (0, 12)]
                losses["serve"] = -float(np.mean(np.concatenate(logp).astype(np.float64)))

    refusals = {act.__name__: refusal(act) for act in (train, plan, info, serve)}
    return {**refusals, "losses": losses}


def refusal(act: Callable[[], object]) -> str:
    try:
        with np.errstate(all="ignore"):
            act()
    except EdgetuneError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def disagreements(found: dict[str, Any] | str) -> Wrong:
    if isinstance(found, str):
        return [found]
    wrong = []
    losses = found.pop("losses")
    trains = not found["train"] or found["train"].startswith(NumericsError.__name__)  # that of weights without sense
    serves = not found["serve"]
    untrained = serves and found["train"].startswith(UnsupportedError.__name__)  # llama.cpp knows more than we train
    if not trains == (not found["plan"]) == (not found["info"]) or (trains != serves and not untrained):
        wrong.append(f"they do not agree: {json.dumps(found)}")
    if len(losses) == 2 and not math.isclose(losses["train"], losses["serve"], rel_tol=1e-2, abs_tol=1e-2):
        wrong.append(f"the losses are {losses}")
    return wrong


def apart(act: Callable[[Path], Any], path: Path) -> Any:
    """What act returns, in a process apart; a sentence where that fails, crashes, or takes too long or too much."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(CASE_SECONDS)
        resource.setrlimit(resource.RLIMIT_AS, (CASE_BYTES, CASE_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            said = act(path)
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        with os.fdopen(write, "w") as pipe:
            json.dump(said, pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return json.loads(text) if text else f"the process ended with {status}"


# ---- states ---------------------------------------------------------------------------------------------------------

QUESTION = [{"role": "user", "content": ROWS[3]["prompt"]}]
DAMAGES = ("gone", "empty", "cut", "flipped", "longer", "a folder", "a link to nothing")


def fuzz_states(folder: Path, count: int, seed: int) -> Wrong:
    made = make_state(folder)
    with open_service(made) as service:
        before = inventory(service)
    met = Counter[str]()
    wrong = []
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        copy = folder.with_name(f"{folder.name}-case")
        shutil.copytree(made, copy, symlinks=True)
        victim = rng.choice(sorted(path for path in (copy / "state").rglob("*") if path.is_file()))
        damage = rng.choice(DAMAGES)
        hurt(victim, damage, rng)
        case = f"state {number} of seed {seed} ({victim.relative_to(copy)} {damage})"
        held = contents(copy)
        for what in state_problems(copy, before, held, met):
            wrong.append(f"{case}: {what}")
        shutil.rmtree(copy)
    print(f"states: {dict(met)}")
    return wrong


def hurt(victim: Path, damage: str, rng: random.Random) -> None:
    raw = bytearray(victim.read_bytes())
    victim.unlink()
    if damage == "flipped":
        for _ in range(min(len(raw), 8)):
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    bytes_of = {"empty": b"", "cut": raw[: rng.randrange(len(raw) + 1)], "longer": raw + rng.randbytes(100),
                "flipped": raw}
    if damage in bytes_of:
        victim.write_bytes(bytes_of[damage])
    elif damage == "a folder":
        victim.mkdir()
    elif damage == "a link to nothing":
        victim.symlink_to(victim.with_name("nowhere"))


def inventory(service: Any) -> dict[str, set[str]]:
    """The ids that it knows. Bytes that are gone or changed are refused in a sentence when they are asked for."""
    adapters = service.adapters.list()
    files = service.files.list()
    for adapter in adapters:
        if not refusal(partial(answer, service, adapter.id)):
            path = service.adapters.path(adapter.id) / "adapter.gguf"
            assert sha256(path.read_bytes()).hexdigest() == adapter.sha256, f"{adapter.id} answers, and is another"
    for file in files:
        if not refusal(partial(service.files.content, file.id)):
            found = sha256(service.files.content(file.id).read_bytes()).hexdigest()
            assert found == file.sha256, f"{file.id} is given out, and is another"
    return {"adapters": {adapter.id for adapter in adapters}, "files": {file.id for file in files},
            "jobs": {job.id for job in service.jobs.list()}}


def answer(service: Any, model: str = "") -> str:
    return str(service.chat(QUESTION, model=model, max_tokens=2).text())


def state_problems(folder: Path, before: dict[str, set[str]], held: set[str], met: Counter[str]) -> Wrong:
    wrong = []
    try:
        with open_service(folder) as service:
            answer(service)
            now = inventory(service)
            reasons = service.health()["reasons"]
    except EdgetuneError as error:
        met["refused"] += 1
        return [] if error.hint else [f"refused without a way out: {error}"]
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]
    met["degraded" if reasons else "ok"] += 1
    if not held <= contents(folder):
        wrong.append(f"{len(held - contents(folder))} files were deleted")
    lost = {kind: len(ids - now[kind]) for kind, ids in before.items()}
    if any(lost.values()) and not reasons:
        wrong.append(f"lost without a word: {lost}")
    if any("\n" in reason for reason in reasons):
        wrong.append(f"no sentence: {reasons}")
    return wrong


PROPERTIES = {"models": (fuzz_models, 300), "states": (fuzz_states, 100)}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", choices=PROPERTIES, help="one of the two")
    parser.add_argument("--count", type=int, help="cases of each")
    parser.add_argument("--seed", type=int, default=0)


def main(args: argparse.Namespace) -> None:
    wrong: Wrong = []
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # what the daemon says of each damage
    for name in [args.only] if args.only else PROPERTIES:
        act, usual = PROPERTIES[name]
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / name
            folder.mkdir()
            count = args.count or usual
            found = act(folder, count, args.seed)
        seconds = time.monotonic() - start
        print(f"{name}: {count} cases of seed {args.seed}, {len(found)} wrong, {seconds:.0f} s", flush=True)
        wrong += found
    print("\n".join(wrong))
    sys.exit(bool(wrong))
