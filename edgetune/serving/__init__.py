"""Answers: models that are served, batches of requests, and adapters that are switched."""
