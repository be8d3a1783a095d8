"""Searches the prompt with which a model answers rows best, without training it."""
