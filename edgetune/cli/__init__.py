"""The command line. Each command parses, calls one function and prints."""

from . import (  # noqa: F401  (each adds its commands to the group)
    answer,
    answers,
    bench,
    chat,
    compare,
    compiled,
    compress,
    daemon,
    data,
    demo,
    feedback,
    files,
    generate,
    grade,
    home,
    joined,
    kept,
    learn,
    making,
    mix,
    models,
    plan,
    rebase,
    remote,
    report,
    status,
    teach,
    tutor,
)
from .app import cli as cli
from .app import main as main
