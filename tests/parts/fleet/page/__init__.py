"""Tests of the panel. That this is a package lets them share a browser."""
