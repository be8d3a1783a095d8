"""What a command shows at a terminal of a given width, recorded with its colours."""

import io
from contextlib import contextmanager

from edgetune.cli.app import out


@contextmanager
def recording(columns=80):
    """The terminal of all commands, whose export_text and export_svg have what is printed within."""
    before = dict(vars(out))
    out.__init__(record=True, width=columns, force_terminal=True, color_system="truecolor", file=io.StringIO(),
                 legacy_windows=False, _environ={})
    try:
        yield out
    finally:
        vars(out).clear()
        vars(out).update(before)
