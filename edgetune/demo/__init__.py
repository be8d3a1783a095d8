"""The demonstration: a small model learns home commands."""
