"""Graders as written in JSON, and what an answer earns by them, for tests."""

from edgetune.evaluation.graders.base import read_grader
from edgetune.evaluation.graders.sample import Sample


def check(operation, text, reference):
    return {"type": "string_check", "name": "c", "operation": operation, "input": text, "reference": reference}


def grade(written, sample="", item=None, **means):
    sample = Sample(sample) if isinstance(sample, str) else sample
    grade, = read_grader(written, **means).grade([sample], [item or {}])
    return grade


def reward(written, sample="", item=None):
    found = grade(written, sample, item)
    assert found.errors == {}
    return found.reward
