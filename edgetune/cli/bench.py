"""bench kernels, bench train and bench generate."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from ..errors import UsageError, size_text
from ..training.config import TrainConfig
from .app import (
    MODEL,
    TRAIN_OPTIONS,
    adapter_option,
    backend_option,
    command,
    engine_option,
    out,
    precision_option,
    show,
    threads_option,
    training_options,
)
from .lab import lab


def in_a_folder(_ctx: click.Context, _option: click.Parameter, path: Path | None) -> Path | None:
    """Refused before anything is measured."""
    if path is not None and not path.parent.is_dir():
        raise UsageError(f"save is {path}, there is no folder {path.parent}", "make it first")
    return path


HERE = Path("-")
TIMED = ("targets", "blocks", "memory", "micro_batch", "recompute", "weights", "precision", "seed", "threads",
         "backend")  # options of training that decide a step's speed, with those of the family


def here_or_in_a_folder(ctx: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    """HERE is this device's place among the user's state."""
    from ..training.cost import state_file
    if path != HERE:
        return in_a_folder(ctx, option, path)
    state_file().parent.mkdir(parents=True, exist_ok=True)
    return state_file()


save_option = click.option("--save", type=click.Path(path_type=Path), callback=in_a_folder,
                           help="Also write the JSON object to this file.")


@lab.group("bench")
def bench() -> None:
    """Measure the speed of this machine.

    Single ops, a training step, answers through llama.cpp.
    """


@command("kernels",
         click.option("--isa", help="Kernel set, as edgetune doctor lists them [the best one]."),
         click.option("--precision", type=click.Choice(["exact", "fast", "int8"]),
                      help="Precision of the products [all three]."),
         click.option("--model", "name", default="SmolLM2-135M", show_default=True,
                      help="Model whose shapes are measured; also Qwen3-0.6B and Llama-3.2-1B."),
         click.option("--format", "fmt", default="Q4_1", show_default=True, help="Weight format."),
         threads_option, save_option, group=bench)
def kernels_command(isa: str | None, precision: str | None, name: str, fmt: str, threads: int, save: Path | None,
                    as_json: bool) -> None:
    """Time the products with frozen weights, on 256 tokens.

    It shows GFLOP/s, also as a share of what a loop in registers reaches. The least time of several calls counts.
    """
    from ..backends import cpu, native
    from ..bench import kernels
    from ..console import table
    from ..machine.device import thread_count
    usable = [name for name in cpu.isa_names() if cpu.usable(name)]
    isa = isa or usable[0]
    for option, value, known in (("isa", isa, usable), ("model", name, kernels.MODELS),
                                 ("format", fmt, native.FORMATS)):
        if value not in known:
            raise UsageError(f"{option} is {value!r}", f"choose from {', '.join(known)}")
    precisions = [precision] if precision else list(native.PRECISIONS)
    with nullcontext() if as_json else out.status("measuring") as status:
        tell = status.update if status else lambda _: None
        result = kernels.run(isa, precisions, name, fmt, thread_count(threads), tell)
    rows = [[f"a loop in registers, {way}", "", *(f"{p[f'{way}_gflops']:.0f}" for p in result["peaks"])]
            for way in ("forward", "backward")]
    rates: dict[tuple[str, str], list[str]] = {}
    for r in result["results"]:
        shape = " x ".join(map(str, r["shape"]))
        rates.setdefault((f"{r['op']} {r['of']}", shape), []).append(f"{r['gflops']:.0f} {r['peak_share']:4.0%}")
    rows += [[*head, *cells] for head, cells in rates.items()]
    numbers = ", ".join(f"{p['precision']}: {p['products']}" for p in result["peaks"])
    finish(as_json, save, result, f"{name}, {fmt}, {isa}, {result['threads']} threads; {numbers}",
           table("", ["GFLOP/s, share of the loop's", "shape", *precisions], rows, right=(2, 3, 4)))


@command("train", MODEL,
         click.option("--batch-size", type=click.IntRange(1), default=4, show_default=True, help="Rows in a step."),
         click.option("--length", type=click.IntRange(2), default=256, show_default=True, help="Tokens in every row."),
         click.option("--steps", type=click.IntRange(1), default=5, show_default=True,
                      help="Steps that are timed, after one that is not."),
         training_options(*(name for name in TRAIN_OPTIONS if name not in TIMED)),
         click.option("--save", is_flag=False, flag_value=str(HERE), type=click.Path(path_type=Path),
                      callback=here_or_in_a_folder,
                      help="Keep the JSON object, from which edgetune plan predicts, in this file; without a name: for "
                           "this device."),
         group=bench)
def train_command(model: Path, length: int, save: Path | None, as_json: bool, **options: Any) -> None:
    """Time training steps of MODEL.

    Rows are random token ids (by --seed), every token but a row's first is supervised.

    tokens/s: the tokens of a step divided by the median of the steps' seconds.

    first step: from the start of this process to the end of its first step.

    FLOP utilisation: the time that the model's FLOP take at the peak of a register loop, in the numbers of --precision,
    as a share of the median step. FLOP are 2 a token and weight of projections and head, the same backward where the
    gradient passes, and attention's, without recomputation and adapter.

    ops: from two more steps with a clock around every op.
    """
    from ..bench import train
    config = TrainConfig(max_length=length, **options).check()
    with nullcontext() if as_json else out.status("training"):
        result = train.run(model, config)
    finish(as_json, save, result, *train_tables(result))


def train_tables(r: dict[str, Any]) -> list[Any]:
    from ..console import table
    o = r["options"]
    facts = [["tokens/s", f"{r['tokens_per_s']:.0f}"],
             ["step", f"{r['step_s']:.3f} s (least {r['step_s_least']:.3f} s)"],
             ["first step", f"{r['first_step_s']:.2f} s after the start of the process"],
             ["peak memory", size_text(r["peak_rss_mib"] * 2**20)],
             ["model FLOP", f"{r['flops_per_s'] / 1e9:.0f} GFLOP/s, {r['flop_per_token'] / 1e6:.0f} MFLOP a token"],
             ["FLOP utilisation", f"{r['mfu']:.1%}"]]
    ops = [[name, str(op["calls"]), f"{op['seconds'] * 1e3:.1f} ms", f"{op['share']:.1%}",
            f"{op['gflops']:.0f}" if op["gflops"] else ""] for name, op in r["ops"].items()]
    rest = 1.0 - sum(op["share"] for op in r["ops"].values())
    title = (f"{Path(r['model']).name}, {o['batch_size']} x {o['max_length']} tokens, rank {o['rank']}: {r['isa']}, "
             f"{r['products']}, {r['threads']} threads")
    return [title, table("", ["", ""], facts), "\na step",
            table("", ["op", "calls", "time", "share", "GFLOP/s"],
                  [*ops, ["outside of ops", "", "", f"{rest:.1%}", ""]], (1, 2, 3, 4))]


@command("generate", MODEL,
         click.option("--prompt-tokens", type=click.IntRange(1), default=256, show_default=True,
                      help="Tokens of the prompt, random ids."),
         click.option("--tokens", type=click.IntRange(1), default=64, show_default=True,
                      help="Tokens that follow it, one at a time."),
         click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the token ids."),
         engine_option("What generates."),
         click.option("--answers", type=click.IntRange(1), default=1, show_default=True,
                      help="Answers at once; of llama.cpp's some wait for others."),
         click.option("--prompts", type=click.IntRange(1), default=8, show_default=True,
                      help="Prompts of several answers, which are shared equally."),
         precision_option("Of --engine native's products."),
         adapter_option, threads_option, backend_option, save_option, group=bench)
def generate_command(model: Path, prompt_tokens: int, tokens: int, seed: int, engine: str, answers: int, prompts: int,
                     precision: str, adapter: Path | None, threads: int, backend: str, save: Path | None,
                     as_json: bool) -> None:
    """Time prompts and answers of MODEL.

    One answer through llama.cpp is timed in two parts; several, or with --engine native, all together.
    """
    from ..bench import generate
    from ..console import table
    if engine == "native" or answers > 1:
        _many_answers(model, save, as_json, engine=engine, answers=answers, prompts=prompts, precision=precision,
                      backend=backend, prompt_tokens=prompt_tokens, tokens=tokens, adapter=adapter, threads=threads,
                      seed=seed)
        return
    with nullcontext() if as_json else out.status("generating"):
        r = generate.run(model, prompt_tokens=prompt_tokens, tokens=tokens, adapter=adapter, threads=threads, seed=seed)
    title = f"{model.name} through llama.cpp, {r['threads']} threads" + (f", adapter {adapter}" if adapter else "")
    finish(as_json, save, r, title, table("", ["", ""], [
        ["prompt", f"{r['prompt_tokens_per_s']:.0f} tokens/s ({prompt_tokens} tokens)"],
        ["generated", f"{r['tokens_per_s']:.1f} tokens/s ({tokens} tokens)"],
        ["to load", f"{r['load_s']:.2f} s"], ["peak memory", size_text(r["peak_rss_mib"] * 2**20)]]))


def _many_answers(model: Path, save: Path | None, as_json: bool, *, engine: str, answers: int, prompts: int,
                  precision: str, backend: str, **options: Any) -> None:
    from ..bench import generate
    from ..console import table
    from ..evaluation.native import engine_within
    prompts = min(prompts, answers)
    if answers % prompts:
        raise UsageError(f"answers is {answers}, which is no multiple of the {prompts} prompts", "change one of them")
    with nullcontext() if as_json else out.status("generating"):
        native = None
        if engine == "native":
            native = engine_within(threads=options["threads"], precision=precision, parallel=answers, backend=backend)
        r = generate.many(model, native=native, count=answers, prompts=prompts, **options)
    adapter = f", adapter {r['adapter']}" if r["adapter"] else ""
    finish(as_json, save, r, f"{model.name} through {engine}, {r['threads']} threads{adapter}", table("", ["", ""], [
        ["answers", f"{answers} of {options['tokens']} tokens to {prompts} prompts of {options['prompt_tokens']}"],
        ["generated", f"{r['tokens_per_s']:.0f} tokens/s"], ["peak memory", size_text(r["peak_rss_mib"] * 2**20)]]))


def finish(as_json: bool, save: Path | None, result: dict[str, Any], *lines: Any) -> None:
    from .. import disk
    if save is not None:
        with disk.replaced(save) as beside:
            beside.write_text(json.dumps(result, indent=1) + "\n")
    show(as_json, result, *lines)
