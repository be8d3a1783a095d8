"""The command line. Each command parses, calls one function and prints."""

from .app import cli as cli
from .app import main as main
