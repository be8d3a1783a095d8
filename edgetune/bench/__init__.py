"""Measurements: every op alone (`kernels`), a training step (`train`), answers through llama.cpp (`generate`)."""
