"""A tutor: rounds in which a model learns its own answers to prompts that people asked, if they agree.

`rounds` does the work, in a folder; the other modules are its half of the daemon, which keeps the prompts.
"""
