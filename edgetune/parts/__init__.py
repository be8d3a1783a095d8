"""The parts: features that are each whole in one folder. See edgetune/manifest.py."""
