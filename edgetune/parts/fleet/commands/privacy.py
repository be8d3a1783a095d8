"""fleet privacy: epsilon of noise, before any round."""

from __future__ import annotations

import math

import click

from ....cli.app import command, show
from .rounds import fleet

DELTA_OPTION = click.option("--delta", type=click.FloatRange(0.0, 1.0, min_open=True, max_open=True), default=1e-5,
                            show_default=True, help="Chance by which epsilon may not hold; far below 1 / devices.")


@command("privacy",
         click.option("--noise", type=click.FloatRange(0.0, min_open=True), help="Noise, as for edgetune fleet task."),
         click.option("--epsilon", type=click.FloatRange(0.0, min_open=True),
                      help="In place of --noise: find the noise by which all sums together have this epsilon."),
         click.option("--devices", type=click.IntRange(1), required=True, help="Devices in the fleet."),
         click.option("--rounds", type=click.IntRange(1), default=10, show_default=True, help="Rounds."),
         click.option("--share", type=click.FloatRange(0.0, 1.0, min_open=True), default=1.0, show_default=True,
                      help="Chance of each device to take part in a round, where nobody sees who does."),
         DELTA_OPTION, group=fleet)
def fleet_privacy(noise: float | None, epsilon: float | None, devices: int, rounds: int, share: float, delta: float,
                  as_json: bool) -> None:
    """Say what noise hides, by differential privacy.

    Epsilon compares what a device sends with an answer that changes nothing; between any two answers it is that of half
    the noise. Whoever sees only the sums sees the noise of all devices.
    """
    from ....errors import UsageError
    from ..privacy import multiplier_for, sampled_epsilon
    if (noise is None) == (epsilon is None):
        raise UsageError("--noise and --epsilon are both given, or neither is", "give one of them")
    root = math.sqrt(devices * share)
    noise = noise or multiplier_for(epsilon or 0.0, share, rounds, delta) / root
    found = {who: {"last": sampled_epsilon(multiplier, chance, 1, delta),
                   "total": sampled_epsilon(multiplier, chance, rounds, delta)}
             for who, multiplier, chance in (("answer", noise, 1.0), ("sum", noise * root, share))}
    show(as_json, {"noise": noise, "devices": devices, "rounds": rounds, "share": share, "delta": delta, **found},
         f"--noise {noise:.3g} on each of {devices} devices, delta {delta:g}",
         *(f"epsilon {one['last']:.3g} a round and {one['total']:.3g} in {rounds}, against whoever sees {whom}"
           for whom, one in (("the answers of a device", found["answer"]), ("the sums alone", found["sum"]))))
