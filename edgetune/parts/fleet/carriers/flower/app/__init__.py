"""What runs in Flower's environment: only the standard library, flwr and its packages, so that it needs no edgetune.

A copy of this folder is the package edgetune_flower of the Flower App.
"""
