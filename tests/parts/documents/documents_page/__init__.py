"""Tests of the panel of documents. That this is a package lets them share a browser."""
