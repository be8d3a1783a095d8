"""The laptop's side: from a checkpoint to a bundle that fits the board. Only this room may import torch."""

import os

# Where torch multiplies with AMX, it resets the tiles of the threads that llama.cpp shares with it, and llama.cpp, which
# sets them up once for each thread, then dies of an illegal instruction. torch reads this before its first product.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
