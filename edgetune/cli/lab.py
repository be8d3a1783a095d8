"""The group lab: what measures, and what was not measured to be better than the default."""

from .app import cli


@cli.group("lab")
def lab() -> None:
    """Measure, and try what is not better by default.

    Nothing here was measured to be better than the plain way. It works, and it may be of use to you.
    """
