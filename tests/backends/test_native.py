"""The native core from Python: values against the gguf package, llama.cpp and numpy on every kernel set that this
CPU can run, and refusals. `make check` runs the C harness, which has the rest."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from formats_of_ggml import dequantize, ggml_type

from edgetune.backends import cpu, native
from edgetune.errors import UnsupportedError

ROOT = Path(__file__).parents[2]
KERNEL_SETS = [name for name in cpu.isa_names() if cpu.usable(name)]


def noise(*shape: int, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def weights(fmt, rows, columns, seed=0):
    """Random bytes with finite scales of all sizes, subnormal ones too, and their values."""
    rng = np.random.default_rng(seed)
    _, block, size = ggml_type(fmt)
    if fmt == "F32":
        values = rng.standard_normal((rows, columns)).astype(np.float32)
        return values.view(np.uint8).reshape(-1), values
    if fmt == "BF16":
        raw = (rng.standard_normal((rows, columns)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        raw = raw.view(np.uint8).reshape(rows, -1)
    else:
        raw = rng.integers(0, 256, (rows * columns // block, size), np.uint8)
        for offset in native.FORMATS[fmt].halves:
            raw[:, offset + 1] &= 0xBB  # clears one bit of the exponent: neither infinite nor NaN
        if native.FORMATS[fmt].scales == "EXPONENT":
            raw[:, 0] = raw[:, 0] % 16 + 115  # 2^-12 to 2^3
        raw = raw.reshape(rows, -1)
    return raw.reshape(-1).copy(), dequantize(raw, fmt).reshape(rows, columns)


def close(got, want, tolerance=3e-6):
    return bool(np.abs(got - want).max() <= tolerance * np.abs(want).max())


@pytest.fixture(params=KERNEL_SETS)
def ctx(request):
    return cpu.Cpu(2, request.param)


@pytest.mark.dev
@pytest.mark.parametrize("fmt", native.FORMATS)
def test_dequantize_equals_gguf_and_llama_cpp(ctx, fmt):
    w, want = weights(fmt, 8, 3 * 256)
    out = np.empty_like(want)
    ctx.dequantize(out, w, fmt)
    np.testing.assert_array_max_ulp(out, want, maxulp=1)


def influence(fmt):
    """How many weights of a block each of its bytes changes, by the gguf package or llama.cpp."""
    _, block, size = ggml_type(fmt)
    raw = weights(fmt, 1, block, seed=1)[0].reshape(1, size)
    before = dequantize(raw, fmt)
    counts = []
    for place in range(size):
        changed = raw.copy()
        changed[0, place] ^= 3
        counts.append(int((dequantize(changed, fmt) != before).sum()))
    return counts


@pytest.mark.parametrize("fmt", sorted(native.FORMATS.keys() - {"F32"}))
def test_scales_are_where_the_list_says(fmt):
    """A byte of codes changes 8 weights at most: whatever changes more is a scale, and must be the block's own."""
    counts, (_, block, size) = influence(fmt), ggml_type(fmt)
    form = native.FORMATS[fmt]
    beginning = {"VALUES": 0, "ONE": 2, "ONE_AND_MINIMUM": 4, "EXPONENT": 1}
    assert (form.block, form.size) == (block, size)
    assert all(counts[place] > block // 2 for place in form.halves)
    if form.scales == "GROUPS":
        others = set(range(size)) - {half + i for half in form.halves for i in range(2)}
        assert max(counts[place] for place in others) > 8
        return
    scales = counts[:beginning[form.scales]]
    assert all(count > block // 2 for count in scales)
    assert max(counts[len(scales):]) <= 8
    assert form.halves == ((0,) if block == 1 and fmt == "F16" else tuple(range(0, len(scales) - 1, 2)))


def test_every_scale_of_mxfp4(ctx):
    raw = np.random.default_rng(0).integers(0, 256, (256, 17), np.uint8)
    raw[:, 0] = np.arange(256)
    out = np.empty((256, 32), np.float32)
    ctx.dequantize(out, raw.reshape(-1), "MXFP4")
    np.testing.assert_array_equal(out, dequantize(raw, "MXFP4"))


@pytest.mark.dev
@pytest.mark.parametrize("fmt", native.FORMATS)
def test_products_equal_numpy(ctx, fmt):
    T = 21
    N = 50
    K = 512
    w, values = weights(fmt, N, K)
    inp = noise(T, K)
    dout = noise(T, N)
    out = noise(T, N, seed=1)
    dinp = noise(T, K, seed=2)
    before = out.astype(np.float64)
    dbefore = dinp.astype(np.float64)
    wide = values.astype(np.float64)
    ctx.matmul_forward(out, inp, w, fmt, 0.5, True)
    assert close(out, before + 0.5 * inp @ wide.T)
    ctx.matmul_forward(out, inp, w, fmt)
    assert close(out, inp @ wide.T)
    ctx.matmul_backward(dinp, dout, w, fmt, 0.5, True)
    assert close(dinp, dbefore + 0.5 * dout @ wide)
    ctx.matmul_backward(dinp, dout, w, fmt)
    assert close(dinp, dout @ wide)


@pytest.mark.dev
@pytest.mark.parametrize("fmt", [fmt for fmt in native.FORMATS if fmt != "F16"])  # random halves span 2^-24 .. 2^15
@pytest.mark.parametrize("precision", ["fast", "int8"])
def test_rounded_products_are_close(ctx, fmt, precision):
    """Each as close as the numbers allow that it says it is multiplied in, and no closer unless these are floats.

    Bytes share a scale over 32 values forward and 128 backward, of which the largest is 1.3 times as large.
    """
    far = {"float": (1e-6, 1e-6), "bf16": (0.004, 0.004), "int8": (0.015, 0.02)}
    T = 9
    N = 96
    K = 512
    products = [words.split()[0] for words in ctx.products(precision).split(", ")]
    if fmt == "F32":  # is never rounded to bytes
        products = [ctx.products("fast").split()[0]] * 2
    w, values = weights(fmt, N, K)
    inp = noise(T, K)
    out = np.empty((T, N), np.float32)
    dout = noise(T, N)
    dinp = np.empty((T, K), np.float32)
    ctx.matmul_forward(out, inp, w, fmt, precision=precision)
    ctx.matmul_backward(dinp, dout, w, fmt, precision=precision)
    wanted = (inp.astype(np.float64) @ values.T, dout.astype(np.float64) @ values)
    for got, want, numbers, backward in zip((out, dinp), wanted, products, (False, True), strict=True):
        error = np.linalg.norm(got - want) / np.linalg.norm(want)
        assert error <= far[numbers][backward]
        assert (error < 1e-6) == (numbers == "float"), (numbers, error)


def test_products_of_a_precision():
    assert cpu.Cpu(1).products("exact") == "float forward, float backward"
    assert cpu.Cpu(1, "scalar").products("fast") == "float forward, float backward"
    assert cpu.Cpu(1, "scalar").products("int8") == "float forward, float backward"
    for isa in ("amx", "avx512bf16", "avx512vnni", "avxvnni", "i8mm", "dotprod"):
        if not cpu.usable(isa):
            continue
        bf16 = "bf16 forward, bf16 backward"
        assert cpu.Cpu(1, isa).products("int8") == (bf16 if isa == "amx" else "int8 forward, int8 backward")
        fast = bf16 if isa in ("amx", "avx512bf16") else "float forward, int8 backward"
        assert cpu.Cpu(1, isa).products("fast") == fast
    with pytest.raises(ValueError, match=r"'half'.*exact, fast, int8"):
        cpu.Cpu(1).products("half")


def test_weight_at_any_address(ctx):
    for fmt in ("F32", "F16", "Q4_1", "Q6_K"):
        w, values = weights(fmt, 9, 256)
        odd = np.zeros(w.size + 1, np.uint8)[1:]
        odd[:] = w
        inp = noise(5, 256)
        out = np.empty((5, 9), np.float32)
        ctx.matmul_forward(out, inp, odd, fmt)
        assert close(out, inp.astype(np.float64) @ values.T)


def test_nan_and_infinite_scales_survive(ctx):
    w, _ = weights("Q8_0", 3, 32)
    w[:2] = np.array([np.nan], np.float16).view(np.uint8)
    w[34:36] = np.array([np.inf], np.float16).view(np.uint8)
    out = np.empty((2, 3), np.float32)
    with np.errstate(invalid="ignore"):
        ctx.matmul_forward(out, np.abs(noise(2, 32)), w, "Q8_0")
    assert np.isnan(out[:, 0]).all()
    assert not np.isfinite(out[:, 1]).any()
    assert np.isfinite(out[:, 2]).all()


def test_dweight_and_embed(ctx):
    dout = noise(40, 6)
    inp = noise(40, 70, seed=1)
    dw = noise(6, 70, seed=2)
    want = dw + 2.0 * dout.astype(np.float64).T @ inp
    ctx.matmul_dweight(dw, dout, inp, 2.0)
    assert close(dw, want)
    w, values = weights("Q4_K", 11, 256)
    tokens = np.array([10, 0, 3, 3], np.int32)
    out = np.empty((4, 256), np.float32)
    ctx.embed(out, tokens, w, "Q4_K", 3.0)
    assert close(out, 3.0 * values[tokens], 1e-6)


def test_threads_change_no_bit():
    w, _ = weights("Q5_1", 300, 640)
    inp = noise(130, 640)
    outs = []
    for threads in (1, 2, 5):
        out = np.empty((130, 300), np.float32)
        cpu.Cpu(threads).matmul_forward(out, inp, w, "Q5_1")
        outs.append(out.tobytes())
    assert len(set(outs)) == 1


def f32(*shape: int):
    return np.zeros(shape, np.float32)


def adamw8(ctx, moments):
    ctx.adamw8(f32(300), f32(300), moments, 1, 0.9, 0.9, 1e-8, 0, 1, 0)


def i32(*values: int):
    return np.array(values, np.int32)


VALUE = ValueError
# What must be refused, the argument that the message must name, and how.
REFUSED: dict[str, tuple[Callable[[cpu.Cpu], object], str, type[Exception]]] = {
    "rows differ": (lambda c: c.matmul_forward(f32(4, 3), f32(5, 8), f32(3, 8), "F32"), "inp", VALUE),
    "width differs": (lambda c: c.matmul_forward(f32(4, 3), f32(4, 8), f32(3, 7), "F32"), "w", VALUE),
    "too few dimensions": (lambda c: c.matmul_backward(f32(8), f32(1, 3), f32(3, 8), "F32"), "dinp", VALUE),
    "not whole blocks": (lambda c: c.matmul_forward(f32(1, 2), f32(1, 33), np.zeros(40, np.uint8), "Q4_1"), "w", VALUE),
    "bytes missing": (lambda c: c.matmul_forward(f32(1, 2), f32(1, 32), np.zeros(39, np.uint8), "Q4_1"), "w", VALUE),
    "float weight for a quantized format": (
        lambda c: c.matmul_forward(f32(1, 2), f32(1, 32), f32(2, 32), "Q4_1"), "w", VALUE),
    "unknown format": (lambda c: c.matmul_forward(f32(1, 2), f32(1, 2), f32(2, 2), "Q9"), "Q9", VALUE),
    "token out of range": (lambda c: c.embed(f32(1, 2), i32(2), f32(2, 2), "F32"), "token", VALUE),
    "token below": (lambda c: c.embed(f32(1, 2), i32(-1), f32(2, 2), "F32"), "token", VALUE),
    "dweight": (lambda c: c.matmul_dweight(f32(2, 3), f32(4, 2), f32(4, 2)), "inp", VALUE),
    "dequantize": (lambda c: c.dequantize(f32(3), f32(4), "F32"), "w", VALUE),
    "norm rows": (lambda c: c.rmsnorm_forward(f32(4, 3), f32(3), f32(4, 3), f32(3), 1e-6), "rstd", VALUE),
    "norm wide": (lambda c: c.rmsnorm_backward(f32(4, 3), f32(4, 3), f32(4, 3), f32(5), f32(4)), "dinp", VALUE),
    "position out of range": (
        lambda c: c.rope(f32(1, 2, 8), f32(4, 4), f32(4, 4), i32(4), True, 1.0), "position", VALUE),
    "rope sign": (lambda c: c.rope(f32(1, 2, 8), f32(4, 4), f32(4, 4), i32(0), True, 0.5), "range", VALUE),
    "rope wider than the head": (
        lambda c: c.rope(f32(1, 2, 8), f32(4, 5), f32(4, 5), i32(0), True, 1.0), "size", VALUE),
    "heads not grouped": (
        lambda c: c.attention_forward(
            f32(2, 3, 4), f32(3, 2), f32(2, 3, 4), f32(2, 2, 4), f32(2, 2, 4), i32(2, 2), i32(0, 1), 1.0), "size",
        VALUE),
    "more queries than keys": (
        lambda c: c.attention_forward(
            f32(3, 2, 4), f32(2, 3), f32(3, 2, 4), f32(2, 2, 4), f32(2, 2, 4), i32(2, 2), i32(0, 1), 1.0), "size",
        VALUE),
    "end before its token": (
        lambda c: c.attention_forward(
            f32(2, 2, 4), f32(2, 2), f32(2, 2, 4), f32(2, 2, 4), f32(2, 2, 4), i32(2, 1), i32(0, 1), 1.0), "forest",
        VALUE),
    "end after its parent's": (
        lambda c: c.attention_forward(
            f32(3, 2, 4), f32(2, 3), f32(3, 2, 4), f32(3, 2, 4), f32(3, 2, 4), i32(2, 3, 3), i32(0, 1, 2), 1.0),
        "forest", VALUE),
    "position that does not count": (
        lambda c: c.attention_forward(
            f32(2, 2, 4), f32(2, 2), f32(2, 2, 4), f32(2, 2, 4), f32(2, 2, 4), i32(2, 2), i32(0, 2), 1.0), "forest",
        VALUE),
    "attention backward": (
        lambda c: c.attention_backward(
            f32(2, 2, 4), f32(2, 2, 4), f32(2, 1, 4), f32(2, 2), f32(2, 2, 4), f32(2, 2, 4), f32(2, 2), f32(2, 2, 4),
            f32(2, 2, 4), f32(2, 2, 4), i32(2, 2), i32(0, 1), 1.0), "dv", VALUE),
    "activation": (lambda c: c.glu_forward(f32(3), f32(3), f32(3), "relu"), "relu", VALUE),
    "glu sizes": (lambda c: c.glu_backward(f32(3), f32(3), f32(3), f32(3), f32(3), f32(4), "silu"), "up", VALUE),
    "bias": (lambda c: c.add_bias(f32(2, 3), f32(2)), "bias", VALUE),
    "drop everything": (lambda c: c.dropout(f32(3), f32(3), 1.0, 0), "range", VALUE),
    "target out of range": (
        lambda c: c.head_forward(f32(1), None, f32(1, 3), f32(1, 4), f32(1, 2), f32(3, 2), "F32", i32(3)), "target",
        VALUE),
    "head width": (
        lambda c: c.head_backward(
            f32(1, 2), f32(1), f32(1, 3), f32(1, 3), f32(1, 4), f32(1, 4), f32(3, 2), "F32", i32(0), f32(1)),
        "h ", VALUE),
    "step 0": (lambda c: c.adamw(f32(3), f32(3), f32(3), f32(3), 1, 0.9, 0.9, 1e-8, 0, 0), "size", VALUE),
    "moments differ": (lambda c: c.adamw(f32(3), f32(3), f32(2), f32(3), 1, 0.9, 0.9, 1e-8, 0, 1), "m", VALUE),
    "moments are short": (lambda c: adamw8(c, np.zeros(520, np.uint8)), "moments has 520 bytes, expected 1040", VALUE),
    "moments are misaligned": (lambda c: adamw8(c, np.zeros(1041, np.uint8)[1:]), "moments must be uint8 where", VALUE),
    "nothing to sum": (lambda c: c.sum_squares(f32(0)), "x", VALUE),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case):
    call, name, error = REFUSED[case]
    with pytest.raises(error, match=name):
        call(cpu.Cpu(1))


def test_views_are_used_in_place():
    arena = np.zeros(1000, np.float32)
    x = arena[10:22].reshape(3, 4)
    y = arena[501:513].reshape(3, 4)
    y[:] = 2
    cpu.Cpu(1).add(x, y)
    assert arena[10:22].tolist() == [2] * 12
    assert arena.sum() == 48


def test_cpu_refuses():
    with pytest.raises(UnsupportedError, match=r"mmx.*scalar"):
        cpu.Cpu(1, "mmx")
    with pytest.raises(ValueError, match="threads"):
        cpu.Cpu(0)
    with pytest.raises(ValueError, match="scratch has 64 bytes"):
        cpu.Cpu(1).use_scratch(np.zeros(64, np.uint8))
    ops = cpu.Cpu(1)
    ops.scale(f32(1), 2.0)
    with pytest.raises(RuntimeError, match="before the first op"):
        ops.use_scratch(np.zeros(ops.scratch_bytes, np.uint8))


def test_context_serves_one_caller_at_a_time():
    ctx = cpu.Cpu(1)
    x = noise(4_000_000)
    errors = []

    def work():
        try:
            for _ in range(20):
                ctx.sum_squares(x)
        except RuntimeError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors
    assert all("in use by another thread" in error for error in errors)


@pytest.mark.parametrize("precision", native.PRECISIONS)
def test_fewer_working_threads_change_no_bit(precision):
    w, _ = weights("Q4_1", 256, 256)
    inp = noise(64, 256)
    want = np.empty((64, 256), np.float32)
    cpu.Cpu(1).matmul_forward(want, inp, w, "Q4_1", precision=precision)
    ctx = cpu.Cpu(4)
    out = np.empty_like(want)
    for threads in [4, 1, 2, 3, 1, 4, 2] * 20:
        ctx.working = threads
        for _ in range(3):
            out.fill(np.nan)
            ctx.matmul_forward(out, inp, w, "Q4_1", precision=precision)
            assert np.array_equal(out, want), threads
    assert (ctx.working, ctx.threads) == (2, 4)
    for threads in (0, 5):
        with pytest.raises(ValueError, match=f"{threads} threads cannot work: this CPU was opened with 4"):
            ctx.working = threads


def test_a_thread_that_does_not_work_sleeps():
    code = """
import glob, numpy as np
from edgetune.backends import cpu
def ticks():
    texts = [open(f).read().rpartition(")")[2].split() for f in sorted(glob.glob("/proc/self/task/*/stat"))]
    return [int(text[11]) + int(text[12]) for text in texts]
ctx, x = cpu.Cpu(3), np.ones(1_000_000, np.float32)
ctx.scale(x, 1.0)
ctx.working, before = 1, ticks()
for _ in range(1000):
    ctx.scale(x, 1.0)
print([after - start for start, after in zip(before, ticks())])
"""
    caller, *others = eval(run_python(code, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1"))
    assert caller >= 5
    assert len(others) == 2
    assert max(others) <= 1


def run_python(code, **env: str):
    """From /, not this checkout, where the extension may not be built."""
    return subprocess.run([sys.executable, "-c", code], env={**os.environ, **env}, cwd="/", capture_output=True,
                          text=True, check=True, timeout=60).stdout.strip()


def test_environment_hides_kernel_sets():
    code = "from edgetune.backends import cpu as n; print(n.Cpu(1).isa, [i for i in n.isa_names() if n.usable(i)])"
    assert run_python(code, EDGETUNE_ISA="scalar") == "scalar ['scalar']"
    assert run_python(code, EDGETUNE_ISA=f"scalar,{KERNEL_SETS[0]}").startswith(KERNEL_SETS[0])


def test_forked_child_computes():
    code = """
import os, warnings, numpy as np
from edgetune.backends import cpu
warnings.simplefilter("ignore")
ctx, x = cpu.Cpu(3), np.ones(1_000_000, np.float32)
ctx.scale(x, 2.0)
child = os.fork()
if child == 0:
    ctx.scale(x, 2.0)
    del ctx
    os._exit(0 if (x == 4).all() else 1)
print(os.waitpid(child, 0)[1], ctx.sum_squares(x))
"""
    assert run_python(code) == "0 4000000.0"
