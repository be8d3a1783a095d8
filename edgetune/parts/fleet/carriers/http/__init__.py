"""Rounds that a daemon serves by HTTP."""
