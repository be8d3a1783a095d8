"""Graders, which score answers: rules written as JSON, and functions in Python."""
