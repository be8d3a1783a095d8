"""Rounds carried by Flower: programs of its own environment, which this room starts, and the apps that run there."""
