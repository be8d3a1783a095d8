"""A command as a user types it, in this process."""

import click
from click.testing import CliRunner

from edgetune.cli import cli


def run(*args, code=0):
    """What it prints, with --json the result alone; its exit code must be `code`."""
    result = CliRunner().invoke(cli, [str(a) for a in args])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return (result.stdout if "--json" in args else "") or result.output


def all_commands(group=cli, path=()):
    """The words of each."""
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from all_commands(command, (*path, name))
