"""fleet server, fleet node: rounds that Flower carries."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .....cli.app import GIVEN, RowsPath, command, show, stop_on_signals
from ...commands.rounds import BASE, DEVICE_OPTIONS, FOLDER, KEY, fleet, learned, noise_of, tell

if TYPE_CHECKING:
    from ...rounds.task import RoundRecord
    from .server import Tls

FLOWER = click.option("--flower", type=click.Path(path_type=Path), metavar="PYTHON",
                      help="Python of an environment with Flower [this one].")


def file_option(name: str, says: str, **more: Any) -> Any:
    return click.option(name, type=click.Path(path_type=Path), help=says, **more)


@command("server", FOLDER, BASE, file_option("--nodes", "File of the nodes' public keys, one a line.", required=True),
         click.option("--host", default="127.0.0.1", show_default=True, help="Address at which nodes reach it."),
         click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Its port."),
         click.option("--name", "names", multiple=True, help="Another name or address of this machine."),
         file_option("--authority", "With an own certificate: that of its authority."),
         file_option("--certificate", "Own certificate [made once]."),
         file_option("--certificate-key", "Its private key."),
         click.option("--rounds", type=click.IntRange(1), default=10, show_default=True, help="The last round to end."),
         click.option("--devices", type=click.IntRange(1), default=1, show_default=True,
                      help="Answers that end a round."),
         click.option("--wait", type=click.FloatRange(1.0), default=86400.0, show_default=True,
                      help="Seconds after which the quorum of the task is enough."),
         click.option("--every", type=click.FloatRange(0.1), default=3.0, show_default=True,
                      help="Seconds between two looks."), FLOWER, KEY, group=fleet)
def fleet_server(folder: Path, model: Path, nodes: Path, host: str, port: int, names: tuple[str, ...],
                 authority: Path | None, certificate: Path | None, certificate_key: Path | None, rounds: int,
                 devices: int, wait: float, every: float, flower: Path | None, key: Path | None,
                 as_json: bool) -> None:
    """End the rounds in a FOLDER, which Flower carries.

    It starts Flower's SuperLink, with TLS, for the nodes whose keys are given. Ctrl-C stops; the same command
    continues, in the same round.
    """
    from .....disk import state_folder
    from .environment import find, state_of
    found = find(flower, state_of(folder, state_folder()))  # before anything that needs more than Python
    from .....formats.bundle import open_bundle
    from .server import FlowerServer, node_keys
    server = FlowerServer(folder, open_bundle(model), found, node_keys(nodes), host, port, names,
                    tls_of(authority, certificate, certificate_key), devices, wait, rounds, every, key)
    ended: list[dict[str, Any]] = []

    def on_round(record: RoundRecord) -> None:
        ended.append(vars(record))
        tell(as_json)(round_line(record))

    with stop_on_signals() as should_stop:
        server.serve(should_stop, on_round, tell(as_json))
    show(as_json, {"rounds": ended}, f"{len(ended)} rounds ended")


def round_line(one: RoundRecord) -> str:
    """Returns what a person is told of a round that another process ended."""
    return f"round {one.round}: {one.devices} devices, {one.left_out} left out, {learned(one)}"


def tls_of(authority: Path | None, certificate: Path | None, key: Path | None) -> Tls | None:
    """Returns the person's own certificate. Raises UsageError if a part of it is missing."""
    from .....errors import UsageError
    from .server import Tls
    if authority and certificate and key:
        return Tls(authority, certificate, key)
    if authority or certificate or key:
        raise UsageError("of --authority, --certificate and --certificate-key some are missing",
                         "give all three, or none of them")
    return None


@command("node", click.argument("address"), click.argument("rows", type=RowsPath()), BASE,
         file_option("--authority", "Certificate of the server's authority [the system's]."),
         file_option("--node-key", "Private key of this node [made once]."), FLOWER, *DEVICE_OPTIONS, group=fleet)
def fleet_node(address: str, rows: Path, model: Path, authority: Path | None, node_key: Path | None,
               flower: Path | None, noise: float | None, noise_norm: float, as_json: bool,
               **options: Any) -> None:
    """Answer the rounds of a server at ADDRESS with ROWS.

    ADDRESS is HOST:PORT of an edgetune fleet server. It starts Flower's SuperNode, and each round `edgetune fleet
    train-round`. Code that the server sends is not run. Ctrl-C stops; the same command continues.
    """
    from .....disk import state_folder
    from .environment import find
    from .node import Node
    noise_of(noise, noise_norm)
    state = state_folder() / f"flower-node-{hashlib.sha256(address.encode()).hexdigest()[:8]}"
    words = [str(rows), "--model", str(model), *given_words("noise", "noise_norm", *options)]
    node = Node(address, find(flower, state), node_key or state / "node.key", authority, words)
    with stop_on_signals() as should_stop:
        node.follow(should_stop, tell(as_json))
    show(as_json, {"public_key": node.public_key()}, "the node ended")


def given_words(*names: str) -> list[str]:
    """Returns the words for these options of the command, as far as a person gave them."""
    ctx = click.get_current_context()
    words = []
    for one in ctx.command.params:
        value = ctx.params.get(one.name or "")
        if one.name in names and ctx.get_parameter_source(one.name) in GIVEN and value is not None:
            if isinstance(value, bool):
                words.append((one.opts if value else one.secondary_opts)[0])
            else:
                words += [one.opts[0], str(value)]
    return words
