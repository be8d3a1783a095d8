"""What a lower precision may cost, of a LoRA's gradients; and the kernel sets that differ in it."""

import numpy as np

from edgetune.backends import cpu, native

GATES = {"fast": (0.9995, 0.997), "int8": (0.995, 0.975)}  # cosine of the whole gradient, and of each tensor
KERNEL_SETS = [name for name in cpu.isa_names() if cpu.usable(name)]
# the best of the kernel sets that multiply in the same numbers
KINDS = list({tuple(cpu.Cpu(1, name).products(p) for p in native.PRECISIONS): name
              for name in reversed(KERNEL_SETS)}.values())


def cosine(a, b):
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))
