"""Answers by the engine that trains: K samples to each of many prompts at once. `texts.answers` is the door."""
