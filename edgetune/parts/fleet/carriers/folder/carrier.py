"""The folder itself."""

from ..registry import Carrier

CARRIER = Carrier(name="folder", schemes=("",), opening="opening:opened")
