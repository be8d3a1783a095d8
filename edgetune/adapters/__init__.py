"""Adapter families, their parameters, and adapters on disk."""
