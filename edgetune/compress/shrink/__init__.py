"""Fewer weights: vocabulary, blocks, channels and heads, and distillation of what remains."""
