"""The version of the package, for the files that say what wrote them."""

__version__ = "0.1.0"
