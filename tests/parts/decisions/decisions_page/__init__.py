"""Tests of the panel of typed questions. That this is a package lets them share a browser."""
