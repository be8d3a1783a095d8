"""The command line. Each command parses, calls one function and prints."""

from . import answer, bench, compare, compress, daemon, data, demo, feedback, files, learn, plan, remote, report, status  # noqa: F401  (each adds its commands to the group)
from .app import cli as cli
from .app import main as main
