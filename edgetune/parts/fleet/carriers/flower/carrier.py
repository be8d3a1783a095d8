"""Flower: its SuperLink and SuperNodes carry the rounds, each started by a separate command."""

from .....manifest import Extra
from ..registry import Carrier

CARRIER = Carrier(
    name="flower", commands=("commands",),
    extras=(Extra("flower", "edgetune fleet server and edgetune fleet node", ("flwr",)),),
    packages=("flwr", "cryptography"))
