"""Commands before a server that is no daemon, such as a proxy whose daemon is away: each ends in one sentence."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from other_servers import ANSWERS, ODD_ANSWERS, answering, told, write_files
from part_tables import of_parts

from edgetune.cli import cli
from edgetune.daemon.client import Client
from edgetune.errors import AwayError, EdgetuneError, NotFoundError, UnansweredError

COMMANDS = {  # what follows the words of a command, in the order of its arguments
    "adapters add": ["{adapter}"], "adapters download": ["x", "-o", "{new}"], "adapters route": ["x", "file-1"],
    "adapters rename": ["x", "y"], "adapters list": [], "adapters recover": [], "adapters rollback": [],
    "feedback list": [], "feedback add": ["--prompt", "x", "--correction", "y"], "feedback edit": ["x", "y"],
    "feedback learn": [], "feedback check": [], "feedback proposed": [],
    "home corrections": ["-o", "{new}"],
    "jobs list": [], "jobs create": ["{rows}"], "feedback prompts list": [], "feedback prompts learn": [],
    "status": ["--once"],
    "generate": ["m", "hello"], "eval": ["m", "{rows}"], "chat": ["m"], **dict(of_parts("ARGUMENTS"))}


def with_url(group=cli, path=()):
    """The words of each command that asks a daemon at --url."""
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        if isinstance(command, click.Group):
            yield from with_url(command, (*path, name))
        elif {"url", "key_file"} <= {param.name for param in command.params} and path[:1] != ("data",):
            yield " ".join((*path, name))  # those of data ask any server that has OpenAI's API


@pytest.fixture
def files(tmp_path, monkeypatch):
    return write_files(tmp_path, monkeypatch)


@pytest.mark.dev
@pytest.mark.parametrize("what", ["a proxy's page", "a list", "half an object", *ODD_ANSWERS])
def test_every_command_says_in_a_sentence_what_answers(files, what):
    commands = [*with_url()]
    assert len(commands) > 30
    with answering(ANSWERS[what]) as url:
        for words in commands:
            said, code = told(*words.split(), *(each.format(**files) for each in COMMANDS.get(words, ["x"])),
                              "--url", url)
            if what in ODD_ANSWERS and code == 0:  # it shows nothing of what is odd
                files["new"].unlink(missing_ok=True)
                continue
            assert f"what answers at {url} is no daemon of edgetune" in said, words
            assert code == 1
            assert not files["new"].exists()


def test_errors_of_a_daemon_keep_their_kinds():
    for status, kind in ((404, NotFoundError), (503, UnansweredError), (418, EdgetuneError)):
        with answering((status, "application/json", '{"error": {"message": "said so"}}')) as url, Client(url) as client:
            for call in (client.get, client.post, lambda path: client.download(path, Path("/none/file"))):
                with pytest.raises(kind, match=r"^said so$") as caught:
                    call("/v1/models")
                assert not isinstance(caught.value, AwayError)
