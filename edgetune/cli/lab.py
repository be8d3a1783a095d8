"""The group lab: what measures, and what was not measured to be better than the default."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..daemon.options import DaemonConfig
from ..errors import DataError, UsageError, shell_word, size_text
from ..training.config import FILE_OPTIONS, TrainConfig
from .app import (
    MODEL,
    TRAIN_OPTIONS,
    adapter_option,
    backend_option,
    cli,
    command,
    config_options,
    engine_option,
    out,
    policy_file_option,
    policy_of,
    policy_options,
    precision_option,
    show,
    stop_on_signals,
    threads_option,
    train_progress,
    training_options,
)
from .facts import known_facts, watch_facts, watch_option
from .output import in_a_folder

if TYPE_CHECKING:
    from ..serving.compiled import CompiledPrompt


@cli.group("lab")
def lab() -> None:
    """Measure, and try what is not better by default.

    Nothing here was measured to be better than the plain way. It works, and it may be of use to you.
    """


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


LARGEST = 1 << 24  # bytes of a prompt's file


@command("compile-prompt", MODEL, click.argument("prompt", type=click.Path(path_type=Path)),
         click.option("-o", "--out", "folder", type=click.Path(path_type=Path), required=True, help="New folder."),
         threads_option, group=lab)
def compile_prompt_command(model: Path, prompt: Path, folder: Path, threads: int, as_json: bool) -> None:
    """Compute PROMPT once, and store it for every request.

    No request then has to wait for it.

    PROMPT is a text file with a system message, or a request's JSON with messages and tools. The result is an adapter:
    --adapter OUT answers as if the prompt had just been read. A chat without a system message is given this one.
    `edgetune train --family prefix --start OUT` trains from it.
    """
    from ..adapters.store import FILE
    from ..formats.bundle import open_bundle
    from ..formats.named import name_of
    from ..serving.compiled import compile_prompt
    bundle = open_bundle(model)
    with out.status("reading the prompt"):
        tokens = compile_prompt(bundle, _prompt(prompt), folder, threads)
    size = (folder / FILE).stat().st_size
    show(as_json, {"out": str(folder), "tokens": tokens, "bytes": size},
         f"{tokens} tokens in {folder}, {size_text(size)}; try: "
         f"edgetune chat {shell_word(name_of(model))} --adapter {shell_word(folder)}")


def _prompt(path: Path) -> CompiledPrompt:
    """The prompt of a text, or of a request's system message and tools. Raises DataError."""
    from ..data.prompts import check_learnable
    from ..disk import read_object, read_small
    from ..serving.compiled import CompiledPrompt
    if path.suffix != ".json":
        try:
            return CompiledPrompt(read_small(path, LARGEST).decode().strip())
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read: {error}", "name a text file with a system message") from None
    request = read_object(path, "write a request as a client sends it", LARGEST)
    if request is None:
        raise DataError(f"{path} does not exist", "name a request's JSON, or a text file with a system message")
    check_learnable(request)
    messages = request.get("messages", [])
    system = next((message["content"] for message in messages if message.get("role") == "system"), "")
    return CompiledPrompt(system, request.get("tools"))


OF_DAEMON = ("memory", "context", "threads", "canary", "canary_rise", "max_kl")


@command("rebase", MODEL,
         click.option("--from", "state", type=click.Path(path_type=Path), required=True, metavar="STATE",
                      help="State folder of a daemon that does not run."),
         click.option("-o", "--out", "folder", type=click.Path(path_type=Path), required=True,
                      help="New folder of the adapter."),
         config_options(*OF_DAEMON, of=DaemonConfig), training_options(*FILE_OPTIONS, *OF_DAEMON, "shuffle"),
         policy_file_option, policy_options, group=lab)
def rebase_command(model: Path, state: Path, folder: Path, policy_file: Path | None, as_json: bool,
                   **options: Any) -> None:
    """Move what a daemon has learned to another MODEL.

    All feedback in STATE, which does not change, is learned again on MODEL. The same questions are held out, and
    compared with only MODEL; the verdict is in OUT's run.json. Ctrl-C stops; the same command continues.
    """
    from ..daemon.rebase import rebase
    policy = policy_of(policy_file, options)
    config = DaemonConfig(**{name: options[name] for name in OF_DAEMON}).check()
    rest: dict[str, Any] = {name: value for name, value in options.items() if name not in OF_DAEMON}
    train = TrainConfig(**rest, threads=config.threads).check()
    with stop_on_signals() as should_stop, train_progress(as_json) as progress:
        found = rebase(model, state, folder, config=config, policy=policy, train=train, should_stop=should_stop,
                       on_event=progress.event)
    remembered = [found.verdict["remembered"]] if found.verdict["remembered"] else []
    show(as_json, {"out": str(folder), "rows": found.rows, "held_out": found.held, "verdict": found.verdict},
         found.sentence, *remembered, f"adapter in {folder}")


@command("device", click.option("--root", type=click.Path(path_type=Path), default=Path("/"),
                                help="Describe the machine whose /proc and /sys are below this folder."), watch_option,
         group=lab)
def device_command(root: Path, watch: bool, as_json: bool) -> None:
    """Show what is known of this device.

    It shows what was detected, the profile with its reason, what overrides it, and the temperature. With --watch:
    only the sensors.
    """
    from .info import describe_device, sensor_reader
    if watch:
        watch_facts(sensor_reader(root), known_facts, as_json)
        return
    facts = describe_device(root)
    show(as_json, facts, known_facts(facts))
