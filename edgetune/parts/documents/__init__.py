"""Passages of a person's documents: read, divided, stored, found, and put before a question."""
