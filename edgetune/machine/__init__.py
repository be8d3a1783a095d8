"""The device: what it is, how it is now, and whether training should continue, slow down or pause."""
