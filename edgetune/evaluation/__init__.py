"""Evaluation of models: as they are served, and by our own engine."""
