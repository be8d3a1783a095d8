"""Rounds carried by Flower: programs of a separate environment, which this room starts, and the apps that run there."""
