"""Tests of the panel. That this is a package, with a name that no other has, lets them share a browser."""
