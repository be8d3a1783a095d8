"""What runs in Flower's environment: the standard library, flwr and its packages alone, so that it needs no edgetune.

A copy of this folder is the package edgetune_flower of the Flower App.
"""
