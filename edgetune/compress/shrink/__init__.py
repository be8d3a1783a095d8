"""Fewer weights: vocabulary, blocks, channels and heads, and healing by distillation."""
