"""Flower: its SuperLink and SuperNodes carry the rounds, each started by a separate command."""

from ..registry import Carrier

CARRIER = Carrier(
    name="flower", commands=("commands",), packages=("flwr", "cryptography"))
