"""Tests of the tutor's half of the page. That this is a package lets them share a browser."""
