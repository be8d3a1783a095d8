"""The command line. Each command parses, calls one function and prints."""

from . import (  # noqa: F401  (each adds its commands to the group)
    answer,
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
    index,
    joined,
    kept,
    learn,
    models,
    plan,
    rebase,
    remote,
    report,
    status,
    tutor,
)
from .app import cli as cli
from .app import main as main
