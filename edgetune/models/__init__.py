"""Frozen networks on quantized weights: buffers, forward and backward passes."""
