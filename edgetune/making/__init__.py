"""Rows made from what a person has: a list of intents, another program's feedback, a log of answers, documents.

Each source is a module with one dataclass of options and a function that returns `Made`.
"""
